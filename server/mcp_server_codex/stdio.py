"""Serve MCP on stdin and stdout until end of file or a signal, and clean up in every case."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, cast

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

from mcp_server_codex.watchdog import start_watchdog

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

FRAME_LIMIT = 32 * 1024 * 1024
"""Maximum size of a message in bytes; a prompt of 1,000,000 characters takes up to 12 MB."""

LAST_ANSWERS_WITHIN_S = 1.0
"""Seconds that the client has to read the last answers after the end of its input."""

Refuse = Callable[[types.JSONRPCError], Awaitable[None]]


async def serve(server: Server[Any], wire: int, end: Callable[[], None]) -> NoReturn:
    """Serve until the client is gone or a signal arrives, then end the process.

    On its own, the SDK dies of SIGTERM without a cleanup. After SIGINT it waits for a line on
    stdin that never arrives.

    Args:
        server: The server.
        wire: A private descriptor of stdout. Descriptor 1 itself refers to stderr.
        end: Called last; must return quickly.
    """
    code = 0
    serving = anyio.CancelScope()
    start_watchdog(os.environ)

    async def handle_signals() -> None:
        # Outlives `serving`, so that a second signal cannot end the cleanup.
        nonlocal code
        with anyio.open_signal_receiver(*SIGNALS) as signals:
            async for number in signals:
                code = code or 128 + number
                serving.cancel()

    async def watch_stdout() -> None:
        # A client that closes the pipe of stdout is gone, even if nothing is being written.
        nonlocal code
        poll = select.poll()
        poll.register(wire, 0)
        try:
            await anyio.wait_readable(wire)
        except OSError:
            return  # Stdout is a file, which no client can close.
        if poll.poll(0):
            code = code or 1
            serving.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handle_signals)
        tasks.start_soon(watch_stdout)
        with serving:
            try:
                lines = FrameReader(_take_stdin())
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
        # The process ends here, while the signal handlers are still installed: a signal during
        # Python's own shutdown would change the exit code. `os._exit` also does not wait for a
        # thread that is blocked on the pipe of a client that does not read.
        end()
        os._exit(code)
    raise AssertionError("the process has ended")


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

    Reading happens in a daemon thread. On shutdown anyio would wait for a thread of its own until
    the client closes stdin, which may never happen.

    A frame that is not a JSON-RPC message is answered here. The SDK drops such a frame, and its
    sender would wait forever.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.refuse: Refuse | None = None

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield each message as text."""
        send, receive = anyio.create_memory_object_stream[bytes](0)
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
            while chunk := os.read(self._fd, 65536):
                anyio.from_thread.run(send.send, chunk, token=token)
            anyio.from_thread.run_sync(send.close, token=token)
        except (OSError, RuntimeError, anyio.ClosedResourceError, anyio.BrokenResourceError):
            return  # The server has ended and reads no more.


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
