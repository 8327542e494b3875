"""Real Codex binaries, fetched from the registries once and kept in a cache."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from codex_tools.codex.program import bundled_codex, native_binary
from codex_tools.engines.app_server_preparation import OLDEST, OLDEST_BY_NAME

PINNED = ("0.60.1", "0.163.0")
"""The Codex versions that the tests fetch: the oldest supported, the newest on PyPI."""


VERSIONS = tuple(os.environ.get("CODEX_VERSIONS", ",".join(PINNED)).split(","))
"""Name others, comma-separated, to run the same tests on them."""


CACHE = user_cache_path("mcp-server-codex", appauthor=False)


def number(version: str) -> tuple[int, int, int]:
    """Return *version* as numbers."""
    major, minor, patch = (int(part) for part in version.split("."))
    return major, minor, patch


WITH_APP_SERVER = [each for each in VERSIONS if number(each) >= OLDEST_BY_NAME]
"""Those of them whose app-server can run turns."""

ASKING_ENGINE = "app-server" if any(number(v) < OLDEST for v in WITH_APP_SERVER) else "auto"
"""The --engine by which all of these can ask: the default one does not choose the oldest."""


@contextmanager
def alone(lock: Path) -> Generator[None]:
    """Keep out all other processes that ask for the same *lock*, a file."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def from_npm(name: str, *packages: str, options: Sequence[str] = ()) -> Path:
    """Return a folder below which *packages* are installed, once and kept in the cache.

    Tests run side by side in several processes: the first fetches, the others wait.
    """
    folder = CACHE / name
    if folder.exists():
        return folder
    with alone(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            made = Path(place) / "made"
            made.mkdir()
            install = ["npm", "install", "--prefix", str(made), "--no-audit", "--no-fund"]
            try:
                done = subprocess.run(
                    [*install, "--loglevel=error", *options, *packages],
                    capture_output=True,
                    text=True,
                )
                problem = done.stderr.strip() if done.returncode else ""
            except OSError as error:
                problem = str(error)
            if problem:
                cannot_have(f"{packages[0]} from npm: {problem}")
            # Whole or not at all, for those that look without waiting.
            made.rename(folder)
    return folder


def from_pypi(name: str, *packages: str) -> Path:
    """Return a Python that has *packages*, in an environment made once and kept in the cache."""
    folder = CACHE / name
    python, ready = folder / "bin" / "python", folder / "ready"
    with alone(folder.with_name(f"{folder.name}.lock")):
        if ready.exists():
            return python
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
            words = [*command, *packages] if command is install else command
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                cannot_have(f"{packages[0]} from PyPI: {done.stderr.strip()}")
        ready.touch()
    return python


@cache
def npm_codex(version: str) -> Path:
    """Return npm's `codex` script of *version*."""
    folder = from_npm(f"codex/npm-{version}", f"@openai/codex@{version}")
    return folder / "node_modules" / ".bin" / "codex"


@cache
def real_codex(version: str) -> Path:
    """Return the native binary of *version*: from PyPI if installed so, else from npm."""
    with suppress(PackageNotFoundError):
        bundled = bundled_codex()
        if bundled is not None and installed("openai-codex-cli-bin") == version:
            return bundled
    native = native_binary(npm_codex(version))
    assert native.suffix != ".js", f"no native binary behind {native}"
    return native


def cannot_have(what: str) -> None:
    """Skip the test for lack of *what*; in CI, where everything can be had, fail it."""
    if os.environ.get("CI"):
        pytest.fail(f"cannot be had here: {what}")
    pytest.skip(f"cannot be had here: {what}")
