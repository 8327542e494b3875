"""Find the project of which a folder in this server's state folder is a copy.

Codex records the folder of a turn in the thread's rollout. For an isolated run that is
STATE/trees/KEY/copies/ID/NAME, or a folder below it. At another place, STATE/worker of that place
stands for STATE. The file STATE/trees/KEY/root names the project. It is kept when the copy is gone,
so that the thread stays one of the project.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from codex_tools.codex.foreign_file import read_foreign

T = TypeVar("T")

_INSIDE = re.compile(r"([0-9a-f]{24})/copies/([0-9a-f-]{1,64})/([^/]+)(?:/(.*))?", re.DOTALL)

_AT_PLACE = "/worker/trees/"
"""What is in the path of a copy at another place, before the key that the project has here."""

_PATH_BYTES = 65_536
"""Maximum bytes of a file that names a project; a path of Linux has at most 4,096."""


@dataclass(frozen=True, slots=True)
class CopyPlace:
    """A folder in a copy, and what it stands for."""

    root: Path
    """The project's folder."""
    copy: str
    """The id of the copy."""
    cwd: Path
    """The folder in the project."""


def find_copy(state_dir: Path | None, cwd: str | None) -> CopyPlace | None:
    """Return what the folder *cwd* is a copy of; None if it is not in a copy of *state_dir*.

    This reads a file if the path is one of a copy.
    """
    if state_dir is None or cwd is None:
        return None
    trees = _trees(os.fspath(state_dir))
    if cwd.startswith(trees):
        found = _INSIDE.fullmatch(cwd[len(trees) :])
    else:
        found = _INSIDE.fullmatch(cwd.partition(_AT_PLACE)[2])
    if found is None or ".." in cwd.split("/"):
        return None
    try:
        text = read_foreign(Path(trees, found[1], "root"), _PATH_BYTES, owned=True)
    except (OSError, ValueError):
        return None
    root = Path(os.fsdecode(text))
    if not root.is_absolute():
        return None
    return CopyPlace(root, found[2], root / (found[4] or ""))


def project_folder(state_dir: Path | None, cwd: str | None) -> str | None:
    """Return the folder in the project that *cwd* is a copy of; *cwd* itself if it is no copy."""
    found = find_copy(state_dir, cwd)
    return cwd if found is None else str(found.cwd)


def at_home(state_dir: Path | None, files: Mapping[str, T]) -> dict[str, T]:
    """Return *files* with each path in a copy replaced by that in the project.

    Of two paths that become the same, the later one counts.
    """
    return {project_folder(state_dir, path) or path: each for path, each in files.items()}


@functools.lru_cache(maxsize=16)
def _trees(state_dir: str) -> str:
    """Return the beginning of each copy's path; Codex records paths without links."""
    return f"{os.path.realpath(state_dir)}/trees/"
