"""Write to the state folder in a separate thread, in the order of the calls.

A disk that is full, slow or gone delays only that thread. Callers on the event loop never wait for
a write; a caller that must know that everything is written awaits `flush`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

import anyio
import anyio.from_thread
from anyio.lowlevel import EventLoopToken, current_token

logger = logging.getLogger(__name__)

Work = Callable[[], object]

WRITTEN_WITHIN_S = 0.3
"""Seconds to wait until a record is on disk; a disk that hangs must not delay the result.

Claude Code gives a server 0.5 s in all before it sends SIGKILL.
"""

RECORDED_WITHIN_S = 3.0
"""The same for the record of a run that continues when its call returns. Nothing else waits then.
"""


class StateWriter:
    """A queue of writes, and the thread that executes them."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="state writer")
        self._thread.start()

    def put(self, work: Work) -> None:
        """Queue *work* behind all earlier work; return at once."""
        self._queue.put(work)

    async def flush(self, within_s: float) -> bool:
        """Wait until all work queued so far is done.

        Args:
            within_s: Maximum seconds to wait.

        Returns:
            False if the work was not done in that time.
        """
        done = anyio.Event()
        token = current_token()
        self.put(lambda: _set(done, token))
        with anyio.move_on_after(within_s):
            await done.wait()
        return done.is_set()

    def close(self, within_s: float) -> None:
        """Stop the thread after all queued work; wait for it at most *within_s* seconds."""
        self._queue.put(None)
        self._thread.join(within_s)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception:  # An outer wall: one fault must not end all later writes.
                logger.exception("internal fault while writing to the state folder")


def _set(event: anyio.Event, token: EventLoopToken) -> None:
    try:
        anyio.from_thread.run_sync(event.set, token=token)
    except RuntimeError:
        return  # The event loop has ended, so no task waits.
