"""Run `claude mcp`: only Claude Code's own program may write ~/.claude.json.

A running Claude Code keeps that file in memory and may write it again at any time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcp_server_codex.cli.clients.config_error import ConfigError


def find_claude(home: Path, environ: Mapping[str, str]) -> str | None:
    """Return the path of the program `claude`, or None if it is not found."""
    if on_path := shutil.which("claude", path=environ.get("PATH", "")):
        return on_path
    usual = (home / ".local" / "bin" / "claude", home / ".claude" / "local" / "claude")
    return next((str(each) for each in usual if os.access(each, os.X_OK)), None)


def add_command(claude: str, scope: str, name: str, entry: dict[str, Any]) -> list[str]:
    """Return the `claude` command that adds *entry* under *name*."""
    return [claude, "mcp", "add-json", "-s", scope, name, json.dumps(entry, ensure_ascii=False)]


def remove_command(claude: str, scope: str, name: str) -> list[str]:
    """Return the `claude` command that removes the server called *name*."""
    return [claude, "mcp", "remove", name, "-s", scope]


def run_claude(command: list[str], cwd: Path) -> None:
    """Run one of the commands above in the project folder *cwd*.

    Raises:
        ConfigError: The command failed. The error holds the end of its output.
    """
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        output = (done.stderr.strip() or done.stdout.strip())[-500:]
        raise ConfigError(
            f"`claude mcp {command[2]}` failed with exit code {done.returncode}: {output}"
        )
