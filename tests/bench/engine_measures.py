"""The measurements of turns on an app-server that was kept ready, beside `codex exec`."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from measures import HERE, run_bare, wall_ms

sys.path.insert(0, str(HERE.parent))

from figure import Figure, pair

from codex_tools.engines.app_server import AppServerEngine
from codex_tools.engines.engine import Engine
from codex_tools.engines.exec import ExecEngine
from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import real_codex
from support.engine_turns import run
from support.lab import Lab, environment, marked, open_lab

TURN_RATIO = 0.5
AT_ONCE = 8
AT_ONCE_RATIO = 0.75
MEMORY_RATIO = 1.05
SPARE_MIB = 60.0
IN_A_ROW = 10
WARM_S = 1.5
"""Seconds for a spare to become ready; so long a pause stands before each measured turn."""


def measure_engines(runs: int, version: str) -> list[Figure]:
    """Return what a turn on a spare costs beside `codex exec`, one at a time and eight at once."""
    codex = real_codex(version)
    figures: list[Figure] = []
    with open_lab(version) as lab, start_blocking_portal() as portal:
        plain = environment(lab)
        os.environ.clear()
        os.environ.update(plain)
        hello = lab.script("Say hello.", say("Hello."))
        work = lab.script("Work.", do(Shell("true")), do(Shell("true")), say("Done."))
        command = [str(codex), "exec", "--json", "-s", "read-only", "-C", str(lab.project), "-"]
        bare = partial(wall_ms, partial(run_bare, command, hello, lab))
        with portal.wrap_async_context_manager(spared(codex, 1)) as engine:
            one = partial(turn_ms, portal, engine, lab, hello)
            pair(0, one, bare)  # Warm; the spare is ordered.
            measured = [pair(number, partial(after_pause, one), bare) for number in range(runs)]
            figures.append(figure("a turn on a spare, until all is dead", measured, TURN_RATIO))
            idle = tuple(idle_mib(lab) for _ in range(3))
            time.sleep(WARM_S)
            row = [(one(), bare()) for _ in range(IN_A_ROW)]
            figures.append(figure(f"the same, {IN_A_ROW} back to back", row, TURN_RATIO))
        figures.append(
            Figure(
                "engines",
                "PSS of an idle spare",
                "MiB",
                idle,
                "nothing",
                (0.0,) * len(idle),
                "difference",
                SPARE_MIB,
            )
        )
        eight: list[tuple[Peak, Peak]] = []
        with portal.wrap_async_context_manager(spared(codex, AT_ONCE)) as engine:
            several = partial(at_once, portal, engine, lab, work)
            by_exec = partial(at_once, portal, ExecEngine(str(codex)), lab, work)
            pair(0, several, by_exec)
            for number in range(max(3, runs // 3)):
                time.sleep(2 * WARM_S)
                eight.append(pair(number, several, by_exec))
    walls = [(ours.wall_ms, beside.wall_ms) for ours, beside in eight]
    name = f"{AT_ONCE} at once, {AT_ONCE} spares"
    figures.append(figure(name, walls, AT_ONCE_RATIO, f"{AT_ONCE} at once by exec"))
    peaks = [(ours.mib, beside.mib) for ours, beside in eight]
    figures.append(figure(f"{name}, PSS", peaks, MEMORY_RATIO, f"{AT_ONCE} at once by exec", "MiB"))
    return figures


def figure(
    what: str,
    measured: list[tuple[float, float]],
    limit: float,
    beside: str = "codex exec",
    unit: str = "ms",
) -> Figure:
    ours, others = zip(*measured, strict=True)
    return Figure("engines", what, unit, ours, beside, others, "ratio", limit)


@asynccontextmanager
async def spared(codex: Path, count: int) -> AsyncGenerator[AppServerEngine]:
    engine = AppServerEngine(str(codex))
    async with engine.keep_spares(count):
        yield engine


def turn_ms(portal: BlockingPortal, engine: Engine, lab: Lab, prompt: str) -> float:
    async def turn() -> None:
        ran = await run(engine, lab, prompt)
        assert ran.error is None, ran.error

    return wall_ms(partial(portal.call, turn))


def after_pause(work: Callable[[], float]) -> float:
    time.sleep(WARM_S)
    return work()


class Peak:
    """Wall time of some work, and the highest PSS of the processes that it started."""

    def __init__(self, work: Callable[[], object], lab: Lab) -> None:
        self.mib = 0.0
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.05):
                self.mib = max(self.mib, pss_mib(lab))

        watcher = threading.Thread(target=watch)
        watcher.start()
        self.wall_ms = wall_ms(work)
        ended.set()
        watcher.join()


def at_once(portal: BlockingPortal, engine: Engine, lab: Lab, prompt: str) -> Peak:
    async def turns() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(one)

    async def one() -> None:
        ran = await run(engine, lab, prompt)
        assert ran.error is None, ran.error

    return Peak(partial(portal.call, turns), lab)


def idle_mib(lab: Lab) -> float:
    time.sleep(WARM_S)
    return pss_mib(lab)


def pss_mib(lab: Lab) -> float:
    """Return the proportional memory of all processes with the lab's CODEX_HOME but this one."""
    total = 0
    for pid in marked(f"CODEX_HOME={lab.home}"):
        if pid == os.getpid():
            continue
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")
    return total / 1024
