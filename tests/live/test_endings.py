"""Cancel and end of input: nothing that a real Codex started is left, and the thread goes on."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path
from typing import Literal

import anyio
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from far_ends import Lab, call, connect, marked, until
from mcp_server_codex.cli.scripted_model import Shell, do, say

SLEEPERS = (
    "sleep 601 & nohup sleep 602 >/dev/null 2>&1 & setsid sleep 603 & "
    "(setsid sh -c 'sleep 604 & sleep 605' &) ; echo ready; sleep 600"
)
Sandbox = Literal["workspace-write", "danger-full-access"]


@pytest.mark.parametrize("sandbox", ["workspace-write", "danger-full-access"])
@pytest.mark.parametrize("how", ["cancel", "end of input", "time limit"])
async def test_nothing_is_left_and_the_thread_goes_on(
    codex: Path, mode: str, lab: Lab, sandbox: Sandbox, how: str
) -> None:
    prompt = lab.script("sleep", do(Shell(SLEEPERS)), say("never said"))
    tag = f"FAR_END={uuid.uuid4()}"
    env = {"FAR_END": tag.partition("=")[2]}
    options = ("--max-sandbox", "danger-full-access")

    asking = anyio.CancelScope()

    def sleeping() -> bool:
        found = [_command(pid) for pid in marked(tag)]
        return all(f"sleep {n}" in found for n in range(600, 606))

    async def ask(client: Client) -> None:
        arguments = {"prompt": prompt, "sandbox": sandbox}
        limit = {"timeout_s": 6} if how == "time limit" else {}
        with asking, suppress(MCPError):
            await client.call_tool("codex_run", {**arguments, **limit})

    async with anyio.create_task_group() as tasks:
        async with connect(mode, codex, lab, *options, env=env) as client:
            tasks.start_soon(ask, client)
            await until(sleeping)
            if how == "cancel":
                asking.cancel()
            if how != "end of input":
                await until(lambda: len(marked(tag)) == 1, within_s=15)
                assert "mcp-server-codex" in _command(marked(tag)[0])
        await until(lambda: not marked(tag), within_s=10)

    (rollout,) = lab.rollouts()
    thread_id = rollout.stem[-36:]
    async with connect(mode, codex, lab, *options) as client:
        after = await call(client, "codex_resume", thread_id=thread_id, prompt="go on")
    assert after["status"] == "completed"
    assert after["thread_id"] == thread_id
    assert after["sandbox"] == sandbox


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""
