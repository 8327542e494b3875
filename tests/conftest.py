"""Fixtures that all tests share, and how they are run side by side."""

from __future__ import annotations

import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # pyright: ignore[reportMissingTypeStubs]

from support.codex_versions import VERSIONS, real_codex
from support.fake_codex import FakeCodex
from support.kill_matrix import Ending, drawn
from support.lab import ENGINE, MODES, Lab, Note, open_lab
from support.version_pairs import beyond_pairs, without_engine

_SHARING = ("tests/codex_tools/", "tests/live/test_accounting.py", "tests/live/test_kill_matrix.py")
"""Where tests share what their file makes once, or keep the machine busy enough each for itself."""

_ALONE = (
    "tests/live/test_claude_code.py",
    "tests/live/test_codex_client.py",
    "tests/live/test_inspector.py",
    "tests/live/test_plugin.py",
    "tests/test_bundle.py",
    "tests/test_distribution.py",
)
"""What is heavy, a client or what is to be installed: one test of such a file at a time."""

_ORDER = ("live/test_accounting", "test_many", "test_hostile", "live/test_kill", "codex_tools/")
"""What takes longest, and comes first: else one worker is left at it when the others are done."""


class Scheduling(LoadScopeScheduling):
    """Gives each test to whoever is free, but those that share something to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(_ALONE):
            return nodeid.partition("::")[0]
        if not nodeid.startswith(_SHARING):
            return nodeid
        versions = (version for version in VERSIONS if version in nodeid)
        return " ".join((nodeid.partition("::")[0], *versions))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    # The loadgroup that pytest-xdist has does nothing as of pytest 9.2 (seen with 3.8.0).
    return Scheduling(config, log)


def pytest_configure() -> None:
    # A shell's job in the background ignores Ctrl-C, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Who names a pair in brackets shall have it.
    named = any("[" in each for each in config.args)
    for choose in (without_engine, *(() if named else (beyond_pairs,))):
        if left_out := choose(items):
            config.hook.pytest_deselected(items=left_out)
            gone = {*left_out}
            items[:] = [item for item in items if item not in gone]
    items.sort(key=lambda item: [start not in item.nodeid for start in _ORDER])


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


@pytest.fixture(scope="session", autouse=True)
def _own_price_cache(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    # The tests must not write into the cache folder of the person who runs them.
    folder = tmp_path_factory.mktemp("prices")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codex_tools.pricing.catalog.cache_folder", lambda: folder)
        yield


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """The protocol era that the client opens with."""
    return str(request.param)


@pytest.fixture(params=[ENGINE] if ENGINE else ["exec", "app-server"])
def each_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine of the servers under test: each one, for tests of what both must do alike."""
    monkeypatch.setattr("support.lab.ENGINE", request.param)
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
