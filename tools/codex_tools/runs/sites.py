"""Where runs may work, and for each place its threads, its limits and its number of runs."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from codex_tools.engines.engine import Engine
from codex_tools.rollouts.threads import Threads
from codex_tools.runs.usage_limit import UsageLimits

if TYPE_CHECKING:
    from codex_tools.places.places import Elsewhere, Places

HERE = "here"
"""The name of this machine among the places."""

CHOSEN_FOR_S = 10.0
"""Seconds that a run counts at the place that was chosen for it, until it is started there."""


@dataclass(frozen=True, slots=True)
class Site:
    """One place."""

    name: str
    engine: Engine
    threads: Threads
    slots: anyio.CapacityLimiter
    """Admits the runs that work there."""
    limits: UsageLimits
    """The usage limits that runs have met there: another place has another account."""
    elsewhere: Elsewhere | None = None
    """The place, unless it is this machine."""


class Sites:
    """All places of a server."""

    def __init__(
        self, engine: Engine, threads: Threads, max_runs: int, *, waits: bool, places: Places | None
    ) -> None:
        """Know this machine, and *places* if there are any."""
        self._waits, self._places = waits, places
        self._chosen: deque[tuple[float, str]] = deque()
        if places is not None:
            max_runs = places.max_runs_here or max_runs
        slots = anyio.CapacityLimiter(max_runs)
        limits = UsageLimits(threads.home, waits=waits)
        self._known = {HERE: Site(HERE, engine, threads, slots, limits)}

    @property
    def here(self) -> Site:
        """This machine."""
        return self._known[HERE]

    async def order(
        self, names: Sequence[str], unfinished: Mapping[str, int], model: str | None
    ) -> list[str]:
        """Return *names* in the order in which to try them, and count on the first one.

        Last are those that could not be reached a moment ago, or whose account has met a usage
        limit. Of the others, that with the fewest runs for its size is the first.

        Args:
            names: The places.
            unfinished: For each place, its number of runs that have not ended.
            model: The model of the run.
        """
        met = [name for name in names if await self.of(name).limits.is_met(model)]
        while self._chosen and time.monotonic() - self._chosen[0][0] > CHOSEN_FOR_S:
            self._chosen.popleft()
        ahead = Counter(name for _, name in self._chosen)

        def rank(name: str) -> tuple[bool, bool, float]:
            site = self.of(name)
            has_failed = site.elsewhere is not None and site.elsewhere.has_failed
            load = (unfinished.get(name, 0) + ahead[name]) / site.slots.total_tokens
            return has_failed, name in met, load

        found = sorted(names, key=rank)
        self._chosen.append((time.monotonic(), found[0]))
        return found

    def note_start(self, name: str) -> None:
        """Note that a run has been started at a place, so that `order` counts it only once."""
        for each in self._chosen:
            if each[1] == name:
                self._chosen.remove(each)
                return

    def of(self, name: str) -> Site:
        """Return the place *name*; this machine for a place that no longer exists."""
        if name not in self._known and self._places is not None and name in self._places.names:
            found = self._places.of(name)
            slots = anyio.CapacityLimiter(found.place.max_runs)
            limits = UsageLimits(found.threads.home, waits=self._waits)
            self._known[name] = Site(name, found, found.threads, slots, limits, found)
        return self._known.get(name) or self.here
