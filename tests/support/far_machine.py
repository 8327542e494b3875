"""Another machine, as far as processes go: workers that are no descendants of who calls them.

A listener on a socket starts a worker for each connection, as sshd does. A connector passes bytes
between the socket and its own stdin and stdout, as ssh does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from codex_tools.places.place import Place

_LISTENER = """
import json, os, signal, socket, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
path, command, env = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(64)
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    log = open(path + ".log", "ab")
    subprocess.Popen(command, stdin=connection, stdout=connection, stderr=log, env=env,
                     start_new_session=True)
    connection.close()
    log.close()
"""

_CONNECTOR = """
import os, socket, sys, threading
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
def send():
    while data := os.read(0, 65536):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := connection.recv(65536):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]
"""


@dataclass(frozen=True)
class FarMachine:
    """Where workers are started."""

    socket: Path

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that connects stdin and stdout to a new worker."""
        return (sys.executable, "-I", "-c", _CONNECTOR, str(self.socket))

    def place(self, name: str = "box", *, lease_s: float = 60.0) -> Place:
        return Place(name, self.argv, worker="unused", lease_s=lease_s)

    @property
    def log(self) -> str:
        """What the workers wrote to stderr."""
        file = Path(f"{self.socket}.log")
        return file.read_text() if file.exists() else ""


@contextmanager
def far_machine(command: Sequence[str], env: Mapping[str, str]) -> Generator[FarMachine]:
    """Start the listener; workers are started by *command*, with the environment *env*."""
    with tempfile.TemporaryDirectory(prefix="far-") as folder:
        socket = Path(folder, "socket")
        arguments = [str(socket), json.dumps([*command]), json.dumps(dict(env))]
        listener = subprocess.Popen(
            [sys.executable, "-I", "-c", _LISTENER, *arguments], stdout=subprocess.PIPE
        )
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == b"ready\n"
            yield FarMachine(socket)
        finally:
            listener.kill()
            listener.wait()
            if listener.stdout is not None:
                listener.stdout.close()


def living(tag: str) -> dict[int, str]:
    """Return the processes whose environment holds *tag*, with their command lines."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if tag.encode() in (folder / "environ").read_bytes():
                argv = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = argv.decode(errors="replace")
        except OSError:
            continue
    return found


def wait_until_gone(tag: str, within_s: float) -> dict[int, str]:
    """Wait until no process with *tag* is left; return those that are left all the same."""
    until = time.monotonic() + within_s
    while (left := living(tag)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def worker_pid(tag: str) -> int:
    """Return the process of the only worker with *tag*."""
    (pid,) = (pid for pid, argv in living(tag).items() if " worker " in f"{argv} ")
    return pid
