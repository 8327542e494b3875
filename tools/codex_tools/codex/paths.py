"""Expand, normalise and compare paths, and find Codex's home folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def expand_home(path: str) -> str:
    """Return *path* with a leading "~" replaced by the home folder, if that is known."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser raises where there is none


def make_absolute(path: str) -> str:
    """Return *path* as an absolute path, with each ".." resolved and no link followed."""
    return os.path.abspath(path)  # noqa: PTH100 - no method of Path does all three


def codex_home() -> Path:
    """Return the folder where Codex keeps its files."""
    return Path(os.environ.get("CODEX_HOME") or Path.home() / ".codex")


def lock_folders(home: Path, state_dir: Path) -> tuple[Path, ...]:
    """Return the folders of this server's locks on the threads of *home*.

    The first one is used if it can be written to, else the second. Earlier builds used the last.
    """
    return home / "mcp-server-codex", state_dir / "thread-locks", state_dir / "locks"


def is_inside(cwd: str | None, folder: str) -> bool:
    """Return True if *cwd* is *folder* or a folder below it."""
    folder = folder.rstrip("/")
    return cwd is not None and (cwd.rstrip("/") == folder or cwd.startswith(f"{folder}/"))


def in_roots(cwd: str | None, roots: Sequence[Path]) -> bool:
    """Return True if the folder *cwd*, with its links resolved, is inside one of *roots*.

    Without roots every folder is. A folder that no longer exists is judged by its path, of which
    the existing part is resolved. This accesses the disk.
    """
    if not roots:
        return True
    if cwd is None:
        return False
    try:
        real = Path(os.path.realpath(cwd))
    except (OSError, ValueError):  # A null byte, or half a character.
        return False
    return any(real.is_relative_to(root) for root in roots)


def folder_names(cwd: str | None) -> tuple[str, ...]:
    """Return the names of the folder *cwd*: normalised as given, and with links resolved."""
    if cwd is None:
        return ()
    return tuple(dict.fromkeys((os.path.normpath(cwd), os.path.realpath(cwd))))
