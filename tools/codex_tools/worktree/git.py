"""Run git on a work tree without running programs that the repository names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import Process

from codex_tools.codex.paths import find_program, repository_around

LISTING_LIMIT = 64 * 1024 * 1024
"""Bytes of the longest listing that is read from git; a file takes about 220."""

_SAFE_ENV = {
    # A partial clone fetches missing objects with a program that its config names.
    # ls-files does that to expand a sparse index (seen with git 2.39.5).
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
_SAFE_ARGS = (
    "--no-pager",
    # Empty, not "false": git before 2.36 runs a program of that name.
    *("-c", "core.fsmonitor="),
    *("-c", "core.hooksPath=/dev/null"),
)


def find_git(cwd: Path) -> Path | None:
    """Return the path of git for *cwd*, or None if git or a repository is missing.

    Folders on PATH that are inside the project, such as a virtual environment, are
    not searched: Codex may have put a program named git there.
    """
    project = repository_around(cwd)
    if project is None:
        return None
    found = find_program("git", os.environ.get("PATH", os.defpath), (project,))
    return Path(found) if found is not None else None


async def run_git(git: Path, folder: Path, args: Sequence[str]) -> bytes | None:
    """Run git in *folder* and return its stdout.

    Returns None if git fails or prints more than LISTING_LIMIT.
    """
    try:
        process = await _start_git(git, folder, args)
    except OSError:
        return None
    assert process.stdout is not None
    parts: list[bytes] = []
    size = 0
    try:
        async for part in process.stdout:
            size += len(part)
            if size > LISTING_LIMIT:
                return None
            parts.append(part)
        return b"".join(parts) if await process.wait() == 0 else None
    finally:
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                process.kill()
            await process.aclose()


async def git_problem(git: Path, folder: Path, args: Sequence[str]) -> str:
    """Run git in *folder* and return the first line of its complaint; "" if it succeeds."""
    try:
        process = await _start_git(git, folder, args, stderr=subprocess.PIPE)
    except OSError as error:
        return error.strerror or str(error)
    assert process.stderr is not None
    said = b""
    try:
        async for part in process.stderr:
            said = (said + part)[:_COMPLAINT_LIMIT]
        if await process.wait() == 0:
            return ""
        lines = said.decode("utf-8", "replace").strip().split("\n")
        return lines[0].removeprefix("fatal: ").rstrip(".") or "no reason"
    finally:
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                process.kill()
            await process.aclose()


_COMPLAINT_LIMIT = 4096
"""Bytes read of what git complains about."""


async def _start_git(
    git: Path, folder: Path, args: Sequence[str], stderr: int = subprocess.DEVNULL
) -> Process:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Shielded: if the start were cancelled half-way, no code would kill the process.
    with anyio.CancelScope(shield=True):
        return await anyio.open_process(
            [os.fspath(git), *_SAFE_ARGS, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=folder,
            env=env | _SAFE_ENV,
            start_new_session=True,
        )
    raise AssertionError("a shielded scope is never left without a result")
