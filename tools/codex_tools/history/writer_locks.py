"""Find the threads that some process is writing to now, by their write locks.

Codex since about 0.147 locks `$CODEX_HOME/thread-writer-locks/<id>.lock` with flock(2) while it
has a thread open (seen on 0.163.0 and 0.169.0). The file may remain, unlocked. This server has
locks of its own (runs/thread_lock.py), with fcntl(2). Testing a lock by taking it would make Codex
fail to start, so the kernel's list of locks is read instead. Without such a list (macOS), no lock
is known.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from codex_tools.codex.paths import lock_folders

_LOCKS = Path("/proc/locks")


class WriterLocks:
    """The write locks of all threads, read from the kernel at the first call of `holds`."""

    def __init__(self, home: Path, state_dir: Path) -> None:
        self._theirs = home / "thread-writer-locks"
        self._ours = lock_folders(home, state_dir)

    @property
    def are_told(self) -> bool:
        """True if this home is used by a Codex that locks threads, and the kernel lists locks."""
        return self._theirs.is_dir() and _LOCKS.exists()

    def holds(self, thread_id: str) -> bool:
        """Return True if a process holds the write lock of the thread."""
        for folder in (self._theirs, *self._ours):
            try:
                stat = (folder / f"{thread_id}.lock").stat()
            except (OSError, ValueError):
                continue
            if (os.major(stat.st_dev), os.minor(stat.st_dev), stat.st_ino) in self._held:
                return True
        return False

    @cached_property
    def _held(self) -> set[tuple[int, int, int]]:
        held: set[tuple[int, int, int]] = set()
        try:
            lines = _LOCKS.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return held
        for line in lines:
            # 1: FLOCK  ADVISORY  WRITE 1234 fe:00:262157 0 EOF; a waiting process has a "->".
            # 2: OFDLCK ADVISORY  WRITE -1 fe:00:262158 0 EOF: a lock of this server.
            words = line.split()
            if len(words) >= 6 and words[1] in ("FLOCK", "OFDLCK") and words[3] == "WRITE":
                major, minor, inode = words[5].split(":")
                held.add((int(major, 16), int(minor, 16), int(inode)))
        return held


def lock_holder(fd: int) -> int | None:
    """Return the process id that holds the flock(2) on the file of *fd*, where Linux shows it."""
    stat = os.fstat(fd)
    wanted = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    try:
        lines = _LOCKS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5] == wanted:
            return int(words[4])
    return None


def is_stopped(pid: int | None) -> bool:
    """Return True if the process is stopped, by SIGSTOP or a debugger."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] in (["T"], ["t"])
