"""Rollouts as files on disk: found, read, and the newest of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import zstandard

from codex_tools.codex.json_object import Json
from codex_tools.codex.paths import codex_home
from codex_tools.codex.record import Usage
from codex_tools.rollouts.files import find_archived, find_rollouts
from codex_tools.rollouts.threads import read_state

THREAD = "01a20661-b445-73e1-b566-c552cde98ccd"  # Made on 2026-11-23, UTC.
OTHER = "01a203da-44d3-7691-b0ab-2028070f8cec"
DAY = "2026/11/23"


def line(type_: str, payload: Json) -> Json:
    return {"timestamp": "2026-11-23T03:09:56.214Z", "type": type_, "payload": payload}


def meta(thread_id: str = THREAD, **more: object) -> Json:
    payload: Json = {"id": thread_id, "cwd": "/made/in", "source": "exec", "git": {}}
    return line("session_meta", payload | more)


def context(**more: object) -> Json:
    payload: Json = {"cwd": "/project", "sandbox_policy": {"type": "read-only"}, "model": "gpt-5.5"}
    return line("turn_context", payload | more)


def tokens(total: object) -> Json:
    info = {"total_token_usage": total, "last_token_usage": total} if total else None
    return line("event_msg", {"type": "token_count", "info": info, "rate_limits": None})


def counts(input_tokens: int) -> Json:
    return {
        "input_tokens": input_tokens,
        "cached_input_tokens": 5,
        "output_tokens": 7,
        "reasoning_output_tokens": 3,
        "total_tokens": input_tokens + 7,
    }


def usage(input_tokens: int) -> Usage:
    return Usage(
        input_tokens=input_tokens,
        cached_input_tokens=5,
        output_tokens=7,
        reasoning_output_tokens=3,
        total_tokens=input_tokens + 7,
    )


def written(*lines: Json) -> bytes:
    return b"".join(
        json.dumps(each, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        for each in lines
    )


def place(folder: Path, thread_id: str = THREAD, data: bytes = b"", ending: str = ".jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rollout-2026-11-23T03-09-56-{thread_id}{ending}"
    path.write_bytes(zstandard.compress(data) if ending.endswith(".zst") else data)
    return path


def change_at(path: Path, time: float) -> None:
    os.utime(path, (time, time))


@pytest.mark.parametrize("day", [DAY, "2026/11/22", "2026/11/24", "2031/01/01", "."])
def test_a_rollout_is_found_whatever_its_day(tmp_path: Path, day: str) -> None:
    place(tmp_path / "sessions" / DAY, OTHER)
    path = place(tmp_path / "sessions" / day)
    assert find_rollouts(tmp_path, THREAD) == [path]


def test_an_id_that_tells_no_day_is_looked_for_everywhere(tmp_path: Path) -> None:
    for thread_id in (
        "ffffffff-ffff-4fff-8fff-ffffffffffff",
        "00000000-0000-4000-8000-000000000000",
    ):
        path = place(tmp_path / "sessions" / "2020/01/01", thread_id)
        assert find_rollouts(tmp_path, thread_id) == [path]


def test_an_unknown_thread_has_no_rollout(tmp_path: Path) -> None:
    assert find_rollouts(tmp_path / "nowhere", THREAD) == []
    folder = tmp_path / "sessions" / DAY
    place(folder, OTHER)
    place(folder, f"{THREAD}-2")
    place(folder, f"0{THREAD}")
    place(folder, THREAD, ending=".jsonl.tmp")
    (folder / f"notes-{THREAD}.jsonl").touch()
    (folder / f"rollout-{THREAD}.jsonl").mkdir()
    assert find_rollouts(tmp_path, THREAD) == []


def test_a_plain_rollout_is_preferred_to_its_compressed_copy(tmp_path: Path) -> None:
    packed = place(tmp_path / "sessions" / DAY, ending=".jsonl.zst")
    assert find_rollouts(tmp_path, THREAD) == [packed]
    plain = place(tmp_path / "sessions" / DAY)
    assert find_rollouts(tmp_path, THREAD) == [plain]


def test_an_archived_thread_is_not_among_those_to_resume(tmp_path: Path) -> None:
    path = place(tmp_path / "archived_sessions")
    assert find_rollouts(tmp_path, THREAD) == []
    assert find_archived(tmp_path, THREAD) == [path]
    assert find_archived(tmp_path, OTHER) == []


def test_the_state_of_an_old_rollout_is_that_of_its_last_turn(tmp_path: Path) -> None:
    lines = (
        meta(),
        context(model="gpt-5", effort="low", cwd="/first"),
        tokens(counts(100)),
        context(
            sandbox_policy={"type": "workspace-write", "network_access": False},
            model="gpt-5.1-codex-max",
            effort="high",
            summary="auto",
        ),
        tokens(counts(200)),
        line("event_msg", {"type": "agent_message", "message": "done"}),
    )
    path = place(tmp_path, data=written(*lines))
    state = read_state([path])
    assert state is not None
    assert (state.thread_id, state.path) == (THREAD, path)
    assert (state.cwd, state.sandbox) == ("/project", "workspace-write")
    assert (state.model, state.reasoning_effort) == ("gpt-5.1-codex-max", "high")
    assert state.usage == usage(200)
    assert not state.is_subagent
    assert not state.is_paginated


def test_the_state_of_a_new_rollout_is_read_as_well(tmp_path: Path) -> None:
    lines = (
        {"ordinal": 0}
        | meta(
            session_id="01a20661-root",
            thread_source="user",
            base_instructions={"text": "x" * 20_000},
            history_mode="paginated",
        ),
        line("turn_context", {
            "turn_id": "01a20661-b464-7331-a5c0-132af57480e6",
            "root_turn_id": "01a20661-b464-7331-a5c0-132af57480e6",
            "disabled_plugin_ids": [],
            "cwd": "/project",
            "permission_profile": {"type": "managed", "network": "restricted"},
            "model": "gpt-5.5",
            "sandbox_policy": {"type": "danger-full-access"},
        }),
        tokens(counts(1200) | {"cache_write_input_tokens": 0}),
        line("token_usage_record", {"thread_id": THREAD, "usage": counts(9)}),
    )  # fmt: skip
    state = read_state([place(tmp_path, data=written(*lines), ending=".jsonl.zst")])
    assert state is not None
    assert state.is_paginated
    assert (state.cwd, state.sandbox, state.model) == ("/project", "danger-full-access", "gpt-5.5")
    assert state.reasoning_effort is None
    assert state.usage == usage(1200)


def test_counts_without_info_are_passed_over(tmp_path: Path) -> None:
    lines = (meta(), context(), tokens(counts(100)), tokens(None), tokens({"input_tokens": "1"}))
    state = read_state([place(tmp_path, data=written(*lines))])
    assert state is not None
    assert state.usage == usage(100)


@pytest.mark.parametrize("key", ["cached_input_tokens", "reasoning_output_tokens", "input_tokens"])
@pytest.mark.parametrize("value", ["many", [1], True, 1.5, None])
def test_ill_typed_counts_do_no_harm(tmp_path: Path, key: str, value: object) -> None:
    path = place(tmp_path, data=written(meta(), context(), tokens(counts(100) | {key: value})))
    state = read_state([path])
    assert state is not None
    assert state.model == "gpt-5.5"


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.zst"])
@pytest.mark.parametrize(
    "end",
    [
        b'{"timestamp":"2026","type":"turn_context","payload":{"cwd":"/torn","mod',
        b'{"timestamp":"2026","type":"turn_context","payload":{"cwd":"/torn","mod\n',
        b"\xff\x00 garbage\n[]\n42\n\n\n",
        b'{"type":"turn_context","payload":null}\n',
        b'{"type":"event_msg","payload":{"type":"token_count","info":[]}}\n',
        written(line("response_item", {"output": 'x "type":"turn_context" {"cwd":"/decoy"}'})),
        written(line("response_item", {"output": json.dumps(context(cwd="/decoy"))})),
        written(line("response_item", {"output": " " * 400, "item": context(cwd="/decoy")})),
    ],
)
def test_what_is_no_whole_turn_context_is_passed_over(
    tmp_path: Path, end: bytes, ending: str
) -> None:
    data = written(meta(), context(), tokens(counts(100))) + end
    state = read_state([place(tmp_path, data=data, ending=ending)])
    assert state is not None
    assert state.cwd == "/project"
    assert state.usage == usage(100)


def test_a_last_line_without_a_line_feed_counts_when_it_is_whole(tmp_path: Path) -> None:
    data = written(meta(), context(), context(cwd="/last")).rstrip(b"\n")
    state = read_state([place(tmp_path, data=data)])
    assert state is not None
    assert state.cwd == "/last"


@pytest.mark.parametrize("filler", [0, 1, 100, 262_000, 262_143, 262_144, 262_145, 900_000])
def test_lines_may_cross_the_blocks_in_which_a_file_is_read(tmp_path: Path, filler: int) -> None:
    noise = [line("response_item", {"output": "\N{EURO SIGN}" * (filler // 3)})] * 3
    last = context(cwd="/last", instructions="i" * filler)
    lines = (meta(), context(), tokens(counts(100)), *noise, last, *noise)
    path = place(tmp_path, data=written(*lines))
    state = read_state([path])
    assert state is not None
    assert state.cwd == "/last"
    assert state.usage == usage(100)


def test_any_size_of_the_end_gives_the_same_state(tmp_path: Path) -> None:
    head = written(meta(), context(), tokens(counts(100)))
    for size in range(262_144 - len(head) - 3, 262_144 + 3, 11):
        state = read_state([place(tmp_path, data=head + b"x" * size + b"\n")])
        assert state is not None
        assert (state.cwd, state.usage) == ("/project", usage(100))


def test_a_thread_without_a_turn_knows_only_where_it_was_made(tmp_path: Path) -> None:
    state = read_state([place(tmp_path, data=written(meta()))])
    assert state is not None
    assert state.cwd == "/made/in"
    assert (state.sandbox, state.model, state.usage) == (None, None, None)


def test_a_sandbox_of_another_kind_is_not_guessed(tmp_path: Path) -> None:
    for policy in ({"type": "external-sandbox"}, {"type": 1}, "read-only", None):
        state = read_state([place(tmp_path, data=written(meta(), context(sandbox_policy=policy)))])
        assert state is not None
        assert state.sandbox is None


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"\xff\n", b"{}\n", b"[]\n", b'{"payload":{"id":1}}\n']
)
def test_a_file_that_is_no_rollout_has_no_state(tmp_path: Path, data: bytes) -> None:
    assert read_state([place(tmp_path, data=data)]) is None


def test_a_rollout_that_cannot_be_read_has_no_state(tmp_path: Path) -> None:
    assert read_state([tmp_path / "rollout-gone.jsonl"]) is None
    damaged = tmp_path / "rollout-damaged.jsonl.zst"
    damaged.write_bytes(b"\x28\xb5\x2f\xfd" + b"garbage" * 10)
    assert read_state([damaged]) is None


def test_codex_home_is_the_environment_s_or_the_user_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert codex_home() == tmp_path / ".codex"
    monkeypatch.setenv("CODEX_HOME", "")
    assert codex_home() == tmp_path / ".codex"
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "home"))
    assert codex_home() == tmp_path / "home"
