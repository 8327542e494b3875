"""A seat runs turns at another place, and whatever ends the pipe, nothing is left there."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest

from codex_tools.codex.events import (
    EngineEvent,
    Event,
    ExitedEvent,
    ItemCompletedEvent,
    ThreadStartedEvent,
)
from codex_tools.codex.place_errors import PlaceLost, PlaceRefused, PlaceUnavailable
from codex_tools.codex.program import NOT_ASKED
from codex_tools.engines.engine import TurnRequest
from codex_tools.places.mirror import Mirror
from codex_tools.places.place import Place
from codex_tools.places.seat import Seat, open_seat
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import Snapshot, take_snapshot
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.far_machine import FarMachine, far_machine, living, wait_until_gone, worker_pid
from support.lab import Lab, environment, server_program, until

THREAD = "01a20000-0000-7000-8000-000000000001"

LEASE_S = 4.0

MARGIN_S = 2.0

SLEEPERS = f"""
import subprocess
for _ in range(2):
    subprocess.Popen(["setsid", "nohup", "sleep", "600"], stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
print('{{"type":"thread.started","thread_id":"{THREAD}"}}', flush=True)
print('{{"type":"turn.started"}}', flush=True)
time.sleep(600)
"""


@dataclass
class Scene:
    """A project here, and a place with a fake Codex."""

    lab: Lab
    far: FarMachine
    tag: str
    shadow: Shadow
    mirror: Mirror

    def place(self, lease_s: float = LEASE_S) -> Place:
        return self.far.place(lease_s=lease_s)

    def sleepers(self) -> int:
        return sum(argv.startswith("sleep 600") for argv in living(self.tag).values())


def tag_and_env(lab: Lab) -> tuple[str, dict[str, str]]:
    mark = str(uuid.uuid4())
    return f"TEST_MARK={mark}", environment(lab) | {"TEST_MARK": mark}


@pytest.fixture
def scene(lab: Lab, fake: FakeCodex) -> Generator[Scene]:
    yield from make_scene(lab, fake)


def make_scene(lab: Lab, fake: FakeCodex, *options: str) -> Generator[Scene]:
    (lab.project / "a.txt").write_text("one\n")
    tag, env = tag_and_env(lab)
    command = [server_program(), "worker", "--codex-bin", str(fake.build())]
    command += ["--state-dir", str(lab.root / "far-state"), *options]
    with far_machine(command, env) as far:
        shadow = Shadow.open(lab.state, lab.project)
        yield Scene(lab, far, tag, shadow, Mirror(lab.state, "box"))
    left = wait_until_gone(tag, 1.0)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


async def lay(seat: Seat, shadow: Shadow) -> Snapshot:
    snapshot = take_snapshot(shadow)
    known = await seat.reopen(None)
    assert known is not None
    await seat.lay(snapshot, known)
    return snapshot


def turn_in(seat: Seat, prompt: str = "x") -> TurnRequest:
    return TurnRequest(
        NOT_ASKED, prompt, seat.folder, "workspace-write", timeout_s=60, stall_s=60, depth=1
    )


def ignore(line: bytes) -> None:
    pass


async def test_a_turn_at_a_place_yields_the_events_in_order_and_its_changes_come_back(
    scene: Scene, fake: FakeCodex
) -> None:
    fake.body = "open('a.txt', 'w').write('two\\n'); open('new.txt', 'w').write('n')"
    many = [
        {"type": "item.completed", "item": {"id": f"i{n}", "type": "agent_message", "text": str(n)}}
        for n in range(500)
    ]
    fake.stdout = events(thread_line(), {"type": "turn.started"}, *many, *answer_lines("hi")[1:])
    fake.build()
    lines: list[bytes] = []
    found: list[Event] = []
    async with open_seat(scene.place(), scene.mirror, "run_1", scene.shadow) as seat:
        assert seat.program.version_text == "0.169.0"
        snapshot = await lay(seat, scene.shadow)
        async with seat.open_turn(turn_in(seat), lines.append) as turn:
            async for event in turn:
                found.append(event)
        changes = await seat.collect(seat.snapshot or snapshot)
    assert found[0] == EngineEvent("exec")
    assert isinstance(found[1], ThreadStartedEvent)
    assert isinstance(found[-1], ExitedEvent)
    assert found[-1].returncode == 0  # Although the parent of the worker ignores SIGCHLD.
    said = [e.item.text for e in found if isinstance(e, ItemCompletedEvent)]  # pyright: ignore
    assert said == [*map(str, range(500)), "hi"]
    assert b"\n".join(lines) == fake.stdout.strip()  # pyright: ignore
    assert [(each.path, each.kind) for each in changes.files] == [
        ("a.txt", "update"),
        ("new.txt", "add"),
    ]
    assert (scene.lab.project / "a.txt").read_text() == "one\n"
    assert Path(fake.seen()["cwd"]) == seat.folder
    assert str(seat.folder).startswith(str(scene.lab.root / "far-state"))
    assert seat.warnings == []


async def test_changes_are_fetched_again_after_a_call_that_was_cancelled(
    scene: Scene, fake: FakeCodex
) -> None:
    fake.body = "open('big', 'wb').write(os.urandom(2_000_000))"
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    fake.build()
    async with open_seat(scene.place(), scene.mirror, "run_1", scene.shadow) as seat:
        snapshot = await lay(seat, scene.shadow)
        async with seat.open_turn(turn_in(seat), ignore) as turn:
            assert [each async for each in turn]
        for within_s in (0.0, 0.001, 0.03, 0.1):  # Whatever has arrived by then is right.
            with anyio.move_on_after(within_s):
                await seat.collect(snapshot)
            changes = await seat.collect(snapshot)
            assert [each.path for each in changes.files] == ["big"]
            assert not seat.is_lost


async def reopens(scene: Scene, copy: str, keep_days: float) -> bool:
    """Return True if the place still has the copy for a server with this `keep_days`."""
    place = replace(scene.place(), keep_days=keep_days)
    async with open_seat(place, scene.mirror, "run_2", scene.shadow) as seat:
        return await seat.reopen(copy) is None


async def test_a_copy_is_kept_at_the_place_for_keep_days_after_its_last_use(
    scene: Scene, fake: FakeCodex
) -> None:
    fake.body = "open('a.txt', 'w').write('two')"
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    fake.build()
    trees = scene.lab.root / "far-state" / "worker" / "trees"

    def age(days: float) -> None:
        then = time.time() - days * 86400
        for path in trees.glob("*/**/*"):
            os.utime(path, (then, then), follow_symlinks=False)

    async with open_seat(scene.place(), scene.mirror, "run_1", scene.shadow) as seat:
        await lay(seat, scene.shadow)
        async with seat.open_turn(turn_in(seat), ignore) as turn:
            age(2)  # A turn may be longer than `keep_days`: what counts is its end.
            assert [each async for each in turn]
    # Were it deleted at once, what a lost connection could not send would be lost, too.
    assert await reopens(scene, seat.copy, 0)
    assert await reopens(scene, seat.copy, 1)
    age(2)
    assert await reopens(scene, seat.copy, 3)
    age(2)
    assert not await reopens(scene, seat.copy, 1)
    assert not [*trees.glob("*/copies/*")]
    assert not [*trees.glob("*/snapshots/*")]


async def test_no_environment_and_no_secret_of_this_machine_reaches_the_place(
    scene: Scene, fake: FakeCodex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEAR_SECRET", "s3cret")
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    fake.build()
    async with open_seat(scene.place(), scene.mirror, "run_1", scene.shadow) as seat:
        await lay(seat, scene.shadow)
        async with seat.open_turn(turn_in(seat), ignore) as turn:
            assert [each async for each in turn]
    assert "NEAR_SECRET" not in fake.seen()["env"]
    assert "TEST_MARK" in fake.seen()["env"]


async def _start(seat: Seat, scene: Scene) -> None:
    """Run a turn with two sleepers until the pipe fails."""
    await lay(seat, scene.shadow)
    async with seat.open_turn(turn_in(seat), ignore) as turn:
        async for _ in turn:
            pass


async def test_a_cancelled_turn_leaves_nothing_at_the_place(scene: Scene, fake: FakeCodex) -> None:
    fake.body = SLEEPERS
    fake.build()
    async with open_seat(scene.place(60), scene.mirror, "run_1", scene.shadow) as seat:
        await lay(seat, scene.shadow)
        with anyio.CancelScope() as scope:
            async with seat.open_turn(turn_in(seat), ignore) as turn:
                async for event in turn:
                    if not isinstance(event, ThreadStartedEvent):
                        await until(lambda: scene.sleepers() == 2)
                        scope.cancel()
        # `dead` was waited for, so there is nothing to wait for here.
        assert scene.sleepers() == 0
        assert seat.warnings == []
        # The seat is still good: what the turn changed can be fetched.
        assert (await seat.collect(take_snapshot(scene.shadow))).files == ()


def connector_pid(scene: Scene) -> int:
    (pid,) = (
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if str(scene.far.socket) in _argv(folder)
        and "recv" in _argv(folder)
        and "guard" not in _argv(folder)
    )
    return pid


def _argv(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.parametrize(
    "fault", ["worker killed", "worker stopped", "connector killed", "connector stopped"]
)
async def test_a_lost_place_is_told_only_when_nothing_is_alive_there(
    scene: Scene, fake: FakeCodex, fault: str
) -> None:
    fake.body = SLEEPERS
    fake.build()
    failure: list[PlaceLost] = []

    async def work(seat: Seat) -> None:
        try:
            await _start(seat, scene)
        except PlaceLost as error:
            assert living(scene.tag) == {}, "something was alive when the caller heard of it"
            failure.append(error)

    pid = 0
    async with (
        open_seat(scene.place(), scene.mirror, "r", scene.shadow, margin_s=MARGIN_S) as seat,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(work, seat)
        await until(lambda: scene.sleepers() == 2)
        number = signal.SIGKILL if "killed" in fault else signal.SIGSTOP
        pid = worker_pid(scene.tag) if "worker" in fault else connector_pid(scene)
        os.kill(pid, number)
        await until(lambda: bool(failure))
    assert failure[0].place == "box"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_death_of_a_guard_at_the_place_leaves_nothing_there(
    scene: Scene, fake: FakeCodex
) -> None:
    fake.body = SLEEPERS
    fake.build()
    async with (
        open_seat(scene.place(60), scene.mirror, "r", scene.shadow) as seat,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_start, seat, scene)
        await until(lambda: scene.sleepers() == 2)
        (guard,) = (pid for pid, argv in living(scene.tag).items() if "guard" in argv)
        os.kill(guard, signal.SIGKILL)
        await until(lambda: scene.sleepers() == 0)


async def test_the_death_of_this_process_ends_the_turn_at_the_place(
    scene: Scene, fake: FakeCodex
) -> None:
    fake.body = SLEEPERS
    fake.build()
    code = f"""
import anyio, json, sys
from pathlib import Path
from codex_tools.places.mirror import Mirror
from codex_tools.places.place import Place
from codex_tools.places.seat import open_seat
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import take_snapshot
from codex_tools.codex.program import NOT_ASKED
from codex_tools.engines.engine import TurnRequest
async def main():
    shadow = Shadow.open(Path({str(scene.lab.state)!r}), Path({str(scene.lab.project)!r}))
    place = Place("box", tuple(json.loads(sys.argv[1])), worker="unused")
    async with open_seat(place, Mirror(Path({str(scene.lab.state)!r}), "box"), "r", shadow) as seat:
        await seat.lay(take_snapshot(shadow), await seat.reopen(None))
        request = TurnRequest(NOT_ASKED, "x", seat.folder, "read-only", 60, 60)
        async with seat.open_turn(request, len) as turn:
            async for _ in turn:
                pass
anyio.run(main)
"""
    near = await anyio.open_process([sys.executable, "-c", code, json.dumps(scene.far.argv)])
    try:
        await until(lambda: scene.sleepers() == 2)
    finally:
        near.kill()
        await near.aclose()
    await until(lambda: living(scene.tag) == {}, within_s=LEASE_S)


async def test_a_run_never_starts_twice(scene: Scene, fake: FakeCodex) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    fake.build()
    async with open_seat(scene.place(), scene.mirror, "run_1", scene.shadow) as seat:
        await lay(seat, scene.shadow)
        async with seat.open_turn(turn_in(seat), ignore) as turn:
            assert [each async for each in turn]
    fake.forget()
    async with open_seat(scene.place(), scene.mirror, "run_1", scene.shadow) as seat:
        await lay(seat, scene.shadow)
        with pytest.raises(PlaceUnavailable, match="started before"):
            async with seat.open_turn(turn_in(seat), ignore) as turn:
                assert [each async for each in turn]
    assert not fake.was_started


async def test_a_turn_never_asks_at_a_place_whatever_the_place_allows(
    lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    # The lease of a stopped worker is kept only by the guards of `codex exec`.
    options = ("--approvals", "caller", "--engine", "app-server")
    for scene in make_scene(lab, fake, *options):
        async with open_seat(scene.place(), scene.mirror, "run_1", scene.shadow) as seat:
            await lay(seat, scene.shadow)
            asking = replace(turn_in(seat), approvals="ask", ask_caller=True)
            async with seat.open_turn(asking, ignore) as turn:
                assert [each async for each in turn]
        argv = fake.seen()["argv"]
        assert (argv[1], argv[3]) == ("exec", "-s")  # Which never asks, unless it is told to.
        assert not [each for each in argv if "approv" in each]


async def test_the_stricter_policy_of_both_ends_holds(lab: Lab, fake: FakeCodex) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    for scene in make_scene(lab, fake, "--max-sandbox", "read-only"):
        async with open_seat(scene.place(), scene.mirror, "run_1", scene.shadow) as seat:
            await lay(seat, scene.shadow)
            with pytest.raises(PlaceRefused, match="read-only"):
                async with seat.open_turn(turn_in(seat), ignore) as turn:
                    assert [each async for each in turn]
            assert not fake.was_started
            narrow = replace(turn_in(seat), sandbox="read-only")
            async with seat.open_turn(narrow, ignore) as turn:
                assert [each async for each in turn]
            assert fake.was_started
