"""Ask the server process of a run to stop it, by a file in the run's folder.

STATE/runs/<run_id>/stop.json   written by the process that asks, removed by the server that obeys

Only this user can write there, and no command of a run in a sandbox can. A request counts only for
the run and the server that it names, and only while the process that asks waits: a request that
is old, or that was left behind, stops nothing. A server looks for requests only while it has runs.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import anyio
from anyio.abc import TaskGroup

from codex_tools.codex.clean_text import clean
from codex_tools.codex.foreign_file import read_foreign
from codex_tools.codex.json_object import Json
from codex_tools.codex.masking import quote
from codex_tools.codex.private_folder import check_folder
from codex_tools.codex.run_errors import UnknownRun
from codex_tools.codex.workers import on_disk
from codex_tools.runs.run import Run
from codex_tools.runs.store import StoredRun, StoredRuns

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
"""Seconds between two looks of a server for requests, and of a process that waits for the end."""

TAKEN_WITHIN_S = 10.0
"""Seconds until a server must have taken a request: builds up to 0.1.0 look for none."""

ENDED_WITHIN_S = 30.0
"""Seconds to wait for the end of a run after that: a full disk may keep it from being stored."""

VALID_S = 30.0
"""Seconds for which a request is valid; the process that asks removes it earlier, unless killed."""

REQUEST_LIMIT = 4096
"""Maximum bytes of a request."""

BY_LIMIT = 200
"""Maximum characters that are kept of the name of the process that asks."""


class RunElsewhere(UnknownRun):
    """The run belongs to another server process, which does not stop it."""

    def __init__(
        self,
        run_id: str,
        problem: str = "only that process can stop it",
        hint: str = "The client that started the run can stop it, or a person.",
    ) -> None:
        super().__init__(run_id, f"belongs to another server process; {problem}")
        self.hint = hint


class StopFile:
    """A request to stop a run, in the run's folder."""

    def __init__(self, folder: Path, server_id: str, by: str) -> None:
        """Write the request.

        Args:
            folder: The run's folder.
            server_id: The id of the run's server.
            by: The process that asks, in words for the run's result.

        Raises:
            OSError: The request cannot be written, or others could have written into the folder.
        """
        check_folder(folder, follow=False)
        self._path = _path(folder)
        self._id = secrets.token_hex(8)
        request = {"version": 1, "id": self._id, "run_id": folder.name, "server_id": server_id}
        data = json.dumps(request | {"by": _name(by), "time_s": time.time()}).encode()
        draft = folder / f"{self._path.name}.{self._id}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            draft.replace(self._path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def is_there(self) -> bool:
        """Return True if the request has neither been taken nor replaced by another one."""
        request = _read(self._path)
        return request is not None and request.get("id") == self._id

    def withdraw(self) -> bool:
        """Remove the request; return False if it is gone already."""
        if not self.is_there():
            return False
        try:
            self._path.unlink()
        except OSError:
            return False
        return True


def take(folder: Path, server_id: str) -> str | None:
    """Take the request to stop the run of *folder*; return the name of the process that asks.

    Whatever has the name of a request is removed, so that nothing there is read twice.

    Returns:
        None if there is no request, or none that is valid for this run and server *server_id*.
    """
    path = _path(folder)
    if not os.path.lexists(path):
        return None
    request = _read(path)
    with suppress(OSError):  # A folder, for example.
        path.unlink()
    by = request.get("by") if request is not None else None
    if request is None or not isinstance(by, str) or not _is_valid(request, folder, server_id):
        logger.warning("a request to stop %s is not valid, and was ignored", folder.name)
        return None
    return _name(by)


class StopWatch:
    """Stops the runs of this server that other processes ask to stop."""

    def __init__(self, tasks: TaskGroup, store: StoredRuns) -> None:
        """Look for nothing yet; a server without runs never looks."""
        self._tasks = tasks
        self._store = store
        self._runs: list[Run] = []
        self._looks = False

    def add(self, run: Run) -> None:
        """Look for requests to stop *run* until it has ended."""
        self._runs.append(run)
        if not self._looks:
            self._tasks.start_soon(self._look)
            self._looks = True

    async def _look(self) -> None:
        while self._runs:
            await anyio.sleep(LOOK_EVERY_S)
            self._runs = [run for run in self._runs if run.outcome is None]
            folders = [self._store.folder(run.run_id) for run in self._runs]
            asked = await on_disk(_take_all, folders, self._store.server_id, abandon=True)
            for run in self._runs:
                if by := asked.get(run.run_id):
                    run.stop(by)
        self._looks = False


async def stop_elsewhere(store: StoredRuns, found: StoredRun, by: str) -> None:
    """Ask the server of a run to stop it, and wait until the run has ended.

    Args:
        store: The stored runs.
        found: The run, which belongs to another server process that is alive.
        by: The process that asks, in words for the run's result.

    Raises:
        RunElsewhere: The request could not be written, or was not taken in time.
    """
    run_id = found.result.run_id or ""
    folder = store.folder(run_id)
    try:
        request = await on_disk(StopFile, folder, found.server_id, by)
    except OSError as error:
        problem = f"the request to stop it cannot be written ({error.strerror or error})"
        raise RunElsewhere(run_id, problem, "Check the state folder and its disk.") from None
    is_ignored = False
    try:
        with anyio.move_on_after(TAKEN_WITHIN_S):
            while await on_disk(request.is_there):
                if await on_disk(_has_ended, store, run_id):
                    return
                await anyio.sleep(LOOK_EVERY_S / 5)
    finally:
        with anyio.CancelScope(shield=True):
            is_ignored = await on_disk(request.withdraw)
    if is_ignored and not await on_disk(_has_ended, store, run_id):
        raise RunElsewhere(
            run_id,
            f"that process has not taken the request to stop it within {TAKEN_WITHIN_S:g} s",
            "That server hangs, or is older than this one. Its end ends the run: close its client.",
        )
    with anyio.move_on_after(ENDED_WITHIN_S):
        while not await on_disk(_has_ended, store, run_id):  # noqa: ASYNC110 - another process
            await anyio.sleep(LOOK_EVERY_S / 5)


def _take_all(folders: Sequence[Path], server_id: str) -> dict[str, str]:
    asked = ((folder.name, take(folder, server_id)) for folder in folders)
    return {run_id: by for run_id, by in asked if by is not None}


def _has_ended(store: StoredRuns, run_id: str) -> bool:
    found = store.load(run_id)
    return found is None or found.result.has_ended


def _read(path: Path) -> Json | None:
    """Return the request in a file; None if there is none that can be read."""
    try:
        request = json.loads(read_foreign(path, REQUEST_LIMIT, owned=True))
    except (OSError, ValueError, RecursionError):
        return None
    return cast(Json, request) if isinstance(request, dict) else None


def _is_valid(request: Json, folder: Path, server_id: str) -> bool:
    at = request.get("time_s")
    return (
        request.get("run_id") == folder.name
        and request.get("server_id") == server_id
        and isinstance(at, float)
        and abs(time.time() - at) <= VALID_S
    )


def _path(folder: Path) -> Path:
    return folder / "stop.json"


def _name(by: str) -> str:
    return quote(clean(by[: 10 * BY_LIMIT]), BY_LIMIT)
