"""Lock threads, so that each has one run at a time across all servers on this machine.

Codex itself refuses a second writer since 0.147. In earlier versions both write, and the thread's
history stays interleaved permanently.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from codex_tools.codex.errors import ThreadBusy


class ThreadLock:
    """A held lock; a child process that inherits `fd` holds the lock as well.

    The kernel releases the lock when the last holder has closed it or died. A killed server
    therefore leaves no thread locked.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self.fd = fd

    @classmethod
    def take(cls, state_dir: Path, thread_id: str) -> ThreadLock:
        """Lock *thread_id* without waiting.

        Raises:
            ThreadBusy: Another run holds the lock.
        """
        folder = state_dir / "locks"
        for each in (state_dir, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{thread_id}.lock"
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The previous holder may have removed the file after it was opened here.
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return cls(path, fd)
            except BlockingIOError:
                os.close(fd)
                raise ThreadBusy(thread_id) from None
            except FileNotFoundError:
                pass
            os.close(fd)

    def release(self) -> None:
        """Remove the lock file and release the lock."""
        self._path.unlink(missing_ok=True)
        os.close(self.fd)
