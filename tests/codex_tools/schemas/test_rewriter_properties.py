"""Any stream at all: bytes in, a bounded result that satisfies its schema out."""

from __future__ import annotations

import json
from typing import cast

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codex_tools.codex.errors import CodexError, TurnError
from codex_tools.codex.events import (
    Event,
    ExitedEvent,
    ItemCompletedEvent,
    ItemStartedEvent,
    ItemUpdatedEvent,
    TurnCompletedEvent,
    TurnFailedEvent,
    parse_event,
)
from codex_tools.codex.turn_result import TurnProgress, TurnResult
from codex_tools.engines.driver import finish
from codex_tools.runs.result import (
    FILES_KEPT,
    RESPONSE_LIMIT,
    RESULT_LIMIT,
    RunResult,
    RunStatus,
    make_result,
)
from codex_tools.schemas.validation import problems
from codex_tools.tool import output_schema

Json = dict[str, object]

SCHEMA = output_schema(RunResult)


def repeated(text: str, times: int) -> str:
    return text * times


SHORT: st.SearchStrategy[str] = st.text(max_size=40)
LONG: st.SearchStrategy[str] = st.builds(repeated, SHORT, st.integers(1, 3000))
TEXT: st.SearchStrategy[str] = SHORT | LONG
COUNT = st.one_of(
    st.integers(0, 10**6),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**400, -(2**63), 1.5]),
)
ANYTHING: st.SearchStrategy[object] = st.recursive(
    st.one_of(st.none(), st.booleans(), COUNT, SHORT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(SHORT, inner, max_size=3)),
    max_leaves=5,
)
ID = st.sampled_from(["item_0", "item_1", "item_2", "item_99", ""])
STATUS = st.sampled_from(["in_progress", "completed", "failed", "declined", "new"])
PATH = st.one_of(st.sampled_from(["/p/a", "/p/b", "a.py"]), TEXT)


def mostly(valid: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Return *valid* values, and now and then something else."""
    return st.integers(0, 19).flatmap(lambda n: ANYTHING if n == 0 else valid)


def thing(type_: str, **fields: st.SearchStrategy[object]) -> st.SearchStrategy[Json]:
    """Return objects of one type, whose fields may be left out or be wrong."""
    wanted = {name: mostly(values) for name, values in fields.items()}
    return st.fixed_dictionaries({"type": st.just(type_)}, optional=wanted)


CHANGE = st.fixed_dictionaries(
    {}, optional={"path": PATH, "kind": st.sampled_from(["add", "update", "delete", "move"])}
)
STEP = st.fixed_dictionaries({}, optional={"text": TEXT, "completed": st.booleans()})

ITEM = st.one_of(
    thing("agent_message", id=ID, text=TEXT),
    thing("reasoning", id=ID, text=TEXT.map(lambda text: f"**{text}** and so on")),
    thing(
        "command_execution",
        id=ID | SHORT,
        command=TEXT | SHORT.map(lambda text: f"/bin/bash -lc '{text}'"),
        exit_code=st.none() | COUNT,
        status=STATUS,
    ),
    thing("file_change", id=ID, changes=st.lists(CHANGE, max_size=20), status=STATUS),
    thing("mcp_tool_call", id=ID | SHORT, server=TEXT, tool=TEXT, status=STATUS),
    thing("collab_tool_call", id=ID | SHORT, tool=TEXT, status=STATUS),
    thing("web_search", id=ID | SHORT, query=TEXT),
    thing("todo_list", id=ID, items=st.lists(STEP, max_size=60)),
    thing("error", id=ID, message=TEXT),
    thing("item_of_the_future", id=ID, text=TEXT),
)
USAGE = st.fixed_dictionaries(
    {},
    optional={
        "input_tokens": COUNT,
        "cached_input_tokens": COUNT,
        "output_tokens": COUNT,
        "reasoning_output_tokens": COUNT,
    },
)
THREAD_ID = st.one_of(st.uuids().map(str), TEXT)
EVENT = st.one_of(
    thing("thread.started", thread_id=THREAD_ID),
    thing("turn.started"),
    thing("turn.completed", usage=USAGE),
    thing("turn.failed", error=st.fixed_dictionaries({}, optional={"message": TEXT})),
    thing("error", message=TEXT | SHORT.map(lambda text: f"Reconnecting... 1/5 {text}")),
    thing("event.of.the.future", item=ITEM),
    *(thing(f"item.{kind}", item=ITEM) for kind in ("started", "updated", "completed")),
)


def written(value: object, *, ascii_only: bool) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace")


def cut(value: object, end: int) -> bytes:
    return written(value, ascii_only=False)[:end]


LINE: st.SearchStrategy[bytes] = st.one_of(
    st.builds(written, EVENT, ascii_only=st.booleans()),
    st.builds(written, EVENT, ascii_only=st.booleans()),
    st.builds(cut, EVENT, st.integers(0, 300)),
    st.binary(max_size=200),
    st.builds(written, ANYTHING, ascii_only=st.just(True)),
)
STREAM = st.lists(LINE, max_size=40)
EXIT = st.builds(
    ExitedEvent,
    st.integers(-64, 255),
    st.one_of(TEXT, st.just("thread 'main' panicked at src/main.rs:1:1")),
)


def folded(lines: list[bytes], ended: ExitedEvent) -> tuple[TurnProgress, list[Event]]:
    progress = TurnProgress()
    events: list[Event] = [*map(parse_event, lines), ended]
    for event in events:
        progress.add(event)
        progress.result()
    return progress, events


def outcome(progress: TurnProgress) -> tuple[TurnResult, CodexError | None]:
    try:
        return finish(progress), None
    except CodexError as error:
        # Any other kind of CodexError knows no turn, and has no place here.
        return cast("TurnError", error).turn, error


@settings(deadline=None, max_examples=150)
@given(STREAM, EXIT)
def test_a_run_is_completed_only_if_turn_completed_was_the_last_terminal_event(
    lines: list[bytes], ended: ExitedEvent
) -> None:
    progress, events = folded(lines, ended)
    terminal = [e for e in events if isinstance(e, TurnCompletedEvent | TurnFailedEvent)]
    _, error = outcome(progress)
    if error is None or error.kind == "no_answer":
        assert isinstance(terminal[-1], TurnCompletedEvent)
    else:
        assert not terminal or isinstance(terminal[-1], TurnFailedEvent)
    assert progress.ended is bool(terminal)


@settings(deadline=None, max_examples=150)
@given(STREAM, EXIT)
def test_a_turn_is_bounded_however_long_its_stream(lines: list[bytes], ended: ExitedEvent) -> None:
    # Repeated under other ids, so that every list meets its limit.
    many = [line.replace(b"item_", b"item_%d" % n) for n in range(4) for line in lines]
    progress, events = folded(many, ended)
    turn, _ = outcome(progress)
    assert len(turn.commands) <= 50
    assert len(turn.commands) <= turn.command_count
    assert len(turn.tool_calls) <= 50
    assert len(turn.searches) <= 50
    assert len(turn.warnings) <= 21
    assert all(len(warning) <= 500 for warning in turn.warnings)
    assert len(progress.last_error or "") <= 500
    items = [e for e in events if isinstance(e, ItemStartedEvent | ItemUpdatedEvent)]
    finished = [e.item.id for e in events if isinstance(e, ItemCompletedEvent)]
    assert progress.open_items <= {event.item.id for event in items}
    assert len(turn.files_changed) == len({path for path, _ in turn.files_changed})
    assert turn.final_response is None or finished or items
    assert progress.thread_id != ""


@settings(deadline=None, max_examples=200)
@given(STREAM, EXIT, st.booleans())
@example(
    [
        b'{"type":"turn.completed","usage":{"input_tokens":%d,"output_tokens":%d}}'
        % (2**64 - 1, 2**64 - 1)
    ],
    ExitedEvent(0, ""),
    False,
)
@example([b'{"type":"thread.started","thread_id":"%s"}' % (b"x" * 60_000)], ExitedEvent(0, ""),
         False)  # fmt: skip
def test_every_result_satisfies_its_schema_and_fits(
    lines: list[bytes], ended: ExitedEvent, running: bool
) -> None:
    progress, _ = folded(lines, ended)
    turn, error = outcome(progress)
    status: RunStatus = "running" if running else "failed" if error else "completed"
    result = make_result(
        status,
        run_id="run_0123456789abcdef",
        turn=turn,
        usage=turn.usage,
        attempts=1,
        warnings=("A warning of our own.",),
        error=None if running else error,
    )
    data = cast("Json", result.model_dump(mode="json"))
    assert problems(SCHEMA, data) == []
    assert len(orjson.dumps(data).decode()) <= RESULT_LIMIT
    assert len(result.final_response or "") <= RESPONSE_LIMIT
    assert len(result.files_changed) <= FILES_KEPT
    assert len(result.commands) <= 50
    assert all(len(command.command) <= 300 for command in result.commands)
    assert (result.error is None) is (running or error is None)
    assert result.next
    assert RunResult.model_validate_json(result.model_dump_json()) == result


@settings(deadline=None, max_examples=100)
@given(TEXT, st.sampled_from(["", "\0", '"', "\\", "é", "\U0001f4a9", "\x01"]))
def test_a_long_answer_keeps_its_head_and_its_tail(text: str, filler: str) -> None:
    answer = f"HEAD {text}{filler * 60_000} TAIL"
    progress = TurnProgress()
    progress.add(
        parse_event(
            written(
                {"type": "item.completed", "item": {"type": "agent_message", "text": answer}},
                ascii_only=False,
            )
        )
    )
    result = make_result("completed", turn=progress.result())
    response = result.final_response or ""
    assert response.startswith("HEAD ")
    assert response.endswith(" TAIL")
    assert len(orjson.dumps(result.model_dump()).decode()) <= RESULT_LIMIT
