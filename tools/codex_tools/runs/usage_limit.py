"""Wait in the queue until the usage limit of the account resets, if the operator wants that.

Codex says when a usage limit resets only in its message: "try again at Jan 1st, 2030 2:05 PM",
without the date on the same day, in the time zone of the machine (0.60.1 to 0.171.0). A new login
ends the wait. Bought credits do not: nothing on disk shows them, and a try would cost a request.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

import anyio

from codex_tools.codex.errors import TurnFailed
from codex_tools.codex.paths import file_stamp
from codex_tools.codex.workers import on_disk
from codex_tools.runs.run import Run

WAITS = 3
"""Maximum number of times that a run waits after a failure, should the named time be wrong."""

SHORTEST_S = 1.0
"""Minimum seconds from a failure to the next try."""

PRECISION_S = 60.0
"""Seconds that the limit may last beyond the named time, which Codex cuts to whole minutes."""

_LOOK_EVERY_S = 5.0
"""Seconds between two looks at the clock, which may be set, or go on while the machine sleeps.

Also between two looks at auth.json: another login has limits of its own.
"""

_ASKED = re.compile(
    r"(?:try again|retry(?:ing)?)\s+(?:in|after)\s+(?:about\s+)?((?:\d+(?:\.\d+)?\s*[a-z]+\s*)+)",
    re.IGNORECASE,
)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)
_UNITS = {"ms": 0.001, "millisecond": 0.001, "s": 1, "sec": 1, "second": 1} | {
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
}
_AT = re.compile(
    r"try again at\s+(?:([a-z]{3})[a-z]*\.? (\d{1,2})(?:st|nd|rd|th)?,? (\d{4}),? )?"
    r"(\d{1,2}):(\d\d)(?::\d\d)?\s*([ap]m)?",
    re.IGNORECASE,
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def asked_pause(message: str) -> float | None:
    """Return the seconds of a provider's request to wait, such as "Please try again in 1m2.5s"."""
    found = _ASKED.search(message)
    if found is None:
        return None
    seconds = 0.0
    for number, unit in _PART.findall(found[1]):
        unit = unit.lower()
        size = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
        if size is None:
            break  # The next sentence begins here.
        seconds += float(number) * size
    return seconds or None


def reset_time(message: str, now: datetime) -> datetime | None:
    """Return when the limit of a usage_limit *message* resets; None if it does not say so.

    Args:
        message: Codex's message.
        now: The current time in the time zone of the machine.
    """
    pause_s = asked_pause(message)
    if pause_s is not None and pause_s < 10**8:
        return now + timedelta(seconds=pause_s)
    found = _AT.search(message)
    if found is None:
        return None
    month, day, year, hour_text, minute, half = found.groups()
    hour = int(hour_text)
    if half:
        hour = hour % 12 + (12 if half.lower() == "pm" else 0)
    try:
        if month is None:
            at = now.replace(hour=hour, minute=int(minute), second=0, microsecond=0)
            # Midnight may have passed since Codex wrote the message.
            return at + timedelta(days=1) if at < now - timedelta(hours=12) else at
        number = _MONTHS.index(month.lower()) + 1
        return datetime(int(year), number, int(day), hour, int(minute)).astimezone()
    except (ValueError, OverflowError):
        return None


def reset_of(error: TurnFailed) -> datetime | None:
    """Return when the usage limit that *error* reports resets; None for any other error."""
    if error.failure.kind != "usage_limit":
        return None
    return reset_time(error.message, datetime.now().astimezone())


class UsageLimits:
    """The usage limits that the runs of this server have met and that still hold."""

    def __init__(self, home: Path, *, waits: bool) -> None:
        """Know no limit yet; *waits* is True if the operator wants runs to wait.

        *home* is CODEX_HOME.
        """
        self.waits = waits
        self._login = home / "auth.json"
        self._known: dict[tuple[object, ...], datetime] = {}

    async def note(self, run: Run, until: datetime) -> None:
        """Remember that a limit holds for runs such as *run*."""
        self._known[await self._key_of(run)] = until

    async def find(self, run: Run) -> datetime | None:
        """Return the time at which the limit of *run* resets; None if no limit is known."""
        if not self._known:
            return None
        key = await self._key_of(run)
        until = self._known.get(key)
        if until is not None and _left_s(until) <= 0:
            del self._known[key]
            return None
        return until

    async def is_met(self, model: str | None) -> bool:
        """Return True if a limit for *model* holds, whatever else its runs were asked for."""
        if not self._known:
            return False
        login = await self.login()
        return any(
            key[:2] == (login, model) and _left_s(until) > 0 for key, until in self._known.items()
        )

    async def login(self) -> tuple[int, ...] | None:
        """Return what changes when a person logs in; Codex changes it, too, with new tokens."""
        return await on_disk(file_stamp, self._login)

    async def _key_of(self, run: Run) -> tuple[object, ...]:
        # Another login is another account, and some models have a limit of their own.
        request = run.request
        return await self.login(), request.model, request.profile, request.config


class Place:
    """The place of a run among those at work; the run gives it back while it waits for a limit."""

    def __init__(
        self,
        slots: anyio.CapacityLimiter,
        limits: UsageLimits,
        run: Run,
        save: Callable[[], None],
    ) -> None:
        """Hold no place yet; *save* writes the record of the run, which other servers read."""
        self._slots = slots
        self._limits = limits
        self._run = run
        self._save = save
        self._is_held = False
        self._waits = 0
        self.on_return: Callable[[], Awaitable[None]] | None = None
        """Called when the run has its place again; others may have worked in its folder."""

    async def __aenter__(self) -> Self:
        """Wait in the queue for a place, and until a limit that is known to hold resets."""
        try:
            while True:
                await self._take()
                until = await self._limits.find(self._run) if self._limits.waits else None
                if until is None or _left_s(until) >= self._run.request.timeout_s:
                    return self
                await self._sleep(until)
        except BaseException:
            self._free()
            raise

    async def __aexit__(self, *_: object) -> None:
        """Free the place."""
        self._free()

    async def wait(self, error: TurnFailed, age_s: float) -> bool:
        """Wait in the queue until the limit that *error* reports resets.

        Args:
            error: The error of the last try.
            age_s: The age of the run, in seconds.

        Returns:
            True if the turn can be tried again; False, at once, if the run cannot wait.
        """
        until = reset_of(error)
        if until is None:
            return False
        await self._limits.note(self._run, until)
        if not self._limits.waits:
            return False
        left_s = max(SHORTEST_S, _left_s(until))
        if (
            error.turn.touched
            or self._waits >= WAITS
            or age_s + left_s >= self._run.request.timeout_s
        ):
            return False
        self._waits += 1
        await anyio.sleep(SHORTEST_S)
        await self._sleep(until)
        await self._take()
        if self.on_return is not None:
            await self.on_return()
        return True

    async def _sleep(self, until: datetime) -> None:
        """Give the place back until the time *until*, or until there is another login."""
        self._free()
        self._run.waiting_until = until
        self._save()
        try:
            login = await self._limits.login()
            while (left_s := _left_s(until)) > 0:
                await anyio.sleep(min(left_s, _LOOK_EVERY_S))
                if await self._limits.login() != login:
                    return
        finally:
            self._run.waiting_until = None
            self._save()

    async def _take(self) -> None:
        await self._slots.acquire_on_behalf_of(self)
        self._is_held = True

    def _free(self) -> None:
        if self._is_held:
            self._is_held = False
            self._slots.release_on_behalf_of(self)


def _left_s(until: datetime) -> float:
    return until.timestamp() + PRECISION_S - time.time()
