"""`mcp-server-codex apply RUN` and `discard RUN`, on runs of a server that is alive or gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from support.fake_codex import FakeCodex
from support.isolated import COPY, acting_codex
from support.lab import Lab, call, connect
from support.stored_state import json_of, person_runs
from support.work_trees import run_git, state_of

MADE = "open('made.txt', 'w').write('x'); open('common.txt', 'a').write('end\\n')"


@pytest.fixture
def acting(lab: Lab, fake: FakeCodex) -> Path:
    return acting_codex(lab, fake)


async def test_a_person_looks_and_takes_some_and_drops_the_rest(
    mode: str, lab: Lab, acting: Path
) -> None:
    async with connect(mode, acting, lab) as client:
        run = await call(client, "codex_run", prompt=MADE, **COPY)
        run_id = run["run_id"]
        before = state_of(lab.project)

        def person() -> None:
            checked = json_of(lab.state, "apply", run_id[:12], "--check")
            assert checked["run_id"] == run_id
            assert [file["path"] for file in checked["files"]] == ["common.txt", "made.txt"]
            assert state_of(lab.project) == before
            shown = person_runs(lab.state, "apply", run_id, "--paths", "made.txt", "common.txt")
            assert (shown.returncode, shown.stderr) == (0, "")
            assert "write made.txt: only the run changed it\n" in shown.stdout
            assert (lab.project / "made.txt").read_text() == "x"
            twice = person_runs(lab.state, "apply", run_id)
            assert twice.returncode == 0
            assert "applied before" in twice.stdout

        await anyio.to_thread.run_sync(person)
        # The server of the run, which did not do it, says so too.
        waited: Any = await client.call_tool("codex_wait", {"run_ids": [run_id]})
        assert waited.structured_content["runs"][0]["changes"]["applied"] is True
        done = await anyio.to_thread.run_sync(person_runs, lab.state, "discard", run_id)
        assert done.returncode == 0
        gone = await anyio.to_thread.run_sync(person_runs, lab.state, "apply", run_id)
        assert gone.returncode == 2
        assert "discarded" in gone.stderr
        shown = await anyio.to_thread.run_sync(person_runs, lab.state, "show", run_id)
        assert "discarded" in shown.stdout


async def test_a_conflict_changes_nothing_and_a_branch_no_file(
    mode: str, lab: Lab, acting: Path
) -> None:
    async with connect(mode, acting, lab) as client:
        run = await call(client, "codex_run", prompt=MADE, **COPY)
    (lab.project / "made.txt").write_text("other")
    before = state_of(lab.project)
    refused = person_runs(lab.state, "apply", run["run_id"])
    assert refused.returncode == 1
    assert refused.stdout.startswith("apply_conflict: ")
    assert "conflict made.txt: added by the run, and exists with other content" in refused.stdout
    data = json.loads(person_runs(lab.state, "apply", run["run_id"], "--json").stdout)
    assert data["error"]["kind"] == "apply_conflict"
    both = person_runs(lab.state, "apply", run["run_id"], "--check", "--branch", "b")
    assert both.returncode == 2
    assert state_of(lab.project) == before
    branch = person_runs(lab.state, "apply", run["run_id"], "--branch", "codex/made")
    assert branch.returncode == 0, branch
    assert run_git(lab.project, "show", "codex/made:made.txt") == "x"
    assert (lab.project / "made.txt").read_text() == "other"


async def test_the_diff_of_an_isolated_run_is_shown(mode: str, lab: Lab, acting: Path) -> None:
    async with connect(mode, acting, lab) as client:
        run = await call(client, "codex_run", prompt=MADE, **COPY)
    shown = person_runs(lab.state, "show", run["run_id"])
    assert "+end" in shown.stdout
    assert "add made.txt" in shown.stdout
