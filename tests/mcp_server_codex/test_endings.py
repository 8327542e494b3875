"""What a result says when stdout, the rollout and the caller disagree: with a fake Codex."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Json, Lab, call, connect, marked, until

THREAD = "01a22336-2e4a-7f81-8b3b-b6621a0c719f"
ROLLOUT = """
import datetime, pathlib
THREAD = "01a22336-2e4a-7f81-8b3b-b6621a0c719f"
sandbox = sys.argv[sys.argv.index("-s") + 1]
cwd = sys.argv[sys.argv.index("-C") + 1]
def write(kind, **payload):
    day = pathlib.Path(os.environ["CODEX_HOME"], "sessions", "2026", "11", "28")
    day.mkdir(parents=True, exist_ok=True)
    with (day / f"rollout-2026-11-28T17-31-23-{THREAD}.jsonl").open("a") as file:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        entry = {"timestamp": now[:23] + "Z", "type": kind, "payload": payload}
        file.write(json.dumps(entry, separators=(",", ":")) + "\\n")
def event(kind, **payload):
    write("event_msg", type=kind, **payload)
def begin(**context):
    if "resume" not in sys.argv:
        write("session_meta", id=THREAD, cwd=cwd, source="exec", cli_version="0.169.0")
    event("task_started", turn_id="01a22336-2e63-7eb3-b270-cc7642175750")
    event("user_message", message=seen["stdin"])
    values = {"cwd": cwd, "approval_policy": "never", "model": "gpt-5.5"}
    write("turn_context", **(values | {"sandbox_policy": {"type": sandbox}} | context))
def put(**line):
    print(json.dumps(line), flush=True)
def end(text):
    event("task_complete", last_agent_message=text)
"""
OPENED = f'put(type="thread.started", thread_id="{THREAD}")\n'


@pytest.fixture
def fake(lab: Lab) -> FakeCodex:
    return FakeCodex(lab.root / "fake", version="0.169.0")


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ('sandbox_policy={"type": "danger-full-access"}', "recorded danger-full-access"),
        ('sandbox_policy={"type": "external-sandbox"}', "recorded external-sandbox"),
        ('sandbox_policy={"type": "workspace-write"}', "recorded workspace-write"),
        ('cwd="/"', "recorded / "),
        ('approval_policy="on-request", approvals_reviewer="auto_review"', "auto_review"),
    ],
)
async def test_a_turn_with_more_rights_than_asked_is_ended_when_it_begins(
    context: str, said: str, mode: str, lab: Lab, fake: FakeCodex
) -> None:
    mark = lab.root / "went-on"
    fake.body = f"{ROLLOUT}{OPENED}begin({context})\ntime.sleep(5)\nopen({str(mark)!r}, 'w')\n"
    async with connect(mode, fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt="x", sandbox="read-only")
        assert (result["status"], result["error"]["kind"]) == ("failed", "not_allowed"), result
        assert said in result["error"]["message"]
        assert result["error"]["retryable"] is False
        await anyio.sleep(5)
    assert not mark.exists()


async def test_a_turn_that_was_too_short_to_be_watched_is_compared_all_the_same(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = f'{ROLLOUT}begin(sandbox_policy={{"type": "danger-full-access"}})\nend("done")\n'
    fake.stdout = events(thread_line(THREAD), *answer_lines("done"))
    async with connect(mode, fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt="x", sandbox="workspace-write")
        ran = await call(client, "codex_run", prompt="x", sandbox="workspace-write", wait_s=0)
        waited = await client.call_tool("codex_wait", {"run_ids": [ran["run_id"]]})
    assert result["error"]["kind"] == "not_allowed", result
    assert waited.structured_content is not None
    assert waited.structured_content["runs"][0]["error"]["kind"] == "not_allowed"


async def test_settings_that_change_during_a_turn_are_compared_too(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = (
        f"{ROLLOUT}{OPENED}begin()\ntime.sleep(1)\n"
        'begin(sandbox_policy={"type": "danger-full-access"})\ntime.sleep(600)\n'
    )
    async with connect(mode, fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt="x", sandbox="read-only")
    assert result["error"]["kind"] == "not_allowed", result


async def test_narrower_settings_are_a_warning(mode: str, lab: Lab, fake: FakeCodex) -> None:
    fake.body = f'{ROLLOUT}begin(sandbox_policy={{"type": "read-only"}}, model="m-2")\nend("ok")\n'
    fake.stdout = events(thread_line(THREAD), *answer_lines("ok"))
    async with connect(mode, fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt="x", sandbox="workspace-write", model="m-1")
    assert (result["status"], result["sandbox"], result["model"]) == (
        "completed",
        "read-only",
        "m-2",
    )
    warned = " ".join(result["warnings"])
    assert "The sandbox was set to workspace-write, but Codex recorded read-only." in warned
    assert "The model was set to m-1, but Codex used m-2." in warned


async def test_a_resume_that_never_began_does_not_report_the_former_turn(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = f'{ROLLOUT}begin()\nend("done")\n'
    fake.stdout = events(thread_line(THREAD), *answer_lines("done"))
    async with connect(mode, fake.build(), lab) as client:
        await call(client, "codex_run", prompt="x", sandbox="workspace-write")
        fake.body, fake.stdout, fake.stderr, fake.exit_code = "", b"", b"something went wrong", 1
        fake.build()
        failed = await call(
            client, "codex_resume", prompt="y", thread_id=THREAD, sandbox="read-only"
        )
    assert failed["status"] == "failed"
    assert failed["sandbox"] == "read-only"
    assert failed["warnings"] == []
    assert (failed["usage"], failed["cost_usd"], failed["final_response"]) == (None, None, None)


@pytest.mark.parametrize("opened", ["another", "none"])
async def test_codex_must_say_that_it_opened_the_thread_that_was_asked_for(
    opened: str, mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = f'{ROLLOUT}begin()\nend("done")\n'
    fake.stdout = events(thread_line(THREAD), *answer_lines("done"))
    other = "01a22336-0000-7000-8000-000000000009"
    async with connect(mode, fake.build(), lab) as client:
        await call(client, "codex_run", prompt="x")
        lines = answer_lines("not there")
        fake.body = ""
        fake.stdout = events(*((thread_line(other),) if opened == "another" else ()), *lines)
        fake.build()
        result = await call(client, "codex_resume", prompt="y", thread_id=THREAD)
    assert result["error"]["kind"] == "wrong_thread", result
    assert "Begin a new thread" in result["next"]


async def stop(client: Client, run: Json) -> Json:
    result: Any = await client.call_tool("codex_stop", {"run_id": run["run_id"]})
    return result.structured_content["run"]


async def test_stopping_a_run_whose_turn_has_ended_leaves_it_completed(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    ended = lab.root / "ended"
    fake.body = (
        f"{ROLLOUT}{OPENED}begin()\n"
        'put(type="item.completed", item={"id": "i", "type": "agent_message", "text": "done"})\n'
        'put(type="turn.completed", usage={"input_tokens": 5, "output_tokens": 2})\n'
        f"open({str(ended)!r}, 'w')\ntime.sleep(600)\n"
    )
    async with connect(mode, fake.build(), lab) as client:
        run = await call(client, "codex_run", prompt="x", wait_s=0)
        await until(ended.exists)
        await anyio.sleep(0.3)
        result = await stop(client, run)
    assert (result["status"], result["final_response"]) == ("completed", "done"), result


@pytest.mark.parametrize("end", ["completed", "failed"])
async def test_stopping_a_run_while_its_files_are_looked_at_changes_nothing(
    end: str, mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = f'{ROLLOUT}begin()\nend("done")\nopen({str(lab.root / "over")!r}, "w")\n'
    lines = list(answer_lines("done"))
    if end == "failed":
        lines[-1] = {"type": "turn.failed", "error": {"message": "something new"}}
    fake.stdout = events(thread_line(THREAD), *lines)
    looking = lab.root / "looking"
    git = lab.root / "bin" / "git"
    git.parent.mkdir()
    git.write_text(
        f"#!/bin/sh\nif [ -e {lab.root}/over ]; then touch {looking}; sleep 8; fi\n"
        'exec /usr/bin/git "$@"\n'
    )
    git.chmod(0o755)
    path = f"{git.parent}:{os.environ['PATH']}"
    async with connect(mode, fake.build(), lab, env={"PATH": path}) as client:
        run = await call(client, "codex_run", prompt="x", sandbox="workspace-write", wait_s=0)
        await until(looking.exists)
        result = await stop(client, run)
    assert (result["status"], result["final_response"]) == (end, "done"), result


async def test_a_failure_that_only_the_rollout_tells_is_told(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = (
        f"{ROLLOUT}{OPENED}begin()\n"
        'event("task_complete", last_agent_message=None,'
        ' error={"message": "You have hit your usage limit; quota exceeded."})\n'
    )
    async with connect(mode, fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt="x")
    assert result["error"]["kind"] == "usage_limit", result


async def test_what_was_said_before_an_unexplained_failure_is_not_told_as_the_answer(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = (
        f'{ROLLOUT}{OPENED}begin()\nevent("agent_message", message="I will look.")\nend(None)\n'
        'sys.stderr.write("the wire is cut\\n")\n'
    )
    fake.exit_code = 1
    async with connect(mode, fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt="x")
    assert (result["status"], result["final_response"]) == ("failed", None), result
    assert "the wire is cut" in result["error"]["message"]


@pytest.mark.parametrize("at", ["end", "work"])
async def test_a_run_whose_server_was_killed_is_what_the_rollout_says(
    at: str, mode: str, lab: Lab, fake: FakeCodex
) -> None:
    began = lab.root / "began"
    used = {"input_tokens": 50, "cached_input_tokens": 4, "output_tokens": 2}
    total = used | {"reasoning_output_tokens": 0, "total_tokens": 52}
    last = 'end("done")' if at == "end" else "pass"
    fake.body = (
        f"{ROLLOUT}{OPENED}begin()\n"
        f"used = {total}\n"
        'event("token_count", info={"total_token_usage": used, "last_token_usage": used})\n'
        f"{last}\nopen({str(began)!r}, 'w')\ntime.sleep(600)\n"
    )
    tag = {"MARK": str(lab.root)}
    run: Json = {}
    with suppress(Exception):  # The transport breaks, in several ways.
        async with connect(mode, fake.build(), lab, env=tag) as client:
            run = await call(client, "codex_run", prompt="x", wait_s=0)
            await until(began.exists)
            await until(lambda: records_thread(lab, run))
            (server,) = (pid for pid in marked(f"MARK={lab.root}") if is_server(pid))
            os.kill(server, signal.SIGKILL)
            await until(lambda: not marked(f"MARK={lab.root}"))
            await client.call_tool("codex_wait", {"run_ids": [run["run_id"]]})
    async with connect(mode, fake.build(), lab) as client:
        for _ in range(2):
            waited: Any = await client.call_tool("codex_wait", {"run_ids": [run["run_id"]]})
            (result,) = waited.structured_content["runs"]
            if at == "end":
                assert (result["status"], result["final_response"]) == ("completed", "done"), result
                assert result["error"] is None
            else:
                assert result["error"]["kind"] == "interrupted", result
            assert result["usage"]["input_tokens"] == 50
            assert result["model"] == "gpt-5.5"


def records_thread(lab: Lab, run: Json) -> bool:
    record = json.loads((lab.state / "runs" / run["run_id"] / "run.json").read_text())
    return record["result"]["thread_id"] == THREAD


def is_server(pid: int) -> bool:
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return any(word.endswith(b"mcp-server-codex") for word in argv[:2])
