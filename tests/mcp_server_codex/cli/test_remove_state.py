"""`uninstall --state` deletes what this server wrote, and nothing else."""

from __future__ import annotations

import subprocess

import pytest

from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Lab, call, connect, environment, server_program


def uninstall(lab: Lab, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [server_program(), "uninstall", "--state", "--state-dir", str(lab.state), *options],
        env=environment(lab) | {"XDG_CACHE_HOME": str(lab.root / "cache")},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def used(lab: Lab, fake: FakeCodex) -> FakeCodex:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    return fake


async def test_all_that_a_server_wrote_is_deleted_and_all_else_stays(
    lab: Lab, used: FakeCodex
) -> None:
    async with connect("auto", used.build(), lab) as client:
        await call(client, "codex_run", prompt="x", idempotency_key="k")
        await call(client, "codex_run", prompt="x", isolation="copy")
        await client.call_tool("codex_usage", {})
        busy = uninstall(lab)
    assert busy.returncode == 1
    assert "a server is at work" in busy.stderr
    cache = lab.root / "cache" / "mcp-server-codex"
    cache.mkdir(parents=True)
    (cache / "prices-1-0.0.jsonl").write_text("")
    (lab.state / "notes.txt").write_text("mine")
    before = sorted(lab.state.rglob("*"))

    refused = uninstall(lab)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    shown = uninstall(lab, "--print")
    assert shown.returncode == 0
    assert f"would delete {lab.state / 'runs'}" in shown.stdout
    assert sorted(lab.state.rglob("*")) == before

    done = uninstall(lab, "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in lab.state.iterdir()] == ["notes.txt"]
    assert not cache.exists()
    assert uninstall(lab).stdout == f"Nothing to delete in {lab.state}.\n"


async def test_an_empty_state_folder_goes_too(lab: Lab, used: FakeCodex) -> None:
    async with connect("auto", used.build(), lab) as client:
        await call(client, "codex_run", prompt="x")
    assert uninstall(lab).returncode == 0
    assert not lab.state.exists()
