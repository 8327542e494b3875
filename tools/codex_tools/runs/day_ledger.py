"""Keep the sums of the tokens and the money that all runs of a state folder used on each day.

STATE/spending/<day>.jsonl   a line for each growth of a run; the last line of a run counts

A line holds all that a run used on that day so far. So a line that is lost or written twice does
no harm, and several servers append to the file without a lock. The day is that of the request, in
the machine's time zone. A run whose server was killed has no line that says that it has ended.
The next server that needs the sum counts it from its rollout.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard, cast

from codex_tools.codex.budget import Budgets, DayBudgetExhausted, Limit
from codex_tools.codex.foreign_file import open_foreign_file
from codex_tools.codex.json_object import Json
from codex_tools.codex.private_folder import claim_folder
from codex_tools.codex.record import Usage
from codex_tools.codex.workers import on_disk
from codex_tools.rollouts.threads import Threads
from codex_tools.rollouts.turn_record import TurnMark
from codex_tools.rollouts.usage_follower import DayShare, Spent, day_of
from codex_tools.runs.store import RunStore
from codex_tools.runs.writer import StateWriter

logger = logging.getLogger(__name__)

VERSION = 1
"""Version of a line: raise it when the meaning of a field changes."""

KEEP_DAYS = 35
"""Days that a file is kept."""

READ_LIMIT = 64 * 1024 * 1024
"""Maximum bytes of one read; a day of 1,000 long runs takes less than 20 MB."""


@dataclass(slots=True)
class _Entry:
    """What one run used on one day."""

    server_id: str
    share: DayShare
    has_ended: bool = False


class DayLedger:
    """The sums of one state folder, as one server reads and writes them."""

    def __init__(
        self,
        state_dir: Path,
        writer: StateWriter,
        store: RunStore,
        threads: Threads,
        budgets: Budgets,
    ) -> None:
        """Read nothing yet."""
        self._folder = state_dir / "spending"
        self._writer = writer
        self._store = store
        self._threads = threads
        self._server_id = store.server_id
        self.limits: tuple[Limit, ...] = budgets.daily
        self._days: dict[str, dict[str, _Entry]] = {}
        self._read_to: dict[str, int] = {}
        """Bytes of each day's file that were read."""
        self._lock = threading.Lock()

    def used(self) -> DayShare:
        """Return what all known runs have used today."""
        with self._lock:
            shares = [entry.share for entry in self._days.get(_today(), {}).values()]
        return DayShare(
            sum(share.tokens for share in shares),
            sum(share.usd for share in shares),
            all(share.is_priced for share in shares),
        )

    def used_of(self, limit: Limit) -> float:
        """Return what is used today of a limit of the day."""
        used = self.used()
        return used.usd if limit.is_money else used.tokens

    async def check(self) -> None:
        """Check that something is left of today's budget.

        Raises:
            DayBudgetExhausted: Nothing is left.
        """
        if self.limits:
            await on_disk(self._count_all, abandon=True)
        for limit in self.limits:
            if (used := self.used_of(limit)) >= limit.most:
                raise DayBudgetExhausted(limit, used)

    async def left(self) -> Json | None:
        """Return the limits of the day and what is left of each, as codex_usage has them.

        None if there is no limit.
        """
        if not self.limits:
            return None
        await on_disk(self._count_all, abandon=True)
        found: Json = {"day": _today()}
        for name, is_money in (("tokens", False), ("usd", True)):
            limit = next((each for each in self.limits if each.is_money == is_money), None)
            left = max(limit.most - self.used_of(limit), 0) if limit is not None else None
            found[name] = limit.most if limit is not None else None
            found[f"{name}_left"] = round(left, 6) if left is not None else None
        return found

    def put(
        self, run_id: str, days: Iterable[tuple[str, DayShare]], *, has_ended: bool = False
    ) -> None:
        """Note what a run has used on each day so far; return at once.

        Args:
            run_id: The id of the run.
            days: Its shares by day.
            has_ended: True if the run will use nothing more.
        """
        shares = dict(days)
        with self._lock:
            if has_ended:
                for day, runs in self._days.items():
                    if run_id in runs:
                        shares.setdefault(day, runs[run_id].share)
            for day, share in shares.items():
                runs = self._days.setdefault(day, {})
                former = runs.get(run_id)
                if former is not None and (former.share, former.has_ended) == (share, has_ended):
                    continue
                owner = former.server_id if former is not None else self._server_id
                runs[run_id] = entry = _Entry(owner, share, has_ended)
                self._writer.put(partial(self._append, day, run_id, entry))

    def begin(self, run_id: str) -> None:
        """Note that a run begins, so that it is counted even if this server is killed."""
        self.put(run_id, [(_today(), DayShare())])

    def end(self, run_id: str, spent: Spent, usage: Usage | None, cost_usd: float | None) -> None:
        """Note what a run has used that has ended.

        Args:
            run_id: The id of the run.
            spent: What its rollouts recorded while it was at work.
            usage: The usage of its result. What is more than *spent* was used today.
            cost_usd: The cost of its result.
        """
        days = dict(spent.days)
        more = usage.total_tokens - spent.tokens if usage is not None else 0
        if more > 0:
            usd = max((cost_usd or 0.0) - spent.known_usd, 0.0)
            share = DayShare(more, usd, cost_usd is not None)
            days[_today()] = days.get(_today(), DayShare()).plus(share)
        self.put(run_id, days.items(), has_ended=True)

    def refresh(self) -> None:
        """Read what other servers have noted for today; accesses the disk."""
        day = _today()
        path = self._path(day)
        with self._lock:
            try:
                start = self._read_to.get(day, 0)
                size = path.stat().st_size
                if size < start:  # A person removed it, and it was begun again.
                    start, known = 0, self._days.get(day, {})
                    own = {k: v for k, v in known.items() if v.server_id == self._server_id}
                    self._days[day] = own
                if size == start:
                    return
                with open_foreign_file(path, owned=True) as file:
                    file.seek(start)
                    data = file.read(READ_LIMIT)
            except FileNotFoundError:
                return
            except OSError as error:
                logger.warning("cannot read %s: %s", path, error)
                return
            end = data.rfind(b"\n") + 1
            self._read_to[day] = start + end
            for line in data[:end].split(b"\n"):
                self._take(day, line)

    def _count_all(self) -> None:
        """Read what other servers noted, and count the runs of killed servers from their rollouts.

        A thread is counted before the next run begins in it, whose tokens would count twice.
        """
        self.refresh()
        for run_id, noted in self._left_open():
            stored = self._store.load(run_id)
            spent, usage, cost_usd = Spent(), None, None
            if stored is not None:
                where, thread_id = stored.recorded, stored.result.thread_id
                usage, cost_usd = stored.result.usage, stored.result.cost_usd
                if where is not None and thread_id is not None:
                    mark = TurnMark(where.offset, where.since_ms, where.segment)
                    follower = self._threads.follow_usage(thread_id, mark)
                    with suppress(OSError):
                        spent = follower.read_all() if follower is not None else spent
            if max(spent.tokens, usage.total_tokens if usage is not None else 0) >= noted.tokens:
                self.end(run_id, spent, usage, cost_usd)
            else:
                self.put(run_id, (), has_ended=True)

    def _left_open(self) -> list[tuple[str, DayShare]]:
        """Return the runs of today that have not ended although their server is dead."""
        with self._lock:
            entries = [*self._days.get(_today(), {}).items()]
        left = [(run_id, entry) for run_id, entry in entries if not entry.has_ended]
        alive = {
            server_id: self._store.is_alive(server_id)
            for server_id in {entry.server_id for _, entry in left}
        }
        return [(run_id, entry.share) for run_id, entry in left if not alive[entry.server_id]]

    def prune(self) -> None:
        """Remove the files of days before KEEP_DAYS; accesses the disk."""
        oldest = day_of((time.time() - KEEP_DAYS * 86_400) * 1000)
        for path in self._folder.glob("????-??-??.jsonl"):
            if path.stem < oldest:
                path.unlink(missing_ok=True)
        with self._lock:
            for day in [day for day in self._days if day < oldest]:
                del self._days[day]

    def _take(self, day: str, line: bytes) -> None:
        """Take a line, which this build, an older or a newer one wrote; skip a damaged one."""
        if not line.strip():
            return
        try:
            data: Any = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(data, dict):
            return
        fields = cast(Json, data)
        run_id, tokens, usd = fields.get("run_id"), fields.get("tokens"), fields.get("usd")
        if not isinstance(run_id, str) or not _is_amount(tokens):
            return
        runs = self._days.setdefault(day, {})
        known = runs.get(run_id)
        if known is not None and known.server_id == self._server_id:
            return  # This server knows better.
        server_id = fields.get("server_id")
        is_priced = fields.get("priced") is not False and _is_amount(usd)
        share = DayShare(int(tokens), float(usd) if _is_amount(usd) else 0.0, is_priced)
        owner = server_id if isinstance(server_id, str) else ""
        runs[run_id] = _Entry(owner, share, fields.get("ended") is not False)

    def _append(self, day: str, run_id: str, entry: _Entry) -> None:
        """Append a line; called in the writer's thread."""
        share = entry.share
        line = {
            "version": VERSION,
            "run_id": run_id,
            "server_id": entry.server_id,
            "tokens": share.tokens,
            "usd": round(share.usd, 6),
            "priced": share.is_priced,
            "ended": entry.has_ended,
        }
        # After a line that a killed server has left incomplete, a new line must begin.
        data = b"\n" + json.dumps(line, separators=(",", ":")).encode() + b"\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            claim_folder(self._folder, follow=False)
            fd = os.open(self._path(day), flags, 0o600)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
        except OSError as error:
            logger.warning("cannot note the usage of %s: %s", run_id, error)

    def _path(self, day: str) -> Path:
        return self._folder / f"{day}.jsonl"


def _today() -> str:
    return day_of(time.time() * 1000)


def _is_amount(value: object) -> TypeGuard[float]:
    """Return True for a number that can be used up: 0 or more, and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value < 10**15
