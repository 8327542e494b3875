"""parse_event over recorded, made-up and hostile lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codex_tools.codex.events import (
    AgentMessageItem,
    CommandExecutionItem,
    ErrorEvent,
    ErrorItem,
    Event,
    FileChange,
    FileChangeItem,
    ItemCompletedEvent,
    ItemStartedEvent,
    ItemUpdatedEvent,
    ReasoningItem,
    ThreadStartedEvent,
    TodoListItem,
    ToolCallItem,
    TurnCompletedEvent,
    TurnFailedEvent,
    TurnStartedEvent,
    UnknownEvent,
    UnknownItem,
    UnreadableEvent,
    WebSearchItem,
    parse_event,
)
from codex_tools.codex.record import Usage

RECORDED = sorted((Path(__file__).parents[2] / "data" / "exec").glob("*/*/stdout.jsonl"))


def completed(**item: object) -> bytes:
    return json.dumps({"type": "item.completed", "item": item}).encode()


def usage(input_: int, cached: int, out: int, reasoning: int | None) -> Usage:
    return Usage(
        input_tokens=input_,
        cached_input_tokens=cached,
        output_tokens=out,
        reasoning_output_tokens=reasoning,
        total_tokens=input_ + out,
    )


def test_every_recorded_line_is_understood() -> None:
    for path in RECORDED:
        for line in path.read_bytes().splitlines():
            event = parse_event(line)
            assert not isinstance(event, UnknownEvent | UnreadableEvent), (path, line)
            if isinstance(event, ItemStartedEvent | ItemUpdatedEvent | ItemCompletedEvent):
                assert not isinstance(event.item, UnknownItem), (path, line)
                assert event.item.id.startswith("item_"), (path, line)


def test_the_recorded_streams_hold_every_type_but_one() -> None:
    lines = b"".join(path.read_bytes() for path in RECORDED).splitlines()
    parsed = [parse_event(line) for line in lines]
    items = [e.item for e in parsed if isinstance(e, ItemStartedEvent | ItemCompletedEvent)]
    assert len(RECORDED) > 90
    assert {type(event) for event in parsed} == {
        ThreadStartedEvent,
        TurnStartedEvent,
        TurnCompletedEvent,
        TurnFailedEvent,
        ItemStartedEvent,
        ItemUpdatedEvent,
        ItemCompletedEvent,
        ErrorEvent,
    }
    assert {type(item) for item in items} == {
        AgentMessageItem,
        ReasoningItem,
        CommandExecutionItem,
        FileChangeItem,
        ToolCallItem,
        WebSearchItem,
        TodoListItem,
    }


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (b'{"type":"thread.started","thread_id":"01a2"}', ThreadStartedEvent("01a2")),
        (b'{"type":"turn.started"}', TurnStartedEvent()),
        (
            b'{"type":"turn.failed","error":{"message":"no \xe2\x80\x99 luck"}}',
            TurnFailedEvent("no \N{RIGHT SINGLE QUOTATION MARK} luck"),
        ),
        (b'{"type":"error","message":"Reconnecting... 1/5"}', ErrorEvent("Reconnecting... 1/5")),
        (
            b'{"type":"turn.completed","usage":'
            b'{"input_tokens":1200,"cached_input_tokens":1000,"output_tokens":34}}',
            TurnCompletedEvent(usage(1200, 1000, 34, None)),
        ),
        (
            b'{"type":"turn.completed","usage":{"input_tokens":1,"cached_input_tokens":0,'
            b'"cache_write_input_tokens":0,"output_tokens":2,"reasoning_output_tokens":1}}',
            TurnCompletedEvent(usage(1, 0, 2, 1)),
        ),
        (b' {"type":"turn.started","new":[{"a":null}]}\r', TurnStartedEvent()),
        (
            b'{"type":"item.started","item":{"id":"item_1","type":"command_execution","command":'
            b'"ls","aggregated_output":"","exit_code":null,"status":"in_progress"}}',
            ItemStartedEvent(CommandExecutionItem("item_1", "ls", None, "in_progress")),
        ),
        (
            b'{"type":"item.updated","item":{"id":"item_0","type":"todo_list","items":'
            b'[{"text":"A","completed":true},{"text":"B","completed":false}]}}',
            ItemUpdatedEvent(TodoListItem("item_0", (("A", True), ("B", False)))),
        ),
    ],
)
def test_each_event_is_read_by_value(line: bytes, event: Event) -> None:
    assert parse_event(line) == event


def test_each_item_is_read_by_value() -> None:
    read = [
        parse_event(completed(id="a", type="agent_message", text="Hello\n\u0000")),
        parse_event(completed(id="b", type="reasoning", text="**Thinking** hard")),
        parse_event(completed(id="c", type="command_execution", command="x", exit_code=3)),
        parse_event(
            completed(id="d", type="command_execution", command="x", exit_code=-1, status="failed")
        ),
        parse_event(
            completed(
                id="e",
                type="file_change",
                changes=[
                    {"path": "/a", "kind": "add"},
                    {"path": "/b", "kind": "delete"},
                    {"path": "/c", "kind": "update"},
                    {"path": "/d", "kind": "chmod"},
                ],
                status="completed",
            )
        ),
        parse_event(
            completed(id="f", type="mcp_tool_call", server="lab", tool="echo", status="failed")
        ),
        parse_event(
            completed(
                id="g",
                type="collab_tool_call",
                tool="spawn_agent",
                receiver_thread_ids=["01a2"],
                status="completed",
            )
        ),
        parse_event(completed(id="h", type="web_search", query="weather oslo")),
        parse_event(completed(id="i", type="error", message="Model metadata not found.")),
    ]
    assert read == [
        ItemCompletedEvent(item)
        for item in (
            AgentMessageItem("a", "Hello\n\u0000"),
            ReasoningItem("b", "**Thinking** hard"),
            CommandExecutionItem("c", "x", 3, "completed"),
            CommandExecutionItem("d", "x", -1, "failed"),
            FileChangeItem(
                "e",
                (
                    FileChange("/a", "add"),
                    FileChange("/b", "delete"),
                    FileChange("/c", "update"),
                    FileChange("/d", "update"),
                ),
                "completed",
            ),
            ToolCallItem("f", "lab", "echo", "failed"),
            ToolCallItem("g", None, "spawn_agent", "completed"),
            WebSearchItem("h", "weather oslo"),
            ErrorItem("i", "Model metadata not found."),
        )
    ]


def test_a_web_search_keeps_the_first_of_its_two_ids() -> None:
    line = (
        b'{"type":"item.completed","item":{"id":"item_0","type":"web_search","id":"ws_1",'
        b'"query":"q","action":{"type":"search","query":"q"}}}'
    )
    assert parse_event(line) == ItemCompletedEvent(WebSearchItem("item_0", "q"))


def test_what_is_new_in_a_later_codex_is_kept_as_unknown() -> None:
    assert parse_event(b'{"type":"turn.paused","why":1}') == UnknownEvent("turn.paused")
    assert parse_event(completed(id="x", type="hologram")) == ItemCompletedEvent(
        UnknownItem("x", "hologram")
    )
    assert parse_event(completed(id="y", type="todo_list", items=[])) == ItemCompletedEvent(
        TodoListItem("y", ())
    )


def test_what_is_missing_takes_an_empty_value() -> None:
    assert isinstance(parse_event(b"{}"), UnknownEvent)
    assert parse_event(b'{"type":"thread.started"}') == ThreadStartedEvent("")
    assert parse_event(b'{"type":"turn.failed"}') == TurnFailedEvent("")
    assert parse_event(b'{"type":"turn.completed"}') == TurnCompletedEvent(None)
    assert parse_event(b'{"type":"turn.completed","usage":{}}') == TurnCompletedEvent(None)
    event = parse_event(b'{"type":"item.completed"}')
    assert isinstance(event, ItemCompletedEvent)
    assert isinstance(event.item, UnknownItem)
    empty = [
        (AgentMessageItem("", ""), "agent_message"),
        (CommandExecutionItem("", "", None, "completed"), "command_execution"),
        (FileChangeItem("", (), "completed"), "file_change"),
        (ToolCallItem("", "", "", "completed"), "mcp_tool_call"),
        (WebSearchItem("", ""), "web_search"),
        (TodoListItem("", ()), "todo_list"),
    ]
    for item, name in empty:
        assert parse_event(completed(type=name)) == ItemCompletedEvent(item)


def test_what_is_of_the_wrong_type_counts_as_missing() -> None:
    assert isinstance(parse_event(b'{"type":7}'), UnknownEvent)
    assert parse_event(b'{"type":"error","message":["a"]}') == ErrorEvent("")
    assert parse_event(b'{"type":"turn.failed","error":"text"}') == TurnFailedEvent("")
    assert parse_event(b'{"type":"item.completed","item":[1]}') == parse_event(
        b'{"type":"item.completed","item":{}}'
    )
    counts = b'{"type":"turn.completed","usage":{"input_tokens":1.5,"output_tokens":true}}'
    assert parse_event(counts) == TurnCompletedEvent(None)
    assert parse_event(
        completed(id=1, type="command_execution", command=None, exit_code=True, status="declined")
    ) == ItemCompletedEvent(CommandExecutionItem("", "", None, "completed"))
    assert parse_event(
        completed(id="f", type="file_change", changes=[None, "/a", {"path": 1}])
    ) == ItemCompletedEvent(FileChangeItem("f", (FileChange("", "update"),), "completed"))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"   ",
        b"\xff\xfe{}",
        b'{"type":"error","message":"\xc3"}',
        b"\x00",
        b'{"type":"turn.started"}\x00',
        b'{"type":"turn.star',
        b'{"type":"turn.started"}{"type":"turn.started"}',
        b"[]",
        b'[{"type":"turn.started"}]',
        b"42",
        b"null",
        b'"turn.started"',
        b"NaN",
        b'{"type":"error","message":"\\ud800"}',
        b"Reading prompt from stdin...",
        b"\xef\xbb\xbf" + b"x" * 5000,
    ],
)
def test_a_line_that_is_no_object_of_codex_is_unreadable(line: bytes) -> None:
    event = parse_event(line)
    assert isinstance(event, UnreadableEvent)
    assert event.start == line[:200].decode("utf-8", "replace")


@pytest.mark.parametrize("depth", [10, 500, 950, 1000, 1020, 1030, 200_000])
@pytest.mark.parametrize(
    "head", [b'{"type":', b'{"type":"error","x":', b'{"type":"item.started","item":{"type":']
)
def test_nesting_of_any_depth_does_no_harm(head: bytes, depth: int) -> None:
    line = head + b"[" * depth + b"]" * depth + b"}" * head.count(b"{")
    assert isinstance(parse_event(line), get_args(Event))


TYPES = (
    "error thread.started turn.started turn.completed turn.failed item.started item.updated"
    " item.completed agent_message reasoning command_execution file_change mcp_tool_call"
    " collab_tool_call web_search todo_list"
)
KEYS = (
    "type item id text status changes items usage error message path kind input_tokens"
    " output_tokens exit_code command completed"
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(TYPES.split()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=6)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.binary() | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_some_event(line: bytes) -> None:
    assert isinstance(parse_event(line), get_args(Event))
