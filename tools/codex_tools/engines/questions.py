"""Read the requests in which Codex asks for a decision, and write the answers.

All shapes were seen on 0.147.0, 0.163.0 and 0.171.0, except permissions and the forms of MCP
servers, which follow the schema of 0.171.0. The answer `acceptWithExecpolicyAmendment` is never
given, because Codex then writes a rule into CODEX_HOME, for ever (0.163.0, 0.171.0).
"""

from __future__ import annotations

from typing import cast

import orjson

from codex_tools.codex.json_object import Json, object_of, objects_of, text_of
from codex_tools.codex.questions import Answer, Kind, Question
from codex_tools.engines.json_rpc import ServerRequest

TEXT_LIMIT = 20_000
"""Characters kept of a text in a question."""

FILES_LIMIT = 200
"""Files kept of a patch in a question."""


ASK_CALLER: Json = {
    "type": "function",
    "name": "ask_caller",
    "description": (
        "Ask the agent that delegated this task one question, and wait for its answer. Use it only"
        " where the task cannot be done well without the answer. It knows what the person wants; it"
        " cannot see your work."
    ),
    "inputSchema": {
        "type": "object",
        "properties": {"question": {"type": "string"}},
        "required": ["question"],
        "additionalProperties": False,
    },
}
"""The tool with which the model asks its caller (a `dynamicTools` entry, 0.147.0 to 0.171.0)."""

_ANSWER: Json = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
}

_NO_ANSWER = "There is no answer. Decide by yourself, and say in your result what you assumed."


def read_question(id_: str, request: ServerRequest, patches: dict[str, Json]) -> Question | None:
    """Return the question that *request* asks; None for a request that is no question.

    Args:
        id_: The id for the question.
        request: The request.
        patches: The file changes that have started, by their item's id: the request for a patch
            does not repeat them.
    """
    params = request.params
    reason = _text(params, "reason")
    match request.method:
        case "item/commandExecution/requestApproval":
            command, cwd = _text(params, "command"), _text(params, "cwd")
            return Question(id_, "command", reason or "", command, cwd, reason)
        case "item/fileChange/requestApproval":
            changes = objects_of(patches.get(_text(params, "itemId") or "", {}), "changes")
            files = tuple(_text(each, "path") or "" for each in changes[:FILES_LIMIT])
            diff = "\n".join(text_of(each, "diff") or "" for each in changes)[:TEXT_LIMIT]
            return Question(
                id_, "patch", reason or "", reason=reason, files=files, diff=diff or None
            )
        case "item/permissions/requestApproval":
            wanted = orjson.dumps(object_of(params, "permissions")).decode()[:TEXT_LIMIT]
            cwd = _text(params, "cwd")
            return Question(id_, "permissions", wanted, cwd=cwd, reason=reason)
        case "mcpServer/elicitation/request":
            meta = object_of(params, "_meta")
            is_call = meta.get("codex_approval_kind") == "mcp_tool_call"
            schema = object_of(params, "requestedSchema") or None
            kind: Kind = "mcp_tool" if is_call else "form"
            return Question(id_, kind, _text(params, "message") or "", schema=schema)
        case "item/tool/requestUserInput":
            asked = objects_of(params, "questions")
            text = "\n".join(text_of(each, "question") or "" for each in asked)[:TEXT_LIMIT]
            options = tuple(
                (
                    _text(each, "id") or "",
                    tuple(_text(option, "label") or "" for option in objects_of(each, "options")),
                )
                for each in asked
            )
            return Question(id_, "choice", text, options=options)
        case "item/tool/call" if params.get("tool") == ASK_CALLER["name"]:
            text = _text(object_of(params, "arguments"), "question") or ""
            return Question(id_, "form", text, schema=_ANSWER, for_caller=True)
        case _:
            return None


def write_answer(request: ServerRequest, answer: Answer) -> Json:
    """Return the result of *request*, which is a question, for *answer*.

    Raises:
        LookupError: The request is no question.
    """
    match request.method:
        case "item/commandExecution/requestApproval" | "item/fileChange/requestApproval":
            accepted = "acceptForSession" if answer.for_run else "accept"
            return {"decision": accepted if answer.accept else "decline"}
        case "item/permissions/requestApproval":
            granted = object_of(request.params, "permissions") if answer.accept else {}
            return {"permissions": granted, "scope": "turn"}
        case "mcpServer/elicitation/request":
            if not answer.accept:
                return {"action": "decline"}
            return {"action": "accept", "content": answer.content or {}}
        case "item/tool/requestUserInput":
            chosen = (answer.content or {}) if answer.accept else {}
            return {"answers": {key: {"answers": _list(value)} for key, value in chosen.items()}}
        case "item/tool/call" if request.params.get("tool") == ASK_CALLER["name"]:
            said = (answer.content or {}).get("answer") if answer.accept else None
            text = said if isinstance(said, str) and said else _NO_ANSWER
            return {"contentItems": [{"type": "inputText", "text": text}], "success": True}
        case method:
            raise LookupError(method)


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else [value]


def _text(data: Json, key: str) -> str | None:
    value = text_of(data, key)
    return value[:TEXT_LIMIT] if value is not None else None
