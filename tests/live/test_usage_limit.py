"""Runs that meet a usage limit: what they say, and with --wait-for-limits, how they wait."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import cast

import anyio
import pytest
from mcp import Client

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.scripted_model import Refuse, Shell, do, say
from support.fake_codex import wrapped_codex
from support.lab import Lab, call, connect, environment, server_program

HOURS = 3600


def limit(resets_at: float) -> Refuse:
    error = {"type": "usage_limit_reached", "message": "Enough.", "plan_type": "plus"}
    return Refuse(429, {"error": error | {"resets_at": int(resets_at)}})


def clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at).astimezone():%H:%M}"


def asked(lab: Lab, prompt: str) -> int:
    return sum(seen.prompt == prompt for seen in lab.model.requests)


async def wait(client: Client, *run_ids: str, wait_s: float = 0) -> list[Json]:
    result = await client.call_tool("codex_wait", {"run_ids": [*run_ids], "wait_s": wait_s})
    return cast("list[Json]", cast("Json", result.structured_content)["runs"])


async def until_waiting(client: Client, *run_ids: str) -> None:
    """Wait until all runs wait for a limit."""
    for _ in range(600):
        if all("Waiting until" in run["next"] for run in await wait(client, *run_ids)):
            return
        await anyio.sleep(0.1)
    raise AssertionError("a run does not wait")


def listed(lab: Lab) -> dict[str, Json]:
    """Return the runs that the command `runs` lists, by id."""
    command = [server_program(), "runs", "--json", "--state-dir", str(lab.state)]
    done = subprocess.run(command, env=environment(lab), check=True, capture_output=True)
    return {each["run_id"]: each for each in json.loads(done.stdout)["runs"]}


@pytest.mark.parametrize("options", [(), ("--wait-for-limits=no",)], ids=["none", "no"])
async def test_without_the_option_the_failure_says_when_the_limit_resets(
    options: Sequence[str], codex: Path, mode: str, lab: Lab
) -> None:
    at = time.time() + 2 * HOURS
    later, past = lab.script("later", limit(at)), lab.script("past", limit(at - 4 * HOURS))
    async with connect(mode, codex, lab, *options) as client:
        results = [await call(client, "codex_run", prompt=each) for each in (later, past)]
    stamp = datetime.fromtimestamp(at).astimezone().replace(second=0, microsecond=0)
    assert f" The limit resets at {stamp.isoformat(timespec='minutes')}." in results[0]["text"]
    for result in results:
        assert (result["status"], result["attempts"]) == ("failed", 1)
        assert result["error"]["kind"] == "usage_limit"
        assert result["error"]["retryable"] is False


@pytest.mark.usefixtures("each_engine")
async def test_a_run_goes_on_in_its_thread_when_the_limit_has_been_reset(
    codex: Path, mode: str, lab: Lab
) -> None:
    # Others change the work tree while a run waits; what they do is not what the run changed.
    body = f"""
for line in lines():
    put(line)
status = codex.wait()
with open({str(lab.project / "other.txt")!r}, "a") as file:
    file.write("other")
sys.exit(status)
"""
    program = wrapped_codex(lab.root / "wrapped", codex, body)
    steps = (limit(time.time() - HOURS), do(Shell("echo > own.txt")), say("done"))
    prompt = lab.script("work", *steps)
    async with connect(mode, program, lab, "--wait-for-limits") as client:
        result = await call(client, "codex_run", prompt=prompt, sandbox="workspace-write")
    assert (result["status"], result["final_response"]) == ("completed", "done"), result
    assert result["attempts"] == 2
    (warning,) = [each for each in result["warnings"] if "Waited until" in each]
    assert warning.startswith("Try 1 failed (usage limit: You")
    assert len(lab.rollouts()) == 1
    named = {Path(each["path"]).name: each["kind"] for each in result["files_changed"]}
    assert named.get("own.txt") == "add"
    # The second turn of the program writes it as well, so it may be an update, but is not new.
    assert named.get("other.txt") != "add"


async def test_a_run_whose_commands_have_run_is_not_started_again(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("work", do(Shell("true")), limit(time.time() - HOURS), say("never"))
    async with connect(mode, codex, lab, "--wait-for-limits") as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert (result["error"]["kind"], result["attempts"]) == ("usage_limit", 1)


async def test_a_limit_that_never_resets_ends_the_run(codex: Path, mode: str, lab: Lab) -> None:
    prompt = lab.script("never", limit(time.time() - HOURS))
    async with connect(mode, codex, lab, "--wait-for-limits") as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert (result["error"]["kind"], result["attempts"]) == ("usage_limit", 4)


async def test_a_run_does_not_wait_beyond_its_time_limit(codex: Path, mode: str, lab: Lab) -> None:
    at = time.time() + 2 * HOURS
    first, second = lab.script("first", limit(at)), lab.script("second", say("never asked before"))
    async with connect(mode, codex, lab, "--wait-for-limits") as client:
        result = await call(client, "codex_run", prompt=first, timeout_s=HOURS)
        # The same holds for a run that begins while the limit is known.
        next_ = await call(client, "codex_run", prompt=second, timeout_s=HOURS)
    assert (result["error"]["kind"], result["attempts"]) == ("usage_limit", 1)
    assert "The limit resets at" in result["error"]["hint"]
    assert next_["status"] == "completed"


async def test_runs_wait_in_the_queue_and_say_until_when(codex: Path, mode: str, lab: Lab) -> None:
    at = time.time() + 2 * HOURS
    first, second = lab.script("first", limit(at)), lab.script("second", say("ok"))
    told: list[str] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    options = {"wait_s": 0, "timeout_s": 3 * HOURS}
    async with connect(mode, codex, lab, "--wait-for-limits", "--max-runs", "1") as client:
        one = (await call(client, "codex_run", prompt=first, **options))["run_id"]
        two = (await call(client, "codex_run", prompt=second, **options))["run_id"]
        await until_waiting(client, one, two)
        for run in await wait(client, one, two):
            assert run["status"] == "queued"
            assert run["next"].startswith("Waiting until ")
            assert f"{clock(at)}: the usage limit is reached. Wait for it" in run["next"]
        assert [run["attempts"] for run in await wait(client, one, two)] == [1, 0]
        shown = listed(lab)
        for run_id in (one, two):
            assert shown[run_id]["doing"].startswith("waiting until ")
            assert shown[run_id]["doing"].endswith(clock(at))
        # The place at work is free for a run that the limit may not concern.
        other = await call(
            client, "codex_run", prompt=lab.script("third", say("free")), model="gpt-5.1"
        )
        assert other["final_response"] == "free"
        arguments = {"prompt": second, "timeout_s": 3 * HOURS, "wait_s": 1.5}
        third = await client.call_tool("codex_run", arguments, progress_callback=note)
        assert any(f"{clock(at)}: the usage limit" in each for each in told), told
        stopped = await client.call_tool("codex_stop", {"run_id": one})
        run = cast("Json", cast("Json", stopped.structured_content)["run"])
        assert (run["status"], run["error"]["kind"]) == ("cancelled", "cancelled")
        assert asked(lab, second) == 0
    # The end of the server ends the waiting ones.
    ended = listed(lab)
    for run_id in (two, cast("Json", third.structured_content)["run_id"]):
        assert (ended[run_id]["status"], ended[run_id]["error"]["kind"]) == (
            "failed",
            "interrupted",
        )
    assert asked(lab, second) == 0


async def test_another_login_is_not_held_back_by_the_limit_of_the_former(
    codex: Path, mode: str, lab: Lab
) -> None:
    first = lab.script("first", limit(time.time() + 2 * HOURS))
    second = lab.script("second", say("mine"))
    async with connect(mode, codex, lab, "--wait-for-limits") as client:
        one = (await call(client, "codex_run", prompt=first, wait_s=0, timeout_s=3 * HOURS))[
            "run_id"
        ]
        await until_waiting(client, one)
        (lab.home / "auth.json").write_text('{"OPENAI_API_KEY": "sk-test-another"}')
        result = await call(client, "codex_run", prompt=second, timeout_s=3 * HOURS)
        assert result["final_response"] == "mine"


async def test_a_new_login_ends_the_wait_for_the_limit_of_the_former(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("work", limit(time.time() + 2 * HOURS), say("mine"))
    async with connect(mode, codex, lab, "--wait-for-limits") as client:
        run = await call(client, "codex_run", prompt=prompt, wait_s=0, timeout_s=3 * HOURS)
        await until_waiting(client, run["run_id"])
        (lab.home / "auth.json").write_text('{"OPENAI_API_KEY": "sk-test-another"}')
        (result,) = await wait(client, run["run_id"], wait_s=50)
    assert (result["status"], result["final_response"]) == ("completed", "mine"), result
    assert result["attempts"] == 2
