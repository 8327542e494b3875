"""Read the state of files below a folder, and compute git's ids of their contents.

git itself must not read the contents, because it would run filters, which are
programs that the repository names.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

READ_LIMIT = 16 * 1024 * 1024
"""Bytes of the largest file whose content is read."""

READ_TOTAL = 64 * 1024 * 1024
"""Bytes that are read in one scan; each file counts for at least _READ_COST.

A file beyond these limits counts as changed if its size or its mtime has changed.
"""

_READ_COST = 8 * 1024
"""Bytes that a small file counts for, because opening it takes time as well."""

_SETTLE_NS = 2_000_000_000
"""Nanoseconds during which a file may change again without a new ctime.

FAT stores times to 2 s, HFS+ to 1 s.
"""


_MOUNT_POINTS = (b".codex", b".agents", b".aws")
"""Paths that Codex's sandbox protects from commands; it creates those that do not exist."""


def is_mount_point(path: bytes, size: int) -> bool:
    """Return True if a new file of *size* bytes may be left over from Codex's sandbox.

    0.120.0 leaves an empty `.codex` in the folder of each run.
    """
    return size == 0 and path.rpartition(b"/")[2] in _MOUNT_POINTS


class GaveUp(Exception):
    """The tree is too large, time is up, or git's output has an unknown form."""


@dataclass(slots=True)
class File:
    """A file, a symbolic link, or the folder of a nested repository."""

    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    blob: bytes | None = None
    """git's id of the content, in hex; None if it is unknown."""
    tracked: bool = False
    """True if git's index holds the file."""
    is_read: bool = False
    """True if its content was read, because git's index has no valid id of it."""

    @property
    def kind(self) -> int:
        """The file type and the executable bit: the parts of a mode that git keeps."""
        return stat.S_IFMT(self.mode) | (self.mode & stat.S_IXUSR)

    @property
    def is_folder(self) -> bool:
        """True if it is the folder of a nested repository."""
        return stat.S_ISDIR(self.mode)

    def touched_since(self, taken_ns: int) -> bool:
        """Return True if it may have changed since *taken_ns* (nanoseconds since the epoch)."""
        return self.ctime_ns >= taken_ns - _SETTLE_NS


def folders_of(path: bytes) -> Iterator[bytes]:
    """Yield the folders that contain *path*, from the outermost to the innermost."""
    end = path.find(b"/")
    while end >= 0:
        yield path[:end]
        end = path.find(b"/", end + 1)


class Tree:
    """Access to the files below a folder that follows no symbolic link.

    Args:
        root: The folder.
        until: The time of `time.monotonic` at which the scan gives up. Contents are
            read only in the first half of the time that is left.
    """

    def __init__(self, root: bytes, until: float) -> None:
        self._root = root
        self._until = until
        now = time.monotonic()
        self._read_until = now + (until - now) / 2
        self._bytes_left = READ_TOTAL
        self._is_folder: dict[bytes, bool] = {}

    def find(self, path: bytes, *, repo: bool) -> File | None:
        """Return the file or symbolic link at *path*, or None if there is none.

        A folder is returned only if *repo* is true: if it may be a nested repository.

        Raises:
            GaveUp: Time is up.
        """
        if time.monotonic() > self._until:
            raise GaveUp
        if not self._has_real_folders(path):
            return None
        try:
            found = os.lstat(self._root + b"/" + path)
        except OSError:
            return None
        if stat.S_ISDIR(found.st_mode):
            return File(found.st_mode, 0, 0, 0, 0) if repo else None
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            return None
        return File(
            found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
        )

    def _has_real_folders(self, path: bytes) -> bool:
        """Return True if all folders of *path* are folders, not symbolic links."""
        folder = path.rpartition(b"/")[0]
        known = self._is_folder.get(folder)
        if known is None:
            known = self._is_folder[folder] = all(map(self._is_real_folder, folders_of(path)))
        return known

    def _is_real_folder(self, folder: bytes) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(self._root + b"/" + folder).st_mode)
        except OSError:
            return False

    def read(self, path: bytes, file: File, id_size: int = 40) -> bytes | None:
        """Return git's id of the content of *path*, without any filter.

        Returns None if the file cannot be read, is too large, or if the limits of this
        scan are used up.

        Args:
            path: The path below the root.
            file: Its state, as `find` returned it.
            id_size: The digits of an id: 40 for SHA-1, 64 for SHA-256.
        """
        cost = max(file.size, _READ_COST)
        if file.is_folder or file.size > READ_LIMIT or cost > self._bytes_left:
            return None
        if time.monotonic() > self._read_until:
            return None
        self._bytes_left -= cost
        where = self._root + b"/" + path
        try:
            if stat.S_ISLNK(file.mode):
                content = os.readlink(where)  # noqa: PTH115 - in bytes
            else:
                # The file may have been replaced since, for example by a FIFO without a
                # writer, whose opening would block.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                with os.fdopen(os.open(where, flags), "rb") as opened:
                    content = opened.read(READ_LIMIT)
        except OSError:
            return None
        digest = hashlib.sha256() if id_size == 64 else hashlib.sha1(usedforsecurity=False)
        digest.update(b"blob %d\0" % len(content))
        digest.update(content)
        return digest.hexdigest().encode()
