"""Watch the event loop: report each block of the loop, with the code that blocked it.

Off unless MCP_SERVER_CODEX_WATCHDOG names a folder. The watchdog then writes a file there for each
block, and the test suite checks for such files after each test. An operator can use the watchdog
to find a disk or a library that makes the server slow to answer.

A machine that gives this process no processor time also delays the loop, without a fault in the
code. So only two kinds of time count: ticks on which the watchdog's thread itself ran on schedule
while the loop did not, and processor time of the main thread.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "MCP_SERVER_CODEX_WATCHDOG"

BLOCKED_S = 0.5
"""Seconds without an iteration of the loop that count as a block."""

TICK_S = 0.05
"""Interval in seconds of the watchdog's checks, and of the loop's own signs of life."""


def start_watchdog(environ: Mapping[str, str]) -> None:
    """Watch the running event loop if *environ* names a folder for the reports."""
    if folder := environ.get(VARIABLE):
        watchdog = _Watchdog(Path(folder), asyncio.get_running_loop())
        threading.Thread(target=watchdog.watch, daemon=True, name="watchdog").start()


class _Watchdog:
    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._folder = folder
        self._loop = loop
        self._main = threading.get_ident()
        self._turns = 0
        self._cpu_s = time.thread_time()
        self._reporting = threading.Lock()
        self._reported = -1
        """The turn whose block is reported already."""
        self._turn()

    def _turn(self) -> None:
        """Count an iteration of the loop; runs on the loop."""
        used_s = time.thread_time() - self._cpu_s
        if used_s > BLOCKED_S:
            # The code held the interpreter lock all the time, so the other thread could not run.
            self._report(used_s, "code that held the interpreter lock\n")
        self._turns += 1
        self._cpu_s = time.thread_time()
        self._loop.call_later(TICK_S, self._turn)

    def watch(self) -> None:
        """Check the loop until the process ends; runs in a thread of its own."""
        clock = time.pthread_getcpuclockid(self._main)
        turns, idle_s, at = -1, 0.0, time.monotonic()
        while True:
            time.sleep(TICK_S)
            late_s = time.monotonic() - at - TICK_S
            at = time.monotonic()
            if self._turns != turns:
                turns, idle_s = self._turns, 0.0
                continue
            idle_s += TICK_S if late_s < TICK_S else 0.0
            blocked_s = max(idle_s, time.clock_gettime(clock) - self._cpu_s)
            if blocked_s > BLOCKED_S and self._turns == turns:
                # reportPrivateUsage: Python documents this function as the only way to another
                # thread's stack, although its name begins with an underscore.
                frame = sys._current_frames()[self._main]  # pyright: ignore[reportPrivateUsage]
                self._report(blocked_s, "".join(traceback.format_stack(frame)))

    def _report(self, blocked_s: float, where: str) -> None:
        with self._reporting:
            if self._reported == self._turns:
                return
            self._reported = self._turns
        path = self._folder / f"{os.getpid()}-{time.monotonic_ns()}.txt"
        text = f"The event loop was blocked for {blocked_s:.2f} s in\n{where}"
        path.write_text(text, encoding="utf-8")
