"""Let a person answer the questions of runs while a call waits for those runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from codex_tools.codex.questions import Answer, Question
from codex_tools.runs.audit import AuditLog
from codex_tools.runs.run import Run

AskPerson = Callable[[Run, Question], Awaitable[Answer | None]]
"""Function that asks a person a question of a run; None if the question is not answered by that.

It may raise an exception that ends the call, whose answer then comes with the next call.
"""


def deliver(run: Run, question: Question, answer: Answer, by: str, audit: AuditLog) -> bool:
    """Answer a question of *run*, and write that into the audit log.

    Args:
        run: The run.
        question: The question.
        answer: The answer.
        by: Who gave it.
        audit: The log.

    Returns:
        False if the question no longer waits.
    """
    handle = run.progress.handle
    if run.outcome is not None or handle is None or not handle.answer(question.id, answer):
        return False
    audit.write(
        "answered",
        {
            "caller": run.caller,
            "run_id": run.run_id,
            "question_id": question.id,
            "question": question.kind,
            "command": question.command,
            "files": list(question.files[:20]),
            "decision": "accept" if answer.accept else "decline",
            "for_run": answer.for_run,
            "by": by,
        },
    )
    run.wake()
    return True


@asynccontextmanager
async def attending(
    runs: Sequence[Run], ask: AskPerson | None, audit: AuditLog
) -> AsyncGenerator[None]:
    """Ask a person the questions of *runs* while the block runs.

    If *ask* raises an exception, the run needs its caller, so that the block can end early. The
    exception is raised after the block. It must not cancel the block: a call that is cancelled
    stops its run.
    """
    if ask is None or not runs:
        yield
        return
    failures: list[Exception] = []

    async def attend(run: Run) -> None:
        try:
            await _ask_all(run, ask, audit)
        except Exception as error:  # Raised again below: the task group would wrap it.
            failures.append(error)
            run.wake()  # The block returns, since the run needs its caller.

    async with anyio.create_task_group() as tasks:
        for run in runs:
            run.handed_back.clear()  # This call asks again.
            tasks.start_soon(attend, run)
        try:
            yield
        except Exception as error:
            failures.insert(0, error)
        tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def _ask_all(run: Run, ask: AskPerson, audit: AuditLog) -> None:
    """Ask the person each question of *run*, one after the other, until the run has ended."""
    asked: set[str] = set()
    while run.outcome is None:
        changed = run.changed
        question = next(
            (
                each
                for each in run.questions
                if not each.for_caller and each.id not in asked | run.left_to_caller
            ),
            None,
        )
        if question is None:
            await changed.wait()
            continue
        asked.add(question.id)
        answer: Answer | None = None
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_when_gone, run, question, tasks.cancel_scope)
            try:
                answer = await ask(run, question)
            except Exception as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            run.handed_back.add(question.id)
            raise failure
        if answer is not None:
            deliver(run, question, answer, "person", audit)


async def _cancel_when_gone(run: Run, question: Question, scope: anyio.CancelScope) -> None:
    """Cancel *scope* when *question* no longer waits: it was answered elsewhere, or is too old."""
    while run.outcome is None and question in run.questions:
        await run.changed.wait()
    scope.cancel()
