"""The progress of a turn's events, and how a stream that has ended comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codex_tools.codex.errors import CodexError, NoAnswer, TurnFailed, WrongThread
from codex_tools.codex.events import (
    AgentMessageItem,
    CommandExecutionItem,
    ErrorEvent,
    ErrorItem,
    Event,
    ExitedEvent,
    FileChange,
    FileChangeItem,
    Item,
    ItemCompletedEvent,
    ItemStartedEvent,
    ItemUpdatedEvent,
    NoticeEvent,
    ReasoningItem,
    Status,
    ThreadStartedEvent,
    TodoListItem,
    ToolCallItem,
    TurnCompletedEvent,
    TurnFailedEvent,
    TurnStartedEvent,
    UnknownItem,
    UnreadableEvent,
    WebSearchItem,
    parse_event,
)
from codex_tools.codex.questions import Handle
from codex_tools.codex.record import Usage
from codex_tools.codex.turn_result import ChangeKind, Command, TurnProgress, bare_command
from codex_tools.engines.driver import check_thread, finish
from codex_tools.engines.handle import TurnHandle

RECORDED = sorted((Path(__file__).parents[2] / "data" / "exec").glob("*/*/stdout.jsonl"))
USAGE = Usage(
    input_tokens=10,
    cached_input_tokens=4,
    output_tokens=2,
    reasoning_output_tokens=None,
    total_tokens=12,
)
DONE = TurnCompletedEvent(USAGE)


def folded(*events: Event) -> TurnProgress:
    progress = TurnProgress()
    for event in events:
        progress.add(event)
    return progress


def says(text: str, id_: str = "m") -> Event:
    return ItemCompletedEvent(AgentMessageItem(id_, text))


def starts(id_: str, command: str = "make") -> Event:
    return ItemStartedEvent(CommandExecutionItem(id_, command, None, "in_progress"))


def ends(id_: str, command: str = "make", exit_code: int | None = 0) -> Event:
    return ItemCompletedEvent(CommandExecutionItem(id_, command, exit_code, "completed"))


def patches(*changes: str, status: Status = "completed") -> FileChangeItem:
    pairs = (change.split() for change in changes)
    kinds = cast("list[tuple[ChangeKind, str]]", pairs)
    return FileChangeItem("f", tuple(FileChange(path, kind) for kind, path in kinds), status)


KINDS = {
    "bad_flag": "codex_unsupported",
    "empty_items": "no_answer",
    "empty_prompt": "not_started",
    "failed_ctx": "context_window_exceeded",
    "http_400": "invalid_request",
    "http_401": "not_authenticated",
    "http_429_always": "rate_limited",
    "not_git": "untrusted_directory",
    "resume_bad_id": "thread_not_found",
    "sigterm_midcmd": "codex_crashed",
    "usage_limit": "usage_limit",
}


def test_each_recorded_stream_ends_as_it_did() -> None:
    for path in RECORDED:
        version, scenario = path.parts[-3:-1]
        progress = folded(*map(parse_event, path.read_bytes().splitlines()))
        exit_code = json.loads(path.with_name("meta.json").read_text())["exit_code"]
        progress.add(ExitedEvent(exit_code, path.with_name("stderr.txt").read_text()))
        expected = KINDS.get(scenario)
        if scenario == "resume_bad_id" and version in ("0.60.1", "0.98.0"):
            expected = None  # They begin a new thread.
        try:
            kind, answer = None, finish(progress).final_response
        except TurnFailed as error:
            kind, answer = error.failure.kind, error.failure.message
        except NoAnswer as error:
            kind, answer = error.kind, error.message
        assert kind == expected, (version, scenario, answer)
        assert answer, (version, scenario)


def test_the_last_message_is_the_answer() -> None:
    progress = folded(says("first", "a"), starts("c"), ends("c"), says("last", "b"), DONE)
    assert finish(progress).final_response == "last"
    assert finish(progress).usage == USAGE


def test_a_sub_agent_s_leaked_messages_do_not_become_the_answer() -> None:
    progress = folded(
        ThreadStartedEvent("parent"),
        TurnStartedEvent(),
        ItemCompletedEvent(ToolCallItem("item_0", None, "spawn_agent", "completed")),
        TurnStartedEvent(),
        ItemCompletedEvent(ReasoningItem("item_1", "**Child** thinks")),
        says("from the child", "item_2"),
        ItemCompletedEvent(ToolCallItem("item_3", None, "wait", "completed")),
        says("from the parent", "item_4"),
        DONE,
        ExitedEvent(0, ""),
    )
    result = finish(progress)
    assert (result.thread_id, result.final_response) == ("parent", "from the parent")
    assert [call.tool for call in result.tool_calls] == ["spawn_agent", "wait"]


NET = {
    "add": "add",
    "update": "update",
    "delete": "delete",
    "add add": "add",
    "add update": "add",
    "add delete": None,
    "update add": "update",
    "update update": "update",
    "update delete": "delete",
    "delete add": "update",
    "delete update": "update",
    "delete delete": "delete",
    "add delete add": "add",
    "delete add delete": "delete",
}


@pytest.mark.parametrize("kinds", NET)
def test_changes_of_one_path_come_to_one_net_change(kinds: str) -> None:
    progress = folded(*(ItemCompletedEvent(patches(f"{kind} /p/a")) for kind in kinds.split()))
    assert dict(progress.result().files_changed).get("/p/a") == NET[kinds]
    assert progress.files_changed == (NET[kinds] is not None)


def test_paths_keep_the_order_of_their_first_change() -> None:
    progress = folded(
        ItemCompletedEvent(patches("add /z", "update /a")),
        ItemCompletedEvent(patches("delete /m", "update /z")),
    )
    assert progress.result().files_changed == (("/z", "add"), ("/a", "update"), ("/m", "delete"))


def test_only_patches_that_were_applied_count() -> None:
    progress = folded(
        ItemStartedEvent(patches("add /a", status="in_progress")),
        ItemCompletedEvent(patches("add /b", status="failed")),
    )
    assert progress.result().files_changed == ()


def test_the_newest_fifty_commands_are_kept_and_all_are_counted() -> None:
    progress = TurnProgress()
    for number in range(120):
        progress.add(starts(f"c{number}", f"echo {number}"))
        progress.add(ends(f"c{number}", f"echo {number}"))
    result = progress.result()
    assert result.command_count == 120
    assert [c.command for c in result.commands] == [f"echo {n}" for n in range(70, 120)]


def test_a_command_that_outlasts_fifty_others_is_counted_once() -> None:
    progress = folded(starts("long"))
    for number in range(50):
        progress.add(starts(f"c{number}"))
        progress.add(ends(f"c{number}"))
    progress.add(ends("long"))
    assert progress.command_count == 51
    assert len(progress.result().commands) == 50


def test_what_never_completes_stays_open_and_in_progress() -> None:
    call = ToolCallItem("t", "lab", "echo", "in_progress")
    progress = folded(starts("a"), starts("b", "sleep 9"), ItemStartedEvent(call), ends("a"))
    assert progress.open_items == {"b", "t"}
    progress = folded(starts("b", "sleep 9"), ItemStartedEvent(call), says("done"), DONE)
    result = finish(progress)
    assert result.commands == (Command("sleep 9", None, "in_progress"),)
    assert result.tool_calls == (call,)


def test_only_commands_and_tool_calls_can_be_open() -> None:
    items: list[Item] = [
        AgentMessageItem("a", "x"),
        ReasoningItem("b", "x"),
        patches("add /a"),
        WebSearchItem("d", "x"),
        TodoListItem("e", ()),
        ErrorItem("g", "x"),
        UnknownItem("h", "x"),
    ]
    assert folded(*map(ItemStartedEvent, items)).open_items == set()


def test_an_error_that_the_failure_repeats_is_no_warning_as_well() -> None:
    progress = folded(ErrorEvent("slow model"), ErrorEvent("it broke"), TurnFailedEvent("it broke"))
    with pytest.raises(TurnFailed) as caught:
        finish(progress)
    assert caught.value.failure.message == "it broke"
    assert caught.value.turn.warnings == ("slow model",)


def test_reconnecting_is_one_warning_and_no_sign_of_life() -> None:
    progress = folded(TurnStartedEvent())
    assert progress.alive
    for number in range(1, 6):
        progress.add(ErrorEvent(f"Reconnecting... {number}/5 (stream disconnected)"))
        assert not progress.alive
    assert progress.doing == "reconnecting... 5/5 (stream disconnected)"
    assert progress.result().warnings == ("Reconnecting... 5/5 (stream disconnected)",)
    progress.add(ErrorEvent("Something else"))
    assert progress.alive


def test_warnings_are_distinct_and_bounded() -> None:
    progress = TurnProgress()
    for number in range(200):
        progress.add(ItemCompletedEvent(ErrorItem("e", f"warning {number}")))
        progress.add(ErrorEvent("again and again"))
    progress.add(ErrorEvent("y" * 5000))
    warnings = progress.result().warnings
    assert len(warnings) == 20
    assert warnings.count("again and again") == 1
    assert max(map(len, warnings)) == 500


def test_no_secret_is_in_warnings_nor_in_what_people_are_told() -> None:
    progress = TurnProgress()
    for start in ("Reconnecting... 1/5 (", "Oh no, "):
        progress.add(ErrorEvent(f"{start}Incorrect API key provided: sk-proj-abcdefghijkl)"))
        assert (
            "sk-proj-" not in f"{progress.result().warnings} {progress.last_error} {progress.doing}"
        )


def test_unreadable_lines_are_told_in_one_warning() -> None:
    progress = folded(UnreadableEvent("x"), UnreadableEvent("y"), says("ok"), DONE)
    assert finish(progress).warnings == ("2 lines of Codex's output could not be read.",)


def test_exit_code_0_without_turn_completed_is_a_crash() -> None:
    progress = folded(ThreadStartedEvent("t"), says("so far"), ExitedEvent(0, ""))
    with pytest.raises(TurnFailed) as caught:
        finish(progress)
    assert caught.value.failure.kind == "codex_crashed"
    assert caught.value.turn.thread_id == "t"
    assert caught.value.turn.final_response == "so far"


def test_exit_code_1_after_turn_completed_is_a_success() -> None:
    progress = folded(says("done"), DONE, ExitedEvent(1, "ERROR: cannot write the log"))
    assert finish(progress).final_response == "done"


def test_of_two_terminal_events_the_last_counts() -> None:
    assert finish(folded(says("ok"), TurnFailedEvent("child"), DONE)).final_response == "ok"
    with pytest.raises(TurnFailed, match="parent"):
        finish(folded(says("ok"), DONE, TurnFailedEvent("parent")))


@pytest.mark.parametrize("events", [(), (says(""),), (says(" \n\t"),), (says("x"), says(""))])
def test_a_turn_without_words_is_no_answer(events: tuple[Event, ...]) -> None:
    with pytest.raises(NoAnswer) as caught:
        finish(folded(*events, DONE))
    assert caught.value.turn.usage == USAGE


def test_the_plan_is_the_newest_one() -> None:
    progress = folded(
        ItemStartedEvent(TodoListItem("p", (("A", False), ("B", False)))),
        ItemUpdatedEvent(TodoListItem("p", (("A", True), ("B", False)))),
        says("planned"),
        ItemCompletedEvent(TodoListItem("p", (("A", True), ("B", True)))),
        DONE,
    )
    assert finish(progress).plan == (("A", True), ("B", True))


def test_a_search_is_listed_once_by_its_final_words() -> None:
    progress = folded(
        ItemStartedEvent(WebSearchItem("s", "")),
        ItemCompletedEvent(WebSearchItem("s", "weather oslo")),
    )
    assert progress.result().searches == ("weather oslo",)


def test_a_resumed_thread_must_be_the_one_asked_for() -> None:
    progress = folded(ThreadStartedEvent("new"), ThreadStartedEvent("later"))
    check_thread("new", progress)
    with pytest.raises(WrongThread) as caught:
        check_thread("old", progress)
    assert (caught.value.asked, caught.value.opened) == ("old", "new")
    with pytest.raises(WrongThread, match=r"thread \(none\) instead"):
        check_thread("old", folded(ThreadStartedEvent("")))


def test_a_fork_must_be_another_thread_than_its_origin() -> None:
    check_thread("old", folded(ThreadStartedEvent("new")), fork=True)
    for opened in (ThreadStartedEvent("old"), ThreadStartedEvent("")):
        with pytest.raises(WrongThread):
            check_thread("old", folded(opened), fork=True)


@pytest.mark.parametrize(
    ("command", "bare"),
    [
        ("/bin/bash -lc 'echo hi; ls'", "echo hi; ls"),
        ("/bin/zsh -lc \"echo 'a b'\"", "echo 'a b'"),
        ("bash -lc ls", "ls"),
        ("bash -lc ''", ""),
        ("bash -lc 'a' b", "bash -lc 'a' b"),
        ("bash -lc 'unclosed", "bash -lc 'unclosed"),
        ("env bash -lc ls", "env bash -lc ls"),
        ("bash -lc 'a\nb'", "a\nb"),
        (" -lc ls", " -lc ls"),
        ("pytest -q", "pytest -q"),
        ("", ""),
    ],
)
def test_a_command_is_shown_without_its_shell(command: str, bare: str) -> None:
    assert bare_command(command) == bare


st.register_type_strategy(Handle, st.builds(TurnHandle))
EVENTS: st.SearchStrategy[Event] = st.one_of(*map(st.from_type, get_args(Event)))


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=30))
def test_no_order_of_events_makes_a_success_without_turn_completed(events: list[Event]) -> None:
    terminal = [e for e in events if isinstance(e, TurnCompletedEvent | TurnFailedEvent)]
    completed = bool(terminal) and isinstance(terminal[-1], TurnCompletedEvent)
    try:
        succeeded = bool((finish(folded(*events)).final_response or "").strip())
    except NoAnswer:
        succeeded = True
    except CodexError as error:
        # A completed turn without tokens and without an answer has not begun: a hook stopped it.
        not_asked = isinstance(error, TurnFailed) and error.failure.kind == "not_started"
        succeeded = completed and not_asked
    assert succeeded is completed


def test_a_notice_of_the_engine_says_nothing_of_codex() -> None:
    progress = TurnProgress()
    progress.add(NoticeEvent("AGENTS.md was not read"))
    assert progress.result().warnings == ("AGENTS.md was not read",)
    assert not progress.started
    assert not progress.alive
    assert not progress.result().touched
