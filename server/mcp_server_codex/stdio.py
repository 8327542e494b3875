"""Serve MCP on stdin and stdout until end of file or a signal, and clean up in every case."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn, cast

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import mcp_types as types
from anyio.lowlevel import EventLoopToken
from anyio.streams.memory import MemoryObjectSendStream
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from pydantic_core import from_json

from mcp_server_codex.backend import Backend
from mcp_server_codex.watchdog import start_watchdog

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

FRAME_LIMIT = 32 * 1024 * 1024
"""Maximum size of a message in bytes; a prompt of 1,000,000 characters takes up to 12 MB."""

LAST_ANSWERS_WITHIN_S = 1.0
"""Seconds that the client has to read the last answers after the end of its input."""

UNWIND_WITHIN_S = 0.2
"""Seconds for the calls to return after all runs have ended.

A call may wait in a thread that no one can stop, for example for the index of a large home. Claude
Code gives a server 500 ms in all before it sends SIGKILL.
"""

RUNS_END_WITHIN_S = 3.0
"""Seconds for all runs to end; a process in uninterruptible sleep cannot be killed."""

END_WITHIN_S = 6.0
"""Seconds after which the process ends even if the event loop is blocked.

Guards outlive this process and still kill their process trees.
"""

_QUEUED_CHUNKS = 64
"""Chunks of input that may wait for the SDK.

The end of the input must be seen even while an error for a malformed frame waits for a client that
does not read.
"""

Refuse = Callable[[types.JSONRPCError], Awaitable[None]]


async def serve(server: Server[Backend], wire: int, end: Callable[[], None]) -> NoReturn:
    """Serve until the client is gone or a signal arrives, then end the process.

    On its own, the SDK dies of SIGTERM without a cleanup. After SIGINT it waits for a line on
    stdin that never arrives. At the end of its input it ends the runs only after all calls have
    returned, which may take as long as the slowest disk. Here, the runs end first.

    Args:
        server: The server.
        wire: A private descriptor of stdout. Descriptor 1 itself refers to stderr.
        end: Called last; must return quickly.
    """
    code = 0
    serving = anyio.CancelScope()
    opened: list[Backend] = []
    ending = False
    start_watchdog(os.environ)
    lifespan = server.lifespan

    @asynccontextmanager
    async def open_lifespan(of: Server[Backend]) -> AsyncGenerator[Backend]:
        async with lifespan(of) as backend:
            opened.append(backend)
            if ending:
                backend.close()
            yield backend

    server.lifespan = open_lifespan

    def leave() -> NoReturn:
        # The process ends here, while the signal handlers are still installed: a signal during
        # Python's own shutdown would change the exit code. `os._exit` also does not wait for a
        # thread that is blocked on a disk, or on the pipe of a client that does not read.
        end()
        os._exit(code)

    async def leave_without_calls(answers_until: float) -> None:
        with anyio.move_on_after(RUNS_END_WITHIN_S):
            for backend in opened:
                await backend.closed()
        await anyio.sleep_until(max(answers_until, anyio.current_time() + UNWIND_WITHIN_S))
        leave()

    def begin_end(status: int, answers_within_s: float = 0.0) -> None:
        """End all runs now; end the process soon, whether or not the calls have returned."""
        nonlocal code, ending
        code = code or status
        if not ending:
            ending = True
            _end_at_last(lambda: code)
            for backend in opened:
                backend.close()
            tasks.start_soon(leave_without_calls, anyio.current_time() + answers_within_s)

    def end_input() -> None:
        begin_end(0, LAST_ANSWERS_WITHIN_S)

    async def handle_signals() -> None:
        # Outlives `serving`, so that a second signal cannot end the cleanup.
        with anyio.open_signal_receiver(*SIGNALS) as signals:
            async for number in signals:
                begin_end(128 + number)
                serving.cancel()

    async def watch_stdout() -> None:
        # A client that closes the pipe of stdout is gone, even if nothing is being written.
        poll = select.poll()
        poll.register(wire, 0)
        try:
            await anyio.wait_readable(wire)
        except OSError:
            return  # Stdout is a file, which no client can close.
        if poll.poll(0):
            begin_end(1)
            serving.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handle_signals)
        tasks.start_soon(watch_stdout)
        with serving:
            try:
                lines = FrameReader(_take_stdin(), end_input)
                async with stdio_server(
                    cast("anyio.AsyncFile[str]", lines),
                    cast("anyio.AsyncFile[str]", FrameWriter(wire)),
                ) as (incoming, outgoing):

                    async def refuse(error: types.JSONRPCError) -> None:
                        await outgoing.send(SessionMessage(error))

                    lines.refuse = refuse
                    await server.run(incoming, outgoing, server.create_initialization_options())
                    serving.deadline = anyio.current_time() + LAST_ANSWERS_WITHIN_S
            except* (BrokenPipeError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                code = code or 1  # The client has closed the pipe of stdout.
        leave()
    raise AssertionError("the process has ended")


def _end_at_last(code: Callable[[], int]) -> None:
    """End the process after END_WITHIN_S, also if its event loop is blocked by then."""
    timer = threading.Timer(END_WITHIN_S, lambda: os._exit(code()))
    timer.daemon = True
    timer.start()


def _take_stdin() -> int:
    """Return a private copy of stdin, and replace descriptor 0 by an empty file."""
    private = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return private


class FrameWriter:
    """Writes frames to a file descriptor; a blocked write is abandoned when the server ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._thread = anyio.CapacityLimiter(1)

    async def write(self, text: str) -> None:
        """Write all of *text*, in a thread reserved for this writer."""
        await anyio.to_thread.run_sync(
            self._write, text.encode(), abandon_on_cancel=True, limiter=self._thread
        )

    async def flush(self) -> None:
        """Do nothing: writes are not buffered."""

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                select.select([], [self._fd], [])


class FrameReader:
    """Reads frames from a file descriptor without delaying the end of the process.

    Calls *at_end* at the end of the input, even if frames still wait to be processed.

    Reading happens in a daemon thread. On shutdown anyio would wait for a thread of its own until
    the client closes stdin, which may never happen.

    A frame that is not a JSON-RPC message is answered here. The SDK drops such a frame, and its
    sender would wait forever.
    """

    def __init__(self, fd: int, at_end: Callable[[], None]) -> None:
        self._fd = fd
        self._at_end = at_end
        self.refuse: Refuse | None = None

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield each message as text."""
        send, receive = anyio.create_memory_object_stream[bytes](_QUEUED_CHUNKS)
        token = anyio.lowlevel.current_token()
        reader = threading.Thread(target=self._read, args=(send, token), daemon=True, name="stdin")
        reader.start()
        parts: list[bytes] = []
        size = 0
        with send, receive:
            async for chunk in receive:
                *ended, begun = chunk.split(b"\n")
                for piece in ended:
                    size += len(piece)
                    line = b"".join([*parts, piece]) if size <= FRAME_LIMIT else None
                    parts.clear()
                    size = 0
                    if (error := check_frame(line)) is None:
                        assert line is not None
                        if not line.isspace() and line:
                            yield line.decode()
                    elif self.refuse is not None:
                        await self.refuse(error)
                size += len(begun)
                if size <= FRAME_LIMIT:
                    parts.append(begun)
                else:
                    parts.clear()

    def _read(self, send: MemoryObjectSendStream[bytes], token: EventLoopToken) -> None:
        try:
            while chunk := self._chunk():
                anyio.from_thread.run(send.send, chunk, token=token)
            _end_at_last(lambda: 0)  # From this thread, because the event loop may be blocked.
            anyio.from_thread.run_sync(self._at_end, token=token)
            anyio.from_thread.run_sync(send.close, token=token)
        except (RuntimeError, anyio.ClosedResourceError, anyio.BrokenResourceError):
            return  # The server has ended and reads no more.

    def _chunk(self) -> bytes:
        try:
            return os.read(self._fd, 65536)
        except OSError:  # A terminal that was closed, or a socket that was reset.
            return b""


_HEAD = re.compile(
    rb'\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*("[\w.:-]{1,100}"|\d{1,15})\s*[,}]', re.ASCII
)
"""Usual start of a request: its id can be read even if the rest cannot be parsed."""


def check_frame(line: bytes | None) -> types.JSONRPCError | None:
    """Return the error for an invalid frame, or None if *line* is a message or blank.

    Args:
        line: The frame without its line feed; None for a frame that was too large.
    """
    if line is None:
        return _error(None, types.INVALID_REQUEST, f"message is larger than {FRAME_LIMIT:,} bytes")
    if not line or line.isspace():
        return None
    try:
        # The SDK's own parser, which accepts less nesting than other parsers.
        frame: object = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        # A frame that is only nested too deeply is still a request. Its sender would wait
        # forever for an answer if the error had no id.
        head = _HEAD.match(line) if "recursion" in str(error) else None
        id_ = cast("str | int", from_json(head[1])) if head is not None else None
        return _error(id_, types.PARSE_ERROR, f"not JSON: {error}")
    if not isinstance(frame, dict):
        return _error(None, types.INVALID_REQUEST, "a message must be a JSON object")
    message = cast("dict[str, object]", frame)
    id_ = message.get("id")
    known = id_ if isinstance(id_, str) or type(id_) is int else None
    if message.get("jsonrpc") != "2.0":
        return _error(known, types.INVALID_REQUEST, 'jsonrpc must be "2.0"')
    if "id" in message and known is None and "error" not in message:
        return _error(None, types.INVALID_REQUEST, "id must be a string or an integer")
    if "result" in message or "error" in message:
        return None
    if not isinstance(message.get("method"), str):
        return _error(known, types.INVALID_REQUEST, "method must be a string")
    if "id" in message and not isinstance(message.get("params") or {}, dict):
        return _error(known, types.INVALID_PARAMS, "params must be an object")
    return None


def _error(id_: str | int | None, code: int, message: str) -> types.JSONRPCError:
    error = types.ErrorData(code=code, message=message)
    return types.JSONRPCError(jsonrpc="2.0", id=id_, error=error)
