"""An attack by a read-only command on the guard of its own run."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import pytest

from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import real_codex
from support.lab import BY_EXEC, Lab, call, connect, marked

KILL = """setsid sleep 600 & p=$$; while [ "$p" -gt 1 ]; do
if tr '\\0' ' ' < /proc/$p/cmdline | grep -q 'engines/.*[g]uard'; then kill -9 $p; break; fi
p=$(sed 's/.*) . //;s/ .*//' /proc/$p/stat); done; sleep 600"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a child subreaper")
async def test_a_command_that_kills_the_guard_leaves_nothing_alive(mode: str, lab: Lab) -> None:
    tag = uuid.uuid4().hex
    prompt = lab.script("kill", do(Shell(KILL)), say("done"))
    # From 0.120 on, the sandbox has its own pid namespace, in which the guard is not visible.
    codex: Path = real_codex("0.60.1")
    async with connect(mode, codex, lab, *BY_EXEC, env={"TEST_MARK": tag}) as client:
        result = await call(client, "codex_run", prompt=prompt)
        left = [pid for pid in marked(tag) if b"mcp-server-codex" not in cmdline(pid)]
    assert result["status"] == "failed", result["commands"]
    assert "guard" in result["error"]["message"]
    assert left == []


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b"mcp-server-codex"
