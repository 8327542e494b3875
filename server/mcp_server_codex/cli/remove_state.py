"""`mcp-server-codex uninstall --state`: delete what this server keeps on disk, and nothing else."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from codex_tools.codex.clean_text import clean_lines
from codex_tools.codex.file_lock import is_locked
from codex_tools.pricing.catalog import cache_folder
from mcp_server_codex.cli.command import Argument, Form, read_command_line

FORM = Form(
    name="uninstall --state",
    about=(
        "Delete the state folder (runs, their results, index, audit log) and the cache of prices."
        " Codex's own threads stay. Name another state folder with --state-dir."
    ),
    arguments=(
        Argument("print", "show what would be deleted; change nothing", "flag"),
        Argument("force", "delete the copies of isolated runs too", "flag"),
    ),
)

_NAMES = (
    *("audit.jsonl", "audit.*.jsonl", "audit.lock", "history"),
    *("keys", "locks", "runs", "scratch", "servers", "spending"),
    *("thread-locks", "told", "trees"),
)
"""What this server writes into its state folder. Other files there are left alone."""


def remove_state(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    line = read_command_line(FORM, arguments)
    state, dry = line.settings.state_dir, bool(line.values.get("print"))
    if any(_is_locked(lock) for lock in (state / "servers").glob("*.lock")):
        return _complain(f"a server is at work with {state}; end the MCP clients first")
    copies = [*state.glob("trees/*/copies/*")]
    if copies and not dry and not line.values.get("force"):
        return _complain(
            f"{len(copies)} isolated runs have a copy of their project in {state}, maybe with"
            " changes that were never applied. `mcp-server-codex runs` lists them; --force deletes"
            " them too"
        )
    found = [path for name in _NAMES for path in sorted(state.glob(name))]
    if (prices := cache_folder()).is_dir():
        found += sorted(prices.glob("prices-*.jsonl"))
    if not found:
        _say(f"Nothing to delete in {state}.")
        return 0
    for path in found:
        _say(f"{'would delete' if dry else 'deleted'} {path}")
        if not dry:
            _delete(path)
    for folder in (state, prices):
        if not dry and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return 0


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_locked(fd)
    finally:
        os.close(fd)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _complain(problem: str) -> int:
    sys.stderr.write(clean_lines(f"mcp-server-codex uninstall --state: {problem}.") + "\n")
    return 1


def _say(text: str) -> None:
    sys.stdout.write(clean_lines(text) + "\n")
