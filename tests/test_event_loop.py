"""Nothing that can wait, and nothing whose time a caller can choose, blocks the event loop.

Each case blocked a server for seconds or for ever. The lab's watchdog fails a test in which the
loop of a server was blocked for more than half a second; here is what makes it so.
"""

from __future__ import annotations

import ast
import fcntl
import json
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from codex_tools.codex.json_object import Json
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.index_checks import Rollout
from support.lab import Lab, call, connect
from support.rollout_lines import context, meta
from support.synthetic_home import make_home

FOREVER: dict[str, tuple[Json, object]] = {
    "pattern": ({"type": "string", "pattern": "^(a+)+$"}, "a" * 5000 + "b"),
    "look-ahead in a long text": (
        {"type": "string", "pattern": "(?=.*b)z"},
        "a" * 1_000_000,
    ),
    "look-ahead in many texts": (
        {"type": "array", "items": {"type": "string", "pattern": "(?=.*b)z"}},
        ["a" * 2_000] * 400,
    ),
    "look-ahead": ({"type": "string", "pattern": "^(?=(a+)+$)b"}, "a" * 5000 + "c"),
    "pattern of keys": (
        {"type": "object", "additionalProperties": False, "patternProperties": {"^(a+)+$": {}}},
        {"a" * 5000 + "b": 1},
    ),
    "unique items": (
        {"type": "array", "uniqueItems": True, "items": {"type": "object"}},
        [{"a": n, "b": [n]} for n in range(4000)] + [{"a": 0, "b": [0]}],
    ),
}


@pytest.mark.parametrize("case", FOREVER)
async def test_an_answer_that_takes_for_ever_to_check_is_a_mismatch(
    mode: str, lab: Lab, fake: FakeCodex, case: str
) -> None:
    schema, answer = FOREVER[case]
    fake.stdout = events(thread_line(), *answer_lines(json.dumps(answer)))
    async with connect(mode, fake.build(), lab) as client:
        result = await call(
            client, "codex_run", prompt="x", output_schema=schema, repair_attempts=0
        )
    assert result["error"]["kind"] == "output_mismatch", result


async def test_a_foreign_lock_on_the_audit_log_delays_no_call(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    lab.state.mkdir()
    path = lab.state / "audit.jsonl"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        async with connect(mode, fake.build(), lab) as client:
            with anyio.fail_after(60):
                result = await call(client, "codex_run", prompt="x")
    assert result["status"] == "completed"
    # What happened is in the log all the same.
    told = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert told[:2] == ["started", "ended"]


async def test_many_readers_of_a_cold_index_leave_room_for_other_calls(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    make_home(lab.home / "made", sessions=300, days=30, seed=5)
    order: list[str] = []
    env = {"CODEX_HOME": str(lab.home / "made")}
    async with connect(mode, fake.build(), lab, env=env) as client:

        async def read(number: int) -> None:
            await client.call_tool("codex_usage", {"timezone": "UTC", "group_by": "model"})
            order.append("usage")

        async with anyio.create_task_group() as tasks:
            for number in range(45):
                tasks.start_soon(read, number)
            await anyio.sleep(0.05)
            await client.list_tools()
            order.append("list")
    # Whether a run ends before the last of them is up to the machine: it needs no thread of theirs.
    assert order.index("list") < 5
    assert order.count("usage") == 45


async def test_the_newest_thread_is_found_among_many(lab: Lab, fake: FakeCodex) -> None:
    fake.stdout = events(thread_line("01a20661-0000-7000-8000-000000000007"), *answer_lines("hi"))
    day = lab.home / "sessions" / "2026" / "11" / "23"
    day.mkdir(parents=True)
    for number in range(3000):
        here = str(lab.project) if number == 7 else "/elsewhere"
        thread_id = f"01a20661-0000-7000-8000-{number:012}"
        lines = (meta(thread_id, cwd=here), context(cwd=here))
        text = "".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines)
        (day / f"rollout-2026-11-23T03-09-56-{thread_id}.jsonl").write_text(text)
    async with connect("auto", fake.build(), lab) as client:
        found = await call(client, "codex_resume", prompt="x", last=True)
    assert found["thread_id"] == "01a20661-0000-7000-8000-000000000007"


async def test_a_huge_rollout_is_read_beside_the_loop(lab: Lab, fake: FakeCodex) -> None:
    thread_id = "01a20661-0000-7000-8000-000000000001"
    fake.stdout = events(thread_line(thread_id), *answer_lines("hi"))
    day = lab.home / "sessions" / "2026" / "11" / "23"
    day.mkdir(parents=True)
    filler = json.dumps({"type": "response_item", "payload": {"text": "x" * 1_000_000}})
    with (day / f"rollout-2026-11-23T03-09-56-{thread_id}.jsonl").open("w") as file:
        for line in (meta(thread_id), context(cwd=str(lab.project))):
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
        for _ in range(150):
            file.write(filler + "\n")
    async with connect("auto", fake.build(), lab) as client:
        result = await call(client, "codex_resume", prompt="x", thread_id=thread_id)
    assert result["status"] == "completed"


async def test_a_line_of_300_mb_is_cut_and_the_run_goes_on(lab: Lab, fake: FakeCodex) -> None:
    fake.body = """
def put(text):
    sys.stdout.write(text)

put('{"type":"thread.started","thread_id":"01a20000-0000-7000-8000-000000000001"}\\n')
put('{"type":"item.completed","item":{"id":"item_0","type":"command_execution","command":"make",')
put('"aggregated_output":"')
for _ in range(300):
    put('x\\\\n\\u00e9"'.replace('"', '\\\\"') * 125_000)
put('","exit_code":3,"status":"failed"}}\\n')
sys.stdout.flush()
"""
    fake.stdout = events(*answer_lines("the end"))
    async with connect("auto", fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt="x")
    assert (result["status"], result["final_response"]) == ("completed", "the end")
    (command,) = result["commands"]
    assert command == {"command": "make", "exit_code": 3, "status": "failed"}
    assert not any("could not be read" in each for each in result["warnings"])


async def test_an_index_that_another_process_locks_delays_no_other_call(
    lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    make_home(lab.home / "made", sessions=5, days=3, seed=5)
    env = {"CODEX_HOME": str(lab.home / "made")}
    async with connect("auto", fake.build(), lab, env=env) as client:
        await client.call_tool("codex_usage", {})
        (lock,) = (lab.state / "history").glob("*.lock")
        Rollout(lab.home / "made").ask("something new").use(10)
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(client.call_tool, "codex_usage", {}))
                done = await call(client, "codex_run", prompt="x")
                assert done["status"] == "completed"
                tasks.cancel_scope.cancel()


def test_no_code_of_the_loop_calls_what_waits() -> None:
    """A rough net for new code: blocking calls by name inside coroutines."""
    waits = {"read_text", "read_bytes", "write_text", "write_bytes", "is_dir", "is_file", "exists"}
    waits |= {
        "stat",
        "mkdir",
        "unlink",
        "resolve",
        "iterdir",
        "glob",
        "flock",
        "realpath",
        "rmtree",
    }
    top = Path(__file__).parent.parent
    found: list[str] = []
    for folder in ("server/mcp_server_codex", "tools/codex_tools"):
        for path in (top / folder).rglob("*.py"):
            if "cli" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.AsyncFunctionDef):
                    found += [f"{path.name}:{name}" for name in _called(node) if name in waits]
    assert found == []


def _called(function: ast.AsyncFunctionDef) -> list[str]:
    names: list[str] = []
    ahead: list[Any] = [*function.body]
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            continue  # Run elsewhere: in a thread, by a callback.
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            names.append(node.func.attr)
        ahead += ast.iter_child_nodes(node)
    return names
