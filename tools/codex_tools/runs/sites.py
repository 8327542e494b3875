"""Where runs may work, and for each place its threads, its limits and its number of runs."""

from __future__ import annotations

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
        slots = anyio.CapacityLimiter(max_runs)
        limits = UsageLimits(threads.home, waits=waits)
        self._known = {HERE: Site(HERE, engine, threads, slots, limits)}

    @property
    def here(self) -> Site:
        """This machine."""
        return self._known[HERE]

    def of(self, name: str) -> Site:
        """Return the place *name*; this machine for a place that no longer exists."""
        if name not in self._known and self._places is not None and name in self._places.names:
            found = self._places.of(name)
            slots = anyio.CapacityLimiter(found.place.max_runs)
            limits = UsageLimits(found.threads.home, waits=self._waits)
            self._known[name] = Site(name, found, found.threads, slots, limits, found)
        return self._known.get(name) or self.here
