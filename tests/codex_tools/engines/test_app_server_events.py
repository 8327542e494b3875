"""Recorded sessions of the app-server, read as the lines of `codex exec --json`.

APP_SERVER_SESSIONS names another folder of recordings (VERSION/STORY.jsonl) to replay.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from codex_tools.codex.events import UnknownEvent, UnreadableEvent, parse_event
from codex_tools.codex.failures import classify
from codex_tools.codex.json_object import Json
from codex_tools.codex.turn_result import TurnProgress, TurnResult
from codex_tools.engines.app_server_events import (
    INTERRUPTED,
    WRITING_EVERY_S,
    WRITING_KEPT,
    TurnLines,
    Writing,
)
from codex_tools.engines.json_rpc import Notification

DATA = Path(__file__).parents[2] / "data"
SESSIONS = Path(os.environ.get("APP_SERVER_SESSIONS") or DATA / "app_server")
RECORDED = sorted(f"{file.parent.name}/{file.stem}" for file in SESSIONS.rglob("*.jsonl"))

FAILURES: dict[str, str] = {
    "failed_ctx": "context_window_exceeded",
    "failed_cut_9": "network",
    "failed_http_400": "invalid_request",
    "failed_http_401": "not_authenticated",
    "failed_http_404": "model_unavailable",
    "failed_http_429": "rate_limited",
    "failed_http_4290": "usage_limit",
    "failed_http_4291": "usage_limit",
    "failed_http_500": "overloaded",
    "failed_http_503": "overloaded",
    "failed_incomplete": "turn_failed",
    "failed_policy": "refused",
    "failed_rate": "rate_limited",
}
OTHERWISE = {
    "0.147.0/failed_http_4291": "rate_limited",  # Its message does not say that it is the quota.
    "0.147.0/failed_incomplete": "network",
}
INTERRUPTIONS = (
    *("interrupt_model", "interrupt_command", "review_interrupt", "approval_command_cancel"),
    *("approval_patch_cancel", "approval_unanswered_interrupt"),
)


@dataclass
class Turn:
    """One turn of a recording: its notifications, and what became of them."""

    thread_id: str
    lines: TurnLines
    progress: TurnProgress = field(default_factory=TurnProgress)
    printed: list[Json] = field(default_factory=list[Json])
    raw: list[Notification] = field(default_factory=list[Notification])

    def add(self, notification: Notification) -> None:
        self.raw.append(notification)
        for line in self.lines.add(notification):
            self.printed.append(line)
            self.progress.add(parse_event(orjson.dumps(line)))


def replay(name: str) -> list[Turn]:
    """Return the turns of a recorded session."""
    turns: list[Turn] = []
    early: list[Notification] = []
    running: dict[str, Turn] = {}
    for text in (SESSIONS / f"{name}.jsonl").read_text().splitlines():
        entry = json.loads(text)
        message = entry.get("msg", {})
        params = message.get("params", {})
        method = message.get("method", "")
        if entry.get("from") == "client" and method in (
            *("turn/start", "review/start", "thread/compact/start"),
        ):
            thread_id = params["threadId"]
            if running.get(thread_id) is None or running[thread_id].lines.status is not None:
                turns.append(Turn(thread_id, TurnLines(thread_id)))
                running[thread_id] = turns[-1]
                for each in early:
                    turns[-1].add(each)
        elif entry.get("from") == "server" and method and "id" not in message:
            notification = Notification(method, params)
            if params.get("threadId") not in running:
                early.append(notification)
            for turn in running.values():
                if turn.lines.status is None:
                    turn.add(notification)
    return turns


def items(turn: Turn, kind: str) -> list[Json]:
    """Return the last state of each item of the app-server's type *kind*."""
    found: dict[str, Json] = {}
    for notification in turn.raw:
        item = notification.params.get("item", {})
        if item.get("type") == kind and notification.params["threadId"] == turn.thread_id:
            found[item["id"]] = item
    return list(found.values())


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_session_comes_out_right(name: str) -> None:
    story = name.partition("/")[2]
    turns = replay(name)
    assert turns or story in ("errors", "resume_locked")
    ended = [turn for turn in turns if turn.lines.status is not None]
    assert len(ended) >= len(turns) - (story in ("errors", "resume_locked", "fork", "compact"))
    for turn in ended:
        result = turn.progress.result()
        events = [parse_event(orjson.dumps(line)) for line in turn.printed]
        assert not [e for e in events if isinstance(e, (UnknownEvent, UnreadableEvent))]
        kinds = [line["type"] for line in turn.printed]
        assert sum(kind in ("turn.completed", "turn.failed") for kind in kinds) == 1
        assert kinds[-1] in ("turn.completed", "turn.failed")
        answers = [m["text"] for m in items(turn, "agentMessage") if "text" in m]
        assert result.final_response in (answers[-1] if answers else None, *answers[-2:-1])
        commands = items(turn, "commandExecution")
        assert result.command_count == len(commands)
        if turn.lines.status == "completed":
            assert not [w for w in result.warnings if "still running" in w]
            totals = [
                n.params["tokenUsage"]["total"]
                for n in turn.raw
                if n.method == "thread/tokenUsage/updated"
                and n.params["threadId"] == turn.thread_id
            ]
            assert result.usage is not None
            expected = totals[-1] if totals else {"inputTokens": 0, "outputTokens": 0}
            assert result.usage.input_tokens == expected["inputTokens"]
            assert result.usage.output_tokens == expected["outputTokens"]
        changed = [
            change["path"]
            for item in items(turn, "fileChange")
            if item["status"] == "completed"
            for change in item["changes"]
        ]
        assert {path for path, _ in result.files_changed} <= {*changed}
        assert result.touched is bool(
            commands
            or items(turn, "fileChange")
            or items(turn, "webSearch")
            or items(turn, "dynamicToolCall")
        )
    last = ended[-1] if ended else None
    if story in FAILURES:
        assert last is not None
        failure = last.progress.failure
        assert failure is not None
        assert classify(failure).kind == OTHERWISE.get(name, FAILURES[story])
        assert last.lines.status == "failed"
    elif story in INTERRUPTIONS:
        ends = [(turn.lines.status, turn.progress.failure) for turn in ended]
        assert ("interrupted", INTERRUPTED) in ends
    elif last is not None:
        assert last.lines.status == "completed"


def facts(result: TurnResult) -> tuple[object, ...]:
    """Return what callers see of a turn and what does not depend on paths."""
    usage = result.usage
    return (
        result.final_response,
        usage and (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens),
        [(command.command, command.exit_code, command.status) for command in result.commands],
        [kind for _, kind in result.files_changed],
        [(call.server, call.tool, call.status) for call in result.tool_calls],
        result.searches[:1],
        result.plan,
        result.touched,
    )


def played_by_exec(name: str) -> TurnProgress:
    progress = TurnProgress()
    for line in (DATA / "exec" / name / "stdout.jsonl").read_bytes().splitlines():
        progress.add(parse_event(line))
    return progress


@pytest.mark.parametrize(
    ("of_server", "of_exec"),
    [
        ("0.171.0/hello", "0.169.0/hello"),
        ("0.147.0/hello", "0.147.0/hello"),
        ("0.171.0/two_messages", "0.169.0/two_messages"),
        ("0.147.0/plan", "0.147.0/plan"),
        ("0.171.0/failed_ctx", "0.169.0/failed_ctx"),
        ("0.171.0/failed_http_429", "0.169.0/http_429_always"),
    ],
)
def test_a_story_that_exec_told_too_has_the_same_facts(of_server: str, of_exec: str) -> None:
    turn, other = replay(of_server)[-1].progress, played_by_exec(of_exec)
    assert facts(turn.result()) == facts(other.result())
    assert (turn.completed, turn.failure) == (other.completed, other.failure)


def told(*notifications: tuple[str, Json]) -> list[Json]:
    """Return the lines of notifications of the thread `t`."""
    lines = TurnLines("t")
    return [
        line
        for method, params in notifications
        for line in lines.add(Notification(method, {"threadId": "t", **params}))
    ]


def test_another_thread_s_items_usage_and_end_are_not_this_turn_s() -> None:
    message = {"type": "agentMessage", "id": "m", "text": "of a sub-agent"}
    lines = TurnLines("t")
    for method, params in (
        ("item/completed", {"item": message}),
        ("thread/tokenUsage/updated", {"tokenUsage": {"total": {"inputTokens": 5}}}),
        ("turn/completed", {"turn": {"status": "completed"}}),
    ):
        assert lines.add(Notification(method, {"threadId": "other", **params})) == []
    assert lines.status is None
    ended = lines.add(
        Notification("turn/completed", {"threadId": "t", "turn": {"status": "completed"}})
    )
    assert ended[0]["usage"]["input_tokens"] == 0


def test_an_item_keeps_its_number_from_start_to_end_and_ids_are_as_exec_s() -> None:
    def item(id_: str, status: str) -> Json:
        return {"item": {"type": "commandExecution", "id": id_, "command": "x", "status": status}}

    lines = told(
        ("item/started", item("a", "inProgress")),
        ("item/started", item("b", "inProgress")),
        ("item/completed", item("a", "declined")),
        ("item/completed", item("b", "completed")),
        ("item/completed", item("c", "failed")),
    )
    seen = [(line["type"], line["item"]["id"], line["item"]["status"]) for line in lines]
    assert seen == [
        ("item.started", "item_0", "in_progress"),
        ("item.started", "item_1", "in_progress"),
        ("item.completed", "item_0", "failed"),
        ("item.completed", "item_1", "completed"),
        ("item.completed", "item_2", "failed"),
    ]
    # Codex sends null for the output of a quick command; exec prints an empty string.
    assert lines[2]["item"]["aggregated_output"] == ""


def test_items_with_possible_effects_are_passed_on_and_silent_ones_are_not() -> None:
    kinds = ("userMessage", "enteredReviewMode", "imageGeneration", "newInSomeVersion")
    lines = told(*(("item/completed", {"item": {"type": k, "id": k}}) for k in kinds))
    assert [line["item"]["type"] for line in lines] == ["imageGeneration", "newInSomeVersion"]
    progress = TurnProgress()
    progress.add(parse_event(orjson.dumps(lines[0])))
    assert progress.result().touched


def test_tool_calls_of_servers_and_of_sub_agents_have_exec_s_names() -> None:
    lines = told(
        (
            "item/completed",
            {
                "item": {
                    "type": "mcpToolCall",
                    "id": "1",
                    "server": "lab",
                    "tool": "echo",
                    "status": "completed",
                }
            },
        ),
        (
            "item/completed",
            {
                "item": {
                    "type": "collabAgentToolCall",
                    "id": "2",
                    "tool": "spawnAgent",
                    "status": "failed",
                }
            },
        ),
    )
    progress = TurnProgress()
    for line in lines:
        progress.add(parse_event(orjson.dumps(line)))
    calls = [(c.server, c.tool, c.status) for c in progress.result().tool_calls]
    assert calls == [("lab", "echo", "completed"), (None, "spawn_agent", "failed")]


def test_warnings_become_warnings_of_the_run() -> None:
    lines = told(
        ("warning", {"message": "one"}),
        ("configWarning", {"summary": "two", "details": "of what"}),
        ("deprecationNotice", {"summary": "three", "details": None}),
        ("model/rerouted", {"fromModel": "a", "toModel": "b"}),
    )
    progress = TurnProgress()
    for line in lines:
        progress.add(parse_event(orjson.dumps(line)))
    warnings = progress.result().warnings
    assert warnings == ("one", "two (of what)", "three", "model rerouted: a -> b")


def test_hostile_shapes_yield_lines_that_parse() -> None:
    values: Iterable[object] = (None, 1, "x", [], [None], {}, {"type": []}, {"id": {}, "type": "x"})
    methods = (
        *("item/started", "item/completed", "turn/started", "turn/completed", "error", "warning"),
        *("thread/tokenUsage/updated", "turn/plan/updated", "turn/diff/updated", "configWarning"),
    )
    keys = ("item", "turn", "error", "tokenUsage", "plan", "diff", "message", "threadId")
    for method in methods:
        for key in keys:
            for value in values:
                for line in TurnLines("t").add(Notification(method, {key: value})):
                    assert not isinstance(parse_event(orjson.dumps(line)), UnreadableEvent)
    types = ("commandExecution", "fileChange", "mcpToolCall", "webSearch", "reasoning")
    for kind in types:
        for value in values:
            item = {"type": kind, "id": value, "status": value, "changes": value, "summary": value}
            for line in told(("item/completed", {"item": item})):
                assert not isinstance(parse_event(orjson.dumps(line)), UnreadableEvent)


THREAD = "the thread"


def delta(text: str, thread_id: str = THREAD, item: str = "m") -> Notification:
    params = {"threadId": thread_id, "itemId": item, "delta": text}
    return Notification("item/agentMessage/delta", params)


def test_what_the_model_is_writing_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    writing = Writing(THREAD)
    assert writing.add(delta("One ")) == "One"
    assert writing.add(delta("two\n", thread_id="other")) is None
    assert writing.add(delta("two\n")) is None
    now += WRITING_EVERY_S
    assert writing.add(Notification("item/started", {"threadId": THREAD})) is None
    assert writing.add(delta("three")) == "One two three"
    now += WRITING_EVERY_S
    assert writing.add(delta("x" * 1000)) == "x" * WRITING_KEPT
    now += WRITING_EVERY_S
    assert writing.add(delta("New.", item="n")) == "New."
