"""List threads from the index: filtered, searched, page by page."""

from __future__ import annotations

import os
import re
import sqlite3
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codex_tools.codex.json_object import Json
from codex_tools.codex.paths import folder_names, in_roots
from codex_tools.codex.program import Program
from codex_tools.history.index import Progress, ThreadIndex
from codex_tools.history.indexer import read_rollouts
from codex_tools.history.scan import place_of
from codex_tools.history.search_text import fold
from codex_tools.history.tables import judge_roots, tokens
from codex_tools.history.times import iso
from codex_tools.history.writer_locks import WriterLocks
from codex_tools.rollouts.segments import join
from codex_tools.rollouts.turn_reader import Segment

COLD_FILES = 500
"""Number of unread files above which a first page does not wait for all of them."""

FRESH_S = 120.0
"""Seconds since the last write in which a turn without an end counts as running, if no writer lock
shows its state."""

_CURSOR = re.compile(r"(\d{1,16})\.([0-9a-zA-Z-]{1,64})")
_WORD = re.compile(r'"([^"]+)"|([^\s"]+)')
_LATE_MS = 2000
"""Milliseconds by which the time in a thread's last line may exceed its file's modification
time."""

_COLUMNS = (
    "t.thread_id, t.folder, t.name, t.title, t.cwd, t.git_branch, t.source, t.model,"
    " t.cli_version, t.created_ms, t.active_ms, t.turns, t.ending, t.input, t.cached, t.output,"
    " t.reasoning, t.cost, t.unpriced, t.parent_id, t.forked_id, t.archived, t.is_paginated,"
    " t.is_damaged, t.mtime_ns, t.packed, t.agent,"
    " (SELECT n.name FROM name n WHERE n.thread_id = t.thread_id)"
)


@dataclass(frozen=True, slots=True)
class ThreadQuery:
    """The filters of a list of threads; None sets no limit."""

    words: str | None = None
    cwd: tuple[str, ...] = ()
    """Names of one folder; threads of this folder and all folders below are listed."""
    exact_cwd: tuple[str, ...] = ()
    """Names of one folder; threads of folders below are not listed."""
    since_ms: int | None = None
    until_ms: int | None = None
    model: str | None = None
    source: str | None = None
    include_archived: bool = False
    include_subagents: bool = False
    limit: int = 20
    cursor: str | None = None
    roots: tuple[Path, ...] = ()
    """Only threads whose last turn ran inside one of these, links resolved; empty for all."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of threads and the cursors of the following pages."""

    threads: list[Json]
    cursors: list[str]
    """For each thread, the cursor of a page that starts after this thread."""
    has_more: bool
    total: int | None
    """Number of all threads that match; None while older rollouts are unread."""

    @property
    def next_cursor(self) -> str | None:
        """The cursor of the next page, or None."""
        return self.cursors[-1] if self.has_more and self.cursors else None


class ThreadList:
    """Reads pages of threads from the index."""

    def __init__(self, history: ThreadIndex, state_dir: Path, program: Program | None) -> None:
        """*program* is the Codex that would resume the threads, if known."""
        self._history = history
        self._program = program
        self._writers = WriterLocks(history.home, state_dir)

    def page(self, query: ThreadQuery, left: int = 0) -> Page:
        """Return a page of threads, newest activity first.

        A cursor names the last thread of its page. So a thread that is added, removed or moved to
        the front between two pages neither repeats nor hides other threads.

        Args:
            query: The filters.
            left: Number of rollouts that are still unread.

        Raises:
            ValueError: The cursor is invalid.
        """
        where, values = conditions(query)
        with self._history.opened() as db:
            judge_roots(db, query.roots)
            total = None
            if not left:
                counted = db.execute(f"SELECT count(*) FROM thread t WHERE {where}", values)
                total = counted.fetchone()[0]
            after, position = _after(query.cursor)
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM thread t WHERE {where}{after}"
                " ORDER BY t.active_ms DESC, t.thread_id LIMIT ?",
                (*values, *position, query.limit + 1),
            ).fetchall()
        shown = rows[: query.limit]
        return Page(
            threads=[self._thread(row) for row in shown],
            cursors=[f"{row[10]}.{row[0]}" for row in shown],
            has_more=len(rows) > query.limit or left > 0,
            total=total,
        )

    def one(self, thread_id: str, roots: Sequence[Path]) -> tuple[Json, list[Segment]] | None:
        """Return a thread and its history, or None if no thread inside *roots* has that id."""
        with self._history.opened() as db:
            row = db.execute(
                f"SELECT {_COLUMNS} FROM thread t WHERE t.thread_id = ?", (thread_id,)
            ).fetchone()
            if row is None:
                return None
            thread = self._thread(row)
            if not in_roots(thread["cwd"], roots):
                return None
            history = join(read_rollouts(db, thread_id)).history
        home = self._history.home
        return thread, [
            Segment(home / each.folder / each.name, each.marks, each.facts["offset"], each.requests)
            for each in history
        ]

    def _thread(self, row: tuple[Any, ...]) -> Json:
        (
            thread_id, folder, file_name, title, cwd, git_branch, source, model, cli_version,
            created_ms, active_ms, turns, ending, input_, cached, output, reasoning, cost,
            unpriced, parent_id, forked_id, archived, paginated, damaged, mtime_ns, packed,
            agent, name,
        ) = row  # fmt: skip
        return {
            "thread_id": thread_id,
            # The task of a sub-agent may be encrypted (0.144.0), and then there is no title.
            "name": name or (agent if title is None else None),
            "title": None if title is None else title[:120],
            "cwd": cwd,
            "git_branch": git_branch,
            "source": source,
            "model": model,
            "cli_version": cli_version,
            "created_at": iso(created_ms),
            "last_active_at": iso(active_ms),
            "turn_count": turns,
            "status": self._status(thread_id, ending, active_ms, mtime_ns),
            "usage": tokens(input_, cached, output, reasoning),
            "cost_usd": None if unpriced else round(cost, 6),
            "parent_thread_id": parent_id,
            "forked_from_id": forked_id,
            "archived": bool(archived),
            "rollout_path": os.path.normpath(self._history.home / folder / file_name),
            "place": place_of(folder),
            "resumable": not archived and not damaged and self._knows(paginated, packed),
        }

    def _status(self, thread_id: str, ending: str, active_ms: int, mtime_ns: int) -> str:
        if ending in ("completed", "failed", "interrupted"):
            return ending
        if ending == "answered":
            return "completed"
        if not ending:
            return "unknown"
        held = self._writers.holds(thread_id)
        # A copy of a home has new modification times, but the times in its lines are old.
        fresh = abs(time.time() - min(active_ms / 1e3, mtime_ns / 1e9)) < FRESH_S
        if held or (fresh and not (ending == "open" and self._writers.are_told)):
            return "running"
        # Codex 0.60.1 records no end of a turn that failed or was killed.
        return "interrupted" if ending == "open" else "unknown"

    def _knows(self, paginated: bool, packed: bool) -> bool:
        program = self._program
        if program is None:
            return True
        return (program.knows_paginated_threads or not paginated) and (
            program.knows_packed_threads or not packed
        )


def newest_thread(
    index: ThreadIndex,
    cwd: Path | None,
    progress: Progress | None,
    roots: tuple[Path, ...] = (),
) -> str | None:
    """Return the id of the most recently active thread, or None without any.

    Sub-agents and archived threads are left out.

    Args:
        index: The index.
        cwd: Only threads whose last turn ran in this folder, by any of its names; None for any
            folder.
        progress: Called after each batch of rollouts that is read.
        roots: Only threads whose last turn ran inside one of these; empty for all.

    Raises:
        IndexUnavailable: No folder for an index can be written.
    """
    names = folder_names(None if cwd is None else str(cwd))
    query = ThreadQuery(exact_cwd=names, limit=0, roots=roots)
    left = index.refresh(progress, enough_for(query), patience=COLD_FILES)
    with index.opened() as db:
        judge_roots(db, roots)
        if cwd is not None:
            folders = db.execute("SELECT DISTINCT cwd FROM thread WHERE cwd IS NOT NULL").fetchall()
            aliases = (name for (name,) in folders if os.path.realpath(name) == str(cwd))
            query = replace(query, exact_cwd=(*query.exact_cwd, *aliases))
        where, values = conditions(query)
        row = db.execute(
            f"SELECT t.thread_id FROM thread t WHERE {where}"
            " ORDER BY t.active_ms DESC, t.thread_id LIMIT 1",
            values,
        ).fetchone()
    if left:
        index.finish_later()
    return None if row is None else row[0]


def conditions(query: ThreadQuery) -> tuple[str, list[Any]]:
    """Return the WHERE clause for *query*, without its cursor, and the clause's values."""
    parts = ["1"]
    values: list[Any] = []

    def add(part: str, *some: Any) -> None:
        parts.append(part)
        values.extend(some)

    if not query.include_archived:
        add("t.archived = 0")
    if not query.include_subagents and query.source != "subagent":
        add("t.is_subagent = 0")
    if query.cwd:
        below: list[Any] = []
        for folder in (cwd.rstrip("/") for cwd in query.cwd):
            below += [folder or "/", len(folder) + 1, f"{folder}/"]
        each = " OR ".join(["t.cwd = ? OR substr(t.cwd, 1, ?) = ?"] * len(query.cwd))
        add(f"({each})", *below)
    if query.exact_cwd:
        add(f"t.cwd IN ({', '.join('?' * len(query.exact_cwd))})", *query.exact_cwd)
    if query.roots:
        add("in_roots(t.cwd)")
    if query.since_ms is not None:
        add("t.active_ms >= ?", query.since_ms)
    if query.until_ms is not None:
        add("t.active_ms < ?", query.until_ms)
    if query.model is not None:
        add("t.model = ? COLLATE NOCASE", query.model)
    if query.source is not None:
        add("t.source = ?", query.source)
    for word in _words(query.words or ""):
        found, pattern = _match(word)
        add(
            f"(t.thread_id IN (SELECT f.thread_id FROM file f WHERE f.id IN"
            f" (SELECT rowid >> 20 FROM text WHERE {found})) OR t.thread_id IN"
            " (SELECT thread_id FROM name WHERE instr(folded, ?)) OR t.thread_id = ?"
            " OR instr(lower(t.agent), ?))",
            pattern,
            fold(word),
            word.lower(),
            fold(word),
        )
    return " AND ".join(parts), values


def enough_for(query: ThreadQuery) -> Any:
    """Return a function for `ThreadIndex.refresh` that is True once this page is final.

    A page is final once its threads are newer than all unread files: a file records no activity
    much later than its own modification time.
    """
    where, values = conditions(query)
    after, position = _after(query.cursor)

    def enough(db: sqlite3.Connection, next_mtime_ns: int) -> bool:
        judge_roots(db, query.roots)
        later_ms = next_mtime_ns // 1_000_000 + _LATE_MS
        (count,) = db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM thread t"
            f" WHERE {where}{after} AND t.active_ms > ? LIMIT ?)",
            (*values, *position, later_ms, query.limit + 1),
        ).fetchone()
        return count > query.limit

    return enough


def _after(cursor: str | None) -> tuple[str, tuple[Any, ...]]:
    if cursor is None:
        return "", ()
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise ValueError("cursor must be the next_cursor of an earlier page")
    at, thread_id = int(found[1]), found[2]
    return " AND (t.active_ms < ? OR (t.active_ms = ? AND t.thread_id > ?))", (at, at, thread_id)


def _words(text: str) -> list[str]:
    """Return the words to search for; double quotes make one word of several."""
    found = _WORD.findall(text.replace("\0", " "))
    return [word for quoted, bare in found if (word := quoted.strip() or bare)]


def _match(word: str) -> tuple[str, str]:
    """Return an SQL condition that finds *word* in texts, and its value."""
    # The index splits texts at blanks, which Chinese and Japanese do not use.
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in word)
    if wide or not any(letter.isalnum() for letter in word):
        return "instr(words, ?)", word
    return "text MATCH ?", '"' + word.replace('"', '""') + '"*'
