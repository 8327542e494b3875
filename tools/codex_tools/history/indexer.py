"""Read new, changed and grown rollouts and commit them to the index in batches."""

from __future__ import annotations

import gc
import os
import sqlite3
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import orjson

from codex_tools.codex.copy_paths import project_folder
from codex_tools.codex.foreign_file import open_foreign
from codex_tools.history.scan import ChangedRollout, RolloutChanges
from codex_tools.history.tables import (
    COMPOSED,
    PUT_BUCKET,
    PUT_FILE,
    PUT_THREAD,
    THREAD_FACTS,
    buckets_of,
    drop_buckets,
    text_rows,
    totals_of,
    transaction,
)
from codex_tools.pricing.prices import Prices
from codex_tools.rollouts.files import ARCHIVE, BLOCK, PACKED, ids_of, unpacked
from codex_tools.rollouts.line import Counts
from codex_tools.rollouts.segments import Rollout, join
from codex_tools.rollouts.thread_reader import FACTS, ThreadReader
from codex_tools.rollouts.token_counter import Contexts
from codex_tools.rollouts.turn_tracker import Mark

_thread_facts_of = attrgetter(*THREAD_FACTS)
_CWD = THREAD_FACTS.index("cwd")

_SEAL_BYTES = 256
"""Bytes of a file's start, and before an offset, that identify its content up to there."""


class ContextNumbers:
    """Number the contexts (a model in a folder and a service tier) as the index does."""

    def __init__(self, db: sqlite3.Connection, state_dir: Path | None = None) -> None:
        self._state_dir = state_dir
        rows = db.execute("SELECT model, cwd, tier, id FROM context").fetchall()
        self._numbers = {(model, cwd, tier): id_ for model, cwd, tier, id_ in rows}
        self.models = {id_: (model, tier) for model, _, tier, id_ in rows}
        """The model and the service tier of each context."""
        self.new: list[tuple[int, str | None, str | None, str | None]] = []

    def number(self, model: str | None, cwd: str | None, tier: str | None) -> int:
        """Return the number of a context; assign a new number if it has none."""
        found = self._numbers.get((model, cwd, tier))
        if found is None:
            cwd = self.folder_of(cwd)
            found = self._numbers.get((model, cwd, tier))
        if found is None:
            found = self._numbers[model, cwd, tier] = len(self.models) + 1
            self.models[found] = model, tier
            self.new.append((found, model, cwd, tier))
        return found

    def folder_of(self, cwd: str | None) -> str | None:
        """Return the folder that the index has for *cwd*: that of the project, if it is a copy."""
        return project_folder(self._state_dir, cwd)


class IndexBatch:
    """Files that are read one by one and committed to the index in one transaction."""

    def __init__(
        self,
        db: sqlite3.Connection,
        root: str,
        prices: Prices,
        contexts: ContextNumbers,
        changes: RolloutChanges,
    ) -> None:
        self._db, self._root, self._prices, self._contexts = db, root, prices, contexts
        self._changes = changes
        self._next = db.execute("SELECT ifnull(max(id), 0) + 1 FROM file").fetchone()[0]
        self.files: list[tuple[Any, ...]] = []
        self._details: list[tuple[int, str, str]] = []
        self._gone: list[int] = []
        self._grown: list[tuple[int]] = []
        self._alone: dict[str, tuple[tuple[Any, ...], list[list[Any]]]] = {}
        """By thread, its row and new buckets if the first file read of it is its only one."""
        self._several: set[str] = set()
        """Threads that have several files, or had before a file was removed."""

    def read(self, found: ChangedRollout) -> None:
        """Read a file, or only the part added since the index read it."""
        # A string, because making a Path costs as much as opening the file.
        path = f"{self._root}/{found.folder}/{found.name}"
        former = self._former(found)
        try:
            if former is not None and (grown := self._read_on(path, found, former)):
                return self._take(found, *grown)
            reader, seal = read_thread(path, found.size, self._contexts, self._counts_of)
            problem = None if reader.is_readable else "the file is not a rollout"
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                # The file was moved or removed since the scan; the next refresh handles that.
                return
            reader, seal = ThreadReader(ids_of(found.name)[0], self._contexts), 0
            problem = error.strerror or str(error)
        if found.file is not None:
            self._gone.append(found.file)
        self._take(found, self._number(), reader, seal, (), (0, 0), problem)

    def commit(self, gone: Iterable[int]) -> None:
        """Write all files read into the index, and remove the files in *gone*."""
        db = self._db
        with transaction(db):
            db.execute("DELETE FROM meta WHERE key = 'folders'")
            for id_ in (*self._gone, *gone):
                self._remove(id_)
            db.executemany("INSERT INTO context VALUES (?, ?, ?, ?)", self._contexts.new)
            # Cheaper than INSERT OR REPLACE, which looks for a former row of each file.
            db.executemany("DELETE FROM file WHERE id = ?", self._grown)
            db.executemany("DELETE FROM detail WHERE file = ?", self._grown)
            db.executemany(PUT_FILE, self.files)
            db.executemany("INSERT INTO detail VALUES (?, ?, ?)", self._details)
            wanted = orjson.dumps([*self._alone])
            self._several.update(id_ for (id_,) in db.execute(COMPOSED, (wanted,)).fetchall())
            alone = [each for id_, each in self._alone.items() if id_ not in self._several]
            grown = {id_ for (id_,) in self._grown}
            again = [(row[0],) for row, _ in alone if row[0] in grown]
            db.executemany("DELETE FROM thread WHERE id = ?", again)
            db.executemany(PUT_THREAD, [row for row, _ in alone])
            db.executemany(PUT_BUCKET, sorted(row for _, rows in alone for row in rows))
            for thread_id in self._several:
                self._compose(thread_id)
        self._contexts.new.clear()

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _former(self, found: ChangedRollout) -> tuple[Any, ...] | None:
        if found.file is None or found.name.endswith(PACKED):
            return None
        row = self._db.execute(
            "SELECT size, seal, text_offset, text_size, state, limits_ms, limits, other_limits"
            " FROM file WHERE id = ? AND problem IS NULL",
            (found.file,),
        ).fetchone()
        return row if row is not None and row[0] < found.size else None

    def _read_on(
        self, path: str, found: ChangedRollout, former: tuple[Any, ...]
    ) -> tuple[int, ThreadReader, int, list[int], tuple[int, int], None] | None:
        """Read the part added to a file; return None if the earlier part has changed."""
        _, seal, text_offset, text_size, state, limits_ms, limits, other_limits = former
        assert found.file is not None
        requests, marks = self._detail(found.file)
        reader = ThreadReader(ids_of(found.name)[0], self._contexts)
        reader.restore(state, requests, marks, (limits_ms, limits, other_limits))
        if not reader.in_own_part:
            return None
        with _opened(path) as fd:
            if _seal(fd, reader.offset) != seal:
                return None
            _feed(reader, fd, reader.offset, found.size)
            reader.finish()
            seal = _seal(fd, reader.offset)
        self._grown.append((found.file,))
        return found.file, reader, seal, requests, (text_offset, text_size), None

    def _detail(self, file: int) -> tuple[list[int], list[Mark]]:
        return read_detail(self._db, file)

    def _counts_of(self, thread_id: str) -> list[tuple[Counts, Counts]] | None:
        """Return the readings of a fork's parent; of several files, those of the longest."""
        places = self._db.execute("SELECT folder, name FROM file WHERE thread_id = ?", (thread_id,))
        paths = {f"{self._root}/{folder}/{name}" for folder, name in places}
        for new in self._changes.found_of(thread_id):
            paths.add(f"{self._root}/{new.folder}/{new.name}")
        found: list[list[tuple[Counts, Counts]]] = []
        for path in paths:
            reader = ThreadReader(thread_id, self._contexts)
            reader.keep_counts()
            try:
                feed_file(reader, path)
            except OSError:
                continue
            found.append(reader.counts or [])
        return max(found, key=len, default=None)

    def _take(
        self,
        found: ChangedRollout,
        id_: int,
        reader: ThreadReader,
        seal: int,
        earlier: Sequence[int],
        searchable: tuple[int, int],
        problem: str | None,
    ) -> None:
        requests = [*earlier, *reader.requests] if earlier else reader.requests
        marks = orjson.dumps([mark.row() for mark in reader.marks]).decode()
        self._details.append((id_, orjson.dumps(requests).decode(), marks))
        thread_id = reader.thread_id
        self.files.append(
            (
                id_, thread_id, found.folder, found.name, found.size, found.mtime_ns,
                problem or 0, reader.state(), seal, *searchable, reader.own_offset,
                reader.bad_lines, *(value or 0 for value in reader.all_limits),
            )
        )  # fmt: skip
        if problem is not None:
            return
        if thread_id in self._alone:
            return
        new = buckets_of(id_, reader.requests, self._prices, self._contexts.models)
        buckets = new
        if earlier:
            buckets = buckets_of(id_, requests, self._prices, self._contexts.models)
        row = (
            id_, thread_id, 1, 0, found.folder, found.name, int(found.name.endswith(PACKED)),
            int(found.folder.startswith(ARCHIVE)),
            reader.active_ms or found.mtime_ns // 1_000_000, found.mtime_ns, *totals_of(buckets),
            *self._facts(_thread_facts_of(reader)),
        )  # fmt: skip
        self._alone[thread_id] = row, new

    def _facts(self, facts: tuple[Any, ...]) -> Iterable[Any]:
        """Return the values of a thread's row for *facts*, which are in the order THREAD_FACTS."""
        cwd = self._contexts.folder_of(facts[_CWD])
        return _plain((*facts[:_CWD], cwd, *facts[_CWD + 1 :]))

    def _remove(self, id_: int) -> None:
        db = self._db
        row = db.execute("SELECT thread_id FROM file WHERE id = ?", (id_,)).fetchone()
        if row is not None:
            self._drop_thread(row[0])
            self._several.add(row[0])
            db.execute("DELETE FROM file WHERE id = ?", (id_,))
            db.execute("DELETE FROM detail WHERE file = ?", (id_,))
            db.execute("DELETE FROM text WHERE rowid BETWEEN ? AND ?", text_rows(id_))

    def _drop_thread(self, thread_id: str) -> None:
        db = self._db
        row = db.execute("SELECT id FROM thread WHERE thread_id = ?", (thread_id,)).fetchone()
        if row is not None:
            files = db.execute("SELECT id FROM file WHERE thread_id = ?", (thread_id,)).fetchall()
            drop_buckets(db, row[0], [file for (file,) in files])
            db.execute("DELETE FROM thread WHERE id = ?", row)

    def _compose(self, thread_id: str) -> None:
        """Replace the thread's row and buckets by those of all its files."""
        db = self._db
        self._drop_thread(thread_id)
        rollouts = read_rollouts(db, thread_id)
        if not rollouts:
            return
        thread = join(rollouts)
        id_ = min(rollout.number for rollout in rollouts)
        newest, facts = thread.newest, thread.facts
        buckets = buckets_of(id_, thread.requests, self._prices, self._contexts.models)
        mtime_ns = max(rollout.mtime_ns for rollout in rollouts)
        row = (
            id_, thread_id, len(rollouts), thread.copies, newest.folder, newest.name,
            int(newest.name.endswith(PACKED)), int(newest.is_archived),
            facts["active_ms"] or mtime_ns // 1_000_000, mtime_ns, *totals_of(buckets),
            *self._facts(tuple(facts[name] for name in THREAD_FACTS)),
        )  # fmt: skip
        db.execute(PUT_THREAD, row)
        db.executemany(PUT_BUCKET, buckets)


def _plain(facts: Iterable[object]) -> list[object]:
    """Return *facts* as PUT_THREAD takes them."""
    return [1 if fact is True else fact or 0 for fact in facts]


def read_rollouts(db: sqlite3.Connection, thread_id: str) -> list[Rollout]:
    """Return the rollouts of a thread that the index could read."""
    rows = db.execute(
        "SELECT id, folder, name, mtime_ns, state FROM file"
        " WHERE thread_id = ? AND problem IS NULL",
        (thread_id,),
    ).fetchall()
    found: list[Rollout] = []
    for id_, folder, name, mtime_ns, state in rows:
        requests, marks = read_detail(db, id_)
        facts = dict(zip(FACTS, orjson.loads(state), strict=False))
        found.append(Rollout(id_, folder, name, mtime_ns, facts, marks, requests))
    return found


def requests_of(db: sqlite3.Connection, id_: int, thread_id: str, files: int) -> Sequence[int]:
    """Return the requests of a thread: its row's id, its own id and its number of files."""
    if files == 1:
        return read_detail(db, id_)[0]
    return join(read_rollouts(db, thread_id)).requests


def read_detail(db: sqlite3.Connection, file: int) -> tuple[list[int], list[Mark]]:
    """Return the requests and the turns of a file."""
    row = db.execute("SELECT requests, marks FROM detail WHERE file = ?", (file,)).fetchone()
    requests, marks = ("[]", "[]") if row is None else row
    return orjson.loads(requests), [Mark(*mark) for mark in orjson.loads(marks)]


def read_thread(
    path: str | Path,
    size: int,
    contexts: Contexts,
    counts_of: Callable[[str], Sequence[tuple[Counts, Counts]] | None],
) -> tuple[ThreadReader, int]:
    """Read a rollout up to *size* bytes; return its reader and its seal.

    Raises:
        OSError: The file cannot be read, or its compression is damaged.
    """
    path = str(path)
    reader = ThreadReader(ids_of(path)[0], contexts)
    seal = 0
    is_packed = path.endswith(PACKED)
    block = b""
    with _opened(path) as fd:
        if is_packed:
            _unpack(reader, fd)
        else:
            block = _feed(reader, fd, 0, size)
        parent = reader.needs_parent
        reader.finish(counts_of(parent) if parent is not None else None)
        if not is_packed:
            offset = reader.offset
            seal = _seal(fd, offset) if offset > len(block) else _seal_in(block, offset)
    return reader, seal


def feed_file(reader: ThreadReader, path: str) -> None:
    """Feed a whole rollout to *reader* and finish it.

    Raises:
        OSError: The file cannot be read, or its compression is damaged.
    """
    with _opened(path) as fd:
        if path.endswith(PACKED):
            _unpack(reader, fd)
        else:
            while block := os.read(fd, BLOCK):
                reader.feed(block)
    reader.finish()


def reprice(db: sqlite3.Connection, prices: Prices, count: int) -> None:
    """Price all requests in the index again, *count* files at a time."""
    models = ContextNumbers(db).models
    db.execute("DELETE FROM bucket")
    rows = db.execute("SELECT id, thread_id, files FROM thread")
    while some := rows.fetchmany(count):
        new: list[list[Any]] = []
        costs: list[tuple[float, int, int]] = []
        for id_, thread_id, files in some:
            requests = requests_of(db, id_, thread_id, files)
            buckets = buckets_of(id_, requests, prices, models)
            *_, cost, unpriced = totals_of(buckets)
            costs.append((cost, unpriced, id_))
            new += buckets
        db.executemany("UPDATE thread SET cost = ?, unpriced = ? WHERE id = ?", costs)
        db.executemany(PUT_BUCKET, sorted(new))


@contextmanager
def uncollected() -> Generator[None]:
    """Pause the garbage collector: reading makes many objects, but no reference cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _opened:
    """Open a file for reading and close it; a generator would double the cost."""

    __slots__ = ("_fd",)

    def __init__(self, path: str) -> None:
        self._fd = open_foreign(path)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _unpack(reader: ThreadReader, fd: int) -> None:
    with open(fd, "rb", buffering=0, closefd=False) as file:
        for block in unpacked(file):
            reader.feed(block)


def _feed(reader: ThreadReader, fd: int, start: int, end: int) -> bytes:
    """Feed a part of a file to *reader*; return it if it was a single block, else b""."""
    if start:
        os.lseek(fd, start, os.SEEK_SET)
    left = end - start
    only = b""
    while left > 0 and (block := os.read(fd, min(BLOCK, left))):
        reader.feed(block)
        only = block if left == end - start else b""
        left -= len(block)
    return only


def _seal(fd: int, offset: int) -> int:
    """Return a checksum of a file's start and of the bytes before *offset*."""
    length = min(_SEAL_BYTES, offset)
    return zlib.crc32(os.pread(fd, length, 0) + os.pread(fd, length, offset - length))


def _seal_in(start: bytes, offset: int) -> int:
    """Return the same checksum as `_seal`, from the file's first bytes."""
    length = min(_SEAL_BYTES, offset)
    return zlib.crc32(start[:length] + start[offset - length : offset])
