"""Say what a worker has to work with, for the doctor of the server: git, disk, login, clock."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import anyio

from codex_tools.codex.json_object import Json
from codex_tools.codex.masking import mask, quote
from codex_tools.codex.program import Program
from codex_tools.codex.workers import on_disk
from codex_tools.engines.config_layers import read_config
from codex_tools.engines.environment import EnvironmentRules, environment_for_codex
from codex_tools.engines.guard_lease import GuardLease
from codex_tools.engines.process import open_child

WITHIN_S = 20.0
"""Maximum seconds for each program that is asked."""

_SAID = 300


async def examine(
    program: Program, home: Path, state_dir: Path, rules: EnvironmentRules, lease: GuardLease | None
) -> Json:
    """Return what this machine has; nothing secret.

    Args:
        program: Codex.
        home: CODEX_HOME.
        state_dir: The folder for copies.
        rules: The rules for Codex's environment.
        lease: The lease of the programs that are asked.
    """
    env = await on_disk(
        lambda: environment_for_codex(
            os.environ, rules, read_config(home), depth=1, search_path=program.search_path
        )
    )
    git = await on_disk(shutil.which, "git")
    has_git, git_said = await _ask([git, "--version"], env, lease) if git else (None, "")
    login, login_said = await _ask([str(program.path), "login", "status"], env, lease)
    disk = await on_disk(shutil.disk_usage, state_dir)
    return {
        "git": git_said if has_git == 0 else "",
        "login": login,
        "login_said": login_said,
        "has_key": any(name in env for name in ("CODEX_API_KEY", "CODEX_ACCESS_TOKEN")),
        "home": str(home),
        "state_dir": str(state_dir),
        "free_mb": disk.free // (1024 * 1024),
        "python": sys.version.split()[0],
        "time": time.time(),
    }


async def _ask(
    argv: list[str], env: dict[str, str], lease: GuardLease | None
) -> tuple[int | None, str]:
    """Return the exit code of a program and what it printed; None if it did not end."""
    out: list[bytes] = []
    try:
        with anyio.fail_after(WITHIN_S):
            async with open_child(argv, stdin=b"", cwd=Path("/"), env=env, lease=lease) as child:
                async for piece in child.pieces():
                    out.append(piece[:_SAID])
                    del out[3:]
                code = await child.wait()
                said = b"".join(out).decode("utf-8", "replace") + child.stderr_end()
                return code, quote(mask(said).strip(), _SAID)
    except (TimeoutError, OSError) as error:
        return None, str(error) or f"no answer within {WITHIN_S:g} s"
