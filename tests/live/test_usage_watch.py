"""The tokens of a run at work, as its caller sees them, against what the model answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from mcp import Client

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.scripted_model import Reply, Shell, Usage, say
from support.lab import Lab, call, connect, until

ONE, TWO, THREE = Usage(5000, 100, 70, 30), Usage(40_000, 6000, 700, 500), Usage(900, 50, 9, 1)
BOTH = ONE.input_tokens + ONE.output_tokens + TWO.input_tokens + TWO.output_tokens


async def wait(client: Client, run_id: str, wait_s: float = 0) -> Json:
    result = await client.call_tool("codex_wait", {"run_ids": [run_id], "wait_s": wait_s})
    data = cast("Json", result.structured_content)["runs"][0]
    return data | {"text": cast("Any", result.content[0]).text}


async def at_tokens(client: Client, run_id: str, tokens: int) -> Json:
    """Return the result so far of a run once it has used so many tokens."""
    found: Json = {}
    for _ in range(300):
        found = await wait(client, run_id, 0.1)
        assert found["status"] == "running", found
        if found["usage"] is not None and found["usage"]["total_tokens"] >= tokens:
            return found
    raise AssertionError(found)


async def test_a_run_at_work_says_what_it_has_used_so_far(codex: Path, mode: str, lab: Lab) -> None:
    first = lab.script("first", say("one", THREE))
    work = lab.script(
        "work", Reply((Shell("true"),), ONE), Reply((Shell("true"),), TWO), say("late", delay_s=90)
    )
    messages: list[str] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        messages.append(message or "")

    async with connect(mode, codex, lab) as client:
        done = await call(client, "codex_run", prompt=first, model="gpt-5.4")
        # What the thread has used before does not count.
        run = await call(client, "codex_resume", prompt=work, thread_id=done["thread_id"], wait_s=0)
        run_id = run["run_id"]
        found = await at_tokens(client, run_id, BOTH)
        assert found["usage"] == {
            "input_tokens": 45_000,
            "cached_input_tokens": 6100,
            "output_tokens": 770,
            "reasoning_output_tokens": 530,
            "total_tokens": BOTH,
        }
        assert "tokens so far: 45,770" in found["text"]
        resource = await client.read_resource(f"codex://runs/{run_id}")
        shown = json.loads(cast("Any", resource.contents[0]).text)
        assert (shown["status"], shown["usage"]) == ("running", found["usage"])
        await client.call_tool(
            "codex_wait", {"run_ids": [run_id], "wait_s": 1}, progress_callback=on_progress
        )
        assert any(" · 45k tokens · run_id " in message for message in messages), messages
        # A record is on disk for other servers and for people.
        record = lab.state / "runs" / run_id / "run.json"
        await until(lambda: json.loads(record.read_text())["result"]["usage"] == found["usage"])
        stopped = await client.call_tool("codex_stop", {"run_id": run_id})
    result = cast("Json", stopped.structured_content)["run"]
    assert (result["status"], result["usage"]) == ("cancelled", found["usage"])
    assert result["cost_usd"] == found["cost_usd"] > done["cost_usd"]


async def test_all_turns_of_a_run_count(codex: Path, mode: str, lab: Lab) -> None:
    schema: Json = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    # The turn that asks for a correction gets the last reply.
    late = say("late", delay_s=90)
    prompt = lab.script("as data", Reply((Shell("true"),), ONE), say("no data", TWO), late)
    async with connect(mode, codex, lab) as client:
        run = await call(client, "codex_run", prompt=prompt, output_schema=schema, wait_s=0)
        found = await at_tokens(client, run["run_id"], BOTH)
        assert found["usage"]["total_tokens"] == BOTH


async def test_a_rollout_that_is_elsewhere_is_no_fault(codex: Path, mode: str, lab: Lab) -> None:
    elsewhere = lab.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.toml").write_bytes((lab.home / "config.toml").read_bytes())
    program = lab.root / "codex"
    program.write_text(f'#!/bin/sh\nexport CODEX_HOME={elsewhere}\nexec {codex} "$@"\n')
    program.chmod(0o755)
    prompt = lab.script("work", Reply((Shell("true"),), ONE), say("done", TWO))
    async with connect(mode, program, lab) as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert result["status"] == "completed"
    assert result["usage"]["total_tokens"] == BOTH
