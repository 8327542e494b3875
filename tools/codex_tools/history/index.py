"""Index all rollouts: read everything once, and from then on only what has changed.

    STATE/history/<home>-<schema>.sqlite    one for each CODEX_HOME and schema, rebuilt when it is
                                            missing or damaged
    STATE/history/<home>-<schema>.lock      held by the one process that updates it

The schema is in the name, so that two versions of this server do not delete each other's index.
Each refresh compares folder, name, size and modification time of all rollouts with the index. A
file that grew is read from where it grew. Codex's own files are only ever opened for reading, and
its databases not at all: they lack threads that an older Codex made, and count forks twice.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from codex_tools.codex.errors import CodexError, IndexUnavailable
from codex_tools.history.indexer import ContextNumbers, IndexBatch, price_anew, uncollected
from codex_tools.history.scan import RolloutChanges, compare, inode_of, mark_of, mark_of_file, scan
from codex_tools.history.search_text import read_names, read_new_texts
from codex_tools.history.tables import (
    SCHEMA,
    TABLES,
    data_version,
    folders_of,
    get_meta,
    has_untold,
    open_database,
    put_meta,
    schema_of,
    transaction,
)
from codex_tools.history.writer_locks import is_stopped, lock_holder
from codex_tools.pricing.prices import Prices

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

BATCH_FILES = 250
BATCH_BYTES = 64 * 1024 * 1024
"""So much is read between two commits."""

WAIT_S = 10.0
"""Seconds that another process may hold the lock without a commit."""

STOPPED_S = 3.0
"""Seconds after which a process that holds the lock and is stopped (SIGSTOP) is not waited for."""

UNUSED_S = 30 * 24 * 3600
"""Seconds after which an index of another schema is removed."""


Progress = Callable[[int, int], None]
"""Told how many files are read, and of how many."""
Enough = Callable[[sqlite3.Connection, int], bool]
"""Told the newest modification time (ns) of the files that are still unread."""


class _LockHeld(Exception):
    """Another process holds the lock and does not progress."""


class ThreadIndex:
    """The index over the rollouts of one CODEX_HOME; safe to use from any thread.

    Several processes may share one: the first that finds something new locks it, reads and
    commits in batches, and the others wait for it. A process that is killed leaves the last batch
    undone, nothing else. A process that is stopped while it holds the lock costs the others a
    note: they read into an index of their own until the lock is free.
    """

    def __init__(self, home: Path, state_dir: Path, prices: Prices) -> None:
        self.home = home
        self.prices = prices
        self._names = home / "session_index.jsonl"
        self.notes: list[str] = []
        """What the person should know about the index itself."""
        self._shared_folder = self._folder = state_dir / "history"
        self._key = f"{zlib.crc32(os.fsencode(home)):08x}"
        self._own_folder: TemporaryDirectory[str] | None = None
        self._lock_was_held = False
        """True if the own folder is only used until another process releases the lock."""
        self._mutex = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._complete: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._seen: dict[str, int] = {}
        """By folder, a mark of what lay there when it was as the index has it."""
        self._seen_at: int | None = None
        self._seen_more = False
        self._leave = threading.Event()
        self._waiting: set[object] = set()
        self._later: threading.Thread | None = None

    def close(self) -> None:
        """Let go of the index; whoever reads for it stops."""
        self._leave.set()
        with self._mutex:
            self._forget_connection()
            if self._own_folder is not None:
                self._own_folder.cleanup()

    @contextmanager
    def opened(self) -> Generator[sqlite3.Connection]:
        """Yield a connection to the index as it was refreshed last, for this thread alone.

        Raises:
            IndexUnavailable: There is no place to keep an index.
        """
        with self._wanted():
            try:
                db = self._connect()
                if db is not self._complete:
                    # Somebody has removed the index since it was brought up to date.
                    self.refresh()
                    db = self._connect()
                yield db
            except sqlite3.DatabaseError as error:
                # ChangedRollout damaged while it was read: the next refresh makes it anew.
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
        """Bring the index up to date, the newest files first; return how many are left unread.

        Args:
            progress: Told after each batch.
            enough: Asked after each batch whether to stop there.
            texts: Whether to read the words of prompts and answers as well.
            patience: Up to so many files are read without asking *enough*.

        Raises:
            IndexUnavailable: There is no place to keep an index.
        """
        with self._wanted():
            self._return()
            for _ in range(3):
                try:
                    return self._refresh(progress or _tell_nobody, enough, texts, patience)
                except sqlite3.DatabaseError as error:
                    if not self._recover(error):
                        raise IndexUnavailable(str(error)) from error
                except (OSError, _LockHeld) as error:
                    if not self._retreat(str(error)):
                        raise IndexUnavailable(str(error)) from error
            raise IndexUnavailable("it was damaged again while it was rebuilt")

    def finish_later(self) -> None:
        """Read on in the background where a refresh had enough; gives way to any other use."""
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
                    left = self._refresh(_tell_nobody, self._is_wanted)
            except (CodexError, sqlite3.Error, OSError):
                return  # Who asks next meets the same, and is told.

    def _is_wanted(self, db: sqlite3.Connection, next_mtime_ns: int) -> bool:
        return bool(self._waiting)

    @contextmanager
    def _wanted(self) -> Generator[None]:
        """Hold the index for this thread; the background gives way after its batch."""
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
        untold = texts and (stale or has_untold(db))
        if not (stale or stale_names or stale_prices or untold):
            self._keep_seen(db)
            self._complete = db
            return 0
        with self._locked(db, progress):
            if stale and data_version(db) != self._seen_at:
                changes = self._changes(db)  # Another process may just have done it.
            if stale_prices or stale_names:
                with transaction(db):
                    if stale_prices:
                        price_anew(db, self.prices, BATCH_FILES)
                        put_meta(db, "prices", self.prices.fingerprint)
                        put_meta(db, "prices_version", self.prices.version)
                    read_names(db, self._names)
                    put_meta(db, "names", names)
            patient = enough is None or len(changes.found) <= patience
            with uncollected():
                left = self._read_changes(db, changes, progress, None if patient else enough)
            if untold:
                self._read_texts(db, progress)
            self._complete = db
            return left

    def _connect(self) -> sqlite3.Connection:
        self._check_leave()  # Who waited for the mutex while it was closed opens none anew.
        path = self._path()
        if self._db is not None and self._inode == inode_of(path):
            return self._db
        self._forget_connection()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = self._open(path)
        except (OSError, sqlite3.OperationalError, _LockHeld) as error:
            if not self._retreat(str(error)):
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
            os.utime(path)
        except BaseException:
            db.close()
            raise
        return db

    def _make_tables(self, db: sqlite3.Connection, path: Path) -> None:
        with self._locked(db, _tell_nobody):
            version = schema_of(db)
            if version == SCHEMA:
                return  # Another process was faster.
            if version != 0:
                raise sqlite3.DatabaseError(f"{path.name} has schema {version}, not {SCHEMA}")
            db.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT")

    def _recover(self, error: sqlite3.DatabaseError) -> bool:
        """Make the index usable again after *error*; return whether it is."""
        if isinstance(error, sqlite3.OperationalError) and "no such" not in str(error):
            # The disk is full, or may not be written: the index is no worse for that.
            return self._retreat(str(error))
        self._forget_connection()
        try:
            with self._flock() as fd, suppress(BlockingIOError):  # Another does it already.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for ending in ("", "-wal", "-shm"):
                    Path(f"{self._path()}{ending}").unlink(missing_ok=True)
        except OSError as problem:
            return self._retreat(str(problem))
        return True

    def _retreat(self, problem: str) -> bool:
        """Keep the index in a folder of this process from now on, if it is not there already."""
        self._forget_connection()
        if self._own_folder is not None:
            return False
        from tempfile import TemporaryDirectory

        try:
            self._own_folder = TemporaryDirectory(prefix="mcp-server-codex-")
        except OSError:
            return False
        self.notes.append(
            f"The index cannot be kept in {self._folder} ({problem}); it lasts as long as this"
            " process."
        )
        self._folder = Path(self._own_folder.name)
        return True

    def _return(self) -> None:
        """Use the shared folder again if another process held its lock and no longer does."""
        own = self._own_folder
        if own is None or not self._lock_was_held:
            return
        try:
            with self._flock(self._shared_folder) as fd:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        self._forget_connection()
        self._folder, self._own_folder, self._lock_was_held = self._shared_folder, None, False
        self.notes.clear()
        own.cleanup()

    def _remove_unused(self) -> None:
        """Remove indexes of this home that another version made and has not opened for long."""
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
        path = (folder or self._folder) / f"{self._key}-{SCHEMA}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _locked(self, db: sqlite3.Connection, progress: Progress) -> Generator[None]:
        """Be the one process that changes the index; wait while another one commits to it.

        Raises:
            _LockHeld: The other process has committed nothing for too long.
        """
        with self._flock() as fd:
            seen, since = data_version(db), time.monotonic()
            stopped_at: float | None = None
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
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
                        raise _LockHeld(
                            "another process has locked it and does not go on"
                        ) from None
                    progress(0, 0)
                    time.sleep(0.02)
            yield

    def _changes(self, db: sqlite3.Connection) -> RolloutChanges:
        """Compare disk and index; folders that stand as at the last look are not compared."""
        version = data_version(db)
        if version != self._seen_at:
            self._seen = orjson.loads(get_meta(db, "folders") or "{}")
            self._seen_at = version
        changes = RolloutChanges()
        folders: set[str] = set()
        for folder, entries in scan(self.home):
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
        """Let the next process know what was compared, unless another has changed the index."""
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
        contexts = ContextNumbers(db)
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
        def tell(done: int, total: int) -> None:
            self._check_leave()
            progress(done, total)

        read_new_texts(db, self.home, BATCH_FILES, tell)

    def _check_leave(self) -> None:
        if self._leave.is_set():
            raise IndexUnavailable("this process is ending")


def _tell_nobody(done: int, total: int) -> None:
    """Do nothing."""
