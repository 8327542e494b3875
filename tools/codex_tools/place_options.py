"""Decide at which place a turn runs, and what it may not ask for there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codex_tools.codex.errors import InvalidArguments
from codex_tools.codex.place_errors import PlaceUnavailable, ThreadElsewhere
from codex_tools.codex.workers import on_disk
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.runs.sites import HERE
from codex_tools.turn_options import TurnOptions

if TYPE_CHECKING:
    from codex_tools.places.places import Places

ANY = "any"
"""The word by which a caller leaves the choice to this server."""

_NOT_ELSEWHERE = ("review", "images", "ask_caller")
"""Arguments that other places do not take yet."""


def places_for(options: TurnOptions, places: Places | None, default: str) -> list[str]:
    """Return the names of the places where a new thread may be, at least one.

    Raises:
        InvalidArguments: There is no such place, or it cannot do what is asked for.
    """
    word = options.place or default
    if word == HERE or (word == ANY and places is None):
        return [HERE]
    if places is None:
        raise _no_places(word)
    found: list[str] = []
    problem: InvalidArguments | None = None
    for name in places.named(word):
        try:
            found.append(HERE if name == HERE else check_place(options, places, name))
        except InvalidArguments as error:
            problem = error
    if problem is not None and not found:
        raise problem
    return found


async def first_usable(names: Sequence[str], places: Places, rules: EnvironmentRules) -> str:
    """Return the first of some places that can be reached; this machine always can.

    Raises:
        PlaceUnavailable: None of them can be used.
    """
    failure: PlaceUnavailable | None = None
    for name in names:
        try:
            if name != HERE:
                await places.of(name).prepare(Path("/"), rules)
            return name
        except PlaceUnavailable as error:
            failure = error
    assert failure is not None
    raise failure


def check_place(options: TurnOptions, places: Places | None, name: str) -> str:
    """Return the name of a place that can do what is asked for.

    Raises:
        InvalidArguments: There is no such place, or it cannot do that.
    """
    if places is None:
        raise _no_places(name)
    places.of(name)
    if options.isolation == "none":
        raise InvalidArguments([f"isolation: a run at {name} always works in a copy"])
    if options.mcp_servers != "all":
        raise InvalidArguments([f"mcp_servers: {name} has its own; leave the argument out"])
    for argument in _NOT_ELSEWHERE:
        if getattr(options, argument, None):
            raise InvalidArguments([f"{argument}: works only with place {HERE}"])
    return name


async def place_of_thread(
    options: TurnOptions, places: Places | None, thread_id: str, *, is_here: bool
) -> str:
    """Return the place of an existing thread.

    Raises:
        InvalidArguments: The place cannot do what is asked for.
        PlaceUnavailable: The operator has removed the place.
        ThreadElsewhere: The caller named another place.
    """
    found = None
    if places is not None and not is_here:
        found = await on_disk(places.find, thread_id)
    if options.place not in (None, ANY, found or HERE):
        named = places.named(options.place) if places is not None else ()
        if (found or HERE) not in named:
            raise ThreadElsewhere(thread_id, found or HERE, options.place)
    return HERE if found is None else check_place(options, places, found)


def _no_places(name: str) -> InvalidArguments:
    return InvalidArguments(
        [
            f"place: there is no place {name!r}, because the operator has configured none beside"
            f" {HERE}, this machine. Leave place out, or let the operator name other machines with"
            " the option --places FILE"
        ]
    )
