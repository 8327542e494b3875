"""Follow the tokens of a run in the rollouts of its threads while the run is at work."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio

from codex_tools.codex.workers import on_disk
from codex_tools.rollouts.threads import Threads
from codex_tools.rollouts.turn_record import TurnMark
from codex_tools.rollouts.usage_follower import Spent, UsageFollower
from codex_tools.runs.run import Run

LOOK_EVERY_S = 1.0
"""Polling interval in seconds; each event of Codex causes a look as well."""

PAUSE_S = 0.5
"""Minimum seconds between two looks."""

SAVE_EVERY_S = 2.0
"""Minimum seconds between two records of a run that were written because of new tokens."""


class UsageWatch:
    """Keeps `Run.spent` of one run up to date."""

    def __init__(self, threads: Threads, run: Run, save: Callable[[], None]) -> None:
        """*save* writes the record of the run, which other servers and people read."""
        self._threads = threads
        self._run = run
        self._save = save
        self._news = anyio.Event()
        self._followed: str | None = None
        """The thread that is followed."""
        self._follower: UsageFollower | None = None
        self._earlier = Spent()
        """What the run used in threads that it has left."""
        self._known = Spent()
        self._reading = threading.Lock()
        """Held during a read: that of an earlier look may go on after the look was cancelled."""
        self._is_news = False
        """True if the record of the run lacks its newest tokens."""
        self._saved_at = anyio.current_time()

    def wake(self) -> None:
        """Look at the rollout soon, because Codex has done something."""
        self._news.set()

    @asynccontextmanager
    async def watching(self) -> AsyncGenerator[None]:
        """Follow the run while the block runs."""
        if self._run.request.ephemeral:
            yield  # Codex keeps no rollout.
            return
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            try:
                yield
            except Exception as error:  # Raised again below: the task group would wrap it.
                failure = error
            tasks.cancel_scope.cancel()
        await self.look()
        if failure is not None:
            raise failure

    async def look(self) -> None:
        """Read what Codex has written since the last look."""
        run = self._run
        opened = run.progress.opened
        if not opened:
            return
        spent = await on_disk(self._read, opened, abandon=True)
        self._is_news |= spent != run.spent
        run.spent = spent
        now = anyio.current_time()
        if self._is_news and now - self._saved_at >= SAVE_EVERY_S:
            self._is_news, self._saved_at = False, now
            self._save()

    async def _watch(self) -> None:
        while True:
            with anyio.move_on_after(LOOK_EVERY_S):
                await self._news.wait()
            self._news = anyio.Event()
            await self.look()
            await anyio.sleep(PAUSE_S)

    def _read(self, thread_id: str) -> Spent:
        """Return what the run has used so far; accesses the disk."""
        run = self._run
        with self._reading:
            if thread_id != self._followed:
                self._followed, self._follower, self._earlier = thread_id, None, self._known
            try:
                if self._follower is None:
                    is_resumed = run.before is not None and run.before.thread_id == thread_id
                    mark = run.start if is_resumed else TurnMark(0, run.start.since_ms)
                    self._follower = self._threads.follow_usage(thread_id, mark)
                if self._follower is not None:
                    self._known = self._earlier.plus(self._follower.read())
            except OSError:
                pass  # Codex has moved the file, or the disk fails: what is known stays.
            return self._known
