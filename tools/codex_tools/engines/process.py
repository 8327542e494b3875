"""Run a child process: stdin at EOF, stdout as lines, and a guaranteed kill of its process tree.

This file knows nothing of Codex. The child runs under a guard (guard.py), so its process tree ends
with the `async with` block that opened it, and with this process.
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
"""Time between the request to end and the kill.

Claude Code gives a server 500 ms in all before it sends SIGKILL.
"""

LAST_WORDS_WITHIN_S = 1.0
"""How long the end of stderr is waited for: on macOS something that got away may hold it open."""

LINE_LIMIT = 32 * 1024 * 1024
"""Bytes of a line that is yielded whole.

A line of 700 MB took 7 s of the event loop and 2.2 GB before there was a limit. The longest that
a real Codex writes holds the output of one command.
"""

LINE_HEAD = 4 * 1024 * 1024
"""Bytes kept of the beginning of a longer line."""

LINE_TAIL = 1024 * 1024
"""Bytes kept of its end; Codex writes a command's exit code there, behind its output."""

_CHUNK = 64 * 1024

_UNSURE = re.compile(rb"\\*[^\\](?:\\u[0-9a-fA-F]{4}|\\[^u]|[^\\]){5}[\x80-\xbf]*", re.DOTALL)
"""The start of a text cut out of a JSON string: up to where no escape sequence or character that
the cut may have split can reach. The longest has six bytes."""
_ESCAPE_BEGUN = re.compile(rb"(?:[\xc0-\xff][\x80-\xbf]{0,3}|\\+(?:u[0-9a-fA-F]{0,3})?)\Z")
"""A character or an escape sequence that a cut may have split."""


class LineCutter:
    """Shortens a line that is too long to keep: its beginning and its end, with a mark between.

    Nearly always one JSON string makes the line long. Cut inside that string, the line is still
    valid JSON: what it says of other fields is kept.
    """

    def __init__(self, begun: bytes) -> None:
        self._head = _ESCAPE_BEGUN.sub(b"", begun[:LINE_HEAD])
        self._size = len(begun)
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._keep(begun[LINE_HEAD:][-LINE_TAIL:])

    def add(self, piece: bytes) -> None:
        """Take more of the line."""
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
    """A running child; made by `open_child`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._stderr: deque[bytes] = deque()
        self._stderr_size = 0
        self._stderr_read = anyio.Event()

    async def lines(self) -> AsyncGenerator[bytes]:
        """Yield what the child prints, line by line, without the line feeds.

        The last line needs no line feed. A line over LINE_LIMIT bytes is yielded shortened, see
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
        """Wait for the end of the whole tree; return the exit code, negative for a signal.

        Stderr has been read to its end by then, which may hold the reason.
        """
        returncode = await self._process.wait()
        with anyio.move_on_after(LAST_WORDS_WITHIN_S):
            await self._stderr_read.wait()
        return returncode

    def stderr_end(self) -> str:
        """Return the end of what the child has written to stderr."""
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
    """Run *argv* and end it, with all that it has started, on leaving.

    The child reads *stdin* and then end-of-file. The folder *scratch* is
    removed and the file descriptors *held* (locks) are let go when the tree is
    dead, even if this process is killed before.

    Raises:
        OSError: The child could not be started.
    """
    control, let_go = os.pipe()
    command = [
        *(sys.executable, "-I", "-S", _guard_file()),
        *(str(control), str(scratch or ""), str(GRACE_MS), str(cwd)),
        *argv,
    ]
    try:
        process = await _spawn(command, stdin, env, (control, *held))
    except BaseException:
        os.close(let_go)
        raise
    finally:
        os.close(control)
    child = Child(process)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child.keep_stderr)
        try:
            yield child
        except Exception as error:  # Not handled: carried past the task group, which wraps.
            failure = error
        finally:
            os.close(let_go)
            with anyio.CancelScope(shield=True):
                await process.wait()
                await process.aclose()
    if failure is not None:
        raise failure


@functools.cache
def _guard_file() -> str:
    # A script is compiled at each start; what import has compiled already is not.
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
    """Return an open, nameless file that holds *data*, at its beginning.

    A file and not a pipe: nobody has to feed it, it cannot block, and it ends.
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
