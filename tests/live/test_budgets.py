"""Budgets end real runs in mid-turn, shown by what the model was asked, and hold over a day."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest
from mcp import Client

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.scripted_model import Reply, Shell, Usage, say
from support.codex_versions import number
from support.lab import Lab, call, connect, until

EACH = Usage(1000, 200, 100, 40)
"""What each response uses: 1,100 tokens."""
MANY = [Reply((Shell(f"echo {n} >> written.txt"),), EACH, delay_s=0.25) for n in range(40)]
"""Without a delay, 0.60.1 sends a request each 8 ms, which no real model answers."""


def requests_after(lab: Lab, prompt: str, limit: int) -> int:
    """Return how many requests followed the one with whose response *limit* was reached."""
    used = after = 0
    for seen in lab.model.requests:
        if seen.prompt == prompt and isinstance(seen.step, Reply):
            after += used >= limit
            used += seen.step.usage.input_tokens + seen.step.usage.output_tokens
    assert used >= limit
    return after


async def usage(client: Client) -> Json:
    result = await client.call_tool("codex_usage", {})
    return cast("Json", result.structured_content)


@pytest.mark.parametrize("resumed", [False, True], ids=["run", "resume"])
async def test_a_run_ends_in_mid_turn_within_two_requests_of_its_limit(
    resumed: bool, codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("go on", *MANY, say("never"))
    first, more = (
        lab.script("first", say("one", Usage(90_000, 0, 10, 0))),
        lab.script("more", say("two")),
    )
    async with connect(mode, codex, lab) as client:
        tool, where = "codex_run", cast("dict[str, Any]", {})
        if resumed:
            done = await call(client, "codex_run", prompt=first, sandbox="workspace-write")
            tool, where = "codex_resume", {"thread_id": done["thread_id"]}
        result = await call(
            client, tool, prompt=prompt, sandbox="workspace-write", max_tokens=5500, **where
        )
        assert (result["status"], result["error"]["kind"]) == ("failed", "budget_exhausted"), result
        assert result["error"]["retryable"] is False
        assert "5,500 tokens (max_tokens)" in result["error"]["message"]
        assert "codex_resume, with a larger max_tokens" in result["error"]["hint"]
        assert any("80% of a budget is used" in warning for warning in result["warnings"])
        assert requests_after(lab, prompt, 5500) <= 2
        asked = len(lab.model.requests)
        # What it did is kept, and told.
        assert 5500 <= result["usage"]["total_tokens"] <= 7 * 1100
        assert result["cost_usd"] > 0
        assert [Path(each["path"]).name for each in result["files_changed"]] == ["written.txt"]
        assert (lab.project / "written.txt").exists()
        # And it can go on, with nothing of the first run in its budget.
        again = await call(
            client, "codex_resume", prompt=more, thread_id=result["thread_id"], max_tokens=5500
        )
    assert (again["status"], again["final_response"]) == ("completed", "two"), again
    assert len(lab.model.requests) == asked + 1


async def test_money_ends_a_run_as_tokens_do(codex: Path, mode: str, lab: Lab) -> None:
    prompt = lab.script("go on", *MANY, say("never"))
    async with connect(mode, codex, lab) as client:
        one = await call(client, "codex_run", prompt=lab.script("one", say("1", EACH)))
        most = 4.5 * one["cost_usd"]
        result = await call(client, "codex_run", prompt=prompt, max_cost_usd=most)
    assert result["error"]["kind"] == "budget_exhausted", result
    assert "(max_cost_usd)" in result["error"]["message"]
    assert requests_after(lab, prompt, 5 * 1100) <= 2


async def test_a_model_without_a_price_is_held_by_tokens_alone(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("go on", *MANY[:3], say("done", EACH))
    limits = {"model": "no-such-model", "max_cost_usd": 0.0001}
    async with connect(mode, codex, lab) as client:
        free = await call(client, "codex_run", prompt=prompt, **limits)
        assert (free["status"], free["cost_usd"]) == ("completed", None), free
        assert any("max_cost_usd does not count" in each for each in free["warnings"])
        held = lab.script("held", *MANY, say("never"))
        result = await call(client, "codex_run", prompt=held, max_tokens=3000, **limits)
    assert result["error"]["kind"] == "budget_exhausted", result
    assert "3,000 tokens (max_tokens)" in result["error"]["message"]
    assert requests_after(lab, held, 3000) <= 2


async def test_a_turn_whose_last_response_reaches_the_limit_is_completed(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("short", *MANY[:2], say("done", EACH))
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt, max_tokens=3300)
    assert (result["status"], result["final_response"]) == ("completed", "done"), result
    assert any("3,300 of 3,300 tokens" in warning for warning in result["warnings"])


async def test_an_answer_is_not_repaired_beyond_the_limit(codex: Path, mode: str, lab: Lab) -> None:
    schema: Json = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    prompt = lab.script("as data", say("no data", EACH))
    async with connect(mode, codex, lab) as client:
        result = await call(
            client, "codex_run", prompt=prompt, output_schema=schema, max_tokens=1000
        )
    assert result["error"]["kind"] == "budget_exhausted", result
    assert len(lab.model.requests) == 1


async def test_the_operators_ceiling_holds_for_every_caller(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("go on", *MANY, say("never"))
    async with connect(
        mode, codex, lab, "--max-run-tokens", "4000", "--max-run-usd", "9"
    ) as client:
        result = await call(client, "codex_run", prompt=prompt)
        assert result["error"]["kind"] == "budget_exhausted", result
        assert "raise --max-run-tokens" in result["error"]["hint"]
        assert requests_after(lab, prompt, 4000) <= 2
        less = await call(
            client, "codex_run", prompt=lab.script("less", say("ok")), max_tokens=3999
        )
        assert less["status"] == "completed"
        for more in ({"max_tokens": 4001}, {"max_cost_usd": 9.5}):
            refused = await call(client, "codex_run", prompt="more", **more)
            assert refused["error"]["kind"] == "not_allowed", refused
            assert refused["run_id"] is None


async def test_a_day_has_one_budget_for_all_servers_of_a_state_folder(
    codex: Path, mode: str, lab: Lab
) -> None:
    many, slow = lab.script("go on", *MANY, say("never")), lab.script("slow", say("1", EACH))
    waiting = lab.script("waiting", Reply((Shell("true"),), EACH), say("late", delay_s=90))
    options = ("--budget-tokens-day", "9000", "--max-runs", "1")
    async with (
        connect(mode, codex, lab) as free,  # Without a budget of its own, it counts all the same.
        connect(mode, codex, lab, *options) as first,
        connect(mode, codex, lab, *options) as second,
    ):
        assert (await usage(free))["budget"] is None
        await call(free, "codex_run", prompt=slow)
        at_work = await call(second, "codex_run", prompt=waiting, wait_s=0)
        queued = await call(second, "codex_run", prompt=waiting, wait_s=0)
        assert queued["status"] == "queued"
        result = await call(first, "codex_run", prompt=many)
        assert result["error"]["kind"] == "budget_exhausted", result
        assert "--budget-tokens-day" in result["error"]["message"]
        # What runs of the other servers used is part of it.
        assert requests_after(lab, many, 9000 - 2 * 1100) <= 2
        # It ends the other runs too.
        waited = await second.call_tool(
            "codex_wait", {"run_ids": [at_work["run_id"], queued["run_id"]], "wait_s": 60}
        )
        ended = cast("Json", waited.structured_content)["runs"]
        assert [run["error"]["kind"] for run in ended] == ["budget_exhausted"] * 2, ended
        asked = len(lab.model.requests)
        for client in (first, second):
            refused = await call(client, "codex_run", prompt=slow)
            assert (refused["error"]["kind"], refused["run_id"]) == ("budget_exhausted", None)
            assert refused["error"]["retryable"] is False
            budget = (await usage(client))["budget"]
            assert (budget["tokens"], budget["tokens_left"]) == (9000, 0)
            assert budget["usd"] is budget["usd_left"] is None
        assert len(lab.model.requests) == asked
    # It outlives the servers.
    async with connect(mode, codex, lab, "--budget-tokens-day", "100000") as client:
        budget = (await usage(client))["budget"]
        total = 1100 * len(lab.model.requests)
        assert 9000 <= 100_000 - budget["tokens_left"] <= total


async def test_a_run_whose_server_was_killed_counts_for_the_day(
    codex: Path, mode: str, lab: Lab
) -> None:
    lab.model.scripts["work"] = (*MANY[:4], say("late", delay_s=90))
    # Nothing but its beginning is written down, as if the last writes were lost.
    ledger = lab.state / "spending"
    async with connect(mode, codex, lab) as client:
        run = await call(client, "codex_run", prompt="work", wait_s=0)
        await until(lambda: len(lab.model.requests) == 5)
        record = lab.state / "runs" / run["run_id"] / "run.json"
        await until(lambda: json.loads(record.read_text())["result"]["thread_id"])
        for pid in server_pids(lab):
            os.kill(pid, signal.SIGKILL)
    (file,) = ledger.iterdir()
    begun = file.read_bytes().split(b"\n\n")[0] + b'\n\n{"version":1,"run_id":"torn'
    file.write_bytes(begun)
    async with connect(mode, codex, lab, "--budget-tokens-day", "4400") as client:
        refused = await call(client, "codex_run", prompt="more")
        assert refused["error"]["kind"] == "budget_exhausted", refused
        assert (await usage(client))["budget"]["tokens_left"] == 0
    async with connect(mode, codex, lab, "--budget-tokens-day", "4401") as client:
        assert (await usage(client))["budget"]["tokens_left"] == 1


def server_pids(lab: Lab) -> list[int]:
    """Return the ids of this lab's servers."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(lab.state).encode() in argv and b"--state-dir" in argv:
            found.append(int(folder.name))
    return found


async def test_an_ephemeral_run_cannot_slip_past_a_budget(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    async with connect(mode, codex, lab, "--budget-tokens-day", "5000", "--ask", "never") as client:
        refused = await call(client, "codex_run", prompt="x", ephemeral=True)
        assert refused["error"]["kind"] == "not_allowed", refused
        assert "--budget-tokens-day" in refused["error"]["hint"]
    async with connect(mode, codex, lab) as client:
        unwatched = await call(client, "codex_run", prompt="x", ephemeral=True, max_tokens=9)
        assert unwatched["error"]["kind"] == "invalid_arguments", unwatched
    assert lab.model.requests == []
    if number(version) >= (0, 99, 0):
        async with connect(mode, codex, lab) as client:
            done = await call(
                client, "codex_run", prompt=lab.script("y", say("z", EACH)), ephemeral=True
            )
            assert done["status"] == "completed"
        async with connect(mode, codex, lab, "--budget-tokens-day", "5000") as client:
            assert (await usage(client))["budget"]["tokens_left"] == 5000 - 1100
