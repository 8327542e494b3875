"""The register of runs: start, watch, wait, stop, keep the results.

A run is one turn of Codex while this server looks after it. Runs live in a task
group of their own, not in the call that started them, so they go on when that
call has returned, and the server's end ends them all at once.
"""

from __future__ import annotations

import logging
import secrets
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from codex_tools.codex.errors import (
    Cancelled,
    CodexError,
    Interrupted,
    ThreadBusy,
    UnknownRun,
)
from codex_tools.codex.masking import shorten
from codex_tools.codex.program import Program
from codex_tools.codex.turn_result import TurnProgress, TurnResult
from codex_tools.engines.engine import TurnRequest
from codex_tools.pricing.prices import Prices
from codex_tools.rollouts.threads import ThreadState
from codex_tools.runs.attempts import run_turns
from codex_tools.runs.audit import AuditLog, ending_of, facts_of
from codex_tools.runs.event_log import EventPage
from codex_tools.runs.result import RunResult
from codex_tools.runs.run import Run, completed, failed, faulty, price_run
from codex_tools.runs.store import RunStore, StoredRun, now
from codex_tools.runs.thread_lock import ThreadLock
from codex_tools.runs.tracing import span_of
from codex_tools.schemas.output_schema import Output
from codex_tools.worktree.changes import changes_since, take_snapshot

logger = logging.getLogger(__name__)

KEPT_IN_MEMORY = 64
"""Ended runs kept besides those on disk, in case the disk is full."""

PRUNE_AFTER_S = 5.0
"""Old files are removed so long after the start, which they must not delay."""

ANSWER_LIMIT = 1_000_000
"""The most characters of an answer told in full."""

LOOK_EVERY_S = 0.5
"""How often the files of other servers' runs are looked at while waiting for them."""


class Runs:
    """All runs of this server, and what is kept of earlier ones."""

    def __init__(
        self, tasks: TaskGroup, state_dir: Path, store: RunStore, max_runs: int, prices: Prices
    ) -> None:
        self._tasks = tasks
        self._prices = prices
        self._state_dir = state_dir
        self._store = store
        self.audit = AuditLog(state_dir)
        self._places = anyio.CapacityLimiter(max_runs)
        self._runs: dict[str, Run] = {}
        self._changed = anyio.Event()

    async def lock_thread(self, thread_id: str) -> ThreadLock:
        """Keep all other runs, of any server, out of the thread.

        A run in it that is being stopped is waited for: its caller has heard
        nothing of its end after a cancel, and may well go on at once.

        Raises:
            ThreadBusy: Another run is at work in it.
        """
        for run in list(self._runs.values()):
            if run.stopped and run.progress.thread_id == thread_id:
                await run.done.wait()
        return ThreadLock.take(self._state_dir, thread_id)

    def start(
        self,
        program: Program,
        request: TurnRequest,
        output: Output | None,
        *,
        caller: str,
        before: ThreadState | None = None,
        lock: ThreadLock | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Run:
        """Start a run, or put it in line; return at once.

        Args:
            program: The Codex to run.
            request: The turn.
            output: The shape that its answer shall have.
            caller: Who asked for it.
            before: The thread to resume, as it stands now.
            lock: That thread's lock, which the run takes over.
            warnings: What the caller shall be told besides.
        """
        run_id = f"run_{secrets.token_hex(8)}"
        if lock is not None:
            request = replace(request, held=(lock.fd,))
        if output is not None:
            request = replace(request, output_schema=output.strict.schema)
        run = Run(run_id, program, request, before, now(), output, caller, warnings)
        if before is not None:
            run.progress.thread_id = before.thread_id
        if sum(other.outcome is None for other in self._runs.values()) < self._places.total_tokens:
            run.started_at = anyio.current_time()
        self._runs[run_id] = run
        self._save(run)
        self.audit.write("started", facts_of(run))
        self._tasks.start_soon(self._work, run, lock, name=run_id)
        return run

    def find(self, run_id: str) -> Run | StoredRun:
        """Return a run of this server, or what is kept of another one.

        Raises:
            UnknownRun: There is none of that id.
        """
        found = self._runs.get(run_id) or self._store.load(run_id)
        if found is None:
            raise UnknownRun(run_id)
        return found

    def result(self, run_id: str) -> RunResult:
        """Return how a run stands, or what it has come to.

        Raises:
            UnknownRun: There is none of that id.
        """
        found = self.find(run_id)
        return found.result() if isinstance(found, Run) else found.result

    def newest(self, count: int, before: str | None = None) -> list[RunResult]:
        """Return up to *count* runs of this state folder, the newest first, those before *before*.

        Those that end or go meanwhile may be missing from it.
        """
        results: list[RunResult] = []
        for run_id in self.newest_ids(count, before):
            try:
                results.append(self.result(run_id))
            except UnknownRun:
                continue
        return results

    def newest_ids(self, count: int, before: str | None = None) -> list[str]:
        """Return their ids alone."""
        return self._store.newest(count, before)

    def whole(self, run_id: str) -> RunResult:
        """Return a run's result with its answer in full, as far as its event log goes.

        Raises:
            UnknownRun: There is none of that id.
        """
        result = self.result(run_id)
        answer = self._store.read_answer(run_id)
        if answer is None or len(answer) <= len(result.final_response or ""):
            return result
        return result.model_copy(update={"final_response": shorten(answer, ANSWER_LIMIT)})

    def events(self, run_id: str, offset: int, room: int) -> EventPage:
        """Return a page of a run's events, from byte *offset*, in *room* characters.

        Raises:
            UnknownRun: There is none of that id.
        """
        self.find(run_id)
        return self._store.read_events(run_id, offset, room) or EventPage((), None, 0)

    async def wait(
        self, run_ids: Sequence[str], wait_s: float, until: Literal["all", "any"]
    ) -> list[RunResult]:
        """Wait for *wait_s* at most until *all* runs have ended, or *any*; return how they stand.

        Raises:
            UnknownRun: There is none of one of the ids.
        """
        enough = all if until == "all" else any
        with anyio.move_on_after(wait_s):
            while not enough(_has_ended(self.result(run_id)) for run_id in run_ids):
                mine = all(run_id in self._runs for run_id in run_ids)
                with anyio.move_on_after(float("inf") if mine else LOOK_EVERY_S):
                    await self._changed.wait()
        return [self.result(run_id) for run_id in run_ids]

    async def stop(self, run_id: str) -> RunResult:
        """End a run, wait until nothing of it is left, and return what it has come to.

        Raises:
            UnknownRun: There is none of that id, or it is at work in another server.
        """
        found = self.find(run_id)
        if isinstance(found, StoredRun):
            if not _has_ended(found.result):
                raise UnknownRun(run_id, "is at work in another server, and only that can end it")
            return found.result
        if found.outcome is None:
            found.stop()
            await found.done.wait()
        return found.result()

    async def _work(self, run: Run, lock: ThreadLock | None) -> None:
        with span_of(run):
            await self._work_on(run, lock)

    async def _work_on(self, run: Run, lock: ThreadLock | None) -> None:
        outcome: RunResult | None = None
        try:
            with ExitStack() as locks, run.scope:
                if lock is not None:
                    locks.callback(lock.release)
                try:
                    async with self._places:
                        run.started_at = anyio.current_time()
                        outcome = await self._turn(run, locks)
                except Exception:
                    # One of the server's two outer walls (the other: app.call_tool). Without
                    # it, a fault in one run would end all others.
                    logger.exception("run %s met an internal fault", run.run_id)
                    outcome = faulty(run)
        finally:
            # Also on the server's own end, when there is nobody left to await anything.
            stopped = Cancelled(run.progress.result()) if run.stopped else Interrupted()
            run.ended_at, run.ended = anyio.current_time(), now()
            run.outcome = outcome or failed(run, stopped)
            run.progress = TurnProgress(thread_id=run.progress.thread_id)  # An answer may be large.
            self._save(run)
            self.audit.write("ended", ending_of(run))
            self._forget()
            run.done.set()
            self._changed.set()
            self._changed = anyio.Event()

    async def _turn(self, run: Run, locks: ExitStack) -> RunResult:
        known = False

        def report(progress: TurnProgress) -> None:
            nonlocal known
            run.progress = progress
            if progress.thread_id is not None and not known:
                known = True
                if run.before is None:
                    self._lock_new_thread(progress.thread_id, locks)
                self._save(run)

        writes = run.request.sandbox != "read-only"
        before = await take_snapshot(run.request.cwd) if writes else None
        error: CodexError | None = None
        turn, output = TurnResult(), None
        with self._store.open_log(run.run_id) as log:
            try:
                turn, output = await run_turns(run, report, log.add)
            except CodexError as problem:
                error = problem
        run.seen = await changes_since(before) if before is not None else None
        if error is not None:
            return failed(run, error, await self._price(run, run.progress.result()))
        return completed(run, turn, output, await self._price(run, turn))

    async def _price(self, run: Run, turn: TurnResult) -> float | None:
        with anyio.CancelScope(shield=True):  # What has ended well has not been cancelled.
            return await anyio.to_thread.run_sync(price_run, run, turn, self._prices)
        raise AssertionError("a shielded scope is not cancelled")

    def _lock_new_thread(self, thread_id: str, locks: ExitStack) -> None:
        try:
            locks.callback(ThreadLock.take(self._state_dir, thread_id).release)
        except (ThreadBusy, OSError) as error:
            logger.warning("new thread %s is not locked: %s", thread_id, error)

    def _save(self, run: Run) -> None:
        try:
            self._store.save(run.result(), run.created_at)
        except OSError as error:
            logger.warning("%s is not kept on disk: %s", run.run_id, error)

    def _forget(self) -> None:
        ended = [run_id for run_id, run in self._runs.items() if run.outcome is not None]
        for run_id in ended[:-KEPT_IN_MEMORY]:
            del self._runs[run_id]


@asynccontextmanager
async def open_runs(state_dir: Path, max_runs: int, prices: Prices) -> AsyncGenerator[Runs]:
    """Keep a register of runs; leaving ends them all and all they have started.

    Where *state_dir* cannot be used, a temporary folder stands in for it:
    results then live as long as the server.
    """
    with ExitStack() as stack:
        try:
            store = RunStore(state_dir)
        except OSError as error:
            logger.warning("%s cannot be used, nothing will be kept: %s", state_dir, error)
            state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            store = RunStore(state_dir)
        stack.callback(store.close)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_prune, store)
            try:
                yield Runs(tasks, state_dir, store, max_runs, prices)
            finally:
                tasks.cancel_scope.cancel()


async def _prune(store: RunStore) -> None:
    await anyio.sleep(PRUNE_AFTER_S)
    try:
        await anyio.to_thread.run_sync(store.prune, abandon_on_cancel=True)
    except OSError as error:
        logger.warning("old files are not removed: %s", error)


async def wait_while_called(run: Run, wait_s: float) -> RunResult:
    """Wait for *run*, for *wait_s* at most, and return how it stands then.

    A caller that gives up while it waits ends the run; one that has got an
    answer in time does not.
    """
    try:
        with anyio.move_on_after(wait_s):
            await run.done.wait()
    except anyio.get_cancelled_exc_class():
        run.stop()
        with anyio.CancelScope(shield=True):
            await run.done.wait()
        raise
    return run.result()


def _has_ended(result: RunResult) -> bool:
    return result.status not in ("running", "queued")
