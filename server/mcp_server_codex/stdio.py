"""Serve MCP on stdin and stdout until end-of-file or a signal, and always unwind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import anyio
import anyio.from_thread
import anyio.lowlevel
from anyio.lowlevel import EventLoopToken
from anyio.streams.memory import MemoryObjectSendStream
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def serve(server: Server[Any]) -> int:
    """Serve until the client is gone or a signal arrives; return the exit code.

    The SDK alone dies of SIGTERM without a cleanup, and after SIGINT waits for
    a line on stdin that never comes.
    """
    code = 0
    serving = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:

        async def heed_signals() -> None:
            # Lives longer than `serving`, so that a second signal cannot end the cleanup.
            nonlocal code
            with anyio.open_signal_receiver(*SIGNALS) as signals:
                async for number in signals:
                    code = code or 128 + number
                    serving.cancel()

        tasks.start_soon(heed_signals)
        with serving:
            try:
                stdin = cast("anyio.AsyncFile[str]", Lines(_take_stdin()))
                async with stdio_server(stdin=stdin) as (incoming, outgoing):
                    await server.run(incoming, outgoing, server.create_initialization_options())
            except* (BrokenPipeError, anyio.BrokenResourceError):
                code = code or 1  # The client has closed our stdout.
        tasks.cancel_scope.cancel()
    return code


def _take_stdin() -> int:
    """Return a private stdin, and leave an empty one to everybody else."""
    private = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return private


class Lines:
    """The lines of a file descriptor, awaited without a thread that blocks the end.

    The reader is a daemon thread of its own: one of anyio's would be waited for
    on shutdown, until the client closes our stdin or for ever.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield each line as text, with invalid UTF-8 replaced."""
        send, receive = anyio.create_memory_object_stream[bytes](0)
        token = anyio.lowlevel.current_token()
        reader = threading.Thread(target=self._read, args=(send, token), daemon=True, name="stdin")
        reader.start()
        rest: list[bytes] = []
        with send, receive:
            async for chunk in receive:
                *ended, begun = chunk.split(b"\n")
                for line in ended:
                    rest.append(line)
                    yield b"".join(rest).decode("utf-8", "replace")
                    rest.clear()
                rest.append(begun)

    def _read(self, send: MemoryObjectSendStream[bytes], token: EventLoopToken) -> None:
        try:
            while chunk := os.read(self._fd, 65536):
                anyio.from_thread.run(send.send, chunk, token=token)
            anyio.from_thread.run_sync(send.close, token=token)
        except (OSError, RuntimeError, anyio.ClosedResourceError, anyio.BrokenResourceError):
            return  # The server has ended; there is nobody left to read for.
