"""Count the imports between packages, and hold them against the table of what each may import.

python -m support.layout        (in tests/) prints the packages, their sizes and their imports
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parents[2]

ROOTS = ("codex_tools", "mcp_server_codex")

EVERYWHERE = "codex_tools.codex"
"""The ground: each package may import it."""

LAYOUT: dict[str, tuple[str, ...]] = {
    "mcp_server_codex.cli": (
        *("mcp_server_codex", "mcp_server_codex.cli.checks", "mcp_server_codex.cli.clients"),
        *("codex_tools", "codex_tools.engines", "codex_tools.history", "codex_tools.rollouts"),
        *("codex_tools.places", "codex_tools.pricing", "codex_tools.runs"),
    ),
    "mcp_server_codex.cli.checks": (
        *("mcp_server_codex", "mcp_server_codex.cli", "mcp_server_codex.cli.clients"),
        *("codex_tools.engines", "codex_tools.history", "codex_tools.places"),
    ),
    "mcp_server_codex.cli.clients": ("mcp_server_codex",),
    "mcp_server_codex": (
        *("codex_tools", "codex_tools.runs", "codex_tools.engines", "codex_tools.rollouts"),
        *("codex_tools.history", "codex_tools.places", "codex_tools.schemas"),
        "codex_tools.pricing",
    ),
    "codex_tools": (
        *("codex_tools.runs", "codex_tools.engines", "codex_tools.rollouts"),
        *("codex_tools.history", "codex_tools.places", "codex_tools.schemas"),
    ),
    "codex_tools.runs": (
        *("codex_tools.engines", "codex_tools.places", "codex_tools.rollouts"),
        *("codex_tools.schemas", "codex_tools.worktree"),
    ),
    "codex_tools.places": (
        *("codex_tools.engines", "codex_tools.rollouts", "codex_tools.worktree"),
        "codex_tools.pricing",
    ),
    "codex_tools.history": ("codex_tools.rollouts", "codex_tools.pricing"),
    "codex_tools.rollouts": ("codex_tools.pricing",),
    "codex_tools.engines": (),
    "codex_tools.schemas": (),
    "codex_tools.worktree": (),
    "codex_tools.pricing": (),
    "codex_tools.codex": (),
}
"""Which packages each may import, in addition to itself and the ground; from the top down."""


def modules() -> Iterator[tuple[str, Path]]:
    """Yield each module of the product by its dotted name."""
    for root in ("server", "tools"):
        for path in sorted((TOP / root).rglob("*.py")):
            if path.name != "__init__.py":
                yield ".".join(path.relative_to(TOP / root).with_suffix("").parts), path


def package_of(module: str) -> str:
    """Return the package of a module, or of a name inside one."""
    return max((each for each in LAYOUT if f"{module}.".startswith(f"{each}.")), key=len)


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports from the product, for types only as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                for name in names:
                    yield f"{module}.{name.name}"
            case ast.Import(names=names):
                for name in names:
                    yield name.name
            case _:
                pass


def module_imports() -> dict[str, set[str]]:
    """Return which modules of the product each module imports."""
    known = dict(modules())
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        names = {
            name for name in imports_of(path) if name.startswith(("codex_tools", "mcp_server"))
        }
        parts = {name if name in known else name.rpartition(".")[0] for name in names}
        found[module] = (parts & known.keys()) - {module}
    return found


def arrows() -> dict[tuple[str, str], int]:
    """Return how many imports go from one package to another."""
    counts: dict[tuple[str, str], int] = {}
    for module, imported in module_imports().items():
        if module.endswith(".__main__"):
            continue  # It starts a server or a command, each by a late import.
        for each in imported:
            pair = (package_of(module), package_of(each))
            if pair[0] != pair[1]:
                counts[pair] = counts.get(pair, 0) + 1
    return counts


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the circles in *graph*, each once; none in a good house."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, above: list[str]) -> None:
        if name in above:
            found.append(above[above.index(name) :])
        elif name not in done:
            for each in sorted(graph.get(name, ())):
                walk(each, [*above, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


def lines_of() -> dict[str, int]:
    """Return the lines of code in each package."""
    counts = dict.fromkeys(LAYOUT, 0)
    for module, path in modules():
        counts[package_of(module)] += len(path.read_text(encoding="utf-8").splitlines())
    return counts


def main() -> None:
    lines, found = lines_of(), arrows()
    tools = sum(count for name, count in lines.items() if name.startswith("codex_tools"))
    for name in LAYOUT:
        targets = [f"{to} {count}" for (of, to), count in sorted(found.items()) if of == name]
        share = f"{lines[name] / tools:4.0%} of tools" if name.startswith("codex_tools") else ""
        sys.stdout.write(f"{name:30} {lines[name]:6} lines {share:14} -> {', '.join(targets)}\n")
    print_circles = circles(module_imports())
    sys.stdout.write(f"{len(LAYOUT)} packages, {len(found)} arrows, {len(print_circles)} circles\n")


if __name__ == "__main__":
    main()
