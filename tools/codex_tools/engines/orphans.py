"""Find, kill and reap the processes of runs whose guard was killed; for Linux.

This process is a child subreaper, like each guard. If a guard is killed, for example by the kernel
for lack of memory, its descendants become children of this process and not of init. The guard has
marked them by a resource limit that Linux ignores (RLIMIT_RSS, see guard.py). So they are found
even after setsid, a double fork or a cleared environment. Other children of this process, such as
`git`, and the trees of other guards carry another mark or none.

Not covered: systems other than Linux; a guard that is killed in the same moment as this process.
Codex itself then ends with its guard, but a command that called setsid survives.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from codex_tools.engines import guard

GUARD_SOURCE = Path(guard.__file__).read_bytes()
"""The guard as this process knows it: an upgrade may replace or remove its file at any time."""

UNCLAIMED_S = 60.0
"""Seconds after which an ended child without a mark counts as adopted, and is reaped.

A child that this process has started itself is reaped within milliseconds by the code that
started it. An adopted one is a process that `git` or `codex --version` left behind.
"""

_LINUX = sys.platform.startswith("linux")
_LIMIT = re.compile(rb"^Max resident set +(\d+)", re.MULTILINE)
_lock = threading.Lock()
_unclaimed: dict[int, float] = {}
"""Ended children without a mark, and the time at which each was first seen."""


def become_subreaper() -> None:
    """Make this process the new parent of all orphans among its descendants."""
    if _LINUX and (prctl := guard.linux_prctl()) is not None:
        prctl(guard.PR_SET_CHILD_SUBREAPER, 1)


def hide_memory() -> None:
    """Keep other processes of this user from reading this one's memory and environment.

    The sandbox of Codex before 0.120 has no pid namespace: its commands see this process, and the
    client's secrets in its environment. Codex itself, which needs some of these, stays readable,
    because Linux sets this back at each exec. Root can still read all processes.
    """
    if _LINUX and (prctl := guard.linux_prctl()) is not None:
        prctl(guard.PR_SET_DUMPABLE, 0)


def reap_orphans() -> None:
    """Collect the exit status of adopted children that have ended, so that no zombie stays."""
    if not _LINUX:
        return
    with _lock:
        seen: dict[int, float] = {}
        outer = _guard_of(os.getpid())  # All that is started inside a run carries its mark.
        for pid in filter(_has_ended, _children()):
            first_seen = _unclaimed.get(pid, time.monotonic())
            mark = _guard_of(pid)
            if mark == pid:
                continue  # A guard, which `open_child` waits for.
            if mark not in (None, outer) or time.monotonic() - first_seen > UNCLAIMED_S:
                _reap(pid)
            else:
                seen[pid] = first_seen
        _unclaimed.clear()
        _unclaimed.update(seen)


def end_tree(of_guard: int) -> bool:
    """Kill all processes that the ended guard *of_guard* has left, and wait until none is left.

    Returns:
        True if there was any: the guard was killed before it could end the tree itself.
    """
    if not _LINUX:
        return False
    until = time.monotonic() + guard.GIVE_UP_S
    found, pause_s = False, 0.001
    while time.monotonic() < until:
        roots = {pid for pid in _adopted() if _guard_of(pid) == of_guard}
        if not roots:
            return found
        found = True
        for pid in roots.union(*(guard.tree(pid) for pid in roots)):
            guard.kill(pid)
        for pid in roots:
            _reap(pid)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)
    return found


def _adopted() -> Iterator[int]:
    """Yield the ids of this process's children; from the whole of /proc, which is always there."""
    own = os.getpid()
    return (pid for pid, parent in guard.processes() if parent == own)


def _children() -> Iterator[int]:
    """Yield the ids of this process's children, from a listing that some kernels leave out."""
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 - called at each run
        try:
            with open(f"/proc/self/task/{thread}/children", "rb") as children:  # noqa: PTH123
                yield from map(int, children.read().split())
        except OSError:
            continue


def _has_ended(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123
            return stat.read().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):
        return False


def _guard_of(pid: int) -> int | None:
    """Return the id of the guard that has marked *pid*; None without a mark."""
    try:
        with open(f"/proc/{pid}/limits", "rb") as limits:  # noqa: PTH123
            found = _LIMIT.search(limits.read())
    except OSError:
        return None
    mark = int(found[1]) - guard.MARK if found is not None else 0
    return mark if 0 < mark < guard.MARK else None


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
