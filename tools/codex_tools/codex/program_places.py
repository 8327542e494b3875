"""Find where the programs of this server and of Codex are, which no run may change.

A run that can edit a module, the interpreter or Codex could have the next run, or the next start
of this server, execute its own code outside the sandbox. That happens in a project that holds this
server in `.venv`, or Codex in `node_modules`. A copy taken at the start would not prevent it,
because each session of a client starts a server.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from codex_tools.codex.paths import holds, is_same

if TYPE_CHECKING:
    from codex_tools.codex.program import Program

_PACKAGES = ("codex_tools", "mcp_server_codex")
_PACKAGE_FOLDERS = ("site-packages", "dist-packages", "lib-dynload")


def own_reasons(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield each reason why a run must not write to *folder* for the sake of this server's program.

    Each reason comes with the path that it protects.
    """
    for place, inside in _own_places():
        for reason in _relations(folder, place, inside, f"this server's own program ({place})"):
            yield reason, place


def codex_reasons(folder: Path, program: Program) -> Iterator[tuple[str, Path]]:
    """Yield each reason why a run must not write to *folder* for the sake of Codex, as above."""
    found = program.found or program.path
    places = {found: found.parent, program.path: program.path.parent}
    for start in (found, program.path):
        real = start.resolve()
        places[real] = real.parent
    if program.search_path is not None:  # Codex's package: it starts helpers from there, too.
        package = Path(program.search_path).parent
        places[package] = package
    for place, inside in places.items():
        for reason in _relations(folder, place, inside, f"Codex's own program ({place})"):
            yield reason, place


@cache
def _own_places() -> tuple[tuple[Path, Path | None], ...]:
    """Return the paths that this process loads code from, each with the folder to keep out of.

    A folder of PYTHONPATH may be a whole project: a run may work in the folders inside it.
    """
    places: dict[Path, Path | None] = {}
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if entry.startswith("/"):
            places[Path(entry).resolve()] = None
    for entry in map(Path, sys.path):
        if entry.is_absolute() and entry.name in _PACKAGE_FOLDERS:
            places[entry.resolve()] = entry.resolve()
    for package in map(find_spec, _PACKAGES):
        if package is not None and package.origin is not None:
            places[Path(package.origin).parent] = Path(package.origin).parent
    library = Path(os.__file__).resolve().parent
    places[library] = library
    for program in (sys.executable, os.path.realpath(sys.executable)):
        if program:
            places[Path(program)] = Path(program).parent
    if sys.prefix != sys.base_prefix:
        prefix = Path(sys.prefix).resolve()
        places[prefix] = prefix
    return tuple(places.items())


def _relations(folder: Path, place: Path, inside: Path | None, name: str) -> Iterator[str]:
    """Yield how *folder* relates to *place*: contains it, or is inside of the folder *inside*."""
    if holds(folder, place):
        yield f"contains {name}"
    elif inside is not None and any(is_same(each, inside) for each in (folder, *folder.parents)):
        yield f"is inside the folder of {name}"
