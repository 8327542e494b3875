"""One run, and what it comes to."""

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
from codex_tools.codex.paths import codex_home
from codex_tools.codex.program import Program
from codex_tools.codex.record import Usage
from codex_tools.codex.turn_result import TurnProgress, TurnResult
from codex_tools.engines.engine import TurnRequest
from codex_tools.pricing.prices import Prices
from codex_tools.rollouts.files import find_rollout
from codex_tools.rollouts.thread_cost import cost_of, cost_without_rollout
from codex_tools.rollouts.threads import ThreadState, read_state
from codex_tools.runs.result import EffectiveSettings, RunResult, make_result
from codex_tools.schemas.output_schema import Output
from codex_tools.worktree.changes import Changes, merge


@dataclass(slots=True)
class Run:
    """One run; its fields are for reading."""

    run_id: str
    program: Program
    request: TurnRequest
    before: ThreadState | None
    """The thread as it stood, if this run resumes one."""
    created_at: str
    output: Output | None = None
    """The shape that the answer shall have."""
    caller: str = ""
    warnings: tuple[str, ...] = ()
    started_at: float | None = None
    """None while it waits in line."""
    ended_at: float | None = None
    ended: str = ""
    """When it ended, as ISO 8601 in UTC."""
    progress: TurnProgress = field(default_factory=TurnProgress)
    attempts: int = 0
    """How often a turn was started."""
    seen: Changes | None = None
    """How the work tree differs from what it was before, once that is known."""
    used: Usage | None = None
    """What its turns used so far, as far as Codex told."""
    done: anyio.Event = field(default_factory=anyio.Event)
    outcome: RunResult | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    stopped: bool = False
    """Whether somebody asked for its end."""

    def stop(self) -> None:
        """End the run, and all that Codex has started for it; `done` tells when."""
        self.stopped = True
        self.scope.cancel()

    def result(self) -> RunResult:
        """Return the run's result, or how it stands."""
        if self.outcome is not None:
            return self.outcome
        queued = self.started_at is None
        return make_result(
            "queued" if queued else "running",
            run_id=self.run_id,
            turn=self.progress.result(),
            setting=_asked(self),
            duration_s=self.duration_s,
            attempts=self.attempts,
            warnings=self.warnings,
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
        files = self.progress.files_changed
        changed = f" · {files} file{'s' if files > 1 else ''} changed" if files else ""
        return mask(self.progress.doing) + changed


def price_run(run: Run, turn: TurnResult, prices: Prices) -> float | None:
    """Return what the run cost in USD; sub-agents are threads of their own and not in it.

    Reads the rollout, and for the first time the prices: not for the event loop.
    """
    since_ms = int(datetime.fromisoformat(run.created_at).timestamp() * 1000)
    if run.request.ephemeral:
        return cost_without_rollout(run.used, run.request.model, since_ms, prices)
    path = find_rollout(codex_home(), turn.thread_id) if turn.thread_id is not None else None
    try:
        return cost_of(path, since_ms, prices) if path is not None else None
    except OSError:
        return None


def completed(
    run: Run, turn: TurnResult, structured_output: Any, cost_usd: float | None
) -> RunResult:
    """Return the result of a run whose turn went well."""
    setting, noticed = _found(run, turn.thread_id)
    return make_result(
        "completed",
        run_id=run.run_id,
        turn=turn,
        usage=run.used,
        cost_usd=cost_usd,
        structured_output=structured_output,
        setting=setting,
        files=merge(turn.files_changed, run.seen),
        duration_s=run.duration_s,
        attempts=run.attempts,
        warnings=(*run.warnings, *noticed),
    )


def faulty(run: Run) -> RunResult:
    """Return the result of a run that met an internal fault, made of as little as can be."""
    turn = TurnResult(thread_id=run.progress.thread_id)
    return make_result("failed", run_id=run.run_id, turn=turn, error=InternalFault())


def failed(run: Run, error: CodexError, cost_usd: float | None = None) -> RunResult:
    """Return the result of a run that *error* ended."""
    turn = error.turn if isinstance(error, TurnError) else run.progress.result()
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
        usage=run.used,
        cost_usd=cost_usd,
        setting=setting,
        files=merge(turn.files_changed, run.seen),
        duration_s=run.duration_s,
        attempts=run.attempts,
        warnings=(*run.warnings, *noticed),
        error=error,
    )


def _asked(run: Run) -> EffectiveSettings:
    request = run.request
    return EffectiveSettings(
        model=request.model,
        reasoning_effort=request.reasoning_effort,
        sandbox=request.sandbox,
        cwd=str(request.cwd),
        codex_version=run.program.version_text,
        can_resume=not request.ephemeral,
    )


def _found(run: Run, thread_id: str | None) -> tuple[EffectiveSettings, tuple[str, ...]]:
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
