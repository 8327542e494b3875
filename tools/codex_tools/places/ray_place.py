"""Run workers on a Ray cluster, and pass bytes between them and stdin and stdout.

This file runs in the cluster's own Python, on a machine of the cluster: `pipe.py` sends it there as
a program text. It needs only the standard library and ray (written for 2.60). So no version of Ray,
and no port of it, is needed on the machine of the server.

One actor holds one worker. The actor is never started again and none of its calls is repeated,
because a turn must not run twice. Codex's guard is never a child of the actor's own process: Ray
2.60 kills only the direct children of a process that it ends, and the guard would die without its
children. Between them is the worker, at whose death the guard ends all.

With --hub, one process serves many runs: a driver of its own for each run takes too much. Stdin and
stdout then carry frames as in frames.py, each with the number of a channel. A channel is to its run
what stdin and stdout are otherwise. Each end says how many bytes of a channel it can take, so a run
that does not read holds up no other one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, cast

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

ROOM = 1024 * 1024
"""Most bytes of a channel that are on their way in one direction; `hub.py` has the same number."""

LINE_LIMIT = 64 * 1024

SILENT_AT_LEAST_S = 30.0
"""Seconds without a ping after which a hub ends, if the lease is shorter."""


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
    """The other end, in this process: pass input to the actor, and its output on."""

    def __init__(
        self,
        ray: Any,
        actor: Any,
        source: Callable[[], bytes],
        target: Callable[[bytes], None],
        give_up: Callable[[], None],
    ) -> None:
        """Begin nothing yet.

        Args:
            ray: The module.
            actor: The handle of a `Run`.
            source: Waits for input and returns it; empty at its end.
            target: Takes output.
            give_up: Called if the input ends before a node was free.
        """
        self._ray, self._actor = ray, actor
        self._source, self._target, self._give_up = source, target, give_up
        self._is_ready = threading.Event()
        self._has_ended = threading.Event()

    def run(self) -> tuple[int, bytes]:
        """Pass bytes until the worker has ended; return its exit code and its last words."""
        threading.Thread(target=self._send, daemon=True).start()
        try:
            self._ray.get(self._actor.ready.remote(), timeout=READY_WITHIN_S)
            self._is_ready.set()
            read = self._actor.read.options(concurrency_group="output")
            while (data := self._ray.get(read.remote())) is not None:
                self._target(data)
            return self._ray.get(self._actor.result.remote(), timeout=END_WITHIN_S)
        finally:
            self._has_ended.set()

    def _send(self) -> None:
        """Pass the input to the actor, and its end."""
        write = self._actor.write.options(concurrency_group="input")
        sent: deque[Any] = deque()
        try:
            while data := self._source():
                sent.append(write.remote(data))
                while len(sent) > WRITES:
                    self._ray.get(sent.popleft())
            if not self._is_ready.is_set():
                self._give_up()  # Nobody waits for a free node any more.
                return
            self._actor.finish.options(concurrency_group="input").remote()
            if not self._has_ended.wait(END_WITHIN_S):
                self._ray.get(self._actor.stop.remote(), timeout=END_WITHIN_S)
        except Exception:
            return  # The actor is dead; `run` hears of it, too.


class Cluster:
    """The connection of this process to a Ray cluster."""

    def __init__(self, address: str) -> None:
        """Connect to the cluster.

        Raises:
            Exception: Whatever Ray raises.
        """
        self.ray: Any = importlib.import_module("ray")
        self.ray.init(address=address, log_to_driver=False, logging_level="error")
        self._actors = self.ray.remote(
            max_restarts=0,
            max_task_retries=0,
            num_cpus=0,
            concurrency_groups={"input": 1, "output": 1},
        )(Run)

    def start(self, worker: str, resources: dict[str, float]) -> Any:
        """Start an actor for a worker, as soon as a node has what it takes; return its handle."""
        offered = self.ray.cluster_resources()
        missing = {name: each for name, each in resources.items() if offered.get(name, 0) < each}
        if missing:
            raise RuntimeError(f"no node of the Ray cluster offers {listed(missing)}")
        return self._actors.options(resources=resources).remote(shlex.split(worker))


def listed(resources: dict[str, float]) -> str:
    """Return amounts of resources as text."""
    return ", ".join(f"{name}: {amount:g}" for name, amount in resources.items())


def explained(error: Exception, resources: dict[str, float], *, has_token: bool) -> bytes:
    """Return what failed, as text for the operator."""
    problem = " ".join(str(error).split())[:250]
    if isinstance(error, ConnectionError) and not has_token:
        problem += "; if the cluster demands a token, name its file: token_file"
    if type(error).__name__ == "GetTimeoutError":
        wanted = listed(resources)
        problem = f"no node of the Ray cluster had {wanted} free within {READY_WITHIN_S:g} s"
    return f"\nray_place.py: {type(error).__name__}: {problem}\n".encode()


def write_all(target: int, data: bytes) -> None:
    """Write all of *data* to a descriptor."""
    left = memoryview(data)
    while left:
        left = left[os.write(target, left) :]


class Channel:
    """The input and output of one run, among those that a hub serves."""

    def __init__(self, hub: Hub, number: int) -> None:
        self._hub, self._number = hub, number
        self._input: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._room = ROOM
        self._is_closed = False
        self.actor: Any = None

    def take(self, data: bytes) -> None:
        """Take input; empty for its end."""
        self._input.put(data)

    def read(self) -> bytes:
        """Wait for input and return it; empty at its end."""
        data = self._input.get()
        if data:
            self._hub.send({"type": "room", "channel": self._number, "bytes": len(data)})
        return data

    def write(self, data: bytes) -> None:
        """Send output, as far as the other end has room for it; wait for that."""
        left = memoryview(data)
        while left:
            with self._changed:
                while self._room <= 0 and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return  # Nobody reads it any more; the actor is killed.
                count = min(len(left), self._room, PIECE)
                self._room -= count
            self._hub.send({"type": "data", "channel": self._number}, bytes(left[:count]))
            left = left[count:]

    def add_room(self, count: int) -> None:
        """Note that the other end can take *count* bytes more."""
        with self._changed:
            self._room += count
            self._changed.notify()

    def close(self) -> None:
        """End the input; drop what is still to be sent."""
        self._input.put(b"")
        with self._changed:
            self._is_closed = True
            self._changed.notify()


class Hub:
    """This process, as the driver of many runs."""

    def __init__(self, target: int, lease_s: float, connect: Callable[[], Cluster]) -> None:
        self._target, self._connect = target, connect
        self._silent_s = max(lease_s, SILENT_AT_LEAST_S)
        self._heard_at = time.monotonic()
        self._writing = threading.Lock()
        self._channels: dict[int, Channel] = {}
        self._cluster: Cluster | None = None
        self._connected = threading.Event()

    def run(self) -> int:
        """Serve the other end until it ends, or is silent; does not return then."""
        for work in (self._read, self._watch):
            threading.Thread(target=work, daemon=True).start()
        self._cluster = self._connect()
        self._connected.set()
        threading.Event().wait()
        return 1

    def send(self, head: dict[str, object], body: bytes = b"") -> None:
        """Send a frame."""
        if body:
            head["size"] = len(body)
        line = json.dumps(head, separators=(",", ":")).encode()
        with self._writing:
            write_all(self._target, b"%b\n%b" % (line, body))

    def _read(self) -> None:
        """Read frames; their end is the end of this process, and with it of all its actors."""
        try:
            with open(0, "rb", closefd=False) as source:
                while line := source.readline(LINE_LIMIT):
                    self._take(json.loads(line), source)
        finally:
            os._exit(0)

    def _take(self, head: dict[str, Any], source: IO[bytes]) -> None:
        body = source.read(head.get("size", 0))
        self._heard_at = time.monotonic()
        if head["type"] == "ping":
            self.send({"type": "pong", "sent": head["sent"]})
            return
        number = head["channel"]
        if head["type"] == "open":
            self._channels[number] = Channel(self, number)
            threading.Thread(target=self._serve, args=(number, head), daemon=True).start()
        elif channel := self._channels.get(number):
            if head["type"] == "data":
                channel.take(body)
            elif head["type"] == "end":
                channel.take(b"")
            elif head["type"] == "room":
                channel.add_room(head["bytes"])
            elif head["type"] == "kill":
                threading.Thread(target=self._kill, args=(channel,), daemon=True).start()

    def _serve(self, number: int, head: dict[str, Any]) -> None:
        """Serve one run until its worker has ended."""
        channel = self._channels[number]
        resources = with_node(head["resources"], head["node"])
        code, said = 1, b""
        self._connected.wait()
        cluster = cast(Cluster, self._cluster)
        try:
            actor = channel.actor = cluster.start(head["worker"], resources)

            def give_up() -> None:
                cluster.ray.kill(actor)

            bridge = Bridge(cluster.ray, actor, channel.read, channel.write, give_up)
            code, said = bridge.run()
        except Exception as error:
            said = explained(error, resources, has_token=True)
        finally:
            del self._channels[number]
            channel.close()
            if channel.actor is not None:
                cluster.ray.kill(channel.actor)  # Its resources are free at once.
            self.send({"type": "ended", "channel": number, "code": code}, said)

    def _kill(self, channel: Channel) -> None:
        """End a run at once: kill its worker, at whose death its guards end all."""
        channel.close()
        actor = channel.actor
        if actor is None:
            return
        ray = cast(Cluster, self._cluster).ray
        with suppress(Exception):  # It is dead, or not yet born.
            ray.get(actor.stop.remote(), timeout=END_WITHIN_S)
        ray.kill(actor)

    def _watch(self) -> None:
        """End this process when nothing was heard for long: a network may be cut."""
        while time.monotonic() - self._heard_at < self._silent_s:
            time.sleep(1.0)
        os._exit(3)


def with_node(resources: dict[str, float], node: str) -> dict[str, float]:
    """Return what a run takes: a thread is continued on the *node* where its files are."""
    return {**resources, f"node:{node}": 0.001} if node else dict(resources)


def main() -> int:
    """Start an actor and serve it until its worker ends; or serve many."""
    parser = argparse.ArgumentParser(prog="ray_place.py")
    parser.add_argument("--address", default="auto")
    parser.add_argument("--resources", type=json.loads, default={"codex": 1})
    parser.add_argument("--token-file")
    parser.add_argument("--node", default="")
    parser.add_argument("--examine", choices=("with-token", "without-token"))
    parser.add_argument("--hub", type=float, metavar="LEASE_S")
    parser.add_argument("worker", nargs="?", default="")
    asked = parser.parse_args()
    target = os.dup(1)
    os.dup2(2, 1)  # Ray prints to stdout, which carries the worker's bytes only.
    sys.path[:] = [each for each in sys.path if each]  # No `ray` of the current folder.
    if asked.examine == "without-token":
        os.environ["RAY_AUTH_MODE"] = "disabled"
    elif asked.token_file:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=asked.token_file)
    resources = with_node(asked.resources, asked.node)

    try:
        if asked.hub is not None:
            return Hub(target, asked.hub, lambda: Cluster(asked.address)).run()
        cluster = Cluster(asked.address)
        if asked.examine:
            offered = {name: cluster.ray.cluster_resources().get(name, 0) for name in resources}
            found = {"ray": cluster.ray.__version__, "offered": offered}
            os.write(target, json.dumps(found).encode())
            return 0
        bridge = Bridge(
            cluster.ray,
            cluster.start(asked.worker, resources),
            lambda: os.read(0, PIECE),
            lambda data: write_all(target, data),
            lambda: os._exit(0),
        )
        code, said = bridge.run()
        os.write(2, said)
        return code
    except Exception as error:
        os.write(2, explained(error, resources, has_token=bool(asked.token_file)))
        return 1


if __name__ == "__main__":
    # Not sys.exit: Ray's own work at the exit of Python takes a second, and nothing is left to do.
    os._exit(main())
