"""Remember which run an idempotency key stands for, for all servers of one state folder.

STATE/keys/<SHA-256 of the key>.json   the run, and what the arguments were
STATE/keys/lock                        locked while a key is taken or given back
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import anyio

from codex_tools.codex.errors import InvalidArguments
from codex_tools.codex.file_lock import lock, open_lock
from codex_tools.codex.foreign_file import read_foreign
from codex_tools.codex.json_object import Json, read_exactly, write_exactly
from codex_tools.codex.private_folder import claim_folder
from codex_tools.codex.workers import on_disk
from codex_tools.runs.run import Run
from codex_tools.runs.store import RunStore
from codex_tools.runs.writer import StateWriter

KEPT_S = 24 * 3600
"""Seconds for which a key stands for its run."""

POLL_EVERY_S = 0.05
"""Polling interval in seconds while another call starts the run of the same key."""

WRITTEN_WITHIN_S = 0.3
"""Seconds to wait until a record is on disk; a disk that hangs must not delay the result.

Claude Code gives a server 0.5 s in all before it sends SIGKILL.
"""

_VERSION = 1
_LIMIT = 10_000
"""Maximum bytes of a file; this server writes about 250."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A key that was taken for a run."""

    run_id: str
    arguments: str
    """SHA-256 of the tool's name and its arguments."""
    server_id: str
    at_s: float
    """Time in seconds since 1970."""
    is_starting: bool = True
    """False once the run has been started."""


def new_run_id() -> str:
    """Return an id for a run."""
    return f"run_{secrets.token_hex(8)}"


class Keys:
    """The idempotency keys of one state folder. Each method accesses the disk."""

    def __init__(self, state_dir: Path, store: RunStore, writer: StateWriter) -> None:
        """Remember the folder; it is created with the first key."""
        self._folder = state_dir / "keys"
        self._store = store
        self._writer = writer

    async def once(
        self,
        key: str,
        arguments: str,
        start: Callable[[str], Awaitable[Run]],
        is_own: Callable[[str], bool],
    ) -> tuple[str, Run | None]:
        """Start a run, unless *key* stands for one.

        Args:
            key: The key.
            arguments: A digest of all that the caller asks for.
            start: Function that starts the run under the id that it gets.
            is_own: Function that says whether this server has a run in memory.

        Returns:
            The id of the key's run, and the run itself if it was started now.

        Raises:
            InvalidArguments: The key stands for a run with other arguments.
            CodexError: The error that *start* raised; the key is free then.
        """
        wanted = Taken(new_run_id(), arguments, self._store.server_id, time.time())

        def exists(taken: Taken) -> bool:
            return is_own(taken.run_id) or self._store.load(taken.run_id) is not None

        def is_usable(taken: Taken) -> bool:
            return exists(taken) or (taken.is_starting and self._store.is_alive(taken.server_id))

        while True:
            found = await on_disk(self.take, key, wanted, is_usable)
            if found is not None and found.arguments != arguments:
                raise InvalidArguments(
                    [f"idempotency_key: {found.run_id} has it, with other arguments"]
                )
            if found == wanted:
                break
            if found is not None and await on_disk(exists, found):
                return found.run_id, None
            await anyio.sleep(POLL_EVERY_S)
        try:
            run = await start(wanted.run_id)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await on_disk(self.give_back, key, wanted)
            raise
        with anyio.CancelScope(shield=True):
            if await self._writer.flush(WRITTEN_WITHIN_S):  # Other servers look for its record.
                await on_disk(self.confirm, key, wanted)
        return run.run_id, run

    def take(self, key: str, wanted: Taken, is_usable: Callable[[Taken], bool]) -> Taken | None:
        """Take *key* for the run of *wanted*, or return for which run it is taken.

        *is_usable* says whether a run for which the key was taken exists or is being started; if
        not, the key is free. Return None if another call takes a key at this moment.

        Raises:
            OSError: The key cannot be stored.
        """
        claim_folder(self._folder, follow=False)
        fd = open_lock(self._folder / "lock")
        try:
            if not lock(fd):
                return None
            found = self._read(key)
            if found is not None and found.at_s > wanted.at_s - KEPT_S and is_usable(found):
                return found
            self._write(key, wanted)
            return wanted
        finally:
            os.close(fd)

    def confirm(self, key: str, taken: Taken) -> None:
        """Record that the run of *taken* has been started."""
        self._write(key, replace(taken, is_starting=False))

    def give_back(self, key: str, taken: Taken) -> None:
        """Free *key*, because the run of *taken* was not started."""
        found = self._read(key)
        if found is not None and found.run_id == taken.run_id:
            self._path(key).unlink(missing_ok=True)

    def prune(self) -> None:
        """Remove the keys that stand for no run any more."""
        try:
            for file in self._folder.glob("*.json*"):
                if time.time() - file.stat().st_mtime > KEPT_S:
                    file.unlink(missing_ok=True)
        except OSError:
            return  # Another server has just removed one.

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / f"{name}.json"

    def _read(self, key: str) -> Taken | None:
        try:
            data = cast(Json, read_exactly(read_foreign(self._path(key), _LIMIT, owned=True)))
            if data.pop("version") != _VERSION:
                return None
            return Taken(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # There is none, or none that this build can read.

    def _write(self, key: str, taken: Taken) -> None:
        path = self._path(key)
        draft = path.with_name(f"{path.name}.{taken.run_id}")
        draft.write_bytes(write_exactly({"version": _VERSION} | asdict(taken)))
        draft.replace(path)
