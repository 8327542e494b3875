"""Define codex_answer: answer what Codex asks while a run is at work."""

from __future__ import annotations

from typing import Any, Literal

from codex_tools.codex.errors import CodexError, InvalidArguments, NotAllowed
from codex_tools.codex.json_object import Json
from codex_tools.codex.questions import Answer, Question
from codex_tools.codex.record import Record
from codex_tools.codex.workers import on_cpu
from codex_tools.runs.attend import deliver
from codex_tools.runs.result import refused
from codex_tools.runs.run import Run
from codex_tools.schemas.validation import TooManyChecks, Validator
from codex_tools.stop import StopResult, words
from codex_tools.tool import Context, Tool


class AnswerRequest(Record):
    """The arguments of codex_answer."""

    run_id: str
    question_id: str
    decision: Literal["accept", "decline"]
    for_run: bool = False
    """Accept the same command or patch for the rest of the thread"""
    content: dict[str, Any] | None = None
    """For a question with a schema or options: the values by name"""


async def answer(request: AnswerRequest, context: Context) -> StopResult:
    """Answer a question of a run, and return the run's result so far."""
    run = await context.find_live(request.run_id, "answer")
    question = _find(run, request.question_id)
    _check_right(run, question, request)
    given = Answer(request.decision == "accept", request.for_run, request.content)
    if given.accept:
        await _check_content(question, given)
    if not deliver(run, question, given, context.caller, context.runs.audit):
        raise _gone(request.question_id, run)
    await context.runs.stored()
    return StopResult(run=run.result())


def _find(run: Run, question_id: str) -> Question:
    found = next((each for each in run.questions if each.id == question_id), None)
    if found is None:
        raise _gone(question_id, run)
    return found


def _gone(question_id: str, run: Run) -> InvalidArguments:
    names = ", ".join(each.id for each in run.questions) or "none"
    return InvalidArguments(
        [f"question_id: {question_id[:100]!r} does not wait for an answer; these do: {names}"]
    )


def _check_right(run: Run, question: Question, request: AnswerRequest) -> None:
    """Check that the caller may give this answer; it may always decline.

    Raises:
        NotAllowed: Only a person may accept.
    """
    if request.decision == "decline" or question.for_caller:
        return
    if run.request.answered_by != "caller":
        raise NotAllowed(
            "decision accept", "only a person may answer Codex's questions", "--approvals"
        )


async def _check_content(question: Question, given: Answer) -> None:
    """Check that an accepted question gets what it asks for.

    Raises:
        InvalidArguments: It does not.
    """
    if given.for_run and question.kind not in ("command", "patch"):
        raise InvalidArguments([f"for_run: a question of kind {question.kind} has no such answer"])
    names = [name for name, _ in question.options]
    content = given.content or {}
    if names:
        missing = [name for name in names if not content.get(name)]
        if missing or {*content} - {*names}:
            raise InvalidArguments([f"content: give a text for each of {', '.join(names)}"])
    elif question.schema is not None and not await on_cpu(_is_valid, question.schema, content):
        raise InvalidArguments(["content: it does not match the schema of the question"])
    elif question.schema is None and content:
        raise InvalidArguments([f"content: a question of kind {question.kind} takes none"])


def _is_valid(schema: Json, content: Json) -> bool:
    try:
        return Validator(schema).is_valid(content)
    except (ValueError, TooManyChecks):
        return True  # The server that asks checks it too.


def refuse(error: CodexError) -> StopResult:
    """Return the result of a request that was refused."""
    return StopResult(run=refused(error))


ANSWER = Tool(
    name="codex_answer",
    title="Answer Codex",
    description=(
        "Answer a question of a run whose status is needs_answer. Accepting a command or a patch"
        " lets it happen outside the sandbox. Then call codex_wait."
    ),
    request=AnswerRequest,
    result=StopResult,
    call=answer,
    refuse=refuse,
    words=words,
    search_hint="approve or decline what a Codex run asks",
    idempotent=True,
    open_world=False,
)
