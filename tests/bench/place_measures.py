"""The measurements of runs at other places, each beside the same run on this machine.

By a plain command always; by ssh if there is an sshd (support/sshd.py finds it); through Ray if
RAY_PYTHON names the Python of a Ray installation, as `make ray` has one.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import anyio
import pytest
from measures import HERE

sys.path.insert(0, str(HERE.parent))

from figure import Figure

from codex_tools.codex.events import AgentMessageItem, Event, ItemCompletedEvent
from codex_tools.engines.engine import Engine, TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.engines.exec import ExecEngine
from codex_tools.places.mirror import Mirror
from codex_tools.places.pipe import open_pipe
from codex_tools.places.place import SSH, Place, Ray
from codex_tools.places.seat import open_seat
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import take_snapshot
from support.fake_codex import FakeCodex
from support.lab import Lab, environment, open_lab, server_program
from support.ray_cluster import ray_cluster
from support.sshd import real_sshd

BURST = 20_000
"""Events that the fake Codex prints as fast as it can."""

PACED = 50
"""Events that it prints 10 ms after each other, each with the time at which it is printed."""

_BODY = f"""
def say(text):
    item = {{"id": "i", "type": "agent_message", "text": text}}
    print(json.dumps({{"type": "item.completed", "item": item}}))
print('{{"type":"thread.started","thread_id":"01a20000-0000-7000-8000-000000000001"}}')
print('{{"type":"turn.started"}}', flush=True)
for _ in range({BURST}):
    say("x")
sys.stdout.flush()
for _ in range({PACED}):
    time.sleep(0.01)
    say(repr(time.time()))
    sys.stdout.flush()
usage = {{"input_tokens": 1, "cached_input_tokens": 0, "output_tokens": 1}}
print(json.dumps({{"type": "turn.completed", "usage": usage}}), flush=True)
"""


def measure_places(runs: int) -> list[Figure]:
    """Return what the pipe to a place costs, by each road that there is."""
    figures: list[Figure] = []
    with open_lab() as lab, ExitStack() as stack:
        fake = FakeCodex(lab.root / "fake", body=_BODY)
        codex = fake.build()
        (lab.project / "a.txt").write_text("one\n")
        for name, place in _roads(stack, lab, codex):
            figures += anyio.run(_measure, name, place, lab, codex, runs)
    return figures


def _roads(stack: ExitStack, lab: Lab, codex: Path) -> Generator[tuple[str, Place]]:
    worker = ["env", "-i", *(f"{key}={value}" for key, value in environment(lab).items())]
    worker += [server_program(), "worker", "--codex-bin", str(codex)]
    worker += ["--state-dir", str(lab.root / "far-state")]
    plain = Place("box", worker=shlex.join(worker))
    yield "a plain command", plain
    with _if_possible():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = stack.enter_context(real_sshd(folder))
        argv = (SSH[0], "-F", str(config), *SSH[1:], "box")
        yield "ssh", replace(plain, argv=argv, is_ssh=True)
    if python := os.environ.get("RAY_PYTHON"):
        cluster = stack.enter_context(ray_cluster(python))
        yield "Ray", replace(plain, ray=Ray(python, cluster.address))


@contextmanager
def _if_possible() -> Generator[None]:
    try:
        yield
    except pytest.skip.Exception as error:  # The helpers of the tests skip what this machine lacks.
        sys.stderr.write(f"not measured: {error}\n")


async def _measure(name: str, place: Place, lab: Lab, codex: Path, runs: int) -> list[Figure]:
    there: list[tuple[float, float, float]] = []
    here: list[tuple[float, float, float]] = []
    for number in range(runs + 1):
        order = (_elsewhere, _here) if number % 2 else (_here, _elsewhere)
        measured = {work: await work(place, lab, codex) for work in order}
        if number:  # The first pair is there to warm up.
            there.append(measured[_elsewhere])
            here.append(measured[_here])
    whats = (
        ("start until hello", "codex --version"),
        (f"{BURST:,} events", "by codex exec here"),
        ("lag of an event", "by codex exec here"),
    )
    return [
        Figure(f"places, {name}", what, "ms", ours, beside, others, "ratio")
        for (what, beside), ours, others in zip(
            whats, zip(*there, strict=True), zip(*here, strict=True), strict=True
        )
    ]


async def _elsewhere(place: Place, lab: Lab, codex: Path) -> tuple[float, float, float]:
    since = time.perf_counter()
    async with open_pipe(place):
        hello_ms = (time.perf_counter() - since) * 1000
    shadow = Shadow.open(lab.state, lab.project)
    run_id = f"run_{time.time_ns():x}"
    async with open_seat(place, Mirror(lab.state, "box"), run_id, shadow) as seat:
        await seat.lay(take_snapshot(shadow), await seat.reopen(None) or ())
        burst_ms, lag_ms = await _play(seat, TurnRequest(seat.program, "x", seat.folder, *_LIMITS))
    return hello_ms, burst_ms, lag_ms


async def _here(place: Place, lab: Lab, codex: Path) -> tuple[float, float, float]:
    engine = ExecEngine(str(codex))
    since = time.perf_counter()
    program = await engine.prepare(lab.project, EnvironmentRules())
    asked_ms = (time.perf_counter() - since) * 1000
    burst_ms, lag_ms = await _play(engine, TurnRequest(program, "x", lab.project, *_LIMITS))
    return asked_ms, burst_ms, lag_ms


_LIMITS = ("workspace-write", 600, 600)


async def _play(engine: Engine, request: TurnRequest) -> tuple[float, float]:
    """Run a turn; return the milliseconds of the burst, and the median of an event's lag."""
    times: list[float] = []
    lags: list[float] = []
    async with engine.open_turn(request, lambda line: None) as events:
        async for event in events:
            text = _text_of(event)
            if text == "x":
                times.append(time.perf_counter())
            elif text:
                lags.append((time.time() - float(text)) * 1000)
    assert (len(times), len(lags)) == (BURST, PACED)
    return (times[-1] - times[0]) * 1000, median(lags)


def _text_of(event: Event) -> str:
    if isinstance(event, ItemCompletedEvent) and isinstance(event.item, AgentMessageItem):
        return event.item.text
    return ""
