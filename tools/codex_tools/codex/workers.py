"""Run blocking work in worker threads, so that nothing that can wait runs on the event loop.

Disk work and CPU work have separate limits. A full disk or a network mount that hangs must not
delay a schema check, and a long schema check must not delay a file read. The server's writer of
stdout uses neither limit, so answers are sent even while both are used up.

A thread does not help while Python's interpreter lock is held all the time. Work whose duration a
caller can choose therefore needs a limit of its own (see schemas/validation.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

DISK_THREADS = 16
"""Most threads for file system work at a time; most wait for the kernel, not for a processor."""

CPU_THREADS = 4
"""Most threads for parsing, validation and the index at a time."""

T = TypeVar("T")

_disk: RunVar[anyio.CapacityLimiter] = RunVar("disk")
_cpu: RunVar[anyio.CapacityLimiter] = RunVar("cpu")
_index: RunVar[anyio.Lock] = RunVar("index")


async def on_disk(work: Callable[..., T], *arguments: object, abandon: bool = False) -> T:
    """Run *work*, which waits for the file system, in a worker thread; return its result.

    Args:
        work: A plain function.
        arguments: Its positional arguments.
        abandon: True to stop waiting when the caller is cancelled. The thread then runs to its end
            and its result is lost.
    """
    limiter = _limiter(_disk, DISK_THREADS)
    return await anyio.to_thread.run_sync(
        work, *arguments, limiter=limiter, abandon_on_cancel=abandon
    )


async def on_cpu(work: Callable[..., T], *arguments: object, abandon: bool = False) -> T:
    """Run *work*, which computes, in a worker thread; return its result.

    The arguments are those of `on_disk`.
    """
    limiter = _limiter(_cpu, CPU_THREADS)
    return await anyio.to_thread.run_sync(
        work, *arguments, limiter=limiter, abandon_on_cancel=abandon
    )


async def on_index(work: Callable[..., T], *arguments: object, abandon: bool = False) -> T:
    """Run *work*, which uses the index of Codex's threads, in a worker thread; return its result.

    The index admits one call at a time. Calls wait for each other here, on the event loop, and not
    in worker threads: 45 calls on a cold index once held all threads for 13 s.

    The arguments are those of `on_disk`.
    """
    try:
        lock = _index.get()
    except LookupError:
        lock = anyio.Lock()
        _index.set(lock)
    async with lock:
        return await on_cpu(work, *arguments, abandon=abandon)


def _limiter(variable: RunVar[anyio.CapacityLimiter], threads: int) -> anyio.CapacityLimiter:
    """Return the running event loop's limiter; create one with *threads* on the first call."""
    try:
        return variable.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(threads)
        variable.set(limiter)
        return limiter
