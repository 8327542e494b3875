"""What a turn is built from: its prompt, answer, commands and files, as each Codex records them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from codex_tools.codex.json_object import Json
from codex_tools.rollouts.thread_reader import ThreadReader
from codex_tools.rollouts.turn_builder import UNEXPLAINED, Turn, TurnBuilder
from support.rollout_lines import (
    LEGACY_FORK,
    MIXED,
    NEW,
    OLD,
    THREAD,
    TURN,
    Models,
    answered,
    asked,
    context,
    event,
    item,
    line,
    meta,
    new_asked,
    new_meta,
    no_count,
    said,
    spaced,
    started,
    written,
)

IDE = "# Context from my IDE setup:\n\n## Active file: a.py\n\n## My request for Codex:\n"
DONE = "Success. Updated the following files:\nA new.txt\n"
PLAN = "# The move\n- pack the zebra\n"
REVIEW: Json = {"findings": [], "overall_explanation": "fine zebra", "overall_correctness": "ok"}


def built(*lines: Json) -> Turn:
    """Return the turn of *lines*, read one by one."""
    each: Iterator[bytes] = iter(written(*lines).split(b"\n"))
    return TurnBuilder(0).read(each)


def ending_of(*lines: Json) -> str:
    """Return how the reader of threads says that the last turn ended, however it is read."""
    data = written(meta() if lines[0]["type"] != "session_meta" else lines[0], *lines)
    found: set[str] = set()
    for text in (data, written(*lines, form=spaced)):
        for cut in range(0, len(text), 97):
            first, second = ThreadReader(THREAD, Models()), ThreadReader(THREAD, Models())
            first.feed(text[:cut])
            second.restore(first.state(), first.requests, first.marks, first.all_limits)
            second.feed(text[first.offset :])
            second.finish()
            found.add(second.ending)
    (ending,) = found
    return ending


def complete(answer: str | None = None, **more: Any) -> Json:
    """Return the end of a turn as 0.107 to 0.144.2 write it."""
    return event("task_complete", turn_id=TURN, last_agent_message=answer, duration_ms=9, **more)


def new_complete(answer: str | None = None, **more: Any) -> Json:
    """Return the end of a turn as 0.147.0 and later write it."""
    return complete(answer, started_at=1795902158, completed_at=1795902159, **more)


def phase(text: str, name: str) -> Json:
    return event("agent_message", message=text, phase=name)


def completed(kind: str, turn_id: str = TURN, **more: Any) -> Json:
    return event("item_completed", thread_id=THREAD, turn_id=turn_id, item={"type": kind} | more)


def called(call_id: str, name: str, **arguments: Any) -> Json:
    return item("function_call", name=name, arguments=json.dumps(arguments), call_id=call_id)


def returned(call_id: str, output: str) -> Json:
    return item("function_call_output", call_id=call_id, output=output)


def result(text: str, code: int) -> str:
    return json.dumps({"output": text, "metadata": {"exit_code": code, "duration_seconds": 0.1}})


BEGUN = (started(), context(turn_id=TURN), asked("do it"))


# Prompts.


@pytest.mark.parametrize("ask", [asked, new_asked])
def test_the_prompt_is_the_request_and_the_whole_text_is_kept(ask: Any) -> None:
    turn = built(started(), ask(f"{IDE}rename it\n"), new_complete("done"))
    assert (turn.prompt, turn.recorded_prompt) == ("rename it", f"{IDE}rename it\n")


def test_a_prompt_without_context_is_kept_as_it_is() -> None:
    turn = built(started(), asked(" do it\n"), complete("done"))
    assert (turn.prompt, turn.recorded_prompt) == (" do it\n", None)


def test_context_without_a_request_is_no_prompt() -> None:
    turn = built(started(), asked(IDE), complete("done"))
    assert (turn.prompt, turn.recorded_prompt) == (None, IDE)


def test_prompts_that_are_added_follow_and_one_that_is_recorded_twice_does_not() -> None:
    turn = built(*BEGUN, asked("do it"), asked(f"{IDE}and that"), complete("done"))
    assert turn.prompt == "do it\n\nand that"
    assert turn.recorded_prompt == f"do it\n\n{IDE}and that"


# Endings.


@pytest.mark.parametrize(
    "work",
    [
        (no_count(),),
        (phase("I will look.", "commentary"),),
        (event("agent_message", message="I will look.", phase=None),),
        (said("I will look."), called("a", "exec_command", cmd="ls"), returned("a", "x")),
    ],
)
def test_a_turn_without_an_answer_failed_if_its_codex_records_no_errors(
    work: tuple[Json, ...],
) -> None:
    lines = (*BEGUN, *work, complete())
    turn = built(*lines)
    assert (turn.final_response, turn.error) == (None, UNEXPLAINED)
    assert ending_of(*lines) == "failed"


def test_a_turn_of_a_sub_agent_without_an_answer_failed_too() -> None:
    lines = (started(), context(turn_id=TURN), complete())
    assert built(*lines).error == UNEXPLAINED
    assert ending_of(*lines) == "failed"


@pytest.mark.parametrize("error", [{"message": "Enough."}, "Enough."])
@pytest.mark.parametrize("end", [complete, new_complete])
def test_a_turn_with_an_error_failed_with_it(end: Any, error: Any) -> None:
    lines = (*BEGUN, said("I will look."), end(error=error))
    turn = built(*lines)
    assert (turn.final_response, turn.error) == (None, "Enough.")
    assert ending_of(*lines) == "failed"


def test_a_turn_without_an_answer_completed_if_its_codex_would_record_an_error() -> None:
    lines = (*BEGUN, new_complete())
    assert (built(*lines).error, ending_of(*lines)) == (None, "completed")


def test_a_turn_of_paginated_history_without_an_answer_completed() -> None:
    lines = (new_meta(), started(), context(turn_id=TURN), new_asked("do it"), complete())
    assert (built(*lines).error, ending_of(*lines)) == (None, "completed")


@pytest.mark.parametrize(
    "work",
    [
        (line("compacted", {"message": "all of it"}), event("context_compacted")),
        (item("message", role="user", content=[{"type": "input_text", "text": "<user_shell_"}]),),
    ],
)
def test_a_turn_that_asks_no_model_completed(work: tuple[Json, ...]) -> None:
    lines = (*BEGUN, complete("done"), started(), *work, complete())
    assert (built(*lines[4:]).error, ending_of(*lines)) == (None, "completed")


@pytest.mark.parametrize("end", [complete, new_complete])
def test_the_answer_of_plan_mode_is_its_plan(end: Any) -> None:
    lines = (*BEGUN, completed("Plan", id="p", text=PLAN), end())
    turn = built(*lines)
    assert (turn.final_response, turn.error) == (PLAN, None)
    assert ending_of(*lines) == "completed"
    around = "Here is what I think."
    turn = built(*BEGUN, completed("Plan", id="p", text=PLAN), said(around), end(around))
    assert turn.final_response == f"{around}\n\n{PLAN}"


def test_a_plan_is_the_answer_without_an_end_too() -> None:
    # 0.98.0 marks no ends.
    turn = built(asked("plan it"), completed("Plan", id="p", text=PLAN), answered(PLAN))
    assert turn.final_response == PLAN


@pytest.mark.parametrize("end", [complete, new_complete])
@pytest.mark.parametrize(
    "left",
    [event("exited_review_mode", review_output=REVIEW),
     completed("ExitedReviewMode", id="x", review_output=REVIEW)],
)  # fmt: skip
def test_the_answer_of_a_review_is_what_it_found(left: Json, end: Any) -> None:
    lines = (*BEGUN, asked("do it"), said("I will look."), left, end())
    assert (built(*lines).final_response, built(*lines).error) == ("fine zebra", None)
    told = built(*BEGUN, left, said("fine zebra\n\n- none"), end())
    assert (told.prompt, told.final_response) == ("do it", "fine zebra\n\n- none")


def test_a_review_of_an_old_codex_completed() -> None:
    lines = (*BEGUN, event("exited_review_mode", review_output=REVIEW), complete())
    assert ending_of(*lines) == "completed"


def test_the_answer_of_one_turn_is_not_that_of_the_next() -> None:
    first = (*BEGUN, completed("Plan", id="p", text=PLAN), complete())
    assert ending_of(*first, *BEGUN, complete()) == "failed"


def test_commentary_is_no_answer_of_an_open_turn() -> None:
    turn = built(*BEGUN, phase("I will look.", "commentary"))
    assert turn.final_response is None
    assert built(*BEGUN, phase("so far", "final_answer")).final_response == "so far"


def test_an_answer_stays_if_the_turn_fails_after_it() -> None:
    turn = built(*BEGUN, phase("all done", "final_answer"), new_complete(error={"message": "no"}))
    assert (turn.final_response, turn.error) == ("all done", "no")


# Commands and files.


@pytest.mark.parametrize("name", ["shell", "container.exec"])
def test_the_tool_shell_returns_its_exit_code_as_json(name: str) -> None:
    # 0.60.1 with gpt-5, o3 and gpt-oss.
    turn = built(
        asked("go"), context(cwd="/p"),
        called("a", name, command=["bash", "-lc", "ls"]), returned("a", result("x", 0)),
        called("b", name, command=["bash", "-lc", "exit 3"]), returned("b", result("", 3)),
    )  # fmt: skip
    assert turn.commands == [("ls", 0, "completed"), ("exit 3", 3, "failed")]


@pytest.mark.parametrize("kind", ["function_call_output", "local_shell_call_output"])
def test_a_local_shell_call_is_a_command(kind: str) -> None:
    action = {"type": "exec", "command": ["bash", "-lc", "make"], "working_directory": "/p"}
    call = item("local_shell_call", call_id="a", status="completed", action=action)
    turn = built(asked("go"), call, item(kind, call_id="a", output=result("", 2)))
    assert turn.commands == [("make", 2, "failed")]
    assert built(asked("go"), call).commands == [("make", None, "in_progress")]


def test_an_event_tells_how_a_command_ended() -> None:
    end = {"call_id": "a", "command": ["/bin/bash", "-lc", "ls"], "exit_code": 4}
    turn = built(
        *BEGUN, called("a", "exec_command", cmd="ls"), event("exec_command_end", **end),
        event("exec_command_end", **end | {"call_id": "b", "exit_code": 0, "status": "completed"}),
    )  # fmt: skip
    assert turn.commands == [("ls", 4, "failed"), ("ls", 0, "completed")]


def test_a_command_in_a_session_ends_when_its_session_does() -> None:
    running = "Chunk ID: 1\nWall time: 0.2 seconds\nProcess running with session ID {}\nOutput:\n"
    ended = "Chunk ID: 2\nWall time: 1 seconds\nProcess exited with code {}\nOutput:\n"
    begin = [
        called("a", "exec_command", cmd="sleep 1"), returned("a", running.format(11)),
        called("b", "exec_command", cmd="sleep 2"), returned("b", running.format(22)),
    ]  # fmt: skip
    turn = built(*BEGUN, *begin)
    assert [status for *_, status in turn.commands] == ["in_progress"] * 2
    turn = built(
        *BEGUN, *begin,
        called("c", "write_stdin", session_id=22, chars=""), returned("c", running.format(22)),
        called("d", "write_stdin", session_id=22, chars=""), returned("d", ended.format(5)),
        called("e", "write_stdin", session_id=99, chars=""), returned("e", ended.format(6)),
    )  # fmt: skip
    assert turn.commands == [("sleep 1", None, "in_progress"), ("sleep 2", 5, "failed")]


def test_a_command_that_outlives_its_turn_is_none_of_the_next() -> None:
    late: Json = {"id": "a", "source": "unified_exec_startup", "command": ["bash", "-lc", "make"]}
    end = completed("CommandExecution", turn_id="another", status="completed", exit_code=0, **late)
    assert built(*BEGUN, end).commands == []
    own = completed("CommandExecution", status="completed", exit_code=0, **late)
    assert built(*BEGUN, own).commands == [("make", 0, "completed")]
    # A review's items bear another id than its turn.
    by_hand = end["payload"]["item"] | {"source": "agent"}
    assert built(*BEGUN, event("item_completed", turn_id="x", item=by_hand)).commands


OWN = "<user_shell_command>\n<command>\nexit {0}\n</command>\n<result>\nExit code: {0}\nOutput:\n"


@pytest.mark.parametrize(("code", "status"), [(3, "failed"), (0, "completed")])
def test_a_command_of_the_person_is_a_command(code: int, status: str) -> None:
    content = [{"type": "input_text", "text": OWN.format(code)}]
    message = item("message", role="user", content=content)
    turn = built(started(), message, complete())
    assert (turn.commands, turn.error) == ([(f"exit {code}", code, status)], None)
    own: Json = {"id": "x", "source": "user_shell", "command": ["bash", "-lc", f"exit {code}"]}
    ran = completed("CommandExecution", status=status, exit_code=code, **own)
    turn = built(new_meta(), started(), ran, message, new_complete())
    assert turn.commands == [(f"exit {code}", code, status)]
    content[0]["text"] = f"What is {OWN.format(code)}?"
    assert built(started(), message).commands == []


def test_a_command_that_was_refused_is_not_in_progress() -> None:
    turn = built(
        *BEGUN, called("a", "exec_command", cmd="ls"),
        returned("a", "exec_command failed for `ls`: CreateProcess"),
    )  # fmt: skip
    assert turn.commands == [("ls", None, "failed")]


PATCH = "*** Begin Patch\n*** Add File: new.txt\n+x\n*** End Patch\n"


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"command": ["bash", "-lc", f"apply_patch <<'EOF'\n{PATCH}EOF"]}, "/p/new.txt"),
        ({"command": ["bash", "-lc", f"cd a && apply_patch <<'EOF'\n{PATCH}EOF"]}, "/p/a/new.txt"),
        ({"command": ["apply_patch", PATCH], "workdir": "/q"}, "/q/new.txt"),
        ({"command": ["apply_patch", PATCH], "workdir": "b"}, "/p/b/new.txt"),
    ],
)
@pytest.mark.parametrize(
    "output",
    [
        result(DONE, 0),
        f"Wall time: 0.0 seconds\nOutput:\n{result(DONE, 0)}",
        f"Wall time: 0.0 seconds\nOutput:\nExit code: 0\nWall time: 0 seconds\nOutput:\n{DONE}",
    ],
    ids=["0.98.0", "0.120.0", "0.171.0"],
)
def test_a_patch_through_a_shell_changes_files(arguments: Json, path: str, output: str) -> None:
    turn = built(
        asked("go"), context(cwd="/p"), called("a", "shell", **arguments), returned("a", output)
    )
    assert (turn.files, turn.commands) == ({path: "add"}, [])


def test_a_patch_through_a_shell_that_is_an_item_too_is_told_once() -> None:
    changes = {"/p/new.txt": {"type": "add", "content": "x"}}
    for told in (
        completed("FileChange", id="a", status="completed", changes=changes),
        event("patch_apply_end", call_id="a", success=True, changes=changes),
    ):
        turn = built(
            *BEGUN, context(cwd="/other"), called("a", "shell", command=["apply_patch", PATCH]),
            told, returned("a", result(DONE, 0)),
        )  # fmt: skip
        assert (turn.files, turn.commands) == ({"/p/new.txt": "add"}, [])


def test_a_patch_that_failed_is_a_command_that_failed() -> None:
    failed = "apply_patch verification failed: no such file"
    turn = built(
        asked("go"), called("a", "shell", command=["apply_patch", PATCH]), returned("a", failed)
    )
    assert turn.files == {}
    assert [(code, status) for _, code, status in turn.commands] == [(None, "failed")]


def test_a_list_of_files_that_a_command_prints_changes_none() -> None:
    turn = built(asked("go"), called("a", "shell", command=["cat", "log"]), returned("a", DONE))
    assert turn.files == {}


# Before September 2025.


BARE: list[Json] = [
    {"id": THREAD, "timestamp": "2025-08-19T08:25:08.000Z", "instructions": None, "git": {}},
    {"record_type": "state"},
    {"type": "message", "role": "user",
     "content": [{"type": "input_text", "text": "<environment_context>\n  <cwd>/shop</cwd>\n"
                                                "</environment_context>"}]},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "fix it"}]},
    {"type": "function_call", "name": "shell", "call_id": "a",
     "arguments": '{"command":["bash","-lc","ls"]}'},
    {"type": "function_call_output", "call_id": "a",
     "output": '{"output":"x","metadata":{"exit_code":1,"duration_seconds":0.0}}'},
    {"type": "message", "role": "assistant",
     "content": [{"type": "output_text", "text": "fixed"}]},
]  # fmt: skip


def bare_bytes(entries: Sequence[Json]) -> bytes:
    return "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in entries).encode()


def test_items_without_an_envelope_are_a_turn() -> None:
    turn = TurnBuilder(0).read(iter(bare_bytes(BARE).split(b"\n")))
    assert (turn.prompt, turn.recorded_prompt, turn.final_response) == ("fix it", None, "fixed")
    assert turn.commands == [("ls", 1, "failed")]


@pytest.mark.parametrize(
    ("count", "ending", "turns"),
    [(1, "", 0), (3, "", 0), (4, "asked", 1), (6, "asked", 1), (7, "answered", 1)],
)
def test_items_without_an_envelope_are_a_thread(count: int, ending: str, turns: int) -> None:
    data = bare_bytes(BARE[:count])
    for cut in range(0, len(data), 41):
        first, reader = ThreadReader("x", Models()), ThreadReader("x", Models())
        first.feed(data[:cut])
        reader.restore(first.state(), first.requests, first.marks, first.all_limits)
        reader.feed(data[first.offset :])
        reader.finish()
        assert (reader.thread_id, reader.bad_lines, reader.is_readable) == (THREAD, 0, True)
        assert (reader.ending, reader.turns, reader.requests) == (ending, turns, [])
        assert reader.active_ms == reader.created_ms == 1755591908000
        assert reader.title == ("fix it" if turns else None)
        assert reader.cwd == ("/shop" if count > 2 else None)


def test_a_newer_codex_may_go_on_in_such_a_thread() -> None:
    lines = written(started(), context(turn_id=TURN), asked("and this"), new_complete("done"))
    reader = ThreadReader("x", Models())
    reader.feed(bare_bytes(BARE) + lines)
    reader.finish()
    assert (reader.turns, reader.ending, reader.bad_lines) == (2, "completed", 0)


def test_items_without_an_envelope_make_no_sense_elsewhere() -> None:
    for lines in (OLD, NEW, MIXED, LEGACY_FORK):
        reader = ThreadReader(THREAD, Models())
        reader.feed(written(*lines))
        turns = reader.turns
        reader.feed(bare_bytes(BARE))
        reader.finish()
        assert (reader.turns, reader.bad_lines) == (turns, len(BARE))
