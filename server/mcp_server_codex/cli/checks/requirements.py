"""What the server needs besides Codex: git, a place for its files, limits that fit."""

from __future__ import annotations

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
"""Bytes; the server keeps half of it at most, Codex's own doctor calls less than this a fault."""

_FOREIGN_RUN = ("CODEX_THREAD_ID", "CODEX_CI", "CODEX_SANDBOX", "CODEX_SANDBOX_NETWORK_DISABLED")
"""Variables that Codex sets for the commands that it runs (seen on 0.98 to 0.169)."""


async def check_git(examination: CheckContext) -> list[Check]:
    """See whether there is git, and whether the current folder is in a repository."""
    git = shutil.which("git", path=examination.environ.get("PATH"))
    if git is None:
        return [
            warning(
                "git",
                "git is not on PATH. Codex works without it, but no better for it, and the changes"
                " that a run has made to a repository cannot be told.",
                "brew install git" if sys.platform == "darwin" else "sudo apt-get install git",
            )
        ]
    env, cwd = examination.environ, examination.cwd.resolve()
    version = await ask(git, "--version", env=env, cwd=cwd)
    inside = await ask(git, "rev-parse", "--show-toplevel", env=env, cwd=cwd)
    if version.returncode != 0:
        return [warning("git", f"{git} does not work: {version.stderr.strip()}", "git --version")]
    said = f"{version.stdout.strip()}, {git}."
    top = inside.stdout.strip()
    if inside.returncode == 0 and top:
        return [ok("git", f"{said} This folder is in the repository {top}.", repository=top)]
    said += " This folder is in no repository: Codex runs here with skip_git_repo_check: true only."
    return [ok("git", said, repository=None)]


def check_state(examination: CheckContext) -> list[Check]:
    """See whether the server can keep its files."""
    folder = examination.settings.state_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
                f"The server cannot keep its files in {folder}: {reason}.",
                "Name another folder: --state-dir DIR, or MCP_SERVER_CODEX_STATE_DIR in the"
                " client's entry",
                path=str(folder),
            )
        ]
    return [*_state_findings(folder, mode)]


def _state_findings(folder: Path, mode: str) -> Iterator[Check]:
    shown, free = shlex.quote(str(folder)), shutil.disk_usage(folder).free
    said = f"{folder} can be written"
    if damaged := [*_damaged_indexes(folder)]:
        names = ", ".join(path.name for path in damaged)
        said += f"; the index {names} is damaged, and will be built anew when it is needed"
    about = {"path": str(folder), "free_bytes": free, "journal_mode": mode}
    if folder.stat().st_mode & 0o077:
        message = f"{said}, but other users may look into it."
        yield warning("state_dir", message, f"chmod 700 {shown}", **about)
    elif mode != "wal":
        message = f"{said}, but SQLite cannot share files there (journal mode {mode})."
        yield warning("state_dir", message, "Name a folder on a local disk: --state-dir DIR")
    else:
        yield ok("state_dir", f"{said}.", **about)
    if free < LOW_ON_SPACE:
        message = f"Only {free // 1024**2:,} MiB are free where {folder} lies."
        yield warning("disk", message, f"Make room there; what is it full of: du -xh {shown}/..")


def _damaged_indexes(folder: Path) -> Iterator[Path]:
    for path in sorted((folder / "history").glob("*.sqlite")):
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2)) as db:
                schema_of(db)
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            continue  # Somebody else is at work in it.
        except sqlite3.DatabaseError:
            yield path


def check_policy(examination: CheckContext) -> list[Check]:
    """Say what callers may ask for."""
    policy = examination.settings.policy
    where = ", ".join(map(str, policy.roots)) if policy.roots else "any folder"
    said = f"Callers may have up to {policy.max_sandbox} ({policy.default_sandbox} unless they ask)"
    said += f" in {where}, {examination.settings.max_runs} runs at once."
    about = {
        "default_sandbox": policy.default_sandbox,
        "max_sandbox": policy.max_sandbox,
        "roots": [str(root) for root in policy.roots],
    }
    cwd = examination.cwd.resolve()
    if policy.roots and not any(cwd.is_relative_to(root) for root in policy.roots):
        said += " The current folder is not among them: callers have to name cwd."
    return [ok("policy", said, **about)]


def check_nesting(examination: CheckContext) -> list[Check]:
    """Say whether this is inside a run of Codex already."""
    limit = examination.settings.policy.max_depth
    depth = find_depth(examination.environ)
    if depth:
        more = "a server here may start further ones" if depth < limit else "codex_run is refused"
        said = f"This is inside {depth} of this server's runs of at most {limit}: {more}."
        return [ok("nesting", said, depth=depth, max_depth=limit)]
    if named := [name for name in _FOREIGN_RUN if os.environ.get(name)]:
        said = f"This seems to be inside a run of Codex ({', '.join(named)} set): its sandbox may"
        return [ok("nesting", f"{said} make checks fail that pass outside.", depth=0)]
    return [ok("nesting", "This is not inside a run of Codex.", depth=0, max_depth=limit)]
