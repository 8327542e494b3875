"""Run a child process: stdin at EOF, stdout as lines, and a guaranteed kill of its process tree.

This file knows nothing of Codex. The child runs under a guard (guard.py). Its process tree ends at
the latest with the `async with` block that opened it, or with this process.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import anyio
from anyio.abc import ByteReceiveStream, Process

from codex_tools.engines import guard

STDERR_KEPT = 64 * 1024
"""Bytes of stderr kept, from its end."""

GRACE_MS = 200
"""Milliseconds between the child's SIGINT and the SIGKILL of its process tree.

Claude Code gives a server 500 ms in all before it sends SIGKILL.
"""

LAST_WORDS_WITHIN_S = 1.0
"""Seconds to wait for the end of stderr: on macOS, a process that escaped may hold it open."""

LINE_LIMIT = 32 * 1024 * 1024
"""Most bytes of a line that is yielded whole.

Without a limit, a line of 700 MB took 7 s of the event loop and 2.2 GB. The longest line that a
real Codex writes holds the output of one command.
"""

LINE_HEAD = 4 * 1024 * 1024
"""Bytes kept from the beginning of a longer line."""

LINE_TAIL = 1024 * 1024
"""Bytes kept from its end, where Codex writes a command's exit code, after the output."""

_CHUNK = 64 * 1024

_UNSURE = re.compile(rb"\\*[^\\](?:\\u[0-9a-fA-F]{4}|\\[^u]|[^\\]){5}[\x80-\xbf]*", re.DOTALL)
"""The first bytes of a text that was cut out of a JSON string, to be dropped.

They cover any escape sequence or character that the cut may have split; the longest has six bytes.
"""
_ESCAPE_BEGUN = re.compile(rb"(?:[\xc0-\xff][\x80-\xbf]{0,3}|\\+(?:u[0-9a-fA-F]{0,3})?)\Z")
"""The character or escape sequence at the end of a text that a cut may have split."""


class LineCutter:
    """Shorten a line that is too long to keep to its beginning, a mark and its end.

    Nearly always, one JSON string makes the line long. Cut inside that string, the line is still
    valid JSON, and all other fields are kept.
    """

    def __init__(self, begun: bytes) -> None:
        self._head = _ESCAPE_BEGUN.sub(b"", begun[:LINE_HEAD])
        self._size = len(begun)
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._keep(begun[LINE_HEAD:][-LINE_TAIL:])

    def add(self, piece: bytes) -> None:
        """Add the next piece of the line."""
        self._size += len(piece)
        self._keep(piece)

    def line(self) -> bytes:
        """Return the shortened line."""
        tail = b"".join(self._tail)[-LINE_TAIL:]
        found = _UNSURE.match(tail)
        tail = tail[found.end() :] if found is not None else b""
        mark = f" [{self._size - len(self._head) - len(tail):,} bytes left out] "
        return self._head + mark.encode() + tail

    def _keep(self, piece: bytes) -> None:
        self._tail.append(piece)
        self._tail_size += len(piece)
        while self._tail_size - len(self._tail[0]) >= LINE_TAIL:
            self._tail_size -= len(self._tail.popleft())


class Child:
    """A running child process; `open_child` creates it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._stderr: deque[bytes] = deque()
        self._stderr_size = 0
        self._stderr_read = anyio.Event()

    async def lines(self) -> AsyncGenerator[bytes]:
        """Yield what the child prints, line by line, without the line feeds.

        The last line needs no line feed. A line of more than LINE_LIMIT bytes is shortened, see
        `LineCutter`.
        """
        assert self._process.stdout is not None
        parts: list[bytes] = []
        size = 0
        cutter: LineCutter | None = None
        async for chunk in _chunks(self._process.stdout):
            start = 0
            while (end := chunk.find(b"\n", start)) >= 0:
                piece = chunk[start:end] if start or end < len(chunk) else chunk
                start = end + 1
                if cutter is not None:
                    cutter.add(piece)
                    line = cutter.line()
                elif parts:
                    parts.append(piece)
                    line = b"".join(parts)
                else:
                    line = piece
                parts.clear()
                size, cutter = 0, None
                yield line
            if start < len(chunk):
                rest = chunk[start:]
                size += len(rest)
                if cutter is not None:
                    cutter.add(rest)
                elif size <= LINE_LIMIT:
                    parts.append(rest)
                else:
                    cutter = LineCutter(b"".join([*parts, rest]))
                    parts.clear()
        if cutter is not None:
            yield cutter.line()
        elif parts:
            yield b"".join(parts)

    async def wait(self) -> int:
        """Wait for the end of the process tree; return the exit code, negative for a signal.

        This also waits at most LAST_WORDS_WITHIN_S for the end of stderr, which may hold the
        reason of a failure.
        """
        returncode = await self._process.wait()
        with anyio.move_on_after(LAST_WORDS_WITHIN_S):
            await self._stderr_read.wait()
        return returncode

    def stderr_end(self) -> str:
        """Return the last STDERR_KEPT bytes of stderr as text."""
        return b"".join(self._stderr)[-STDERR_KEPT:].decode("utf-8", "replace")

    async def keep_stderr(self) -> None:
        """Read stderr until it ends, so that the child never blocks on it."""
        assert self._process.stderr is not None
        async for chunk in _chunks(self._process.stderr):
            self._stderr.append(chunk)
            self._stderr_size += len(chunk)
            while self._stderr_size - len(self._stderr[0]) >= STDERR_KEPT:
                self._stderr_size -= len(self._stderr.popleft())
        self._stderr_read.set()


@asynccontextmanager
async def open_child(
    argv: Sequence[str],
    *,
    stdin: bytes,
    cwd: Path,
    env: Mapping[str, str],
    scratch: Path | None = None,
    held: Sequence[int] = (),
) -> AsyncGenerator[Child]:
    """Run *argv*; kill it and its process tree when the context manager exits.

    The child reads *stdin* and then end of file. When its process tree is dead, the folder
    *scratch* is removed and the file descriptors *held* (locks) are released, even if this process
    was killed before.

    Raises:
        OSError: The child could not be started.
    """
    control, release = os.pipe()
    command = [
        *(sys.executable, "-I", "-S", _guard_file()),
        *(str(control), str(scratch or ""), str(GRACE_MS), str(cwd)),
        *argv,
    ]
    try:
        process = await _spawn(command, stdin, env, (control, *held))
    except BaseException:
        os.close(release)
        raise
    finally:
        os.close(control)
    child = Child(process)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child.keep_stderr)
        try:
            yield child
        except Exception as error:  # Raised again below: the task group would wrap it.
            failure = error
        finally:
            os.close(release)
            with anyio.CancelScope(shield=True):
                await process.wait()
                await process.aclose()
    if failure is not None:
        raise failure


@functools.cache
def _guard_file() -> str:
    # Python compiles a script at each start, but not the compiled file that an import left.
    compiled: str | None = getattr(guard, "__cached__", None)
    return compiled if compiled and Path(compiled).is_file() else guard.__file__


async def _spawn(
    command: Sequence[str], stdin: bytes, env: Mapping[str, str], passed: Sequence[int]
) -> Process:
    # Shielded: a process whose start was cancelled half-way would have no owner.
    with _file_with(stdin) as source, anyio.CancelScope(shield=True):
        return await anyio.open_process(
            command,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            pass_fds=passed,
            start_new_session=True,
        )
    raise AssertionError("a shielded scope is never left without a result")


def _file_with(data: bytes) -> IO[bytes]:
    """Return an open file without a name that holds *data*, positioned at its beginning.

    Unlike a pipe, a file needs no writer, cannot block, and has an end.
    """
    if sys.platform.startswith("linux"):
        file = os.fdopen(os.memfd_create("stdin"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(data)
    file.seek(0)
    return file


async def _chunks(stream: ByteReceiveStream) -> AsyncGenerator[bytes]:
    while True:
        try:
            yield await stream.receive(_CHUNK)
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            return
