"""Idempotency keys, from tools/call and between servers that share a state folder."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import anyio

from codex_tools.runs.keys import KEPT_S, Keys, Taken
from codex_tools.runs.store import RunStore
from codex_tools.runs.writer import StateWriter
from support.fake_codex import FakeCodex
from support.lab import Json, Lab, call, connect, until

_EVENTS = [
    {"type": "thread.started", "thread_id": "01a20635-0000-7000-8000-000000000001"},
    {"type": "turn.started"},
    {"type": "item.completed", "item": {"id": "i", "type": "agent_message", "text": "hello"}},
    {"type": "turn.completed", "usage": {"input_tokens": 1, "output_tokens": 1}},
]
HELLO = b"".join(json.dumps(event).encode() + b"\n" for event in _EVENTS)


def runs_of(lab: Lab) -> int:
    return len([*(lab.state / "runs").glob("run_*")])


async def test_the_same_key_returns_the_same_run_also_after_a_restart(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    codex = fake.build()
    ask: Json = {"prompt": "x", "idempotency_key": "k 1"}
    async with connect(mode, codex, lab) as client:
        first = await call(client, "codex_run", **ask)
        again = await call(client, "codex_run", **ask, wait_s=5)
        other = await call(client, "codex_run", prompt="y", idempotency_key="k 1")
        moved = await call(client, "codex_run", **ask, cwd=str(lab.root))
    async with connect(mode, codex, lab) as client:
        restarted = await call(client, "codex_run", **ask)
        fresh = await call(client, "codex_run", prompt="x", idempotency_key="k 2")
    assert first["status"] == "completed", first
    assert first["run_id"] == again["run_id"] == restarted["run_id"] != fresh["run_id"]
    assert again["final_response"] == restarted["final_response"] == "hello"
    assert any(first["run_id"] in each for each in again["warnings"])
    for refused in (other, moved):
        assert refused["error"]["kind"] == "invalid_arguments", refused
        assert "idempotency_key" in refused["text"]
        assert first["run_id"] in refused["text"]
    assert runs_of(lab) == 2


async def test_calls_at_once_on_two_servers_start_one_run(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    codex = fake.build()
    found: list[Json] = []
    async with connect(mode, codex, lab) as one, connect(mode, codex, lab) as two:

        async def ask(client: object) -> None:
            found.append(await call(client, "codex_run", prompt="x", idempotency_key="k"))  # type: ignore[arg-type]

        async with anyio.create_task_group() as tasks:
            for client in (one, two, one, two):
                tasks.start_soon(ask, client)
    assert len({each["run_id"] for each in found}) == 1, found
    assert {each["status"] for each in found} == {"completed"}
    assert runs_of(lab) == 1


async def test_a_refused_call_leaves_its_key_free(mode: str, lab: Lab, fake: FakeCodex) -> None:
    fake.stdout = HELLO
    async with connect(mode, fake.build(), lab) as client:
        refused = await call(
            client, "codex_run", prompt="x", idempotency_key="k", add_dirs=["gone"]
        )
        run = await call(client, "codex_run", prompt="x", idempotency_key="k")
    assert refused["error"]["kind"] == "invalid_arguments"
    assert run["status"] == "completed", run


def keys_in(folder: Path) -> Keys:
    store = RunStore(folder)
    return Keys(folder, store, StateWriter())


def taken(run: str, at_s: float, *, is_starting: bool = False) -> Taken:
    return Taken(run, "digest", "0" * 16, at_s, is_starting)


def test_a_key_is_free_again_after_a_day_and_its_file_is_removed(tmp_path: Path) -> None:
    now = time.time()
    keys, first = keys_in(tmp_path), taken("run_1", now - KEPT_S - 1)
    assert keys.take("k", first, lambda _: True) == first
    later = taken("run_2", now)
    assert keys.take("k", later, lambda _: True) == later
    assert keys.take("k", taken("run_3", now), lambda _: True) == later
    (file,) = (tmp_path / "keys").glob("*.json")
    keys.prune()
    assert file.exists()
    os.utime(file, (now - KEPT_S - 1, now - KEPT_S - 1))
    keys.prune()
    assert not file.exists()


def test_the_key_of_a_server_that_died_before_the_start_is_free(tmp_path: Path) -> None:
    now = time.time()
    keys, dead, next_ = (
        keys_in(tmp_path),
        taken("run_1", now, is_starting=True),
        taken("run_2", now),
    )
    keys.take("k", dead, lambda _: True)
    assert keys.take("k", next_, lambda _: False) == next_


def test_a_record_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    now = time.time()
    keys, first = keys_in(tmp_path), taken("run_1", now)
    keys.take("k", first, lambda _: True)
    (file,) = (tmp_path / "keys").glob("*.json")
    for text in ("", "[]", json.dumps({"version": 2}), json.dumps({"version": 1, "run_id": 5})):
        file.write_text(text)
        assert keys.take("k", first, lambda _: True) == first


async def test_a_key_of_a_run_at_work_waits_for_that_run(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout, fake.body = HELLO, "time.sleep(600)"
    async with connect(mode, fake.build(), lab) as client:
        first = await call(client, "codex_run", prompt="x", idempotency_key="k", wait_s=0)
        await until(lambda: runs_of(lab) == 1)
        again = await call(client, "codex_run", prompt="x", idempotency_key="k", wait_s=0)
        await client.call_tool("codex_stop", {"run_id": first["run_id"]})
    assert again["run_id"] == first["run_id"]
    assert again["status"] in ("running", "queued")
    assert runs_of(lab) == 1
