"""What Codex asks, and what it is answered."""

from __future__ import annotations

from typing import Any

import pytest

from codex_tools.codex.json_object import Json
from codex_tools.codex.questions import DECLINED, Answer, Question
from codex_tools.engines.json_rpc import ServerRequest
from codex_tools.engines.questions import FILES_LIMIT, TEXT_LIMIT, read_question, write_answer

COMMAND = ServerRequest(
    0,
    "item/commandExecution/requestApproval",
    {
        "itemId": "call_1",
        "reason": "need it",
        "command": "/bin/bash -lc 'touch x'",
        "cwd": "/p",
        "proposedExecpolicyAmendment": ["touch", "x"],
        "availableDecisions": ["accept", {"acceptWithExecpolicyAmendment": {}}, "cancel"],
    },
)
PATCH = ServerRequest(1, "item/fileChange/requestApproval", {"itemId": "call_2", "reason": None})
PERMISSIONS = ServerRequest(
    2, "item/permissions/requestApproval", {"cwd": "/p", "permissions": {"network": True}}
)
TOOL = ServerRequest(
    "3",
    "mcpServer/elicitation/request",
    {
        "message": "Allow lab.echo?",
        "_meta": {"codex_approval_kind": "mcp_tool_call"},
        "requestedSchema": {},
    },
)
FORM = ServerRequest(
    4, "mcpServer/elicitation/request", {"message": "Who?", "requestedSchema": {"type": "object"}}
)
CHOICE = ServerRequest(
    5,
    "item/tool/requestUserInput",
    {"questions": [{"id": "q1", "question": "Which?", "options": [{"label": "A"}, {"x": 1}]}]},
)
ALL = (COMMAND, PATCH, PERMISSIONS, TOOL, FORM, CHOICE)
PATCHES: dict[str, Json] = {"call_2": {"changes": [{"path": "/p/a", "diff": "+x"}]}}


def read(request: ServerRequest) -> Question:
    question = read_question("q", request, PATCHES)
    assert question is not None
    return question


def test_each_kind_of_question_is_read() -> None:
    command = read(COMMAND)
    assert (command.kind, command.text, command.reason) == ("command", "need it", "need it")
    assert (command.command, command.cwd) == ("/bin/bash -lc 'touch x'", "/p")
    patch = read(PATCH)
    assert (patch.kind, patch.files, patch.diff) == ("patch", ("/p/a",), "+x")
    assert (read(PERMISSIONS).kind, read(PERMISSIONS).cwd) == ("permissions", "/p")
    assert (read(TOOL).kind, read(TOOL).text) == ("mcp_tool", "Allow lab.echo?")
    assert (read(FORM).kind, read(FORM).schema) == ("form", {"type": "object"})
    choice = read(CHOICE)
    assert (choice.kind, choice.text, choice.options) == ("choice", "Which?", (("q1", ("A", "")),))


def test_other_requests_are_no_questions() -> None:
    request = ServerRequest(1, "item/tool/call", {})
    assert read_question("q", request, {}) is None
    with pytest.raises(LookupError):
        write_answer(request, DECLINED)


def test_answers_have_the_shape_of_their_request_and_never_amend_the_rules() -> None:
    yes = Answer(accept=True, content={"q1": "A", "q2": ["B", "C"]})
    always = Answer(accept=True, for_run=True)
    assert [write_answer(each, yes) for each in (COMMAND, PATCH)] == [{"decision": "accept"}] * 2
    assert write_answer(COMMAND, always) == {"decision": "acceptForSession"}
    assert write_answer(PERMISSIONS, yes) == {"permissions": {"network": True}, "scope": "turn"}
    assert write_answer(TOOL, always) == {"action": "accept", "content": {}}
    assert write_answer(FORM, yes) == {"action": "accept", "content": yes.content}
    assert write_answer(CHOICE, yes) == {
        "answers": {"q1": {"answers": ["A"]}, "q2": {"answers": ["B", "C"]}}
    }
    assert [write_answer(each, DECLINED) for each in ALL] == [
        {"decision": "decline"},
        {"decision": "decline"},
        {"permissions": {}, "scope": "turn"},
        {"action": "decline"},
        {"action": "decline"},
        {"answers": {}},
    ]


def test_questions_of_any_shape_and_size_are_read_within_limits() -> None:
    for request in ALL:
        values: tuple[Any, ...] = (None, 1, [], {}, [None], "x" * (TEXT_LIMIT + 1))
        for value in values:
            params: Json = dict.fromkeys(
                ("command", "cwd", "reason", "itemId", "message", "_meta", "questions"), value
            )
            question = read(ServerRequest(1, request.method, params))
            assert len(question.text) <= TEXT_LIMIT
            assert len(question.command or "") <= TEXT_LIMIT
    changes = [{"path": "p", "diff": "d" * 1000}] * (FILES_LIMIT + 1)
    big = read_question("q", PATCH, {"call_2": {"changes": changes}})
    assert big is not None
    assert len(big.files) == FILES_LIMIT
    assert len(big.diff or "") == TEXT_LIMIT
