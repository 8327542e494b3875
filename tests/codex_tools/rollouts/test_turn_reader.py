"""The turns of one thread, as each version of Codex writes them down."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest
import zstandard

from codex_tools.codex.json_object import Json
from codex_tools.history.index import ThreadIndex
from codex_tools.rollouts.turn_builder import COMMANDS_KEPT, Turn
from codex_tools.runs.result import RESULT_LIMIT
from codex_tools.sessions import SessionsResult
from support.index_checks import START, Rollout, open_index, sessions
from support.rollout_lines import turns_in
from support.synthetic_home import KINDS, Truth, make_home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def history(home: Path, tmp_path: Path) -> Generator[ThreadIndex]:
    with open_index(home, tmp_path / "state") as opened:
        yield opened


def only(rollout: Rollout) -> Turn:
    """Return the one turn of a rollout."""
    rollout.save()
    (turn,), left = turns_in(rollout.path, None, 5)
    assert left == 0
    return turn


def called(rollout: Rollout, call_id: str, command: object, name: str = "shell_command") -> Rollout:
    key = "cmd" if name == "exec_command" else "command"
    arguments = json.dumps({key: command})
    return rollout.item("function_call", name=name, arguments=arguments, call_id=call_id)


def printed(rollout: Rollout, call_id: str, output: str) -> Rollout:
    return rollout.item("function_call_output", call_id=call_id, output=output)


def ran(rollout: Rollout, call_id: str, command: list[str], code: int | None, status: str) -> None:
    rollout.event(
        "item_completed",
        item={
            "type": "CommandExecution",
            "id": call_id,
            "command": command,
            "status": status,
            "aggregated_output": "Exit code: 77\n",
            "exit_code": code,
        },
    )


# The thread as a whole.


@pytest.mark.parametrize("paginated", [False, True])
def test_turns_come_newest_first_and_page_by_page_while_the_file_grows(
    home: Path, paginated: bool
) -> None:
    rollout = Rollout(home, paginated=paginated)
    for n in range(10):
        rollout.ask(f"prompt {n}").use(100 + n, n).answer(f"answer {n}")
    rollout.save()
    turns, left = turns_in(rollout.path, None, 4)
    assert ([turn.prompt for turn in turns], left) == ([f"prompt {n}" for n in (9, 8, 7, 6)], 6)
    rollout.ask("prompt 10").save()
    more, left = turns_in(rollout.path, left, 4)
    assert ([turn.prompt for turn in more], left) == ([f"prompt {n}" for n in (5, 4, 3, 2)], 2)
    rollout.answer("answer 10").ask("prompt 11").save()
    rest, left = turns_in(rollout.path, left, 4)
    assert ([turn.prompt for turn in rest], left) == (["prompt 1", "prompt 0"], 0)
    assert [turn.final_response for turn in rest] == ["answer 1", "answer 0"]
    for n, turn in zip(range(9, -1, -1), (*turns, *more, *rest), strict=True):
        assert turn.usage == (100 + n, 0, n, 0)
        assert (turn.model, turn.sandbox) == ("gpt-5.1-codex-max", "read-only")
    newest, _ = turns_in(rollout.path, None, 2)
    assert [turn.final_response for turn in newest] == [None, "answer 10"]


@pytest.mark.parametrize(
    ("before", "count", "prompts", "left"),
    [
        (0, 5, [], 0),
        (1, 5, ["0"], 0),
        (3, 1, ["2"], 2),
        (99, 2, ["2", "1"], 1),
        (None, 99, ["2", "1", "0"], 0),
    ],
)
def test_any_part_of_the_turns_can_be_read(
    home: Path, before: int | None, count: int, prompts: list[str], left: int
) -> None:
    rollout = Rollout(home).ask("0").ask("1").ask("2").save()
    turns, rest = turns_in(rollout.path, before, count)
    assert ([turn.prompt for turn in turns], rest) == (prompts, left)


def test_a_thread_without_turns_has_none(home: Path, history: ThreadIndex) -> None:
    rollout = Rollout(home).save()
    assert turns_in(rollout.path, None, 5) == ([], 0)
    assert sessions(history, thread_id=rollout.id)["turns"] == []


def test_a_packed_thread_tells_the_same(home: Path) -> None:
    rollout = Rollout(home, paginated=True)
    for n in range(10):
        rollout.ask(f"prompt {n}").use(n).answer("x" * 90_000)
    rollout.save()
    packed = rollout.path.with_name(f"{rollout.path.name}.zst")
    packed.write_bytes(zstandard.ZstdCompressor().compress(rollout.path.read_bytes()))
    for before in (None, 7, 2):
        assert turns_in(packed, before, 3) == turns_in(rollout.path, before, 3)


def test_a_line_that_is_torn_or_foreign_costs_no_turn(home: Path) -> None:
    rollout = Rollout(home).ask("One.").answer("Done.")
    rollout.lines[2:2] = [b"\xff\xfe not json", b"[]", b"null", b'{"type":"event_msg"}', b""]
    rollout.ask("Two.").save()
    with rollout.path.open("ab") as file:
        file.write(b'{"timestamp":"2025-02-20T00:00:09.000Z","type":"event_msg","payload":{"typ')
    turns, _ = turns_in(rollout.path, None, 5)
    assert [(turn.prompt, turn.final_response) for turn in turns] == [
        ("Two.", None),
        ("One.", "Done."),
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    home = tmp_path_factory.mktemp("made")
    return home, make_home(home, sessions=24, days=9, seed=61, packed=0.2, start=START)


def test_the_turns_of_all_kinds_of_threads_use_together_what_the_thread_used(
    made: tuple[Path, Truth],
) -> None:
    home, truth = made
    assert {session.kind for session in truth.sessions.values()} == {*KINDS}
    for session in truth.sessions.values():
        turns, left = turns_in(home / session.path, None, 10_000)
        assert (len(turns), left) == (session.turns, 0), session.kind
        used = session.used
        sums = tuple(map(sum, zip(*(turn.usage for turn in turns), strict=True)))
        assert sums == (used.input, used.cached, used.output, used.reasoning), session.kind
        assert turns[-1].prompt == session.prompt
        for n in range(0, session.turns, 3):
            assert turns_in(home / session.path, n + 1, 1) == ([turns[-1 - n]], n)


def test_what_the_tool_tells_of_a_thread_fits_its_schema(
    made: tuple[Path, Truth], tmp_path: Path
) -> None:
    home, truth = made
    with open_index(home, tmp_path) as history:
        for id_ in truth.sessions:
            SessionsResult.model_validate(sessions(history, thread_id=id_, turns=50))


# What 0.60.1 keeps.


def test_an_old_turn_tells_its_commands_with_their_exit_codes(home: Path) -> None:
    rollout = Rollout(home).ask("Go.")
    called(rollout, "a", "ls -l")
    printed(rollout, "a", "Exit code: 0\nWall time: 0.1 seconds\nOutput:\nx\nExit code: 9\n")
    called(rollout, "b", ["bash", "-lc", "make test"], "shell")
    printed(rollout, "b", json.dumps({"output": "Exit code: 2\nOutput:\n", "metadata": {}}))
    called(rollout, "c", "sleep 9", "exec_command")
    printed(rollout, "c", "Chunk ID: 1\nProcess exited with code -1\nOutput:\n")
    called(rollout, "d", "never ends")
    called(rollout, "e", "prints only")
    printed(rollout, "e", "no exit code here; not Exit code: 5")
    rollout.item("function_call", name="update_plan", arguments='{"command":"no"}', call_id="f")
    rollout.item("function_call", name="shell", arguments="{torn", call_id="g")
    turn = only(rollout.answer("Done."))
    assert turn.commands == [
        ("ls -l", 0, "completed"),
        ("make test", 2, "failed"),
        ("sleep 9", -1, "failed"),
        ("never ends", None, "in_progress"),
        ("prints only", None, "in_progress"),
    ]
    assert (turn.final_response, turn.error, turn.turn_id) == ("Done.", None, None)


def test_an_old_turn_tells_its_files_and_how_long_it_took(home: Path) -> None:
    rollout = Rollout(home, cwd="/project").ask("Go.")
    rollout.item("custom_tool_call", name="apply_patch", input="*** Begin", call_id="a")
    output = "Success. Updated the following files:\nA new.txt\nM src/../main.py\nD /gone\n"
    rollout.item("custom_tool_call_output", call_id="a", output=output)
    rollout.ms += 4000
    turn = only(rollout.answer("Done."))
    assert turn.files == {
        "/project/new.txt": "add",
        "/project/main.py": "update",
        "/gone": "delete",
    }
    assert turn.duration_s is not None
    assert 4 <= turn.duration_s < 6


def test_what_compaction_says_is_no_answer(home: Path) -> None:
    rollout = Rollout(home).ask("Go.").answer("Done.")
    rollout.event("agent_message", message="Compact task completed")
    assert only(rollout).final_response == "Done."


# What newer ones keep.


def test_a_new_turn_tells_its_commands_files_and_duration(home: Path) -> None:
    rollout = Rollout(home, paginated=True).ask("Go.")
    ran(rollout, "a", ["/bin/bash", "-lc", "ls -l"], 0, "completed")
    ran(rollout, "b", ["git", "status"], 128, "failed")
    ran(rollout, "c", ["/bin/sh", "-c", "rm x"], None, "declined")
    changes = {
        "/p/a": {"type": "add", "content": "x"},
        "/p/b": {"type": "update", "unified_diff": "", "move_path": "/p/c"},
        "/p/d": {"type": "delete", "content": ""},
        "/p/e": {"type": "update", "unified_diff": "", "move_path": None},
    }
    item = {"type": "FileChange", "id": "f", "changes": changes, "status": "completed"}
    rollout.event("item_completed", item=item)
    refused = {"/p/z": {"type": "add", "content": ""}}
    rollout.event("item_completed", item=item | {"status": "failed", "changes": refused})
    turn = only(rollout.answer("Done."))
    assert turn.commands == [
        ("ls -l", 0, "completed"),
        ("git status", 128, "failed"),
        ("rm x", None, "failed"),
    ]
    assert turn.files == {
        "/p/a": "add",
        "/p/b": "delete",
        "/p/c": "add",
        "/p/d": "delete",
        "/p/e": "update",
    }
    assert (turn.duration_s, turn.turn_id, turn.error) == (1.5, rollout.turn_id, None)


def test_a_command_that_is_kept_as_call_and_as_item_is_told_once(home: Path) -> None:
    rollout = Rollout(home, paginated=True).ask("Go.")
    called(rollout, "a", "ls", "exec_command")
    ran(rollout, "a", ["/bin/bash", "-lc", "ls"], 0, "completed")
    printed(rollout, "a", "Process exited with code 0\n")
    assert only(rollout).commands == [("ls", 0, "completed")]


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ({"error": {"message": "It broke.", "codex_error_info": "other"}}, "It broke."),
        ({"error": {"codex_error_info": "other"}}, "{'codex_error_info': 'other'}"),
        ({"error": None}, None),
        ({}, None),
    ],
)
def test_a_new_turn_tells_why_it_failed(home: Path, end: Json, error: str | None) -> None:
    rollout = Rollout(home, paginated=True).ask("Go.")
    rollout.event("task_complete", turn_id=rollout.turn_id, last_agent_message=None, **end)
    assert only(rollout).error == error


def test_an_interrupted_turn_says_so(home: Path) -> None:
    rollout = Rollout(home, paginated=True).ask("Go.")
    rollout.event("turn_aborted", turn_id=rollout.turn_id, reason="interrupted", duration_ms=2500)
    turn = only(rollout)
    assert (turn.error, turn.duration_s) == ("interrupted (interrupted)", 2.5)


@pytest.mark.parametrize("steps", ["AD", "ADA", "DA", "AM", "MD", "MM", "DAD"])
def test_of_a_file_that_changed_again_and_again_the_whole_is_told(home: Path, steps: str) -> None:
    rollout = Rollout(home, paginated=True).ask("Go.")
    kinds = {"A": "add", "M": "update", "D": "delete"}
    for n, step in enumerate(steps):
        changes = {"/p/a": {"type": kinds[step]}}
        item = {"type": "FileChange", "id": str(n), "changes": changes, "status": "completed"}
        rollout.event("item_completed", item=item)
    expected = {
        "AD": None,
        "ADA": "add",
        "DA": "update",
        "AM": "add",
        "MD": "delete",
        "MM": "update",
        "DAD": "delete",
    }
    assert only(rollout).files.get("/p/a") == expected[steps]


# How much of it is told.


@pytest.mark.parametrize("paginated", [False, True])
def test_texts_and_lists_are_bounded_however_large_a_turn_is(
    home: Path, history: ThreadIndex, paginated: bool
) -> None:
    rollout = Rollout(home, paginated=paginated)
    for n in range(60):
        rollout.ask(f"prompt {n} " + '\\"é\n' * 20_000)
        for call in range(70):
            called(rollout, f"{n}-{call}", f"echo {call} " + "x" * 900)
            printed(rollout, f"{n}-{call}", "Exit code: 0\n")
        output = "Updated the following files:\n" + "".join(f"A f{k}\n" for k in range(500))
        rollout.item("custom_tool_call_output", call_id="p", output=output)
        rollout.answer(f"answer {n} " + '\\"é\n' * 20_000)
    rollout.save()
    for count in (1, 5, 50):
        found = sessions(history, thread_id=rollout.id, turns=count)
        assert len(found["turns"]) == count
        assert found["next_cursor"] == str(60 - count)
        told = SessionsResult.model_validate(found).model_dump_json()
        assert len(told) <= RESULT_LIMIT, count
        for n, turn in enumerate(found["turns"]):
            assert turn["prompt"].startswith(f"prompt {59 - n} ")
            assert turn["final_response"].startswith(f"answer {59 - n} ")
        if count < 50:
            assert found["turns"][0]["commands"][-1]["command"].startswith("echo 69 ")


def test_of_many_commands_the_newest_are_kept(home: Path) -> None:
    rollout = Rollout(home).ask("Go.")
    for n in range(COMMANDS_KEPT + 30):
        called(rollout, str(n), f"echo {n}")
        printed(rollout, str(n), f"Exit code: {n}\n")
    commands = only(rollout).commands
    assert [code for _, code, _ in commands] == list(range(30, COMMANDS_KEPT + 30))
    assert commands[0][0] == "echo 30"


def test_a_cut_answer_says_where_the_whole_one_is(home: Path, history: ThreadIndex) -> None:
    rollout = Rollout(home)
    rollout.ask("a long one")
    rollout.answer("a" * 100_000)
    rollout.save()
    (turn,) = sessions(history, thread_id=rollout.id, turns=1)["turns"]
    assert f"in the resource codex://threads/{rollout.id} …]" in turn["final_response"]
