"""The plugin's hooks: each run that ended in the background is told once, and quickly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from mcp_types import Implementation

from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.installed_package import TOP
from support.lab import Json, Lab, call, connect, until

HOOKS = TOP / "plugin" / "hooks"
CLAUDE = Implementation(name="claude-code", version="2.1.332")


def hook(lab: Lab, event: str, cwd: Path | None = None, **more: object) -> str:
    """Run the hook as Claude Code does; return what it prints."""
    commands = json.loads((HOOKS / "hooks.json").read_text())["hooks"][event]
    asked = {"session_id": "s", "cwd": str(cwd or lab.project), "hook_event_name": event, **more}
    done = subprocess.run(
        ["sh", "-c", commands[0]["hooks"][0]["command"]],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(lab.root),
            "CLAUDE_PLUGIN_ROOT": str(TOP / "plugin"),
            "MCP_SERVER_CODEX_STATE_DIR": str(lab.state),
        },
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def ended(lab: Lab, run_id: str) -> bool:
    log = (lab.state / "audit.jsonl").read_text()
    lines = [cast("Json", json.loads(line)) for line in log.splitlines()]
    return any(line["event"] == "ended" and line["run_id"] == run_id for line in lines)


@pytest.mark.parametrize("event", ["SessionStart", "UserPromptSubmit"])
async def test_a_run_that_ended_in_the_background_is_told_once(
    event: str, mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    assert hook(lab, event) == ""
    async with connect(mode, fake.build(), lab, client_info=CLAUDE) as client:
        await call(client, "codex_run", prompt="waited for")
        assert hook(lab, event) == ""
        run = await call(client, "codex_run", prompt="x", wait_s=0)
        await until(lambda: ended(lab, run["run_id"]))
        assert hook(lab, event, cwd=lab.root / "elsewhere") == ""
        told = json.loads(hook(lab, event))["hookSpecificOutput"]
        assert told["hookEventName"] == event
        assert f"{run['run_id']} (completed)" in told["additionalContext"]
        assert "codex_wait" in told["additionalContext"]
        assert hook(lab, event) == ""


async def test_a_run_that_was_fetched_is_not_told(mode: str, lab: Lab, fake: FakeCodex) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    async with connect(mode, fake.build(), lab, client_info=CLAUDE) as client:
        run = await call(client, "codex_run", prompt="x", wait_s=0)
        await client.call_tool("codex_wait", {"run_ids": [run["run_id"]]})
        await until(lambda: "fetched" in (lab.state / "audit.jsonl").read_text())
        assert hook(lab, "UserPromptSubmit") == ""


async def test_other_clients_runs_are_not_told(lab: Lab, fake: FakeCodex) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    async with connect("auto", fake.build(), lab) as client:
        run = await call(client, "codex_run", prompt="x", wait_s=0)
        await until(lambda: ended(lab, run["run_id"]))
        assert hook(lab, "UserPromptSubmit") == ""


async def test_at_the_end_of_a_turn_claude_goes_on_with_the_result(
    lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    async with connect("auto", fake.build(), lab, client_info=CLAUDE) as client:
        run = await call(client, "codex_run", prompt="x", wait_s=0)
        await until(lambda: ended(lab, run["run_id"]))
        assert hook(lab, "Stop", stop_hook_active=True) == ""
        told = json.loads(hook(lab, "Stop"))
    assert told["decision"] == "block"
    assert run["run_id"] in told["reason"]


async def test_a_run_that_died_with_its_server_is_told_as_interrupted(
    lab: Lab, fake: FakeCodex
) -> None:
    fake.body = "time.sleep(120)"
    async with connect("auto", fake.build(), lab, client_info=CLAUDE) as client:
        run = await call(client, "codex_run", prompt="x", wait_s=0)
    assert f"{run['run_id']} (interrupted)" in hook(lab, "SessionStart")


@pytest.mark.parametrize("content", [b"", b"\xff\n[1]\n{\n", b'{"event": "started"}\n'])
def test_a_strange_log_is_no_fault(content: bytes, lab: Lab) -> None:
    lab.state.mkdir()
    (lab.state / "audit.jsonl").write_bytes(content)
    assert hook(lab, "Stop") == ""


def test_it_imports_little_and_needs_no_package() -> None:
    script = HOOKS / "ended_runs.py"
    python = shutil.which("python3") or sys.executable
    code = f"import sys; exec(open({str(script)!r}).read(), {{}}); print(*sys.modules)"
    done = subprocess.run([python, "-I", "-S", "-c", code], capture_output=True, text=True)
    loaded = {*done.stdout.split()}
    assert not loaded & {"asyncio", "subprocess", "pydantic", "mcp", "pathlib", "typing", "socket"}
