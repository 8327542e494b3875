"""Keep the lease that ends the work of a worker which its server can no longer reach.

A pipe alone does not say that its other end is gone: a network may be cut, and a process stopped.
So the server sends pings. A worker counts from the last ping that it received, and ends all work
when the lease is over. The server counts from the last ping that it sent, and waits a margin
longer. When the server calls a run lost, it is therefore dead.

A ping that was on its way for long must not renew the lease for that long. So a ping names the
time at which it was sent, on the server's clock. The fastest ping so far shows how the two clocks
compare.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import anyio

MARGIN_S = 5.0
"""Seconds that a server waits beyond the lease: the guard needs a moment to kill a process tree."""

PINGS = 6
"""Pings in the time of one lease."""

TICK_S = 0.5
"""Interval in seconds for looking whether a lease is over."""

HELLO_WITHIN_S = 45.0
"""Seconds for the first answer of a place. On a busy machine (load 44) it took more than 20 s."""


def now() -> float:
    """Return the seconds of a clock that also counts while the machine is suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Lease:
    """The lease as a worker keeps it."""

    def __init__(self, length_s: float, at: float | None = None) -> None:
        """Begin the lease now, or at the time *at* of this machine's clock."""
        self.length_s = length_s
        self._until = (now() if at is None else at) + length_s
        self._offset = math.inf
        """Smallest difference so far between this clock at a ping's arrival and its sending."""

    def renew(self, sent: float, at: float | None = None) -> bool:
        """Renew the lease by a ping that was sent at *sent*, on the server's clock.

        Returns:
            True if the lease lasts longer by it; False for a ping that came too late.
        """
        received = now() if at is None else at
        if not math.isfinite(sent) or received >= self._until:
            return False
        self._offset = min(self._offset, received - sent)
        until = min(received, sent + self._offset) + self.length_s
        if until <= self._until:
            return False
        self._until = until
        return True

    def left_s(self, at: float | None = None) -> float:
        """Return the seconds until the lease is over; 0 if it is."""
        return max(0.0, self._until - (now() if at is None else at))


class SentPings:
    """The lease as a server sees it: what it sent, and what it heard."""

    def __init__(self, length_s: float, at: float | None = None) -> None:
        """Begin at the time *at* of this machine's clock, by default now."""
        self.length_s = length_s
        self.sent_at = self.heard_at = now() if at is None else at

    @property
    def every_s(self) -> float:
        """Seconds between two pings."""
        return self.length_s / PINGS

    def is_silent(self, at: float | None = None) -> bool:
        """True if the worker has not been heard for the length of the lease."""
        return (now() if at is None else at) - self.heard_at > self.length_s

    def dead_at(self, margin_s: float = MARGIN_S) -> float:
        """Return the time at which the worker has ended all work, if no more pings are sent."""
        return self.sent_at + self.length_s + margin_s


async def wait_silent(pings: SentPings, is_busy: Callable[[], bool] = lambda: False) -> None:
    """Wait until nothing has been heard for the length of the lease.

    Args:
        pings: What was sent and heard.
        is_busy: Returns True while this process itself does not read what it is sent.
    """
    while True:
        due = now() + TICK_S
        await anyio.sleep(TICK_S)
        late_s = now() - due
        if late_s > TICK_S:  # This process was stopped, or the machine was suspended.
            pings.heard_at = max(pings.heard_at, now() - pings.length_s / 2)
        elif pings.is_silent() and not is_busy():
            return
