"""RunResult: its bounds, and what it tells a caller to do next."""

from __future__ import annotations

import re
from typing import get_args

import orjson
import pytest

from codex_tools.codex.errors import (
    Cancelled,
    CodexError,
    InvalidArguments,
    Kind,
    NotAllowed,
    OutputMismatch,
    Stalled,
    ThreadBusy,
    TimedOut,
    TurnFailed,
    WrongThread,
)
from codex_tools.codex.events import ToolCallItem
from codex_tools.codex.failures import classify
from codex_tools.codex.turn_result import ChangeKind, Command, TurnResult
from codex_tools.runs.result import (
    FILES_KEPT,
    RESPONSE_LIMIT,
    RESULT_LIMIT,
    EffectiveSettings,
    RunResult,
    interrupt,
    make_result,
    tell_error,
)
from generate import ERRORS

CONTROL, QUOTE, EURO, WIDE = "\x01", '"', "\N{EURO SIGN}", "\N{ROCKET}"
"""Six characters of JSON for one, two for one, one for one."""


def size(result: RunResult) -> int:
    return len(orjson.dumps(result.model_dump(mode="json")).decode())


def files(count: int, text: str) -> tuple[tuple[str, ChangeKind], ...]:
    return tuple((f"/{number}{text}", "add") for number in range(count))


def command(text: str) -> Command:
    return Command(text, 0, "completed")


def test_the_limits_are_those_of_the_contract() -> None:
    assert (RESPONSE_LIMIT, RESULT_LIMIT, FILES_KEPT) == (40_000, 48_000, 200)


def test_a_short_turn_comes_out_as_it_is() -> None:
    turn = TurnResult(
        thread_id="t",
        final_response="done",
        files_changed=(("/p/a", "add"), ("/p/b", "delete")),
        commands=(command("make"), Command("sleep 9", None, "in_progress")),
        command_count=77,
        tool_calls=(ToolCallItem("i", None, "wait", "failed"),),
        searches=("weather",),
        plan=(("step", True),),
        warnings=("careful",),
    )
    setting = EffectiveSettings(
        model="gpt-5.5", sandbox="read-only", cwd="/p", codex_version="0.169.0"
    )
    result = make_result(
        "completed",
        run_id="run_1",
        turn=turn,
        setting=setting,
        duration_s=1.23456,
        attempts=1,
        warnings=("and more",),
    )
    told = result.model_dump(exclude={"next"})
    assert told == {
        "run_id": "run_1",
        "status": "completed",
        "thread_id": "t",
        "final_response": "done",
        "structured_output": None,
        "usage": None,
        "cost_usd": None,
        "model": "gpt-5.5",
        "reasoning_effort": None,
        "sandbox": "read-only",
        "cwd": "/p",
        "codex_version": "0.169.0",
        "place": "here",
        "engine": None,
        "questions": [],
        "duration_s": 1.235,
        "files_changed": [
            {"path": "/p/a", "kind": "add", "seen_by": "patch"},
            {"path": "/p/b", "kind": "delete", "seen_by": "patch"},
        ],
        "changes": None,
        "copy": None,
        "commands": [
            {"command": "make", "exit_code": 0, "status": "completed"},
            {"command": "sleep 9", "exit_code": None, "status": "in_progress"},
        ],
        "command_count": 77,
        "tool_calls": [{"server": None, "tool": "wait", "status": "failed"}],
        "searches": ["weather"],
        "plan": [{"text": "step", "completed": True}],
        "warnings": ["careful", "and more"],
        "attempts": 1,
        "planned": None,
        "error": None,
    }


def test_an_answer_of_40000_characters_is_whole_and_a_longer_one_is_not() -> None:
    whole = make_result("completed", turn=TurnResult(final_response="x" * 40_000))
    assert whole.final_response == "x" * 40_000
    cut = make_result("completed", turn=TurnResult(final_response="h" * 30_000 + "t" * 30_000))
    assert cut.final_response is not None
    assert len(cut.final_response) == 40_000
    assert re.fullmatch(r"h+\n\[… [\d,]+ characters left out …\]\nt+", cut.final_response)


@pytest.mark.parametrize("character", [CONTROL, QUOTE, EURO, WIDE, "x"])
@pytest.mark.parametrize("length", [40_000, 47_000, 1_000_000])
def test_a_long_answer_fits_whatever_its_characters(character: str, length: int) -> None:
    result = make_result("completed", turn=TurnResult(final_response=character * length))
    assert size(result) <= 48_000
    assert len(result.final_response or "") > 5_000


def test_an_answer_that_was_cut_twice_tells_all_that_is_missing() -> None:
    text = "".join(f"{number:05}" for number in range(20_000))
    turn = TurnResult(final_response=text, searches=("s" * 300,) * 50)
    response = make_result("completed", turn=turn).final_response
    found = re.fullmatch(r"(\d+)\n\[… ([\d,]+) characters left out …\]\n(\d+)", response or "")
    assert found is not None
    left_out = int(found[2].replace(",", ""))
    assert abs(len(found[1]) + left_out + len(found[3]) - len(text)) < 100


FULL: dict[str, TurnResult] = {
    "paths": TurnResult(files_changed=files(300, "p" * 4000)),
    "odd paths": TurnResult(files_changed=files(300, CONTROL * 250)),
    "commands": TurnResult(commands=(command("c" * 300),) * 50),
    "odd commands": TurnResult(commands=(command(CONTROL * 300),) * 50),
    "tool calls": TurnResult(tool_calls=(ToolCallItem("i", "s" * 2000, "t", "completed"),) * 50),
    "searches": TurnResult(searches=(CONTROL * 300,) * 50),
    "plan": TurnResult(plan=((QUOTE * 300, True),) * 200),
    "warnings": TurnResult(warnings=(CONTROL * 500,) * 20),
    "all of it": TurnResult(
        final_response="f" * 100_000,
        files_changed=files(300, "p" * 200),
        commands=(command("c" * 1000),) * 50,
        searches=("s" * 1000,) * 50,
        plan=(("p" * 1000, False),) * 100,
        tool_calls=(ToolCallItem("i", "s" * 60, "t" * 60, "completed"),) * 50,
        warnings=("w" * 500,) * 20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_a_whole_result_fits_whatever_its_lists_hold(name: str) -> None:
    assert size(make_result("completed", turn=FULL[name])) <= 48_000


@pytest.mark.parametrize("count", [1, 6, 20])
def test_a_failed_result_fits_as_well(count: int) -> None:
    turn = TurnResult(final_response=CONTROL * 40_000, warnings=(CONTROL * 500,) * count)
    error = InvalidArguments([CONTROL * 10_000])
    assert size(make_result("failed", turn=turn, error=error)) <= 48_000


def test_at_most_200_files_are_listed_and_the_rest_counted() -> None:
    result = make_result("completed", turn=TurnResult(files_changed=files(250, "")))
    assert [file.path for file in result.files_changed] == [f"/{number}" for number in range(200)]
    assert result.warnings == ["files_changed omits 50 more files."]


def test_lists_that_are_cut_to_fit_say_so() -> None:
    result = make_result("completed", turn=FULL["odd paths"])
    assert result.files_changed
    assert result.files_changed[0].path.startswith("/0")
    assert any("cut to fit" in warning for warning in result.warnings)


def test_long_commands_and_plans_are_cut_in_their_middle() -> None:
    long = "a" * 500 + "z" * 500
    turn = TurnResult(commands=(command(long),), plan=((long, True),), searches=(long,))
    result = make_result("completed", turn=turn)
    assert len(result.commands[0].command) == 300
    assert result.commands[0].command.startswith("aaa")
    assert result.commands[0].command.endswith("zzz")
    assert (len(result.plan[0].text), len(result.searches[0])) == (300, 300)


def test_an_answer_that_does_not_fit_twice_is_kept_as_data() -> None:
    data = {"text": "x" * 30_000}
    turn = TurnResult(final_response=orjson.dumps(data).decode())
    result = make_result("completed", turn=turn, structured_output=data)
    assert result.structured_output == data
    assert result.final_response == "(see structured_output)"


TURN = TurnResult(thread_id="t-1", final_response="so far")


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        (InvalidArguments(["cwd: must be absolute"]), "invalid_arguments", False),
        (NotAllowed("sandbox x", "no", "--max-sandbox"), "not_allowed", False),
        (ThreadBusy("t-1"), "thread_busy", True),
        (TimedOut(5, None, TURN), "timed_out", True),
        (Stalled(5, "Reconnecting... 1/5", TURN), "stalled", True),
        (Cancelled(TURN), "cancelled", False),
        (WrongThread("t-1", "t-2", TURN), "wrong_thread", False),
        (OutputMismatch(["$: no"], TURN), "output_mismatch", True),
        (TurnFailed(classify("last status: 429"), TURN), "rate_limited", True),
        (TurnFailed(classify("something new"), TURN), "turn_failed", False),
    ],
)  # fmt: skip
def test_an_error_is_told_by_kind_message_and_hint(
    error: CodexError, kind: str, retryable: bool
) -> None:
    told = make_result("failed", turn=TURN, error=error).error
    assert told is not None
    assert (told.kind, told.retryable) == (kind, retryable)
    assert told.message == error.message
    assert told.hint == error.hint


def test_an_error_is_masked_and_bounded() -> None:
    error = InvalidArguments(["model: sk-proj-abcdefghijkl " + "x" * 100_000])
    told = make_result("failed", error=error).error
    assert told is not None
    assert len(told.message) <= 4000
    assert told.message.startswith("model: [secret]")


def test_next_says_what_to_do_with_the_ids_in_it() -> None:
    running = make_result("running", run_id="run_1").next
    assert "codex_wait" in running
    assert '["run_1"]' in running
    done = make_result("completed", turn=TURN).next
    assert 'codex_resume with thread_id "t-1"' in done
    failed = make_result("failed", turn=TURN, error=TimedOut(5, None, TURN)).next
    assert 'codex_resume with thread_id "t-1"' in failed
    wrong = make_result("failed", turn=TURN, error=WrongThread("t-0", "t-1", TURN)).next
    refused = make_result("failed", error=InvalidArguments(["x"])).next
    assert wrong == "Begin a new thread with codex_run, as the hint of the error says."
    assert refused == "Follow the hint of the error."
    ephemeral = make_result(
        "completed", turn=TURN, setting=EffectiveSettings(can_resume=False)
    ).next
    assert "codex_resume" not in ephemeral


def test_next_never_contradicts_the_hint() -> None:
    assert {tell_error(error).kind for error in ERRORS} == set(get_args(Kind))
    for error in ERRORS:
        for setting in (EffectiveSettings(), EffectiveSettings(can_resume=False)):
            result = make_result("failed", run_id="run_1", turn=TURN, setting=setting, error=error)
            assert result.error is not None
            hint = result.error.hint
            if "new thread" in hint or not setting.can_resume:
                assert "codex_resume" not in result.next, result.error.kind
            if "codex_resume" in hint and setting.can_resume:
                assert 'codex_resume with thread_id "t-1"' in result.next, result.error.kind


@pytest.mark.parametrize("kind", ["wrong_thread", "context_window_exceeded"])
def test_next_begins_a_new_thread_where_the_old_one_cannot_continue(kind: str) -> None:
    (error,) = (error for error in ERRORS if tell_error(error).kind == kind)
    result = make_result("failed", turn=TURN, error=error)
    assert result.error is not None
    assert "Begin a new thread with codex_run" in result.error.hint
    assert result.next == "Begin a new thread with codex_run, as the hint of the error says."


def test_next_of_a_turn_that_left_no_thread_does_not_resume_it() -> None:
    setting = EffectiveSettings(can_resume=False)
    error = TimedOut(5, None, TURN)
    for result in (
        make_result("timed_out", turn=TURN, setting=setting, error=error),
        make_result("timed_out", turn=TurnResult(), error=error),
    ):
        assert result.error is not None
        assert result.error.hint == "There is no thread to resume; call codex_run again instead."
        assert "codex_resume" not in result.model_dump_json()


def test_a_run_that_died_without_a_thread_names_no_thread_to_resume() -> None:
    for status in ("running", "queued"):
        begun = make_result(status, run_id="run_0123456789abcdef")
        assert "ends with the connection that started it" in begun.next
        found = interrupt(begun)
        assert found.error is not None
        assert found.error.kind == "interrupted"
        assert "codex_resume" not in found.model_dump_json()
        assert "codex_run again" in found.error.hint
    kept = make_result("running", run_id="run_0123456789abcdef", turn=TURN)
    assert "codex_resume" not in interrupt(kept, can_resume=False).model_dump_json()
    assert 'codex_resume with thread_id "t-1"' in interrupt(kept).next
