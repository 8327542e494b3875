"""Run one turn on an engine: enforce its time limits and collect its events into a TurnResult."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from codex_tools.codex.errors import NoAnswer, Stalled, TimedOut, TurnFailed, WrongThread
from codex_tools.codex.events import ThreadStartedEvent
from codex_tools.codex.failures import classify, classify_exit, unasked
from codex_tools.codex.turn_result import TurnProgress, TurnResult
from codex_tools.engines.engine import Engine, Keep, TurnRequest

LINGER_S = 10.0
"""Seconds that Codex may take to close its files and exit after the turn's end."""

Report = Callable[[TurnProgress], None]
"""Function that gets the turn so far after each event; it must be quick and must not block."""


async def run_turn(
    engine: Engine,
    request: TurnRequest,
    report: Report,
    keep: Keep,
    *,
    progress: TurnProgress | None = None,
    since: float | None = None,
) -> TurnResult:
    """Run one turn of Codex and return what it produced.

    Args:
        engine: The engine that runs the turn.
        request: The turn to run.
        report: Called with the turn so far after each event.
        keep: Called with each line as Codex wrote it.
        progress: Progress of the run's earlier turns; this turn is added to it.
        since: Start of the time limit on the event loop's clock; None for now.

    A timeout or a cancellation kills the whole process tree, because Codex's own children would
    otherwise continue to edit files.

    Raises:
        CodexUnsupported: This version lacks an option that is needed.
        TurnFailed: Codex reported a failure, or ended without a result.
        TimedOut: The turn took longer than `timeout_s`.
        Stalled: Codex made no progress for `stall_s` while no command or tool call was open.
        WrongThread: Codex opened another thread than the one to resume.
        NoAnswer: The turn completed without a message from the model.
    """
    progress = TurnProgress() if progress is None else progress
    began = anyio.current_time()
    start = began if since is None else since
    first = min(start + request.timeout_s, began + request.stall_s)
    with anyio.CancelScope(deadline=first) as limit:
        async with engine.open_turn(request, keep) as events:
            async for event in events:
                progress.add(event)
                report(progress)
                if isinstance(event, ThreadStartedEvent):
                    check_thread(request.thread_id, progress)
                limit.deadline = _deadline(progress, request, start, began)
    if limit.cancelled_caught and not progress.ended:
        if anyio.current_time() - start >= request.timeout_s:
            raise TimedOut(request.timeout_s, progress.last_error, progress.result())
        raise Stalled(request.stall_s, progress.last_error, progress.result())
    if progress.completed:
        check_thread(request.thread_id, progress)
    return finish(progress)


def _deadline(progress: TurnProgress, request: TurnRequest, start: float, began: float) -> float:
    now = anyio.current_time()
    if progress.ended:
        return min(start + request.timeout_s, now + LINGER_S)
    if progress.alive:
        progress.alive_at = now
    if progress.open_items:
        return start + request.timeout_s
    return min(start + request.timeout_s, (progress.alive_at or began) + request.stall_s)


def check_thread(asked: str | None, progress: TurnProgress) -> None:
    """Check that Codex opened the thread *asked* for; None for a new thread.

    Codex 0.60.1 and 0.98.0 begin a new thread if they do not find the old one.

    Raises:
        WrongThread: Codex opened another thread, or did not say which.
    """
    if asked is not None and progress.opened != asked:
        progress.thread_id = progress.opened or None
        raise WrongThread(asked, progress.opened or "", progress.result())


def finish(progress: TurnProgress) -> TurnResult:
    """Return the result of a turn whose events have ended.

    A turn succeeded only if its last terminal event is `turn.completed`. Exit codes are wrong in
    both directions (0.60.1 exits 0 after SIGINT and SIGTERM).

    Raises:
        TurnFailed: Codex reported a failure, or ended without a result.
        NoAnswer: The turn completed without a message from the model.
    """
    result = progress.result()
    if progress.failure is not None:
        raise TurnFailed(classify(progress.failure), result)
    if not progress.completed:
        returncode, stderr = progress.exited or (0, "")
        error, started = progress.last_error, progress.started
        failure = classify_exit(
            returncode, stderr, error, started=started, printed=progress.printed
        )
        raise TurnFailed(failure, result)
    if not (result.final_response or "").strip():
        if result.usage is not None and not result.usage.total_tokens and not result.touched:
            raise TurnFailed(unasked(), result)
        raise NoAnswer(result)
    return result
