"""A place on a Ray cluster, the whole way in from tools/call; only `make ray` runs this."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from mcp import Client

from codex_tools.codex.json_object import Json
from codex_tools.places.place import SHARED_ABOVE
from mcp_server_codex.cli.scripted_model import Patch, Shell, do, model_name, say
from support.codex_versions import number
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.far_machine import living, wait_until_gone, worker_pid
from support.isolated import apply
from support.lab import Lab, call, connect, environment, parent_of, server_program, until
from support.ray_cluster import RayCluster, ray_cluster
from support.separate_network import separate_network
from support.work_trees import run_git

PYTHON = os.environ.get("RAY_PYTHON", "")

pytestmark = pytest.mark.skipif(not PYTHON, reason="Ray is several 100 MB: `make ray` runs this")

LEASE_S = 6.0

THREAD = "01a20000-0000-7000-8000-000000000001"

SLEEPERS = f"""
import subprocess
with open({{starts!r}}, "a") as f:
    f.write("started\\n")
for _ in range(2):
    subprocess.Popen(["setsid", "nohup", "sleep", "600"], stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
open("a.txt", "w").write("half\\n")
print('{{{{"type":"thread.started","thread_id":"{THREAD}"}}}}', flush=True)
print('{{{{"type":"turn.started"}}}}', flush=True)
time.sleep(600)
"""


ROLLOUT = """
import pathlib
folder = pathlib.Path(os.environ["CODEX_HOME"], "sessions/2026/11/29")
folder.mkdir(parents=True, exist_ok=True)
file = folder / "rollout-2026-11-29T00-00-00-{thread}.jsonl"
def record(type_, **payload):
    with file.open("a") as f:
        f.write(json.dumps({{"timestamp": "2026-11-29T00:00:00.000Z", "type": type_,
                             "payload": payload}}) + "\\n")
if not file.exists():
    record("session_meta", id="{thread}", cwd=os.getcwd(), timestamp="2026-11-29T00:00:00.000Z")
record("turn_context", cwd=os.getcwd(), model="m", sandbox_policy={{"type": "workspace-write"}})
"""
"""A rollout as Codex writes it, as far as this server reads it."""


@dataclass
class Scene:
    """A server with the place `box`, which is a Ray cluster."""

    lab: Lab
    cluster: RayCluster
    tag: str
    options: tuple[str, ...]
    starts: Path
    """Has a line for each start of the fake Codex."""

    def sleepers(self) -> int:
        return sum(argv.startswith("sleep 600") for argv in living(self.tag).values())


@contextmanager
def open_scene(cluster: RayCluster, lab: Lab, codex: Path, **env: str) -> Generator[Scene]:
    (lab.project / "a.txt").write_text("one\n")
    run_git(lab.project, "add", "-A")
    run_git(lab.project, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "first")
    mark = str(uuid.uuid4())
    variables = environment(lab) | {"TEST_MARK": mark} | env
    worker = ["env", *(f"{name}={value}" for name, value in variables.items())]
    worker += [server_program(), "worker", "--codex-bin", str(codex)]
    worker += ["--state-dir", str(lab.root / "far-state")]
    file = lab.root / "places.toml"
    file.write_text(
        f"[box]\nworker = {json.dumps(shlex.join(worker))}\nlease_s = {LEASE_S}\n"
        f"ray = {{ python = {json.dumps(cluster.python)}, address = '{cluster.address}' }}\n"
        f"[shared]\nworker = {json.dumps(shlex.join(worker))}\nlease_s = {LEASE_S}\n"
        f"max_runs = {SHARED_ABOVE + 1}\n"
        f"ray = {{ python = {json.dumps(cluster.python)}, address = '{cluster.address}' }}\n"
        f"[none]\nworker = 'x'\n"
        f"ray = {{ python = {json.dumps(cluster.python)}, address = '{cluster.address}',"
        " resources = { gpu = 1 } }\n"
    )
    yield Scene(lab, cluster, f"TEST_MARK={mark}", ("--places", str(file)), lab.root / "starts")
    left = wait_until_gone(f"TEST_MARK={mark}", LEASE_S + 5)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture(scope="module")
def shared() -> Generator[RayCluster]:
    with ray_cluster(PYTHON) as cluster:
        yield cluster


@pytest.fixture
def scene(shared: RayCluster, lab: Lab, fake: FakeCodex) -> Generator[Scene]:
    with open_scene(shared, lab, fake.build()) as scene:
        yield scene


async def test_work_on_a_cluster_comes_home_and_is_continued_there(
    shared: RayCluster, codex: Path, version: str, lab: Lab
) -> None:
    far_home = lab.root / "far-home"
    lab.model.write_config(far_home, model=model_name(number(version)))
    prompt = lab.script(
        "work",
        do(Patch("*** Add File: patched.txt\n+one")),
        do(Shell("cat mine.txt >> a.txt; env > seen.txt")),
        say("done"),
    )
    onward = lab.script("more", do(Shell("cp patched.txt second.txt")), say("done again"))
    with open_scene(shared, lab, codex, CODEX_HOME=str(far_home)) as scene:
        (lab.project / "mine.txt").write_text("not committed\n")
        async with connect("auto", codex, lab, *scene.options) as client:
            turn: Json = {"sandbox": "workspace-write"}
            first = await call(client, "codex_run", prompt=prompt, place="box", **turn)
            assert first["status"] == "completed", first
            second = await call(client, "codex_resume", prompt=onward, thread_id=first["thread_id"])
            assert second["status"] == "completed", second
            applied = await apply(client, second["run_id"], "apply")
    assert (first["place"], second["place"]) == ("box", "box")
    assert first["copy"] == second["copy"]
    assert applied["applied"]
    assert (lab.project / "a.txt").read_text() == "one\nnot committed\n"
    assert (lab.project / "second.txt").read_text() == "one\n"
    there = sorted((far_home / "sessions").rglob("rollout-*.jsonl"))
    here = sorted((lab.state / "places" / "box" / "sessions").rglob("rollout-*.jsonl"))
    assert [each.read_bytes() for each in here] == [each.read_bytes() for each in there] != []
    (file,) = (lab.state / "places" / "box" / "threads").glob("*.json")
    assert json.loads(file.read_text())["node"]  # Where codex_resume went by itself.
    # Nothing of Ray's, such as its token, reaches the commands that Codex runs.
    assert "RAY_" not in (lab.project / "seen.txt").read_text()


async def wait(client: Client, run_id: str) -> Json:
    answer = await client.call_tool("codex_wait", {"run_ids": [run_id], "wait_s": 100})
    (result,) = cast("Json", answer.structured_content)["runs"]
    return result


async def begin(client: Client, scene: Scene, fake: FakeCodex) -> str:
    """Start a run at the cluster, and return its id when its sleepers are there."""
    fake.body = SLEEPERS.format(starts=str(scene.starts))
    fake.build()
    started = await call(
        client, "codex_run", prompt="x", sandbox="workspace-write", place="box", wait_s=0
    )
    await until(lambda: scene.sleepers() == 2)
    return str(started["run_id"])


def own_network() -> str:
    return str(Path("/proc/self/ns/net").readlink())


def driver(scene: Scene) -> int:
    """Return the process of ray_place.py, which the server has started."""
    (pid,) = (
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if (argv := _argv(folder)) and scene.tag.encode() in argv[-1] and b"-c" in argv[:2]
    )
    return pid


def _argv(folder: Path) -> list[bytes]:
    try:
        return (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return []


@pytest.mark.parametrize("fault", ["worker", "actor", "driver", "driver stopped"])
async def test_the_death_of_a_process_ends_the_run_and_nothing_starts_again(
    scene: Scene, fake: FakeCodex, fault: str
) -> None:
    async with connect("auto", fake.build(), scene.lab, *scene.options) as client:
        run_id = await begin(client, scene, fake)
        worker = worker_pid(scene.tag)
        victim = {"worker": worker, "actor": parent_of(worker)}.get(fault) or driver(scene)
        os.kill(victim, signal.SIGSTOP if "stopped" in fault else signal.SIGKILL)
        result = await wait(client, run_id)
        assert scene.sleepers() == 0, "something was alive when the caller heard of it"
        assert (result["error"]["kind"], result["error"]["retryable"]) == ("place_lost", False)
        # What it did was fetched by another actor.
        assert [each["path"] for each in result["changes"]["files"]] == ["a.txt"]
    assert scene.starts.read_text() == "started\n"


def hubs(scene: Scene) -> list[int]:
    """Return the processes of ray_place.py that runs share."""
    return [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if b"--hub" in (argv := _argv(folder))
        and argv[0] == PYTHON.encode()
        and scene.cluster.address.encode() in argv
    ]


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_death_of_the_process_that_runs_share_ends_those_runs_and_no_other(
    scene: Scene, fake: FakeCodex, fault: signal.Signals
) -> None:
    fake.body = SLEEPERS.replace(THREAD, "{{thread}}").format(starts=str(scene.starts))
    fake.body = fake.body.replace("{thread}", "'+str(__import__('uuid').uuid4())+'")
    turn: Json = {"prompt": "x", "sandbox": "workspace-write", "wait_s": 0}
    async with connect("auto", fake.build(), scene.lab, *scene.options) as client:
        lost = [(await call(client, "codex_run", place="shared", **turn)) for _ in range(2)]
        other = await call(client, "codex_run", place="box", **turn)
        await until(lambda: scene.sleepers() == 6)
        (hub,) = hubs(scene)
        os.kill(hub, fault)
        for each in lost:
            result = await wait(client, each["run_id"])
            assert result["error"]["kind"] == "place_lost", result
        assert scene.sleepers() == 2, "only the run with a process of its own is alive"
        # What they did is fetched through another process.
        for each in lost:
            fetched = await apply(client, each["run_id"], "check")
            assert [file["path"] for file in fetched["files"]] == ["a.txt"]
        assert hub not in hubs(scene)
        await client.call_tool("codex_stop", {"run_id": other["run_id"]})
        assert (await wait(client, other["run_id"]))["status"] == "cancelled"
        fake.body, fake.stdout = "", events(thread_line(), *answer_lines("hi"))
        fake.build()
        again = await call(client, "codex_run", prompt="x", place="shared")
        assert again["final_response"] == "hi"
        assert hub not in hubs(scene)
        assert len(hubs(scene)) == 1
    assert scene.starts.read_text() == "started\n" * 3
    await until(lambda: hubs(scene) == [], within_s=10)


async def test_the_process_that_runs_share_does_not_outlive_a_killed_server(
    scene: Scene, fake: FakeCodex
) -> None:
    fake.body = SLEEPERS.format(starts=str(scene.starts))
    has_ended = False
    with suppress(Exception):  # The client may dislike that its server is gone.
        async with connect("auto", fake.build(), scene.lab, *scene.options) as client:
            turn: Json = {"sandbox": "workspace-write", "wait_s": 0}
            await call(client, "codex_run", prompt="x", place="shared", **turn)
            await until(lambda: scene.sleepers() == 2)
            (hub,) = hubs(scene)
            os.kill(parent_of(parent_of(hub)), signal.SIGKILL)  # Between them is the guard.
            await until(lambda: hubs(scene) == [], within_s=10)
            await until(lambda: scene.sleepers() == 0, within_s=LEASE_S + 5)
            has_ended = True
    assert has_ended
    assert hubs(scene) == []
    assert scene.starts.read_text() == "started\n"


async def test_a_stopped_run_leaves_nothing_on_the_cluster_and_frees_its_resources(
    scene: Scene, fake: FakeCodex
) -> None:
    async with connect("auto", fake.build(), scene.lab, *scene.options) as client:
        for _ in range(5):  # One more than the cluster has room for.
            run_id = await begin(client, scene, fake)
            stopped = await client.call_tool("codex_stop", {"run_id": run_id})
            assert stopped.is_error is not True
            assert scene.sleepers() == 0
            assert (await wait(client, run_id))["status"] == "cancelled"
    assert scene.starts.read_text() == "started\n" * 5


async def test_the_end_of_the_server_ends_the_run_on_the_cluster(
    scene: Scene, fake: FakeCodex
) -> None:
    async with connect("auto", fake.build(), scene.lab, *scene.options) as client:
        await begin(client, scene, fake)
    await until(lambda: living(scene.tag) == {}, within_s=LEASE_S + 5)
    assert scene.starts.read_text() == "started\n"


@pytest.mark.parametrize("victim", ["raylet/raylet", "gcs_server", ""])
async def test_the_death_of_the_node_ends_the_run_and_nothing_starts_again(
    lab: Lab, fake: FakeCodex, victim: str
) -> None:
    with ray_cluster(PYTHON) as cluster, open_scene(cluster, lab, fake.build()) as scene:
        async with connect("auto", fake.build(), lab, *scene.options) as client:
            run_id = await begin(client, scene, fake)
            victims = cluster.pids(victim)
            assert victims
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            result = await wait(client, run_id)
            assert scene.sleepers() == 0, "something was alive when the caller heard of it"
            assert result["error"]["kind"] == "place_lost"
            # All that the cluster has not got any more is missed in 45 s, before anything starts.
            started = await call(client, "codex_run", prompt="x", place="box", wait_s=0)
            again = started if started["error"] else await wait(client, started["run_id"])
            assert again["error"]["kind"] == "place_unavailable"
        assert scene.starts.read_text() == "started\n"


async def test_a_thread_is_continued_on_its_node_and_a_cut_node_loses_its_run_only(
    lab: Lab, fake: FakeCodex
) -> None:
    far_home = lab.root / "far-home"
    far_home.mkdir()
    where = lab.root / "where"
    # Each node has a network namespace of its own.
    note = f"open({str(where)!r}, 'w').write(os.readlink('/proc/self/ns/net'))"
    with (
        separate_network() as network,
        ray_cluster(PYTHON, network=network) as cluster,
        open_scene(cluster, lab, fake.build(), CODEX_HOME=str(far_home)) as scene,
    ):
        async with connect("auto", fake.build(), lab, *scene.options) as client:
            turn: Json = {"sandbox": "workspace-write", "place": "box"}

            async def run_on_the_second_node(tool: str, **more: str) -> str:
                fake.body = "time.sleep(600)"
                fake.build()
                fake.forget()
                blocker = await call(client, "codex_run", prompt="x", wait_s=0, **turn)
                await until(lambda: fake.was_started)
                fake.body = ROLLOUT.format(thread=THREAD) + note
                fake.stdout = events(thread_line(), *answer_lines("hi"))
                fake.build()
                ran = await call(client, tool, prompt="x", **turn, **more)
                assert ran["status"] == "completed", ran["error"]
                await client.call_tool("codex_stop", {"run_id": blocker["run_id"]})
                return where.read_text()

            node = await run_on_the_second_node("codex_run")
            # Both nodes are free now.
            for _ in range(2):
                more = await call(client, "codex_resume", prompt="y", thread_id=THREAD, **turn)
                assert more["status"] == "completed", more
                assert where.read_text() == node
            fake.body = SLEEPERS.format(starts=str(scene.starts))
            fake.build()
            # Ray fills the node of the driver first, so the thread is on the other one.
            assert node != own_network()
            started = await call(
                client, "codex_resume", prompt="z", thread_id=THREAD, wait_s=0, **turn
            )
            await until(lambda: scene.sleepers() == 2)
            network.cut()
            result = await wait(client, started["run_id"])
            assert scene.sleepers() == 0, "something was alive when the caller heard of it"
            assert result["error"]["kind"] == "place_lost"
            assert scene.starts.read_text() == "started\n"
            network.restore()


def test_the_doctor_proves_whether_a_cluster_demands_its_token(
    shared: RayCluster, lab: Lab, fake: FakeCodex, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    worker = shlex.join([server_program(), "worker", "--codex-bin", str(fake.build())])

    def examine(cluster: RayCluster, more: str) -> dict[str, Json]:
        file = lab.root / "places.toml"
        file.write_text(
            f"[box]\nworker = {json.dumps(worker)}\nray = {{ address = '{cluster.address}',"
            f" python = {json.dumps(cluster.python)}{more} }}\n"
        )
        command = [server_program(), "doctor", "--json", "--place", "box", "--places", str(file)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(lab), check=False
        )
        return {each["name"]: each for each in json.loads(done.stdout)["checks"]}

    with ray_cluster(PYTHON, token) as guarded:
        found = examine(guarded, f", token_file = {json.dumps(str(token))}")
        assert found["token"]["status"] == "ok", found
        assert "offers codex: 4" in found["ray"]["message"]
        without = examine(guarded, "")
        assert without["place"]["status"] == "problem"
        assert "token_file" in without["place"]["message"]
    assert examine(shared, "")["token"]["status"] == "warning"


async def test_a_cluster_that_has_not_what_a_run_takes_is_unavailable(
    scene: Scene, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    async with connect("auto", fake.build(), scene.lab, *scene.options) as client:
        result = await call(client, "codex_run", prompt="x", place="none")
        assert result["error"]["kind"] == "place_unavailable"
        assert "no node of the Ray cluster offers gpu: 1" in result["error"]["message"]
        planned: Any = await call(client, "codex_run", prompt="x", place="box", dry_run=True)
    assert not fake.was_started
    assert "ray_place.py" in planned["planned"]["argv"]
