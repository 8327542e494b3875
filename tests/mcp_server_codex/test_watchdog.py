"""The watchdog sees a loop that is blocked, whatever blocks it, and none that is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server_codex.watchdog import VARIABLE

PROGRAM = """
import asyncio, os, time
from mcp_server_codex.watchdog import start_watchdog

def sleep():
    time.sleep(1)

def compute():
    until = time.thread_time() + 1
    while time.thread_time() < until:
        pass

def keep_the_interpreter_lock():
    sum(range(10 ** 8))

async def main():
    start_watchdog(os.environ)
    await asyncio.sleep(0.2)
    {body}
    await asyncio.sleep(0.2)

asyncio.run(main())
"""


def reports(tmp_path: Path, body: str) -> list[str]:
    program = PROGRAM.format(body=body)
    subprocess.run([sys.executable, "-c", program], env={VARIABLE: str(tmp_path)}, check=True)
    return [path.read_text() for path in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ("sleep()", ("in sleep",)),
        ("compute()", ("in compute",)),
        # Which of the two threads sees it first is up to the machine.
        ("keep_the_interpreter_lock()", ("interpreter lock", "in main")),
    ],
)
def test_a_blocked_loop_is_reported_with_the_code_that_blocks_it(
    tmp_path: Path, body: str, where: tuple[str, ...]
) -> None:
    found = reports(tmp_path, body)  # On a busy machine, more than one.
    assert all("The event loop was blocked" in report for report in found)
    assert any(each in report for report in found for each in where)


@pytest.mark.parametrize(
    "body",
    [
        "await asyncio.sleep(1)",
        "await asyncio.to_thread(sleep)",
        "await asyncio.to_thread(compute)",
    ],
)
def test_a_loop_that_turns_is_not_reported(tmp_path: Path, body: str) -> None:
    assert reports(tmp_path, body) == []
