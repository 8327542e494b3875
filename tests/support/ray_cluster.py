"""A real Ray cluster of one node on this machine, with folders and ports of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from support.separate_network import Network


@dataclass(frozen=True)
class RayCluster:
    """A running cluster."""

    python: str
    """Its own Python."""
    address: str
    folder: Path
    """Its temporary folder, which each of its processes names."""

    def pids(self, name: str) -> list[int]:
        """Return the cluster's processes whose command line holds *name*."""
        found: list[int] = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                argv = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if str(self.folder) in argv and name in argv:
                    found.append(int(folder.name))
        return found


@contextmanager
def ray_cluster(
    python: str, token_file: Path | None = None, network: Network | None = None
) -> Generator[RayCluster]:
    """Start a node that offers 4 of the resource `codex`; end all of it afterwards.

    Args:
        python: The Python of a Ray installation.
        token_file: The file with the token that the cluster demands; None for none.
        network: Where a second node is started; then each of both offers 1 `codex`.
    """
    here = network.here if network is not None else "127.0.0.1"
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Paths of sockets must be short.
    with ExitStack() as ports:
        port, first = _free_port(ports), _free_port(ports)
    cluster = RayCluster(python, f"{here}:{port}", folder)
    count = 4 if network is None else 1
    start = [str(Path(python).parent / "ray"), "start", "--num-cpus=1", "--disable-usage-stats"]
    start += [f'--resources={{"codex": {count}}}', "--object-store-memory=100000000"]
    command = [*start, "--head", f"--node-ip-address={here}", "--include-dashboard=false"]
    command += [f"--port={port}", f"--temp-dir={folder}", f"--min-worker-port={first}"]
    command += [f"--max-worker-port={min(first + 200, 65535)}"]
    commands = [command]
    if network is not None:
        second = [f"--address={cluster.address}", f"--node-ip-address={network.address}"]
        commands.append([*network.prefix, *start, *second])
    # A token of an earlier cluster of this person would turn authentication on (Ray 2.60).
    env = {**os.environ, "HOME": str(folder), "RAY_AUTH_MODE": "disabled"}
    if token_file is not None:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    # With --block, the death of one of its processes would end the others.
    with _started(cluster, commands, env):
        yield cluster


@contextmanager
def ray_nodes(python: str, networks: Sequence[Network], codex: int) -> Generator[RayCluster]:
    """Start a node in each of some joined networks, the head in the first; end all afterwards.

    Args:
        python: The Python of a Ray installation.
        networks: Where the nodes are.
        codex: The amount of the resource `codex` that each of them offers.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Paths of sockets must be short.
    cluster = RayCluster(python, f"{networks[0].address}:6379", folder)
    start = [str(Path(python).parent / "ray"), "start", "--num-cpus=1", "--disable-usage-stats"]
    start += [f'--resources={{"codex": {codex}}}', "--object-store-memory=100000000"]
    env = {**os.environ, "HOME": str(folder), "RAY_AUTH_MODE": "disabled"}
    commands: list[list[str]] = []
    for each in networks:
        words = [f"--address={cluster.address}"]
        if each is networks[0]:
            words = ["--head", "--port=6379", "--include-dashboard=false"]
            words.append(f"--temp-dir={folder}")
        commands.append([*each.prefix, *start, *words, f"--node-ip-address={each.address}"])
    with _started(cluster, commands, env):
        yield cluster


@contextmanager
def _started(
    cluster: RayCluster, commands: Sequence[Sequence[str]], env: Mapping[str, str]
) -> Generator[None]:
    """Start the nodes of *cluster* by *commands*; end all and remove its folder afterwards."""
    try:
        for each in commands:
            done = subprocess.run(each, capture_output=True, text=True, env=env, check=False)
            assert done.returncode == 0, f"Ray does not start: {done.stderr[-1000:]}"
        yield
    finally:
        for pid in cluster.pids(""):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(cluster.folder, ignore_errors=True)


def _free_port(stack: ExitStack) -> int:
    free = stack.enter_context(socket.socket())
    free.bind(("127.0.0.1", 0))
    return int(free.getsockname()[1])
