"""Define a run, and make its result from the turn and the rollout."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import anyio

from codex_tools.codex.errors import (
    Cancelled,
    CodexError,
    InternalFault,
    Stalled,
    TimedOut,
    TurnError,
)
from codex_tools.codex.masking import mask
from codex_tools.codex.record import Usage
from codex_tools.codex.turn_result import TurnProgress, TurnResult
from codex_tools.engines.engine import TurnRequest
from codex_tools.rollouts.threads import Threads, ThreadState
from codex_tools.runs.result import EffectiveSettings, RunResult, RunStatus, make_result
from codex_tools.schemas.output_schema import Output
from codex_tools.worktree.changes import Changes, merge


@dataclass(slots=True)
class Run:
    """One run; other modules may read its fields, and only the runs package sets them."""

    run_id: str
    request: TurnRequest
    before: ThreadState | None
    """The thread's state before the run; None if the run begins a new thread."""
    created_at: str
    output: Output | None = None
    """The schema that the answer must satisfy."""
    caller: str = ""
    warnings: tuple[str, ...] = ()
    started_at: float | None = None
    """None while the run is queued."""
    ended_at: float | None = None
    ended: str = ""
    """Time of the end, as ISO 8601 in UTC."""
    progress: TurnProgress = field(default_factory=TurnProgress)
    attempts: int = 0
    """Number of turns started."""
    seen: Changes | None = None
    """Changes of the work tree since the run began; None until they are known."""
    answer: str | None = None
    """The answer in full if the result contains a shortened one; set when the run has ended."""
    used: Usage | None = None
    """Usage of its turns so far, as far as Codex reported it."""
    done: anyio.Event = field(default_factory=anyio.Event)
    outcome: RunResult | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    stopped: bool = False
    """True if the run was asked to stop, by codex_stop or by cancelling its call."""

    def stop(self) -> None:
        """Stop the run and all that Codex has started for it; `done` is set at its end."""
        # A run that the server's end has interrupted already does not become a stopped one.
        self.stopped = self.stopped or not self.scope.cancel_called
        self.scope.cancel()

    def interrupt(self) -> None:
        """End the run because the server ends."""
        self.scope.cancel()

    def result(self) -> RunResult:
        """Return the run's result, final or so far."""
        if self.outcome is not None:
            return self.outcome
        queued = self.started_at is None
        return make_result(
            "queued" if queued else "running",
            run_id=self.run_id,
            turn=self.progress.result(),
            setting=_requested(self),
            duration_s=self.duration_s,
            attempts=self.attempts,
            warnings=self.warnings,
        )

    @property
    def duration_s(self) -> float:
        """Seconds from the start of Codex to the end of the run, or until now."""
        if self.started_at is None:
            return 0.0
        return (self.ended_at or anyio.current_time()) - self.started_at

    @property
    def headline(self) -> str:
        """Current activity as text for people: "running pytest -q · 3 files changed"."""
        if self.outcome is not None:
            return self.outcome.status.replace("_", " ")
        if self.started_at is None:
            return "waiting in the queue: the limit --max-runs is reached"
        files = self.progress.files_changed
        changed = f" · {files} file{'s' if files > 1 else ''} changed" if files else ""
        return mask(self.progress.doing) + changed


@dataclass(frozen=True, slots=True)
class Evidence:
    """The facts of a run's turn that were read from disk; None where unknown."""

    state: ThreadState | None = None
    """The thread's state after the turn, as its rollout records it."""
    cost_usd: float | None = None


def find_evidence(run: Run, thread_id: str | None, threads: Threads) -> Evidence:
    """Read the state and the cost of the run's turn from the thread's rollout.

    This function reads the rollout, and at its first call the prices: never call it on the event
    loop. The cost of sub-agents is not included, because sub-agents have their own threads.
    """
    since_ms = int(datetime.fromisoformat(run.created_at).timestamp() * 1000)
    if run.request.ephemeral:
        cost = threads.cost_of_usage(run.used, run.request.model, since_ms)
        return Evidence(cost_usd=cost)
    state = threads.find_state(thread_id)
    return Evidence(state, threads.cost_since(thread_id, since_ms))


def completed(run: Run, turn: TurnResult, structured_output: Any, evidence: Evidence) -> RunResult:
    """Return the result of a run whose turn was completed."""
    return _ended(run, "completed", turn, evidence, structured_output=structured_output)


def faulty(run: Run, fault: InternalFault | None = None) -> RunResult:
    """Return the result of a run with an internal fault, from as little data as possible."""
    turn = TurnResult(thread_id=run.progress.thread_id)
    return make_result("failed", run_id=run.run_id, turn=turn, error=fault or InternalFault())


def failed(run: Run, error: CodexError, evidence: Evidence) -> RunResult:
    """Return the result of a run that *error* ended."""
    turn = error.turn if isinstance(error, TurnError) else run.progress.result()
    match error:
        case TimedOut() | Stalled():
            status = "timed_out"
        case Cancelled():
            status = "cancelled"
        case _:
            status = "failed"
    return _ended(run, status, turn, evidence, error=error)


def _ended(
    run: Run,
    status: RunStatus,
    turn: TurnResult,
    evidence: Evidence,
    *,
    structured_output: Any = None,
    error: CodexError | None = None,
) -> RunResult:
    settings, differences = _effective(run, evidence.state)
    return make_result(
        status,
        run_id=run.run_id,
        turn=turn,
        usage=run.used,
        cost_usd=evidence.cost_usd,
        structured_output=structured_output,
        setting=settings,
        files=merge(turn.files_changed, run.seen),
        duration_s=run.duration_s,
        attempts=run.attempts,
        warnings=(*run.warnings, *differences),
        error=error,
    )


def _requested(run: Run) -> EffectiveSettings:
    request = run.request
    return EffectiveSettings(
        model=request.model,
        reasoning_effort=request.reasoning_effort,
        sandbox=request.sandbox,
        cwd=str(request.cwd),
        codex_version=request.program.version_text,
        can_resume=not request.ephemeral,
    )


def _effective(run: Run, state: ThreadState | None) -> tuple[EffectiveSettings, tuple[str, ...]]:
    """Return the settings that the rollout records, and warnings where they differ."""
    asked = _requested(run)
    if state is None:
        return asked, ()
    differences: list[str] = []
    if state.sandbox is not None and state.sandbox != asked.sandbox:
        differences.append(
            f"The sandbox was set to {asked.sandbox}, but Codex recorded {state.sandbox}."
        )
    settings = replace(
        asked,
        model=state.model or asked.model,
        reasoning_effort=state.reasoning_effort or asked.reasoning_effort,
        sandbox=state.sandbox or asked.sandbox,
        cwd=state.cwd or asked.cwd,
    )
    return settings, tuple(differences)
