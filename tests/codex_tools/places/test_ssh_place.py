"""A place behind a real sshd: what plain pipes promise holds there too."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from codex_tools.codex.place_errors import PlaceLost
from codex_tools.codex.program import NOT_ASKED
from codex_tools.engines.engine import TurnRequest
from codex_tools.places.mirror import Mirror
from codex_tools.places.place import SSH, Place
from codex_tools.places.seat import Seat, open_seat
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import take_snapshot
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.far_machine import living, worker_pid
from support.lab import Lab, environment, parent_of, server_program, until
from support.separate_network import separate_network
from support.sshd import real_sshd

MARK = "ssh-place"

SLEEPERS = """
import subprocess
for _ in range(2):
    subprocess.Popen(["setsid", "nohup", "sleep", "600"], stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
print('{"type":"thread.started","thread_id":"01a20000-0000-7000-8000-000000000001"}', flush=True)
time.sleep(600)
"""


@dataclass
class Scene:
    """A place behind sshd."""

    place: Place
    tag: str
    shadow: Shadow
    mirror: Mirror

    def sleepers(self) -> int:
        return sum(argv.startswith("sleep 600") for argv in living(self.tag).values())


@pytest.fixture
def scene(lab: Lab, fake: FakeCodex, tmp_path: Path) -> Generator[Scene]:
    with real_sshd(tmp_path) as config, open_scene(lab, fake, config) as scene:
        yield scene


@contextmanager
def open_scene(lab: Lab, fake: FakeCodex, config: Path) -> Generator[Scene]:
    (lab.project / "a.txt").write_text("one\n")
    mark = f"{MARK}-{os.getpid()}-{lab.root.name}"
    env = environment(lab) | {"TEST_MARK": mark}
    command = ["env", "-i", *(f"{name}={value}" for name, value in env.items())]
    command += [server_program(), "worker", "--codex-bin", str(fake.build())]
    command += ["--state-dir", str(lab.root / "far-state")]
    argv = (SSH[0], "-F", str(config), *SSH[1:], "box")
    place = Place("box", argv, is_ssh=True, worker=shlex.join(command), lease_s=4.0)
    shadow = Shadow.open(lab.state, lab.project)
    yield Scene(place, f"TEST_MARK={mark}", shadow, Mirror(lab.state, "box"))
    left = living(f"TEST_MARK={mark}")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def ignore(line: bytes) -> None:
    pass


async def play(seat: Seat, shadow: Shadow) -> None:
    await seat.lay(take_snapshot(shadow), await seat.reopen(None) or ())
    request = TurnRequest(NOT_ASKED, "x", seat.folder, "workspace-write", 60, 60)
    async with seat.open_turn(request, ignore) as turn:
        async for _ in turn:
            pass


async def test_bytes_of_all_kinds_pass_ssh_unchanged(scene: Scene, fake: FakeCodex) -> None:
    # A line that begins with ~. would end a connection with escapes.
    fake.body = "open('b.bin', 'wb').write(b'\\n~.\\n' + bytes(range(256)) * 4000)"
    fake.stdout = events(thread_line(), *answer_lines("\n~.\n"))
    fake.build()
    async with open_seat(scene.place, scene.mirror, "r", scene.shadow) as seat:
        await play(seat, scene.shadow)
        changes = await seat.collect(take_snapshot(scene.shadow))
    assert [each.path for each in changes.files] == ["b.bin"]
    assert changes.files[0].is_binary


@pytest.mark.parametrize(
    "fault", ["ssh killed", "ssh stopped", "worker killed", "worker stopped", "session killed"]
)
async def test_a_lost_ssh_place_is_told_only_when_nothing_is_alive_there(
    scene: Scene, fake: FakeCodex, fault: str
) -> None:
    fake.body = SLEEPERS
    fake.build()
    failure: list[PlaceLost] = []

    async def work(seat: Seat) -> None:
        try:
            await play(seat, scene.shadow)
        except PlaceLost as error:
            assert scene.sleepers() == 0, "something was alive when the caller heard of it"
            failure.append(error)

    async with (
        open_seat(scene.place, scene.mirror, "r", scene.shadow, margin_s=2.0) as seat,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(work, seat)
        await until(lambda: scene.sleepers() == 2)
        number = signal.SIGSTOP if "stopped" in fault else signal.SIGKILL
        worker = worker_pid(scene.tag)
        if "worker" in fault:
            os.kill(worker, number)
        elif "session" in fault:
            os.kill(parent_of(worker), number)
        else:
            os.kill(ssh_pid(scene), number)
        await until(lambda: bool(failure))
    # The worker itself may take a moment longer than what it has started.
    await until(lambda: living(scene.tag) == {}, within_s=5)


async def test_a_cut_network_ends_the_turn_at_both_ends_and_its_changes_are_fetched_later(
    lab: Lab, fake: FakeCodex, tmp_path: Path
) -> None:
    starts = lab.root / "starts"
    fake.body = f"open({str(starts)!r}, 'a').write('x'); open('half.txt', 'w').close()" + SLEEPERS
    lost: list[Seat] = []
    with (
        separate_network() as network,
        real_sshd(tmp_path, network.address, network.prefix) as config,
        open_scene(lab, fake, config) as scene,
    ):

        async def work(seat: Seat) -> None:
            with pytest.raises(PlaceLost, match="nothing was heard"):
                await play(seat, scene.shadow)
            assert scene.sleepers() == 0, "something was alive when the caller heard of it"
            lost.append(seat)

        async with (
            open_seat(scene.place, scene.mirror, "r", scene.shadow, margin_s=2.0) as seat,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(work, seat)
            await until(lambda: scene.sleepers() == 2)
            network.cut()
            await until(lambda: bool(lost))
        network.restore()
        assert seat.snapshot is not None
        async with open_seat(scene.place, scene.mirror, "r", scene.shadow) as again:
            assert await again.reopen(seat.copy) is None
            changes = await again.collect(seat.snapshot)
        assert [each.path for each in changes.files] == ["half.txt"]
        await until(lambda: living(scene.tag) == {}, within_s=5)
    assert starts.read_text() == "x"


def ssh_pid(scene: Scene) -> int:
    config = scene.place.argv[2].encode()
    (pid,) = (
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if (argv := _argv(folder)) and argv[0].endswith(b"ssh") and config in argv
    )
    return pid


def _argv(folder: Path) -> list[bytes]:
    try:
        return (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
