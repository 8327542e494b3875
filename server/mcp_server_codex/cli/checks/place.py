"""Check one place: reach it, and ask its worker what it has to work with."""

from __future__ import annotations

import re
import shlex
import time
from dataclasses import replace

import anyio

from codex_tools.codex.json_object import Json
from codex_tools.codex.place_errors import PlaceUnavailable
from codex_tools.places.frames import Frame, ProtocolError
from codex_tools.places.pipe import Hello, Pipe, PipeEnded, open_pipe
from codex_tools.places.place import HERE, Place, PlacesError, read_places
from mcp_server_codex.cli.checks.check import Check, ok, problem, warning
from mcp_server_codex.cli.checks.context import CheckContext

OLDEST_GIT = (2, 31)
"""The oldest git that packs and lays out projects as this server needs."""

CLOCK_S = 60.0
"""Seconds by which the clock of a place may differ: usage limits name times of that clock."""

PING_EVERY_S = 1.0
"""Seconds between pings while the doctor measures how long they take."""

_LEAST_MB = 500


async def check_place(context: CheckContext, name: str) -> list[Check]:
    """Check the place *name* of the file of places; start no turn."""
    file = context.settings.places
    if name == HERE:
        return [problem("place", "This machine needs no --place.", "mcp-server-codex doctor")]
    if file is None:
        cure = f"mcp-server-codex doctor --place {shlex.quote(name)} --places FILE"
        return [problem("place", "There is no file of places.", cure)]
    try:
        known = read_places(file)
    except PlacesError as error:
        return [problem("place", f"{error}.", f"Correct {file}")]
    place = known.get(name)
    if place is None:
        names = ", ".join(known) or "none"
        return [
            problem("place", f"{file} has no place {name!r}; there are: {names}.", f"Edit {file}")
        ]
    try:
        async with open_pipe(replace(place, lease_s=max(6.0, PING_EVERY_S * 6))) as (pipe, hello):
            await pipe.send(Frame("examine"))
            found = (await pipe.expect("examined")).fields
            skew_s = _number(found, "time") - time.time()
            pipe.echo_s = None  # The first ping also waited for the start of the worker.
            with anyio.move_on_after(PING_EVERY_S * 5):
                while pipe.echo_s is None:  # noqa: ASYNC110 - set by the reader
                    await anyio.sleep(0.02)
            checks = [
                *_reached(place, hello),
                *_examined(place, found, skew_s),
                _lease(place, pipe),
            ]
    except PlaceUnavailable as error:
        return [_unreachable(place, error)]
    except (PipeEnded, ProtocolError) as error:
        return [problem("place", f"{name} answered, and then failed: {error}.", _by_hand(place))]
    if place.ray is not None:
        from mcp_server_codex.cli.checks.ray import check_ray

        checks += await check_ray(place)
    return checks


def _unreachable(place: Place, error: PlaceUnavailable) -> Check:
    if error.kind_there in ("codex_not_found", "codex_unsupported"):
        return problem(
            "codex",
            f"{place.name} has a worker and no Codex that works: {error.problem.rstrip('.')}.",
            f"Install Codex there, or set worker of [{place.name}] to: {place.worker} --codex-bin"
            " PATH",
        )
    if error.kind_there:
        return problem(
            "place", f"The worker at {place.name} failed: {error.problem}.", _by_hand(place)
        )
    return problem("place", f"{place.name} cannot be used: {error.problem}.", _by_hand(place))


def _by_hand(place: Place) -> str:
    if place.ray is not None:
        code = f"import ray; ray.init({place.ray.address!r}); print(ray.cluster_resources())"
        words = shlex.join((place.ray.python, "-c", code))
        argv = [*place.argv, words] if place.is_ssh else [*place.argv, place.ray.python, "-c", code]
        return f"To see why, run this in a terminal: {shlex.join(argv)}"
    return f"To see why, run this in a terminal; a worker waits for input: {_line(place)}"


def _line(place: Place, *words: str) -> str:
    """Return a command at the place as a person types it here."""
    if not words:
        return shlex.join(place.command)
    return shlex.join([*place.argv, shlex.join(words)] if place.is_ssh else [*place.argv, *words])


def _reached(place: Place, hello: Hello) -> list[Check]:
    from importlib.metadata import version

    mine = version("mcp-server-codex")
    codex = ok("codex", f"Codex {hello.program.version_text} is {hello.program.path} there.")
    if hello.version == mine:
        return [ok("place", f"{place.name} answers; its worker is {mine}, as here."), codex]
    install = f"pip install mcp-server-codex=={mine}"
    return [
        warning(
            "place",
            f"{place.name} answers; its worker is {hello.version}, this server {mine}.",
            f"Install the same version there: {install}",
        ),
        codex,
    ]


def _examined(place: Place, found: Json, skew_s: float) -> list[Check]:
    return [
        _login(place, found),
        _git(place, found),
        ok("python", f"Python {str(found.get('python'))[:40]} runs the worker."),
        _disk(place, found),
        _clock(place, skew_s),
    ]


def _login(place: Place, found: Json) -> Check:
    said = str(found.get("login_said"))[:300]
    if found.get("login") == 0:
        return ok("login", f"Codex there says: {said}")
    if found.get("has_key") is True:
        return ok("login", "Codex there has no stored login and gets a key from a variable.")
    return warning(
        "login",
        f"Codex there says: {said}. A provider of its own configuration may need no login.",
        f"{_line(place, 'codex', 'login', '--device-auth')} (CODEX_HOME there is"
        f" {str(found.get('home'))[:300]})",
    )


def _git(place: Place, found: Json) -> Check:
    said = str(found.get("git"))[:100]
    numbers = re.search(r"(\d+)\.(\d+)", said)
    if numbers is not None and (int(numbers[1]), int(numbers[2])) >= OLDEST_GIT:
        return ok("git", f"{said} is there.")
    oldest = ".".join(map(str, OLDEST_GIT))
    what = f"{said} is too old" if said else "there is no git"
    return problem("git", f"{place.name}: {what}.", f"Install git {oldest} or later there")


def _disk(place: Place, found: Json) -> Check:
    free, folder = _number(found, "free_mb"), str(found.get("state_dir"))[:300]
    message = f"{free:,.0f} MB are free in {folder}, for copies of projects."
    cure = (
        f"Free space there, or set worker of [{place.name}] to: {place.worker} --state-dir FOLDER"
    )
    if free < _LEAST_MB:
        return problem("disk", message, cure)
    if free < place.max_tree_mb:
        more = f" max_tree_mb is {place.max_tree_mb:g}."
        return warning("disk", message + more, f"{cure}, or lower max_tree_mb")
    return ok("disk", message)


def _clock(place: Place, skew_s: float) -> Check:
    if abs(skew_s) <= CLOCK_S:
        return ok("clock", "Its clock and that of this machine agree.")
    way = "ahead of" if skew_s > 0 else "behind"
    return warning(
        "clock",
        f"The clock of {place.name} is {abs(skew_s):,.0f} s {way} that of this machine.",
        "Set the clocks by NTP on both, for example: sudo timedatectl set-ntp true",
    )


def _lease(place: Place, pipe: Pipe) -> Check:
    echo_s = pipe.echo_s
    if echo_s is None:
        return problem("lease", "No ping was answered.", _by_hand(place))
    message = f"A ping takes {echo_s * 1000:,.0f} ms; the lease is {place.lease_s:g} s."
    if echo_s > place.lease_s / 6:
        return warning("lease", message, f"Raise lease_s of [{place.name}]")
    return ok("lease", message)


def _number(found: Json, name: str) -> float:
    value = found.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ProtocolError(f"{name} is no number")
    return float(value)
