"""Run git to its end with bounded output, and without any program that a repository names.

git gets its whole configuration from this server: no system, user or repository setting, unless a
call names the person's repository. Then fsmonitor, hooks, transports and prompts are off, and only
commands are used that run no filter: they read names, refs and settings.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from codex_tools.codex.paths import find_program
from codex_tools.worktree.tree_error import GitFailed, TreeError

OUTPUT_LIMIT = 256 * 1024 * 1024
"""Bytes of the longest output that is read from git; a file in a listing takes about 100."""

ANSWER_WITHIN_S = 20.0
"""Seconds for a command that reads settings or refs; it takes 5 ms. An include may name a FIFO."""

WORK_WITHIN_S = 600.0
"""Seconds for a command that reads or writes the files of a tree; 50,000 files take 5 s."""

_COMPLAINT_LIMIT = 4096

_ENV = {
    "LC_ALL": "C",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_ASKPASS": "true",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_EDITOR": "false",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_PAGER": "cat",
    "GIT_TERMINAL_PROMPT": "0",
}
_NO_CONFIG = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    # git before 2.32 does not know GIT_CONFIG_GLOBAL.
    "HOME": "/dev/null",
    "XDG_CONFIG_HOME": "/dev/null",
}
_ARGS = (
    "--no-pager",
    # Empty, not "false": git before 2.36 runs a program of that name.
    *("-c", "core.fsmonitor="),
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.untrackedCache=false"),
    *("-c", "gc.auto=0"),
    *("-c", "maintenance.auto=false"),
)


@dataclass(frozen=True, slots=True)
class Git:
    """The git program, and the variables that each of its calls gets."""

    program: str
    env: Mapping[str, str]
    cwd: str
    lock_fd: int | None = None
    """A locked file that git inherits: the lock holds until git has ended, too."""

    def run(
        self,
        *args: str,
        stdin: bytes | IO[bytes] = b"",
        env: Mapping[str, str] | None = None,
        limit: int = OUTPUT_LIMIT,
        within_s: float | None = None,
        allowed: Sequence[int] = (0,),
        into: IO[bytes] | None = None,
        cut: bool = False,
    ) -> bytes:
        """Run git and return its stdout; empty if the output goes *into* a file.

        Args:
            args: The command and its arguments.
            stdin: What git reads: bytes, or an open file from its position on.
            env: Further variables.
            limit: Bytes that git may print.
            within_s: Seconds that it may take; WORK_WITHIN_S by default.
            allowed: The exit codes of success.
            into: A file that gets the output.
            cut: True to end git at *limit* and return what it has printed.

        Raises:
            GitFailed: git failed, printed more than *limit*, or took longer than *within_s*.
        """
        within_s = WORK_WITHIN_S if within_s is None else within_s
        until = time.monotonic() + within_s
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as given:
            if isinstance(stdin, bytes):
                given.write(stdin)
                given.seek(0)
            try:
                process = subprocess.Popen(
                    [self.program, *_ARGS, *args],
                    stdin=given if isinstance(stdin, bytes) else stdin,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    cwd=self.cwd,
                    env={**self.env, **(env or {})},
                    start_new_session=True,
                    pass_fds=() if self.lock_fd is None else (self.lock_fd,),
                )
            except OSError as error:
                raise GitFailed(args[0], error.strerror or str(error)) from error
            ended = False
            try:
                output, whole = _read(process, until, limit, into)
                if whole:
                    process.wait(max(0.0, until - time.monotonic()) + 1)
                ended = whole
            except (subprocess.TimeoutExpired, TimeoutError):
                raise GitFailed(args[0], f"no end within {within_s:g} s") from None
            finally:
                if not ended:
                    _kill(process)
                assert process.stdout is not None
                process.stdout.close()
            if not whole and not cut:
                raise GitFailed(args[0], f"it printed more than {limit:,} bytes")
            if whole and process.returncode not in allowed:
                raise GitFailed(args[0], _complaint(said) or f"exit code {process.returncode}")
            return output


def _read(
    process: subprocess.Popen[bytes], until: float, limit: int, into: IO[bytes] | None
) -> tuple[bytes, bool]:
    """Return git's stdout, and False if it was cut at *limit*."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    parts: list[bytes] = []
    size = 0
    while True:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError
        part = os.read(fd, 1 << 20)
        if not part:
            return b"".join(parts), True
        size += len(part)
        if size > limit:
            part = part[: limit - size]
        if into is not None:
            into.write(part)
        else:
            parts.append(part)
        if size > limit:
            return b"".join(parts), False


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _complaint(said: IO[bytes]) -> str:
    said.seek(0)
    text = said.read(_COMPLAINT_LIMIT).decode("utf-8", "replace").strip()
    lines = [line for line in text.split("\n") if line.startswith(("fatal: ", "error: "))]
    return (lines or text.split("\n"))[-1].removeprefix("fatal: ").removeprefix("error: ")


def find_git(*untrusted: Path) -> str:
    """Return the path of git; folders on PATH inside one of *untrusted* are not searched.

    Raises:
        TreeError: There is no git.
    """
    found = find_program("git", os.environ.get("PATH", os.defpath), untrusted)
    if found is None:
        raise TreeError("there is no git on PATH")
    return found


def clean_env(*, own_config: bool = False) -> dict[str, str]:
    """Return the environment of a git call.

    Args:
        own_config: True if git may read the person's settings; no program in them is run.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**env, **_ENV, **({} if own_config else _NO_CONFIG)}
