"""A real Ray cluster of one node on this machine, with folders and ports of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


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
def ray_cluster(python: str, codex: int = 4) -> Generator[RayCluster]:
    """Start a node that offers *codex* of the resource `codex`; end all of it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Paths of sockets must be short.
    with ExitStack() as ports:
        port, first = _free_port(ports), _free_port(ports)
    cluster = RayCluster(python, f"127.0.0.1:{port}", folder)
    command = [str(Path(python).parent / "ray"), "start", "--head", "--block"]
    command += [f"--port={port}", f"--temp-dir={folder}", f"--min-worker-port={first}"]
    command += [f"--max-worker-port={min(first + 200, 65535)}", "--num-cpus=1"]
    command += [f'--resources={{"codex": {codex}}}', "--include-dashboard=false"]
    command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
    command += ["--disable-usage-stats"]
    # A token of an earlier cluster of this person would turn authentication on (Ray 2.60).
    env = {**os.environ, "HOME": str(folder), "RAY_AUTH_MODE": "disabled"}
    log = folder / "start.log"
    with log.open("wb") as out:
        node = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
    try:
        _wait(lambda: "Ray runtime started" in log.read_text(), node, log)
        yield cluster
    finally:
        node.terminate()
        with suppress(subprocess.TimeoutExpired):
            node.wait(10)
        for pid in cluster.pids(""):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.kill()
        node.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port(stack: ExitStack) -> int:
    free = stack.enter_context(socket.socket())
    free.bind(("127.0.0.1", 0))
    return int(free.getsockname()[1])


def _wait(condition: object, node: subprocess.Popen[bytes], log: Path) -> None:
    assert callable(condition)
    for _ in range(1200):
        if condition():
            return
        if node.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"Ray does not start: {log.read_text()[-1000:]}")
