"""Start an app-server under a guard, and make it ready for a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio

from codex_tools.codex.json_object import Json, object_of
from codex_tools.codex.masking import mask
from codex_tools.codex.program import CLIENT_NAME
from codex_tools.engines.app_server_events import MUTED
from codex_tools.engines.handle import Handle
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

KEY_VARIABLE = "CODEX_API_KEY"
IN_MEMORY = 'cli_auth_credentials_store="ephemeral"'
"""Setting with which Codex keeps a key that it is sent in memory only."""


@dataclass(frozen=True, slots=True)
class AppServer:
    """A running app-server that waits for a thread."""

    child: Child
    connection: Connection
    handle: Handle


class DidNotStart(Exception):
    """The app-server did not start, or did not answer as it must."""


async def start_app_server(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    handle: Handle,
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
        raise DidNotStart(describe(error, child, connection)) from error
    return AppServer(child, connection, handle)


def describe(error: RpcError, child: Child, connection: Connection) -> str:
    """Return what went wrong, with the last words of an app-server that has ended."""
    said = mask(child.stderr_end()[-300:]).strip() if connection.has_ended else ""
    return f"{error}: {said}" if said else str(error)


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
