"""Parse the output of `codex exec --json`: each line into an Event, each item into an Item.

The names are Codex's own. All shapes were seen on 0.60.1, 0.98.0, 0.120.0, 0.147.0, 0.163.0
and 0.169.0. New events and items of a later version become UnknownEvent and UnknownItem, and
missing fields get an empty value. So a new Codex never breaks the stream.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

import orjson

from codex_tools.codex.json_object import Json, object_of, objects_of, text_of
from codex_tools.codex.questions import Handle
from codex_tools.codex.record import Usage
from codex_tools.codex.sandbox_trouble import find_trouble

Status = Literal["in_progress", "completed", "failed"]


@dataclass(frozen=True, slots=True)
class AgentMessageItem:
    """A message of the model; the last one of a turn is its final response."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningItem:
    """A summary of the model's reasoning."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class CommandExecutionItem:
    """A shell command; *exit_code* is None while the command runs, and sometimes afterwards.

    Codex 0.98 and later leave out commands that the sandbox refused, and may never complete a
    command that was still running when the turn ended.
    """

    id: str
    command: str
    exit_code: int | None
    status: Status
    trouble: str | None = None
    """A warning if the sandbox made the command fail."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """One changed path of a patch; a moved file is an update of its old path."""

    path: str
    kind: Literal["add", "update", "delete"]


@dataclass(frozen=True, slots=True)
class FileChangeItem:
    """An applied patch; Codex emits no item for a refused patch."""

    id: str
    changes: tuple[FileChange, ...]
    status: Status


@dataclass(frozen=True, slots=True)
class ToolCallItem:
    """A call of an MCP tool, or of Codex's own sub-agents, where *server* is None."""

    id: str
    server: str | None
    tool: str
    status: Status


@dataclass(frozen=True, slots=True)
class WebSearchItem:
    """A hosted web search; *query* is a URL if the search opened a page."""

    id: str
    query: str


@dataclass(frozen=True, slots=True)
class TodoListItem:
    """The model's whole plan after a change, as pairs (text, completed)."""

    id: str
    items: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class ErrorItem:
    """A warning; the turn continues."""

    id: str
    message: str


@dataclass(frozen=True, slots=True)
class UnknownItem:
    """An item of a type that this server does not know."""

    id: str
    type: str


Item = (
    AgentMessageItem
    | ReasoningItem
    | CommandExecutionItem
    | FileChangeItem
    | ToolCallItem
    | WebSearchItem
    | TodoListItem
    | ErrorItem
    | UnknownItem
)


@dataclass(frozen=True, slots=True)
class ThreadStartedEvent:
    """The first event; a resumed thread reports its own id again."""

    thread_id: str


@dataclass(frozen=True, slots=True)
class TurnStartedEvent:
    """The turn has started; Codex 0.98 repeats this event for every sub-agent."""


@dataclass(frozen=True, slots=True)
class TurnCompletedEvent:
    """The only event that means success.

    *usage* is that of the turn before Codex 0.79, and that of the whole thread since.
    """

    usage: Usage | None


@dataclass(frozen=True, slots=True)
class TurnFailedEvent:
    """The only event that means failure."""

    message: str
    code: str | None = None
    """Codex's own code for the reason, with the HTTP status after a colon if it has one.

    Only the app-server tells it (0.147.0 to 0.171.0).
    """


@dataclass(frozen=True, slots=True)
class ItemStartedEvent:
    """An item has started."""

    item: Item


@dataclass(frozen=True, slots=True)
class ItemUpdatedEvent:
    """An item has changed; seen only for TodoListItem."""

    item: Item


@dataclass(frozen=True, slots=True)
class ItemCompletedEvent:
    """An item has ended, successfully or not; some items have no ItemStartedEvent."""

    item: Item


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """An error message; fatal only if a TurnFailedEvent repeats it.

    Every "Reconnecting... 1/5" arrives as one of these.
    """

    message: str


@dataclass(frozen=True, slots=True)
class UnknownEvent:
    """An event of a type that this server does not know."""

    type: str


@dataclass(frozen=True, slots=True)
class UnreadableEvent:
    """A line that is not a JSON object; *start* is its first 200 bytes."""

    start: str


@dataclass(frozen=True, slots=True)
class NoticeEvent:
    """A warning about how Codex was started; added by the engine, not by Codex."""

    message: str


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """The engine that runs the turn; its first event, added by the engine, not by Codex."""

    name: str
    handle: Handle | None = None
    """With which the turn can be spoken to; None if the engine cannot."""


@dataclass(frozen=True, slots=True)
class QuestionsEvent:
    """The questions that wait for an answer have changed; see `Handle.questions`."""


@dataclass(frozen=True, slots=True)
class WritingEvent:
    """The model is writing a message.

    *text* is its last words so far. Sent at most twice a second.
    """

    text: str


@dataclass(frozen=True, slots=True)
class ExitedEvent:
    """The last event of every stream, added by the engine, not by Codex.

    *returncode* is negative if a signal ended Codex. *stderr* is the end of Codex's log, which
    has free text even on success.
    """

    returncode: int
    stderr: str


Event = (
    ThreadStartedEvent
    | TurnStartedEvent
    | TurnCompletedEvent
    | TurnFailedEvent
    | ItemStartedEvent
    | ItemUpdatedEvent
    | ItemCompletedEvent
    | ErrorEvent
    | UnknownEvent
    | UnreadableEvent
    | NoticeEvent
    | EngineEvent
    | QuestionsEvent
    | WritingEvent
    | ExitedEvent
)


def parse_event(line: bytes) -> Event:
    """Parse one line of the stream; return an event for any content, without raising."""
    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError:
        return UnreadableEvent(line[:200].decode("utf-8", "replace"))
    if not isinstance(data, dict):
        return UnreadableEvent(line[:200].decode("utf-8", "replace"))
    event = cast(Json, data)
    match event.get("type"):
        case "item.completed":
            return ItemCompletedEvent(_item(object_of(event, "item"), line))
        case "item.started":
            return ItemStartedEvent(_item(object_of(event, "item"), line))
        case "item.updated":
            return ItemUpdatedEvent(_item(object_of(event, "item"), line))
        case "thread.started":
            return ThreadStartedEvent(_thread_id(event))
        case "turn.started":
            return TurnStartedEvent()
        case "turn.completed":
            return TurnCompletedEvent(read_usage(object_of(event, "usage")))
        case "turn.failed":
            error = object_of(event, "error")
            return TurnFailedEvent(_text(error, "message"), _code(error.get("codex_error_info")))
        case "error":
            return ErrorEvent(_text(event, "message"))
        case other:
            return UnknownEvent(_name(other))


def _code(info: object) -> str | None:
    """Return a code of the app-server as text: a word, or a word and an HTTP status."""
    if isinstance(info, str):
        return info[:100]
    if isinstance(info, dict) and len(cast("Json", info)) == 1:
        name = next(iter(cast("Json", info)))
        status = object_of(cast("Json", info), name).get("httpStatusCode")
        return f"{name[:100]}:{status}" if type(status) is int else name[:100]
    return None


def _item(item: Json, line: bytes) -> Item:
    id_ = _text(item, "id")
    match item.get("type"):
        case "agent_message":
            return AgentMessageItem(id_, _text(item, "text"))
        case "reasoning":
            return ReasoningItem(id_, _text(item, "text"))
        case "command_execution":
            exit_code = _integer(item, "exit_code")
            trouble = find_trouble(_text(item, "aggregated_output"))
            command = _text(item, "command")
            return CommandExecutionItem(id_, command, exit_code, _status(item), trouble)
        case "file_change":
            changes = tuple(_change(c) for c in objects_of(item, "changes"))
            return FileChangeItem(id_, changes, _status(item))
        case "mcp_tool_call":
            return ToolCallItem(id_, _text(item, "server"), _text(item, "tool"), _status(item))
        case "collab_tool_call":
            return ToolCallItem(id_, None, _text(item, "tool"), _status(item))
        case "web_search":
            return WebSearchItem(_first_id(line) or id_, _text(item, "query"))
        case "todo_list":
            steps = objects_of(item, "items")
            return TodoListItem(
                id_, tuple((_text(s, "text"), s.get("completed") is True) for s in steps)
            )
        case "error":
            return ErrorItem(id_, _text(item, "message"))
        case other:
            return UnknownItem(id_, _name(other))


_INTEGER_LIMIT = 2**53
"""Integers from here on are not exact in every JSON parser; no real count is so large."""

_THREAD_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


def _thread_id(event: Json) -> str:
    # The id becomes part of file names, so a text that could be a path is rejected.
    thread_id = _text(event, "thread_id")
    return thread_id if _THREAD_ID.fullmatch(thread_id) else ""


_ID = re.compile(rb'"item":\{"id":"([^"\\]*)"')


def _first_id(line: bytes) -> str | None:
    # Codex 0.98 and later write the key `id` twice into a web_search item: first the item's id,
    # then the search call's. A JSON parser keeps the second one.
    found = _ID.search(line, 0, 200)
    return found[1].decode("utf-8", "replace") if found else None


def _change(change: Json) -> FileChange:
    kind = change.get("kind")
    return FileChange(_text(change, "path"), kind if kind in ("add", "delete") else "update")


def read_usage(usage: Json) -> Usage | None:
    """Return Codex's counts as Usage; None if input or output tokens are missing."""
    input_tokens = _integer(usage, "input_tokens")
    output_tokens = _integer(usage, "output_tokens")
    if input_tokens is None or output_tokens is None:
        return None
    return Usage(
        input_tokens=input_tokens,
        cached_input_tokens=_integer(usage, "cached_input_tokens") or 0,
        output_tokens=output_tokens,
        reasoning_output_tokens=_integer(usage, "reasoning_output_tokens"),
        total_tokens=input_tokens + output_tokens,
    )


def _status(item: Json) -> Status:
    status = item.get("status")
    return status if status in ("in_progress", "failed") else "completed"


def _name(value: object) -> str:
    return value[:100] if isinstance(value, str) else f"({type(value).__name__})"


def _text(data: Json, key: str) -> str:
    return text_of(data, key) or ""


def _integer(data: Json, key: str) -> int | None:
    value = data.get(key)
    return value if type(value) is int and abs(value) < _INTEGER_LIMIT else None
