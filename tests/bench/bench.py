"""What the bridge costs, measured on this machine, beside the least that it could cost.

    .venv/bin/python tests/bench/bench.py [--runs N] [--codex VERSION] [--json]

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
3. Events: the CPU time of parse_event and Fold.add, an event, over one long
   turn: the recorded streams of successful turns over and over, their items
   numbered on. Beside it `orjson.loads` alone on the same lines. The process's
   memory shall not grow with the stream.
4. Huge lines: the CPU time of reading and parsing one line of 100 MB from a
   real child, a megabyte, beside one of 10 MB: 1.0 is linear. And the peak of
   memory as a multiple of the line. See huge_line.py.

Ends with exit code 1 if a limit does not hold. Needs Linux's /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import IO, Literal, TypeVar, cast

import orjson
import pytest
from anyio.from_thread import start_blocking_portal
from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from huge_line import memory

from codex_tools.codex.events import parse_event
from codex_tools.codex.turn import Fold
from far_ends import (
    PINNED,
    Json,
    Lab,
    connect,
    environment,
    open_lab,
    real_codex,
    server_program,
)
from mcp_server_codex.cli.scripted_model import say

HERE = Path(__file__).resolve().parent

OVERHEAD_MS = 50.0
STARTUP_RATIO = 1.1
EVENT_US = 50.0
GROWTH_MB = 1.0
LINEAR_RATIO = 1.5
"""A quadratic cost would be 10; caches and a noisy machine make some tenths."""

EVENTS = 200_000
PART = 2_000
"""Events that are timed at once."""
STREAMS = ("cmd", "patch", "mcp", "plan", "web_search", "hello")
LINE_MB = (100, 10)
MB = 1_000_000
WIDTH = 120

Samples = tuple[float, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: ours, what it stands beside, what the pairs say."""

    section: str
    what: str
    unit: str
    ours: Samples
    beside_what: str
    beside: Samples
    compare: Literal["difference", "ratio"]
    limit: float | None = None
    limit_of: Literal["pairs", "ours"] = "pairs"

    @property
    def pairs(self) -> Samples:
        """The difference or the ratio of each pair."""
        both = zip(self.ours, self.beside, strict=True)
        if self.compare == "difference":
            return tuple(a - b for a, b in both)
        return tuple(a / b for a, b in both)

    @property
    def held(self) -> bool | None:
        """Whether the limit held; None where there is none."""
        if self.limit is None:
            return None
        return median(self.pairs if self.limit_of == "pairs" else self.ours) <= self.limit

    def to_json(self) -> Json:
        pairs: Json = {"compare": self.compare, "median": median(self.pairs)}
        pairs["quartiles"] = spread(self.pairs)
        return {
            "section": self.section,
            "what": self.what,
            "unit": self.unit,
            "ours": {"median": median(self.ours), "min": min(self.ours)},
            "beside": {
                "what": self.beside_what,
                "median": median(self.beside),
                "min": min(self.beside),
            },
            "pairs": pairs | {"count": len(self.pairs)},
            "limit": self.limit,
            "limit_of": self.limit_of if self.limit is not None else None,
            "held": self.held,
        }


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile of *values*."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = quantiles(values, method="inclusive")
    return first, third


def pair(number: int, ours: Callable[[], T], beside: Callable[[], T]) -> tuple[T, T]:
    """Measure both, next to each other; in every other pair the second goes first."""
    if number % 2:
        second = beside()
        return ours(), second
    return ours(), beside()


def measure_overhead(runs: int, version: str) -> list[Figure]:
    codex = real_codex(version)
    with (
        open_lab(version) as lab,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(connect("auto", codex, lab)) as client,
    ):
        prompt = lab.script("Say hello.", say("Hello."))

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            """Ask for progress, as most clients do."""

        async def call_run() -> None:
            result = await client.call_tool("codex_run", {"prompt": prompt}, progress_callback=tell)
            assert result.is_error is False, result.content

        command = [str(codex), "exec", "--json", "-s", "read-only", "-C", str(lab.project), "-"]
        both = (
            partial(wall_ms, partial(portal.call, call_run)),
            partial(wall_ms, partial(run_bare, command, prompt, lab)),
        )
        pair(0, *both)  # Warm.
        measured = [pair(number, *both) for number in range(runs)]
    return [
        Figure(
            section="codex_run",
            what="wall",
            unit="ms",
            ours=tuple(ours for ours, _ in measured),
            beside_what="codex exec",
            beside=tuple(beside for _, beside in measured),
            compare="difference",
            limit=OVERHEAD_MS,
        )
    ]


def wall_ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def run_bare(command: Sequence[str], prompt: str, lab: Lab) -> None:
    done = subprocess.run(
        command,
        input=prompt.encode(),
        capture_output=True,
        cwd=lab.project,
        env=environment(lab),
        check=True,
    )
    assert b'"turn.completed"' in done.stdout, done.stdout


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a server, until it has answered tools/list."""

    wall_ms: float
    cpu_ms: float
    rss_mb: float


def measure_start_up(runs: int) -> list[Figure]:
    with open_lab() as lab:
        ours = partial(start, [server_program(), "--state-dir", str(lab.state)], lab)
        minimal = partial(start, [sys.executable, str(HERE / "minimal_server.py")], lab)
        pair(0, ours, minimal)  # Warm: compiles what is not compiled.
        measured = [pair(number, ours, minimal) for number in range(runs)]

    def figure(what: str, unit: str, value: Callable[[Start], float], limit: float | None):
        return Figure(
            section="start-up",
            what=what,
            unit=unit,
            ours=tuple(value(ours) for ours, _ in measured),
            beside_what="minimal server",
            beside=tuple(value(minimal) for _, minimal in measured),
            compare="ratio",
            limit=limit,
        )

    return [
        figure("wall", "ms", lambda each: each.wall_ms, STARTUP_RATIO),
        figure("CPU", "ms", lambda each: each.cpu_ms, STARTUP_RATIO),
        figure("RSS", "MB", lambda each: each.rss_mb, None),
    ]


def start(command: Sequence[str], lab: Lab) -> Start:
    begin = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=lab.project,
        env=environment(lab),
    ) as server:
        client = {"name": "bench", "version": "1"}
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
        ask(server, "initialize", hello)
        send(server, {"method": "notifications/initialized"})
        assert ask(server, "tools/list", {})["tools"]
        wall = time.perf_counter() - begin
        rss = memory("VmRSS", server.pid)
        server.kill()
        _, _, usage = os.wait4(server.pid, 0)
        server.returncode = 0  # It is waited for; Popen shall not try.
    return Start(wall * 1000, (usage.ru_utime + usage.ru_stime) * 1000, rss / MB)


def ask(server: subprocess.Popen[bytes], method: str, params: Json) -> Json:
    """Send a request and return its result, whatever arrives before it."""
    send(server, {"id": method, "method": method, "params": params})
    for line in cast("IO[bytes]", server.stdout):
        answer = cast("Json", json.loads(line))
        if answer.get("id") == method:
            return cast("Json", answer["result"])
    raise RuntimeError(f"the server has ended without an answer to {method}")


def send(server: subprocess.Popen[bytes], message: Json) -> None:
    stdin = cast("IO[bytes]", server.stdin)
    stdin.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")
    stdin.flush()


def measure_events() -> list[Figure]:
    fold = Fold()
    measured: list[tuple[float, float]] = []
    grown: list[float] = [memory("VmRSS")]
    for number, lines in enumerate(long_turn()):
        ours, beside = partial(parse_and_fold, fold, lines), partial(load_only, lines)
        measured.append(
            pair(number, partial(cpu_us, len(lines), ours), partial(cpu_us, len(lines), beside))
        )
        if number + 1 in (EVENTS // PART // 2, EVENTS // PART):
            grown.append(memory("VmRSS"))
    assert fold.completed, "the stream ends with a completed turn"
    first, half, last = grown
    return [
        Figure(
            section="event",
            what="CPU",
            unit="µs",
            ours=tuple(ours for ours, _ in measured),
            beside_what="orjson.loads",
            beside=tuple(beside for _, beside in measured),
            compare="ratio",
            limit=EVENT_US,
            limit_of="ours",
        ),
        Figure(
            section="event",
            what=f"memory, last {EVENTS // 2:,}",
            unit="MB",
            ours=((last - half) / MB,),
            beside_what=f"first {EVENTS // 2:,}",
            beside=((half - first) / MB,),
            compare="difference",
            limit=GROWTH_MB,
            limit_of="ours",
        ),
    ]


def long_turn() -> Iterator[list[bytes]]:
    """Yield EVENTS lines in parts: the recorded streams, their items numbered on."""
    streams = [
        path.read_bytes().splitlines()
        for name in STREAMS
        for path in sorted((HERE.parent / "data" / "exec").glob(f"*/{name}/stdout.jsonl"))
    ]
    assert streams, "there are no recorded streams"
    first, left = 0, EVENTS
    part: list[bytes] = []
    while left:
        for stream in streams:
            for line in stream[:left]:
                part.append(numbered(line, first))
                left -= 1
                if len(part) == PART:
                    yield part
                    part = []
            first += len(stream)


def numbered(line: bytes, first: int) -> bytes:
    """Return *line* with its item's number counted from *first*."""
    head, found, rest = line.partition(b'"item":{"id":"item_')
    if not found:
        return line
    old, _, tail = rest.partition(b'"')
    return b'%s%s%d"%s' % (head, found, first + int(old), tail)


def parse_and_fold(fold: Fold, lines: list[bytes]) -> None:
    add = fold.add
    for line in lines:
        add(parse_event(line))


def load_only(lines: list[bytes]) -> None:
    loads = orjson.loads
    for line in lines:
        loads(line)


def cpu_us(count: int, work: Callable[[], None]) -> float:
    """Return the CPU time of *work*, a *count*th of it."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1e6 / count


def measure_huge_lines(runs: int) -> list[Figure]:
    huge, large = (partial(read_line, megabytes) for megabytes in LINE_MB)
    measured = [pair(number, huge, large) for number in range(runs)]

    def figure(what: str, unit: str, value: Callable[[Json], float], limit: float | None) -> Figure:
        return Figure(
            section=f"{LINE_MB[0]} MB line",
            what=what,
            unit=unit,
            ours=tuple(value(huge) for huge, _ in measured),
            beside_what=f"{LINE_MB[1]} MB",
            beside=tuple(value(large) for _, large in measured),
            compare="ratio",
            limit=limit,
        )

    return [
        figure(
            "CPU a MB",
            "ms",
            lambda each: each["cpu_s"] * 1000 / (each["line_bytes"] / MB),
            LINEAR_RATIO,
        ),
        figure("peak / size", "", lambda each: each["growth_bytes"] / each["line_bytes"], None),
    ]


def read_line(megabytes: int) -> Json:
    command = [sys.executable, str(HERE / "huge_line.py"), str(megabytes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return cast("Json", json.loads(done.stdout))


def make_table(figures: Sequence[Figure], title: str) -> Table:
    table = Table(title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAVY)
    table.add_column("what / beside what", no_wrap=True)
    for heading in ("median (min)", "beside it", "pair by pair (quartiles)", "limit", ""):
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
    return f"{value:,.{0 if size >= 1000 else 1 if size >= 10 else 2}f}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what the bridge costs.")
    parser.add_argument("--runs", type=int, default=15, help="pairs of each comparison")
    parser.add_argument("--codex", default=PINNED[-1], metavar="VERSION")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    runs, version = max(1, cast("int", options.runs)), cast("str", options.codex)
    progress = Console(stderr=True, highlight=False)
    figures: list[Figure] = []
    measurements: dict[str, Callable[[], list[Figure]]] = {
        "huge lines": partial(measure_huge_lines, runs),
        "events": measure_events,
        "start-up": partial(measure_start_up, runs),
        "overhead": partial(measure_overhead, runs, version),
    }
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
        console.print_json(data={"held": not missed, "machine": machine, "figures": shown})
        return 1 if missed else 0
    title = (
        f"Codex {version}, Python {machine['python']}, {machine['cpus']} CPUs,"
        f" load {load_before:.1f} to {machine['load_after']:.1f}, {runs} pairs"
    )
    console.print(make_table(figures, title))
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
        sys.exit(str(reason))  # This Codex cannot be had here.
