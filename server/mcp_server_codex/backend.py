"""Import and open what calls need, at the first request that needs it.

Most sessions of most clients list the tools and call none. The tools with their engines, indexes
and records take twice the imports of the rest of this server (175 ms of CPU time beside the SDK's
450 ms, Python 3.11). So only this file imports them, in a thread. kept_code.py sees to it that they
are of the same version as the code that runs already.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import mcp_types as types
from anyio.abc import TaskGroup, TaskStatus
from mcp.shared.exceptions import MCPError

from mcp_server_codex.settings import Settings

if TYPE_CHECKING:
    from codex_tools.engines.engine import Engine
    from mcp_server_codex.calls import Calls

    OpenCalls = Callable[[Settings, Engine | None, Path], AbstractAsyncContextManager[Calls]]

logger = logging.getLogger(__name__)


class Backend:
    """The calls of one connection, opened at the first of them."""

    def __init__(self, settings: Settings, engine: Engine | None, folder: Path) -> None:
        """Remember what `open_calls` takes."""
        self._settings = settings
        self._engine = engine
        self._folder = folder
        self._calls: Calls | None = None
        self._opening = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._end = anyio.Event()
        self._closing = False

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[Backend]:
        """Let requests open the calls while the block runs; leaving it closes them."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                yield self
            finally:
                self._tasks = None
                self._end.set()

    async def opened(self) -> Calls:
        """Return the calls; the first request imports and opens them.

        Raises:
            MCPError: They cannot be opened. The next request tries again.
        """
        async with self._opening:
            if self._calls is None:
                await self._open()
            assert self._calls is not None
            return self._calls

    async def _open(self) -> None:
        if self._tasks is None:
            raise MCPError(code=types.INTERNAL_ERROR, message="The server is ending.")
        try:
            # In a task of their own: who leaves them must be who has entered them.
            with anyio.CancelScope(shield=True):
                await self._tasks.start(self._hold)
        except Exception as error:  # An outer wall: an upgrade may have removed what is missing.
            logger.exception("the tools cannot be opened")
            problem = f"The tools cannot be opened: {error}. Restart this server, as an operator."
            raise MCPError(code=types.INTERNAL_ERROR, message=problem) from error

    async def _hold(self, *, task_status: TaskStatus[None]) -> None:
        async with AsyncExitStack() as stack:
            open_calls = await anyio.to_thread.run_sync(_import_calls)
            calls = await stack.enter_async_context(
                open_calls(self._settings, self._engine, self._folder)
            )
            self._calls = calls
            if self._closing:
                calls.runs.close()
            task_status.started()
            await self._end.wait()

    def close(self) -> None:
        """Interrupt all runs, and all that are started later, because the server ends."""
        self._closing = True
        if self._calls is not None:
            self._calls.runs.close()

    async def closed(self) -> None:
        """Wait until all runs have ended and are stored."""
        if self._calls is not None:
            await self._calls.runs.closed()


def _import_calls() -> OpenCalls:
    """Import the code of the calls, without garbage collection: what is imported stays."""
    gc.disable()
    try:
        from mcp_server_codex.calls import open_calls
    finally:
        gc.freeze()
        gc.enable()
    return open_calls
