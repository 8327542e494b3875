"""Kill the server, the guard or git at a random moment of isolated runs and their application.

COPY_KILLS=100 for more kills than CI makes; the seed of each is in the message of a failure.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import anyio
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from codex_tools.runs.isolation import KEEP_COPIES_S, remove_old_copies
from support.fake_codex import FakeCodex
from support.isolated import COPY, acting_codex
from support.lab import Json, Lab, connect, marked, until
from support.work_trees import Files, files_in, run_git, state_of

KILLS = int(os.environ.get("COPY_KILLS", "20"))

Victim = Literal["server", "git", "guard", "server in apply", "git in apply"]

VICTIMS: tuple[Victim, ...] = ("server", "git", "server in apply", "git in apply", "guard")

GIT_CALLS_OF_A_RUN = 28
"""Calls of git from the first snapshot to the changes of a run; a used copy takes fewer."""

GIT_CALLS_OF_APPLY = 12

SHIM = """#!/bin/sh
# Count the calls of git; at call number `at`, kill git, or the server that called it.
read victim at delay 2>/dev/null <{order} || exec {git} "$@"
echo x >>{calls}
[ "$(wc -l <{calls})" = "$at" ] || exec {git} "$@"
rm -f {order}
{git} "$@" <&0 &
sleep "$delay"
[ "$victim" = server ] && kill -KILL $PPID
kill -KILL $!
wait $!
kill -KILL $$
"""


@dataclass(slots=True)
class Killer:
    """A git that kills itself or its server at a chosen call."""

    folder: Path

    def install(self) -> None:
        self.folder.mkdir()
        git = shutil.which("git")
        assert git is not None
        shim = self.folder / "git"
        places = {name: shlex.quote(str(self.folder / name)) for name in ("order", "calls")}
        shim.write_text(SHIM.format(git=shlex.quote(git), **places))
        shim.chmod(0o755)

    def order(self, victim: str, at: int, delay_s: float) -> None:
        (self.folder / "calls").unlink(missing_ok=True)
        (self.folder / "new").write_text(f"{victim} {at} {delay_s:.3f}\n")
        (self.folder / "new").rename(self.folder / "order")

    def withdraw(self) -> None:
        (self.folder / "order").unlink(missing_ok=True)


def work(number: int, *, kills_guard: bool) -> str:
    """Return a prompt that changes, adds and deletes files."""
    lines = [
        f"for n in range(8): open(f'f{{n}}', 'w').write('run {number}\\n' * 200)",
        f"os.makedirs('new/deep{number}', exist_ok=True)",
        f"for n in range(4): open(f'new/deep{number}/n{{n}}', 'w').write('x')",
        "import glob, shutil",
        f"[shutil.rmtree(p) for p in glob.glob('new/deep*') if not p.endswith('deep{number}')]",
    ]
    if kills_guard:
        lines.insert(1, f"os.kill(os.getppid(), {int(signal.SIGKILL)}); time.sleep(600)")
    return "\n".join(lines)


def after(before: Files, number: int) -> Files:
    """Return the files of the project once the work *number* is applied."""
    kept = {path: each for path, each in before.items() if not path.startswith("new/")}
    changed = {f"f{n}": ("file", b"run %d\n" % number * 200) for n in range(8)}
    made = {f"new/deep{number}/n{n}": ("file", b"x") for n in range(4)}
    return {**kept, **changed, **made}


class Case:
    """A project, and what one kill after the other does to it."""

    def __init__(self, lab: Lab, acting: Path, killer: Killer, tag: str) -> None:
        self.lab, self.acting, self.killer, self.tag = lab, acting, killer, tag
        self.git = state_of(lab.project / ".git")

    async def kill(self, client: Client, victim: Victim, number: int, said: str) -> None:
        """Make one run and apply it, with one kill somewhere; the server may be gone then."""
        before, chance = files_in(self.lab.project), random.Random(said)
        in_run, in_apply = victim in ("server", "git"), victim.endswith("in apply")
        if in_run:
            at = chance.randint(1, GIT_CALLS_OF_A_RUN)
            self.killer.order(victim, at, chance.choice((0.0, 0.002, 0.01)))
        prompt = work(number, kills_guard=victim == "guard")
        called: Any = await client.call_tool("codex_run", {"prompt": prompt, **COPY})
        self.killer.withdraw()
        assert files_in(self.lab.project) == before
        self.check_git()
        run = cast("Json", called.structured_content)
        if victim == "guard":
            assert run["status"] == "failed"
        if run["status"] == "failed" or run["changes"] is None:
            assert victim in ("git", "guard"), run
            return
        if victim == "git in apply":
            self.killer.order("git", chance.randint(1, GIT_CALLS_OF_APPLY), 0.002)
        async with anyio.create_task_group() as tasks:
            if victim == "server in apply":
                tasks.start_soon(self.kill_server, chance.uniform(0.0, 0.35))
            arguments = {"run_id": run["run_id"], "action": "apply"}
            done: Any = await client.call_tool("codex_apply", arguments)
            self.killer.withdraw()
            is_applied = done.structured_content["applied"]
            expected = after(before, number) if is_applied else before
            assert files_in(self.lab.project) == expected
            assert is_applied or in_apply, done
            tasks.cancel_scope.cancel()
        self.check_git()

    async def kill_server(self, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        servers = [pid for pid in marked(self.tag) if b"--state-dir" in argv_of(pid)]
        for pid in servers:
            os.kill(pid, signal.SIGKILL)

    def check_git(self) -> None:
        assert state_of(self.lab.project / ".git") == self.git


def argv_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
async def test_a_kill_at_any_moment_leaves_all_or_nothing_and_no_process(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    acting, killer, tag = acting_codex(lab, fake), Killer(lab.root / "killer"), str(uuid.uuid4())
    for number in range(8):
        (lab.project / f"f{number}").write_text("first\n")
    run_git(lab.project, "add", ".")
    run_git(lab.project, "commit", "-qm", "second")
    (lab.project / "f0").write_text("not committed\n")
    killer.install()
    env = {"FAR_END": tag, "PATH": f"{killer.folder}:{os.environ['PATH']}"}
    case = Case(lab, acting, killer, tag)
    kills = range(KILLS // 2)  # The other half is made in the other era.
    number, died = 0, 0
    while number < len(kills):
        before = files_in(lab.project)
        victim, said = VICTIMS[number % len(VICTIMS)], f"kill {number} in {mode}"
        # The end of the server is the end of the client as well.
        with suppress(MCPError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            try:
                async with connect(mode, acting, lab, env=env) as client:
                    while number < len(kills):
                        before = files_in(lab.project)
                        victim, said = VICTIMS[number % len(VICTIMS)], f"kill {number} in {mode}"
                        number += 1
                        await case.kill(client, victim, number, said)
            except* (MCPError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                died += 1
        killer.withdraw()
        await until(lambda: not marked(tag))
        # What the next server does soon after its start.
        remove_old_copies(lab.state)
        assert files_in(lab.project) in (before, after(before, number)), (said, victim)
        case.check_git()
    assert died > 0, "no server was killed in time"
    long_ago = time.time() - KEEP_COPIES_S - 60
    # The project itself is still in use, so that its shadow repository stays.
    for path in lab.state.glob("trees/*/**/*"):
        os.utime(path, (long_ago, long_ago), follow_symlinks=False)
    remove_old_copies(lab.state)
    (folder,) = lab.state.glob("trees/*")
    assert not files_in(folder / "copies")
    assert not list((folder / "snapshots").glob("*"))
    assert not list((folder / "runs").glob("*"))
    assert not run_git(folder / "shadow.git", "for-each-ref")
