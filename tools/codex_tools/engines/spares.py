"""Keep app-servers ready, so that a turn need not wait for the start of one.

A spare is started and initialized, and then used for one turn. It belongs to a task of its own,
because a task group must be left by the task that entered it, and the turn runs in another one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from codex_tools.codex.errors import CodexError
from codex_tools.codex.paths import codex_home
from codex_tools.engines.app_server_start import AppServer, DidNotStart, start_app_server
from codex_tools.engines.handle import TurnHandle

IDLE_LIMIT_S = 600.0
"""Seconds after which an unused spare is ended; it holds 34 to 47 MiB (0.171.0)."""

Stat = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class SpareKey:
    """What a spare has read at its start, and a turn must therefore have the same."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    program: Stat
    login: Stat
    """State of auth.json, which Codex reads only once."""


def spare_key(argv: Sequence[str], env: dict[str, str]) -> SpareKey:
    """Return the key of an app-server; accesses the disk."""
    items = tuple(sorted(env.items()))
    return SpareKey((*argv,), items, _stat(Path(argv[0])), _stat(codex_home() / "auth.json"))


@dataclass(slots=True, eq=False)
class _Entry:
    key: SpareKey
    server: AppServer | None = None
    """The app-server, once it is ready."""
    taken: anyio.Event = field(default_factory=anyio.Event)
    done: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)


@dataclass(frozen=True, slots=True)
class Spare:
    """A spare that was taken for a turn."""

    server: AppServer
    _entry: _Entry

    async def release(self) -> None:
        """End the app-server and wait until none of its processes is left."""
        self._entry.done.set()
        with anyio.CancelScope(shield=True):
            await self._entry.ended.wait()


class Spares:
    """The spares of an engine; `open_spares` creates it."""

    def __init__(self, tasks: TaskGroup, count: int) -> None:
        self._tasks = tasks
        self._count = count
        self._entries: list[_Entry] = []

    def take(self, key: SpareKey) -> Spare | None:
        """Return a spare that is ready for *key*; None if there is none.

        The caller must release it.
        """
        for entry in [*self._entries]:
            server = entry.server
            if server is not None and server.connection.has_ended:
                self._discard(entry)
            elif server is not None and entry.key == key:
                self._entries.remove(entry)
                entry.taken.set()
                return Spare(server, entry)
        return None

    def order(self, key: SpareKey) -> None:
        """Start spares for *key* until there are enough; end those with another key."""
        for entry in [*self._entries]:
            if entry.key != key:
                self._discard(entry)
        while len(self._entries) < self._count:
            entry = _Entry(key)
            self._entries.append(entry)
            self._tasks.start_soon(self._keep, entry)

    def _discard(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        entry.taken.set()
        entry.done.set()

    async def _keep(self, entry: _Entry) -> None:
        """Start a spare, keep it until it is used or too old, and end it."""
        key = entry.key
        try:
            async with AsyncExitStack() as stack:
                handle = TurnHandle()
                entry.server = await start_app_server(
                    key.argv, dict(key.env), Path("/"), handle, stack
                )
                with anyio.move_on_after(IDLE_LIMIT_S):
                    await entry.taken.wait()
                if entry.taken.is_set():
                    await entry.done.wait()
        except (DidNotStart, CodexError, OSError):
            pass  # The turn that finds no spare starts an app-server itself, and reports that.
        finally:
            if entry in self._entries:
                self._entries.remove(entry)
            entry.ended.set()


@asynccontextmanager
async def open_spares(count: int) -> AsyncGenerator[Spares]:
    """Keep up to *count* spares until the context manager exits."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield Spares(tasks, count)
        except Exception as error:  # Raised again below: the task group would wrap it.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _stat(path: Path) -> Stat:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
