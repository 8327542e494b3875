"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from far_ends import MODES, VERSIONS, FakeCodex, Lab, open_lab, real_codex


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CODEX_BIN", "CODEX_HOME", "CLAUDE_PROJECT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """The protocol era that the client opens with."""
    return str(request.param)


@pytest.fixture(params=VERSIONS, scope="module")
def version(request: pytest.FixtureRequest) -> str:
    """A Codex version."""
    return str(request.param)


@pytest.fixture
def codex(version: str) -> Path:
    """The real Codex of *version*."""
    return real_codex(version)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Generator[Lab]:
    """A place to work in, for the Codex that the test uses."""
    if "version" in request.fixturenames:
        with open_lab(request.getfixturevalue("version")) as made:
            yield made
    else:
        with open_lab() as made:
            yield made


@pytest.fixture
def fake(lab: Lab) -> FakeCodex:
    """A fake Codex, to be told what to play."""
    return FakeCodex(lab.root / "fake")
