"""Write frames to a pipe from a thread of its own, and pings with them.

Pings must go out while the event loop is busy: on a loaded machine, pings from the event loop came
too late, and ended runs that were well. Only one thread writes, so no frame is torn by another.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque

import anyio

from codex_tools.places.frames import Frame, ProtocolError
from codex_tools.places.lease import SentPings, now

BACKLOG = 4 * 1024 * 1024
"""Bytes that may wait to be written before `send` waits."""

_BATCH = 256 * 1024
_POLL_MS = 200
_PAUSE_S = 0.01


class FrameWriter:
    """The writing end of a pipe; any thread may use it."""

    def __init__(self, fd: int, pings: SentPings | None = None) -> None:
        """Start the thread, which closes *fd* at its end.

        Args:
            fd: The descriptor to write to.
            pings: Where the time of each ping is noted; None to send no pings.
        """
        self._fd, self._pings = fd, pings
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._closing = self._abandoned = False
        self.is_broken = False
        """True if the other end has closed the pipe."""
        if pings is not None:
            os.set_blocking(fd, False)
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Bytes that wait to be written."""
        return self._size

    def put(self, frame: Frame, *, first: bool = False) -> None:
        """Write *frame* soon; *first* lets it pass those that wait. Never wait."""
        data = frame.encode()
        with self._changed:
            if self._closing or self.is_broken:
                return
            self._size += len(data)
            if first:
                self._waiting.appendleft(data)
            else:
                self._waiting.append(data)
            self._changed.notify()

    async def send(self, frame: Frame) -> None:
        """Write *frame* soon; wait first while much else waits to be written.

        Raises:
            ProtocolError: The other end has closed the pipe.
        """
        while self._size > BACKLOG and not self.is_broken:  # noqa: ASYNC110 - a thread writes
            await anyio.sleep(_PAUSE_S)
        if self.is_broken:
            raise ProtocolError("the other end has closed the pipe")
        self.put(frame)

    def stop_pings(self) -> None:
        """Send no more pings, so that the lease ends."""
        with self._changed:
            self._pings = None
            self._changed.notify()

    def close(self, *, abandon: bool = False) -> None:
        """Close the pipe when all is written; at once with *abandon*. Do not wait for it."""
        with self._changed:
            self._closing = True
            self._abandoned = self._abandoned or abandon
            self._changed.notify()

    def join(self, within_s: float) -> None:
        """Wait until the thread has ended, at most *within_s* seconds."""
        self._thread.join(within_s)

    def _run(self) -> None:
        next_ping = 0.0
        try:
            while (data := self._next(next_ping)) is not None:
                pings = self._pings
                if pings is not None and now() >= next_ping:
                    pings.sent_at = now()
                    next_ping = pings.sent_at + pings.every_s
                    data = Frame("ping", {"sent": pings.sent_at}).encode() + data
                self._write(data)
        except OSError:
            self.is_broken = True
        finally:
            with self._changed:
                self._closing = True
                self._waiting.clear()
                self._size = 0
            os.close(self._fd)

    def _next(self, next_ping: float) -> bytes | None:
        """Return what to write next, empty if it is time for a ping; None at the end."""
        with self._changed:
            while not self._waiting and not self._closing:
                left_s = None if self._pings is None else next_ping - now()
                if left_s is not None and left_s <= 0:
                    return b""
                self._changed.wait(left_s)
            if self._abandoned or not self._waiting:
                return None
            parts = [self._waiting.popleft()]
            size = len(parts[0])
            while self._waiting and size + len(self._waiting[0]) <= _BATCH:
                parts.append(self._waiting.popleft())
                size += len(parts[-1])
            self._size -= size
            return b"".join(parts)

    def _write(self, data: bytes) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        left = memoryview(data)
        while left and not self._abandoned:
            if poll.poll(_POLL_MS):
                try:
                    left = left[os.write(self._fd, left[: select.PIPE_BUF * 16]) :]
                except BlockingIOError:
                    continue
