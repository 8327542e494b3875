"""The MCP Inspector, the protocol's own tool for looking at servers, without its window."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import pytest

from mcp_server_codex.calls import TOOLS
from mcp_server_codex.cli.scripted_model import api_error, say
from mcp_server_codex.wire import to_tool
from support.codex_versions import from_npm
from support.lab import Json, Lab, environment, server_program

INSPECTOR, NODE = "2.12.0", "24.9.0"
"""The versions that the tests fetch. This Inspector wants Node 22.19 or later."""

IS_ERROR = 5
"""The Inspector's exit code for a tool's result that is an error."""


@cache
def node() -> Path:
    """Return a Node that is new enough, from npm."""
    return from_npm(f"npm/node-{NODE}", f"node@{NODE}") / "node_modules" / ".bin" / "node"


@cache
def inspector() -> Path:
    """Return the Inspector's script, from npm."""
    package = "@modelcontextprotocol/inspector"
    folder = from_npm(f"npm/inspector-{INSPECTOR}", f"{package}@{INSPECTOR}")
    return (folder / "node_modules" / ".bin" / "mcp-inspector").resolve()


@dataclass(frozen=True, slots=True)
class Inspector:
    """The Inspector with this server, in a lab."""

    lab: Lab
    codex: Path

    def run(self, method: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Start the server anew, send it *method*, and wait for the end."""
        told = [f"{key}={value}" for key, value in environment(self.lab).items()]
        return subprocess.run(
            [
                *(str(node()), str(inspector()), "--cli"),
                *(part for each in told for part in ("-e", each)),
                *(server_program(), "--codex-bin", str(self.codex)),
                *("--state-dir", str(self.lab.state), "--method", method, *options),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=self.lab.project,
            env=environment(self.lab),
        )


@pytest.fixture
def inspect(lab: Lab, codex: Path) -> Inspector:
    return Inspector(lab, codex)


def printed(done: subprocess.CompletedProcess[str], code: int = 0) -> Json:
    assert done.returncode == code, (done.stdout, done.stderr)
    return cast("Json", json.loads(done.stdout))


def test_the_tools_keep_to_what_every_model_s_provider_takes(inspect: Inspector) -> None:
    done = inspect.run("tools/list", "--strict")
    listed = printed(done)["tools"]
    assert listed == [
        to_tool(tool).model_dump(mode="json", by_alias=True, exclude_none=True) for tool in TOOLS
    ]
    # Of what providers never see it warns that a type may be two; not of what they see.
    paths = re.findall(r"^ *Path: (\S+)", done.stderr, re.MULTILINE)
    assert [path for path in paths if not path.startswith("outputSchema.")] == []


def test_a_call_brings_the_structured_result(inspect: Inspector, lab: Lab, version: str) -> None:
    prompt = lab.script("hello", say("Hello from inside."))
    done = inspect.run("tools/call", "--tool-name", "codex_run", "--tool-arg", f"prompt={prompt}")
    answer = printed(done)
    assert answer["isError"] is False
    (content,) = answer["content"]
    assert content["text"].startswith("Hello from inside.\n\n---\nthread_id: ")
    assert answer["structuredContent"]["status"] == "completed"
    assert answer["structuredContent"]["codex_version"] == version
    (rollout,) = lab.rollouts()
    assert rollout.stem.endswith(answer["structuredContent"]["thread_id"])


def test_a_failing_call_is_told_apart_by_the_exit_code(inspect: Inspector, lab: Lab) -> None:
    prompt = lab.script("bad", api_error(400, "No such thing.", "invalid_request_error"))
    for arguments, kind in ((f"prompt={prompt}", "invalid_request"), ("promt=x", "invalid_")):
        done = inspect.run("tools/call", "--tool-name", "codex_run", "--tool-arg", arguments)
        answer = printed(done, IS_ERROR)
        assert answer["isError"] is True
        assert answer["structuredContent"]["error"]["kind"].startswith(kind)
        assert answer["content"][0]["text"].startswith(kind)
        assert "tool_is_error" in done.stderr


def test_two_hundred_calls_ten_at_a_time_all_succeed(inspect: Inspector) -> None:
    load = ("--load", "--load-requests", "200", "--load-concurrency", "10")
    call = ("--tool-name", "codex_sessions", "--tool-arg", "limit=1")
    seen = printed(inspect.run("tools/call", *call, *load))
    assert (seen["requests"], seen["concurrency"]) == (200, 10)
    assert (seen["ok"], seen["toolErrors"], seen["errors"]) == (200, 0, 0)
    assert seen["errorMessages"] == []
