"""Define the tables of the index and the basic operations on them.

`file` has a row for each rollout in its last known state, and `detail` its requests and turns one
by one. `thread` has a row for each thread, made of all its rollouts, with the lowest id of them;
`bucket` has the sums of its requests by quarter of an hour, model, folder and service
tier.
"""

from __future__ import annotations

import errno
import functools
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path
from typing import Any

import orjson

from codex_tools.codex.json_object import Json
from codex_tools.codex.paths import in_roots
from codex_tools.pricing.price import Price
from codex_tools.pricing.prices import Prices
from codex_tools.rollouts.token_counter import each_request

SCHEMA = 4
"""Version of the tables. Raise it with any change of the tables or of the data that the readers
produce: all rollouts are then read again."""

BUSY_S = 30.0
"""Seconds that a connection waits for the transaction of another one."""

STATEMENT_S = 60.0
"""Seconds that a statement may compute, including the reading of its rows by this server."""

_STEPS = 1_000_000
"""Steps of SQLite's virtual machine between two looks at the clock: a few ms."""

PAGE_BYTES = 8192
"""Page size of a new index in bytes: half as many pages as by default, each written by two
calls."""

QUARTER_MS = 15 * 60 * 1000
"""Milliseconds of a quarter of an hour, by which usage is summed: no time zone of today has a finer
offset."""

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE context (id INTEGER PRIMARY KEY, model TEXT, cwd TEXT, tier TEXT);
CREATE TABLE file (
    id INTEGER PRIMARY KEY, thread_id TEXT NOT NULL, folder TEXT NOT NULL, name TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, problem TEXT,
    state TEXT NOT NULL, seal INTEGER NOT NULL,
    text_offset INTEGER NOT NULL, text_size INTEGER NOT NULL, own_offset INTEGER NOT NULL,
    bad_lines INTEGER NOT NULL, limits_ms INTEGER, limits TEXT,
    other_limits TEXT,
    UNIQUE (folder, name)
);
CREATE INDEX file_thread ON file (thread_id);
CREATE INDEX file_faulty ON file (id) WHERE problem IS NOT NULL OR bad_lines > 0;
CREATE INDEX file_untold ON file (id) WHERE text_size < size;
CREATE INDEX file_limits ON file (limits_ms) WHERE limits_ms IS NOT NULL;
CREATE INDEX file_other_limits ON file (other_limits) WHERE other_limits IS NOT NULL;
CREATE TABLE detail (file INTEGER PRIMARY KEY, requests TEXT NOT NULL, marks TEXT NOT NULL);
CREATE TABLE thread (
    id INTEGER PRIMARY KEY, thread_id TEXT NOT NULL UNIQUE, files INTEGER NOT NULL,
    copies INTEGER NOT NULL, folder TEXT NOT NULL, name TEXT NOT NULL, packed INTEGER NOT NULL,
    archived INTEGER NOT NULL, active_ms INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    requests INTEGER NOT NULL, input INTEGER NOT NULL, cached INTEGER NOT NULL,
    output INTEGER NOT NULL, reasoning INTEGER NOT NULL, cost REAL NOT NULL,
    unpriced INTEGER NOT NULL,
    created_ms INTEGER, cwd TEXT, git_branch TEXT, source TEXT, is_subagent INTEGER NOT NULL,
    model TEXT, cli_version TEXT, parent_id TEXT, forked_id TEXT, agent TEXT, title TEXT,
    turns INTEGER NOT NULL, ending TEXT NOT NULL, is_paginated INTEGER NOT NULL,
    is_damaged INTEGER NOT NULL
);
CREATE INDEX thread_active ON thread (active_ms DESC, thread_id);
CREATE INDEX thread_used ON thread (id) WHERE requests > 0;
CREATE INDEX thread_copies ON thread (copies) WHERE copies > 0;
CREATE TABLE bucket (
    quarter INTEGER NOT NULL, thread INTEGER NOT NULL, context INTEGER NOT NULL,
    requests INTEGER NOT NULL, input INTEGER NOT NULL, cached INTEGER NOT NULL,
    output INTEGER NOT NULL, reasoning INTEGER NOT NULL, cost REAL NOT NULL,
    unpriced INTEGER NOT NULL, PRIMARY KEY (quarter, thread, context)
) WITHOUT ROWID;
CREATE TABLE name (
    thread_id TEXT PRIMARY KEY, name TEXT NOT NULL, folded TEXT NOT NULL
) WITHOUT ROWID;
CREATE VIRTUAL TABLE text USING fts5 (words, tokenize = 'unicode61 remove_diacritics 2');
"""

_FILE_COLUMNS = (
    *("id", "thread_id", "folder", "name", "size", "mtime_ns", "problem", "state", "seal"),
    *("text_offset", "text_size", "own_offset", "bad_lines", "limits_ms", "limits", "other_limits"),
)
THREAD_FACTS = (
    *("created_ms", "cwd", "git_branch", "source", "is_subagent", "model", "cli_version"),
    *("parent_id", "forked_id", "agent", "title", "turns", "ending", "is_paginated", "is_damaged"),
)
"""The columns of `thread` that have the names of a reader's facts."""
_THREAD_COLUMNS = (
    *("id", "thread_id", "files", "copies", "folder", "name", "packed", "archived", "active_ms"),
    *("mtime_ns", "requests", "input", "cached", "output", "reasoning", "cost", "unpriced"),
    *THREAD_FACTS,
)
_NULLABLE = frozenset(
    (
        *("problem", "created_ms", "cwd", "git_branch", "source", "model", "cli_version"),
        *("parent_id", "forked_id", "agent", "title", "limits_ms", "limits", "other_limits"),
    )
)


def _put(table: str, columns: Sequence[str]) -> str:
    values = {"ending": "ifnull(nullif(?, 0), '')"} | dict.fromkeys(_NULLABLE, "nullif(?, 0)")
    given = ", ".join(values.get(column, "?") for column in columns)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({given})"


PUT_FILE = _put("file", _FILE_COLUMNS)
"""Takes only numbers and text; 0 means none. For a value of any other type, even None and bool,
sqlite3 searches for an adapter, which takes longer than storing the value."""
PUT_THREAD = _put("thread", _THREAD_COLUMNS)
"""Takes only numbers and text, as PUT_FILE."""
PUT_BUCKET = """
INSERT INTO bucket VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
    input = input + excluded.input, cached = cached + excluded.cached,
    output = output + excluded.output, reasoning = reasoning + excluded.reasoning,
    cost = cost + excluded.cost, unpriced = unpriced + excluded.unpriced
"""

_FOLDERS = """
WITH RECURSIVE leap (folder) AS (
    SELECT min(folder) FROM file
    UNION ALL
    SELECT (SELECT min(folder) FROM file WHERE folder > leap.folder) FROM leap
    WHERE leap.folder IS NOT NULL
)
SELECT folder FROM leap WHERE folder IS NOT NULL
"""
COMPOSED = """
WITH wanted (id) AS (SELECT value FROM json_each(CAST(? AS TEXT)))
SELECT thread_id FROM file WHERE thread_id IN (SELECT id FROM wanted)
GROUP BY thread_id HAVING count(*) > 1
"""
"""Selects those of the given threads that have several files."""


def text_rows(file: int) -> tuple[int, int]:
    """Return the first and the last row id for the text of a file."""
    return file << 20, (file + 1 << 20) - 1


def buckets_of(
    thread: int,
    requests: Iterable[int],
    prices: Prices,
    models: Mapping[int, tuple[str | None, str | None]],
) -> list[list[Any]]:
    """Return a thread's rows of `bucket`; *models* are the models and tiers of its contexts."""
    rows: dict[tuple[int, int], list[Any]] = {}
    price_of = prices.of
    row: list[Any] = []
    start, last = inf, -1
    price: Price | None = None
    for ms, context, input_, cached, write, output, reasoning, _ in each_request(requests):
        if context != last or not 0 <= ms - start < QUARTER_MS:
            # Prices change only at midnight, so never within a row.
            quarter, last = ms // QUARTER_MS, context
            start = quarter * QUARTER_MS
            model, tier = models[context]
            price = price_of(model, ms, tier)
            fresh = [quarter, thread, context, 0, 0, 0, 0, 0, 0.0, 0]
            row = rows.setdefault((quarter, context), fresh)
        row[3] += 1
        row[4] += input_
        row[5] += cached
        row[6] += output
        row[7] += reasoning
        cost = None if price is None else price.cost(input_, cached, write, output)
        if cost is None:
            row[9] += 1
        else:
            row[8] += cost
    return list(rows.values())


def totals_of(buckets: list[list[Any]]) -> list[Any]:
    """Return the requests, tokens, cost and unpriced requests of all *buckets*."""
    if len(buckets) == 1:
        return buckets[0][3:]
    return [sum(column) for column in zip(*buckets, strict=True)][3:] or [0, 0, 0, 0, 0, 0.0, 0]


def drop_buckets(db: sqlite3.Connection, thread: int, files: Iterable[int]) -> None:
    """Delete a thread's rows of `bucket`; *files* are those that it was made of."""
    keys: set[tuple[int, int, int]] = set()
    for file in files:
        row = db.execute("SELECT requests FROM detail WHERE file = ?", (file,)).fetchone()
        if row is not None:
            keys |= {(r[0] // QUARTER_MS, thread, r[1]) for r in each_request(orjson.loads(row[0]))}
    db.executemany("DELETE FROM bucket WHERE quarter = ? AND thread = ? AND context = ?", keys)


@contextmanager
def transaction(db: sqlite3.Connection) -> Generator[None]:
    """Run the block in a transaction: commit at its end, roll back on an error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def get_meta(db: sqlite3.Connection, key: str) -> str | None:
    """Return the value of *key*, or None."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row is not None else None


def put_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    """Store *value* under *key*."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def data_version(db: sqlite3.Connection) -> int:
    """Return a number that changes when another connection changes the index."""
    return db.execute("PRAGMA data_version").fetchone()[0]


def folders_of(db: sqlite3.Connection) -> set[str]:
    """Return the folders of all files, with one step in the table's index for each folder."""
    return {folder for (folder,) in db.execute(_FOLDERS)}


def has_new_texts(db: sqlite3.Connection) -> bool:
    """Return True if there are prompts or answers that are not yet searchable."""
    found = db.execute("SELECT 1 FROM file WHERE text_size < size AND problem IS NULL LIMIT 1")
    return found.fetchone() is not None


def schema_of(db: sqlite3.Connection) -> int:
    """Return the schema's version; 0 for a database without tables."""
    return db.execute("PRAGMA user_version").fetchone()[0]


def open_database(path: Path) -> sqlite3.Connection:
    """Open the index, or create an empty file, readable by this user only.

    Raises:
        OSError: The file cannot be opened.
        sqlite3.Error: The file is not a database, or is not writable.
    """
    _check_file(path)
    db = sqlite3.connect(
        path,
        timeout=BUSY_S,
        check_same_thread=False,
        isolation_level=None,
        factory=IndexConnection,
    )
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        _use_wal(db)
        for pragma in ("synchronous = NORMAL", "temp_store = MEMORY"):
            db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


def _check_file(path: Path) -> None:
    """Check that *path* and the files beside it can be given to SQLite, which follows links.

    Raises:
        OSError: One of them is not a regular file of this user.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for ending in ("", "-wal", "-shm", "-journal"):
        name = f"{path}{ending}"
        try:
            fd = os.open(name, flags if ending else flags | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue
        try:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", name)
            if state.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "it belongs to another user", name)
        finally:
            os.close(fd)


class IndexConnection(sqlite3.Connection):
    """A connection whose statements end after STATEMENT_S, or when `stop` is set."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._began = time.monotonic()
        self.stop = threading.Event()
        self.set_progress_handler(self._is_over, _STEPS)

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """Execute a statement; its time begins now."""
        self._began = time.monotonic()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        """Execute a statement for each row; its time begins now."""
        self._began = time.monotonic()
        return super().executemany(*arguments)

    def _is_over(self) -> bool:
        return self.stop.is_set() or time.monotonic() - self._began > STATEMENT_S


def has_our_tables(db: sqlite3.Connection) -> bool:
    """Return True if the index has exactly the tables that this server makes.

    A view or a trigger in it would run with our statements, and may never end.
    """
    return _objects_of(db) == _our_objects()


@functools.cache
def _our_objects() -> set[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(TABLES)
        return _objects_of(db)


def _objects_of(db: sqlite3.Connection) -> set[tuple[str, ...]]:
    """Return kind, name, table and text of all objects, without the texts of FTS5's own tables."""
    return {
        (kind, name, table, "" if name.startswith("text_") else sql or "")
        for kind, name, table, sql in db.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_schema"
        )
    }


def _use_wal(db: sqlite3.Connection) -> None:
    """Switch a new file to WAL; retry, because SQLite does not wait for another process here."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def judge_roots(db: sqlite3.Connection, roots: Sequence[Path]) -> None:
    """Give *db* the function `in_roots` of SQL, which lists and reports call.

    It looks at each folder only once: a home may have 100,000 threads in few folders.
    """
    if roots:

        @functools.cache
        def judge(cwd: str | None) -> bool:
            return in_roots(cwd, roots)

        db.create_function("in_roots", 1, judge, deterministic=True)


def tokens(input_: int, cached: int, output: int, reasoning: int) -> Json:
    """Return counts of tokens as the fields of a usage object."""
    return {
        "input_tokens": input_,
        "cached_input_tokens": cached,
        "output_tokens": output,
        "reasoning_output_tokens": reasoning,
        "total_tokens": input_ + output,
    }
