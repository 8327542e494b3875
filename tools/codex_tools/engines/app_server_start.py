"""Start an app-server under a guard, and make it ready for a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio

from codex_tools.codex.events import ExitedEvent
from codex_tools.codex.json_object import Json, object_of
from codex_tools.codex.masking import mask
from codex_tools.codex.originator import CLIENT_NAME
from codex_tools.engines.app_server_events import MUTED
from codex_tools.engines.handle import TurnHandle
from codex_tools.engines.json_rpc import Connection, RpcError, open_connection
from codex_tools.engines.process import Child, open_child

INITIALIZE_WITHIN_S = 5.0
"""Seconds to wait for the first answer; it took up to 0.5 s on a busy machine (0.163.0)."""

ANSWER_WITHIN_S = 30.0
"""Seconds to wait for the answers that need no model and start nothing."""

LEAVE_WITHIN_S = 0.15
"""Seconds between the end of its input and the signals of the guard.

0.147.0 to 0.171.0 obey the end of their input in 0.03 to 0.07 s, and close their rollouts.
"""

RETRY_AFTER_S = (0.1, 0.2, 0.4, 0.8)
"""Seconds before each new start of an app-server that could not open its database.

In a new CODEX_HOME, only one of several app-servers that start at the same time makes it, and the
others end (0.163.0).
"""

_STATE_LOST = "failed to initialize state runtime"

KEY_VARIABLE = "CODEX_API_KEY"
IN_MEMORY = 'cli_auth_credentials_store="ephemeral"'
"""Setting with which Codex keeps a key that it is sent in memory only."""


@dataclass(frozen=True, slots=True)
class AppServer:
    """A running app-server that waits for a thread."""

    child: Child
    connection: Connection
    handle: TurnHandle


class DidNotStart(Exception):
    """The app-server did not start, or did not answer as it must."""

    def __init__(self, message: str, exited: ExitedEvent | None = None) -> None:
        super().__init__(message)
        self.exited = exited
        """How the app-server has ended; None if it has not, or was not started."""


class DidNotOpen(DidNotStart):
    """The app-server started, but did not open the thread of this turn; others may open."""


async def start_app_server(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    handle: TurnHandle,
    stack: AsyncExitStack,
    held: Sequence[int] = (),
) -> AppServer:
    """Start an app-server, open the connection and log in; all ends with *stack*.

    Args:
        argv: The command line.
        env: Its environment; the key in CODEX_API_KEY is sent to it.
        cwd: The folder to start it in; its threads have folders of their own.
        handle: Decides about the requests of Codex.
        stack: Ends the app-server when it is closed.
        held: File descriptors to keep open until no process of it is left.

    Raises:
        DidNotStart: The app-server cannot be used.
        OSError: It could not be started.
    """
    for pause_s in (*RETRY_AFTER_S, None):
        async with AsyncExitStack() as attempt:
            try:
                server = await _start(argv, env, cwd, handle, attempt, held)
            except DidNotStart as error:
                if pause_s is None or _STATE_LOST not in str(error):
                    raise
            else:
                await stack.enter_async_context(attempt.pop_all())
                return server
        await anyio.sleep(pause_s)
    raise AssertionError("the last attempt has no pause")


async def _start(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    handle: TurnHandle,
    stack: AsyncExitStack,
    held: Sequence[int],
) -> AppServer:
    child = await stack.enter_async_context(
        open_child(argv, stdin=None, cwd=cwd, env=env, held=held)
    )
    connection = await stack.enter_async_context(
        open_connection(child, handle.decide, handle.observe, handle.expire)
    )
    handle.connection = connection
    stack.push_async_callback(_leave, child)
    try:
        await _initialize(connection)
        if key := env.get(KEY_VARIABLE):
            await _log_in(connection, key, await read_config(connection, cwd))
    except RpcError as error:
        said = describe(error, child, connection)
        raise DidNotStart(said, await exit_of(child, connection)) from error
    return AppServer(child, connection, handle)


def describe(error: RpcError, child: Child, connection: Connection) -> str:
    """Return what went wrong, with the last words of an app-server that has ended."""
    said = mask(child.stderr_end()[-300:]).strip() if connection.has_ended else ""
    return f"{error}: {said}" if said else str(error)


async def exit_of(child: Child, connection: Connection) -> ExitedEvent | None:
    """Return how an app-server has ended that can no longer answer; None if it still runs."""
    if connection.has_ended:
        with anyio.move_on_after(LEAVE_WITHIN_S):
            return ExitedEvent(await child.wait(), child.stderr_end())
    return None


async def _initialize(connection: Connection) -> None:
    """Open the connection.

    Raises:
        RpcError: The app-server did not answer as it must.
    """
    await connection.request(
        "initialize",
        {
            "clientInfo": {"name": CLIENT_NAME, "title": None, "version": "1"},
            # Without `experimentalApi`, Codex does not say which settings a turn runs with.
            "capabilities": {"experimentalApi": True, "optOutNotificationMethods": [*MUTED]},
        },
        INITIALIZE_WITHIN_S,
    )
    connection.notify("initialized")


async def read_config(connection: Connection, cwd: Path) -> Json:
    """Return Codex's own configuration for the folder *cwd*, all layers merged.

    Raises:
        RequestRefused: Codex cannot read it.
        RpcError: There was no answer.
    """
    params = {"cwd": str(cwd)}
    return object_of(await connection.request("config/read", params, ANSWER_WITHIN_S), "config")


async def _log_in(connection: Connection, key: str, config: Json) -> None:
    """Give Codex the key of CODEX_API_KEY, which the app-server does not read itself.

    Raises:
        RpcError: Codex did not take it, or would write it to disk.
    """
    # With another store, Codex would write the key into auth.json (0.163.0, 0.171.0).
    if config.get("cli_auth_credentials_store") != "ephemeral":
        raise RpcError(f"{KEY_VARIABLE} would be written to disk")
    login = {"type": "apiKey", "apiKey": key}
    await connection.request("account/login/start", login, ANSWER_WITHIN_S)


async def _leave(child: Child) -> None:
    """Let the app-server close its files; the guard kills what is left afterwards."""
    with anyio.CancelScope(shield=True):
        await child.close_stdin()
        with anyio.move_on_after(LEAVE_WITHIN_S):
            await child.wait()
