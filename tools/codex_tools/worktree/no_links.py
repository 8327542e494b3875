"""Work on files below a folder by directory descriptors, so that no symbolic link is followed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_root(folder: Path) -> int:
    """Open the folder itself, by a path whose links were resolved before."""
    return os.open(folder, _FOLDER)


@contextmanager
def parent_of(root_fd: int, path: bytes, made: list[bytes] | None = None) -> Generator[int]:
    """Yield a descriptor of the folder that holds *path*.

    Args:
        root_fd: The folder that *path* is relative to.
        path: A path without "." and "..".
        made: Missing folders are made, and added to this list; None to make none.

    Raises:
        OSError: A part of the path is missing (ENOENT), or is a link or no folder (ENOTDIR, ELOOP).
    """
    fd = os.dup(root_fd)
    done = b""
    try:
        for part in path.split(b"/")[:-1]:
            done = done + b"/" + part if done else part
            if made is not None:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=fd)
                    made.append(done)
            inner = os.open(part, _FOLDER, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def read_at(fd: int, name: bytes, limit: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: It is not a regular file, cannot be read, or is larger than *limit*.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=fd), "rb") as opened:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError("not a regular file")
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"larger than {limit >> 20:,} MB")
    return content


def remove(fd: int, name: bytes) -> None:
    """Delete the file, link or folder *name* in the folder *fd*; do nothing if it is missing."""
    try:
        state = os.lstat(name, dir_fd=fd)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(state.st_mode):
        os.unlink(name, dir_fd=fd)
        return

    def open_up(function: Callable[..., object], path: object, info: object) -> None:
        del function, path, info

    shutil.rmtree(os.fsdecode(name), onerror=open_up, dir_fd=fd)
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):  # A folder without permissions.
            _open_folders(fd, name)
            shutil.rmtree(os.fsdecode(name), dir_fd=fd)


def _open_folders(fd: int, name: bytes) -> None:
    """Give this user all rights on a folder and the folders below it."""
    with suppress(OSError):
        os.chmod(name, 0o700, dir_fd=fd)
    inner = os.open(name, _FOLDER, dir_fd=fd)
    try:
        for each in os.listdir(inner):  # noqa: PTH208
            if stat.S_ISDIR(os.lstat(each, dir_fd=inner).st_mode):
                _open_folders(inner, os.fsencode(each))
    finally:
        os.close(inner)


def remove_others(fd: int, keeps: Callable[[bytes, bool], bool], below: bytes = b"") -> None:
    """Delete each file and folder below the folder *fd* that is not to be kept.

    Args:
        fd: An open folder.
        keeps: Tells for a path, and whether it is a real folder, if it stays.
        below: The path of *fd*, with a slash at its end unless it is empty.
    """
    with os.scandir(fd) as entries:
        listed = [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in entries]
    for name, is_folder in listed:
        path = below + name
        if not keeps(path, is_folder):
            remove(fd, name)
        elif is_folder:
            state = os.lstat(name, dir_fd=fd)
            if state.st_mode & 0o700 != 0o700:
                os.chmod(name, stat.S_IMODE(state.st_mode) | 0o700, dir_fd=fd)
            inner = os.open(name, _FOLDER, dir_fd=fd)
            try:
                remove_others(inner, keeps, path + b"/")
            finally:
                os.close(inner)


def remove_folder(folder: Path) -> None:
    """Delete *folder* with all that is in it, as far as possible."""
    with contextlib.suppress(OSError):
        fd = open_root(folder.parent)
        try:
            remove(fd, os.fsencode(folder.name))
        finally:
            os.close(fd)
