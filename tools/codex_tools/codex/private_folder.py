"""Make folders that only this user can use, and that Codex's sandbox cannot write to."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path


def claim_folder(folder: Path, *, follow: bool = True) -> None:
    """Create *folder* if it is missing, and take away all rights of other users.

    Another user who owns the folder, or could write to it, could plant results and locks.

    Args:
        folder: The folder.
        follow: True if the folder itself may be a link.

    Raises:
        OSError: The folder cannot be used, or belongs to another user.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = _open_own(folder, follow)
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def check_folder(folder: Path, *, follow: bool = True) -> None:
    """Check that no other user could have written into *folder*; change nothing.

    Args:
        folder: The folder.
        follow: True if the folder itself may be a link.

    Raises:
        OSError: The folder is missing or cannot be opened, or another user owns it or may write
            to it.
    """
    fd = _open_own(folder, follow)
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o022:
            raise PermissionError(errno.EPERM, "other users may write to it", str(folder))
    finally:
        os.close(fd)


def _open_own(folder: Path, follow: bool) -> int:
    """Open a folder that is this user's alone, and return its descriptor.

    Raises:
        OSError: It cannot be opened, belongs to another user, or is shared by several users.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(folder, flags if follow else flags | os.O_NOFOLLOW)
    state = os.fstat(fd)
    problem = ""
    if state.st_uid != os.geteuid():
        problem = "it belongs to another user"
    elif state.st_mode & stat.S_ISVTX:
        problem = "it is shared by several users"
    if problem:
        os.close(fd)
        raise PermissionError(errno.EPERM, problem, str(folder))
    return fd


def make_private_folder() -> tuple[Path, bool]:
    """Make a new folder in which no sandboxed command can write.

    It is not in the system's temp folder, where commands in Codex's sandbox workspace-write can
    write (0.60.1 to 0.171.0), unless no other place can be used.

    Returns:
        The folder, and True if commands can write there all the same.

    Raises:
        OSError: No folder can be made anywhere.
    """
    for place in _places():
        try:
            return Path(tempfile.mkdtemp(prefix="mcp-server-codex-", dir=place)), False
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="mcp-server-codex-")), True


class StandIn:
    """A new private folder in place of one that cannot be used; this process's end removes it."""

    def __init__(self) -> None:
        """Make the folder.

        Raises:
            OSError: No folder can be made anywhere.
        """
        self.path, self.is_exposed = make_private_folder()
        self._end = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def remove(self) -> None:
        """Delete the folder and its content."""
        self._end()


def _places() -> Iterator[Path]:
    """Yield the existing folders of this user in which a sandbox cannot write."""
    found = [os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.geteuid()}"]
    if sys.platform.startswith("linux"):
        found.append("/dev/shm")
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.expanduser raises where there is none
    found += [os.path.join(home, ".cache"), os.path.join(home, "Library", "Caches"), home]  # noqa: PTH118
    exposed = [Path(each).resolve() for each in ("/tmp", tempfile.gettempdir())]
    for text in found:
        place = Path(text)
        if place.is_absolute() and place.is_dir():
            real = place.resolve()
            if not any(real.is_relative_to(each) for each in exposed):
                yield real
