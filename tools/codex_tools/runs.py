"""The register of runs: start, watch, wait, stop.

A run is one turn of Codex while this server looks after it. Runs live in a task
group of their own, not in the call that started them, so that the server's end
ends them all at once.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from codex_tools.codex.errors import (
    Cancelled,
    CodexError,
    Stalled,
    ThreadBusy,
    TimedOut,
    TurnError,
)
from codex_tools.codex.exec import TurnRequest
from codex_tools.codex.program import Program
from codex_tools.codex.record import Usage
from codex_tools.codex.rollout import ThreadState, codex_home, find_rollout, read_state
from codex_tools.codex.turn import Fold, TurnResult, run_turn
from codex_tools.output_schema import read_output
from codex_tools.result import RunResult, Setting, make_result
from codex_tools.thread_lock import ThreadLock

logger = logging.getLogger(__name__)


class InternalFault(CodexError):
    """A fault of this server; its text stays in the server's own log."""

    kind = "internal"

    def __init__(self) -> None:
        super().__init__(
            "The server met an internal fault; its log on stderr has the details.",
            "Call again; if it happens again, report it with that log.",
        )


@dataclass(slots=True)
class Run:
    """One run; its fields are for reading."""

    run_id: str
    program: Program
    request: TurnRequest
    before: ThreadState | None
    """The thread as it stood, if this run resumes one."""
    started_at: float | None = None
    """None while it waits in line."""
    ended_at: float | None = None
    fold: Fold = field(default_factory=Fold)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    done: anyio.Event = field(default_factory=anyio.Event)
    outcome: RunResult | None = None

    def result(self) -> RunResult:
        """Return the run's result, or how it stands."""
        if self.outcome is not None:
            return self.outcome
        queued = self.started_at is None
        return make_result(
            "queued" if queued else "running",
            run_id=self.run_id,
            turn=self.fold.result(),
            setting=_asked(self),
            duration_s=self.duration_s,
            attempts=0 if queued else 1,
        )

    @property
    def duration_s(self) -> float:
        """Seconds since Codex was started for it, or till its end."""
        if self.started_at is None:
            return 0.0
        return (self.ended_at or anyio.current_time()) - self.started_at

    @property
    def headline(self) -> str:
        """What goes on, for people: "running pytest -q · 3 files changed"."""
        if self.outcome is not None:
            return self.outcome.status.replace("_", " ")
        if self.started_at is None:
            return "waiting in line, all runs are taken"
        files = self.fold.files_changed
        changed = f" · {files} file{'s' if files > 1 else ''} changed" if files else ""
        return self.fold.doing + changed


class Runs:
    """All runs of this server."""

    def __init__(self, tasks: TaskGroup, state_dir: Path, max_runs: int) -> None:
        self._tasks = tasks
        self._state_dir = state_dir
        self._places = anyio.CapacityLimiter(max_runs)

    def lock_thread(self, thread_id: str) -> ThreadLock:
        """Keep all other runs, of any server, out of the thread.

        Raises:
            ThreadBusy: Another run is at work in it.
        """
        return ThreadLock.take(self._state_dir, thread_id)

    def start(
        self,
        program: Program,
        request: TurnRequest,
        *,
        before: ThreadState | None = None,
        lock: ThreadLock | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Run:
        """Start a run, or put it in line; return at once.

        Args:
            program: The Codex to run.
            request: The turn.
            before: The thread to resume, as it stands now.
            lock: That thread's lock, which the run takes over.
            warnings: What the caller shall be told besides.
        """
        run_id = f"run_{secrets.token_hex(8)}"
        if lock is not None:
            request = replace(request, held=(lock.fd,))
        run = Run(run_id, program, request, before)
        if self._places.available_tokens > 0:
            run.started_at = anyio.current_time()
        self._tasks.start_soon(self._work, run, lock, warnings, name=run_id)
        return run

    async def _work(self, run: Run, lock: ThreadLock | None, warnings: tuple[str, ...]) -> None:
        outcome: RunResult | None = None
        with ExitStack() as locks, run.scope:
            if lock is not None:
                locks.callback(lock.release)
            try:
                async with self._places:
                    run.started_at = anyio.current_time()
                    outcome = await self._turn(run, locks, warnings)
            except Exception:
                # One of the server's two outer walls (the other: app.call_tool). Without
                # it, a fault in one run would end all others.
                logger.exception("run %s met an internal fault", run.run_id)
                outcome = _failed(run, InternalFault(), warnings)
        run.ended_at = anyio.current_time()
        run.outcome = outcome or _failed(run, Cancelled(run.fold.result()), warnings)
        run.done.set()

    async def _turn(self, run: Run, locks: ExitStack, warnings: tuple[str, ...]) -> RunResult:
        def report(fold: Fold) -> None:
            if run.fold is not fold:
                run.fold = fold
            if fold.thread_id is not None and run.before is None and not locked:
                locked.append(fold.thread_id)
                self._lock_new_thread(fold.thread_id, locks)

        locked: list[str] = []
        try:
            turn = await run_turn(run.program, run.request, report)
            schema = run.request.output_schema
            output = read_output(schema, turn) if schema is not None else None
        except CodexError as error:
            return _failed(run, error, warnings)
        setting, noticed = _found(run, turn.thread_id)
        return make_result(
            "completed",
            run_id=run.run_id,
            turn=turn,
            usage=_own_usage(run, turn),
            structured_output=output,
            setting=setting,
            duration_s=run.duration_s,
            attempts=1,
            warnings=(*warnings, *noticed),
        )

    def _lock_new_thread(self, thread_id: str, locks: ExitStack) -> None:
        try:
            locks.callback(self.lock_thread(thread_id).release)
        except ThreadBusy:
            logger.warning("new thread %s is locked already", thread_id)


@asynccontextmanager
async def open_runs(state_dir: Path, max_runs: int) -> AsyncGenerator[Runs]:
    """Keep a register of runs; leaving ends them all and all they have started."""
    async with anyio.create_task_group() as tasks:
        try:
            yield Runs(tasks, state_dir, max_runs)
        finally:
            tasks.cancel_scope.cancel()


async def wait_while_called(run: Run) -> RunResult:
    """Wait for *run*; a caller that gives up in the meantime ends it."""
    try:
        await run.done.wait()
    finally:
        if not run.done.is_set():
            run.scope.cancel()
            with anyio.CancelScope(shield=True):
                await run.done.wait()
    return run.result()


def _failed(run: Run, error: CodexError, warnings: tuple[str, ...]) -> RunResult:
    turn = error.turn if isinstance(error, TurnError) else run.fold.result()
    setting, noticed = _found(run, turn.thread_id)
    match error:
        case TimedOut() | Stalled():
            status = "timed_out"
        case Cancelled():
            status = "cancelled"
        case _:
            status = "failed"
    return make_result(
        status,
        run_id=run.run_id,
        turn=turn,
        usage=_own_usage(run, turn),
        setting=setting,
        duration_s=run.duration_s,
        attempts=0 if run.started_at is None else 1,
        warnings=(*warnings, *noticed),
        error=error,
    )


def _own_usage(run: Run, turn: TurnResult) -> Usage | None:
    """Return what this turn used, where Codex may have reported the whole thread."""
    earlier = run.before.usage if run.before is not None else None
    if turn.usage is None or earlier is None or not run.program.usage_is_cumulative:
        return turn.usage
    own = turn.usage.minus(earlier)
    return own if own.total_tokens >= 0 else turn.usage


def _asked(run: Run) -> Setting:
    request = run.request
    return Setting(
        model=request.model,
        reasoning_effort=request.reasoning_effort,
        sandbox=request.sandbox,
        cwd=str(request.cwd),
        codex_version=run.program.version_text,
        can_resume=not request.ephemeral,
    )


def _found(run: Run, thread_id: str | None) -> tuple[Setting, tuple[str, ...]]:
    """Return what the turn really ran with, by its rollout, and what differs."""
    asked = _asked(run)
    path = find_rollout(codex_home(), thread_id) if thread_id and asked.can_resume else None
    state = read_state(path) if path is not None else None
    if state is None:
        return asked, ()
    noticed: list[str] = []
    if state.sandbox is not None and state.sandbox != asked.sandbox:
        noticed.append(f"Asked for sandbox {asked.sandbox}, but Codex recorded {state.sandbox}.")
    setting = replace(
        asked,
        model=state.model or asked.model,
        reasoning_effort=state.reasoning_effort or asked.reasoning_effort,
        sandbox=state.sandbox or asked.sandbox,
        cwd=state.cwd or asked.cwd,
    )
    return setting, tuple(noticed)
