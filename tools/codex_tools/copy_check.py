"""Check whether the project of an isolated run may be copied, and say what is not isolated."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from codex_tools.codex.errors import InvalidArguments
from codex_tools.codex.paths import holds, project_root
from codex_tools.codex.sandbox import Sandbox, is_open_to_commands


def check_copy(
    cwd: Path,
    sandbox: Sandbox,
    prompt: str,
    add_dirs: Iterable[Path],
    *,
    state_dir: Path | None,
    guarded: Iterable[tuple[Path | None, str]],
) -> list[str]:
    """Check that the project of *cwd* may be copied; return warnings about what is not isolated.

    This accesses the disk.

    Args:
        cwd: The folder of the turn.
        sandbox: Its sandbox.
        prompt: Its prompt.
        add_dirs: Its extra folders.
        state_dir: The folder that holds the copies.
        guarded: Folders that are not copied, each with its name.

    Raises:
        InvalidArguments: The project is a part of this server's folders, or contains one of them
            or the home folder, or commands of other runs could write to the copies.
    """
    root = project_root(cwd)
    for place, name in guarded:
        if place is not None and holds(root, place):
            why = f"{root} contains {name}, so it is not copied; give a cwd in a smaller project"
            raise InvalidArguments([f"isolation: {why}"])
    if state_dir is not None and holds(state_dir, root):
        raise InvalidArguments(
            [f"isolation: {root} is inside this server's state folder; give the project's folder"]
        )
    if state_dir is not None and is_open_to_commands(state_dir):
        raise InvalidArguments(
            [
                f"isolation: copies would be in {state_dir}, where commands of every run can write,"
                " so another run could change what codex_apply brings to the project. The operator"
                " can set a folder outside of the temporary folders with --state-dir; isolation"
                " none works without that"
            ]
        )
    warnings: list[str] = []
    if sandbox == "danger-full-access":
        warnings.append(
            "isolation: with sandbox danger-full-access, nothing keeps Codex inside its copy."
        )
    outside = [str(each) for each in add_dirs if not each.is_relative_to(root)]
    if outside and sandbox != "read-only":
        warnings.append(
            f"isolation: {', '.join(outside)} is outside the project, so Codex writes there"
            " directly."
        )
    if any(_names(prompt, folder) for folder in {str(root), str(cwd)}):
        warnings.append(
            f"isolation: the prompt names {root}, but Codex works in a copy of it elsewhere. Use"
            " relative paths."
        )
    return warnings


def _names(prompt: str, folder: str) -> bool:
    """Return True if *prompt* holds the path *folder*, or a path below it."""
    return re.search(rf"(?<![\w/.-]){re.escape(folder)}(?![\w-]|\.\w)", prompt) is not None
