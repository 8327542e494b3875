"""Expand, normalise and compare paths, and find programs and Codex's home folder."""

from __future__ import annotations

import os
import shutil
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


def file_stamp(path: Path) -> tuple[int, ...] | None:
    """Return numbers that change when a file is written or replaced; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


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


def find_program(name: str, search_path: str, untrusted: Sequence[Path]) -> str | None:
    """Return the path of the program *name* on *search_path*; None if there is none.

    A program is skipped if it or its folder is inside one of the folders *untrusted*, or if its
    folder is relative: a sandboxed command may have written it there.

    Args:
        name: The program's name.
        search_path: Folders, as in PATH.
        untrusted: Folders whose links are resolved.
    """
    for folder in search_path.split(os.pathsep):
        if not folder.startswith("/"):
            continue
        found = shutil.which(name, path=folder)
        if found is not None and not any(
            Path(os.path.realpath(each)).is_relative_to(outer)
            for each in (folder, found)
            for outer in untrusted
        ):
            return found
    return None


def trusted_path(search_path: str, untrusted: Sequence[Path]) -> str:
    """Return *search_path* without the folders that `find_program` would skip.

    Codex finds git and other programs on PATH, and runs them outside its sandbox. The root of the
    file system makes no folder untrusted: it contains all programs.
    """
    outer = [folder for each in untrusted if (folder := each.resolve()) != Path("/")]
    trusted = os.pathsep.join(
        folder
        for folder in search_path.split(os.pathsep)
        if folder.startswith("/")
        and not any(Path(os.path.realpath(folder)).is_relative_to(each) for each in outer)
    )
    return trusted or os.defpath  # An empty PATH means the current folder.


def repository_around(cwd: Path) -> Path | None:
    """Return the nearest of *cwd* and the folders above that has an entry .git."""
    around = (folder for folder in (cwd, *cwd.parents) if os.path.lexists(folder / ".git"))
    return next(around, None)


def project_root(cwd: Path) -> Path:
    """Return the top of the git work tree around *cwd*; *cwd* itself if there is none.

    An empty .git does not count: a sandboxed Codex leaves one in the system's temporary folder.
    """
    for folder in (cwd, *cwd.parents):
        git = folder / ".git"
        if git.is_file() or (git / "HEAD").exists():
            return folder
    return cwd


def is_same(one: Path, other: Path) -> bool:
    """Return True if both paths are the same folder, even by another mount or letter case."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def holds(folder: Path, place: Path) -> bool:
    """Return True if *place* is *folder* or a path below it."""
    return any(is_same(folder, each) for each in (place, *place.parents))
