"""Another engine needs no change elsewhere: the tools run on one that has no process at all."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
from mcp import Client

from codex_tools.codex.events import Event
from codex_tools.codex.json_object import Json
from codex_tools.engines.engine import Keep, TurnRequest
from mcp_server_codex.app import make_server
from mcp_server_codex.settings import read_settings
from support.lab import until
from support.scripted_engine import ScriptedEngine


def fail(problem: str) -> NoReturn:
    raise AssertionError(problem)


async def ask(client: Client, tool: str, **arguments: Any) -> Json:
    return cast("Json", (await client.call_tool(tool, arguments)).structured_content)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "home"))
    return ScriptedEngine(tmp_path / "home")


async def test_run_resume_wait_and_stop_work_on_any_engine(
    mode: str, tmp_path: Path, engine: ScriptedEngine
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    options = ["--state-dir", str(tmp_path / "state"), "--max-runs", "2"]
    server = make_server(read_settings(options, {}, fail), engine)
    async with Client(server, mode=cast("Any", mode)) as client:
        cwd = str(project)
        first = await ask(client, "codex_run", prompt="hello", cwd=cwd)
        assert (first["status"], first["final_response"]) == ("completed", "HELLO")
        assert (first["model"], first["codex_version"]) == ("scripted-model", "1.2.3")
        assert first["usage"]["total_tokens"] == 12
        again = await ask(client, "codex_resume", prompt="more", thread_id=first["thread_id"])
        newest = await ask(client, "codex_resume", prompt="last", last=True, cwd=cwd)
        assert [again["final_response"], newest["final_response"]] == ["MORE", "LAST"]
        assert {again["thread_id"], newest["thread_id"]} == {first["thread_id"]}
        assert engine.turns[1].model == "scripted-model"
        hanging = await ask(client, "codex_run", prompt="hang", cwd=cwd, wait_s=0)
        later = await ask(client, "codex_run", prompt="later", cwd=cwd, wait_s=0)
        waited = await ask(client, "codex_wait", run_ids=[later["run_id"]], wait_s=60)
        assert waited["runs"][0]["final_response"] == "LATER"
        await until(lambda: engine.open_turns == 1)
        stopped = await ask(client, "codex_stop", run_id=hanging["run_id"])
        assert stopped["run"]["status"] == "cancelled"
        assert engine.open_turns == 0
        found = await ask(client, "codex_sessions", thread_id=first["thread_id"])
        assert found["session"]["cwd"] == cwd
    async with Client(server, mode=cast("Any", mode)) as client:
        kept = await ask(client, "codex_wait", run_ids=[first["run_id"], hanging["run_id"]])
        assert [run["status"] for run in kept["runs"]] == ["completed", "cancelled"]


async def test_what_the_policy_refuses_reaches_no_engine(
    mode: str, tmp_path: Path, engine: ScriptedEngine
) -> None:
    options = ["--state-dir", str(tmp_path / "state"), "--max-sandbox", "read-only"]
    server = make_server(read_settings(options, {}, fail), engine)
    async with Client(server, mode=cast("Any", mode)) as client:
        wide = await ask(client, "codex_run", prompt="x", sandbox="workspace-write")
        gone = await ask(client, "codex_run", prompt="x", cwd=str(tmp_path / "gone"))
    assert wide["error"]["kind"] == "not_allowed"
    assert gone["error"]["kind"] == "invalid_arguments"
    assert engine.turns == []


class StuckInTheSecond(ScriptedEngine):
    """Its second turn begins and never ends, and no turn records tokens."""

    async def _events(self, request: TurnRequest, keep: Keep) -> AsyncGenerator[Event]:
        if len(self.turns) == 2:
            request = replace(request, prompt="hang")
        async for event in super()._events(request, keep):
            yield event


async def test_the_record_of_a_run_says_how_many_turns_it_has_started(
    mode: str, tmp_path: Path, engine: ScriptedEngine
) -> None:
    """So the next server knows which turns of the thread are the run's."""
    stuck = StuckInTheSecond(engine.home)
    server = make_server(read_settings(["--state-dir", str(tmp_path / "state")], {}, fail), stuck)
    async with Client(server, mode=cast("Any", mode)) as client:
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        options = {"output_schema": schema, "cwd": str(tmp_path), "wait_s": 0}
        run = await ask(client, "codex_run", prompt="no data", **options)
        file = tmp_path / "state" / "runs" / run["run_id"] / "run.json"
        await until(lambda: json.loads(file.read_text())["result"]["attempts"] == 2, 20)
        await ask(client, "codex_stop", run_id=run["run_id"])
