"""Attacks by a command that sees the processes around it, as before Codex 0.120."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

import codex_tools
from codex_tools.engines.guard import processes
from support.fake_codex import FakeCodex
from support.lab import Lab, call, connect, until

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
PYTHON = "/usr/bin/python3"
"""An interpreter that each user may run; that of the tests may lie in root's home folder."""

SERVER = """
import os, socket, subprocess, sys
sys.path.insert(0, {place!r})
from codex_tools.engines import guard, orphans
orphans.hide_memory()
ours, theirs = socket.socketpair()
command = [sys.executable, "-I", "-S", guard.__file__, str(theirs.fileno()), "", "0", "/"]
env = {{**os.environ, "OTHER": "harmless"}}
del env["ANTHROPIC_API_KEY"]
child = "import os; print(os.getpid(), flush=True); input()"
subprocess.Popen([*command, sys.executable, "-c", child], env=env, pass_fds=[theirs.fileno()])
sys.stdin.read()
"""


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@pytest.fixture
def open_place() -> Generator[Path]:
    """A copy of the program that each user may read."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        shutil.copytree(Path(codex_tools.__file__ or "").parent, Path(place) / "codex_tools")
        yield Path(place)


@linux
@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None or not Path(PYTHON).exists(),
    reason="needs root, which may read all processes, to become another user",
)
def test_no_process_of_the_user_reads_server_and_guard(open_place: Path) -> None:
    command = [*NOBODY, PYTHON, "-c", SERVER.format(place=str(open_place))]
    env = {"PATH": os.environ["PATH"], "ANTHROPIC_API_KEY": "planted-secret"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=env, **pipes) as server:  # pyright: ignore
        assert server.stdin is not None
        assert server.stdout is not None
        codex = int(server.stdout.readline())
        guard = dict(processes())[codex]

        def read(pid: int) -> bytes:
            shown = [*NOBODY, "cat", f"/proc/{pid}/environ"]
            return subprocess.run(shown, capture_output=True, check=False).stdout

        seen = [read(pid) for pid in (server.pid, guard, codex)]
        server.stdin.close()
    assert seen[:2] == [b"", b""]
    assert b"OTHER=harmless" in seen[2]
    assert b"planted-secret" not in seen[2]


@linux
@pytest.mark.skipif(os.getuid() == 0, reason="root may read all processes")
async def test_no_command_reads_the_clients_secrets(mode: str, lab: Lab, fake: FakeCodex) -> None:
    note = lab.root / "pid"
    fake.body = f"open({str(note)!r}, 'w').write(str(os.getpid()) + '.'); time.sleep(600)"
    secret = {"ANTHROPIC_API_KEY": "planted-secret", "OTHER": "harmless"}
    async with connect(mode, fake.build(), lab, env=secret) as client:
        run = await call(client, "codex_run", prompt="x", wait_s=0)
        await until(lambda: note.exists() and note.read_text().endswith("."))
        parents = dict(processes())
        codex = int(note.read_text().rstrip("."))
        for hidden in (parents[codex], parents[parents[codex]]):
            with pytest.raises(PermissionError):
                environment_of(hidden)
        assert b"planted-secret" not in environment_of(codex)
        await call(client, "codex_stop", run_id=run["run_id"])
