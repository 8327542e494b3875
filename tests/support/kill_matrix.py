"""The table of the kill matrix: how runs ended, as far as it was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from codex_tools.engines.guard import processes

KINDS = {
    "sleep 600": "foreground",
    "sleep 601": "background",
    "sleep 602": "nohup",
    "sleep 603": "setsid",
    "sleep 604": "double fork",
    "sleep 605": "double fork",
}
"""What a run has started, and how."""

OTHERS = "Codex"
"""What is none of the sleepers: Codex, its sandbox, its shells, our guard."""

COLUMNS = (*dict.fromkeys(KINDS.values()), OTHERS)


@dataclass
class Ending:
    """What was seen of one end of one run."""

    place: int
    """Among the ends, in the order of the table."""
    end: str
    server_lives: bool
    version: str
    engine: str
    sandbox: str
    mode: str
    left: dict[str, int] | None = None
    """How many processes outlived it, by their kind."""
    gone_s: float | None = None
    exit_code: int | None = None
    exit_s: float | None = None
    goes_on: bool = False
    fault: str = ""

    def __str__(self) -> str:
        where = f"{self.end}, {self.version}, {self.engine}, {self.sandbox}, {self.mode}"
        return f"{where}: {self.fault}"

    def noted(self) -> dict[str, Any]:
        """Return it as a test notes it, for `Ending(**noted)` in another process."""
        return asdict(self)


def idle_spares(server: int, run: Collection[int] = ()) -> set[int]:
    """Return the ids of the idle app-servers of the process *server*, and of their guards.

    Such a pair is alone: no other process descends from its guard. None belongs to a *run*.
    """
    children: dict[int, list[int]] = {}
    for pid, parent in processes():
        children.setdefault(parent, []).append(pid)
    spares: set[int] = set()
    for guard in children.get(server, ()):
        match children.get(guard, ()):
            case [spare] if not children.get(spare) and not {guard, spare} & {*run}:
                if _arguments(spare)[1:2] == [b"app-server"]:
                    spares |= {guard, spare}
            case _:
                pass
    return spares


def _arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def drawn(endings: Sequence[Ending]) -> str:
    """Return the table with a line above it, a row for the runs of both eras."""
    left = sum(sum(ending.left.values()) for ending in endings if ending.left)
    faults = sum(1 for ending in endings if ending.fault)
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    for column in ("end", "Codex", "engine", "sandbox", *COLUMNS):
        table.add_column(column.replace(" ", "\n"), no_wrap=True)
    for column in ("gone\nafter s", "server", "exits\nafter s", "thread"):
        table.add_column(column, no_wrap=True)

    def key(ending: Ending) -> tuple[int, str, str, str]:
        return ending.place, ending.version, ending.engine, ending.sandbox

    shown = ""
    for _, group in groupby(sorted(endings, key=key), key):
        runs = sorted(group, key=lambda ending: ending.mode)
        first = runs[0]
        if shown and shown != first.end:
            table.add_section()
        table.add_row(
            "" if shown == first.end else first.end,
            first.version,
            first.engine,
            first.sandbox,
            *(_cell(_count(run, kind) for run in runs) for kind in COLUMNS),
            _cell(_seconds(run.gone_s) for run in runs),
            _cell(dict.fromkeys(_server(run) for run in runs)),
            "" if first.server_lives else _cell(_seconds(run.exit_s) for run in runs),
            _cell(dict.fromkeys("goes on" if run.goes_on else "?" for run in runs)),
        )
        shown = first.end
    text = StringIO()
    Console(file=text, width=180, color_system=None).print(table)
    lines = [
        f"{len(endings)} runs ended, {left} processes left, {faults} faults."
        " Two numbers in a cell: protocol 2026-07-28, and 2025-11-25.",
        *(line.rstrip() for line in text.getvalue().splitlines()),
    ]
    return "\n".join(lines) + "\n"


def _cell(texts: Iterable[str]) -> str:
    return " ".join(texts)


def _count(ending: Ending, kind: str) -> str:
    return "?" if ending.left is None else str(Counter(ending.left)[kind])


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _server(ending: Ending) -> str:
    if ending.server_lives:
        return "lives"
    return "?" if ending.exit_code is None else f"exit {ending.exit_code}"
