"""`mcp-server-codex stop RUN` stops a run of a server that is at work."""

from __future__ import annotations

import json
import os
import signal
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.shared.exceptions import MCPError

from support.fake_codex import FakeCodex
from support.lab import Lab, call, commands, connect, marked, marked_child, until
from support.stored_state import json_of, keep, person_runs, run_id, server

HANGS = """
print(json.dumps({"type": "thread.started", "thread_id": "01a20000-0000-7000-8000-000000000001"}),
      flush=True)
time.sleep(10 ** 6)
"""


@pytest.fixture
def hanging(fake: FakeCodex) -> Path:
    fake.body = HANGS
    return fake.build()


async def person(lab: Lab, *words: str) -> tuple[int, str, str]:
    """Run a command beside the servers; return its exit code, stdout and stderr."""
    done = await anyio.to_thread.run_sync(lambda: person_runs(lab.state, *words))
    return done.returncode, done.stdout, done.stderr


async def test_a_run_is_stopped_with_all_its_processes_and_says_by_whom(
    mode: str, lab: Lab, hanging: Path
) -> None:
    tag = str(uuid.uuid4())
    async with connect(mode, hanging, lab, env={"FAR_END": tag}) as client:
        run = await call(client, "codex_run", prompt="go", wait_s=0)
        await until(lambda: any("fake/codex exec" in each for each in commands(tag)))
        stopped = await person(lab, "stop", run["run_id"][:12], "--json")
        assert not any("fake/codex exec" in each for each in commands(tag))
        waited: Any = await client.call_tool("codex_wait", {"run_ids": [run["run_id"]]})
        again = await person(lab, "stop", run["run_id"])
    result = waited.structured_content["runs"][0]
    assert stopped[0] == 0
    found = json.loads(stopped[1])
    assert [*found] == ["run_id", "outcome", "status", "thread_id", "message"]
    assert found["outcome"] == "stopped"
    assert found["status"] == result["status"] == "cancelled"
    assert found["thread_id"] == result["thread_id"]
    assert "on request of mcp-server-codex stop (process " in result["error"]["message"]
    over = f"Run {run['run_id']}: it is over. Status: cancelled.\n"
    assert again == (0, over, "")


async def test_the_run_of_a_killed_server_is_said_to_be_so(
    mode: str, lab: Lab, hanging: Path
) -> None:
    tag = str(uuid.uuid4())
    run_ids: list[str] = []
    with suppress(MCPError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with connect(mode, hanging, lab, env={"FAR_END": tag}) as client:
            run = await call(client, "codex_run", prompt="go", wait_s=0)
            run_ids.append(run["run_id"])
            await until(lambda: any("fake/codex exec" in each for each in commands(tag)))
            os.kill(marked_child(tag), signal.SIGKILL)
            await until(lambda: not marked(tag))
    code, printed, _ = await person(lab, "stop", run_ids[0])
    assert code == 0
    assert "its server process has died, and the run with it. Status: failed." in printed
    found = await person(lab, "stop", run_ids[0], "--json")
    assert json.loads(found[1])["outcome"] == "server_died"


def test_a_run_that_is_over_is_left_as_it_is(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with server(state) as store:
        keep(store, 1)
        before = (state / "runs" / run_id(1) / "run.json").read_bytes()
        found = json_of(state, "stop", run_id(1))
    assert (found["outcome"], found["status"]) == ("over", "completed")
    assert [each.name for each in (state / "runs" / run_id(1)).iterdir()] == ["run.json"]
    assert (state / "runs" / run_id(1) / "run.json").read_bytes() == before


def test_a_server_that_does_not_take_the_request_is_an_error(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with server(state) as store:
        keep(store, 1, "running")
        done = person_runs(state, "stop", run_id(1))
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        "belongs to another server process; that process has not taken the request" in done.stderr
    )
    assert [each.name for each in (state / "runs" / run_id(1)).iterdir()] == ["run.json"]
