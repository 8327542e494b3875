"""Compare the files that Codex loads from a trusted project with the project's last commit.

A run that may write in a project can change what Codex executes there at the next run, outside
the sandbox: `.codex/config.toml` names MCP servers and programs (0.98.0 to 0.171.0), and
`.codex/rules` lets commands run outside the sandbox. Below the folder of the run, no sandbox
protects `.codex` (seen with 0.120.0 to 0.163.0).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from codex_tools.codex.errors import NotAllowed
from codex_tools.codex.masking import shorten
from codex_tools.codex.workers import on_disk
from codex_tools.worktree.git import find_git, run_git

CODEX_FOLDER = ".codex"

_NAMES_SHOWN = 3


async def find_uncommitted(files: Mapping[str, str], cwd: Path) -> NotAllowed | None:
    """Return an excess if a file of *files* is not as in the last commit; None if all are.

    git only lists the commit: to compare the files itself, it would run the repository's filters.

    Args:
        files: The absolute paths, each with the id that git would give the content.
        cwd: The folder of the turn.
    """
    if not files:
        return None
    committed = await _committed(files, cwd)
    if committed is None:
        problem = "git cannot say what of it is committed"
    else:
        changed = sorted(path for path, id_ in files.items() if committed.get(path) != id_)
        if not changed:
            return None
        shown = ", ".join(changed[:_NAMES_SHOWN])
        more = f" and {len(changed) - _NAMES_SHOWN} more" if len(changed) > _NAMES_SHOWN else ""
        problem = f"not as in the last commit: {shorten(shown, 300)}{more}"
    return NotAllowed(
        "a trusted project with a changed .codex folder",
        problem,
        "--project-config",
        "Codex runs the programs that these files name outside the sandbox, with your rights",
    )


async def _committed(files: Mapping[str, str], cwd: Path) -> dict[str, str] | None:
    """Return the paths in the last commit with their ids, for the folders of *files*."""
    git = await on_disk(find_git, cwd)
    if git is None:
        return None
    folders = sorted({path[: path.index(f"/{CODEX_FOLDER}")] for path in files})
    committed: dict[str, str] = {}
    for folder in folders:
        args = ("ls-tree", "-r", "-z", "HEAD", "--", CODEX_FOLDER)
        listing = await run_git(git, Path(folder), args)
        if listing is None:
            return None
        for entry in listing.split(b"\0"):
            head, _, name = entry.partition(b"\t")
            words = head.decode("ascii", "replace").split()
            # A link's id is that of its target's name.
            if len(words) == 3 and words[0] in ("100644", "100755"):
                committed[f"{folder}/{os.fsdecode(name)}"] = words[2]
    return committed


def describe_config(paths: Sequence[str]) -> str | None:
    """Return a warning if one of the changed *paths* is inside a `.codex` folder."""
    inside = [path for path in paths if f"/{CODEX_FOLDER}/" in f"/{path}"]
    if not inside:
        return None
    more = f" and {len(inside) - _NAMES_SHOWN} more" if len(inside) > _NAMES_SHOWN else ""
    return (
        f"This run changed {', '.join(inside[:_NAMES_SHOWN])}{more}. Codex loads such files in"
        " later runs, and may run programs that they name outside the sandbox: look at them first."
    )
