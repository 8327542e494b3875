"""The files below a folder: what they are, and git's ids of their contents.

The contents are read here and not by git, for which filters, which are programs,
might make others of them.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

READ_LIMIT = 16 * 1024 * 1024
"""The most bytes of a file that is read to know its content."""

READ_TOTAL = 64 * 1024 * 1024
"""The most bytes read in one look; a file costs _READ_COST at least.

A file beyond these limits has changed when its size or its mtime has.
"""

_READ_COST = 8 * 1024

_HOT_NS = 2_000_000_000
"""A file so young may change again and keep its ctime (FAT counts 2 s, HFS+ 1 s)."""


class GaveUp(Exception):
    """The tree is too large, or git says what is not understood."""


@dataclass(slots=True)
class File:
    """A file, a link, or the folder of a repo inside the repo."""

    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    blob: bytes | None = None
    """git's id of the content, in hex; None where that is not known."""
    tracked: bool = False

    @property
    def kind(self) -> int:
        """What it is, and whether it may be executed: all that git keeps of a mode."""
        return stat.S_IFMT(self.mode) | (self.mode & stat.S_IXUSR)

    @property
    def is_folder(self) -> bool:
        """Whether it is the folder of a repo."""
        return stat.S_ISDIR(self.mode)

    def touched_since(self, taken_ns: int) -> bool:
        """Return whether it may have changed since then, in ns since the epoch."""
        return self.ctime_ns >= taken_ns - _HOT_NS


def folders_of(path: bytes) -> Iterator[bytes]:
    """Yield the folders that *path* lies in, from the outermost to the innermost."""
    end = path.find(b"/")
    while end >= 0:
        yield path[:end]
        end = path.find(b"/", end + 1)


class Tree:
    """The files below a folder: no link is followed on the way to one."""

    def __init__(self, root: bytes, until: float) -> None:
        self._root = root
        self._until = until
        now = time.monotonic()
        self._read_until = now + (until - now) / 2
        self._left = READ_TOTAL
        self._is_folder: dict[bytes, bool] = {}

    def find(self, path: bytes, *, repo: bool) -> File | None:
        """Return the file or link at *path*, or the folder if that may be a *repo*.

        Raises:
            GaveUp: Time is up.
        """
        if time.monotonic() > self._until:
            raise GaveUp
        if not self._has_folder_of(path):
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

    def _has_folder_of(self, path: bytes) -> bool:
        folder = path.rpartition(b"/")[0]
        known = self._is_folder.get(folder)
        if known is None:
            known = self._is_folder[folder] = all(map(self._is_real, folders_of(path)))
        return known

    def _is_real(self, folder: bytes) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(self._root + b"/" + folder).st_mode)
        except OSError:
            return False

    def read(self, path: bytes, file: File, id_size: int = 40) -> bytes | None:
        """Return git's id of the content, before any filter; None if it costs too much."""
        cost = max(file.size, _READ_COST)
        if file.is_folder or file.size > READ_LIMIT or cost > self._left:
            return None
        if time.monotonic() > self._read_until:
            return None
        self._left -= cost
        where = self._root + b"/" + path
        try:
            if stat.S_ISLNK(file.mode):
                content = os.readlink(where)  # noqa: PTH115 - in bytes
            else:
                # What is there now may be another thing, say a pipe that nobody feeds.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                with os.fdopen(os.open(where, flags), "rb") as opened:
                    content = opened.read(READ_LIMIT)
        except OSError:
            return None
        known = hashlib.sha256() if id_size == 64 else hashlib.sha1(usedforsecurity=False)
        known.update(b"blob %d\0" % len(content))
        known.update(content)
        return known.hexdigest().encode()
