"""Turn the notifications of Codex's app-server into the lines that `codex exec --json` prints.

So both engines share one parser, one event log and one meaning of every event. The names of the
app-server were seen on 0.147.0, 0.163.0 and 0.171.0; `codex exec` of 0.163.0 and later makes its
lines from the same notifications. Fields that exec does not have are left out, except
`codex_error_info`, Codex's own code for the reason of a failure.
"""

from __future__ import annotations

import time
from typing import cast

from codex_tools.codex.json_object import Json, object_of, objects_of, text_of
from codex_tools.engines.json_rpc import Notification

MUTED = (
    *("item/plan/delta", "item/reasoning/summaryTextDelta"),
    *("item/reasoning/summaryPartAdded", "item/reasoning/textDelta"),
    *("item/commandExecution/outputDelta", "item/fileChange/outputDelta"),
    *("account/rateLimits/updated", "thread/readState/changed", "remoteControl/status/changed"),
)
"""Notifications that nothing here reads, for `optOutNotificationMethods` of `initialize`."""

DELTA = "item/agentMessage/delta"
"""The next part of a message of the model."""

INTERRUPTED = "Turn interrupted"
"""Message of the failure that stands for a turn with status `interrupted`; exec has none."""

_SILENT = frozenset(
    {
        *("userMessage", "enteredReviewMode", "exitedReviewMode", "contextCompaction", "plan"),
        *("hookPrompt", "imageView", "sleep"),
    }
)
"""Types of items without effects outside the thread, which exec leaves out too.

An item of a type that is not known here is passed on: it may have effects.
"""

_ENDS_ONLY = frozenset({"agentMessage", "reasoning"})
"""Types of items whose start exec does not print."""

_TYPES = {
    "agentMessage": "agent_message",
    "collabAgentToolCall": "collab_tool_call",
    "commandExecution": "command_execution",
    "fileChange": "file_change",
    "mcpToolCall": "mcp_tool_call",
    "webSearch": "web_search",
}

_STATUSES = {"inProgress": "in_progress", "completed": "completed"}

_WARNINGS = ("warning", "configWarning", "deprecationNotice", "guardianWarning", "model/rerouted")

_UNPRINTED = (
    "Codex could not find bubblewrap on PATH.",  # Codex has its own copy.
    "Configured value for `web_search_mode` is disallowed",  # The default is, if it must be off.
)
"""Beginnings of warnings that exec does not print (0.163.0, 0.171.0)."""

_COUNTS = {
    "input_tokens": "inputTokens",
    "cached_input_tokens": "cachedInputTokens",
    "cache_write_input_tokens": "cacheWriteInputTokens",
    "output_tokens": "outputTokens",
    "reasoning_output_tokens": "reasoningOutputTokens",
}


WRITING_EVERY_S = 0.5
"""Seconds between two events that tell what the model is writing."""

WRITING_KEPT = 80
"""Characters kept of the end of a message that is being written."""


class Writing:
    """The end of the message that the model is writing, told now and then."""

    def __init__(self, thread_id: str) -> None:
        self._thread_id = thread_id
        self._item = ""
        self._text = ""
        self._told_at = 0.0

    def add(self, notification: Notification) -> str | None:
        """Add a notification; return the last words of the message when it is time to tell."""
        params = notification.params
        if notification.method != DELTA or params.get("threadId") != self._thread_id:
            return None
        item, delta = text_of(params, "itemId") or "", text_of(params, "delta") or ""
        if item != self._item:
            self._item, self._text = item, ""
        self._text = (self._text + delta)[-WRITING_KEPT:]
        now = time.monotonic()
        if now - self._told_at < WRITING_EVERY_S:
            return None
        self._told_at = now
        return " ".join(self._text.split())


class TurnLines:
    """The lines of one turn of one thread, made from notifications in their order."""

    def __init__(self, thread_id: str) -> None:
        """Begin a turn of thread *thread_id*; notifications of other threads are ignored.

        A sub-agent has a thread of its own, whose items, usage and end come on the same
        connection.
        """
        self._thread_id = thread_id
        self._numbers: dict[str, str] = {}
        self._next = 0
        self._usage: Json = dict.fromkeys(_COUNTS, 0)
        self._plan: Json | None = None
        self.status: str | None = None
        """How the turn ended: `completed`, `failed` or `interrupted`; None before its end."""
        self.diff: str | None = None
        """All patches of the turn as one diff. What commands change is not in it."""

    def add(self, notification: Notification) -> list[Json]:
        """Return the lines that *notification* stands for, in their order."""
        params = notification.params
        thread_id = params.get("threadId")
        if thread_id is not None and thread_id != self._thread_id:
            return []
        match notification.method:
            case "item/started":
                return self._item(object_of(params, "item"), is_done=False)
            case "item/completed":
                return self._item(object_of(params, "item"), is_done=True)
            case "turn/started":
                return [{"type": "turn.started"}]
            case "turn/completed":
                return self._end(object_of(params, "turn"))
            case "error":
                return [_error(params)]
            case "thread/tokenUsage/updated":
                self._count(object_of(object_of(params, "tokenUsage"), "total"))
            case "turn/plan/updated":
                return [self._plan_line(objects_of(params, "plan"))]
            case "turn/diff/updated":
                self.diff = text_of(params, "diff")
            case method if method in _WARNINGS:
                return self._warning(method, params)
            case _:
                pass
        return []

    def _item(self, item: Json, *, is_done: bool) -> list[Json]:
        kind = text_of(item, "type") or ""
        if kind in _SILENT or (kind in _ENDS_ONLY and not is_done):
            return []
        own = text_of(item, "id") or ""
        number = self._numbers.get(own) or self._number()
        if is_done:
            self._numbers.pop(own, None)
        else:
            self._numbers[own] = number
        line: Json = {"id": number, "type": _TYPES.get(kind, kind), **_fields(kind, item)}
        return [{"type": "item.completed" if is_done else "item.started", "item": line}]

    def _number(self) -> str:
        self._next += 1
        return f"item_{self._next - 1}"

    def _count(self, total: Json) -> None:
        self._usage = {ours: total.get(theirs, 0) for ours, theirs in _COUNTS.items()}

    def _plan_line(self, steps: list[Json]) -> Json:
        items = [
            {"text": text_of(step, "step") or "", "completed": step.get("status") == "completed"}
            for step in steps
        ]
        what = "item.started" if self._plan is None else "item.updated"
        number = self._number() if self._plan is None else self._plan["id"]
        self._plan = {"id": number, "type": "todo_list", "items": items}
        return {"type": what, "item": self._plan}

    def _warning(self, method: str, params: Json) -> list[Json]:
        if method == "model/rerouted":
            models = [text_of(params, key) or "?" for key in ("fromModel", "toModel")]
            message = f"model rerouted: {models[0]} -> {models[1]}"
        else:
            message = text_of(params, "message") or text_of(params, "summary") or ""
            message = _with_details(message, text_of(params, "details"))
            if message.startswith(_UNPRINTED):
                return []
        item: Json = {"id": self._number(), "type": "error", "message": message}
        return [{"type": "item.completed", "item": item}]

    def _end(self, turn: Json) -> list[Json]:
        status = text_of(turn, "status") or ""
        if status == "inProgress":
            return []
        self.status = status
        lines: list[Json] = []
        if self._plan is not None:
            lines.append({"type": "item.completed", "item": self._plan})
        if status == "completed":
            lines.append({"type": "turn.completed", "usage": self._usage})
        else:
            error = object_of(turn, "error")
            message = text_of(error, "message") or (
                INTERRUPTED if status == "interrupted" else f"the turn ended as {status[:100]}"
            )
            failure: Json = {"message": message}
            if (info := error.get("codexErrorInfo")) is not None:
                failure["codex_error_info"] = info
            lines.append({"type": "turn.failed", "error": failure})
        return lines


def _error(params: Json) -> Json:
    error = object_of(params, "error")
    details = text_of(error, "additionalDetails")
    return {"type": "error", "message": _with_details(text_of(error, "message") or "", details)}


def _with_details(message: str, details: str | None) -> str:
    return f"{message} ({details})" if details else message


def _fields(kind: str, item: Json) -> Json:
    match kind:
        case "agentMessage":
            return {"text": text_of(item, "text") or ""}
        case "reasoning":
            return {"text": "\n".join(_texts(item.get("summary")))}
        case "commandExecution":
            return {
                "command": text_of(item, "command") or "",
                "aggregated_output": text_of(item, "aggregatedOutput") or "",
                "exit_code": item.get("exitCode"),
                "status": _status(item),
            }
        case "fileChange":
            return {
                "changes": [
                    {
                        "path": text_of(change, "path") or "",
                        "kind": text_of(object_of(change, "kind"), "type") or "update",
                    }
                    for change in objects_of(item, "changes")
                ],
                "status": _status(item),
            }
        case "mcpToolCall":
            result = item.get("result")
            if isinstance(result, dict):
                found = cast(Json, result)
                content = found.get("structuredContent")
                result = {"content": found.get("content"), "structured_content": content}
            return {
                **{key: item.get(key) for key in ("server", "tool", "arguments")},
                "result": result,
                "error": item.get("error"),
                "status": _status(item),
            }
        case "collabAgentToolCall":
            states = object_of(item, "agentsStates")
            return {
                "tool": _snake_case(text_of(item, "tool") or ""),
                "sender_thread_id": item.get("senderThreadId"),
                "receiver_thread_ids": _texts(item.get("receiverThreadIds")),
                "prompt": item.get("prompt"),
                "agents_states": {
                    agent: {
                        "status": _snake_case(text_of(object_of(states, agent), "status") or ""),
                        "message": object_of(states, agent).get("message"),
                    }
                    for agent in states
                },
                "status": _status(item),
            }
        case "webSearch":
            return {"query": text_of(item, "query") or "", "action": item.get("action")}
        case _:
            return {}


def _texts(value: object) -> list[str]:
    parts = cast("list[object]", value) if isinstance(value, list) else []
    return [each for each in parts if isinstance(each, str)]


def _status(item: Json) -> str:
    """Return exec's name for the status of *item*; a declined command has failed."""
    return _STATUSES.get(text_of(item, "status") or "completed", "failed")


def _snake_case(name: str) -> str:
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in name).lstrip("_")
