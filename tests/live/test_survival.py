"""The end of a server, in the middle of its runs, over the real Codex: no result is lost."""

from __future__ import annotations

import json
import os
import signal
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

import anyio
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.lab import Json, Lab, call, commands, connect, environment, marked, until
from support.stored_state import json_of

FINISHED = ("f0", "f1", "f2", "f3")
SILENT = ("s0", "s1", "s2")
IN_A_COMMAND = ("c0", "c1", "c2")
AT_WORK = (*SILENT, *IN_A_COMMAND)


def write_scripts(lab: Lab) -> None:
    for prompt in FINISHED:
        lab.script(prompt, say(f"answer to {prompt}"))
    for prompt in SILENT:
        lab.script(prompt, say("never said", delay_s=600))
    for prompt in IN_A_COMMAND:
        lab.script(prompt, do(Shell("echo begun; sleep 600")), say("never said"))
    lab.script("in line", say("never said"))
    for prompt in AT_WORK:
        lab.script(f"go on with {prompt}", say(f"went on with {prompt}"))


async def wait(
    client: Client, runs: list[Json], wait_s: float = 60, until: Literal["all", "any"] = "all"
) -> list[Json]:
    """Wait for *runs*; return how they stand."""
    arguments = {"run_ids": [run["run_id"] for run in runs], "wait_s": wait_s, "until": until}
    result = await client.call_tool("codex_wait", arguments)
    data = cast("Json", result.structured_content)
    assert data["error"] is None
    return data["runs"]


def server_of(tag: str) -> int:
    """Return the id of the server among the processes that hold *tag*."""
    (found,) = (pid for pid in marked(tag) if "--state-dir" in command_of(pid))
    return found


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


async def begin(client: Client, prompts: tuple[str, ...]) -> list[Json]:
    return [await call(client, "codex_run", prompt=prompt, wait_s=0) for prompt in prompts]


async def are_at_work(client: Client, lab: Lab, runs: list[Json]) -> list[Json]:
    """Wait until the model was asked in each of *runs*; return how they stand."""
    asked = set(AT_WORK)
    await until(lambda: asked <= {request.prompt for request in lab.model.requests})
    return await read_of(client, runs, len(IN_A_COMMAND))


async def read_of(client: Client, runs: list[Json], commands: int = 0) -> list[Json]:
    """Wait until the server has read of each run's thread, and of *commands* in all of them."""
    with anyio.fail_after(60):
        while True:
            stand = await wait(client, runs, 0)
            begun = sum(len(run["commands"]) for run in stand)
            if all(run["thread_id"] for run in stand) and begun == commands:
                return stand
            await anyio.sleep(0.1)


async def check_after(
    client: Client, finished: list[Json], stood: list[Json], queued: Json
) -> None:
    """Check that nothing is lost, and go on in each thread that was at work."""
    assert await wait(client, finished, 0) == finished
    interrupted = await wait(client, stood)
    for before, after in zip(stood, interrupted, strict=True):
        assert before["status"] == "running"
        assert after["status"] == "failed"
        assert after["error"]["kind"] == "interrupted"
        assert after["error"]["retryable"] is True
        assert after["thread_id"] == before["thread_id"]
        assert after["thread_id"] in after["next"]
        assert after["sandbox"] == "read-only"
    (never_begun,) = await wait(client, [queued])
    assert never_begun["status"] == "failed"
    assert never_begun["error"]["kind"] == "interrupted"
    assert never_begun["thread_id"] is None
    assert never_begun["attempts"] == 0
    resumed: dict[str, Json] = {}

    async def resume(prompt: str, run: Json) -> None:
        resumed[prompt] = await call(
            client, "codex_resume", thread_id=run["thread_id"], prompt=f"go on with {prompt}"
        )

    async with anyio.create_task_group() as tasks:
        for prompt, run in zip(AT_WORK, interrupted, strict=True):
            tasks.start_soon(resume, prompt, run)
    for prompt, run in zip(AT_WORK, interrupted, strict=True):
        assert resumed[prompt]["status"] == "completed", resumed[prompt]["text"]
        assert resumed[prompt]["final_response"] == f"went on with {prompt}"
        assert resumed[prompt]["thread_id"] == run["thread_id"]
    stopped = cast("Any", await client.call_tool("codex_stop", {"run_id": stood[0]["run_id"]}))
    assert stopped.structured_content["run"] == interrupted[0]


@pytest.mark.parametrize(
    ("mode", "how"),
    [("auto", signal.SIGKILL), ("legacy", signal.SIGTERM), ("auto", None)],
    ids=["killed", "terminated", "end of input"],
)
async def test_the_end_of_a_server_loses_no_result_and_no_thread(
    codex: Path, lab: Lab, mode: str, how: signal.Signals | None
) -> None:
    write_scripts(lab)
    tag = str(uuid.uuid4())
    options = ("--max-runs", str(len(AT_WORK)))
    finished: list[Json] = []
    stood: list[Json] = []
    queued: list[Json] = []
    # Its end is the client's as well; what the SDK makes of that is no business of this test.
    with suppress(MCPError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with connect(mode, codex, lab, *options, env={"FAR_END": tag}) as client:
            finished += await wait(client, await begin(client, FINISHED))
            runs = await begin(client, AT_WORK)
            stood += await are_at_work(client, lab, runs)
            queued += await begin(client, ("in line",))
            if how is not None:
                os.kill(server_of(tag), how)
                await until(lambda: not marked(tag))
    await until(lambda: not marked(tag))
    assert [run["final_response"] for run in finished] == [f"answer to {p}" for p in FINISHED]
    assert queued[0]["status"] == "queued"
    async with connect(mode, codex, lab, *options) as client:
        await check_after(client, finished, stood, queued[0])


async def test_what_others_do_in_the_thread_is_no_result_of_a_run_whose_server_was_killed(
    codex: Path, mode: str, lab: Lab
) -> None:
    """A person goes on in the thread with plain Codex before anyone asks for the run."""
    lab.script("busy", do(Shell("sleep 1000")), say("never said"))
    lab.script("mine", say("a person's answer"))
    tag = str(uuid.uuid4())
    runs: list[Json] = []
    with suppress(MCPError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with connect(mode, codex, lab, env={"FAR_END": tag}) as client:
            runs += await begin(client, ("busy",))
            await until(lambda: any("sleep 1000" in each for each in commands(tag)))
            file = lab.state / "runs" / runs[0]["run_id"] / "run.json"
            await until(lambda: json.loads(file.read_text())["result"]["attempts"] == 1)
            # 0.60.1 may start the command before it records the tokens.
            await until(lambda: '"input_tokens":1200' in lab.rollouts()[0].read_text())
            os.kill(server_of(tag), signal.SIGKILL)
            await until(lambda: not marked(tag))
    thread_id = lab.rollouts()[0].stem[-36:]
    words = [str(codex), "exec", "-s", "workspace-write", "resume", thread_id, "mine"]
    done = await anyio.run_process(words, cwd=lab.project, env=environment(lab))
    assert b"a person's answer" in done.stdout
    async with connect(mode, codex, lab) as client:
        (found,) = await wait(client, runs)
    assert (found["status"], found["error"]["kind"]) == ("failed", "interrupted")
    assert (found["final_response"], found["sandbox"]) == (None, "read-only")
    assert found["thread_id"] == thread_id
    assert found["usage"]["input_tokens"] == 1200  # One request of the scripted model.


async def test_a_second_server_sees_the_runs_of_the_first_and_waits_for_them(
    codex: Path, lab: Lab
) -> None:
    lab.script("short", say("short answer", delay_s=10))
    lab.script("long", say("long answer", delay_s=12))
    async with connect("auto", codex, lab) as one, connect("legacy", codex, lab) as two:
        runs = await begin(one, ("short", "long"))
        await until(lambda: {"short", "long"} <= {r.prompt for r in lab.model.requests})
        there = await wait(two, runs, 0)
        some = await wait(two, runs, until="any")
        all_ = await wait(two, runs)
        here = await wait(one, runs, 0)
    assert [run["status"] for run in there] == ["running", "running"]
    assert all(run["error"] is None for run in there)
    assert "completed" in [run["status"] for run in some]
    assert [run["final_response"] for run in all_] == ["short answer", "long answer"]
    assert all_ == here


@pytest.mark.parametrize("how", ["codex_stop", "a person"])
async def test_a_run_in_a_command_is_stopped_from_another_process(
    codex: Path, lab: Lab, how: str
) -> None:
    lab.script("busy", do(Shell("sleep 1000")), say("never said"))
    lab.script("go on with busy", say("went on"))
    tag = str(uuid.uuid4())
    async with connect("auto", codex, lab, env={"FAR_END": tag}) as one:
        (run,) = await begin(one, ("busy",))
        await read_of(one, [run], 1)
        await until(lambda: any("sleep 1000" in each for each in commands(tag)))
        seen = await anyio.to_thread.run_sync(json_of, lab.state, "runs")
        if how == "codex_stop":
            async with connect("legacy", codex, lab) as two:
                await two.call_tool("codex_stop", {"run_id": run["run_id"]})
        else:
            done = await anyio.to_thread.run_sync(json_of, lab.state, "stop", run["run_id"])
            assert done["outcome"] == "stopped"
        assert not any("sleep 1000" in each for each in commands(tag))
        (stopped,) = await wait(one, [run], 0)
        shown = await anyio.to_thread.run_sync(json_of, lab.state, "show", run["run_id"])
        resumed = await call(
            one, "codex_resume", thread_id=stopped["thread_id"], prompt="go on with busy"
        )
    by = "through another server process" if how == "codex_stop" else "mcp-server-codex stop"
    assert by in stopped["error"]["message"]
    assert stopped["status"] == "cancelled"
    assert [each["status"] for each in seen["runs"]] == ["running"]
    assert seen["runs"][0]["doing"] == "running sleep 1000"
    assert shown["result"] == stopped
    assert shown["events"][-1]["item"]["type"] == "command_execution"
    assert resumed["status"] == "completed"


async def test_a_second_server_learns_that_the_first_was_killed_while_it_waits(
    codex: Path, lab: Lab
) -> None:
    write_scripts(lab)
    tag = str(uuid.uuid4())
    results: list[Json] = []

    async def ask(client: Client, runs: list[Json]) -> None:
        results.extend(await wait(client, runs, 300))

    async with connect("auto", codex, lab) as two:
        with suppress(MCPError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            async with connect("auto", codex, lab, env={"FAR_END": tag}) as one:
                runs = await begin(one, SILENT)
                await until(lambda: set(SILENT) <= {r.prompt for r in lab.model.requests})
                await read_of(one, runs)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ask, two, runs)
                    await anyio.sleep(1)
                    os.kill(server_of(tag), signal.SIGKILL)
        await until(lambda: not marked(tag))
    assert [run["status"] for run in results] == ["failed"] * 3
    assert [run["error"]["kind"] for run in results] == ["interrupted"] * 3
    assert all(run["thread_id"] for run in results)
