"""Run blocking work in worker threads, so that nothing that can wait runs on the event loop.

Disk work and CPU work have separate limits: a full disk or a network mount that hangs must not
delay a schema check, and a long schema check must not delay a look at a file. The server's writer
of stdout uses neither, so answers leave while both are taken.

A thread does not help where Python's interpreter lock is held all the time: work whose duration a
caller can choose needs a limit of its own (see schemas/validation.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

DISK_THREADS = 16
"""Threads for file system work at once; most of them wait for the kernel, not for a processor."""

CPU_THREADS = 4
"""Threads for parsing, validation and the index at once."""

T = TypeVar("T")

_disk: RunVar[anyio.CapacityLimiter] = RunVar("disk")
_cpu: RunVar[anyio.CapacityLimiter] = RunVar("cpu")
_index: RunVar[anyio.Lock] = RunVar("index")


async def on_disk(work: Callable[..., T], *arguments: object, abandon: bool = False) -> T:
    """Run *work*, which waits for the file system, in a worker thread; return its result.

    Args:
        work: A plain function.
        arguments: Its positional arguments.
        abandon: True to stop waiting when the caller is cancelled. The thread then ends by itself
            and its result is lost.
    """
    limiter = _limiter(_disk, DISK_THREADS)
    return await anyio.to_thread.run_sync(
        work, *arguments, limiter=limiter, abandon_on_cancel=abandon
    )


async def on_cpu(work: Callable[..., T], *arguments: object, abandon: bool = False) -> T:
    """Run *work*, which computes, in a worker thread; return its result.

    Args: as of `on_disk`.
    """
    limiter = _limiter(_cpu, CPU_THREADS)
    return await anyio.to_thread.run_sync(
        work, *arguments, limiter=limiter, abandon_on_cancel=abandon
    )


async def on_index(work: Callable[..., T], *arguments: object, abandon: bool = False) -> T:
    """Run *work*, which uses the index over all threads, in a worker thread; return its result.

    Such calls take turns here instead of in their threads, where the index admits one at a time:
    45 of them on a cold index once held all threads for 13 s.

    Args: as of `on_disk`.
    """
    try:
        lock = _index.get()
    except LookupError:
        lock = anyio.Lock()
        _index.set(lock)
    async with lock:
        return await on_cpu(work, *arguments, abandon=abandon)


def _limiter(variable: RunVar[anyio.CapacityLimiter], threads: int) -> anyio.CapacityLimiter:
    """Return the limiter of the running event loop, a new one on the first call."""
    try:
        return variable.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(threads)
        variable.set(limiter)
        return limiter
