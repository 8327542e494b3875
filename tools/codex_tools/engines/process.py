"""Run a child process: stdout as lines, and a guaranteed kill of its process tree.

The child reads a fixed input from stdin, or what this process writes to it while it runs.

This file knows nothing of Codex. The child runs under a guard (guard.py). Its process tree ends at
the latest with the `async with` block that opened it, or with this process. The only exception is
what a child that exited with 0 left in its own process group: see guard.py.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

import anyio
from anyio.abc import ByteReceiveStream, Process

from codex_tools.codex.errors import ServerReplaced
from codex_tools.codex.private_folder import make_private_folder
from codex_tools.codex.workers import on_disk
from codex_tools.engines import guard, orphans
from codex_tools.engines.guard_lease import GuardLease

STDERR_KEPT = 64 * 1024
"""Bytes of stderr kept, from its end."""

GRACE_MS = 200
"""Milliseconds between the child's SIGINT and the SIGKILL of its process tree.

Claude Code gives a server 500 ms in all before it sends SIGKILL.
"""

LAST_WORDS_WITHIN_S = 1.0
"""Seconds to wait for the end of stderr: on macOS, a process that escaped may hold it open."""

DRAIN_S = 0.05
"""Seconds without output after which the output of an ended child counts as read to its end.

`notify` may hold the pipe open: Codex 0.60.1 lets it inherit stdout and stderr.
"""

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

    def __init__(self, process: Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._returncode = 0
        self._ended = anyio.Event()
        self._reading = anyio.CancelScope()
        self._stderr: deque[bytes] = deque()
        self._stderr_size = 0
        self._stderr_read = anyio.Event()
        self.guard_lives = False
        """True if the child has ended, but its guard still waits for what the child left."""

    async def lines(self) -> AsyncGenerator[bytes]:
        """Yield what the child prints, line by line, without the line feeds.

        The last line needs no line feed. A line of more than LINE_LIMIT bytes is shortened, see
        `LineCutter`.
        """
        parts: list[bytes] = []
        size = 0
        cutter: LineCutter | None = None
        async for chunk in self._output():
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

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield what the child prints as it arrives, for output that is no lines."""
        async for chunk in self._output():
            yield chunk

    def hold(self, fds: Sequence[int]) -> None:
        """Keep the descriptors *fds* (locks) open until no process of the child's tree is left.

        It is for those that were not known when the child was started. The caller may close its
        own at once.

        Raises:
            OSError: The guard has ended.
        """
        if fds:
            socket.send_fds(self._control, [b"h"], [*fds])

    async def write(self, data: bytes) -> None:
        """Write *data* to the child's stdin, which `open_child` must have left open.

        This waits while the child does not read. If the wait is cancelled, the child may get a
        part of *data* only.

        Raises:
            BrokenResourceError: The child has ended or closed its stdin.
            ClosedResourceError: `close_stdin` was called.
        """
        assert self._process.stdin is not None, "stdin is a file"
        await self._process.stdin.send(data)

    async def close_stdin(self) -> None:
        """Let the child read end of file from its stdin; call it again without effect."""
        if self._process.stdin is not None:
            with suppress(anyio.BrokenResourceError, OSError):
                await self._process.stdin.aclose()

    async def wait(self) -> int:
        """Wait for the child's end; return its exit code, negative for a signal.

        This also waits at most LAST_WORDS_WITHIN_S for the end of stderr, which may hold the
        reason of a failure.
        """
        await self._ended.wait()
        with anyio.move_on_after(DRAIN_S if self.guard_lives else LAST_WORDS_WITHIN_S):
            await self._stderr_read.wait()
        return self._returncode

    def stderr_end(self) -> str:
        """Return the last STDERR_KEPT bytes of stderr as text."""
        return b"".join(self._stderr)[-STDERR_KEPT:].decode("utf-8", "replace")

    async def watch_guard(self) -> None:
        """Wait until the guard reports the child's end, or ends; kill what a killed guard left."""
        with anyio.CancelScope(shield=True):
            await anyio.wait_readable(self._control)
            with suppress(OSError):
                self.guard_lives = bool(self._control.recv(1))
            if not self.guard_lives:
                self._returncode = await self._process.wait()
                if self._returncode != 0 and await on_disk(orphans.end_tree, self._process.pid):
                    self._stderr.append(_GUARD_KILLED)
                    self._stderr_size += len(_GUARD_KILLED)
            self._ended.set()
            self._reading.cancel()

    async def leave(self) -> None:
        """End the process tree, unless the child ended by itself and was reported to have."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        with anyio.CancelScope(shield=True):
            if not self._ended.is_set():
                with suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGCONT)  # A stopped guard cannot kill.
                await self._ended.wait()
            self._control.close()
            await self.close_stdin()
            if not self.guard_lives:
                await self._process.aclose()

    async def _output(self) -> AsyncGenerator[bytes]:
        """Yield the chunks of stdout until its end, or until all that an ended child wrote."""
        assert self._process.stdout is not None
        empty = 0
        while empty < 2:  # After a busy moment, the first reading may end before it began.
            chunk: bytes | None = None
            ended = self._ended.is_set()
            with anyio.CancelScope() as self._reading:
                if ended:
                    self._reading.deadline = anyio.current_time() + DRAIN_S
                try:
                    chunk = await self._process.stdout.receive(_CHUNK)
                except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
                    return
            if chunk is not None:
                empty = 0
                yield chunk
            elif ended:
                empty += 1

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
    stdin: bytes | IO[bytes] | None,
    cwd: Path,
    env: Mapping[str, str],
    scratch: Path | None = None,
    held: Sequence[int] = (),
    lease: GuardLease | None = None,
) -> AsyncGenerator[Child]:
    """Run *argv*; kill it and its process tree when the context manager exits.

    The child reads *stdin* and then end of file; of a pipe, the caller keeps the other end open
    while more may follow. With None, it reads what `Child.write` writes. When its process tree is
    dead, the folder *scratch* is removed and the file descriptors *held* (locks) are released, even
    if this process was killed before. The guard ends the tree, and this process, if *lease* is not
    renewed in time.

    Raises:
        OSError: The child could not be started.
    """
    async with _guard_command() as guarded:
        ours, theirs = socket.socketpair()
        times = str(GRACE_MS) if lease is None else f"{GRACE_MS}:{lease.length_ms}"
        command = [
            *guarded,
            *(str(theirs.fileno()), str(scratch or ""), times, str(cwd)),
            *argv,
        ]
        try:
            process = await _spawn(command, stdin, env, (theirs.fileno(), *held))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        child = Child(process, ours)
        if lease is not None:
            lease.add(ours)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child.keep_stderr)
            tasks.start_soon(child.watch_guard)
            try:
                yield child
            except Exception as error:  # Raised again below: the task group would wrap it.
                failure = error
            finally:
                if lease is not None:
                    lease.drop(ours)
                await child.leave()
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure


_GUARD_KILLED = (
    b"\nthe guard process of this run was killed; this server then killed Codex and all that it"
    b" had started\n"
)


@asynccontextmanager
async def _guard_command() -> AsyncGenerator[list[str]]:
    """Yield the command that starts the guard of the version that belongs to this process."""
    interpreter, script, copy = await on_disk(_find_guard)
    try:
        yield [interpreter, "-I", "-S", script]
    finally:
        if copy is not None:
            with anyio.CancelScope(shield=True):
                await on_disk(shutil.rmtree, copy, True)


def _find_guard() -> tuple[str, str, Path | None]:
    """Return the interpreter, the guard's script, and the folder to remove afterwards, if any.

    Raises:
        ServerReplaced: The interpreter or the script is gone, and has no replacement.
    """
    _become_subreaper()
    orphans.reap_orphans()
    # The guard needs no installed package, so the Python that made a removed venv will do.
    pythons = (sys.executable, getattr(sys, "_base_executable", sys.executable))
    python = next((each for each in pythons if os.access(each, os.X_OK)), None)
    if python is None:
        raise ServerReplaced(f"{sys.executable} is gone")
    try:
        if Path(guard.__file__).read_bytes() == orphans.GUARD_SOURCE:
            # Python compiles a script at each start, but not the compiled file of an import.
            compiled: str | None = getattr(guard, "__cached__", None)
            found = compiled if compiled and is_current(Path(compiled)) else guard.__file__
            return python, found, None
    except OSError:
        pass  # The package was removed.
    try:
        folder, is_exposed = make_private_folder()
        if is_exposed:  # A sandboxed command could rewrite the script before it starts.
            folder.rmdir()
            raise ServerReplaced(f"{guard.__file__} is gone")
        # nesting.py, of any version, recognises a guard by these last parts of its path.
        script = folder / "codex_tools" / "engines" / "guard.py"
        script.parent.mkdir(parents=True)
        script.write_bytes(orphans.GUARD_SOURCE)
    except OSError as error:
        raise ServerReplaced(f"{guard.__file__} is gone") from error
    return python, str(script), folder


def is_current(compiled: Path) -> bool:
    """Return True if *compiled* was made from the guard's source as it is.

    An import checks that, but Python runs a compiled file as it finds it. With
    PYTHONDONTWRITEBYTECODE, that of a former version stays.
    """
    try:
        with compiled.open("rb") as file:
            head = file.read(16)
        source = Path(guard.__file__).stat()
    except OSError:
        return False
    # Flags (0: checked by time), time and size of the source.
    made_of = struct.pack("<III", 0, int(source.st_mtime) & 0xFFFFFFFF, source.st_size)
    return head == importlib.util.MAGIC_NUMBER + made_of


_become_subreaper = functools.cache(orphans.become_subreaper)


async def _spawn(
    command: Sequence[str],
    stdin: bytes | IO[bytes] | None,
    env: Mapping[str, str],
    passed: Sequence[int],
) -> Process:
    # Shielded: a process whose start was cancelled half-way would have no owner.
    with _input_of(stdin) as source, anyio.CancelScope(shield=True):
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


def _input_of(stdin: bytes | IO[bytes] | None) -> AbstractContextManager[IO[bytes] | int]:
    """Return the stdin of a process: *stdin*, a file that holds it, or a new pipe for None."""
    if stdin is None:
        return nullcontext(subprocess.PIPE)
    return _file_with(stdin) if isinstance(stdin, bytes) else stdin


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
