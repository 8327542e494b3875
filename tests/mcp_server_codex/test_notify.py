"""--notify: the operator's command gets one JSON line for each run that has ended."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Lab, call, connect, until

SAVE = """\
import os, sys
line = sys.stdin.read()
with open(sys.argv[1], "a") as file:
    file.write(line)
print("said on stdout", flush=True)
"""


def command(lab: Lab) -> tuple[str, Path]:
    """Return a command that saves its input, and the file in which it does."""
    script, told = lab.root / "save it.py", lab.root / "told it"
    script.write_text(SAVE)
    return shlex.join([sys.executable, str(script), str(told)]), told


async def test_each_run_that_ends_is_told_once_without_prompt_and_answer(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("a secret answer"))
    notify, told = command(lab)
    async with connect(mode, fake.build(), lab, "--notify", notify) as client:
        first = await call(client, "codex_run", prompt="a secret task")
        second = await call(client, "codex_run", prompt="another", wait_s=0)
        await call(client, "codex_run", promt="refused")
        await until(lambda: told.exists() and told.read_text().count("\n") == 2)
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    assert {line["run_id"] for line in lines} == {first["run_id"], second["run_id"]}
    assert {line["status"] for line in lines} == {"completed"}
    assert all(line["event"] == "ended" and line["thread_id"] for line in lines)
    assert "secret" not in told.read_text()


async def test_a_run_that_ends_with_its_server_is_told_too(lab: Lab, fake: FakeCodex) -> None:
    fake.body = "time.sleep(120)"
    notify, told = command(lab)
    async with connect("auto", fake.build(), lab, "--notify", notify) as client:
        run = await call(client, "codex_run", prompt="x", wait_s=0)
    await until(lambda: told.exists() and told.read_text().endswith("\n"))
    line = json.loads(told.read_text())
    assert (line["run_id"], line["kind"]) == (run["run_id"], "interrupted")


@pytest.mark.parametrize("notify", ["/no/such/program", "false", "sleep 30"])
async def test_a_command_that_fails_or_hangs_holds_nothing_up(
    notify: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    async with connect("auto", fake.build(), lab, "--notify", notify) as client:
        for _ in range(2):
            assert (await call(client, "codex_run", prompt="x"))["status"] == "completed"
    assert ("cannot start the command of --notify" in lab.log.read_text()) is (notify[0] == "/")
