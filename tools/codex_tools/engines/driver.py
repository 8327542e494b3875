"""Run one turn on an engine: enforce its time limits and collect its events into a TurnResult."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio

from codex_tools.codex.errors import NoAnswer, Stalled, TimedOut, TurnFailed, WrongThread
from codex_tools.codex.events import ThreadStartedEvent
from codex_tools.codex.failures import classify, classify_exit, unasked
from codex_tools.codex.turn_result import TurnProgress, TurnResult
from codex_tools.engines.engine import Engine, Keep, TurnRequest

LINGER_S = 10.0
"""Seconds that Codex may take to close its files and exit after the turn's end."""

TICK_S = 1.0
"""Interval in seconds for checking the time limits."""

STOPPED_S = 1.0
"""Seconds that a tick must be late to show that this process was stopped."""

BACKLOG_S = 1.0
"""Seconds to read the events that are waiting when a time limit is reached."""

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
    latest = start + progress.paused_s + request.timeout_s
    first = min(latest, began + request.stall_s)
    async with (
        time_limit(first, request.stall_s, latest, progress) as limit,
        engine.open_turn(request, keep) as events,
    ):
        async for event in events:
            progress.add(event)
            report(progress)
            if isinstance(event, ThreadStartedEvent):
                check_thread(request.thread_id, progress, fork=request.fork)
            limit.deadline = _deadline(progress, request, start, began)
    if limit.reached and not progress.ended:
        if anyio.current_time() - start - progress.paused_s >= request.timeout_s:
            raise TimedOut(request.timeout_s, progress.last_error, progress.result())
        raise Stalled(request.stall_s, progress.last_error, progress.result())
    if progress.completed:
        check_thread(request.thread_id, progress, fork=request.fork)
    return finish(progress)


def _deadline(progress: TurnProgress, request: TurnRequest, start: float, began: float) -> float:
    now = anyio.current_time()
    start += progress.paused_s
    if progress.ended:
        return min(start + request.timeout_s, now + LINGER_S)
    if progress.alive:
        progress.alive_at = now
    if progress.open_items:
        return start + request.timeout_s
    return min(start + request.timeout_s, (progress.alive_at or began) + request.stall_s)


def check_thread(asked: str | None, progress: TurnProgress, *, fork: bool = False) -> None:
    """Check that Codex opened the thread *asked* for; None for a new thread.

    Codex 0.60.1 and 0.98.0 begin a new thread if they do not find the old one. A *fork* must be
    another thread than the one it was made of.

    Raises:
        WrongThread: Codex opened the wrong thread, or did not say which.
    """
    if asked is None:
        return
    if progress.opened in ("", None, asked) if fork else progress.opened != asked:
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
        raise TurnFailed(classify(progress.failure, progress.failure_code), result)
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


class TimeLimit:
    """A deadline on the event loop's clock, which the holder may move."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.reached = False
        """True if the block was cancelled because its deadline was reached."""


@asynccontextmanager
async def time_limit(
    deadline: float, stall_s: float, latest: float, progress: TurnProgress
) -> AsyncGenerator[TimeLimit]:
    """Cancel the block when its deadline is reached, but read first what Codex has written.

    While this process is stopped (SIGSTOP, a frozen container), the clock runs on, and Codex may
    write events or even complete the turn. Codex may have been stopped as well. So after such a
    pause, the stall timer starts again. The time limit of the run stays as it was.

    While Codex waits for an answer, neither clock runs.

    Args:
        deadline: The first deadline.
        stall_s: Seconds without progress after which the turn counts as stalled.
        latest: Time after which the turn is ended, whatever the deadline is.
        progress: The turn so far.
    """
    limit = TimeLimit(deadline)
    paused_s = progress.paused_s
    failure: Exception | None = None

    async def check() -> None:
        looked_at = anyio.current_time()
        while True:
            due = min(limit.deadline, anyio.current_time() + TICK_S)
            await anyio.sleep_until(due)
            now = anyio.current_time()
            if progress.questions:
                progress.paused_s += now - looked_at
                progress.alive_at = now
                limit.deadline += now - looked_at
            elif now - due > STOPPED_S and not progress.ended:
                progress.alive_at = now
                until = min(latest + progress.paused_s - paused_s, now + stall_s)
                limit.deadline = max(limit.deadline, until)
            looked_at = now
            if now >= limit.deadline:
                await anyio.sleep(BACKLOG_S)
                if anyio.current_time() >= limit.deadline:
                    scope.cancel()
                    return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(check)
        try:
            with anyio.CancelScope() as scope:
                yield limit
            limit.reached = scope.cancelled_caught
        except Exception as error:  # Raised again below: the task group would wrap it.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
