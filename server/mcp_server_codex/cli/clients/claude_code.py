"""Claude Code's own command line, which alone may write ~/.claude.json.

A running Claude Code keeps that file in memory and writes it again at any time.
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
    """Return the program, or None if it is not to be found."""
    if on_path := shutil.which("claude", path=environ.get("PATH", "")):
        return on_path
    usual = (home / ".local" / "bin" / "claude", home / ".claude" / "local" / "claude")
    return next((str(each) for each in usual if os.access(each, os.X_OK)), None)


def add_command(claude: str, scope: str, name: str, entry: dict[str, Any]) -> list[str]:
    """Return the command that adds *entry*."""
    return [claude, "mcp", "add-json", "-s", scope, name, json.dumps(entry, ensure_ascii=False)]


def remove_command(claude: str, scope: str, name: str) -> list[str]:
    """Return the command that removes the server called *name*."""
    return [claude, "mcp", "remove", name, "-s", scope]


def run_claude(command: list[str], cwd: Path) -> None:
    """Run one of the commands above in the project *cwd*.

    Raises:
        ConfigError: It failed; says what it printed.
    """
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-500:]
        raise ConfigError(f"`claude mcp {command[2]}` failed ({done.returncode}): {said}")
