"""Run the turns of one run: the first one, retries, and repairs of the answer.

A turn that failed for a transient reason is retried, but only if it has changed nothing outside
its thread: a command that has run must not run twice without the caller's knowledge. An answer
that does not match the schema goes back to the model with a list of its problems. Codex itself
retries requests, but not turns.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import anyio

from codex_tools.codex.budget import BudgetExhausted
from codex_tools.codex.errors import (
    Kind,
    NoAnswer,
    OutputMismatch,
    Stalled,
    TimedOut,
    TurnError,
    TurnFailed,
)
from codex_tools.codex.failures import classify
from codex_tools.codex.place_errors import PlaceLost
from codex_tools.codex.record import Usage
from codex_tools.codex.turn_result import TurnProgress, TurnResult
from codex_tools.codex.workers import on_cpu, on_disk
from codex_tools.engines.driver import run_turn
from codex_tools.engines.engine import Engine, Keep, TurnRequest
from codex_tools.rollouts.threads import Threads, ThreadState
from codex_tools.rollouts.turn_record import TurnMark
from codex_tools.runs.ending import BY_ROLLOUT, turn_of
from codex_tools.runs.run import Run
from codex_tools.runs.settings_check import SettingsCheck
from codex_tools.runs.usage_limit import Place, asked_pause, reset_of
from codex_tools.runs.usage_watch import UsageWatch

PASSING: frozenset[Kind] = frozenset({"rate_limited", "overloaded", "network"})
"""The kinds of failure that may be transient."""

TRIES = 3
"""Maximum number of tries of a turn, the first included."""

BACKOFF_S = (1.0, 4.0)
"""Minimum seconds of pause before the second and the third try; up to half as much is added."""

LONGEST_PAUSE_S = 60.0
"""Maximum seconds of pause. If a provider asks for more, the caller gets the error at once."""

LAST_START_S = 20.0
"""Age in seconds after which a run is not retried.

Codex itself retries a request that got a 5xx for up to 20 s. Three times that would only delay the
error that the caller gets.
"""

MODELS_NAMED = 12
"""Maximum number of models that an error names."""

_TWO_WITNESSES = Stalled | TimedOut | TurnFailed | NoAnswer | BudgetExhausted | PlaceLost
"""Errors after which the rollout may say that the turn was completed all the same."""

Report = Callable[[TurnProgress], None]


async def run_turns(
    engine: Engine,
    threads: Threads,
    run: Run,
    request: TurnRequest,
    report: Report,
    keep: Keep,
    watch: UsageWatch,
    place: Place,
) -> tuple[TurnResult, Any]:
    """Run the turns of *run*; return the result of the last one, and its answer as data.

    Args:
        engine: The engine that runs the turns.
        threads: The threads that the engine can resume.
        run: The run.
        request: Its first turn, where it works.
        report: Called after each event with the progress of the turn.
        keep: Called with each line as Codex wrote it.
        watch: Follows the tokens of the run, and ends it at its limits.
        place: The run's place among those at work.

    Raises:
        CodexError: The error that `run_turn` raised for the last turn.
        OutputMismatch: The answer still does not match the schema.
    """
    progress = run.progress
    since = anyio.current_time()
    before = run.before
    tries, repairs = 1, run.output.repairs if run.output is not None else 0
    while True:
        run.attempts += 1
        if run.attempts > 1:
            run.mark = mark_of(before if request.resumed is not None else None)
        check = SettingsCheck(threads, request, run.mark, progress)
        try:
            start = partial(run_turn, engine, request, report, keep, progress=progress, since=since)
            turn = await check.run(partial(watch.run, start))
            _count(run, turn.usage, before)
        except TurnError as error:
            if isinstance(error, PlaceLost):  # The seat does not know what the turn did so far.
                error.turn = progress.result()
            ended = await _ask_rollout(error, run, request, threads)
            if ended is not None:
                turn = ended
            elif isinstance(error, TurnFailed):
                _count(run, error.turn.usage, before)
                age_s = anyio.current_time() - since
                if await place.wait(error, age_s):
                    progress.note(
                        f"Try {run.attempts} failed (usage limit: {error.message}). Waited until"
                        " the limit was reset, and retried."
                    )
                    request = await _again(request, progress, threads)
                    before = await _state(request, threads)
                    continue
                pause_s = pause_before_next(error, tries, age_s, request.timeout_s)
                if pause_s is None:
                    run.ending = error
                    raise await _explained(error, engine, request) from None
                kind = error.failure.kind.replace("_", " ")
                progress.note(f"Try {tries} failed ({kind}: {error.message}). Retried.")
                progress.doing = f"{kind}, retrying in {pause_s:.0f} s"
                report(progress)
                await anyio.sleep(pause_s)
                tries += 1
                request = await _again(request, progress, threads)
                before = await _state(request, threads)
                continue
            else:
                raise
        if request.review is not None:
            return turn, await on_cpu(threads.read_review, turn.thread_id)
        if run.output is None:
            return turn, None
        try:
            return turn, await on_cpu(run.output.read, turn)
        except OutputMismatch as error:
            if repairs == 0 or not await _can_resume(request, progress.thread_id, threads):
                raise
            found = error.problems
        progress.note(f"An answer did not match output_schema: {'; '.join(found)}")
        repairs -= 1
        tries = 1
        request = replace(
            request, prompt=_mend(found), images=(), thread_id=turn.thread_id, fork=False
        )
        before = await _state(request, threads)
        progress.begin_turn(turn.thread_id)
        progress.doing = "asking Codex to correct its answer"
        report(progress)


def mark_of(before: ThreadState | None) -> TurnMark:
    """Return where the records of a turn begin that starts now, in a thread with state *before*."""
    now_ms = int(time.time() * 1000)
    return TurnMark(0, now_ms) if before is None else TurnMark(before.size, now_ms, before.segment)


async def _ask_rollout(
    error: TurnError, run: Run, request: TurnRequest, threads: Threads
) -> TurnResult | None:
    """Return the result of a turn that completed by its rollout although stdout says *error*.

    Codex's stdout may stop, or lose its last event, and the turn completes all the same.

    Raises:
        TurnFailed: The rollout says why the turn failed, and stdout does not.
    """
    progress = run.progress
    if request.ephemeral or progress.failure is not None:
        return None
    if not isinstance(error, _TWO_WITNESSES):
        return None
    record = await on_cpu(threads.turn_record, progress.thread_id, run.mark, abandon=True)
    if record is None:
        return None
    if record.ending == "failed" and record.error and isinstance(error, TurnFailed):
        raise TurnFailed(classify(record.error), error.turn) from None
    turn = turn_of(record, progress)
    if turn is not None:
        progress.note(f"{error.message} {BY_ROLLOUT}")
        _add(run, record.usage)
        return replace(turn, warnings=progress.result().warnings)
    return None


def pause_before_next(
    error: TurnFailed, tries: int, age_s: float, timeout_s: float
) -> float | None:
    """Return the seconds to wait before the turn is retried; None if it must not be retried.

    Args:
        error: The error of the last try.
        tries: The number of tries so far.
        age_s: The age of the run, in seconds.
        timeout_s: The time limit of the run, in seconds.
    """
    failure = error.failure
    if failure.kind not in PASSING or not failure.retryable or error.turn.touched:
        return None
    if tries >= TRIES or age_s > LAST_START_S:
        return None
    shortest = BACKOFF_S[tries - 1]
    pause_s = max(asked_pause(error.message) or 0.0, shortest * random.uniform(1.0, 1.5))
    if pause_s > LONGEST_PAUSE_S or age_s + pause_s >= timeout_s:
        return None
    return pause_s


async def _explained(error: TurnFailed, engine: Engine, request: TurnRequest) -> TurnFailed:
    """Return *error* with what the caller cannot know: other models, or when a limit resets."""
    hint = ""
    if error.failure.kind == "model_unavailable":
        found = await engine.list_models(request.program, request.environment)
        others = [each.name for each in found.models if each.name != request.model] if found else []
        names = ", ".join(others[:MODELS_NAMED])
        if found is not None and names:
            hint = (
                f" For this account, Codex lists {names}."
                if found.is_of_account
                else f" Codex itself lists {names}; the provider may have others."
            )
    elif (until := reset_of(error)) is not None:
        hint = f" The limit resets at {until.isoformat(timespec='minutes')}."
    failure = replace(error.failure, hint=error.failure.hint + hint)
    return TurnFailed(failure, error.turn) if hint else error


async def _again(request: TurnRequest, progress: TurnProgress, threads: Threads) -> TurnRequest:
    """Return the request that retries a turn, in the thread that it opened if Codex kept it."""
    opened = progress.thread_id
    # A review cannot be continued: its thread holds only what the reviewer said.
    if request.review is None and await _can_resume(request, opened, threads):
        request = replace(request, thread_id=opened, fork=False)
    progress.begin_turn(request.resumed)
    return request


async def _can_resume(request: TurnRequest, thread_id: str | None, threads: Threads) -> bool:
    return not request.ephemeral and await on_disk(threads.is_kept, thread_id)


async def _state(request: TurnRequest, threads: Threads) -> ThreadState | None:
    return await on_disk(threads.find_state, request.thread_id)


def _count(run: Run, reported: Usage | None, before: ThreadState | None) -> None:
    """Add the usage of one turn to *run*; Codex may have reported that of the whole thread."""
    if run.request.fork or run.request.review is not None:
        # Codex counts the history of a fork too, and nothing for a review: 0 (both seen with
        # 0.163.0 and 0.171.0). The rollouts have the right numbers.
        return
    earlier = before.usage if before is not None else None
    if reported is None or earlier is None or not run.request.program.usage_is_cumulative:
        _add(run, reported)
        return
    own = reported.minus(earlier)
    _add(run, own if own.total_tokens >= 0 else reported)


def _add(run: Run, used: Usage | None) -> None:
    if used is not None:
        run.used = run.used.plus(used) if run.used is not None else used
        run.counted += 1


def _mend(found: Sequence[str]) -> str:
    problems = "\n".join(f"- {problem}" for problem in found)
    return (
        "Your last answer does not match the JSON Schema that it must follow:\n"
        f"{problems}\n"
        "Give the whole answer once more, corrected, as JSON and nothing else. Run no commands"
        " and change no files for that."
    )
