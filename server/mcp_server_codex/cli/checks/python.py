"""Check the system, Python, and that no other folder replaces the server's modules.

Clients start a server in the folder and with the environment of the project that
is open. A folder on PYTHONPATH that holds a package `mcp`, for example, replaces
the MCP SDK. For the same reason this module imports only the standard library.
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
"""Packages that this package imports, cheapest first; those in the last line only when needed."""
_LATE = ("jsonschema", "referencing", "genai_prices")

_NEVER_IMPORTED = ("test", "this", "antigravity", "idlelib", "turtle", "turtledemo", "tkinter")
"""Standard modules whose names projects often use; neither this server nor the SDK imports them."""

_CLEAN = (
    "Clear PYTHONPATH and set PYTHONSAFEPATH in the client's entry for this server:"
    ' "env": {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}'
)


@dataclass(frozen=True, slots=True)
class Shadow:
    """A module that a foreign folder puts before the right one."""

    module: str
    file: str
    entry: str
    """The folder, as sys.path has it."""
    source: str
    """The cause of that entry, as the start of a sentence."""


def check_system() -> Check:
    """Report the system, the Python version and the folder that the server runs from."""
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
    message = f"mcp-server-codex {own} in {package}, Python {about['python']}, {about['system']}."
    if sys.platform not in ("linux", "darwin"):
        return problem(
            "system",
            f"{message} Only Linux and macOS are supported.",
            "Run the server in WSL.",
            **about,
        )
    return ok("system", message, **about)


def check_python(environ: Mapping[str, str], shadows: list[Shadow]) -> list[Check]:
    """Report modules and variables that replace modules which the server imports."""
    found: list[Check] = []
    for entry in dict.fromkeys(shadow.entry for shadow in shadows):
        here = [shadow for shadow in shadows if shadow.entry == entry]
        named = ", ".join(f"{shadow.module} is loaded from {shadow.file}" for shadow in here[:3])
        more = f", and {len(here) - 3} more" if len(here) > 3 else ""
        found.append(
            problem(
                "python",
                f"{here[0].source} replaces modules that the server imports: {named}{more}.",
                _CLEAN,
                shadows=[{"module": s.module, "file": s.file} for s in here],
            )
        )
    if home := "" if sys.flags.ignore_environment else environ.get("PYTHONHOME", ""):
        found.append(
            warning(
                "python",
                f"PYTHONHOME is {home}: every Python loads its standard library from there.",
                'Clear it in the client\'s entry for this server: "env": {"PYTHONHOME": ""}',
            )
        )
    return found or [ok("python", "No other folder replaces modules that the server imports.")]


def check_packages() -> Check:
    """Import the packages that the server needs; report the first that fails."""
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
                f"The package {name} cannot be imported: {where}",
                "Reinstall: uv tool install --reinstall mcp-server-codex,"
                " or: pip install --force-reinstall mcp-server-codex",
            )
    versions = {name: version(name) for name in ("mcp", "anyio", "pydantic")}
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    return ok(
        "packages", f"All packages that the server needs can be imported ({named}).", **versions
    )


def find_shadows(environ: Mapping[str, str]) -> list[Shadow]:
    """Return the modules that folders outside of this installation put before the right ones."""
    own = Path(__file__).parents[3]
    shadows: list[Shadow] = []
    for entry, source in _foreign_entries(environ).items():
        if Path(entry or ".").resolve() == own:
            continue  # PYTHONPATH names this installation itself, as with a bundle.
        for name in (*PACKAGES, "pydantic_core", "codex_tools", *_standard_names()):
            spec = PathFinder.find_spec(name, [entry or str(Path.cwd())])
            # Without an origin, it is a folder without __init__.py, which is harmless.
            if spec is not None and spec.origin is not None:
                shadows.append(Shadow(name, spec.origin, entry, source))
    return shadows


def remove_shadows(shadows: list[Shadow], environ: dict[str, str]) -> None:
    """Remove the folders of *shadows* from sys.path and from PYTHONPATH in *environ*."""
    hostile = {shadow.entry for shadow in shadows}
    sys.path[:] = [entry for entry in sys.path if entry not in hostile]
    importlib.invalidate_caches()
    if hostile and "PYTHONPATH" in environ:
        entries = environ["PYTHONPATH"].split(os.pathsep)
        left = [each for each in entries if each and str(Path(each).absolute()) not in hostile]
        environ["PYTHONPATH"] = os.pathsep.join(left)


def _foreign_entries(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of sys.path from outside of the installation, each with its cause."""
    if sys.flags.ignore_environment:
        return {}
    here, named = str(Path.cwd()), environ.get("PYTHONPATH", "").split(os.pathsep)
    theirs = {str(Path(each).absolute()) for each in named} if any(named) else set[str]()
    found: dict[str, str] = {}
    for number, entry in enumerate(sys.path):
        # `python -m` puts the current folder first; a console script puts its own there.
        if number == 0 and entry in ("", here):
            found[entry] = f"The current folder ({here})"
        elif str(Path(entry).absolute()) in theirs:
            found.setdefault(entry, f"PYTHONPATH ({entry})")
    return found


def _standard_names() -> Iterator[str]:
    skipped = {*sys.builtin_module_names, *_NEVER_IMPORTED}
    return (name for name in sys.stdlib_module_names if name not in skipped)
