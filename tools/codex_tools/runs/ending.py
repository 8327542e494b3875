"""Decide what a run came to: from what Codex printed, its rollout and the work tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio

from codex_tools.codex.errors import (
    Cancelled,
    CodexError,
    InternalFault,
    Interrupted,
    OutputMismatch,
    RequestError,
    Stalled,
    TimedOut,
    TurnError,
)
from codex_tools.codex.masking import quote, shorten
from codex_tools.codex.record import Usage
from codex_tools.codex.turn_result import WARNING_LIMIT, TurnProgress, TurnResult
from codex_tools.codex.workers import on_cpu
from codex_tools.rollouts.threads import Threads
from codex_tools.rollouts.turn_record import Settings, TurnMark, TurnRecord
from codex_tools.runs.project_config import describe_config
from codex_tools.runs.result import (
    RESPONSE_LIMIT,
    EffectiveSettings,
    RunResult,
    RunStatus,
    complete,
    make_result,
)
from codex_tools.runs.run import Run, requested
from codex_tools.runs.run_changes import RunChanges, changes_in_place, changes_of_copy, shown
from codex_tools.runs.settings_check import find_differences, known_sandbox
from codex_tools.runs.store import StoredRun
from codex_tools.worktree.changes import merge
from codex_tools.worktree.tree_changes import Changes

BY_ROLLOUT = "But Codex's rollout says that the turn was completed: the answer is from there."


_NAMED = 5
"""Maximum number of files that a warning names."""

EVIDENCE_WITHIN_S = 0.3
"""Maximum seconds to read a rollout when the run was cancelled or the server ends."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The facts of a run that were read from its thread's rollout; None where unknown."""

    turn: TurnRecord | None = None
    """The latest turn; None if Codex keeps no rollout, or elsewhere than in CODEX_HOME."""
    usage: Usage | None = None
    """Tokens of all turns of the run."""
    cost_usd: float | None = None
    is_elsewhere: bool = False
    """True if there is no rollout of the thread in CODEX_HOME, although Codex keeps one."""


def find_evidence(run: Run, threads: Threads) -> Evidence:
    """Read the settings, end, usage and cost of the run's turns from the thread's rollout.

    This function reads the rollout, and at its first call the prices: never call it on the event
    loop. The cost of sub-agents is not included, because sub-agents have their own threads.
    """
    thread_id = run.progress.thread_id
    if run.request.ephemeral:
        usage, at_ms = run.used, run.start.since_ms
        return Evidence(cost_usd=threads.cost_of_usage(usage, run.request.model, at_ms))
    is_unfinished = isinstance(run.ending, tuple) and bool(run.ending[0].unfinished)
    with_end = run.ending is None or is_unfinished
    turn = threads.turn_record(thread_id, run.mark, with_end=with_end)
    if run.request.review is not None:
        return _evidence_of_review(run, turn, threads)
    whole = turn
    if run.mark != run.start:  # The records of earlier turns of the run count too.
        whole = threads.turn_record(thread_id, run.start, with_end=False)
    if whole is None:
        # Before the turn's end, Codex may not have written it yet.
        is_elsewhere = run.progress.ended and not threads.is_kept(thread_id)
        return Evidence(turn, is_elsewhere=is_elsewhere)
    return Evidence(turn, whole.usage, whole.cost_usd)


def _evidence_of_review(run: Run, turn: TurnRecord | None, threads: Threads) -> Evidence:
    """Return the facts of a review: the reviewer's own thread has its settings and its usage."""
    thread_id = run.progress.thread_id
    found = threads.find_reviewer(thread_id) if thread_id is not None else None
    work = threads.turn_record(found, TurnMark(), with_end=False)
    if work is None:
        is_elsewhere = run.progress.ended and not threads.is_kept(thread_id)
        return Evidence(turn, is_elsewhere=is_elsewhere)
    whole = replace(turn or TurnRecord(), settings=work.settings, troubles=work.troubles)
    return Evidence(whole, work.usage, work.cost_usd)


def turn_of(record: TurnRecord, progress: TurnProgress) -> TurnResult | None:
    """Return the result of a turn that completed with an answer, by its rollout; else None."""
    if record.ending != "completed" or not (record.final_response or "").strip():
        return None
    return replace(progress.result(), final_response=record.final_response, usage=record.usage)


def revise(stored: StoredRun, threads: Threads) -> StoredRun:
    """Return a run whose server has died as its thread's rollout records it.

    Its turn may have completed before the server could store the result. This function reads the
    rollout: never call it on the event loop.
    """
    where, result = stored.recorded, stored.result
    if where is None or result.thread_id is None:
        return stored
    mark = TurnMark(where.offset, where.since_ms, where.segment)
    # Somebody may have gone on in the thread since the server died.
    record = threads.turn_record(result.thread_id, mark, turns=result.attempts)
    if record is None:
        return stored
    settings = record.settings or Settings()
    known = {
        "usage": record.usage or result.usage,
        "cost_usd": result.cost_usd if record.cost_usd is None else record.cost_usd,
        "model": settings.model or result.model,
        "reasoning_effort": settings.reasoning_effort or result.reasoning_effort,
        "sandbox": known_sandbox(settings.sandbox) or result.sandbox,
    }
    answer = record.final_response or ""
    if record.ending == "completed" and answer.strip():
        if where.has_schema:  # The schema is gone, so the answer cannot be checked.
            known["final_response"] = shorten(answer, RESPONSE_LIMIT)
        else:
            result = complete(result, answer)
    return replace(stored, result=result.model_copy(update=known), recorded=None)


def completed(run: Run, turn: TurnResult, structured_output: Any, evidence: Evidence) -> RunResult:
    """Return the result of a run whose turn was completed."""
    return _ended(run, "completed", turn, evidence, structured_output=structured_output)


def faulty(run: Run, fault: InternalFault | None = None) -> RunResult:
    """Return the result of a run with an internal fault, from as little data as possible."""
    return make_result(
        "failed",
        run_id=run.run_id,
        turn=TurnResult(thread_id=run.progress.thread_id),
        usage=run.spent.usage,
        cost_usd=run.spent.cost_usd,
        error=fault or InternalFault(),
    )


def failed(run: Run, error: CodexError, evidence: Evidence) -> RunResult:
    """Return the result of a run that *error* ended."""
    if run.copy is not None and isinstance(error, RequestError):
        error = run.copy.at_home(error)
    turn = error.turn if isinstance(error, TurnError) else run.progress.result()
    match error:
        case TimedOut() | Stalled():
            status = "timed_out"
        case Cancelled():
            status = "cancelled"
        case _:
            status = "failed"
    return _ended(run, status, turn, evidence, error=error)


async def stopped(run: Run, threads: Threads) -> RunResult:
    """Return the result of a run that was stopped, or that ends with the server.

    A turn that has completed stays completed, whether stdout or the rollout says so.
    """
    evidence = Evidence(usage=run.spent.usage, cost_usd=run.spent.cost_usd)
    with anyio.move_on_after(EVIDENCE_WITHIN_S):
        evidence = await on_cpu(find_evidence, run, threads, abandon=True)
    ending = run.ending
    if ending is None:
        turn = run.progress.result() if run.progress.completed else None
        if turn is None and evidence.turn is not None:
            turn = turn_of(evidence.turn, run.progress)
        if turn is not None and (turn.final_response or "").strip():
            ending = await _read_output(run, turn)
    if ending is None:
        turn = run.progress.result()
        ending = Cancelled(turn, run.stopped_by) if run.stopped else Interrupted()
    if isinstance(ending, CodexError):
        return failed(run, ending, evidence)
    return completed(run, *ending, evidence)


async def _read_output(run: Run, turn: TurnResult) -> tuple[TurnResult, Any] | None:
    """Return *turn* with its answer as data; None if the answer cannot be used as it is."""
    if run.output is None:
        return turn, None
    with anyio.move_on_after(EVIDENCE_WITHIN_S):
        try:
            return turn, await on_cpu(run.output.read, turn, abandon=True)
        except OutputMismatch:
            return None
    return None


def _ended(
    run: Run,
    status: RunStatus,
    turn: TurnResult,
    evidence: Evidence,
    *,
    structured_output: Any = None,
    error: CodexError | None = None,
) -> RunResult:
    if evidence.turn is not None:
        turn = turn.with_ends(evidence.turn.commands)
    settings, differences = _effective(run, evidence.turn)
    files = run.in_project(merge(turn.files_changed, run.seen))
    changed = [path for path, *_ in files]
    if evidence.is_elsewhere:
        settings = replace(settings, can_resume=False)
    return make_result(
        status,
        run_id=run.run_id,
        turn=turn,
        usage=run.used if run.counted == run.attempts else evidence.usage or run.used,
        cost_usd=evidence.cost_usd,
        structured_output=structured_output,
        setting=settings,
        files=files,
        changes=_changes(run),
        copy=run.copy_folder,
        duration_s=run.duration_s,
        attempts=run.attempts,
        warnings=(*run.warnings, *differences, *_remarks(run, turn, evidence, changed)),
        error=error,
    )


def _changes(run: Run) -> RunChanges | None:
    """Return what the run changed in its project; None if nobody could look."""
    if run.copy is not None:
        found = run.copy.changes
        if found is None:
            return None
        return changes_of_copy(found, run.copy.left_out, run.run_id, applied=False)
    if run.request.sandbox == "read-only" or run.started_at is None:
        return changes_in_place(())
    if run.seen is None:
        return None
    files = sorted(run.seen.kinds.items())
    return changes_in_place(files, run.diff, run.run_id, run.undiffed)


def _remarks(run: Run, turn: TurnResult, evidence: Evidence, changed: Sequence[str]) -> list[str]:
    """Return warnings about what did not work although it made no turn fail."""
    record = evidence.turn or TurnRecord()
    known = turn.warnings
    remarks = [each for each in record.troubles if quote(each, WARNING_LIMIT) not in known]
    if killed := turn.unfinished:
        count = f"{len(killed)} commands were" if len(killed) > 1 else "A command was"
        names = shorten("; ".join(killed), 200)
        remarks.append(f"{count} still running when the turn ended, and killed: {names}")
    if record.has_lost_image and run.request.images:
        remarks.append("Codex could not read an image, so the model has not seen it.")
    may_change = run.request.sandbox != "read-only" or run.copy is not None
    if may_change and run.seen is None and run.started_at is not None:
        reason = run.unseen or "the run was stopped before they could be compared"
        remarks.append(
            "changes is null, and files_changed has only what Codex's patches changed, not its"
            f" commands: {reason}."
        )
    if run.copy is not None and run.copy.changes is not None:
        remarks += _acting(run.copy.changes)
    if warning := describe_config(changed):
        remarks.append(warning)
    if evidence.is_elsewhere:
        remarks.append(
            "Codex has not kept the thread in the CODEX_HOME of this server, so codex_resume cannot"
            " find it. Perhaps a wrapper around Codex sets another CODEX_HOME."
        )
    return remarks


def _acting(changes: Changes) -> list[str]:
    """Return a warning if applying *changes* brings files that act by themselves."""
    acting = [f"{shown(each.path)} ({each.warning})" for each in changes.files if each.warning]
    if not acting:
        return []
    more = f" and {len(acting) - _NAMED} more" if len(acting) > _NAMED else ""
    return [f"Once applied, these files act by themselves: {', '.join(acting[:_NAMED])}{more}."]


def _effective(run: Run, record: TurnRecord | None) -> tuple[EffectiveSettings, Sequence[str]]:
    """Return the settings that the rollout records, and warnings where they differ."""
    asked = requested(run)
    recorded = record.settings if record is not None else None
    if recorded is None:
        return asked, ()
    settings = replace(
        asked,
        model=recorded.model or asked.model,
        reasoning_effort=recorded.reasoning_effort or asked.reasoning_effort,
        sandbox=known_sandbox(recorded.sandbox) or asked.sandbox,
        cwd=asked.cwd if run.copy is not None else recorded.cwd or asked.cwd,
    )
    return settings, find_differences(run.request, recorded)
