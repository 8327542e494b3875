"""Keep the register of runs: start, wait for and stop runs, and keep their results.

A run is one turn of Codex while this server looks after it. Runs live in their own task group, not
in the call that started them. Therefore a run continues after that call has returned, and the end
of the server ends all runs at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import anyio
from anyio.abc import TaskGroup

from codex_tools.codex.budget import NO_BUDGETS, Budgets
from codex_tools.codex.errors import CodexError, ThreadBusy
from codex_tools.codex.faults import fault_for
from codex_tools.codex.paths import in_roots
from codex_tools.codex.run_errors import QueueFull, UnknownRun
from codex_tools.codex.turn_result import TurnProgress
from codex_tools.codex.workers import on_cpu, on_disk
from codex_tools.engines.engine import TurnRequest
from codex_tools.rollouts.threads import ThreadState
from codex_tools.runs import ending, folders
from codex_tools.runs.attempts import mark_of, run_turns
from codex_tools.runs.audit import AuditLog, ending_of, facts_of
from codex_tools.runs.day_ledger import DayLedger
from codex_tools.runs.event_log import EventLog, EventPage
from codex_tools.runs.kept_result import may_differ, refreshed, with_answer
from codex_tools.runs.keys import Keys, new_run_id
from codex_tools.runs.records import ANSWER_LIMIT, Records
from codex_tools.runs.result import RunResult
from codex_tools.runs.run import Run
from codex_tools.runs.sites import HERE, Site, Sites
from codex_tools.runs.stop_file import RunElsewhere, StopWatch, stop_elsewhere
from codex_tools.runs.store import RunStore, StoredRun, now
from codex_tools.runs.thread_lock import ThreadLock, release_all, take_lock
from codex_tools.runs.tracing import span_of
from codex_tools.runs.usage_limit import Place
from codex_tools.runs.usage_watch import UsageWatch
from codex_tools.runs.work_place import WorkPlace, leave_copy
from codex_tools.runs.writer import RECORDED_WITHIN_S, WRITTEN_WITHIN_S, StateWriter
from codex_tools.schemas.output_schema import Output

logger = logging.getLogger(__name__)

MAX_QUEUE = 64
"""Default limit of queued runs: 400 queued prompts of 1 MB each once took 390 MB of memory."""

KEPT_IN_MEMORY = 64
"""Ended runs kept in memory, in addition to those whose record could not be written yet."""


POLL_EVERY_S = 0.5
"""Polling interval in seconds for runs owned by another server."""


class Runs:
    """All runs of this server, and the stored runs of other and earlier servers."""

    def __init__(
        self,
        tasks: TaskGroup,
        store: RunStore,
        writer: StateWriter,
        *,
        state_dir: Path,
        sites: Sites,
        max_queue: int = MAX_QUEUE,
        roots: Sequence[Path] = (),
        budgets: Budgets = NO_BUDGETS,
        notes: tuple[str, ...] = (),
        is_kept: bool = True,
    ) -> None:
        """Create an empty register.

        *notes* are warnings for the callers of all runs. *is_kept* is False if *state_dir* is
        temporary.
        """
        self._tasks = tasks
        self._store = store
        self._writer = writer
        self._records = Records(store, writer)
        self._state_dir = state_dir
        self._notes = notes
        self._is_kept = is_kept
        self._roots = roots
        self.audit = AuditLog(state_dir, writer)
        self.ledger = DayLedger(state_dir, writer, store, sites.here.threads, budgets)
        self.keys = Keys(state_dir, store, writer)
        self._sites = sites
        self._max_queue = max_queue
        self._runs: dict[str, Run] = {}
        self._closing = False
        self._stops = StopWatch(tasks, store)
        self._changed = anyio.Event()

    async def lock_thread(self, thread_id: str, place: str = HERE) -> ThreadLock:
        """Lock the thread, which is at *place*, against all other runs, of any server.

        This waits for a run in that thread that is being stopped. After a cancel, the caller of
        that run gets no notice of its end, and may resume the thread at once.

        Raises:
            ThreadBusy: Another run is using the thread.
        """
        for run in self.in_thread(thread_id):
            if run.stopped:
                await run.done.wait()
        return await take_lock(self._sites.of(place).threads.home, self._state_dir, thread_id)

    async def order(self, places: Sequence[str], model: str | None) -> list[str]:
        """Return *places* in the order in which to try them for a run; see `Sites.order`."""
        unfinished = [run for run in self._runs.values() if run.outcome is None]
        return await self._sites.order(
            places, Counter(run.request.place for run in unfinished), model
        )

    def in_thread(self, thread_id: str) -> list[Run]:
        """Return the runs of this server that are or were in a thread, and are in memory."""
        return [run for run in self._runs.values() if run.progress.thread_id == thread_id]

    def is_own(self, run_id: str) -> bool:
        """Return True if this server started the run, and still has it in memory."""
        return run_id in self._runs

    async def unlock_thread(self, lock: ThreadLock) -> None:
        """Unlock a thread in which no run was started."""
        with anyio.CancelScope(shield=True):
            await on_disk(lock.release)

    def start(
        self,
        request: TurnRequest,
        output: Output | None,
        *,
        caller: str,
        before: ThreadState | None = None,
        lock: ThreadLock | None = None,
        warnings: tuple[str, ...] = (),
        run_id: str | None = None,
    ) -> Run:
        """Start a run, or queue it; return at once.

        Args:
            request: The turn.
            output: The schema that its answer must satisfy.
            caller: The client that asked for the run.
            before: The current state of the thread to resume.
            lock: That thread's lock. The run owns the lock, unless this method raises.
            warnings: Warnings for the caller.
            run_id: An id of `new_run_id` that was promised before; None for a new one.

        Raises:
            QueueFull: As many runs are queued as the operator allows.
            FolderBusy: Another run could replace a folder that the turn may write to.
        """
        runs = (run for run in self._runs.values() if run.request.place == request.place)
        unfinished = sum(run.outcome is None for run in runs)
        slots = int(self._sites.of(request.place).slots.total_tokens)
        if unfinished >= slots + self._max_queue:
            raise QueueFull(unfinished - slots, self._max_queue)
        folders.check_free(request, self._runs.values())
        run_id = run_id or new_run_id()
        if lock is not None:
            request = replace(request, held=(lock.fd,))
        request = replace(request, scratch=self._store.scratch)
        if output is not None:
            request = replace(request, output_schema=output.strict.schema)
        run = Run(run_id, request, before, now(), output, caller, (*warnings, *self._notes))
        run.on_wake = self._wake
        run.start = run.mark = mark_of(before if request.resumed is not None else None)
        run.progress.thread_id = request.resumed
        if unfinished < slots:
            run.started_at = anyio.current_time()
        self._runs[run_id] = run
        self._sites.note_start(request.place)
        try:
            self._records.save(run)
            self.audit.write("started", facts_of(run))
            self._tasks.start_soon(self._work, run, lock, name=run_id)
            self._stops.add(run)
        except BaseException:
            del self._runs[run_id]
            raise
        if self._closing:
            run.interrupt()
        return run

    async def stored(self, within_s: float = RECORDED_WITHIN_S) -> None:
        """Wait until all records so far are on disk, at most *within_s* seconds.

        The id of a run leaves this server only then: this process may be killed the next moment.
        """
        await self._writer.flush(within_s)

    def close(self) -> None:
        """Interrupt all runs, and all that are started later, because the server ends."""
        self._closing = True
        for run in self._runs.values():
            run.interrupt()

    async def closed(self) -> None:
        """Wait until all runs have ended and are stored; then no longer count as alive."""
        while unfinished := [run for run in self._runs.values() if not run.done.is_set()]:
            await unfinished[0].done.wait()
        await on_disk(self._store.close, abandon=True)

    async def find(self, run_id: str) -> Run | StoredRun:
        """Return a run of this server, or the stored record of another run.

        Raises:
            UnknownRun: There is no run with that id.
        """
        found = self._runs.get(run_id) or await on_disk(self._store.load, run_id)
        if found is None:
            raise UnknownRun(run_id)
        if isinstance(found, StoredRun) and found.recorded is not None:
            threads = self._sites.of(found.result.place).threads
            found = await on_cpu(ending.revise, found, threads)
            self._records.save_revised(found)
        return found

    async def result(self, run_id: str) -> RunResult:
        """Return a run's result, final or so far.

        Raises:
            UnknownRun: There is no run with that id.
        """
        found = await self.find(run_id)
        return await self.refreshed(found.result() if isinstance(found, Run) else found.result)

    async def refreshed(self, result: RunResult) -> RunResult:
        """Return the result of a run with what has become of its changes."""
        if not may_differ(result):
            return result
        return await on_disk(refreshed, self._state_dir, result)

    async def newest(self, count: int, before: str | None = None) -> list[RunResult]:
        """Return the results of up to *count* runs older than *before*, the newest first.

        All servers that share the state folder are included. Runs that end or are removed
        meanwhile may be missing.
        """
        results: list[RunResult] = []
        for run_id in await self.newest_ids(count, before):
            with suppress(UnknownRun):
                results.append(await self.result(run_id))
        return results

    async def newest_ids(self, count: int, before: str | None = None) -> list[str]:
        """Return the ids of the runs that `newest` reads."""
        return await on_disk(self._store.newest, count, before)

    async def whole(self, run_id: str) -> RunResult:
        """Return a run's result with its answer in full.

        Raises:
            UnknownRun: There is no run with that id.
        """
        found = await self.find(run_id)
        result = await self.result(run_id)
        # The answer stays in memory until the writer's thread has written it to disk.
        answer = found.answer or found.progress.final_response if isinstance(found, Run) else None
        if answer is None:
            answer = await on_disk(self._store.read_answer, run_id)
        return with_answer(result, answer, ANSWER_LIMIT)

    async def events(self, run_id: str, offset: int, room: int) -> EventPage:
        """Return a page of a run's events, from byte *offset*, in about *room* characters.

        Raises:
            UnknownRun: There is no run with that id.
        """
        if isinstance(await self.find(run_id), Run):
            await self.stored(WRITTEN_WITHIN_S)
        page = await on_disk(self._store.read_events, run_id, offset, room)
        return page or EventPage((), None, 0)

    async def wait(
        self,
        run_ids: Sequence[str],
        wait_s: float,
        until: Literal["all", "any"],
        *,
        attended: bool = False,
    ) -> list[RunResult]:
        """Wait until all runs, or any of them, have ended; return each result, final or so far.

        Args:
            run_ids: The ids of the runs.
            wait_s: Maximum seconds to wait; less if the caller must answer a question.
            until: "all" to wait for all runs, "any" for the first one.
            attended: True if a person is being asked what a person may answer.

        Raises:
            UnknownRun: There is no run with one of the ids.
        """
        enough = all if until == "all" else any
        until_at = anyio.current_time() + wait_s
        while True:
            changed = self._changed
            results = [await self.result(run_id) for run_id in run_ids]
            left_s = until_at - anyio.current_time()
            if left_s <= 0 or enough(each.has_ended for each in results):
                return results
            asking = [each.run_id or "" for each in results if each.status == "needs_answer"]
            own = filter(None, map(self._runs.get, asking))
            if any(run.needs_caller(attended=attended) for run in own) or {*asking} - {*self._runs}:
                return results
            mine = all(map(self.is_own, run_ids))
            with anyio.move_on_after(left_s if mine else min(left_s, POLL_EVERY_S)):
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def stop(self, run_id: str, caller: str | None = None) -> RunResult:
        """Stop a run, wait until none of its processes is left, and return its result.

        Args:
            run_id: The id of the run.
            caller: The client that may stop other servers' runs too; None if it may not.

        Raises:
            UnknownRun: There is no run with that id, or it is another server's outside the roots.
            RunElsewhere: The run belongs to another server process, which does not stop it.
        """
        found = await self.find(run_id)
        if isinstance(found, StoredRun):
            if found.result.has_ended:
                return await self.refreshed(found.result)
            if not await on_disk(in_roots, found.result.cwd, self._roots):
                raise UnknownRun(run_id)
            if caller is None:
                raise RunElsewhere(run_id)
            await stop_elsewhere(self._store, found, f"{caller} through another server process")
            return await self.result(run_id)
        if found.outcome is None:
            found.stop()
            await found.done.wait()
        return await self.refreshed(found.result())

    def alive(self) -> list[str]:
        """Return the ids of the runs of this server that have not ended."""
        return [run.run_id for run in self._runs.values() if run.outcome is None]

    async def _work(self, run: Run, lock: ThreadLock | None) -> None:
        with span_of(run):
            await self._work_on(run, lock)

    async def _work_on(self, run: Run, lock: ThreadLock | None) -> None:
        outcome: RunResult | None = None
        locks = [lock] if lock is not None else []
        try:
            with run.scope:
                try:
                    save, site = partial(self._records.save, run), self._site(run)
                    async with Place(site.slots, site.limits, run, save) as place:
                        run.started_at = anyio.current_time()
                        outcome = await self._turn(run, locks, place)
                except Exception as error:
                    # One of the server's two outer walls (the other: app.call_tool). Without
                    # this one, a fault in one run would end all others.
                    logger.exception("internal fault in run %s", run.run_id)
                    outcome = ending.faulty(run, fault_for(error))
        finally:
            # This runs also when the server ends: everything awaited here must be short.
            with anyio.CancelScope(shield=True):
                await self._end(run, outcome, locks)

    async def _end(self, run: Run, outcome: RunResult | None, locks: list[ThreadLock]) -> None:
        """Set a run's result, store it, unlock its thread, and wake the calls that wait for it."""
        try:
            await leave_copy(run)
            if outcome is None:
                outcome = await ending.stopped(run, self._site(run).threads)
        except Exception:
            logger.exception("internal fault at the end of run %s", run.run_id)
            outcome = ending.faulty(run)
        finally:
            run.ended_at, run.ended = anyio.current_time(), now()
            run.outcome = outcome or ending.faulty(run)
            self.ledger.end(run.run_id, run.spent, run.outcome.usage, run.outcome.cost_usd)
            answer = run.progress.final_response
            run.progress = TurnProgress(thread_id=run.progress.thread_id)  # An answer is large.
            self._records.save(run, answer)
            self.audit.write("ended", ending_of(run))
            # In the writer's thread, because the lock of a new thread may be taken only now.
            self._writer.put(partial(release_all, locks))
            in_time = await self._writer.flush(WRITTEN_WITHIN_S)
            if not in_time or self._records.is_unsaved(run.run_id):
                self._tasks.start_soon(self._records.save_later, run)
            self._forget()
            run.done.set()
            run.wake()

    async def _turn(self, run: Run, locks: list[ThreadLock], place: Place) -> RunResult:
        known, attempts = False, 0

        def report(progress: TurnProgress) -> None:
            nonlocal known, attempts
            run.progress = progress
            if run.has_new_questions():
                self._records.save(run)
            watch.wake()
            if progress.thread_id is not None and not known:
                known = True
                if run.request.resumed is None:
                    lock = partial(self._lock_new_thread, run, progress.thread_id, locks)
                    self._writer.put(lock)
                self._writer.put(partial(work.note_thread, progress.thread_id))
            if progress.started and run.attempts != attempts:
                attempts = run.attempts  # The next server must know how many turns are the run's.
                self._records.save(run)

        site = self._site(run)
        watch = UsageWatch(site.threads, run, self.ledger, partial(self._records.save, run))
        self.ledger.begin(run.run_id)
        work = WorkPlace(run, site, self._state_dir, self._roots, can_copy=self._is_kept)
        place.on_return = work.remember
        async with AsyncExitStack() as stack:
            try:
                request = await work.enter(stack)
            except CodexError as error:
                return ending.failed(run, error, ending.Evidence())
            if run.copy is not None:
                self._records.save(run)
            identities = await on_disk(folders.identify, request)
            with EventLog(self._store.log_path(run.run_id), self._writer) as log:
                try:
                    await self.ledger.check()
                    run.ending = await run_turns(
                        work.engine, site.threads, run, request, report, log.add, watch, place
                    )
                except CodexError as error:
                    run.ending = error
            await work.look()
        await on_disk(folders.ending_in, run, identities)
        with anyio.CancelScope(shield=True):  # A turn that has ended cannot be cancelled.
            evidence = await on_cpu(ending.find_evidence, run, site.threads)
            if isinstance(run.ending, CodexError):
                return ending.failed(run, run.ending, evidence)
            return ending.completed(run, *run.ending, evidence)
        raise AssertionError("a shielded scope is not cancelled")

    def _site(self, run: Run) -> Site:
        return self._sites.of(run.request.place)

    def _lock_new_thread(self, run: Run, thread_id: str, locks: list[ThreadLock]) -> None:
        """Lock the thread that a run has just begun; called in the writer's thread."""
        home = self._site(run).threads.home
        try:
            locks.append(ThreadLock.take(home, self._state_dir, thread_id))
        except (ThreadBusy, OSError) as error:
            logger.warning("cannot lock the new thread %s: %s", thread_id, error)

    def _forget(self) -> None:
        """Drop the oldest ended runs above KEPT_IN_MEMORY from memory, except unsaved ones."""
        unsaved, runs = self._records.is_unsaved, self._runs.items()
        ended = [id_ for id_, run in runs if run.outcome is not None and not unsaved(id_)]
        for run_id in ended[:-KEPT_IN_MEMORY]:
            del self._runs[run_id]
