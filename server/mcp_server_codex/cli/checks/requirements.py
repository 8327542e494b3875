"""Check what the server needs besides Codex: git, a state folder, limits that fit."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from codex_tools.engines.nesting import find_depth
from codex_tools.history.tables import open_database, schema_of
from mcp_server_codex.cli.checks.check import Check, ok, problem, warning
from mcp_server_codex.cli.checks.context import CheckContext, ask

LOW_ON_SPACE = 1024**3
"""Bytes of free disk space below which the check warns.

The server keeps files of half this size at most. Codex's own doctor reports less
free space than this as a fault.
"""

_FOREIGN_RUN = ("CODEX_THREAD_ID", "CODEX_CI", "CODEX_SANDBOX", "CODEX_SANDBOX_NETWORK_DISABLED")
"""Variables that Codex sets for the commands that it runs (seen on 0.98 to 0.169)."""


async def check_git(context: CheckContext) -> list[Check]:
    """Check that git works, and whether the current folder is in a repository."""
    git = shutil.which("git", path=context.environ.get("PATH"))
    if git is None:
        return [
            warning(
                "git",
                "git is not on PATH. Codex works without git, but less well, and this server cannot"
                " report the changes that a run makes to a repository.",
                "brew install git" if sys.platform == "darwin" else "sudo apt-get install git",
            )
        ]
    env, cwd = context.environ, context.cwd.resolve()
    version = await ask(git, "--version", env=env, cwd=cwd)
    inside = await ask(git, "rev-parse", "--show-toplevel", env=env, cwd=cwd)
    if version.returncode != 0:
        return [
            warning(
                "git",
                f"{git} failed: {version.stderr.strip()}",
                "Repair git. To test it: git --version",
            )
        ]
    message = f"{version.stdout.strip()}, {git}."
    top = inside.stdout.strip()
    if inside.returncode == 0 and top:
        return [
            ok("git", f"{message} The current folder is in the repository {top}.", repository=top)
        ]
    message += " The current folder is in no repository: here a run needs"
    message += " skip_git_repo_check: true."
    return [ok("git", message, repository=None)]


def check_state(context: CheckContext) -> list[Check]:
    """Check that the server can write its state folder."""
    folder = context.settings.state_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))
        with tempfile.TemporaryDirectory(dir=folder, prefix="doctor-") as place:
            path = Path(place) / "try.sqlite"
            with closing(open_database(path)) as db:
                db.execute("CREATE TABLE try (it)")
                mode = db.execute("PRAGMA journal_mode").fetchone()[0]
    except (OSError, sqlite3.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return [
            problem(
                "state_dir",
                f"The server cannot write its state folder {folder}: {reason}.",
                "Name another folder in the client's entry: --state-dir DIR, or the variable"
                " MCP_SERVER_CODEX_STATE_DIR",
                path=str(folder),
            )
        ]
    return [*_state_findings(folder, mode)]


def _state_findings(folder: Path, mode: str) -> Iterator[Check]:
    shown, free = shlex.quote(str(folder)), shutil.disk_usage(folder).free
    state = f"{folder} can be written"
    if damaged := [*_damaged_indexes(folder)]:
        names = ", ".join(path.name for path in damaged)
        state += f"; the index {names} is damaged and will be rebuilt at its next use"
    about = {"path": str(folder), "free_bytes": free, "journal_mode": mode}
    if folder.stat().st_mode & 0o077:
        message = f"{state}, but other users have access to the folder."
        yield warning("state_dir", message, f"chmod 700 {shown}", **about)
    elif mode != "wal":
        message = f"{state}, but SQLite cannot share files there (journal mode {mode}, not wal)."
        yield warning("state_dir", message, "Name a folder on a local disk: --state-dir DIR")
    else:
        yield ok("state_dir", f"{state}.", **about)
    if free < LOW_ON_SPACE:
        message = f"Only {free // 1024**2:,} MiB are free on the disk of {folder}"
        message += f" (recommended: {LOW_ON_SPACE // 1024**2:,} MiB or more)."
        yield warning("disk", message, f"Free disk space. To find large files: du -xh {shown}/..")


def _damaged_indexes(folder: Path) -> Iterator[Path]:
    for path in sorted((folder / "history").glob("*.sqlite")):
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2)) as db:
                schema_of(db)
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            continue  # Another process is using the index.
        except sqlite3.DatabaseError:
            yield path


def check_folders(context: CheckContext) -> list[Check]:
    """Report where this server and Codex keep their files."""
    kept = {
        "runs and index": context.settings.state_dir,
        "audit log": context.settings.state_dir / "audit.jsonl",
        "prices": context.settings.policy.cache_dir,
        "threads": context.home / "sessions",
    }
    shown = "; ".join(f"{what} in {path}" for what, path in kept.items())
    message = f"{shown}. The server logs to stderr, which the client keeps."
    return [
        ok("folders", message[:1].upper() + message[1:], **{k: str(v) for k, v in kept.items()})
    ]


def check_policy(context: CheckContext) -> list[Check]:
    """Report the limits for callers."""
    policy = context.settings.policy
    where = ", ".join(map(str, policy.roots)) if policy.roots else "any folder"
    message = f"Callers may use sandboxes up to {policy.max_sandbox} (default:"
    message += f" {policy.default_sandbox}) in {where}, with up to {context.settings.max_runs}"
    message += " runs at once."
    about = {
        "default_sandbox": policy.default_sandbox,
        "max_sandbox": policy.max_sandbox,
        "roots": [str(root) for root in policy.roots],
    }
    cwd = context.cwd.resolve()
    if policy.roots and not any(cwd.is_relative_to(root) for root in policy.roots):
        message += " The current folder is outside of them, so callers must pass cwd."
    return [ok("policy", message, **about)]


def check_nesting(context: CheckContext) -> list[Check]:
    """Report whether the doctor itself was started inside a run of Codex."""
    limit = context.settings.policy.max_depth
    depth = find_depth(context.environ)
    if depth:
        runs = "1 run" if depth == 1 else f"{depth} nested runs"
        effect = "allowed" if depth < limit else "refused"
        message = f"This is inside {runs} of this server, and --max-depth is {limit}:"
        message += f" here codex_run is {effect}."
        return [ok("nesting", message, depth=depth, max_depth=limit)]
    if named := [name for name in _FOREIGN_RUN if os.environ.get(name)]:
        message = f"This seems to be inside a run of Codex ({', '.join(named)} set)."
        message += " Codex's sandbox can make checks fail that pass outside of it."
        return [ok("nesting", message, depth=0)]
    return [ok("nesting", "This is not inside a run of Codex.", depth=0, max_depth=limit)]
