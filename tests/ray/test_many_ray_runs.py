"""Many runs on a Ray cluster of three nodes, each in a network namespace; only `make ray` runs it.

The Codex of the third node is a real one. Each start of a Codex is counted where it is started.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import anyio
import pytest
from mcp import Client

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.scripted_model import model_name, say
from support.codex_versions import number, real_codex
from support.far_machine import living, wait_until_gone
from support.lab import Lab, Note, call, connect, environment, server_program, until
from support.ray_cluster import RayCluster, ray_nodes
from support.separate_network import Network, joined_networks, loopback_shared
from support.work_trees import run_git

PYTHON = os.environ.get("RAY_PYTHON", "")

pytestmark = pytest.mark.skipif(not PYTHON, reason="Ray is several 100 MB: `make ray` runs this")

SCALE = float(os.environ.get("RAY_SCALE", "1"))
"""Part of the runs that these tests start; less than 1 where time is short, as in CI."""

VERSION = "0.163.0"

_CODEX = """\
#!{python} -I
import json, os, sys, time, uuid
is_real = os.readlink("/proc/self/ns/net") == open({real_node!r}).read()
if "exec" not in sys.argv:
    if is_real:
        os.execv({real!r}, [{real!r}, *sys.argv[1:]])
    print("codex-cli {version}" if "--version" in sys.argv else "")
    sys.exit(0)
prompt = sys.stdin.buffer.read()
line = json.dumps([prompt.decode(), os.readlink("/proc/self/ns/net"), is_real]) + "\\n"
fd = os.open({starts!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, line.encode())
os.close(fd)
while not os.path.exists({go!r}):
    time.sleep(0.2)
if is_real:
    memory = os.memfd_create("prompt")
    os.write(memory, prompt)
    os.lseek(memory, 0, os.SEEK_SET)
    os.dup2(memory, 0)
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
open("made.txt", "wb").write(prompt)
def put(**event):
    print(json.dumps(event), flush=True)
put(type="thread.started", thread_id=str(uuid.uuid4()))
put(type="turn.started")
text = "fake: " + prompt.decode()
put(type="item.completed", item={{"id": "item_0", "type": "agent_message", "text": text}})
counts = {{"input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 2}}
put(type="turn.completed", usage=counts)
"""


@dataclass
class Scene:
    """A server whose place `box` is a cluster of three nodes."""

    lab: Lab
    cluster: RayCluster
    networks: list[Network]
    tag: str
    options: tuple[str, ...]

    @property
    def go(self) -> Path:
        """The file for which each Codex waits before it works."""
        return self.lab.root / "go"

    def starts(self) -> list[tuple[str, str, bool]]:
        """Return for each start of a Codex its prompt, its node and if it was a real one."""
        file = self.lab.root / "starts"
        lines = file.read_text().splitlines() if file.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    def drivers(self) -> list[int]:
        """Return the processes of ray_place.py."""
        found: list[int] = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                argv = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            is_driver = argv[0] == PYTHON.encode() and argv[1:2] == [b"-c"]
            if is_driver and self.cluster.address.encode() in argv:
                found.append(int(folder.name))
        return found


@contextmanager
def open_scene(lab: Lab, runs: int) -> Generator[Scene]:
    """Start the cluster, with room for *runs* at the same time."""
    (lab.project / "a.txt").write_text("one\n")
    run_git(lab.project, "add", "-A")
    run_git(lab.project, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "first")
    codex, real_node = lab.root / "codex", lab.root / "real-node"
    codex.write_text(
        _CODEX.format(
            python=os.path.realpath("/proc/self/exe"),
            real=str(real_codex(VERSION)),
            real_node=str(real_node),
            version=VERSION,
            starts=str(lab.root / "starts"),
            go=str(lab.root / "go"),
        )
    )
    codex.chmod(0o755)
    mark = f"many-{os.getpid()}-{time.monotonic_ns()}"
    port = urlsplit(lab.model.base_url).port
    assert port is not None
    with (
        joined_networks(3) as networks,
        loopback_shared(networks[2], port),
        ray_nodes(PYTHON, networks, -(-runs // 3)) as cluster,
    ):
        real_node.write_text(_namespace(networks[2]))
        for each in networks:
            # Each node has folders of its own, as another machine has.
            home = lab.root / f"home-{each.address}"
            lab.model.write_config(home, model=model_name(number(VERSION)))
        variables = environment(lab) | {"TEST_MARK": mark}
        words = ["exec", "env", *(f"{name}={value}" for name, value in variables.items())]
        node = "$MCP_SERVER_CODEX_NODE"
        script = (
            f'{shlex.join(words)} CODEX_HOME="{lab.root}/home-{node}"'
            f" {shlex.quote(server_program())} worker --codex-bin {shlex.quote(str(codex))}"
            f' --state-dir "{lab.root}/state-{node}"'
        )
        file = lab.root / "places.toml"
        file.write_text(
            f"[box]\nargv = {json.dumps([*networks[0].prefix])}\nmax_runs = {max(runs, 51)}\n"
            f"starts_at_once = 8\nworker = {json.dumps(shlex.join(['sh', '-c', script]))}\n"
            f"ray = {{ python = {json.dumps(PYTHON)}, address = '{cluster.address}' }}\n"
        )
        options = ("--places", str(file), "--max-queue", "1000")
        yield Scene(lab, cluster, networks, f"TEST_MARK={mark}", options)
        assert wait_until_gone(f"TEST_MARK={mark}", 10) == {}


def _namespace(network: Network) -> str:
    """Return the name by which a process in *network* knows its network namespace."""
    return f"net:[{Path('/run/netns', network.name).stat().st_ino}]"


async def start(client: Client, scene: Scene, prompts: list[str]) -> list[str]:
    """Start a run for each prompt, and return their ids."""
    turn: Json = {"place": "box", "sandbox": "workspace-write", "wait_s": 0}
    return [(await call(client, "codex_run", prompt=each, **turn))["run_id"] for each in prompts]


async def results(client: Client, run_ids: list[str]) -> list[Json]:
    """Wait for the end of all runs, and return their results."""
    found: list[Json] = []
    for first in range(0, len(run_ids), 20):
        some = run_ids[first : first + 20]
        while True:
            answer = await client.call_tool("codex_wait", {"run_ids": some, "wait_s": 100})
            runs = cast("Json", answer.structured_content)["runs"]
            if all(each["status"] not in ("queued", "running") for each in runs):
                break
        found += runs
    return found


def check(scene: Scene, prompts: list[str], ended: list[Json]) -> dict[str, int]:
    """Assert that each run was started once, and has ended well; return the starts by node."""
    starts = scene.starts()
    assert max(Counter(prompt for prompt, _, _ in starts).values()) == 1, "a run started twice"
    assert Counter(each["status"] for each in ended) == {"completed": len(prompts)}, [
        each["error"] for each in ended if each["error"]
    ]
    assert Counter(prompt for prompt, _, _ in starts) == Counter(prompts)
    is_real = {prompt: real for prompt, _, real in starts}
    for prompt, each in zip(prompts, ended, strict=True):
        assert each["final_response"] == f"{'real' if is_real[prompt] else 'fake'}: {prompt}"
        made = [file["path"] for file in each["changes"]["files"]]
        assert made == ([] if is_real[prompt] else ["made.txt"]), prompt
    return Counter(node for _, node, _ in starts)


async def test_of_60_runs_at_once_on_three_nodes_none_is_lost_and_none_starts_twice(
    lab: Lab, note: Note
) -> None:
    count = round(60 * SCALE)
    prompts = [lab.script(f"prompt {each}", say(f"real: prompt {each}")) for each in range(count)]
    with open_scene(lab, count) as scene:
        began = time.monotonic()
        async with connect("auto", None, lab, *scene.options) as client:
            run_ids = await start(client, scene, prompts)
            # All are at work at the same time.
            await until(lambda: len(scene.starts()) >= count, within_s=900)
            took_s = time.monotonic() - began
            (driver,) = scene.drivers()
            memory = _pss_mb(driver)
            scene.go.touch()
            nodes = check(scene, prompts, await results(client, run_ids))
        assert nodes.keys() == {_namespace(each) for each in scene.networks}
        await until(lambda: living(scene.tag) == {}, within_s=60)
    note("measured", f"{count} runs on Ray: all at work after {took_s:.0f} s, driver {memory} MB")


async def test_of_200_runs_with_eight_starts_at_once_none_is_lost_and_none_starts_twice(
    lab: Lab, note: Note
) -> None:
    count = round(200 * SCALE)
    prompts = [lab.script(f"prompt {each}", say(f"real: prompt {each}")) for each in range(count)]
    with open_scene(lab, count) as scene:
        scene.go.touch()
        began = time.monotonic()
        async with connect("legacy", None, lab, *scene.options) as client:
            most, ended = 0, list[Json]()

            async def sample() -> None:
                nonlocal most
                while True:
                    drivers = scene.drivers()
                    assert len(drivers) <= 1
                    most = max([most, *map(_pss_mb, drivers)])
                    await anyio.sleep(5)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sample)
                run_ids = await start(client, scene, prompts)
                ended = await results(client, run_ids)
                tasks.cancel_scope.cancel()
            check(scene, prompts, ended)
    note("measured", f"{count} runs on Ray in {time.monotonic() - began:.0f} s, driver {most} MB")


def _pss_mb(pid: int) -> int:
    """Return the memory of a process in MB, its part of what is shared included."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) // 1024
