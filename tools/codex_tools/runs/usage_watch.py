"""Follow the tokens of a run in the rollouts of its threads while the run is at work.

A run that reaches a limit is ended. Sub-agents are not counted: they are threads of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio

from codex_tools.codex.budget import WARNED_AT, BudgetExhausted, Limit
from codex_tools.codex.errors import TurnError
from codex_tools.codex.turn_result import TurnResult
from codex_tools.codex.workers import on_disk
from codex_tools.rollouts.threads import Threads
from codex_tools.rollouts.turn_record import TurnMark
from codex_tools.rollouts.usage_follower import Spent, UsageFollower
from codex_tools.runs.day_ledger import DayLedger
from codex_tools.runs.run import Run

LOOK_EVERY_S = 1.0
"""Polling interval in seconds; each event of Codex causes a look as well."""

PAUSE_S = 0.5
"""Minimum seconds between two looks of a run without a limit."""

LIMITED_LOOK_EVERY_S = 0.1
"""Polling interval in seconds of a run with a limit; not each tool call causes an event."""

NEAR_LOOK_EVERY_S = 0.02
"""The same when a limit is nearly reached; 0.60.1 may send the next request after 10 ms."""

ANSWERED_S = 2.0
"""Seconds for a turn to end after a message of the model with which a limit was reached."""

UNSAID_S = 0.5
"""Seconds for the model's message to arrive; 0.163.0 and 0.171.0 record the tokens 10 ms after it
and start a command up to 0.2 s later (seen)."""

SAVE_EVERY_S = 2.0
"""Minimum seconds between two records of a run that were written because of new tokens."""


class UsageWatch:
    """Keeps `Run.spent` of one run up to date, and ends the run at its limits."""

    def __init__(
        self, threads: Threads, run: Run, ledger: DayLedger, save: Callable[[], None]
    ) -> None:
        """Follow nothing yet.

        Args:
            threads: The threads that the engine can resume.
            run: The run.
            ledger: The sums of the day.
            save: Writes the record of the run, which other servers and people read.
        """
        self._threads = threads
        self._run = run
        self._ledger = ledger
        self._save = save
        self._limits = (*run.request.limits, *ledger.limits)
        self._warned: set[str] = set()
        self._reached: tuple[float, int, int] | None = None
        """When a limit was first seen to be reached, and the tokens and commands at that time."""
        self._ended_by: Limit | None = None
        """The limit that has ended the turn."""
        self._news = anyio.Event()
        self._followed: str | None = None
        """The thread that is followed."""
        self._follower: UsageFollower | None = None
        self._earlier = Spent()
        """What the run used in threads that it has left."""
        self._known = Spent()
        self._reading = threading.Lock()
        """Held during a read: that of an earlier look may go on after the look was cancelled."""
        self._is_news = False
        """True if the record of the run lacks its newest tokens."""
        self._saved_at = anyio.current_time()

    def wake(self) -> None:
        """Look at the rollout soon, because Codex has done something."""
        self._news.set()

    async def run(self, turn: Callable[[], Awaitable[TurnResult]]) -> TurnResult:
        """Run *turn*, and end it when a limit is reached.

        Raises:
            BudgetExhausted: A limit was reached before the turn's end, or before its start.
            CodexError: The error that *turn* raised.
        """
        self._check()
        if self._run.request.ephemeral:
            return await turn()  # Codex keeps no rollout.
        failure: Exception | None = None
        result: TurnResult | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, tasks.cancel_scope)
            try:
                result = await turn()
            except Exception as error:  # Raised again below: the task group would wrap it.
                failure = error
            tasks.cancel_scope.cancel()
        await self.look()
        self._warn_unwatched()
        warnings = self._run.progress.result().warnings
        if failure is not None:
            if isinstance(failure, TurnError):
                failure.turn = replace(failure.turn, warnings=warnings)
            raise failure
        if self._ended_by is not None:
            limit = self._ended_by
            raise BudgetExhausted(limit, self._used_of(limit), self._run.progress.result())
        assert result is not None, "only a limit ends a turn"
        return replace(result, warnings=warnings)

    async def look(self) -> None:
        """Read what Codex has written since the last look."""
        run = self._run
        opened = run.progress.opened
        if not opened:
            return
        spent = await on_disk(self._read, opened, abandon=True)
        if spent != run.spent:
            run.spent = spent
            self._ledger.put(run.run_id, spent.days)
            self._is_news = True
        for limit in self._limits:
            self._warn_of(limit)
        now = anyio.current_time()
        if self._is_news and now - self._saved_at >= SAVE_EVERY_S:
            self._is_news, self._saved_at = False, now
            self._save()

    async def _watch(self, turn: anyio.CancelScope) -> None:
        while True:
            with anyio.move_on_after(self._look_every_s()):
                await self._news.wait()
            self._news = anyio.Event()
            await self.look()
            limit = self._exhausted()
            if limit is not None and not self._is_answering():
                self._ended_by = limit
                turn.cancel()
                return
            if not self._limits:
                await anyio.sleep(PAUSE_S)

    def _is_answering(self) -> bool:
        """Return True if a turn that has reached a limit has ended, or may end by itself.

        If the response that reached the limit is the answer, Codex ends the turn at once. Else it
        runs a tool or sends a request.
        """
        run, now = self._run, anyio.current_time()
        if run.progress.ended:
            return True
        if self._reached is None:
            self._reached = (now, run.spent.tokens, run.progress.command_count)
        since, tokens, commands = self._reached
        if run.progress.open_items or (run.spent.tokens, run.progress.command_count) != (
            tokens,
            commands,
        ):
            return False
        return now - since < (ANSWERED_S if run.progress.said_last else UNSAID_S)

    def _look_every_s(self) -> float:
        if not self._limits:
            return LOOK_EVERY_S
        is_near = any(self._used_of(each) >= WARNED_AT * each.most for each in self._limits)
        return NEAR_LOOK_EVERY_S if is_near else LIMITED_LOOK_EVERY_S

    def _used_of(self, limit: Limit) -> float:
        if limit.is_daily:
            return self._ledger.used_of(limit)
        return self._run.spent.known_usd if limit.is_money else self._run.spent.tokens

    def _exhausted(self) -> Limit | None:
        """Return the limit that is reached; None if none is."""
        return next((each for each in self._limits if self._used_of(each) >= each.most), None)

    def _check(self) -> None:
        limit = self._exhausted()
        if limit is not None:
            raise BudgetExhausted(limit, self._used_of(limit), self._run.progress.result())

    def _warn_of(self, limit: Limit) -> None:
        """Warn the caller once that a limit is nearly reached, or cannot be watched."""
        used, progress = self._used_of(limit), self._run.progress
        if used >= WARNED_AT * limit.most and limit.name not in self._warned:
            self._warned.add(limit.name)
            progress.note(f"{WARNED_AT:.0%} of a budget is used: {limit.told(used)}.")
        unpriced = self._run.spent.unpriced
        if limit.is_money and unpriced and f"{limit.name} {unpriced}" not in self._warned:
            self._warned.add(f"{limit.name} {unpriced}")
            names = ", ".join(unpriced)
            progress.note(
                f"{limit.name} does not count what {names} costs: no price is known. The operator"
                " can give one with --prices. Limits of tokens hold."
            )

    def _warn_unwatched(self) -> None:
        """Warn the caller if no rollout was found, so that no limit could be watched."""
        if self._limits and self._follower is None and self._run.progress.ended:
            names = ", ".join(limit.name for limit in self._limits)
            self._run.progress.note(
                f"Not watched: {names}. Codex has not kept the thread in this server's CODEX_HOME."
            )

    def _read(self, thread_id: str) -> Spent:
        """Return what the run has used so far; accesses the disk."""
        run = self._run
        with self._reading:
            if thread_id != self._followed:
                self._followed, self._follower, self._earlier = thread_id, None, self._known
            try:
                if self._follower is None:
                    is_resumed = run.before is not None and run.before.thread_id == thread_id
                    mark = run.start if is_resumed else TurnMark(0, run.start.since_ms)
                    self._follower = self._threads.follow_usage(thread_id, mark)
                if self._follower is not None:
                    self._known = self._earlier.plus(self._follower.read())
                if self._ledger.limits:
                    self._ledger.refresh()
            except OSError:
                pass  # Codex has moved the file, or the disk fails: what is known stays.
            return self._known
