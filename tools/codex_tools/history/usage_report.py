"""Report token usage from the index: sums by time, model, folder, thread or place.

Whole quarters of an hour come from the index's own sums. If a report starts or ends within a
quarter, the requests of that quarter are counted one by one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Any, Literal

import orjson

from codex_tools.codex.errors import InvalidArguments
from codex_tools.codex.json_object import Json
from codex_tools.codex.paths import folder_names, is_inside
from codex_tools.history.index import Progress, ThreadIndex
from codex_tools.history.indexer import requests_of
from codex_tools.history.rate_limits import newest_limits
from codex_tools.history.scan import place_of
from codex_tools.history.tables import PUT_BUCKET, QUARTER_MS, buckets_of, judge_roots, tokens
from codex_tools.history.times import Unit, instant, period_of, zone_of
from codex_tools.pricing.tiers import tier_named
from codex_tools.rollouts.token_counter import each_request

GroupBy = Literal["day", "week", "month", "model", "cwd", "thread", "place"]

GROUPS_LIMIT = 1000
"""Groups of a report, at most; a home may contain a hundred thousand threads."""

NAMES_SHOWN = 10
"""Models without a price that a note names, at most."""

_LAST_QUARTER = 2**60
_UNITS = ("day", "week", "month")
_SUMMED = (
    *("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens"),
    *("total_tokens", "requests"),
)

_SUMS = (
    "count(DISTINCT b.thread), sum(b.requests), sum(b.input), sum(b.cached), sum(b.output),"
    " sum(b.reasoning), sum(b.cost), sum(b.unpriced)"
)
_PART_COLUMNS = (
    "quarter INTEGER, thread INTEGER, context INTEGER, requests INTEGER, input INTEGER,"
    " cached INTEGER, output INTEGER, reasoning INTEGER, cost REAL, unpriced INTEGER,"
    " PRIMARY KEY (quarter, thread, context)"
)


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """The grouping and the filters of a report; None means no filter."""

    group_by: GroupBy = "day"
    zone: tzinfo | None = None
    """The time zone of days, weeks and months; None for the machine's own."""
    since_ms: int | None = None
    until_ms: int | None = None
    cwd: tuple[str, ...] = ()
    """The names of one folder; all folders below it are included."""
    model: str | None = None
    thread_id: str | None = None
    roots: tuple[Path, ...] = ()
    """Only threads whose last turn ran inside one of these, links resolved; empty for all."""


def find_usage(
    history: ThreadIndex,
    progress: Progress | None,
    *,
    since: str | None = None,
    until: str | None = None,
    group_by: GroupBy = "day",
    timezone: str | None = None,
    cwd: str | None = None,
    model: str | None = None,
    thread_id: str | None = None,
    roots: tuple[Path, ...] = (),
) -> Json:
    """Update the index and return the fields of a UsageResult, in its order.

    The arguments are those of codex_usage, as the caller wrote them, and *roots*, the folders whose
    threads may be counted; empty for all.

    Raises:
        InvalidArguments: A time or the time zone is invalid.
        IndexUnavailable: The index cannot be read or made.
    """
    try:
        zone = zone_of(timezone)
        query = UsageQuery(
            group_by=group_by,
            zone=zone,
            since_ms=None if since is None else instant(since, zone),
            until_ms=None if until is None else instant(until, zone, end=True),
            cwd=folder_names(cwd),
            model=model,
            thread_id=thread_id,
            roots=roots,
        )
    except ValueError as error:
        raise InvalidArguments([str(error)]) from None
    history.refresh(progress)
    return report(history, query) | {"budget": None, "error": None}


def report(history: ThreadIndex, query: UsageQuery) -> Json:
    """Return the usage that matches *query*, as the fields of codex_usage's result.

    Raises:
        IndexUnavailable: The index cannot be read or made.
    """
    with history.opened() as db:
        return _Report(db, history, query).result()


class _Report:
    def __init__(self, db: sqlite3.Connection, history: ThreadIndex, query: UsageQuery) -> None:
        self._db, self._history, self._query = db, history, query
        self._table = "bucket"
        self._cost = 0.0
        judge_roots(db, query.roots)
        self._first, self._last = self._range()
        self._where, self._values = self._conditions()

    def result(self) -> Json:
        """Return the whole report."""
        query, db = self._query, self._db
        notes: list[str] = []
        try:
            if query.group_by in ("day", "week", "month"):
                groups = list(self._by_time(query.group_by))
            else:
                groups = list(self._by_kind(notes))
            totals = self._sum(groups) if self._is_whole else self._totals()
            unpriced = self._unpriced() if totals["cost_usd"] is None else []
            notes[:0] = self._cost_notes(totals["cost_usd_known"], unpriced)
        finally:
            db.execute("DROP TABLE IF EXISTS temp.part")
        inside = "in_roots(cwd)" if query.roots else "1"
        (threads,) = db.execute(f"SELECT count(*) FROM thread WHERE {inside}").fetchone()
        unreadable, bad_lines, copies = _faults(db, inside)
        if unreadable:
            found = db.execute(_UNREADABLE.format(_in_threads(inside))).fetchall()
            names = [name for (name,) in found]
            more = ", ..." if unreadable > len(names) else ""
            notes.append(f"{unreadable} files are not readable rollouts: {', '.join(names)}{more}")
        if bad_lines:
            notes.append(f"{bad_lines} lines in other files could not be read.")
        if copies:
            notes.append(
                f"{copies} files are copies of other rollouts; each thread was counted once."
            )
        prices = db.execute("SELECT value FROM meta WHERE key = 'prices_version'").fetchone()
        return {
            "totals": totals,
            "groups": groups,
            "rate_limits": newest_limits(db),
            "unpriced_models": sorted({model for model, _ in unpriced}),
            "sessions_read": threads,
            "unreadable": unreadable,
            "prices": prices[0] if prices is not None else None,
            "notes": [*notes, *self._history.notes],
        }

    def _range(self) -> tuple[int, int]:
        """Return the first quarter and the one after the last; slice quarters that are cut."""
        query = self._query
        since, until = query.since_ms, query.until_ms
        first = 0 if since is None else -(-since // QUARTER_MS)
        last = _LAST_QUARTER if until is None else until // QUARTER_MS
        cut = {ms // QUARTER_MS for ms in (since, until) if ms is not None and ms % QUARTER_MS}
        if not cut:
            return first, last
        db = self._db
        self._table = "temp.part"
        db.execute(f"CREATE TEMP TABLE part ({_PART_COLUMNS}) WITHOUT ROWID")
        db.execute(
            "INSERT INTO part SELECT * FROM bucket WHERE quarter >= ? AND quarter < ?",
            (first, last),
        )
        for quarter in cut:
            self._slice(quarter, since or 0, until if until is not None else 2**62)
        return 0, _LAST_QUARTER

    def _slice(self, quarter: int, since: int, until: int) -> None:
        """Add the requests of a *quarter* that are within the range to the table `part`."""
        since, until = max(since, quarter * QUARTER_MS), min(until, (quarter + 1) * QUARTER_MS)
        db = self._db
        threads = db.execute(
            "SELECT t.id, t.thread_id, t.files FROM thread t"
            " WHERE t.id IN (SELECT thread FROM bucket WHERE quarter = ?)",
            (quarter,),
        ).fetchall()
        rows = db.execute("SELECT id, model, tier FROM context").fetchall()
        contexts = {id_: (model, tier) for id_, model, tier in rows}
        put = PUT_BUCKET.replace("INTO bucket", "INTO temp.part")
        for id_, thread_id, files in threads:
            some: list[int] = []
            for request in each_request(requests_of(db, id_, thread_id, files)):
                if since <= request[0] < until:
                    some += request
            db.executemany(put, buckets_of(id_, some, self._history.prices, contexts))

    def _conditions(self) -> tuple[str, list[Any]]:
        query, db = self._query, self._db
        conditions: list[str] = []
        values: list[Any] = []
        if query.cwd or query.model is not None:
            wanted = [
                id_
                for id_, model, cwd in db.execute("SELECT id, model, cwd FROM context").fetchall()
                if (query.model is None or (model or "").lower() == query.model.lower())
                and (not query.cwd or any(is_inside(cwd, folder) for folder in query.cwd))
            ]
            conditions.append("b.context IN (SELECT value FROM json_each(?))")
            values.append(orjson.dumps(wanted).decode())
        if query.thread_id is not None:
            conditions.append("b.thread IN (SELECT id FROM thread WHERE thread_id = ?)")
            values.append(query.thread_id)
        if query.roots:
            # What a thread did in another folder, before it came into a root, is not counted.
            conditions.append("b.thread IN (SELECT id FROM thread WHERE in_roots(cwd))")
            conditions.append("b.context IN (SELECT id FROM context WHERE in_roots(cwd))")
        return "".join(f" AND {each}" for each in conditions), values

    def _by_time(self, unit: Unit) -> Iterator[Json]:
        """Yield a row for each period with any usage.

        It reads period by period along the primary key, so that no rows need sorting.
        """
        db, zone = self._db, self._query.zone
        rows = (
            f"SELECT {_SUMS} FROM {self._table} b WHERE quarter >= ? AND quarter < ?{self._where}"
        )
        following = f"SELECT min(quarter) FROM {self._table} WHERE quarter >= ? AND quarter < ?"
        quarter = self._first
        while True:
            (found,) = db.execute(following, (quarter, self._last)).fetchone()
            if found is None:
                return
            key, start, end = period_of(found * QUARTER_MS, unit, zone)
            first = max(self._first, start // QUARTER_MS)
            quarter = max(min(self._last, end // QUARTER_MS), found + 1)
            sums = db.execute(rows, (first, quarter, *self._values)).fetchone()
            if sums[1]:
                self._cost += sums[6]
                yield {**_row(*sums), "key": key}

    def _by_kind(self, notes: list[str]) -> Iterator[Json]:
        """Yield a row for each model, folder, thread or place, in descending order of tokens."""
        match self._query.group_by:
            case "thread":
                key, join = "t.thread_id", " JOIN thread t ON t.id = b.thread"
            case "place":
                self._db.create_function("place_of", 1, place_of, deterministic=True)
                key, join = "place_of(t.folder)", " JOIN thread t ON t.id = b.thread"
            case kind:
                key, join = f"c.{kind}", " JOIN context c ON c.id = b.context"
        rows = self._db.execute(
            f"SELECT {key}, {_SUMS} FROM {self._table} b{join}"
            f" WHERE b.quarter >= ? AND b.quarter < ?{self._where}"
            f" GROUP BY {key} ORDER BY sum(b.input) + sum(b.output) DESC, {key}",
            (self._first, self._last, *self._values),
        )
        for number, (name, *sums) in enumerate(rows):
            if number == GROUPS_LIMIT:
                left = 1 + sum(1 for _ in rows)
                notes.append(
                    f"{left} smaller groups are left out of groups. Set since, until or cwd to see"
                    " them."
                )
                return
            yield {**_row(*sums), "key": name or "unknown"}

    @property
    def _is_whole(self) -> bool:
        """True if the groups by time include all usage, so that their sum is the total."""
        query = self._query
        return query == UsageQuery(query.group_by, query.zone) and query.group_by in _UNITS

    def _sum(self, groups: list[Json]) -> Json:
        """Return the totals of all *groups*; a thread in several groups counts once."""
        sums = {key: sum(group[key] for group in groups) for key in _SUMMED}
        (threads,) = self._db.execute("SELECT count(*) FROM thread WHERE requests > 0").fetchone()
        known = round(self._cost, 6)
        priced = all(group["cost_usd"] is not None for group in groups)
        return {
            **sums,
            "threads": threads,
            "cost_usd": known if priced else None,
            "cost_usd_known": known,
        }

    def _totals(self) -> Json:
        sums = self._db.execute(
            f"SELECT {_SUMS} FROM {self._table} b WHERE quarter >= ? AND quarter < ?{self._where}",
            (self._first, self._last, *self._values),
        ).fetchone()
        return _row(*sums)

    def _unpriced(self) -> list[tuple[str, str]]:
        """Return the models of requests without a price, and their tiers; "" is the standard."""
        rows = self._db.execute(
            "SELECT DISTINCT c.model, c.tier"
            f" FROM {self._table} b JOIN context c ON c.id = b.context"
            f" WHERE b.unpriced > 0 AND b.quarter >= ? AND b.quarter < ?{self._where}",
            (self._first, self._last, *self._values),
        )
        return sorted({(model or "unknown", tier_named(tier) or "") for model, tier in rows})

    def _cost_notes(self, known: float, unpriced: list[tuple[str, str]]) -> Iterator[str]:
        """Yield a note about requests without a price, and one about prices of service tiers."""
        if unpriced:
            names = [
                f"{model} in the service tier {tier}" if tier else model for model, tier in unpriced
            ]
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            cost = f"at least ${known:,.{2 if known >= 0.1 else 6}f}" if known else "unknown"
            yield (
                f"Cost: {cost}; no price for {', '.join(names[:NAMES_SHOWN])}{more}."
                " To give one, use the option --prices FILE."
            )
        tiers = self._priced_tiers()
        if tiers:
            counts = " and ".join(f"{count} in {tier}" for tier, count in sorted(tiers.items()))
            yield (
                f"Requests with the price of a service tier: {counts}. Codex recorded these tiers;"
                " a request that the provider served in the standard tier cost the standard price."
            )

    def _priced_tiers(self) -> dict[str, int]:
        """Return the number of priced requests in each service tier but the standard one."""
        counts: dict[str, int] = {}
        db = self._db
        tiers = db.execute("SELECT DISTINCT tier FROM context WHERE tier IS NOT NULL").fetchall()
        for tier in (tier for (tier,) in tiers if tier_named(tier) is not None):
            (count,) = db.execute(
                f"SELECT sum(b.requests - b.unpriced) FROM {self._table} b"
                " WHERE b.context IN (SELECT id FROM context WHERE tier = ?)"
                f" AND b.quarter >= ? AND b.quarter < ?{self._where}",
                (tier, self._first, self._last, *self._values),
            ).fetchone()
            if count:
                name = tier_named(tier) or ""
                counts[name] = counts.get(name, 0) + count
        return counts


_UNREADABLE = "SELECT name FROM file WHERE problem IS NOT NULL AND size > 0{} ORDER BY id LIMIT 3"


def _row(
    threads: int,
    requests: int | None,
    input_: int | None,
    cached: int | None,
    output: int | None,
    reasoning: int | None,
    cost: float | None,
    unpriced: int | None,
) -> Json:
    known = round(cost or 0.0, 6)
    return {
        **tokens(input_ or 0, cached or 0, output or 0, reasoning or 0),
        "requests": requests or 0,
        "threads": threads,
        "cost_usd": None if unpriced else known,
        "cost_usd_known": known,
    }


def _faults(db: sqlite3.Connection, inside: str) -> tuple[int, int, int]:
    """Return the number of unreadable files, of bad lines in the others, and of copies.

    *inside* is the condition of SQL for the threads that may be counted.
    """
    where = _in_threads(inside)
    unreadable, bad_lines = db.execute(
        # A run that is cancelled at once leaves an empty file (0.171.0).
        "SELECT count(problem), sum(CASE WHEN problem IS NULL THEN bad_lines END) FROM file"
        f" WHERE (problem IS NOT NULL AND size > 0 OR bad_lines > 0){where}"
    ).fetchone()
    (copies,) = db.execute(
        f"SELECT ifnull(sum(copies), 0) FROM thread WHERE copies > 0 AND {inside}"
    ).fetchone()
    return unreadable, bad_lines or 0, copies


def _in_threads(inside: str) -> str:
    """Return the condition of SQL for the files of the threads that may be counted."""
    if inside == "1":
        return ""
    return f" AND thread_id IN (SELECT thread_id FROM thread WHERE {inside})"
