"""The measurements of the bench, one function each; bench.py says what they mean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal, cast

import orjson
from anyio.from_thread import start_blocking_portal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from figure import Figure, pair
from huge_line import memory

from codex_tools.codex.events import parse_event
from codex_tools.codex.turn_result import TurnProgress
from mcp_server_codex.cli.scripted_model import say
from support.codex_versions import PINNED, real_codex
from support.lab import Json, Lab, connect, environment, open_lab, server_program

HERE = Path(__file__).resolve().parent

CODEX = PINNED[-1]

OVERHEAD_MS = 50.0
STARTUP_RATIO = 1.05
STARTUP_MB = 15.0
EVENT_US = 50.0
GROWTH_MB = 1.0
LINEAR_RATIO = 1.5
"""A quadratic cost would be 10; caches and a noisy machine make some tenths."""

EVENTS = 200_000
PART = 2_000
"""Events that are timed at once."""
STREAMS = ("cmd", "patch", "mcp", "plan", "web_search", "hello")
LINE_MB = (30, 3)
MB = 1_000_000


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

    def figure(
        what: str,
        unit: str,
        value: Callable[[Start], float],
        compare: Literal["difference", "ratio"],
        limit: float | None,
    ) -> Figure:
        return Figure(
            section="start-up",
            what=what,
            unit=unit,
            ours=tuple(value(ours) for ours, _ in measured),
            beside_what="minimal server",
            beside=tuple(value(minimal) for _, minimal in measured),
            compare=compare,
            limit=limit,
        )

    return [
        figure("wall", "ms", lambda each: each.wall_ms, "ratio", None),
        figure("CPU", "ms", lambda each: each.cpu_ms, "ratio", STARTUP_RATIO),
        figure("RSS", "MB", lambda each: each.rss_mb, "difference", STARTUP_MB),
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
    progress = TurnProgress()
    measured: list[tuple[float, float]] = []
    grown: list[float] = [memory("VmRSS")]
    for number, lines in enumerate(long_turn()):
        ours, beside = partial(parse_and_fold, progress, lines), partial(load_only, lines)
        measured.append(
            pair(number, partial(cpu_us, len(lines), ours), partial(cpu_us, len(lines), beside))
        )
        if number + 1 in (EVENTS // PART // 2, EVENTS // PART):
            grown.append(memory("VmRSS"))
    assert progress.completed, "the stream ends with a completed turn"
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
            what="memory, second half",
            unit="MB",
            ours=((last - half) / MB,),
            beside_what="first half",
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


def parse_and_fold(progress: TurnProgress, lines: list[bytes]) -> None:
    add = progress.add
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

    def figure(
        what: str,
        value: Callable[[Json], float],
        unit: str = "",
        compare: Literal["difference", "ratio"] = "ratio",
        limit: float | None = None,
    ) -> Figure:
        return Figure(
            section=f"{LINE_MB[0]} MB line",
            what=what,
            unit=unit,
            ours=tuple(value(huge) for huge, _ in measured),
            beside_what=f"{LINE_MB[1]} MB",
            beside=tuple(value(large) for _, large in measured),
            compare=compare,
            limit=limit,
        )

    def times_the_line(each: Json, field: str) -> float:
        return each[field] / each["line_bytes"]

    return [
        figure(
            "CPU a MB",
            lambda each: times_the_line(each, "cpu_s") * MB * 1000,
            "ms",
            limit=LINEAR_RATIO,
        ),
        figure("peak of memory", lambda each: times_the_line(each, "growth_bytes"), "x"),
        figure("memory kept", lambda each: times_the_line(each, "kept_bytes"), "x", "difference"),
    ]


def read_line(megabytes: int) -> Json:
    command = [sys.executable, str(HERE / "huge_line.py"), str(megabytes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return cast("Json", json.loads(done.stdout))
