"""Lock threads, so that each has one run at a time across all servers on this machine.

Codex itself refuses a second writer since 0.147. In earlier versions both write, and the thread's
history stays interleaved permanently.

The lock files are in CODEX_HOME, because servers with different state folders may use one home.
A command in a sandbox that cannot write to CODEX_HOME cannot hold a lock either (codex/file_lock).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
from pathlib import Path

import anyio

from codex_tools.codex.errors import ThreadBusy
from codex_tools.codex.file_lock import lock, open_lock
from codex_tools.codex.paths import lock_folders
from codex_tools.codex.private_folder import claim_folder
from codex_tools.codex.workers import on_disk

logger = logging.getLogger(__name__)

_TRIES = 100
"""Most times that a lock file may be removed, by its previous holder, while it is being locked."""

_THREAD_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


class ThreadLock:
    """A held lock; a child process that inherits `fd` holds the lock as well.

    The kernel releases the lock when the last holder has closed it or died. A killed server
    therefore leaves no thread locked.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self.fd = fd

    @classmethod
    def take(cls, home: Path, state_dir: Path, thread_id: str) -> ThreadLock:
        """Lock *thread_id* without waiting.

        Args:
            home: The Codex home that contains the thread.
            state_dir: The folder for the lock if *home* is read-only. Earlier builds of this
                server lock their threads there.
            thread_id: The id of the thread.

        Raises:
            ThreadBusy: Another run holds the lock.
            OSError: Neither folder can be used.
        """
        name = thread_id
        if _THREAD_ID.fullmatch(thread_id) is None:  # Codex chooses it, and could name a path.
            name = hashlib.sha256(thread_id.encode("utf-8", "replace")).hexdigest()
        usual, fallback, old = lock_folders(home, state_dir)
        _check_old_lock(old / f"{name}.lock", thread_id)
        try:
            if not home.is_dir():
                raise FileNotFoundError(errno.ENOENT, "no such folder", str(home))
            return cls._take_in(usual, name, thread_id)
        except OSError as error:
            logger.info("cannot lock %s in %s: %s", thread_id, home, error.strerror)
            return cls._take_in(fallback, name, thread_id)

    @classmethod
    def _take_in(cls, folder: Path, name: str, thread_id: str) -> ThreadLock:
        claim_folder(folder, follow=False)
        path = folder / f"{name}.lock"
        for _ in range(_TRIES):
            fd = open_lock(path)
            try:
                if not lock(fd):
                    raise ThreadBusy(thread_id)
                # The previous holder may have removed the file after it was opened here.
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return cls(path, fd)
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise ThreadBusy(thread_id)

    def release(self) -> None:
        """Remove the lock file and release the lock."""
        try:
            self._path.unlink(missing_ok=True)
        finally:
            os.close(self.fd)


async def take_lock(home: Path, state_dir: Path, thread_id: str) -> ThreadLock:
    """Lock a thread in a worker thread; see `ThreadLock.take`."""
    with anyio.CancelScope(shield=True):  # A cancelled take leaves a lock without an owner.
        return await on_disk(ThreadLock.take, home, state_dir, thread_id)
    raise AssertionError("a shielded scope is not cancelled")


def release_all(locks: list[ThreadLock]) -> None:
    """Release *locks* and empty the list."""
    while locks:
        locks.pop().release()


def _check_old_lock(path: Path, thread_id: str) -> None:
    """Check that no server of an earlier build, still running after an upgrade, holds *path*.

    Raises:
        ThreadBusy: Such a server holds it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ThreadBusy(thread_id) from None
    except OSError:
        pass
    finally:
        os.close(fd)
