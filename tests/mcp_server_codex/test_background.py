"""Runs in the background, as a client meets them: handed back, waited for, stopped, in line."""

from __future__ import annotations

import json
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import anyio
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CancelledNotification, CancelledNotificationParams, Implementation

from support.fake_codex import FakeCodex
from support.lab import Json, Lab, call, connect, marked, until

GATED = """
import uuid
prompt = seen["stdin"]
resumed = "resume" in sys.argv
thread = sys.argv[sys.argv.index("resume") + 1] if resumed else None
thread = thread or str(uuid.uuid5(uuid.NAMESPACE_OID, prompt))
def tell(type_, **fields):
    print(json.dumps({"type": type_, **fields}), flush=True)
tell("thread.started", thread_id=thread)
tell("turn.started")
open(os.path.join(FOLDER, prompt + ".begun"), "w").close()
while not os.path.exists(os.path.join(FOLDER, prompt)):
    time.sleep(0.02)
item = {"id": "item_0", "type": "agent_message", "text": "answer to " + prompt}
tell("item.completed", item=item)
counts = {"input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 2}
tell("turn.completed", usage=counts)
sys.exit(0)
"""
"""A Codex that opens its thread at once, and answers when the gate of its prompt is open."""

LONG = """
def tell(type_, **fields):
    print(json.dumps({"type": type_, **fields}))
thread = "01a20000-0000-7000-8000-%012d" % int(seen["stdin"])
day = os.path.join(os.environ["CODEX_HOME"], "sessions", "2026", "11", "22")
os.makedirs(day, exist_ok=True)
with open(os.path.join(day, f"rollout-2026-11-22T15-21-59-{thread}.jsonl"), "w") as file:
    print(json.dumps({"type": "session_meta", "payload": {"id": thread}}), file=file)
tell("thread.started", thread_id=thread)
tell("turn.started")
for n in range(60):
    tell("item.completed", item={
        "id": f"item_{n}", "type": "command_execution", "command": "make " + "x" * 280,
        "aggregated_output": "", "exit_code": 0, "status": "completed"})
    tell("item.completed", item={
        "id": f"error_{n}", "type": "error", "message": f"warning {n} " + "y" * 480})
changes = [{"path": f"/folder/file number {n}", "kind": "add"} for n in range(250)]
tell("item.completed", item={
    "id": "files", "type": "file_change", "changes": changes, "status": "completed"})
text = "one \\"line\\" with a \\\\ and \\N{ROCKET}\\n" * 2000
tell("item.completed", item={"id": "last", "type": "agent_message", "text": text})
if FAILS:
    tell("turn.failed", error={"message": "no such thing: " + "z" * 5000})
    sys.exit(1)
counts = {"input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 2}
tell("turn.completed", usage=counts)
sys.exit(0)
"""

UNKNOWN = "run_0123456789abcdef"


@dataclass(frozen=True)
class Gates:
    """One gate a prompt: until it is opened, Codex is at work on that prompt."""

    folder: Path
    codex: Path

    def open(self, *prompts: str) -> None:
        for prompt in prompts:
            (self.folder / prompt).touch()

    def has_begun(self, prompt: str) -> bool:
        return (self.folder / f"{prompt}.begun").exists()


@pytest.fixture
def gates(lab: Lab, fake: FakeCodex) -> Gates:
    folder = lab.root / "gates"
    folder.mkdir()
    fake.body = GATED.replace("FOLDER", repr(str(folder)))
    return Gates(folder, fake.build())


async def start(client: Client, prompt: str, **options: Any) -> Json:
    return await call(client, "codex_run", prompt=prompt, wait_s=0, **options)


async def wait(
    client: Client, *runs: Json, wait_s: float = 60, until: Literal["all", "any"] = "all"
) -> list[Json]:
    """Wait for *runs*; return how they stand."""
    arguments = {"run_ids": [run["run_id"] for run in runs], "wait_s": wait_s, "until": until}
    result = await client.call_tool("codex_wait", arguments)
    data = cast("Json", result.structured_content)
    assert data["error"] is None
    assert result.is_error is False
    return data["runs"]


async def stop(client: Client, run: Json) -> Json:
    result = await client.call_tool("codex_stop", {"run_id": run["run_id"]})
    assert result.is_error is False
    return cast("Json", result.structured_content)["run"]


def statuses(runs: list[Json]) -> list[str]:
    return [run["status"] for run in runs]


def check_handed_back(run: Json) -> None:
    assert run["status"] in ("running", "queued")
    assert re.fullmatch(r"run_[0-9a-f]{16}", run["run_id"])
    assert "codex_wait" in run["next"]
    assert run["run_id"] in run["next"]
    assert run["run_id"] in run["text"]
    assert run["error"] is None
    assert run["final_response"] is None


async def test_wait_s_0_hands_back_at_once_and_the_run_goes_on(
    mode: str, lab: Lab, gates: Gates
) -> None:
    async with connect(mode, gates.codex, lab) as client:
        run = await start(client, "a")
        check_handed_back(run)
        await until(lambda: gates.has_begun("a"))
        gates.open("a")
        (ended,) = await wait(client, run)
    assert ended["status"] == "completed"
    assert ended["run_id"] == run["run_id"]
    assert ended["final_response"] == "answer to a"
    assert ended["usage"]["input_tokens"] == 10


async def test_a_call_that_has_waited_long_enough_hands_back_too(
    mode: str, lab: Lab, gates: Gates
) -> None:
    async with connect(mode, gates.codex, lab) as client:
        run = await call(client, "codex_run", prompt="a", wait_s=0.5)
        check_handed_back(run)
        await until(lambda: gates.has_begun("a"))
        gates.open("a")
        (ended,) = await wait(client, run)
    assert ended["final_response"] == "answer to a"


@pytest.mark.parametrize("name", ["claude-code", "some-client"])
async def test_the_operator_can_say_how_long_calls_wait(
    mode: str, lab: Lab, gates: Gates, name: str
) -> None:
    info = Implementation(name=name, version="2")
    async with connect(mode, gates.codex, lab, "--wait-s", "1", client_info=info) as client:
        run = await call(client, "codex_run", prompt="a")
        check_handed_back(run)
        gates.open("a", "b")
        (ended,) = await wait(client, run)
        own = await call(client, "codex_run", prompt="b", wait_s=60)
    assert ended["status"] == own["status"] == "completed"


async def test_claude_code_waits_until_the_end(mode: str, lab: Lab, gates: Gates) -> None:
    info = Implementation(name="claude-code", version="2")
    results: list[Json] = []
    before: list[Json] = []

    async def ask(client: Client) -> None:
        results.append(await call(client, "codex_run", prompt="a"))

    async with (
        connect(mode, gates.codex, lab, client_info=info) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(ask, client)
        await until(lambda: gates.has_begun("a"))
        await anyio.sleep(2)
        before.extend(results)
        gates.open("a")
    assert before == []
    assert statuses(results) == ["completed"]


async def test_waiting_for_all_ends_with_the_last_and_keeps_the_order(
    mode: str, lab: Lab, gates: Gates
) -> None:
    results: list[list[Json]] = []
    before: list[list[Json]] = []
    async with connect(mode, gates.codex, lab) as client:
        runs = [await start(client, prompt) for prompt in "abc"]
        gates.open("c")
        (first,) = await wait(client, runs[2])

        async def ask() -> None:
            results.append(await wait(client, runs[2], runs[0], runs[1]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            gates.open("b")
            await wait(client, runs[1])
            await anyio.sleep(0.3)
            before.extend(results)
            gates.open("a")
        (second,) = await wait(client, runs[1])
    assert before == []
    (together,) = results
    assert [run["final_response"] for run in together] == [f"answer to {p}" for p in "cab"]
    assert together[0] == first
    assert together[2] == second


async def test_waiting_for_any_ends_with_the_first(mode: str, lab: Lab, gates: Gates) -> None:
    async with connect(mode, gates.codex, lab) as client:
        runs = [await start(client, prompt) for prompt in "abc"]
        gates.open("b")
        some = await wait(client, *runs, until="any")
        again = await wait(client, *runs, until="any")
    assert statuses(some) == statuses(again) == ["running", "completed", "running"]
    assert [run["run_id"] for run in some] == [run["run_id"] for run in runs]


async def test_waiting_ends_in_time_and_tells_how_the_runs_stand(
    mode: str, lab: Lab, gates: Gates
) -> None:
    gates.open("b")
    async with connect(mode, gates.codex, lab) as client:
        at_work, ended = await start(client, "a"), await start(client, "b")
        await wait(client, ended)
        await until(lambda: gates.has_begun("a"))
        stand = await wait(client, at_work, ended, wait_s=0)
        again = await wait(client, at_work, wait_s=0.5)
        gates.open("a")
        (after,) = await wait(client, at_work)
    assert statuses(stand) == ["running", "completed"]
    assert statuses(again) == ["running"]
    assert "codex_wait" in stand[0]["next"]
    assert after["status"] == "completed"


async def test_a_result_can_be_had_again_unchanged(mode: str, lab: Lab, gates: Gates) -> None:
    gates.open("a")
    async with connect(mode, gates.codex, lab) as client:
        result = await call(client, "codex_run", prompt="a")
        once = await wait(client, result)
        twice = await wait(client, result, wait_s=0)
    del result["text"]
    assert once == twice == [result]


async def test_runs_that_cannot_be_waited_for_are_refused(
    mode: str, lab: Lab, gates: Gates
) -> None:
    gates.open("a")
    async with connect(mode, gates.codex, lab) as client:
        run_id = (await call(client, "codex_run", prompt="a"))["run_id"]
        many = [f"run_{n:016x}" for n in range(33)]
        cases: list[tuple[Json, str, str]] = [
            ({"run_ids": [run_id, run_id]}, "invalid_arguments", "once"),
            ({"run_ids": []}, "invalid_arguments", "run_ids"),
            ({"run_ids": many}, "invalid_arguments", "32"),
            ({"run_ids": {"id": run_id}}, "invalid_arguments", "run_ids"),
            ({"run_id": run_id}, "invalid_arguments", "'run_ids'"),
            ({"run_ids": [run_id], "until": "some"}, "invalid_arguments", "until"),
            ({"run_ids": [run_id], "wait_s": -1}, "invalid_arguments", "wait_s"),
            ({"run_ids": [UNKNOWN]}, "unknown_run", UNKNOWN),
            ({"run_ids": [run_id, UNKNOWN]}, "unknown_run", UNKNOWN),
            ({"run_ids": ["../runs/" + run_id]}, "unknown_run", "run_"),
            ({"run_ids": [""]}, "unknown_run", "unknown_run"),
        ]
        for arguments, kind, word in cases:
            result = await client.call_tool("codex_wait", {"wait_s": 60, **arguments})
            data = cast("Json", result.structured_content)
            assert result.is_error is True, arguments
            assert data["error"]["kind"] == kind, arguments
            assert data["runs"] == []
            assert word in cast("Any", result.content[0]).text, arguments


@pytest.mark.parametrize("fails", [False, True])
async def test_thirty_two_long_results_fit_together(
    mode: str, lab: Lab, fake: FakeCodex, fails: bool
) -> None:
    fake.body = LONG.replace("FAILS", str(fails))
    async with connect(mode, fake.build(), lab) as client:
        runs = [await start(client, str(n)) for n in range(32)]
        await wait(client, *runs, wait_s=300)
        result = await client.call_tool("codex_wait", {"run_ids": [r["run_id"] for r in runs]})
        (alone,) = await wait(client, runs[0])
    data = cast("Json", result.structured_content)
    for number, run in enumerate(data["runs"]):
        assert run["run_id"] == runs[number]["run_id"]
        assert run["status"] == ("failed" if fails else "completed")
        assert run["thread_id"] == f"01a20000-0000-7000-8000-{number:012}"
        assert run["thread_id"] in run["next"]
        assert run["final_response"].startswith("one")
        assert (run["error"] is not None) is fails
    assert len(alone["final_response"]) > 10_000
    assert len(json.dumps(data, ensure_ascii=False, separators=(",", ":"))) < 50_000
    (text,) = (cast("Any", block).text for block in result.content)
    assert len(text) < 50_000
    for run in data["runs"]:
        assert text.count(f"=== {run['run_id']}: {run['status']} ===") == 1
        assert text.count(f"thread_id: {run['thread_id']}\n") == 1
        assert text.count(f"Next: {run['next']}") == 1


async def test_waiting_sends_progress(mode: str, lab: Lab, gates: Gates) -> None:
    heard: list[tuple[float, str]] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message or ""))

    async with connect(mode, gates.codex, lab) as client:
        runs = [await start(client, "a"), await start(client, "b")]
        ids = [run["run_id"] for run in runs]

        async def ask() -> None:
            arguments = {"run_ids": ids, "wait_s": 60}
            await client.call_tool("codex_wait", arguments, progress_callback=tell)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: any(ids[0] in message for _, message in heard))
            gates.open("a")
            await until(lambda: any("completed" in message for _, message in heard))
            gates.open("b")
    numbers = [number for number, _ in heard]
    assert numbers == sorted(set(numbers))
    assert any(ids[1] in message for _, message in heard)
    assert all(0 < len(message) <= 200 for _, message in heard)


async def test_cancelling_a_wait_ends_no_run(mode: str, lab: Lab, gates: Gates) -> None:
    asking = anyio.CancelScope()
    heard: list[str] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    async with connect(mode, gates.codex, lab) as client:
        run = await start(client, "a")

        async def ask() -> None:
            arguments = {"run_ids": [run["run_id"]], "wait_s": 600}
            with asking, suppress(MCPError):
                await client.call_tool("codex_wait", arguments, progress_callback=tell)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: heard and gates.has_begun("a"))
            asking.cancel()
        (stands,) = await wait(client, run, wait_s=0.5)
        gates.open("a")
        (ended,) = await wait(client, run)
    assert stands["status"] == "running"
    assert ended["final_response"] == "answer to a"


async def test_cancelling_a_run_that_is_waited_for_ends_it(
    mode: str, lab: Lab, gates: Gates
) -> None:
    asking = anyio.CancelScope()
    found: list[str] = []
    tag = str(uuid.uuid4())

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        found.extend(re.findall("run_[0-9a-f]{16}", message or ""))

    async with connect(mode, gates.codex, lab, env={"FAR_END": tag}) as client:

        async def ask() -> None:
            with asking, suppress(MCPError):
                arguments = {"prompt": "a", "wait_s": 600}
                await client.call_tool("codex_run", arguments, progress_callback=tell)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: found and gates.has_begun("a"))
            asking.cancel()
        (ended,) = await wait(client, {"run_id": found[0]})
        await until(lambda: len(marked(tag)) == 1)
    assert ended["status"] == "cancelled"
    assert ended["error"]["kind"] == "cancelled"
    assert ended["thread_id"] in ended["next"]


async def test_cancelling_a_call_that_has_handed_its_run_back_ends_nothing(
    mode: str, lab: Lab, gates: Gates
) -> None:
    async with connect(mode, gates.codex, lab) as client:
        runs = [await start(client, "a"), await call(client, "codex_run", prompt="b", wait_s=0.3)]
        await until(lambda: gates.has_begun("a") and gates.has_begun("b"))
        for number in range(20):
            params = CancelledNotificationParams(request_id=number, reason="too late")
            await client.session.send_notification(CancelledNotification(params=params))
        stand = await wait(client, *runs, wait_s=0.5)
        gates.open("a", "b")
        ended = await wait(client, *runs)
    assert statuses(stand) == ["running", "running"]
    assert statuses(ended) == ["completed", "completed"]


async def test_a_running_run_is_stopped_with_all_its_processes(
    mode: str, lab: Lab, gates: Gates
) -> None:
    tag = str(uuid.uuid4())
    async with connect(mode, gates.codex, lab, env={"FAR_END": tag}) as client:
        run = await start(client, "a")
        await until(lambda: gates.has_begun("a"))
        (stands,) = await wait(client, run, wait_s=0)
        assert len(marked(tag)) > 1
        stopped = await stop(client, run)
        assert len(marked(tag)) == 1
        (after,) = await wait(client, run)
        again = await stop(client, run)
    assert stands["status"] == "running"
    assert stopped["status"] == "cancelled"
    assert stopped["error"]["kind"] == "cancelled"
    assert stopped["thread_id"] == str(uuid.uuid5(uuid.NAMESPACE_OID, "a"))
    assert stopped["thread_id"] in stopped["next"]
    assert stopped == after == again


async def test_a_run_in_line_is_stopped_without_having_begun(
    mode: str, lab: Lab, gates: Gates
) -> None:
    async with connect(mode, gates.codex, lab, "--max-runs", "1") as client:
        first = await start(client, "a")
        await until(lambda: gates.has_begun("a"))
        second, third = await start(client, "b"), await start(client, "c")
        stopped = await stop(client, second)
        gates.open("a", "b", "c")
        ended = await wait(client, first, second, third)
    assert second["status"] == "queued"
    assert stopped["status"] == "cancelled"
    assert stopped["thread_id"] is None
    assert stopped["attempts"] == 0
    assert statuses(ended) == ["completed", "cancelled", "completed"]
    assert not gates.has_begun("b")


async def test_stopping_what_has_ended_changes_nothing(mode: str, lab: Lab, gates: Gates) -> None:
    gates.open("a")
    async with connect(mode, gates.codex, lab) as client:
        run = await call(client, "codex_run", prompt="a")
        stopped = [await stop(client, run) for _ in range(2)]
    async with connect(mode, gates.codex, lab) as client:
        stopped.append(await stop(client, run))
    del run["text"]
    assert stopped == [run, run, run]
    assert run["status"] == "completed"


async def test_stopping_an_unknown_run_is_refused(mode: str, lab: Lab, gates: Gates) -> None:
    async with connect(mode, gates.codex, lab) as client:
        for run_id in (UNKNOWN, "", "run_", "../" + UNKNOWN):
            result = await client.call_tool("codex_stop", {"run_id": run_id})
            error = cast("Json", result.structured_content)["run"]["error"]
            assert result.is_error is True
            assert error["kind"] == "unknown_run"
            assert "unknown_run" in cast("Any", result.content[0]).text


async def test_runs_beyond_the_limit_wait_in_line_for_all_to_see(
    mode: str, lab: Lab, gates: Gates
) -> None:
    heard: list[str] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    async with connect(mode, gates.codex, lab, "--max-runs", "2") as client:
        runs = [await start(client, prompt) for prompt in "abcd"]
        await until(lambda: gates.has_begun("a") and gates.has_begun("b"))
        arguments = {"run_ids": [runs[2]["run_id"]], "wait_s": 1}
        await client.call_tool("codex_wait", arguments, progress_callback=tell)
        stand = await wait(client, *runs, wait_s=0)
        assert not gates.has_begun("c")
        gates.open("a")
        await until(lambda: gates.has_begun("c"))
        later = await wait(client, *runs, wait_s=0)
        gates.open("b", "c", "d")
        ended = await wait(client, *runs)
    assert statuses(runs) == statuses(stand) == ["running", "running", "queued", "queued"]
    assert all("codex_wait" in run["next"] for run in runs)
    assert stand[2]["attempts"] == 0
    assert any("waiting in the queue" in message for message in heard)
    assert statuses(later)[1:] == ["running", "running", "queued"]
    assert statuses(ended) == ["completed"] * 4


async def test_runs_that_come_together_do_not_all_say_that_they_run(
    mode: str, lab: Lab, gates: Gates
) -> None:
    prompts = [str(n) for n in range(8)]
    runs: list[Json] = []

    async def begin(client: Client, prompt: str) -> None:
        runs.append(await start(client, prompt))

    async with connect(mode, gates.codex, lab, "--max-runs", "1") as client:
        async with anyio.create_task_group() as tasks:
            for prompt in prompts:
                tasks.start_soon(begin, client, prompt)
        await until(lambda: any(map(gates.has_begun, prompts)))
        stand = await wait(client, *runs, wait_s=0)
        gates.open(*prompts)
        ended = await wait(client, *runs)
    assert sorted(statuses(stand)) == ["queued"] * 7 + ["running"]
    assert statuses(ended) == ["completed"] * 8


async def test_no_two_runs_share_a_thread_in_the_background_either(
    mode: str, lab: Lab, gates: Gates
) -> None:
    thread = str(uuid.uuid5(uuid.NAMESPACE_OID, "a"))
    folder = lab.home / "sessions" / "2026" / "11" / "23"
    folder.mkdir(parents=True)
    lines = [
        {"type": "session_meta", "payload": {"id": thread, "cwd": str(lab.project)}},
        {
            "type": "turn_context",
            "payload": {"cwd": str(lab.project), "sandbox_policy": {"type": "read-only"}},
        },
    ]
    rollout = folder / f"rollout-2026-11-23T03-09-56-{thread}.jsonl"
    rollout.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    async with (
        connect(mode, gates.codex, lab, "--max-runs", "2") as client,
        connect(mode, gates.codex, lab, "--state-dir", str(lab.root / "another")) as other,
    ):

        async def resume(prompt: str, by: Client = client) -> Json:
            return await call(by, "codex_resume", thread_id=thread, prompt=prompt, wait_s=0)

        new = await start(client, "a")
        await until(lambda: gates.has_begun("a"))
        await until(lambda: (lab.home / "mcp-server-codex" / f"{thread}.lock").exists())
        busy = [await resume("never"), await resume("never", by=other)]
        gates.open("a")
        await wait(client, new)
        resumed = await resume("b")
        await until(lambda: gates.has_begun("b"))
        busy += [await resume("never"), await resume("never", by=other)]
        await stop(client, resumed)
        filler = [await start(client, "x"), await start(client, "y")]
        in_line = await resume("c")
        busy += [await resume("never"), await resume("never", by=other)]
        await stop(client, in_line)
        last = await resume("d", by=other)
        gates.open("d", "x", "y")
        (ended,) = await wait(other, last)
        await wait(client, *filler)
    assert [run["error"]["kind"] for run in busy] == ["thread_busy"] * 6
    assert all(run["error"]["retryable"] for run in busy)
    assert resumed["thread_id"] == in_line["thread_id"] == thread
    assert in_line["status"] == "queued"
    assert ended["status"] == "completed"
    assert ended["thread_id"] == thread
    assert not gates.has_begun("never")
    assert list((lab.home / "mcp-server-codex").iterdir()) == []
