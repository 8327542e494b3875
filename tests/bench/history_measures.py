"""The measurements of the index over rollouts, beside ccusage and a bare look at the files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from measures import HERE, MB, Json, ask, send

sys.path.insert(0, str(HERE.parent))

from figure import Figure, pair
from huge_line import memory

from support.codex_versions import CACHE, cannot_have
from support.lab import server_program
from support.synthetic_home import make_home

CCUSAGE = "20.0.24"

COLD_RATIO = 1.0
WARM_RATIO = 0.05
LOOK_RATIO = 2.0
RSS_MB = 120.0

CALLS = 10
"""Calls that are timed at once: the kernel counts CPU time in ticks of 10 ms."""

LOOKS = 5


@dataclass(frozen=True, slots=True)
class Size:
    """How large a home is."""

    sessions: int
    turns: float
    output_kb: float

    @property
    def name(self) -> str:
        return f"{self.sessions:,} threads"


SIZES = (Size(2_000, 5, 10), Size(10_000, 1, 2))
HUGE = Size(100_000, 1, 0.2)


@dataclass(slots=True)
class Measured:
    """What was measured on one home, in CPU seconds; ours and ccusage's totals besides."""

    cold: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    warm: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    usage: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    sessions: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    rss_mb: list[float] = field(default_factory=list[float])
    ours: Json = field(default_factory=dict[str, object])
    theirs: Json = field(default_factory=dict[str, object])


def measure_history(runs: int, notes: list[str]) -> list[Figure]:
    """Measure the two homes that the limits name; *notes* gets both tools' totals."""
    figures: list[Figure] = []
    for size in SIZES:
        home = home_of(size)
        measured = measure_home(home, runs, ccusage())
        notes.append(f"{size.name}, {size_mb(home):,.0f} MB: {totals(measured)}")
        figures += figures_of(size, measured)
    return figures


def measure_huge_home(runs: int, notes: list[str]) -> list[Figure]:
    """Measure a home of a hundred thousand threads, without a peer."""
    home = home_of(HUGE)
    measured = measure_home(home, runs, None)
    notes.append(f"{HUGE.name}, {size_mb(home):,.0f} MB: {totals(measured)}")
    return figures_of(HUGE, measured)


def measure_home(home: Path, runs: int, peer: list[str] | None) -> Measured:
    found = Measured()
    environ = {**os.environ, "CODEX_HOME": str(home), "TZ": "UTC"}
    # An installed server has its byte code. To compile it at each start takes 50 ms.
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [server_program(), "usage", "--json", "--state-dir"]

    def ours() -> float:
        with tempfile.TemporaryDirectory() as state:
            cpu, out = cpu_of([*command, state], environ)
        found.ours = json.loads(out)["totals"]
        return cpu

    def theirs() -> float:
        cpu, out = cpu_of([*(peer or []), "codex", "daily", "--offline", "--json"], environ)
        found.theirs = json.loads(out)["totals"]
        return cpu

    if peer is not None:
        ours()  # The first run may write the byte code.
        found.cold = [pair(number, ours, theirs) for number in range(runs)]
    with tempfile.TemporaryDirectory() as state, served(state, environ) as server:
        call(server, "codex_usage", {"timezone": "UTC"})
        found.ours = call(server, "codex_usage", {"timezone": "UTC"})["totals"]
        for tool, into in (("codex_usage", found.usage), ("codex_sessions", found.sessions)):
            both = partial(cpu_of_calls, server, tool), partial(cpu_of_look, home)
            call(server, tool, {})
            into += [pair(number, *both) for number in range(runs)]
        if peer is not None:
            both = partial(cpu_of_calls, server, "codex_usage"), theirs
            found.warm = [pair(number, *both) for number in range(runs)]
        found.rss_mb.append(memory("VmHWM", server.pid) / MB)
    return found


def figures_of(size: Size, measured: Measured) -> list[Figure]:
    def figure(
        what: str, beside: str, pairs: list[tuple[float, float]], limit: float | None
    ) -> Figure:
        return Figure(
            section=size.name,
            what=what,
            unit="ms",
            ours=tuple(ours * 1000 for ours, _ in pairs),
            beside_what=beside,
            beside=tuple(beside * 1000 for _, beside in pairs),
            compare="ratio",
            limit=limit,
        )

    # In a small home the call itself, some 25 ms, outweighs the look.
    look_ratio = LOOK_RATIO if size.sessions >= 10_000 else None
    figures = [
        figure("codex_usage, warm", "scandir and stat", measured.usage, look_ratio),
        figure("codex_sessions, warm", "scandir and stat", measured.sessions, look_ratio),
        Figure(
            section=size.name,
            what="RSS, highest",
            unit="MB",
            ours=tuple(measured.rss_mb),
            beside_what="nothing",
            beside=(0.0,) * len(measured.rss_mb),
            compare="difference",
            limit=RSS_MB if size is not HUGE else None,
            limit_of="ours",
        ),
    ]
    if measured.cold:
        figures = [
            figure("cold index and report", "ccusage", measured.cold, COLD_RATIO),
            figure("warm report", "ccusage", measured.warm, WARM_RATIO),
            *figures,
        ]
    return figures


def totals(measured: Measured) -> str:
    """Return both tools' totals in words."""
    words = f"total tokens {measured.ours['total_tokens']:,} (this)"
    if measured.theirs:
        words += f", {measured.theirs['totalTokens']:,} (ccusage {CCUSAGE})"
    return words


def home_of(size: Size) -> Path:
    """Return a home of that size, made once and kept in the cache."""
    folder = CACHE / "homes" / f"{size.sessions}-{size.turns:g}-{size.output_kb:g}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent))
        make_home(
            draft,
            sessions=size.sessions,
            days=90,
            seed=1,
            turns=size.turns,
            output_kb=size.output_kb,
        )
        draft.rename(folder)
    return folder


def size_mb(home: Path) -> float:
    return sum(size for _, size in look(home)) / MB


def look(home: Path) -> list[tuple[str, int]]:
    """List all files below *home* with their size: the least that a report must do."""
    found: list[tuple[str, int]] = []
    ahead = [str(home)]
    while ahead:
        with os.scandir(ahead.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    ahead.append(entry.path)
                else:
                    found.append((entry.path, entry.stat(follow_symlinks=False).st_size))
    return found


def cpu_of_look(home: Path) -> float:
    start = time.process_time()
    for _ in range(LOOKS):
        look(home)
    return (time.process_time() - start) / LOOKS


def cpu_of(command: list[str], environ: dict[str, str]) -> tuple[float, bytes]:
    """Run *command*; return its CPU seconds, its children's included, and what it printed."""
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(
            command, env=environ, stdout=out, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        assert child.returncode == 0, f"{command} failed"
        return usage.ru_utime + usage.ru_stime, out.read()


@contextmanager
def served(state: str, environ: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [server_program(), "--state-dir", state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
    ) as server:
        client = {"name": "bench", "version": "1"}
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
        ask(server, "initialize", hello)
        send(server, {"method": "notifications/initialized"})
        try:
            yield server
        finally:
            server.kill()


def call(server: subprocess.Popen[bytes], tool: str, arguments: Json) -> Json:
    result = ask(server, "tools/call", {"name": tool, "arguments": arguments})
    assert not result.get("isError"), result
    return result["structuredContent"]


def cpu_of_calls(server: subprocess.Popen[bytes], tool: str) -> float:
    """Return the server's CPU seconds for one call, the mean of some: one alone is too short."""
    before = cpu_s(server.pid)
    for _ in range(CALLS):
        call(server, tool, {})
    return (cpu_s(server.pid) - before) / CALLS


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ccusage() -> list[str]:
    """Return the peer's command, fetched once from npm and kept in the cache."""
    folder = CACHE / f"ccusage-{CCUSAGE}"
    script = folder / "node_modules" / "ccusage" / "src" / "cli.js"
    node = shutil.which("node") or "node"
    if not script.exists():
        command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund"]
        try:
            done = subprocess.run([*command, f"ccusage@{CCUSAGE}"], capture_output=True, text=True)
            problem = done.stderr if done.returncode else ""
        except OSError as error:
            problem = str(error)
        if problem:
            cannot_have(f"ccusage {CCUSAGE} from npm: {problem.strip()}")
    return [node, str(script)]
