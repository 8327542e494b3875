"""A place behind a real sshd: what plain pipes promise holds there too, whole way in."""

from __future__ import annotations

import os
import shlex
import signal
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from mcp import Client

from codex_tools.codex.json_object import Json
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.far_machine import living, worker_pid
from support.isolated import apply
from support.lab import Lab, call, connect, environment, parent_of, server_program, until
from support.separate_network import separate_network
from support.sshd import path_with_ssh, real_sshd

THREAD = "01a20000-0000-7000-8000-000000000001"

SLEEPERS = f"""
import subprocess
with open({{starts!r}}, "a") as f:
    f.write("x")
for _ in range(2):
    subprocess.Popen(["setsid", "nohup", "sleep", "600"], stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
open("half.txt", "w").close()
print('{{{{"type":"thread.started","thread_id":"{THREAD}"}}}}', flush=True)
print('{{{{"type":"turn.started"}}}}', flush=True)
time.sleep(600)
"""


@dataclass(frozen=True)
class Scene:
    """A server with the place `box` behind sshd, whose Codex is a fake one."""

    lab: Lab
    tag: str
    codex: Path
    config: Path
    """That of the ssh client."""

    @property
    def starts(self) -> Path:
        """A file with a character for each start of Codex."""
        return self.lab.root / "starts"

    def options(self) -> tuple[str, ...]:
        return ("--places", str(self.lab.root / "places.toml"))

    def env(self) -> dict[str, str]:
        return {"PATH": path_with_ssh(self.lab.root, self.config)}

    def sleepers(self) -> int:
        return sum(argv.startswith("sleep 600") for argv in living(self.tag).values())


@contextmanager
def open_scene(lab: Lab, fake: FakeCodex, config: Path) -> Generator[Scene]:
    (lab.project / "a.txt").write_text("one\n")
    mark, codex = str(uuid.uuid4()), fake.build()
    env = environment(lab) | {"TEST_MARK": mark}
    command = ["env", "-i", *(f"{name}={value}" for name, value in env.items())]
    command += [server_program(), "worker", "--codex-bin", str(codex)]
    command += ["--state-dir", str(lab.root / "far-state")]
    (lab.root / "places.toml").write_text(
        f"[box]\nssh = 'box'\nlease_s = 4\nworker = '''{shlex.join(command)}'''\n"
    )
    yield Scene(lab, f"TEST_MARK={mark}", codex, config)
    left = living(f"TEST_MARK={mark}")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def scene(lab: Lab, fake: FakeCodex, tmp_path: Path) -> Generator[Scene]:
    with real_sshd(tmp_path) as config, open_scene(lab, fake, config) as scene:
        yield scene


async def begin(client: Client, scene: Scene) -> str:
    """Start a run at the place that goes on until it is ended; return its id."""
    options: Json = {"sandbox": "workspace-write", "place": "box", "wait_s": 0}
    started = await call(client, "codex_run", prompt="x", **options)
    await until(lambda: scene.sleepers() == 2)
    # The words of Codex take another way home than its processes are seen.
    record = scene.lab.state / "runs" / started["run_id"] / "run.json"
    await until(lambda: THREAD in record.read_text())
    return str(started["run_id"])


async def wait(client: Client, run_id: str) -> Json:
    """Return the result of the run when it has ended."""
    answer = await client.call_tool("codex_wait", {"run_ids": [run_id], "wait_s": 60})
    (result,) = cast("Json", answer.structured_content)["runs"]
    return result


async def test_bytes_of_all_kinds_pass_ssh_unchanged(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    # A line that begins with ~. would end a connection with escapes.
    content = b"\n~.\n" + bytes(range(256)) * 4000
    fake.body = "open('b.bin', 'wb').write(b'\\n~.\\n' + bytes(range(256)) * 4000)"
    fake.stdout = events(thread_line(), *answer_lines("\n~.\n"))
    fake.build()
    async with connect(mode, scene.codex, scene.lab, *scene.options(), env=scene.env()) as client:
        result = await call(client, "codex_run", prompt="x", sandbox="workspace-write", place="box")
        assert result["final_response"] == "\n~.\n"
        await apply(client, result["run_id"], "apply")
    assert (scene.lab.project / "b.bin").read_bytes() == content


@pytest.mark.parametrize(
    "fault", ["ssh killed", "ssh stopped", "worker killed", "worker stopped", "session killed"]
)
async def test_a_lost_ssh_place_is_told_only_when_nothing_is_alive_there(
    scene: Scene, fake: FakeCodex, fault: str
) -> None:
    # Ten seconds each, so in one era each; the next test meets both.
    mode = "legacy" if fault in ("ssh killed", "worker stopped") else "auto"
    fake.body = SLEEPERS.format(starts=str(scene.starts))
    fake.build()
    async with connect(mode, scene.codex, scene.lab, *scene.options(), env=scene.env()) as client:
        run_id = await begin(client, scene)
        worker = worker_pid(scene.tag)
        victim = {"worker": worker, "session": parent_of(worker), "ssh": ssh_pid(scene)}
        number = signal.SIGSTOP if "stopped" in fault else signal.SIGKILL
        os.kill(victim[fault.split()[0]], number)
        result = await wait(client, run_id)
        assert scene.sleepers() == 0, "something was alive when the caller heard of it"
        assert (result["error"]["kind"], result["error"]["retryable"]) == ("place_lost", False)
        assert result["thread_id"] == THREAD
        await apply(client, run_id, "apply")
    assert (scene.lab.project / "half.txt").exists()
    # The worker itself may take a moment longer than what it has started.
    await until(lambda: living(scene.tag) == {}, within_s=5)
    assert scene.starts.read_text() == "x"


async def test_a_cut_network_ends_the_turn_at_both_ends_and_its_changes_are_fetched_later(
    mode: str, lab: Lab, fake: FakeCodex, tmp_path: Path
) -> None:
    with (
        separate_network() as network,
        real_sshd(tmp_path, network.address, network.prefix) as config,
        open_scene(lab, fake, config) as scene,
    ):
        fake.body = SLEEPERS.format(starts=str(scene.starts))
        fake.build()
        async with connect(mode, scene.codex, lab, *scene.options(), env=scene.env()) as client:
            run_id = await begin(client, scene)
            network.cut()
            result = await wait(client, run_id)
            assert scene.sleepers() == 0, "something was alive when the caller heard of it"
            assert (result["error"]["kind"], result["changes"]) == ("place_lost", None)
            assert any("still at the place box" in each for each in result["warnings"])
            network.restore()
            await apply(client, run_id, "apply")
        assert (lab.project / "half.txt").exists()
        await until(lambda: living(scene.tag) == {}, within_s=5)
        assert scene.starts.read_text() == "x"


def ssh_pid(scene: Scene) -> int:
    config = str(scene.config).encode()
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
