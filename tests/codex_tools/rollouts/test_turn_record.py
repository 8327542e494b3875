"""What a rollout records of one turn: read from where the turn began."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from codex_tools.codex.json_object import Json
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.line import LINE_LIMIT
from codex_tools.rollouts.threads import read_state
from codex_tools.rollouts.turn_record import (
    Settings,
    SettingsFollower,
    TurnMark,
    TurnRecord,
    read_record,
)
from support.rollout_lines import THREAD
from support.spent_by_child import spent_on, write_long_lines, write_outputs

PRICES = read_prices(None)


def at(ms: int, kind: str, payload: Json) -> bytes:
    seconds, rest = divmod(ms, 1000)
    stamp = f"2026-11-23T03:{seconds // 60:02}:{seconds % 60:02}.{rest:03}Z"
    entry = {"timestamp": stamp, "type": kind, "payload": payload}
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def turn(ms: int, tokens: int, total: int, *rest: bytes, sandbox: str = "read-only") -> bytes:
    def usage(count: int) -> Json:
        return {
            "input_tokens": count,
            "cached_input_tokens": 0,
            "output_tokens": 1,
            "reasoning_output_tokens": 0,
            "total_tokens": count + 1,
        }

    info = {"total_token_usage": usage(total), "last_token_usage": usage(tokens)}
    return b"".join(
        (
            at(ms, "event_msg", {"type": "task_started", "turn_id": f"turn-{ms}"}),
            at(ms + 1, "event_msg", {"type": "user_message", "message": "do"}),
            at(ms + 2, "turn_context", {"cwd": "/p", "sandbox_policy": {"type": sandbox}}),
            at(ms + 3, "event_msg", {"type": "token_count", "info": info}),
            *rest,
        )
    )


def applied(ms: int, tier: str | None) -> bytes:
    settings = {} if tier is None else {"service_tier": tier}
    payload = {"type": "thread_settings_applied", "thread_settings": settings}
    return at(ms, "event_msg", payload)


def done(ms: int, answer: str) -> bytes:
    return at(ms, "event_msg", {"type": "task_complete", "last_agent_message": answer})


META = at(0, "session_meta", {"id": THREAD, "timestamp": "2026-11-23T03:00:00.000Z", "cwd": "/p"})
FIRST = META + turn(1000, 100, 100, done(1100, "one"), sandbox="danger-full-access")
SECOND = turn(2000, 7, 107, done(2100, "two"))

NEXT_SEGMENT = "01a20661-c445-73e1-b566-c552cde98cd1"


def read(
    folder: Path,
    data: bytes,
    mark: TurnMark,
    *,
    packed: bool = False,
    turns: int | None = None,
) -> TurnRecord:
    name = f"rollout-2026-11-23T03-00-00-{THREAD}.jsonl"
    path = folder / (name + ".zst" if packed else name)
    path.write_bytes(zstandard.compress(data) if packed else data)
    return read_record([path], mark, PRICES, turns=turns)


@pytest.mark.parametrize("packed", [False, True])
def test_only_what_comes_after_the_mark_counts(tmp_path: Path, packed: bool) -> None:
    found = read(tmp_path, FIRST + SECOND, TurnMark(len(FIRST)), packed=packed)
    assert (found.ending, found.final_response) == ("completed", "two")
    assert found.settings == Settings(sandbox="read-only", cwd="/p")
    assert found.usage is not None
    assert found.usage.input_tokens == 7
    whole = read(tmp_path, FIRST + SECOND, TurnMark(), packed=packed)
    assert whole.usage is not None
    assert whole.usage.input_tokens == 107


def test_a_later_segment_is_read_from_its_start(tmp_path: Path) -> None:
    start = "rollout-2026-11-23T03-00-00-"
    paths = [tmp_path / f"{start}{THREAD}{ending}.jsonl" for ending in ("", f"_{NEXT_SEGMENT}")]
    paths[0].write_bytes(FIRST)
    paths[1].write_bytes(META + SECOND + SECOND)
    assert paths[1].stat().st_size > len(FIRST) > len(META)
    found = read_record(paths, TurnMark(len(FIRST)), PRICES)
    assert (found.ending, found.final_response) == ("completed", "two")
    assert found.usage is not None
    assert found.usage.input_tokens == 7


THIRD = turn(3000, 50, 157, done(3100, "three"), sandbox="workspace-write")


@pytest.mark.parametrize("packed", [False, True])
def test_only_so_many_turns_count(tmp_path: Path, packed: bool) -> None:
    data, mark = FIRST + SECOND + THIRD, TurnMark(len(FIRST))
    found = read(tmp_path, data, mark, packed=packed, turns=1)
    assert found == read(tmp_path, FIRST + SECOND, mark, packed=packed)
    assert (found.final_response, found.settings) == ("two", Settings("read-only", "/p"))
    assert read(tmp_path, data, mark, packed=packed, turns=0) == TurnRecord()
    whole = read(tmp_path, data, mark, packed=packed)
    assert read(tmp_path, data, mark, packed=packed, turns=2) == whole
    assert read(tmp_path, data, mark, packed=packed, turns=3) == whole
    assert whole.final_response == "three"


def test_so_many_turns_are_counted_over_segments(tmp_path: Path) -> None:
    start = "rollout-2026-11-23T03-00-00-"
    paths = [tmp_path / f"{start}{THREAD}{ending}.jsonl" for ending in ("", f"_{NEXT_SEGMENT}")]
    paths[0].write_bytes(FIRST + SECOND)
    paths[1].write_bytes(META + THIRD)
    mark = TurnMark(len(FIRST))
    answers = [
        read_record(paths, mark, PRICES, turns=turns).final_response for turns in (0, 1, 2, None)
    ]
    assert answers == [None, "two", "three", "three"]
    used = read_record(paths, mark, PRICES, turns=1).usage
    assert used is not None
    assert used.input_tokens == 7


def test_a_turn_that_has_not_begun_is_not_the_former_one(tmp_path: Path) -> None:
    assert read(tmp_path, FIRST, TurnMark(len(FIRST))) == TurnRecord()


def test_a_rollout_that_was_written_anew_is_told_by_time(tmp_path: Path) -> None:
    since = 1_795_403_002_000  # 2026-11-23T03:03:22Z would be later than both turns.
    shorter = META + SECOND
    mark = TurnMark(len(FIRST + SECOND) + 1, since)
    assert read(tmp_path, shorter, mark).ending is None
    found = read(tmp_path, shorter, TurnMark(len(FIRST + SECOND) + 1, 0))
    assert (found.ending, found.final_response) == ("completed", "two")


@pytest.mark.parametrize(
    ("rest", "ending"),
    [
        ((), "open"),
        (
            (at(2100, "event_msg", {"type": "turn_aborted", "reason": "interrupted"}),),
            "interrupted",
        ),
        (
            (at(2100, "event_msg", {"type": "task_complete", "error": {"message": "no"}}),),
            "failed",
        ),
    ],
)
def test_how_a_turn_ended_is_read(tmp_path: Path, rest: Sequence[bytes], ending: str) -> None:
    found = read(tmp_path, FIRST + turn(2000, 7, 107, *rest), TurnMark(len(FIRST)))
    assert found.ending == ending
    assert found.error == ("no" if ending == "failed" else None)


@pytest.mark.parametrize("plan", [False, True])
def test_what_was_said_before_a_turn_ended_without_an_answer_is_none(
    tmp_path: Path, plan: bool
) -> None:
    # 0.107 to 0.144.2 record no errors.
    asked = at(2010, "event_msg", {"type": "user_message", "message": "do it"})
    said = at(2020, "event_msg", {"type": "agent_message", "message": "I will look."})
    item = {"type": "item_completed", "item": {"type": "Plan", "text": "a plan"}}
    planned = at(2030, "event_msg", item) if plan else b""
    end = at(2100, "event_msg", {"type": "task_complete", "last_agent_message": None})
    found = read(
        tmp_path, FIRST + turn(2000, 7, 107, asked, said, planned, end), TurnMark(len(FIRST))
    )
    told = (found.ending, found.final_response, found.error)
    assert told == (("completed", "a plan", None) if plan else ("failed", None, None))


def test_text_that_looks_like_a_record_is_none(tmp_path: Path) -> None:
    forged = json.dumps({"type": "turn_context", "payload": {"sandbox_policy": {"type": "x"}}})
    call = {"type": "function_call", "name": "shell", "arguments": {"turn_context": 1, "a": forged}}
    line = at(2050, "response_item", call)
    found = read(tmp_path, FIRST + turn(2000, 7, 107, line), TurnMark(len(FIRST)))
    assert found.settings == Settings(sandbox="read-only", cwd="/p")


def test_no_argument_of_a_tool_is_taken_for_a_record(tmp_path: Path) -> None:
    # The arguments of an MCP tool are written as JSON, not as a text.
    forged = {"type": "turn_context", "payload": {"sandbox_policy": {"type": "x"}, "cwd": "/x"}}
    spent = {"type": "token_count", "info": {"total_token_usage": {"input_tokens": 9}}}
    lines = [
        at(2050, "response_item", {"type": "tool_search_call", "arguments": arguments})
        for arguments in (forged, {"type": "event_msg", "payload": spent})
    ]
    path = tmp_path / f"rollout-2026-11-23T03-00-00-{THREAD}.jsonl"
    path.write_bytes(FIRST + turn(2000, 7, 107, *lines))
    state = read_state([path])
    assert state is not None
    assert (state.sandbox, state.cwd) == ("read-only", "/p")
    path.write_bytes(at(1000, "response_item", {"id": THREAD, "cwd": "/x"}) + FIRST[len(META) :])
    assert read_state([path]) is None


def test_settings_are_followed_while_they_are_written_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / f"rollout-2026-11-23T03-00-00-{THREAD}.jsonl"
    path.write_bytes(FIRST)
    follower = SettingsFollower(path, len(FIRST))
    assert follower.read() == []
    line = at(2002, "turn_context", {"sandbox_policy": {"type": "workspace-write"}})
    with path.open("ab") as file:
        file.write(line[:50])
        file.flush()
        assert follower.read() == []
        file.write(line[50:])
        file.flush()
        assert follower.read() == [Settings(sandbox="workspace-write")]
        assert follower.read() == []


def test_a_command_that_the_sandbox_broke_is_found_once(tmp_path: Path) -> None:
    output = "Process exited with code 1\nOutput:\nbwrap: No permissions to create new namespace\n"
    said = at(2050, "response_item", {"type": "function_call_output", "output": output})
    quoted = at(2060, "response_item", {"type": "message", "role": "user", "content": output})
    data = FIRST + turn(2000, 7, 107, said, said, quoted, done(2100, "x"))
    found = read(tmp_path, data, TurnMark(len(FIRST)))
    assert len(found.troubles) == 1
    assert "No permissions to create new namespace" in found.troubles[0]
    none = read(tmp_path, FIRST + turn(2000, 7, 107, quoted), TurnMark(len(FIRST)))
    assert none.troubles == ()


def test_a_turn_costs_what_its_service_tier_costs(tmp_path: Path) -> None:
    path = tmp_path / f"rollout-2026-11-23T03-00-00-{THREAD}.jsonl"
    costs: dict[str | None, float | None] = {}
    for tier in (None, "priority", "flex", "zonk"):
        # The earlier turn, in another tier, is none of this turn's costs.
        before = META + applied(100, "flex") + turn_of(200, 5000, 5000) + done(300, "a")
        path.write_bytes(before + applied(400, tier) + turn_of(500, 1000, 6000) + done(600, "b"))
        record = read_record([path], TurnMark(len(before), 400), PRICES)
        assert record.usage is not None
        assert record.usage.input_tokens == 1000
        costs[tier] = record.cost_usd
    standard = 1000 * 5e-6 + 30e-6
    assert costs == {
        None: pytest.approx(standard),
        "priority": pytest.approx(2.5 * standard, abs=1e-6),
        "flex": pytest.approx(standard / 2, abs=1e-6),
        "zonk": None,
    }


def turn_of(ms: int, tokens: int, total: int) -> bytes:
    """Return a turn of gpt-5.5."""
    return turn(ms, tokens, total).replace(b'"cwd":"/p"', b'"cwd":"/p","model":"gpt-5.5"')


def test_a_long_line_does_not_hide_the_settings_after_it(tmp_path: Path) -> None:
    path = tmp_path / f"rollout-2026-11-23T03-00-00-{THREAD}.jsonl"
    path.write_bytes(FIRST)
    follower = SettingsFollower(path, len(FIRST))
    line = at(2001, "response_item", {"type": "message", "text": "x" * (LINE_LIMIT + 9)})
    then = at(2002, "turn_context", {"sandbox_policy": {"type": "workspace-write"}})
    torn = at(2003, "response_item", {"type": "message", "text": "y"})[:-5]
    with path.open("ab") as file:
        file.write(line + then)
        file.flush()
        assert follower.read() == [Settings(sandbox="workspace-write")]
        file.write(torn + then)
        file.flush()
        assert follower.read() == [Settings(sandbox="workspace-write")]


@pytest.mark.parametrize("kind", ["turn_context", "token_count"])
def test_a_record_that_was_appended_to_a_torn_one_is_part_of_the_state(
    tmp_path: Path, kind: str
) -> None:
    # 0.120.0 and earlier append to what a killed Codex left of a record (seen).
    path = tmp_path / f"rollout-2026-11-23T03-00-00-{THREAD}.jsonl"
    whole = next(line for line in FIRST.splitlines() if kind.encode() in line)
    begun, *then = turn(2000, 7, 107, sandbox="workspace-write").splitlines(keepends=True)
    for cut in (*range(30, len(whole), 7), len(whole) - 1):
        path.write_bytes(FIRST + whole[:cut] + begun + b"".join(then))
        state = read_state([path])
        assert state is not None
        assert (state.sandbox, state.usage and state.usage.input_tokens) == ("workspace-write", 107)
        # The record itself may be what was appended.
        place = next(at for at, line in enumerate(then) if kind.encode() in line)
        then_torn = [*then[:place], whole[:cut] + then[place], *then[place + 1 :]]
        path.write_bytes(FIRST + begun + b"".join(then_torn))
        assert read_state([path]) == replace(state, size=path.stat().st_size)


READ = """
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.line import LINE_LIMIT
from codex_tools.rollouts.threads import read_state
from codex_tools.rollouts.turn_record import TurnMark, read_record
def record(path):
    found = read_record([path], TurnMark(), read_prices(None))
    assert found.ending == "completed" and found.final_response == "done", found
def state(path):
    assert read_state([path]).usage.input_tokens == 101
"""


@pytest.mark.parametrize("write", [write_long_lines, write_outputs])
@pytest.mark.parametrize(
    ("action", "ending"), [("record", ""), ("state", ""), ("state", ".zst"), ("record", ".zst")]
)
def test_reading_takes_linear_time_and_bounded_memory(
    tmp_path: Path, write: Callable[[Path, int], None], action: str, ending: str
) -> None:
    path = tmp_path / f"rollout-2026-11-23T03-00-00-{THREAD}.jsonl"
    found: list[tuple[float, float]] = []
    for mb in (1, 80, 160):
        write(path, mb * 1_000_000)
        if ending:
            with path.open("rb") as plain, Path(f"{path}{ending}").open("wb") as packed:
                zstandard.ZstdCompressor(1).copy_stream(plain, packed, path.stat().st_size)
        found.append(spent_on(Path(f"{path}{ending}"), READ, action))
    (_, little), (once, _), (twice, much) = found
    assert twice < 3 * once + 0.5
    assert much < little + 100
