"""Fixtures that all tests share, and how they are run side by side."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from endings import Ending, drawn
from far_ends import MODES, VERSIONS, FakeCodex, Lab, Note, open_lab, real_codex

# Codex and our server at work on their own: a lab of a test's own is never shared.
_ALONE = {"lab", "codex"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests go to a worker together, and which of them first.

    The tests of a file share what it makes once, so they stay together, apart
    from those that have a lab, which all of the time goes to: each of them
    goes to whoever is free. What takes long comes first, lest one worker be
    left at it when the others are done.
    """
    for item in items:
        assert isinstance(item, pytest.Function)
        if _ALONE.isdisjoint(item.fixturenames):
            version = item.callspec.params.get("version", "") if hasattr(item, "callspec") else ""
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {version}".strip()))
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    folder = item.path.parent.name
    return {"tests": 0, "live": 1, "codex": 2, "codex_tools": 2}.get(folder, 3)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests have noted, in whatever process they ran."""
    noted = [
        each
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for each in report.user_properties
    ]
    if lines := [str(value) for name, value in noted if name == "measured"]:
        terminalreporter.section("measured")
        terminalreporter.write("".join(f"{line}\n" for line in sorted(lines)))
    if endings := [Ending(**value) for name, value in noted if name == "ending"]:  # pyright: ignore
        terminalreporter.section("kill matrix")
        terminalreporter.write(drawn(endings))


@pytest.fixture
def note(record_property: Note) -> Note:
    """Note a value under a name, to be shown when all tests are over."""
    return record_property


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    # The last one is of pytest-xdist's making.
    for name in ("CODEX_BIN", "CODEX_HOME", "CLAUDE_PROJECT_DIR", "PYTHONPATH"):
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
