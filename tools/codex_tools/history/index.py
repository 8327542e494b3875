"""Index all rollouts: read each file once, and later only its changes.

    STATE/history/<home>-<schema>.sqlite    one for each CODEX_HOME and schema, rebuilt if it is
                                            missing or damaged
    STATE/history/<home>-<schema>.lock      held by the one process that updates the index

The schema is in the name, so that two versions of this server do not delete each other's index.
Each refresh compares folder, name, size and modification time of all rollouts with the index. Of a
file that grew, only the new part is read. Codex's own files are opened for reading only. Codex's
databases are not used: they lack threads that an older Codex made, and count forks twice.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import orjson

from codex_tools.codex.errors import CodexError, IndexUnavailable
from codex_tools.codex.file_lock import lock, open_lock, show_lock
from codex_tools.codex.private_folder import StandIn, claim_folder
from codex_tools.history.indexer import ContextNumbers, IndexBatch, reprice, uncollected
from codex_tools.history.scan import (
    RolloutChanges,
    compare,
    inode_of,
    mark_of,
    mark_of_file,
    scan,
    scan_mirrors,
)
from codex_tools.history.search_text import read_names, read_new_texts
from codex_tools.history.tables import (
    SCHEMA,
    TABLES,
    IndexConnection,
    data_version,
    folders_of,
    get_meta,
    has_new_texts,
    has_our_tables,
    open_database,
    put_meta,
    schema_of,
    transaction,
)
from codex_tools.history.writer_locks import is_stopped, lock_holder
from codex_tools.pricing.prices import Prices

BATCH_FILES = 250
"""Maximum number of files that are read between two commits."""

BATCH_BYTES = 64 * 1024 * 1024
"""Bytes after which a batch is committed, even with fewer files."""

WAIT_S = 10.0
"""Maximum time in seconds that another process may hold the write lock without a commit."""

STOPPED_S = 3.0
"""Maximum time in seconds to wait for a stopped process (SIGSTOP) that holds the write lock."""

UNUSED_S = 30 * 24 * 3600
"""Seconds after which an index of another schema is removed."""


Progress = Callable[[int, int], None]
"""Called with the number of files read so far and the number of all files to read."""
Enough = Callable[[sqlite3.Connection, int], bool]
"""Called with the newest modification time (ns) of the unread files; returns True to stop."""


class _LockHeld(Exception):
    """Another process holds the write lock without making progress."""


class ThreadIndex:
    """The index over the rollouts of one CODEX_HOME; safe to use from any thread.

    Several processes may share an index. The first process that finds changes takes the write
    lock, reads and commits in batches; the others wait. If that process is killed, only its last
    batch is lost. If it is stopped while it holds the lock, the others build a temporary index of
    their own and add a note, until the lock is free.
    """

    def __init__(self, home: Path, state_dir: Path, prices: Prices) -> None:
        self.home = home
        self.prices = prices
        self._names = home / "session_index.jsonl"
        self.notes: list[str] = []
        """Sentences for the person about the state of the index itself."""
        self._shared_folder = self._folder = state_dir / "history"
        self._key = f"{zlib.crc32(os.fsencode(home)):08x}"
        self._own_folder: StandIn | None = None
        self._lock_was_held = False
        """True if the temporary folder is used only until another process releases the lock."""
        self._mutex = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._complete: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._seen: dict[str, int] = {}
        """By folder, the mark of its files when they last matched the index."""
        self._seen_at: int | None = None
        self._seen_more = False
        self._leave = threading.Event()
        self._waiting: set[object] = set()
        self._later: threading.Thread | None = None

    def close(self) -> None:
        """Close the index; threads that are reading for it stop."""
        self._leave.set()
        db = self._db
        if isinstance(db, IndexConnection):
            db.stop.set()
        with self._mutex:
            self._forget_connection()
            if self._own_folder is not None:
                self._own_folder.remove()

    @contextmanager
    def opened(self) -> Generator[sqlite3.Connection]:
        """Yield a connection to the index of the last refresh, for the calling thread only.

        Raises:
            IndexUnavailable: No folder for an index can be written, or the index is damaged.
        """
        with self._wanted():
            try:
                db = self._connect()
                if db is not self._complete:
                    # Another process has removed the index since the last refresh.
                    self.refresh()
                    db = self._connect()
                yield db
            except sqlite3.DatabaseError as error:
                # The index was damaged while it was read; the next refresh rebuilds it.
                self._recover(error)
                raise IndexUnavailable(str(error)) from error

    def refresh(
        self,
        progress: Progress | None = None,
        enough: Enough | None = None,
        *,
        texts: bool = False,
        patience: int = 0,
    ) -> int:
        """Update the index, newest files first; return the number of files left unread.

        Args:
            progress: Called after each batch.
            enough: Called after each batch; True ends the refresh there.
            texts: True to also index the words of prompts and answers.
            patience: With at most this many changed files, *enough* is not called.

        Raises:
            IndexUnavailable: No folder for an index can be written.
        """
        with self._wanted():
            self._return()
            for _ in range(3):
                try:
                    return self._refresh(progress or _ignore, enough, texts, patience)
                except sqlite3.DatabaseError as error:
                    if not self._recover(error):
                        raise IndexUnavailable(str(error)) from error
                except (OSError, _LockHeld) as error:
                    if not self._use_own_folder(str(error)):
                        raise IndexUnavailable(str(error)) from error
            raise IndexUnavailable("it was damaged again while it was rebuilt")

    def finish_later(self) -> None:
        """Read the files that a refresh left, in the background, while no call needs the index."""
        with self._mutex:
            if self._later is None or not self._later.is_alive():
                self._later = threading.Thread(target=self._read_on, daemon=True, name="history")
                self._later.start()

    def _read_on(self) -> None:
        left = 1
        while left:
            while self._waiting:
                time.sleep(0.05)
            try:
                with self._mutex:
                    left = self._refresh(_ignore, self._is_wanted)
            except (CodexError, sqlite3.Error, OSError):
                return  # The next call meets the same error and reports it.

    def _is_wanted(self, db: sqlite3.Connection, next_mtime_ns: int) -> bool:
        return bool(self._waiting)

    @contextmanager
    def _wanted(self) -> Generator[None]:
        """Hold the index for the calling thread; the background pauses after its batch."""
        token = object()
        self._waiting.add(token)
        try:
            with self._mutex:
                yield
        finally:
            self._waiting.discard(token)

    def _refresh(
        self,
        progress: Progress,
        enough: Enough | None = None,
        texts: bool = False,
        patience: int = 0,
    ) -> int:
        db = self._connect()
        changes = self._changes(db)
        names = mark_of_file(self._names)
        stale_names = names != get_meta(db, "names")
        stale_prices = self.prices.fingerprint != get_meta(db, "prices")
        stale = bool(changes.found or changes.gone)
        new_texts = texts and (stale or has_new_texts(db))
        if not (stale or stale_names or stale_prices or new_texts):
            self._keep_seen(db)
            self._complete = db
            return 0
        with self._locked(db, progress):
            if stale and data_version(db) != self._seen_at:
                changes = self._changes(db)  # Another process may have updated the index meanwhile.
            if stale_prices or stale_names:
                with transaction(db):
                    if stale_prices:
                        reprice(db, self.prices, BATCH_FILES)
                        put_meta(db, "prices", self.prices.fingerprint)
                        put_meta(db, "prices_version", self.prices.version)
                    read_names(db, self._names)
                    put_meta(db, "names", names)
            patient = enough is None or len(changes.found) <= patience
            with uncollected():
                left = self._read_changes(db, changes, progress, None if patient else enough)
            if new_texts:
                self._read_texts(db, progress)
            self._complete = db
            return left

    def _connect(self) -> sqlite3.Connection:
        self._check_leave()  # Do not reopen an index that was closed during the wait.
        path = self._path()
        if self._db is not None and self._inode == inode_of(path):
            return self._db
        self._forget_connection()
        try:
            if self._own_folder is None:
                claim_folder(path.parent.parent)
                claim_folder(path.parent, follow=False)
            self._db = self._open(path)
        except (OSError, sqlite3.OperationalError, _LockHeld) as error:
            if not self._use_own_folder(str(error)):
                raise IndexUnavailable(str(error)) from error
            return self._connect()
        self._inode = inode_of(path)
        return self._db

    def _open(self, path: Path) -> sqlite3.Connection:
        db = open_database(path)
        try:
            if schema_of(db) != SCHEMA:
                self._make_tables(db, path)
                self._remove_unused()
            if not has_our_tables(db):
                raise sqlite3.DatabaseError(f"{path.name} has other tables than this server makes")
            os.utime(path)
        except BaseException:
            db.close()
            raise
        return db

    def _make_tables(self, db: sqlite3.Connection, path: Path) -> None:
        with self._locked(db, _ignore):
            version = schema_of(db)
            if version == SCHEMA:
                return  # Another process was faster.
            if version != 0:
                raise sqlite3.DatabaseError(f"{path.name} has schema {version}, not {SCHEMA}")
            db.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT")

    def _recover(self, error: sqlite3.DatabaseError) -> bool:
        """Make the index usable again after *error*; return True on success."""
        if isinstance(error, sqlite3.OperationalError) and "no such" not in str(error):
            # The disk is full or not writable. The index itself is intact.
            return self._use_own_folder(str(error))
        self._forget_connection()
        try:
            with self._flock() as fd:
                if lock(fd):  # Else another process does it.
                    for ending in ("", "-wal", "-shm"):
                        Path(f"{self._path()}{ending}").unlink(missing_ok=True)
        except OSError as problem:
            return self._use_own_folder(str(problem))
        return True

    def _use_own_folder(self, problem: str) -> bool:
        """Move the index to a temporary folder of this process; return False if that fails."""
        self._forget_connection()
        if self._own_folder is not None:
            return False
        try:
            self._own_folder = StandIn()
        except OSError:
            return False
        self.notes.append(
            f"The index cannot be kept in {self._folder} ({problem});"
            " this process uses a temporary index."
        )
        self._folder = self._own_folder.path
        return True

    def _return(self) -> None:
        """Use the shared folder again once another process has released its lock."""
        own = self._own_folder
        if own is None or not self._lock_was_held:
            return
        try:
            with self._flock(self._shared_folder) as fd:
                if not lock(fd):
                    return
        except OSError:
            return
        self._forget_connection()
        self._folder, self._own_folder, self._lock_was_held = self._shared_folder, None, False
        self.notes.clear()
        own.remove()

    def _remove_unused(self) -> None:
        """Remove indexes of this home with another schema that no process has opened for long."""
        for path in self._folder.glob(f"{self._key}*.sqlite"):
            with suppress(OSError):
                if path != self._path() and time.time() - path.stat().st_mtime > UNUSED_S:
                    for ending in ("", "-wal", "-shm"):
                        Path(f"{path}{ending}").unlink(missing_ok=True)

    def _forget_connection(self) -> None:
        self._seen.clear()
        self._seen_at = None
        if self._db is not None:
            self._db.close()
            self._db = self._complete = None

    def _path(self) -> Path:
        return self._folder / f"{self._key}-{SCHEMA}.sqlite"

    @contextmanager
    def _flock(self, folder: Path | None = None) -> Generator[int]:
        fd = open_lock((folder or self._folder) / f"{self._key}-{SCHEMA}.lock")
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _locked(self, db: sqlite3.Connection, progress: Progress) -> Generator[None]:
        """Hold the write lock of the index; wait while another process holds it and commits.

        Raises:
            _LockHeld: The other process has not committed for too long.
        """
        with self._flock() as fd:
            seen, since = data_version(db), time.monotonic()
            stopped_at: float | None = None
            while True:
                if lock(fd):
                    show_lock(fd)
                    break
                self._check_leave()
                now = time.monotonic()
                if (version := data_version(db)) != seen:
                    seen, since = version, now
                if not is_stopped(lock_holder(fd)):
                    stopped_at = None
                elif stopped_at is None:
                    stopped_at = now
                stopped_s = 0.0 if stopped_at is None else now - stopped_at
                if now - since > WAIT_S or stopped_s > STOPPED_S:
                    self._lock_was_held = True
                    raise _LockHeld("another process holds its write lock and makes no progress")
                progress(0, 0)
                time.sleep(0.02)
            yield

    def _changes(self, db: sqlite3.Connection) -> RolloutChanges:
        """Compare disk and index; skip folders that have not changed since they last matched."""
        version = data_version(db)
        if version != self._seen_at:
            self._seen = orjson.loads(get_meta(db, "folders") or "{}")
            self._seen_at = version
        changes = RolloutChanges()
        folders: set[str] = set()
        mirrors = scan_mirrors(self.home, self._shared_folder.parent)
        for folder, entries in chain(scan(self.home), mirrors):
            folders.add(folder)
            mark = mark_of(entries)
            if self._seen.get(folder) != mark:
                before = len(changes.found) + len(changes.gone)
                compare(db, folder, entries, changes)
                if before == len(changes.found) + len(changes.gone):
                    self._seen[folder] = mark
                    self._seen_more = True
                else:
                    self._seen.pop(folder, None)
        indexed = folders_of(db)
        for folder in indexed - folders:
            rows = db.execute("SELECT id FROM file WHERE folder = ?", (folder,))
            changes.gone += [id_ for (id_,) in rows]
        for folder in self._seen.keys() - folders:
            del self._seen[folder]
        changes.found.sort(key=lambda found: found.mtime_ns, reverse=True)
        return changes

    def _keep_seen(self, db: sqlite3.Connection) -> None:
        """Save the folders that match, for other processes, if the index is still the same."""
        if self._seen_more:
            with suppress(sqlite3.OperationalError), transaction(db):
                if data_version(db) == self._seen_at:
                    put_meta(db, "folders", orjson.dumps(self._seen).decode())
            self._seen_more = False

    def _read_changes(
        self,
        db: sqlite3.Connection,
        changes: RolloutChanges,
        progress: Progress,
        enough: Enough | None,
    ) -> int:
        total = len(changes.found)
        contexts = ContextNumbers(db, self._shared_folder.parent)
        done = 0
        progress(0, total)
        while done < total or changes.gone:
            batch = IndexBatch(db, str(self.home), self.prices, contexts, changes)
            size = 0
            while done < total and len(batch.files) < BATCH_FILES and size < BATCH_BYTES:
                batch.read(changes.found[done])
                size += changes.found[done].size
                done += 1
                self._check_leave()
            batch.commit(changes.gone)
            changes.gone = []
            progress(done, total)
            if done < total and enough is not None and enough(db, changes.found[done].mtime_ns):
                break
        return total - done

    def _read_texts(self, db: sqlite3.Connection, progress: Progress) -> None:
        def report(done: int, total: int) -> None:
            self._check_leave()
            progress(done, total)

        read_new_texts(db, self.home, BATCH_FILES, report)

    def _check_leave(self) -> None:
        if self._leave.is_set():
            raise IndexUnavailable("this process is ending")


def _ignore(done: int, total: int) -> None:
    """Do nothing: a `Progress` for callers without one."""
