"""Renew the leases that the guards of a worker's processes keep."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class GuardLease:
    """The lease of the guards that this process starts; any thread may renew it."""

    def __init__(self, length_s: float) -> None:
        """Prepare leases of *length_s* seconds, which begin when a guard starts."""
        self.length_ms = max(1, round(length_s * 1000))
        self._mutex = threading.Lock()
        self._guards: set[socket.socket] = set()

    def add(self, control: socket.socket) -> None:
        """Add a guard by this end of its control pipe."""
        with self._mutex:
            self._guards.add(control)

    def drop(self, control: socket.socket) -> None:
        """Drop a guard before its control pipe is closed."""
        with self._mutex:
            self._guards.discard(control)

    def renew(self) -> None:
        """Renew all leases; never wait."""
        with self._mutex:
            for control in self._guards:
                with suppress(OSError):  # The guard has ended, or does not read.
                    control.send(b"p", socket.MSG_DONTWAIT)
