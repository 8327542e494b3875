"""What the bridge costs, measured on this machine, beside the least that it could cost.

    .venv/bin/python tests/bench/bench.py [--runs N] [--codex VERSION] [--json]
                                          [--only NAME] [--huge] [--files N]

Whatever is compared is measured in pairs, the two of a pair next to each other
and each first in every other pair, and judged by the median of what the pairs
say: a noisy machine disturbs both of a pair alike. One table, one run:

1. Overhead: the wall time of a `codex_run` call on a server that is kept
   running (the SDK's client over stdio, with progress), less that of the bare
   native `codex exec --json` on the same prompt, in the same lab, on the same
   scripted model.
2. Start-up: from spawning the console script until `tools/list` is answered,
   after the initialize handshake, spoken as lines on pipes. Beside it
   minimal_server.py, the least that the MCP SDK can be. Both are killed at that
   moment, so their CPU time (wait4) has no shutdown in it; memory is VmRSS.
3. Events: the CPU time of parse_event and TurnProgress.add, an event, over one long
   turn: the recorded streams of successful turns over and over, their items
   numbered on. Beside it `orjson.loads` alone on the same lines. The process's
   memory shall not grow with the stream.
4. Huge lines: the CPU time of reading and parsing one line of 30 MB from a
   real child, a megabyte, beside one of 3 MB: 1.0 is linear. And the peak of
   memory, and what is kept of it afterwards, in lines. See huge_line.py.
5. History: the CPU time of `mcp-server-codex usage --json` with an empty state
   folder, the whole process, and of a codex_usage call on a server that has its
   index, beside ccusage (npm) on the same home; of warm codex_usage and
   codex_sessions calls beside a bare scandir and stat of the same files; the
   server's highest memory. Two homes, of 2,000 and 10,000 threads; with --huge
   one of 100,000 as well (6 GB on disk). Both tools' totals stand below.
6. Isolation: the wall time of the first snapshot of a project, of laying out a copy, and of
   bringing a used copy to a new state, beside `git worktree add` of the same commit; and all that
   isolation adds to a run in a small project. 5,000 files, or --files 50000 (540 MB).
7. Engines, only with --only engines: a turn on an app-server that was kept ready, until none of its
   processes is left, beside the bare `codex exec`; eight turns at once with eight spares beside
   eight by the exec engine, with the memory (PSS) of their processes; and that of an idle spare.

8. Places, only with --only places (`make bench-places`): the start of a worker until its hello, a
   burst of events, and the lag of one, by a plain command, by ssh and through Ray where there are
   such, beside the same fake Codex on this machine.

Ends with exit code 1 if a limit does not hold. Needs Linux's /proc.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import cast

import pytest
from engine_measures import measure_engines
from figure import Figure, Json, spread
from history_measures import measure_history, measure_huge_home
from isolation_measures import FILES, measure_isolation
from measures import CODEX, measure_events, measure_huge_lines, measure_overhead, measure_start_up
from place_measures import measure_places
from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 120


def make_table(figures: Sequence[Figure], title: str) -> Table:
    table = Table(title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAVY)
    table.add_column("what / beside what", no_wrap=True)
    for heading in ("median (min)", "beside it", "pairs (quartiles)", "limit", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    section = ""
    for figure in figures:
        if figure.section != section:
            section = figure.section
            table.add_section()
        sign = "x" if figure.compare == "ratio" else ""
        first, third = spread(figure.pairs)
        table.add_row(
            f"{figure.section}, {figure.what} / {figure.beside_what}",
            f"{centre(figure.ours)} {figure.unit:2}",
            centre(figure.beside),
            f"{sign}{short(median(figure.pairs))} ({short(first)} to {short(third)})",
            limit_text(figure),
            {None: "", True: "[green]held[/green]", False: "[red]missed[/red]"}[figure.held],
        )
    return table


def centre(values: Sequence[float]) -> str:
    return f"{short(median(values))} ({short(min(values))})"


def limit_text(figure: Figure) -> str:
    if figure.limit is None:
        return ""
    if figure.limit_of == "ours":
        return f"≤ {figure.limit:g} {figure.unit}"
    return f"≤ {figure.limit:g}" if figure.compare == "difference" else f"≤ x{figure.limit:g}"


def short(value: float) -> str:
    """Return *value* with about three digits that matter."""
    size = abs(value)
    return f"{value:z,.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what the bridge costs.")
    parser.add_argument("--runs", type=int, default=15, help="pairs of each comparison")
    parser.add_argument("--codex", default=CODEX, metavar="VERSION")
    parser.add_argument("--only", metavar="NAME", help="one measurement: history, events, ...")
    parser.add_argument("--huge", action="store_true", help="a home of 100,000 threads, too")
    parser.add_argument("--files", type=int, default=FILES, help="files of an isolated project")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    runs, version = max(1, cast("int", options.runs)), cast("str", options.codex)
    progress = Console(stderr=True, highlight=False)
    figures: list[Figure] = []
    notes: list[str] = []
    measurements: dict[str, Callable[[], list[Figure]]] = {
        "history": partial(measure_history, min(runs, 5), notes),
        "huge lines": partial(measure_huge_lines, runs),
        "events": measure_events,
        "start-up": partial(measure_start_up, runs),
        "overhead": partial(measure_overhead, runs, version),
        "isolation": partial(
            measure_isolation, min(runs, 5), max(1000, cast("int", options.files))
        ),
    }
    if options.only == "engines":
        measurements["engines"] = partial(measure_engines, runs, version)
    if options.only == "places":
        measurements["places"] = partial(measure_places, min(runs, 5))
    if options.huge:
        measurements["huge home"] = partial(measure_huge_home, min(runs, 5), notes)
    if options.only is not None:
        measurements = {options.only: measurements[options.only]}
    load_before = os.getloadavg()[0]
    for name, measure in measurements.items():
        progress.print(f"[dim]measuring {name} ...[/dim]")
        figures = measure() + figures
    missed = [figure for figure in figures if figure.held is False]
    machine: Json = {
        "codex": version,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    if options.json:
        shown = [figure.to_json() for figure in figures]
        console.print_json(
            data={"held": not missed, "machine": machine, "figures": shown, "notes": notes}
        )
        return 1 if missed else 0
    title = (
        f"Codex {version}, Python {machine['python']}, {machine['cpus']} CPUs,"
        f" load {load_before:.1f} to {machine['load_after']:.1f}, {runs} pairs"
    )
    console.print(make_table(figures, title))
    for note in notes:
        console.print(f"[dim]{note}[/dim]")
    if missed:
        names = "; ".join(f"{each.section}: {each.what}" for each in missed)
        console.print(f"[red]Limits missed: {names}.[/red]")
        return 1
    console.print("[green]Every limit held.[/green]")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (pytest.skip.Exception, pytest.fail.Exception) as reason:
        # real_codex raises these where a Codex cannot be fetched, as it does in a test.
        sys.exit(str(reason))
