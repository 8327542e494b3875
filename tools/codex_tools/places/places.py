"""The operator's places: for each its engine, its threads and how many runs it takes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path

import anyio

from codex_tools.codex.errors import InvalidArguments
from codex_tools.codex.events import Event
from codex_tools.codex.masking import mask
from codex_tools.codex.place_errors import PlaceUnavailable
from codex_tools.codex.program import Program
from codex_tools.engines.engine import Keep, Plan, TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.engines.model_list import ModelList
from codex_tools.places.hub import Hub
from codex_tools.places.mirror import Mirror, MirrorThreads, places_with
from codex_tools.places.pipe import Links, open_pipe
from codex_tools.places.place import ANY, HERE, Place
from codex_tools.pricing.prices import Prices
from codex_tools.rollouts.threads import Threads

KNOWN_FOR_S = 60.0
"""Seconds that the Codex of a place is taken for the same, without another connection."""


class Places:
    """The places of the operator; this machine is none of them."""

    def __init__(
        self, known: Mapping[str, Place], state_dir: Path, prices: Prices, here: Threads
    ) -> None:
        """Connect to none yet.

        Args:
            known: What `read_places` returned.
            state_dir: The folder with the mirrors.
            prices: What tokens cost.
            here: The threads of this machine.
        """

        def is_taken(thread_id: str, place: str) -> bool:
            others = [each for each in places_with(state_dir, thread_id) if each != place]
            return bool(others) or here.is_kept(thread_id)

        self._sites = {
            name: Elsewhere(place, Mirror(state_dir, name, is_taken), prices)
            for name, place in known.items()
            if name != HERE
        }
        self._state_dir = state_dir
        self._here = known.get(HERE)

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Let the runs at large Ray clusters share a process; it ends on leaving."""
        async with AsyncExitStack() as stack:
            for site in self._sites.values():
                if site.place.is_shared:
                    site.links = await stack.enter_async_context(Hub.opened(site.place))
            yield

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the places."""
        return tuple(self._sites)

    @property
    def max_runs_here(self) -> int | None:
        """The number of runs on this machine, if the file says it."""
        return self._here.max_runs or None if self._here is not None else None

    @property
    def keep_s(self) -> float:
        """Seconds that this machine must keep what belongs to a copy at a place."""
        return max((site.place.keep_days for site in self._sites.values()), default=0) * 86400

    def prune(self) -> None:
        """Delete mirrors of threads without a turn for `keep_history_days`; accesses the disk.

        The mirror of a place that the operator has removed is kept as long as by default.
        """
        for folder in (self._state_dir / "places").glob("*"):
            site = self._sites.get(folder.name)
            place = site.place if site is not None else Place(folder.name)
            Mirror(self._state_dir, place.name).prune(place.keep_history_days * 86400)

    def named(self, word: str) -> tuple[str, ...]:
        """Return the names of the places that *word* means: a name, a label or `any`.

        Raises:
            InvalidArguments: There is none.
        """
        if word == ANY:
            return (HERE, *self._sites)
        if word == HERE or word in self._sites:
            return (word,)
        labels = {name: site.place.labels for name, site in self._sites.items()}
        labels[HERE] = self._here.labels if self._here is not None else ()
        found = tuple(name for name in (HERE, *self._sites) if word in labels[name])
        if not found:
            known = ", ".join((HERE, *self._sites, ANY, *sorted({*sum(labels.values(), ())})))
            raise InvalidArguments([f"place: there is no place {word[:40]!r}; there are {known}"])
        return found

    def of(self, name: str) -> Elsewhere:
        """Return the place *name*.

        Raises:
            InvalidArguments: There is none.
        """
        found = self._sites.get(name)
        if found is None:
            known = ", ".join((HERE, *self._sites))
            raise InvalidArguments([f"place: there is no place {name[:40]!r}; there are {known}"])
        return found

    def find(self, thread_id: str) -> str | None:
        """Return the place of a thread; None if no mirror has it. It accesses the disk.

        Raises:
            PlaceUnavailable: The operator has removed that place.
        """
        found = places_with(self._state_dir, thread_id)
        known = [each for each in found if each in self._sites]
        if found and not known:
            raise PlaceUnavailable(found[0], "the operator has removed it from the file of places")
        return known[0] if known else None


class Elsewhere:
    """One place, as the engine of runs that have not got a seat there yet."""

    name = "exec"

    def __init__(self, place: Place, mirror: Mirror, prices: Prices) -> None:
        self.place, self.mirror = place, mirror
        self.threads = MirrorThreads(mirror, prices)
        self.starting = anyio.CapacityLimiter(place.starts_at_once)
        """Admits the runs that connect and send their project: pings must not starve."""
        self.links: Links | None = None
        """What opens links to workers; None if each worker has a process here of its own."""
        self._asking = anyio.Lock()
        self._known: tuple[float, Program] | None = None
        self._failed_at: float | None = None

    @property
    def has_failed(self) -> bool:
        """True if the place could not be reached a moment ago."""
        return self._failed_at is not None and time.monotonic() - self._failed_at < KNOWN_FOR_S

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Keep nothing ready; see `Engine.opened`."""
        return nullcontext()

    async def prepare(self, cwd: Path, rules: EnvironmentRules) -> Program:
        """Ask the place for its Codex; see `Engine.prepare`.

        Raises:
            PlaceUnavailable: There is no answer, or no Codex.
        """
        async with self._asking:
            if self._known is not None and time.monotonic() - self._known[0] < KNOWN_FOR_S:
                return self._known[1]
            try:
                async with self.starting, open_pipe(self.place, links=self.links) as (_, hello):
                    self._known = time.monotonic(), hello.program
            except PlaceUnavailable:
                self._failed_at = time.monotonic()
                raise
            self._failed_at = None
            return self._known[1]

    async def plan_turn(self, request: TurnRequest) -> Plan:
        """Return what is started here for a turn; see `Engine.plan_turn`."""
        return Plan(tuple(mask(each) for each in self.place.command), ())

    async def list_models(self, program: Program, rules: EnvironmentRules) -> ModelList | None:
        """Return None: the place is not asked for its models; see `Engine.list_models`."""
        return None

    def open_turn(
        self, request: TurnRequest, keep: Keep
    ) -> AbstractAsyncContextManager[AsyncGenerator[Event]]:
        """Raise an error: a turn needs a seat, with a copy of the project."""
        raise PlaceUnavailable(self.place.name, "the run has no seat there")
