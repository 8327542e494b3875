"""Fixtures of the tests that index a home they write themselves."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from codex_tools.history.index import ThreadIndex
from support.index_checks import open_index


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A CODEX_HOME that does not exist yet."""
    return tmp_path / "home"


@pytest.fixture
def history(home: Path, tmp_path: Path) -> Generator[ThreadIndex]:
    """The index of that home."""
    with open_index(home, tmp_path / "state") as opened:
        yield opened
