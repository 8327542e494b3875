"""What `install` prints without changing a file: who is present, and an entry to add by hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from codex_tools.codex.clean_text import clean_lines
from mcp_server_codex.cli.clients.config_error import ConfigError
from mcp_server_codex.cli.clients.known import CLIENTS, ENVIRONMENT, NAME, Client
from mcp_server_codex.cli.clients.launch import find_command

BY_HAND = ("json", "continue")
"""What can be named instead of a client: a plain entry for any other client, and Continue, whose
file is YAML."""


def print_entry(name: str, options: list[str]) -> int:
    """Print the entry for a client that `install` does not know, and return the exit code."""
    command = find_command(os.environ)
    arguments = [*command[1:], *options]
    if name == "json":
        entry = {"command": command[0], "args": arguments, "env": ENVIRONMENT}
        sys.stdout.write(json.dumps({"mcpServers": {NAME: entry}}, indent=2, ensure_ascii=False))
        sys.stdout.write("\n")
        return 0
    # JSON values are YAML too.
    lines = [
        f"  - name: {NAME}",
        f"    command: {json.dumps(command[0])}",
        f"    args: {json.dumps(arguments)}",
        f"    env: {json.dumps(ENVIRONMENT)}",
    ]
    sys.stderr.write(
        "Continue: nothing was changed, because its file is YAML. Add this to"
        " ~/.continue/config.yaml:\n"
    )
    sys.stdout.write("mcpServers:\n" + "\n".join(lines) + "\n")
    return 0


def print_present() -> int:
    """Print which clients are on this machine and which have this server; return the exit code."""
    home, cwd = Path.home(), Path.cwd()
    present = [client for client in CLIENTS if client.is_present(home, os.environ)]
    for client in present:
        scopes = _scopes(client, home, cwd)
        done = f"has this server ({', '.join(scopes)})" if scopes else "mcp-server-codex install "
        _say(f"{client.title:24} {done}{'' if scopes else client.name}")
    if not present:
        _say("None of the clients that this command knows was found on this machine.")
    others = [client.name for client in CLIENTS if client not in present]
    _say(f"Not found: {', '.join(others)}." if others else "")
    _say("For any other client: mcp-server-codex install --print json")
    return 0


def _scopes(client: Client, home: Path, cwd: Path) -> list[str]:
    """Return the scopes in which *client* has this server."""
    found: list[str] = []
    for scope, file in client.config_paths(home, cwd).items():
        try:
            if client.find_named(file.read_text("utf-8"), scope, cwd) is not None:
                found.append(scope)
        except (OSError, ValueError, ConfigError):
            continue
    return found


def _say(text: str) -> None:
    if text:
        sys.stdout.write(clean_lines(text) + "\n")
