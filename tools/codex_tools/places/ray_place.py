"""Run a worker on a Ray cluster, and pass bytes between it and stdin and stdout.

This file runs in the cluster's own Python, on a machine of the cluster: `pipe.py` sends it there as
a program text. It needs only the standard library and ray (written for 2.60). So no version of Ray,
and no port of it, is needed on the machine of the server.

One actor holds one worker. The actor is never started again and none of its calls is repeated,
because a turn must not run twice. Codex's guard is never a child of the actor's own process: Ray
2.60 kills only the direct children of a process that it ends, and the guard would die without its
children. Between them is the worker, at whose death the guard ends all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import subprocess
import sys
import threading
from collections import deque
from typing import Any

READY_WITHIN_S = 40.0
"""Seconds to wait for a free node. The server waits 45 s for the worker's first answer."""

END_WITHIN_S = 20.0
"""Seconds for the worker to end after the end of its input; it takes 15 s at most."""

POLL_S = 10.0
"""Most seconds that one call of `Run.read` takes while the worker says nothing."""

PIECE = 64 * 1024
"""Most bytes of one call of `Run.write`. Ray 2.60 makes an object of its own of 100 KB and more."""

WAITING_LIMIT = 4 * 1024 * 1024
"""Bytes of output that wait in the actor before the worker must wait."""

WRITES = 32
"""Calls of `Run.write` at a time: more would only wait in the cluster."""

NODE_VARIABLE = "MCP_SERVER_CODEX_NODE"
"""The variable that tells the worker the address of its node."""

STDERR_LIMIT = 4096


class Run:
    """The actor: one worker with its pipes. It is called from one process only."""

    def __init__(self, command: list[str]) -> None:
        ray: Any = importlib.import_module("ray")
        # Ray's own variables stay away from Codex: one of them may hold the cluster's token.
        env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env={**env, NODE_VARIABLE: ray.util.get_node_ip_address()},
        )
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._has_ended = False
        self._said = b""
        for work in (self._gather, self._listen):
            threading.Thread(target=work, daemon=True).start()

    def ready(self) -> bool:
        """Return True: the worker was started."""
        return True

    def write(self, data: bytes) -> None:
        """Write to the worker."""
        assert self._child.stdin is not None
        left = memoryview(data)
        try:
            while left:
                left = left[self._child.stdin.write(left) or 0 :]
        except (OSError, ValueError):
            pass  # The worker has ended; `read` says so.

    def finish(self) -> None:
        """Close the input of the worker, which then ends."""
        assert self._child.stdin is not None
        self._child.stdin.close()

    def read(self) -> bytes | None:
        """Wait for output of the worker, and return all there is; None at its end."""
        with self._changed:
            if not self._waiting and not self._has_ended:
                self._changed.wait(POLL_S)
            found = b"".join(self._waiting)
            self._waiting.clear()
            self._size = 0
            self._changed.notify_all()
            return None if self._has_ended and not found else found

    def stop(self) -> None:
        """Kill the worker: its guards end all that it has started."""
        self._child.kill()
        self._child.wait()

    def result(self) -> tuple[int, bytes]:
        """Return the exit code of the worker, and the end of what it wrote to stderr."""
        return self._child.wait(), self._said

    def _gather(self) -> None:
        assert self._child.stdout is not None
        while data := self._child.stdout.read(1 << 18):
            with self._changed:
                self._waiting.append(data)
                self._size += len(data)
                self._changed.notify_all()
                while self._size > WAITING_LIMIT:
                    self._changed.wait()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _listen(self) -> None:
        assert self._child.stderr is not None
        while data := self._child.stderr.read(STDERR_LIMIT):
            self._said = (self._said + data)[-STDERR_LIMIT:]


class Bridge:
    """The other end, in this process: stdin to the actor, and its output to stdout."""

    def __init__(self, ray: Any, actor: Any, target: int) -> None:
        self._ray, self._actor, self._target = ray, actor, target
        self._is_ready = threading.Event()
        self._has_ended = threading.Event()

    def run(self) -> int:
        """Pass bytes until the worker has ended; return its exit code."""
        threading.Thread(target=self._send, daemon=True).start()
        try:
            self._ray.get(self._actor.ready.remote(), timeout=READY_WITHIN_S)
            self._is_ready.set()
            read = self._actor.read.options(concurrency_group="output")
            while (data := self._ray.get(read.remote())) is not None:
                left = memoryview(data)
                while left:
                    left = left[os.write(self._target, left) :]
            code, said = self._ray.get(self._actor.result.remote(), timeout=END_WITHIN_S)
            os.write(2, said)
            return code
        finally:
            self._has_ended.set()

    def _send(self) -> None:
        """Pass stdin to the actor, and its end."""
        write = self._actor.write.options(concurrency_group="input")
        sent: deque[Any] = deque()
        try:
            while data := os.read(0, PIECE):
                sent.append(write.remote(data))
                while len(sent) > WRITES:
                    self._ray.get(sent.popleft())
            if not self._is_ready.is_set():
                os._exit(0)  # Nobody waits for a free node any more.
            self._actor.finish.options(concurrency_group="input").remote()
            if not self._has_ended.wait(END_WITHIN_S):
                self._ray.get(self._actor.stop.remote(), timeout=END_WITHIN_S)
        except Exception:
            return  # The actor is dead; `run` hears of it, too.


def lacking(ray: Any, resources: dict[str, float]) -> str:
    """Return the resources that these nodes do not have, as text; "" if they have all."""
    offered = ray.cluster_resources()
    return ", ".join(
        f"{name}: {amount:g}" for name, amount in resources.items() if offered.get(name, 0) < amount
    )


def main() -> int:
    """Start the actor, and serve it until its worker ends."""
    parser = argparse.ArgumentParser(prog="ray_place.py")
    parser.add_argument("--address", default="auto")
    parser.add_argument("--resources", type=json.loads, default={"codex": 1})
    parser.add_argument("--token-file")
    parser.add_argument("--node", default="")
    parser.add_argument("--examine", choices=("with-token", "without-token"))
    parser.add_argument("worker")
    asked = parser.parse_args()
    target = os.dup(1)
    os.dup2(2, 1)  # Ray prints to stdout, which carries the worker's bytes only.
    sys.path[:] = [each for each in sys.path if each]  # No `ray` of the current folder.
    if asked.examine == "without-token":
        os.environ["RAY_AUTH_MODE"] = "disabled"
    elif asked.token_file:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=asked.token_file)
    resources = dict(asked.resources)
    if asked.node:
        resources[f"node:{asked.node}"] = 0.001  # A thread is continued where its files are.
    try:
        ray: Any = importlib.import_module("ray")
        ray.init(address=asked.address, log_to_driver=False, logging_level="error")
        if asked.examine:
            offered = {name: ray.cluster_resources().get(name, 0) for name in resources}
            os.write(target, json.dumps({"ray": ray.__version__, "offered": offered}).encode())
            return 0
        if missing := lacking(ray, resources):
            raise RuntimeError(f"no node of the Ray cluster offers {missing}")
        worker = ray.remote(
            max_restarts=0,
            max_task_retries=0,
            num_cpus=0,
            resources=resources,
            concurrency_groups={"input": 1, "output": 1},
        )(Run)
        return Bridge(ray, worker.remote(shlex.split(asked.worker)), target).run()
    except Exception as error:
        problem = " ".join(str(error).split())[:250]
        if isinstance(error, ConnectionError) and not asked.token_file:
            problem += "; if the cluster demands a token, name its file: token_file"
        if type(error).__name__ == "GetTimeoutError":
            wanted = ", ".join(f"{name}: {amount:g}" for name, amount in resources.items())
            problem = f"no node of the Ray cluster had {wanted} free within {READY_WITHIN_S:g} s"
        os.write(2, f"\nray_place.py: {type(error).__name__}: {problem}\n".encode())
        return 1


if __name__ == "__main__":
    # Not sys.exit: Ray's own work at the exit of Python takes a second, and nothing is left to do.
    os._exit(main())
