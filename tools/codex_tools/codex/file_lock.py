"""Lock files between processes so that a process that can only read them cannot hold the lock.

Any process that can open a file for reading can hold flock(2) on it, so a command in a read-only
sandbox could stop this server. A write lock of fcntl(2) takes a descriptor that is open for
writing. The lock files are write-only, so no user but root can open them for a read lock either.
No function here waits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

MODE = 0o200
"""Write-only: a process that can open the file for reading can hold a read lock on it."""

_BUSY = (errno.EAGAIN, errno.EACCES)


def open_lock(path: Path) -> int:
    """Open the lock file *path*, which is created if it is missing; return its descriptor.

    Raises:
        OSError: The file cannot be opened, or is not a regular file of this user.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, MODE)
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if stat.S_IMODE(state.st_mode) != MODE:
            os.fchmod(fd, MODE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def lock(fd: int) -> bool:
    """Lock the file for writing; return False if another process has a lock.

    The lock belongs to the open file, which child processes inherit, not to this process. Systems
    without such locks (macOS), and file systems without them, get flock(2).
    """
    return _lock(fd, 0, fcntl.LOCK_EX)


def lock_for_removal(fd: int) -> bool:
    """Keep others from locking the file until it is closed; return False if one has locked it.

    `is_locked` does not count this as a lock.
    """
    return _lock(fd, 1, fcntl.LOCK_SH)


def _lock(fd: int, start: int, otherwise: int) -> bool:
    try:
        if hasattr(fcntl, "F_OFD_SETLK"):
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _bytes_from(start, 0, fcntl.F_WRLCK))
                return True
            except OSError as error:
                if error.errno in _BUSY:
                    return False
        fcntl.flock(fd, otherwise | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def show_lock(fd: int) -> None:
    """Also hold flock(2) on a file locked here, if that is free.

    Earlier builds of this server ask for flock(2), and only with it does the kernel's list of
    locks name the process that holds the lock.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(fd: int) -> bool:
    """Return True if another open file has a write lock by `lock`, or by an earlier build.

    Only earlier builds, whose lock files can be read, are asked for flock(2).
    """
    if hasattr(fcntl, "F_OFD_GETLK"):
        try:
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _bytes_from(0, 1, fcntl.F_RDLCK))
            if struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK:
                return True
            if stat.S_IMODE(os.fstat(fd).st_mode) == MODE:
                return False
        except OSError:
            pass
    try:
        # Shared, so that two processes that ask do not take each other for the owner.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    return False


def _bytes_from(start: int, length: int, kind: int) -> bytes:
    """Return struct flock with a lock of *kind*; a *length* of 0 means all bytes from *start*."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
