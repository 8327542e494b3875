"""Open and read files that another program wrote, without waiting and within limits.

A named pipe blocks the thread that opens it, a device may never end, and a sparse file of many
gigabytes takes no disk space to make. All of these can have the name of a file that is expected.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

HOLE_LIMIT = 64 * 1024 * 1024
"""Bytes of the largest file that may be sparse; Codex and this server write no holes."""

_READ = 1024 * 1024


def open_foreign(path: str | Path, *, follow: bool = False, owned: bool = False) -> int:
    """Open a regular file for reading and return its descriptor; never block.

    Args:
        path: The file.
        follow: True if a person may have replaced the file itself by a link, as with
            config.toml. Links in the folders above are always followed.
        owned: True to refuse a file of another user.

    Raises:
        OSError: The file cannot be opened, is not a regular file, or is a large sparse file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if owned and state.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
        if state.st_size > HOLE_LIMIT and _has_hole(fd, state.st_size):
            raise OSError(errno.EINVAL, "a sparse file", str(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_foreign_file(path: str | Path, *, follow: bool = False, owned: bool = False) -> BinaryIO:
    """Return the file that `open_foreign` opens as a buffered binary file.

    Raises:
        OSError: See `open_foreign`.
    """
    return os.fdopen(open_foreign(path, follow=follow, owned=owned), "rb")


def read_foreign(
    path: str | Path, limit: int, *, follow: bool = False, owned: bool = False
) -> bytes:
    """Return the content of a file that `open_foreign` opens.

    Raises:
        OSError: The file cannot be opened, or has more than *limit* bytes.
    """
    with open_foreign_file(path, follow=follow, owned=owned) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"more than {limit:,} bytes", str(path))
    return data


def bounded_lines(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """Yield the lines of *file*; leave out each line of more than *limit* bytes."""
    while line := file.readline(limit + 1):
        if len(line) <= limit:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_READ)


def _has_hole(fd: int, size: int) -> bool:
    """Return True if the file has a hole; False also where the system cannot tell."""
    seek_hole = getattr(os, "SEEK_HOLE", None)
    if seek_hole is None:
        return False
    try:
        found = os.lseek(fd, 0, seek_hole)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        return False
    return found < size
