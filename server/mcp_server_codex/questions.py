"""Ask the person behind the client what Codex asks during a run, in both protocol eras.

Up to protocol 2025-11-25 the server sends the question while a call waits for the run. In the 2026
protocol it returns the question as the call's result. The client repeats the call with the answer
and the state of the question, which names the run: the repeated call goes on with that run, and
starts none. The seal in that state ties it to this call's tool and arguments.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any, cast

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from codex_tools.codex.json_object import Json, object_of
from codex_tools.codex.questions import DECLINED, Answer, Question, describe
from codex_tools.codex.record import Record
from codex_tools.runs.attend import AskPerson, deliver
from codex_tools.runs.register import Runs
from codex_tools.runs.run import Run
from mcp_server_codex.elicitation import Seals, Unanswered, can_ask

logger = logging.getLogger(__name__)

KEY = "answer"
"""Name of the person's answer among the answers of a repeated call."""

_MARK = "run"

_PLAIN = ("string", "number", "integer", "boolean")
"""Types of the fields that a form of MCP may have."""

_FIELDS = ("type", "title", "description", "enum", "default", "minimum", "maximum", "format")


@dataclass(frozen=True, slots=True)
class Repeated:
    """A call that goes on with the run of a question."""

    run_id: str
    question_id: str
    is_new: bool
    """True if the answer was not used before."""
    answer: types.ElicitResult | None


def find_questioner(
    call: ServerRequestContext[Any, Any],
    params: types.CallToolRequestParams,
    request: Record,
    seals: Seals,
) -> AskPerson | None:
    """Return a function that asks the person a question of a run, or None if nobody can be asked.

    In the 2026 protocol that function raises `Unanswered`.
    """
    if not can_ask(call):
        return None

    async def ask(run: Run, question: Question) -> Answer | None:
        form = form_of(run, question)
        if form is None:
            return None if run.request.answered_by == "caller" else DECLINED
        try:
            found = await call.session.elicit_form(
                form.message, form.requested_schema, call.request_id
            )
        except MCPError as error:
            logger.info("the client could not ask the person: %s", error)
            found = types.ElicitResult(action="cancel")
        return read_answer(run, question, found)

    async def hand_back(run: Run, question: Question) -> Answer | None:
        form = form_of(run, question)
        if form is None:
            return None if run.request.answered_by == "caller" else DECLINED
        seal = seals.seal(_matter(params.name, request, run.run_id, question.id))
        requests: dict[str, Any] = {KEY: types.ElicitRequest(params=form)}
        state = ":".join((_MARK, run.run_id, question.id, seal))
        raise Unanswered(types.InputRequiredResult(input_requests=requests, request_state=state))

    return ask if call.session.can_send_request else hand_back


def seal_of(state: str | None) -> str | None:
    """Return the seal in the state of a call, whether a run or the arguments were asked about."""
    parts = (state or "").split(":")
    return parts[3] if len(parts) == 4 and parts[0] == _MARK else state


def find_repeated(
    params: types.CallToolRequestParams, request: Record, seals: Seals
) -> Repeated | None:
    """Return the run that a call goes on with; None for a call that asks for something new.

    Raises:
        MCPError: The state belongs to a call with other arguments.
    """
    state = params.request_state
    if state is None or seal_of(state) == state:
        return None
    _, run_id, question_id, seal = state.split(":")
    matter = _matter(params.name, request, run_id, question_id)
    if not seals.belongs(seal, matter):
        problem = "requestState belongs to a call with other arguments; call again without it"
        raise MCPError(code=types.INVALID_PARAMS, message=problem)
    answer = (params.input_responses or {}).get(KEY)
    found = answer if isinstance(answer, types.ElicitResult) else None
    is_new = found is not None and seals.breaks(seal, matter)
    return Repeated(run_id, question_id, is_new, found)


async def take_answer(repeated: Repeated, runs: Runs) -> None:
    """Deliver the answer that a repeated call brings, unless it was used before."""
    if not repeated.is_new or repeated.answer is None:
        return
    run = await runs.find(repeated.run_id)
    if not isinstance(run, Run):
        return
    for question in run.questions:
        if question.id == repeated.question_id:
            answer = read_answer(run, question, repeated.answer)
            if answer is not None:
                deliver(run, question, answer, "person", runs.audit)


def requests_of(run: Run) -> Json:
    """Return what a task asks of its client, by the ids of the questions."""
    forms = {each.id: form_of(run, each) for each in run.questions if not each.for_caller}
    return {
        key: types.ElicitRequest(params=form).model_dump(
            by_alias=True, mode="json", exclude_none=True
        )
        for key, form in forms.items()
        if form is not None
    }


def take_responses(run: Run, responses: Json, runs: Runs) -> None:
    """Deliver the answers that a client gives to what a task asks; unknown ones are ignored."""
    for question in run.questions:
        data = responses.get(question.id)
        if not isinstance(data, dict) or question.for_caller:
            continue
        try:
            found = types.ElicitResult.model_validate(data)
        except ValidationError:
            continue
        answer = read_answer(run, question, found)
        if answer is not None:
            deliver(run, question, answer, "person", runs.audit)


def read_answer(run: Run, question: Question, found: types.ElicitResult) -> Answer | None:
    """Return the person's answer; None if there is no person and the caller may answer.

    A client without a person cancels (Claude Code 2.1.330 with -p, in both protocols).
    """
    if found.action == "cancel":
        if run.request.answered_by == "caller":
            run.left_to_caller.add(question.id)
            run.wake()
            return None
        return DECLINED
    if found.action != "accept":
        return DECLINED
    content: Json = {**(found.content or {})}
    for_run = content.pop("for_run", False) is True
    wants_content = bool(question.schema or question.options)
    return Answer(True, for_run=for_run, content=content if wants_content else None)


def form_of(run: Run, question: Question) -> types.ElicitRequestFormParams | None:
    """Return the form that asks *question*; None if MCP's forms cannot."""
    message = "\n".join([*describe(question), f"Run {run.run_id} in {run.request.cwd}."])
    properties: Json = {}
    required: list[str] = []
    if question.options:
        for name, labels in question.options:
            properties[name] = {"type": "string", **({"enum": [*labels]} if labels else {})}
            required.append(name)
    elif question.schema is not None:
        for name, field in object_of(question.schema, "properties").items():
            fields = cast("Json", field) if isinstance(field, dict) else {}
            if fields.get("type") not in _PLAIN:
                return None
            properties[name] = {key: fields[key] for key in _FIELDS if key in fields}
        wanted = question.schema.get("required")
        required = [*cast("list[str]", wanted)] if isinstance(wanted, list) else []
    elif question.kind in ("command", "patch"):
        properties["for_run"] = {
            "type": "boolean",
            "title": "Also allow the same for the rest of this thread",
            "default": False,
        }
    schema: Json = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return types.ElicitRequestFormParams(message=message, requested_schema=schema)


def _matter(tool: str, request: Record, run_id: str, question_id: str) -> str:
    parts = [tool, request.model_dump(mode="json"), run_id, question_id]
    return json.dumps(parts, sort_keys=True)
