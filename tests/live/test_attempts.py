"""Turns that are tried again, and answers that are mended: real Codex, scripted model."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from codex_tools.runs.attempts import BACKOFF_S, TRIES
from mcp_server_codex.cli.scripted_model import (
    Fail,
    Refuse,
    Shell,
    Step,
    Usage,
    api_error,
    do,
    say,
)
from support.codex_versions import number
from support.lab import Json, Lab, call, connect

BUSY = api_error(503, "Overloaded.", "server_error", "server_is_overloaded")
LIMITED = Fail("rate_limit_exceeded", "Rate limit reached. Please try again in 2.5s.")
USED_UP = Refuse(
    429, {"error": {"type": "usage_limit_reached", "message": "The usage limit has been reached"}}
)


@pytest.fixture(autouse=True)
def _codex_itself_tries_once(lab: Lab) -> None:
    with (lab.home / "config.toml").open("a") as config:
        config.write("request_max_retries = 0\nstream_max_retries = 0\n")


def gaps(lab: Lab, prompt: str) -> list[float]:
    """Return the seconds between the requests that the model got for *prompt*."""
    times = [seen.at_s for seen in lab.model.requests if seen.prompt == prompt]
    return [after - before for before, after in pairwise(times)]


@pytest.mark.parametrize(("step", "shortest"), [(BUSY, BACKOFF_S[0]), (LIMITED, 2.5)])
async def test_a_passing_failure_is_tried_again_in_the_same_thread(
    codex: Path, mode: str, lab: Lab, step: Step, shortest: float
) -> None:
    prompt = lab.script("once", step, say("made it", Usage(100, 0, 7, 0)))
    more = lab.script("more", say("and more"))
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt)
        again = await call(client, "codex_resume", thread_id=result["thread_id"], prompt=more)
    assert (result["status"], result["final_response"]) == ("completed", "made it")
    assert result["attempts"] == 2
    assert result["usage"]["output_tokens"] == 7
    assert any("Try 1 failed" in warning for warning in result["warnings"])
    (gap,) = gaps(lab, prompt)
    assert gap >= shortest
    assert again["status"] == "completed"
    assert len(lab.rollouts()) == 1


async def test_after_the_last_try_the_failure_is_told_with_the_number_of_tries(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("never", BUSY)
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert result["error"]["kind"] == "overloaded"
    assert result["attempts"] == TRIES == 3
    waited = gaps(lab, prompt)
    assert len(waited) == 2
    assert all(gap >= shortest for gap, shortest in zip(waited, BACKOFF_S, strict=True))


async def test_nothing_is_tried_again_once_a_command_has_run(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("half", do(Shell("echo ran >> trace")), BUSY)
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt, sandbox="workspace-write")
    assert result["error"]["kind"] == "overloaded"
    assert result["attempts"] == 1
    assert len(gaps(lab, prompt)) == 1  # The request with the command's output, and no more.
    assert (lab.project / "trace").read_text() == "ran\n"


async def test_a_used_up_allowance_is_not_tried_again(codex: Path, mode: str, lab: Lab) -> None:
    prompt = lab.script("poor", USED_UP)
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert result["error"]["kind"] == "usage_limit"
    assert (result["attempts"], gaps(lab, prompt)) == (1, [])


async def test_what_cannot_be_kept_is_tried_again_in_a_new_thread(
    version: str, codex: Path, mode: str, lab: Lab
) -> None:
    if number(version) < (0, 99, 0):
        return  # It knows no --ephemeral; test_run.py tests that this is refused.
    prompt = lab.script("once", BUSY, say("made it"))
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt, ephemeral=True)
    assert (result["status"], result["attempts"]) == ("completed", 2)
    assert lab.rollouts() == []


COUNT: Json = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 1}, "note": {"type": "string"}},
    "required": ["count"],
}


def schema_sent(lab: Lab) -> Json:
    return lab.model.requests[-1].body["text"]["format"]["schema"]


@pytest.mark.usefixtures("each_engine")
async def test_a_wrong_answer_is_mended_in_the_same_thread(
    codex: Path, mode: str, lab: Lab
) -> None:
    wrong, right = '{"count": 0, "note": null}', '{"count": 3, "note": null}'
    wrong_reply, right_reply = say(wrong, Usage(100, 0, 5, 0)), say(right, Usage(200, 0, 9, 0))
    lab.script("count", do(Shell("true")), wrong_reply, right_reply)
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt="count", output_schema=COUNT)
    assert result["status"] == "completed"
    assert result["structured_output"] == {"count": 3}
    assert result["attempts"] == 2
    assert result["command_count"] == 1
    assert any("$.count: 0 is less than the minimum of 1" in w for w in result["warnings"])
    asked = lab.model.requests[-1]
    assert "$.count: 0 is less than the minimum" in json.dumps(asked.body["input"])
    assert wrong in json.dumps([item.get("content") for item in asked.body["input"]]).replace(
        '\\"', '"'
    )
    assert schema_sent(lab)["required"] == ["count", "note"]
    assert schema_sent(lab)["additionalProperties"] is False
    assert len(lab.rollouts()) == 1
    # The turn with the command had two requests, the first of 1,234 tokens.
    assert result["usage"]["output_tokens"] == 34 + 5 + 9
    assert result["usage"]["input_tokens"] == 1200 + 100 + 200


@pytest.mark.parametrize("repairs", [0, 2])
async def test_no_more_turns_are_spent_on_mending_than_were_allowed(
    codex: Path, mode: str, lab: Lab, repairs: int
) -> None:
    lab.model.default = (say('{"count": "many"}'),)
    async with connect(mode, codex, lab) as client:
        result = await call(
            client, "codex_run", prompt="count", output_schema=COUNT, repair_attempts=repairs
        )
    assert result["error"]["kind"] == "output_mismatch"
    assert "$.count" in result["error"]["message"]
    assert result["attempts"] == len(lab.model.requests) == 1 + repairs
    assert result["structured_output"] is None
    assert result["final_response"] == '{"count": "many"}'
