"""Threads that a person has edited: real Codex keeps them in several files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import anyio
import pytest
from mcp import Client

from mcp_server_codex.cli.scripted_model import Reply, Say, Usage
from support.app_server import app_server
from support.codex_versions import VERSIONS, number, real_codex
from support.lab import Json, Lab, call, connect, environment, open_lab
from support.real_home import Used, counted, thread_of

EDITING = [version for version in VERSIONS if number(version) >= (0, 163, 0)]
"""Versions whose app-server knows thread/revert."""

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota")


def received(lab: Lab, *threads: str) -> Json:
    """Return the tokens of all replies that the model has sent to *threads*, by its own log."""
    replies = [
        Used(0, thread_of(seen.body), seen.prompt, "", "", seen.step.usage)
        for seen in lab.model.requests
        if isinstance(seen.step, Reply) and thread_of(seen.body) in threads
    ]
    return counted(replies)


async def ask(client: Client, tool: str, **arguments: object) -> Json:
    result = await client.call_tool(tool, dict(arguments))
    assert result.structured_content is not None
    assert result.is_error is False, result.structured_content
    return dict(result.structured_content)


def prompts(told: Json) -> list[str]:
    turns: Iterable[Json] = reversed(told["turns"])
    return [turn["prompt"] for turn in turns]


@pytest.mark.skipif(not EDITING, reason="no version of this run can take turns back")
@pytest.mark.parametrize("version", EDITING)
async def test_an_edited_thread_is_one_thread_and_goes_on_from_its_newest_segment(
    version: str, mode: str
) -> None:
    codex = real_codex(version)
    with open_lab(version) as lab:
        for place, word in enumerate(WORDS):
            lab.script(word, Reply((Say(f"answer {word}"),), Usage(1000 + 2**place, 500, 30, 10)))
        with app_server(lab, codex) as app:
            began = app.call(
                "thread/start", cwd=str(lab.project), sandbox="read-only", approvalPolicy="never"
            )
            thread_id = began["thread"]["id"]
            wide = {"type": "workspaceWrite"}
            turns = [app.turn(thread_id, word, sandboxPolicy=wide) for word in WORDS[:3]]
            app.call("thread/revert", threadId=thread_id, beforeTurnId=turns[2])
            app.turn(thread_id, "delta", sandboxPolicy={"type": "readOnly"})
        assert len(lab.rollouts()) == 2
        before = lab.rollouts()[0].read_bytes()
        async with connect(mode, codex, lab) as client:
            told = await ask(client, "codex_sessions", thread_id=thread_id, turns=50)
            assert prompts(told) == ["alpha", "beta", "delta"]
            assert told["turns"][0]["sandbox"] == "read-only"
            resumed = await call(client, "codex_resume", thread_id=thread_id, prompt="epsilon")
            assert resumed["status"] == "completed", resumed
            assert (resumed["sandbox"], resumed["thread_id"]) == ("read-only", thread_id)
            assert resumed["usage"]["input_tokens"] == 1016
            assert resumed["final_response"] == "answer epsilon"
            # Codex appends the turn to the newest segment.
            assert len(lab.rollouts()) == 2
            assert lab.rollouts()[0].read_bytes() == before
            told = await ask(client, "codex_sessions", thread_id=thread_id, turns=50)
            assert prompts(told) == ["alpha", "beta", "delta", "epsilon"]
            assert told["session"]["usage"] == received(lab, thread_id)
            found = await ask(client, "codex_sessions", query="epsilon")
            assert [each["thread_id"] for each in found["sessions"]] == [thread_id]

            with app_server(lab, codex) as app:
                app.call("thread/resume", threadId=thread_id)
                app.call("thread/revert", threadId=thread_id, beforeTurnId=turns[0])
                app.turn(thread_id, "zeta", sandboxPolicy=wide)
                settings = {"sandbox": "read-only", "approvalPolicy": "never"}
                forked = app.call(
                    "thread/fork", threadId=thread_id, cwd=str(lab.project), **settings
                )
                fork = forked["thread"]["id"]
                eta = app.turn(fork, "eta")
                app.call("thread/revert", threadId=fork, beforeTurnId=eta)
                app.turn(fork, "theta")
            assert len(lab.rollouts()) == 5
            for each, expected in ((thread_id, ["zeta"]), (fork, ["theta"])):
                told = await ask(client, "codex_sessions", thread_id=each, turns=50)
                assert prompts(told) == expected
                assert told["session"]["usage"] == received(lab, each)
            assert told["session"]["forked_from_id"] == thread_id
            await _archive_and_check(client, lab, codex, thread_id, fork)
            resumed = await call(client, "codex_resume", thread_id=fork, prompt="iota")
            assert (resumed["status"], resumed["sandbox"]) == ("completed", "read-only")
            told = await ask(client, "codex_usage")
            assert told["totals"] | received(lab, thread_id, fork) == told["totals"]
            assert (told["totals"]["requests"], told["totals"]["threads"]) == (9, 2)
            assert not told["notes"]


async def _archive_and_check(
    client: Client, lab: Lab, codex: Path, thread_id: str, fork: str
) -> None:
    archive = [str(codex), "archive", thread_id]
    await anyio.run_process(archive, cwd=lab.project, env=environment(lab))
    listed = await ask(client, "codex_sessions")
    assert [each["thread_id"] for each in listed["sessions"]] == [fork]
    listed = await ask(client, "codex_sessions", include_archived=True)
    assert {each["thread_id"]: each["archived"] for each in listed["sessions"]} == {
        thread_id: True,
        fork: False,
    }
    refused = await call(client, "codex_resume", thread_id=thread_id, prompt="iota")
    assert refused["error"]["kind"] == "thread_not_found"
    assert "archived" in refused["error"]["message"]
