"""The system and the Python that the server runs on, and who else meddles with it.

Clients start a server in the folder and with the environment of whatever
project is open. A PYTHONPATH that names a folder with a package called `mcp`,
say, puts that one in the place of the SDK. What is here imports the standard
library alone, for the same reason.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from mcp_server_codex.cli.checks.check import Check, ok, problem, warning

PACKAGES = (
    *("orjson", "anyio", "pydantic", "platformdirs", "rich", "zstandard", "mcp_types", "mcp"),
    *("jsonschema", "referencing", "genai_prices"),
)
"""What this package imports, cheapest first; the last line only when it is needed."""
_LATE = ("jsonschema", "referencing", "genai_prices")

_NEVER_IMPORTED = ("test", "this", "antigravity", "idlelib", "turtle", "turtledemo", "tkinter")
"""Modules of Python whose names a project may well use: neither we nor the SDK import them."""

_CLEAN = (
    "Set PYTHONPATH= PYTHONSAFEPATH=1 for the server, in the client's entry:"
    ' "env": {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}'
)


@dataclass(frozen=True, slots=True)
class Shadow:
    """A module that a foreign folder puts in the place of the right one."""

    module: str
    file: str
    entry: str
    """The folder, as sys.path has it."""
    source: str
    """Who put that folder there."""


def check_system() -> Check:
    """Say on which system, which Python and from where the server runs."""
    package = Path(__file__).parents[2]
    try:
        own = version("mcp-server-codex")
    except PackageNotFoundError:
        own = "of unknown version"
    about = {
        "version": own,
        "package": str(package),
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    said = f"mcp-server-codex {own} in {package}, Python {about['python']}, {about['system']}."
    if sys.platform not in ("linux", "darwin"):
        return problem(
            "system", f"{said} Only Linux and macOS are supported.", "Run it in WSL.", **about
        )
    return ok("system", said, **about)


def check_python(environ: Mapping[str, str], shadows: list[Shadow]) -> list[Check]:
    """Say what takes the place of modules that the server imports."""
    found: list[Check] = []
    for entry in dict.fromkeys(shadow.entry for shadow in shadows):
        here = [shadow for shadow in shadows if shadow.entry == entry]
        named = ", ".join(f"{shadow.module} is {shadow.file}" for shadow in here[:3])
        more = f", and {len(here) - 3} more" if len(here) > 3 else ""
        found.append(
            problem(
                "python",
                f"{here[0].source} puts its own modules before the right ones: {named}{more}.",
                _CLEAN,
                shadows=[{"module": s.module, "file": s.file} for s in here],
            )
        )
    if home := "" if sys.flags.ignore_environment else environ.get("PYTHONHOME", ""):
        found.append(
            warning(
                "python",
                f"PYTHONHOME is {home}: every Python takes its own library from there.",
                'Set PYTHONHOME= for the server, in the client\'s entry: "env": {"PYTHONHOME": ""}',
            )
        )
    return found or [ok("python", "Nothing takes the place of the modules that it imports.")]


def check_packages() -> Check:
    """Import what the server imports; say what cannot be."""
    for name in PACKAGES:
        try:
            if name not in _LATE:
                importlib.import_module(name)
            elif find_spec(name) is None:
                raise ModuleNotFoundError(f"No module named {name!r}")
        except (Exception, SystemExit) as error:
            where = f"{type(error).__name__}: {error}"
            return problem(
                "packages",
                f"{name} cannot be imported: {where}",
                "Install anew: uv tool install --reinstall mcp-server-codex,"
                " or: pip install --force-reinstall mcp-server-codex",
            )
    versions = {name: version(name) for name in ("mcp", "anyio", "pydantic")}
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    return ok("packages", f"All it needs can be imported ({named}).", **versions)


def find_shadows(environ: Mapping[str, str]) -> list[Shadow]:
    """Return what the folders that are not of this installation put in others' places."""
    own = Path(__file__).parents[3]
    shadows: list[Shadow] = []
    for entry, source in _foreign_entries(environ).items():
        if Path(entry or ".").resolve() == own:
            continue  # A bundle that lies on PYTHONPATH as a whole.
        for name in (*PACKAGES, "pydantic_core", "codex_tools", *_standard_names()):
            spec = PathFinder.find_spec(name, [entry or str(Path.cwd())])
            # Without an origin it is a folder of that name that holds no __init__.py: harmless.
            if spec is not None and spec.origin is not None:
                shadows.append(Shadow(name, spec.origin, entry, source))
    return shadows


def shut_out(shadows: list[Shadow], environ: dict[str, str]) -> None:
    """Import nothing from foreign folders from now on, nor let servers in *environ* do so."""
    hostile = {shadow.entry for shadow in shadows}
    sys.path[:] = [entry for entry in sys.path if entry not in hostile]
    importlib.invalidate_caches()
    if hostile and "PYTHONPATH" in environ:
        entries = environ["PYTHONPATH"].split(os.pathsep)
        left = [each for each in entries if each and str(Path(each).absolute()) not in hostile]
        environ["PYTHONPATH"] = os.pathsep.join(left)


def _foreign_entries(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of sys.path that the installation has not put there, and who has."""
    if sys.flags.ignore_environment:
        return {}
    here, named = str(Path.cwd()), environ.get("PYTHONPATH", "").split(os.pathsep)
    theirs = {str(Path(each).absolute()) for each in named} if any(named) else set[str]()
    found: dict[str, str] = {}
    for number, entry in enumerate(sys.path):
        # `python -m` puts the current folder first; a console script puts its own there.
        if number == 0 and entry in ("", here):
            found[entry] = f"The current folder, {here},"
        elif str(Path(entry).absolute()) in theirs:
            found.setdefault(entry, f"PYTHONPATH ({entry})")
    return found


def _standard_names() -> Iterator[str]:
    skipped = {*sys.builtin_module_names, *_NEVER_IMPORTED}
    return (name for name in sys.stdlib_module_names if name not in skipped)
