"""Store runs on disk: the result of each, for this server and for later ones.

STATE/runs/<run_id>/run.json        the run's result so far, replaced as a whole
STATE/runs/<run_id>/answer.txt      its answer in full, if run.json contains a shortened one
STATE/runs/<run_id>/events.jsonl    its events, byte for byte as Codex wrote them
STATE/runs/<run_id>/stop.json       another process asks to stop it (see `stop_file`)
STATE/scratch/<server_id>-<random>  files that Codex reads a part of a turn from, until its end
STATE/servers/<server_id>.lock      locked as long as that server is alive

Several servers, also of different versions, may share one folder. Records therefore have a version
and are read tolerantly (see `read_result`). A server is alive as long as its lock is held; the
kernel releases the locks of dead processes. No command of a run can write here, but all can read:
so no lock is one that a reader can hold, and files of other users are not read.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from codex_tools.codex.file_lock import is_locked, lock, lock_for_removal, open_lock, show_lock
from codex_tools.codex.foreign_file import read_foreign
from codex_tools.codex.json_object import Json, read_exactly, write_exactly
from codex_tools.codex.private_folder import check_folder, claim_folder
from codex_tools.runs.event_log import EventPage, read_page
from codex_tools.runs.result import RunResult, interrupt, read_result

logger = logging.getLogger(__name__)

RECORD_VERSION = 1
"""Version of a record: raise it when the meaning of a field changes.

Adding or removing a field needs no other version, because records are read tolerantly. Builds up
to 0.1.0 wrote no version.
"""

KEEP_S = 14 * 24 * 3600
"""Seconds that the files of an ended run are kept."""

KEEP_BYTES = 512 * 1024 * 1024
"""Maximum bytes of the files of all runs; the oldest runs are removed first."""

RECORD_LIMIT = 64 * 1024 * 1024
"""Maximum bytes of a record or an answer that are read; this server writes far less."""

GAP_S = KEEP_S / 2
"""Seconds without any run after which the clock may have been set forward."""

SETTLED_S = 24 * 3600
"""Seconds for which runs must have been stored since such a gap before old ones are removed.

A clock that is wrong is usually corrected within a day. Until then, no run counts as too old.
"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where Codex's rollout records a run, for the case that its server dies."""

    offset: int
    """Bytes of the rollout before the run; see `TurnMark`."""
    since_ms: int
    """Time of the run's start, in ms since 1970."""
    has_schema: bool
    """True if the answer must match a schema, which is not stored."""
    is_kept: bool = True
    """False if Codex keeps no rollout."""
    segment: str = ""
    """The id of the segment that *offset* belongs to; see `TurnMark`."""


_TRIES = 100
"""Most times that another server may take this server's lock file for that of a dead one."""

_RUN_ID = re.compile(r"run_[0-9a-f]{16}")
_SERVER_ID = re.compile(r"[0-9a-f]{16}")


class StoredRuns:
    """The stored runs of one state folder, as any process of this user reads them."""

    server_id = ""
    """The id of this server; empty for a process that is none."""

    def __init__(self, state_dir: Path) -> None:
        """Read and create nothing yet."""
        self._runs = state_dir / "runs"
        self._servers = state_dir / "servers"

    @classmethod
    def open(cls, state_dir: Path) -> StoredRuns:
        """Return the runs of *state_dir* for reading; there are none if the folder is missing.

        Raises:
            OSError: The folder, or one in it, cannot be used, or others could have written there.
        """
        runs = cls(state_dir)
        for folder in (state_dir, runs._runs, runs._servers):
            with suppress(FileNotFoundError):
                check_folder(folder, follow=folder is state_dir)
        return runs

    def load(self, run_id: str) -> StoredRun | None:
        """Return the last stored record of a run; None if there is no run with that id.

        A running or queued run whose server has died is returned as interrupted. So is a run of
        this server, because the register asks only for runs that are not in its memory.
        """
        found = self._read(run_id)
        if found is None or not found.server_id:
            return found
        if self.lives(found.server_id):
            return replace(found, recorded=None)
        # Between reading and asking, the server may have stored the end of the run, and ended.
        found = self._read(run_id) or found
        if found.result.has_ended:
            return found
        is_kept = found.recorded is None or found.recorded.is_kept
        return replace(
            found,
            result=interrupt(found.result, can_resume=is_kept),
            recorded=found.recorded if is_kept else None,
            died=True,
        )

    def _read(self, run_id: str) -> StoredRun | None:
        """Return the record of a run as it is stored; None if there is none that can be read."""
        if _RUN_ID.fullmatch(run_id) is None:
            return None
        try:
            text = read_foreign(self.folder(run_id) / "run.json", RECORD_LIMIT, owned=True)
            record = cast(Json, read_exactly(text, unique_keys=False))
            result = read_result(record["result"], run_id)
            server_id, created_at = record["server_id"], record["created_at"]
            updated_at = record.get("updated_at", created_at)
            if not isinstance(created_at, str) or not isinstance(updated_at, str):
                raise ValueError("a time is not a text")
            if _SERVER_ID.fullmatch(server_id) is None:
                raise ValueError("not the record of a server")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the record of %s cannot be read: %s", run_id, type(error).__name__)
            return None
        if result.has_ended:
            return StoredRun(result, created_at, updated_at)
        recorded = _recorded(record.get("recorded"))
        return StoredRun(result, created_at, updated_at, recorded, server_id)

    def log_path(self, run_id: str) -> Path:
        """Return the path of the file with the run's events."""
        return self.folder(run_id) / "events.jsonl"

    def read_events(self, run_id: str, offset: int, room: int) -> EventPage | None:
        """Return a page of the run's events; None if there is no such run or no stored event.

        Args:
            run_id: The id of the run.
            offset: The byte to begin at: `next_offset` of an earlier page.
            room: Maximum characters of the page.
        """
        return read_page(self.log_path(run_id), offset, room)

    def read_answer(self, run_id: str) -> str | None:
        """Return the run's answer in full; None if its record contains the full answer."""
        try:
            answer = read_foreign(self.folder(run_id) / "answer.txt", RECORD_LIMIT, owned=True)
        except OSError:
            return None
        return answer.decode("utf-8", "replace")

    def newest(self, count: int, before: str | None = None) -> list[str]:
        """Return the ids of up to *count* runs, the newest first.

        Args:
            count: Maximum number of ids.
            before: Return only runs last changed before this one, and no run if this one no
                longer exists.
        """
        found: list[tuple[int, str]] = []
        for entry in os.scandir(self._runs):
            try:
                found.append((Path(entry.path, "run.json").stat().st_mtime_ns, entry.name))
            except OSError:
                continue  # Another server has just removed the record, or not yet written it.
        found.sort(reverse=True)
        names = [name for _, name in found if _RUN_ID.fullmatch(name)]
        if before is None:
            return names[:count]
        start = names.index(before) + 1 if before in names else len(names)
        return names[start : start + count]

    def ids(self, prefix: str = "") -> list[str]:
        """Return the ids that begin with *prefix*, in no order."""
        try:
            names = [entry.name for entry in os.scandir(self._runs)]
        except FileNotFoundError:
            return []
        return [name for name in names if name.startswith(prefix) and _RUN_ID.fullmatch(name)]

    def folder(self, run_id: str) -> Path:
        """Return the path of the folder with the run's files."""
        return self._runs / run_id

    def lives(self, server_id: str, *, remove: bool = False) -> bool:
        """Return True if another server is alive; with *remove*, delete a dead one's lock file."""
        if server_id == self.server_id:
            return False
        path = self._servers / f"{server_id}.lock"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            if is_locked(fd):
                return True
            if remove and lock_for_removal(fd):  # A server may be about to lock its new file.
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)
        return False


class RunStore(StoredRuns):
    """The stored runs of one state folder, as one server reads and writes them."""

    def __init__(self, state_dir: Path) -> None:
        """Create the folders, private to this user, and lock a file that marks this server alive.

        Raises:
            OSError: The folder cannot be used, or belongs to another user.
        """
        super().__init__(state_dir)
        self._scratch = state_dir / "scratch"
        self._closing = threading.Lock()
        claim_folder(state_dir)
        for folder in (self._runs, self._servers, self._scratch):
            claim_folder(folder, follow=False)
        for _ in range(_TRIES):
            self.server_id = secrets.token_hex(8)
            self._alive = self._servers / f"{self.server_id}.lock"
            self._lock = open_lock(self._alive)
            try:
                # Another server may have removed the file as that of a dead server.
                if lock(self._lock) and os.path.samestat(os.fstat(self._lock), self._alive.stat()):
                    show_lock(self._lock)
                    return
            except FileNotFoundError:
                pass
            os.close(self._lock)
        raise OSError(errno.EBUSY, "no lock file can be locked", str(self._servers))

    @property
    def scratch(self) -> Path:
        """The beginning of the path of each folder for the files of a turn of this server."""
        return self._scratch / self.server_id

    def close(self) -> None:
        """Remove and unlock the file that marks this server alive.

        May be called twice, and from two threads: each returns only when the file is gone, because
        the process may end right after.
        """
        with self._closing:
            lock, self._lock = self._lock, -1
            if lock >= 0:
                self._alive.unlink(missing_ok=True)
                os.close(lock)

    def save(
        self,
        result: RunResult,
        created_at: str,
        answer: str | None = None,
        recorded: Recorded | None = None,
    ) -> None:
        """Store *result*; readers see the previous record or this one, never a part of it.

        Args:
            result: The result, final or so far.
            created_at: Time at which the run was created, as ISO 8601 in UTC.
            answer: The answer in full, if *result* contains a shortened one.
            recorded: Where Codex's rollout records the run; None where nobody will ask.

        Raises:
            OSError: The record cannot be written.
        """
        folder = self.folder(result.run_id or "")
        folder.mkdir(mode=0o700, exist_ok=True)
        record = {
            "version": RECORD_VERSION,
            "server_id": self.server_id,
            "created_at": created_at,
            "updated_at": now(),
            "recorded": None if recorded is None else asdict(recorded),
            "result": result.model_dump(),
        }
        if answer is not None:
            self._replace(folder / "answer.txt", answer.encode("utf-8", "replace"))
        self._replace(folder / "run.json", write_exactly(record))

    def _replace(self, path: Path, data: bytes) -> None:
        draft = path.with_name(f"{path.name}.{self.server_id}")
        draft.unlink(missing_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        draft.replace(path)

    def prune(self, alive: Collection[str] = (), now_s: float | None = None) -> None:
        """Remove the runs older than KEEP_S and the oldest above KEEP_BYTES; keep running ones.

        No run is removed for its age as long as the clock may have been set forward.

        Args:
            alive: Ids of this server's own runs that have not ended.
            now_s: The current time, in seconds since 1970; None to ask the clock.
        """
        now_s = time.time() if now_s is None else now_s
        ended: list[tuple[float, int, Path]] = []
        times: list[float] = []
        for folder in self._runs.iterdir():
            try:
                changed = max(entry.stat().st_mtime for entry in [folder, *folder.iterdir()])
                size = sum(entry.stat().st_size for entry in folder.iterdir())
            except OSError:
                continue  # Another server has just removed the run.
            times.append(changed)
            if folder.name in alive:
                continue
            stored = self.load(folder.name)
            if stored is None or stored.result.has_ended:
                ended.append((changed, size, folder))
        kept = 0
        settled = _is_settled(times, now_s)
        for changed, size, folder in sorted(ended, reverse=True):
            kept += size
            if kept > KEEP_BYTES or (settled and now_s - changed > KEEP_S):
                shutil.rmtree(folder, ignore_errors=True)
        for file in self._servers.glob("*.lock"):
            if file.stem != self.server_id:
                self.lives(file.stem, remove=True)
        for folder in self._scratch.iterdir():
            owner = folder.name.partition("-")[0]
            if owner != self.server_id and not self.lives(owner):
                shutil.rmtree(folder, ignore_errors=True)

    def is_alive(self, server_id: str) -> bool:
        """Return True if that server is alive, which this one is."""
        return server_id == self.server_id or (
            _SERVER_ID.fullmatch(server_id) is not None and self.lives(server_id)
        )


def _is_settled(times: Sequence[float], now_s: float) -> bool:
    """Return True if runs of at least SETTLED_S lead up to *now_s* without a gap of GAP_S.

    Times after *now_s* are left out: the clock may have been wrong when they were written.
    """
    since = now_s
    for at in sorted((at for at in times if at <= now_s), reverse=True):
        if since - at > GAP_S:
            break
        since = at
    return now_s - since >= SETTLED_S


@dataclass(frozen=True, slots=True)
class StoredRun:
    """The stored record of a run, with its times."""

    result: RunResult
    created_at: str
    updated_at: str
    recorded: Recorded | None = None
    """Where to look for what a run came to whose server has died; None for any other run."""
    server_id: str = ""
    """The id of the server that has not stored the run's end; empty for a run that has ended."""
    died: bool = False
    """True if that server has died."""


def _recorded(data: object) -> Recorded | None:
    if not isinstance(data, dict):
        return None
    known = {each.name for each in fields(Recorded)}
    try:
        # A later build may store more.
        return Recorded(**{key: value for key, value in cast(Json, data).items() if key in known})
    except TypeError:
        return None  # Of a build that did not store it, or stores something else.


def now() -> str:
    """Return the current time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
