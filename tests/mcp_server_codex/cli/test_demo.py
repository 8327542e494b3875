"""The demo, run from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.codex_versions import real_codex
from support.lab import server_program


def test_the_demo_shows_all_and_says_what_is_scripted(version: str, tmp_path: Path) -> None:
    env = {**os.environ, "CODEX_BIN": str(real_codex(version)), "COLUMNS": "60"}
    env["XDG_CACHE_HOME"] = str(tmp_path)  # Else it caches prices in that of this person.
    env.pop("CODEX_HOME", None)
    done = subprocess.run([server_program(), "demo"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(len(line) <= 60 for line in done.stdout.splitlines())
    whole = " ".join(done.stdout.split())
    for words in (
        "scripted",
        "2 Continue that thread: folder, sandbox and model stay the same",
        f"the real CLI, {version}",
        "codex_run",
        "codex_resume",
        "python3 check.py",
        "+ return sum(prices) * (1 - discount / 100)",
        "structured_output",
        "usage_limit",
        "hint",
        "thread_id",
    ):
        assert words in whole, words


def test_without_codex_the_demo_says_how_to_get_it(tmp_path: Path) -> None:
    env = {**os.environ, "CODEX_BIN": str(tmp_path / "gone")}
    done = subprocess.run([server_program(), "demo"], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "npm install" in done.stdout


def test_an_unknown_command_or_argument_fails_with_the_usage() -> None:
    for arguments in (["dance"], ["demo", "--fast"], ["--no-such-option"]):
        done = subprocess.run(
            [server_program(), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 2
        assert arguments[-1] in done.stderr


def test_help_names_every_option_with_its_variable() -> None:
    done = subprocess.run([server_program(), "--help"], capture_output=True, text=True, check=True)
    for words in ("--max-sandbox", "MCP_SERVER_CODEX_MAX_SANDBOX", "CODEX_BIN", "demo"):
        assert words in done.stdout
    module = subprocess.run(
        [sys.executable, "-P", "-m", "mcp_server_codex", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert module.stdout.startswith("mcp-server-codex 0.")
