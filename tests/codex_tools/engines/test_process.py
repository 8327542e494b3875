"""A child and its guard: what goes in, what comes out, and that nothing is left."""

from __future__ import annotations

import fcntl
import json
import os
import py_compile
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from codex_tools.engines import guard
from codex_tools.engines.guard import processes, tree
from codex_tools.engines.process import (
    LINE_HEAD,
    LINE_LIMIT,
    LINE_TAIL,
    STDERR_KEPT,
    Child,
    LineCutter,
    is_current,
    open_child,
)
from support.lab import commands, marked, marked_child, until

PYTHON = sys.executable

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs a child subreaper")

DAEMONS = """
import os, subprocess, sys, time
sleep = ["sleep", "600"]
subprocess.Popen(sleep, process_group=0)
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
subprocess.Popen(["nohup", *sleep], process_group=0, **quiet)
subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.DEVNULL)
subprocess.Popen(["sh", "-c", "setsid sh -c 'sleep 600 & sleep 600 &' &"])
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
print("ready", flush=True)
"""
"""Seven processes; the first stays for as long as is added, the others for ten minutes.

None is in the group of the first: each Codex gives its commands a group or a session.
"""

LAST_ACT = """
import subprocess, sys
subprocess.Popen(["sh", "-c", "sleep 0.5; echo done > acted"], {streams})
subprocess.Popen(["sleep", "600"], process_group=0)
subprocess.Popen(["sleep", "600"], start_new_session=True)
print("said", flush=True)
sys.exit({code})
"""
"""What a real Codex leaves at its end: `notify` in its own group, and commands that are not."""


def tagged() -> tuple[str, dict[str, str]]:
    """Return a mark of this test, and an environment that carries it."""
    tag = f"TEST_MARK={uuid.uuid4()}"
    return tag, {**os.environ, "TEST_MARK": tag.partition("=")[2]}


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def zombies() -> list[int]:
    """Return the children of this process that have ended and were not waited for."""
    children = [pid for pid, parent in processes() if parent == os.getpid()]
    return [pid for pid in children if ") Z " in Path(f"/proc/{pid}/stat").read_text()]


async def run(code: str, tmp_path: Path, stdin: bytes = b"") -> tuple[list[bytes], int, str]:
    async with open_child(
        [PYTHON, "-I", "-c", code], stdin=stdin, cwd=tmp_path, env=os.environ
    ) as child:
        lines = [line async for line in child.lines()]
        return lines, await child.wait(), child.stderr_end()


async def test_the_child_reads_its_input_to_the_end(tmp_path: Path) -> None:
    code = "import sys; d = sys.stdin.read(); print(len(d), d[-3:]); print(sys.stdin.read() == '')"
    lines, returncode, _ = await run(code, tmp_path, b"x" * 5_000_000 + b"end")
    assert lines == [b"5000003 end", b"True"]
    assert returncode == 0


async def test_lines_come_whole_whatever_their_length(tmp_path: Path) -> None:
    size = LINE_LIMIT - 65536
    code = f"""
import sys
out = sys.stdout.buffer
out.write(b"first\\n\\n" + b"x" * {size} + b"\\nlast without a line feed")
"""
    async with open_child(
        [PYTHON, "-I", "-c", code], stdin=b"", cwd=tmp_path, env=os.environ
    ) as child:
        lines = [line async for line in child.lines()]
    assert [len(line) for line in lines] == [5, 0, size, 24]
    assert lines[3] == b"last without a line feed"


TAIL = rb'","exit_code":3}'
FILLERS = [
    b"x",
    b"\\n",
    b'\\"',
    "\u00e9".encode(),
    b"\\u00e9",
    b"0123456789abcdef",
    b'\\"a\\u0041 ',
]


@pytest.mark.parametrize("filler", FILLERS)
@pytest.mark.parametrize("shift", range(7))
def test_a_line_that_is_too_long_loses_its_middle_and_stays_json(filler: bytes, shift: int) -> None:
    line = b'{"output":"' + b"-" * shift + filler * (2 * LINE_HEAD // len(filler)) + TAIL
    cutter = LineCutter(line[: LINE_HEAD + 10])
    for at in range(LINE_HEAD + 10, len(line), 1_000_003):
        cutter.add(line[at : at + 1_000_003])
    short = cutter.line()
    assert len(short) < LINE_HEAD + LINE_TAIL + 100
    data = json.loads(short)
    assert data["exit_code"] == 3
    assert " bytes left out] " in data["output"]


async def test_a_line_over_the_limit_is_shortened(tmp_path: Path) -> None:
    code = f"""
import sys
out = sys.stdout.buffer
out.write(b"first\\n" + b"x" * {2 * LINE_LIMIT} + b"\\nsecond\\n" + b"y" * {2 * LINE_LIMIT})
"""
    lines, _, _ = await run(code, tmp_path)
    first, shortened, second, last = lines
    assert (first, second) == (b"first", b"second")
    for line, letter in ((shortened, b"x"), (last, b"y")):
        assert len(line) < LINE_HEAD + LINE_TAIL + 100
        assert line.startswith(letter * 100)
        assert line.endswith(letter * 100)


async def test_stderr_never_blocks_and_keeps_its_end(tmp_path: Path) -> None:
    code = """
import sys
for i in range(400_000):
    sys.stderr.write(f"line {i} of a long log\\n")
print("done")
"""
    lines, _, stderr = await run(code, tmp_path)
    assert lines == [b"done"]
    assert len(stderr) <= STDERR_KEPT
    assert stderr.endswith("line 399999 of a long log\n")


async def test_the_exit_code_is_the_child_s(tmp_path: Path) -> None:
    assert (await run("import sys; sys.exit(7)", tmp_path))[1] == 7
    assert (await run("import os; os.kill(os.getpid(), 15)", tmp_path))[1] == -signal.SIGTERM
    assert (await run("import os; os.kill(os.getpid(), 9)", tmp_path))[1] == -signal.SIGKILL


async def test_a_program_that_cannot_run_says_so(tmp_path: Path) -> None:
    async with open_child(
        [str(tmp_path / "gone")], stdin=b"", cwd=tmp_path, env=os.environ
    ) as child:
        assert [line async for line in child.lines()] == []
        assert await child.wait() == 127
        assert "cannot run" in child.stderr_end()


async def test_the_child_has_default_signals_and_a_session_of_its_own(tmp_path: Path) -> None:
    code = """
import os, signal
print(os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())
print(open("/proc/self/status").read().split("SigIgn:")[1].split()[0])
print(sorted(os.listdir("/proc/self/fd"))[:3], os.getcwd())
"""
    lines, _, _ = await run(code, tmp_path)
    assert lines[0] == b"True True"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        assert not int(lines[1], 16) & 1 << (number - 1), number
    assert str(tmp_path) in lines[2].decode()


@pytest.mark.parametrize("how", ["leave", "cancel", "raise", "let it end"])
async def test_leaving_ends_the_whole_tree(tmp_path: Path, how: str) -> None:
    tag, env = tagged()
    ended = tmp_path / "ended"
    stay = f"while not os.path.exists({str(ended)!r}): time.sleep(0.02)"

    async def work() -> None:
        async with open_child(
            [PYTHON, "-I", "-c", DAEMONS + stay], stdin=b"", cwd=tmp_path, env=env
        ) as child:
            async for line in child.lines():
                assert line == b"ready"
                await until(lambda: len(marked(tag)) >= 8)
                if how == "let it end":
                    ended.touch()
                if how == "leave":
                    return
                if how == "cancel":
                    scope.cancel()
                if how == "raise":
                    raise LookupError(how)

    with anyio.CancelScope() as scope:
        if how == "raise":
            with pytest.raises(LookupError):
                await work()
        else:
            await work()
    assert marked(tag) == []


async def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    tag, env = tagged()
    code = """
import signal, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
    async with open_child([PYTHON, "-I", "-c", code], stdin=b"", cwd=tmp_path, env=env) as child:
        async for _ in child.lines():
            break
    assert marked(tag) == []


async def test_a_child_may_end_in_its_own_way_when_asked(tmp_path: Path) -> None:
    code = """
import pathlib, signal, time
try:
    print("ready", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    pathlib.Path("closed").write_text("yes")
"""
    async with open_child([PYTHON, "-c", code], stdin=b"", cwd=tmp_path, env=os.environ) as child:
        async for _ in child.lines():
            break
    assert (tmp_path / "closed").read_text() == "yes"


async def test_a_fork_bomb_of_short_children_leaves_nothing(tmp_path: Path) -> None:
    tag, env = tagged()
    code = """
import os, time
print("ready", flush=True)
for _ in range(200):
    if os.fork() == 0:
        os.setsid()
        for _ in range(3):
            if os.fork() == 0:
                time.sleep(0.05)
        time.sleep(0.05)
        os._exit(0)
time.sleep(600)
"""
    async with open_child([PYTHON, "-I", "-c", code], stdin=b"", cwd=tmp_path, env=env) as child:
        async for _ in child.lines():
            break
    assert marked(tag) == []


@pytest.mark.parametrize("streams", ["", "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"])
async def test_what_the_child_starts_last_may_finish_but_delays_nothing(
    tmp_path: Path, streams: str
) -> None:
    tag, env = tagged()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    reading, writing = os.pipe()
    code = LAST_ACT.format(streams=streams, code=0).replace("sleep 0.5", "cat gate")
    os.mkfifo(tmp_path / "gate")
    async with open_child(
        [PYTHON, "-I", "-c", code],
        stdin=b"",
        cwd=tmp_path,
        env=env,
        scratch=scratch,
        held=(writing,),
    ) as child:
        os.close(writing)
        assert [line async for line in child.lines()] == [b"said"]
        assert await child.wait() == 0
        # The commands are dead, the lock is free, the scratch folder is gone; notify waits. All
        # of this is looked at once, because notify has 5 s in all.
        left = commands(tag)
        assert os.read(reading, 1) == b""
        assert not scratch.exists()
        assert not (tmp_path / "acted").exists()
    os.close(reading)
    (tmp_path / "gate").write_text("go")
    await until(lambda: not marked(tag))
    await guard_ended(child)
    assert not any("sleep 600" in command for command in left)
    assert any("cat gate" in command for command in left)
    assert (tmp_path / "acted").exists()


async def test_a_child_that_fails_gets_no_last_act(tmp_path: Path) -> None:
    tag, env = tagged()
    code = LAST_ACT.format(streams="", code=1)
    async with open_child([PYTHON, "-I", "-c", code], stdin=b"", cwd=tmp_path, env=env) as child:
        assert [line async for line in child.lines()] == [b"said"]
        assert await child.wait() == 1
        assert marked(tag) == []


async def test_a_last_act_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    tag, env = tagged()
    code = LAST_ACT.format(streams="", code=0).replace("sleep 0.5", "setsid sleep 600")
    async with open_child([PYTHON, "-I", "-c", code], stdin=b"", cwd=tmp_path, env=env) as child:
        assert await child.wait() == 0
    await until(lambda: not marked(tag))
    await guard_ended(child)


async def guard_ended(child: Child) -> None:
    """Wait for the guard of a last act; a loop that is closed before warns of a lost process."""
    await child._process.wait()  # pyright: ignore[reportPrivateUsage] - nobody else needs it


OWNER = """
import os, sys
import anyio
from pathlib import Path
from codex_tools.engines.process import open_child

async def main():
    async with open_child(
        [sys.executable, "-I", "-c", {code!r}],
        stdin=b"", cwd=Path.cwd(), env=os.environ, scratch={scratch},
    ) as child:
        async for line in child.lines():
            print("ready", flush=True)

anyio.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
async def test_the_death_of_the_owner_ends_the_whole_tree(
    tmp_path: Path, number: signal.Signals
) -> None:
    tag, env = tagged()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "file").write_text("private")
    code = OWNER.format(code=DAEMONS + "time.sleep(600)", scratch=f"Path({str(scratch)!r})")
    with await start([PYTHON, "-c", code], env) as owner:
        await until(lambda: len(marked(tag)) >= 8)
        owner.send_signal(number)
    await until(lambda: not marked(tag), within_s=60)
    await until(lambda: not scratch.exists(), within_s=60)


async def test_the_end_of_the_owner_ends_a_last_act_at_once(tmp_path: Path) -> None:
    tag, env = tagged()
    code = LAST_ACT.format(streams="", code=0).replace("sleep 0.5", "sleep 600")
    owner_code = OWNER.format(code=code, scratch="None").replace(
        "anyio.run(main)", "anyio.run(main)\nimport time\ntime.sleep(600)"
    )
    with await start([PYTHON, "-c", owner_code], env) as owner:
        await until(lambda: len(marked(tag)) == 4)  # Owner, guard, shell, sleep.
        owner.kill()
    await until(lambda: not marked(tag), within_s=60)
    assert not (tmp_path / "acted").exists()


@linux
async def test_a_killed_guard_takes_its_tree_along_and_no_other(tmp_path: Path) -> None:
    """Codex's launcher from npm does not pass the guard's death on to its child."""
    (tag, env), (other_tag, other_env) = tagged(), tagged()
    code = DAEMONS + "time.sleep(600)"
    earlier = zombies()
    bare = "import subprocess\nsubprocess.Popen(['sleep', '599'], env={}, start_new_session=True)"
    argv = [PYTHON, "-I", "-c"]
    async with (
        open_child([*argv, code], stdin=b"", cwd=tmp_path, env=other_env) as other,
        open_child([*argv, bare + code], stdin=b"", cwd=tmp_path, env=env) as child,
    ):
        async for _ in other.lines():
            break
        async for _ in child.lines():
            break
        await until(lambda: len(marked(tag)) >= 8 and len(marked(other_tag)) >= 8)
        guard = marked_child(tag)
        cleared = [pid for pid in tree(guard) if "sleep 599" in command_of(pid)]
        assert len(cleared) == 1
        os.kill(guard, signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
        assert marked(tag) == []
        assert cleared[0] not in dict(processes())
        assert "guard process of this run was killed" in child.stderr_end()
        assert len(marked(other_tag)) >= 8
    assert marked(other_tag) == []
    assert set(zombies()) <= set(earlier)


@linux
async def test_a_stopped_guard_still_ends_its_tree(tmp_path: Path) -> None:
    tag, env = tagged()
    code = DAEMONS + "time.sleep(600)"
    async with open_child([PYTHON, "-I", "-c", code], stdin=b"", cwd=tmp_path, env=env) as child:
        async for _ in child.lines():
            break
        guard = marked_child(tag)
        os.kill(guard, signal.SIGSTOP)
    assert marked(tag) == []


async def test_the_death_of_the_guard_takes_the_child_along(tmp_path: Path) -> None:
    """Nobody kills a guard but the kernel, short of memory; the child must not run on."""
    tag, env = tagged()
    async with open_child(
        [PYTHON, "-I", "-c", "import time; print('ready', flush=True); time.sleep(600)"],
        stdin=b"",
        cwd=tmp_path,
        env=env,
    ) as child:
        async for _ in child.lines():
            break
        os.kill(marked_child(tag), signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
        await until(lambda: not marked(tag), within_s=60)


async def test_held_descriptors_are_held_by_the_guard_and_not_by_the_child(
    tmp_path: Path,
) -> None:
    reading, writing = os.pipe()
    code = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1], flush=True)"
    async with open_child(
        [PYTHON, "-I", "-c", code + "; import time; time.sleep(600)"],
        stdin=b"",
        cwd=tmp_path,
        env=os.environ,
        held=(writing,),
    ) as child:
        os.close(writing)
        async for line in child.lines():
            assert line == b"[0, 1, 2]"
            break
        os.set_blocking(reading, False)
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
    assert os.read(reading, 1) == b""
    os.close(reading)


async def start(argv: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process and wait for its first line."""
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE)  # noqa: ASYNC220 - outlives the call
    assert process.stdout is not None
    assert await anyio.to_thread.run_sync(process.stdout.readline) == b"ready\n"
    return process


def test_only_a_compiled_guard_of_the_present_source_is_run(tmp_path: Path) -> None:
    compiled, other = tmp_path / "guard.pyc", tmp_path / "other.py"
    assert not is_current(compiled)
    py_compile.compile(guard.__file__, str(compiled), doraise=True)
    assert is_current(compiled)
    other.write_text("pass")
    py_compile.compile(str(other), str(compiled), doraise=True)
    assert not is_current(compiled)
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(guard.__file__, str(compiled), doraise=True, invalidation_mode=unchecked)
    assert not is_current(compiled)


ECHO = """
import sys
for line in sys.stdin:
    print(line.strip().upper(), flush=True)
print("end of file", flush=True)
"""


async def test_a_child_with_open_stdin_is_spoken_to_and_ends_at_the_end_of_file(
    tmp_path: Path,
) -> None:
    argv = [PYTHON, "-I", "-c", ECHO]
    async with open_child(argv, stdin=None, cwd=tmp_path, env=os.environ) as child:
        lines = child.lines()
        for word in (b"one", b"two"):
            await child.write(word + b"\n")
            assert await anext(lines) == word.upper()
        await child.close_stdin()
        await child.close_stdin()
        assert await anext(lines) == b"end of file"
        assert await child.wait() == 0
        with pytest.raises(anyio.ClosedResourceError):
            await child.write(b"late\n")


async def test_writing_to_a_child_that_has_ended_is_an_error_and_not_a_wait(
    tmp_path: Path,
) -> None:
    argv = [PYTHON, "-I", "-c", "import sys; sys.exit(3)"]
    async with open_child(argv, stdin=None, cwd=tmp_path, env=os.environ) as child:
        assert await child.wait() == 3

        async def write_on() -> None:
            while True:  # The first writings may still go into the pipe.
                await child.write(b"x" * 65536)

        with anyio.fail_after(60), pytest.raises(anyio.BrokenResourceError):
            await write_on()


@linux
async def test_nothing_is_left_of_a_child_with_open_stdin_that_does_not_read_it(
    tmp_path: Path,
) -> None:
    tag, env = tagged()
    code = DAEMONS + "time.sleep(600)"
    argv = [PYTHON, "-I", "-c", code]
    async with open_child(argv, stdin=None, cwd=tmp_path, env=env) as child:
        assert await anext(child.lines()) == b"ready"
        with anyio.move_on_after(0.2) as full:
            await child.write(b"x" * 10_000_000)
        assert full.cancelled_caught
    assert marked(tag) == []


def is_locked(file: Path) -> bool:
    with file.open("w") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@linux
@pytest.mark.parametrize("code", ["import time; time.sleep(600)", DAEMONS + "time.sleep(600)"])
async def test_a_lock_that_is_given_later_is_held_until_nothing_is_left(
    tmp_path: Path, code: str
) -> None:
    tag, env = tagged()
    files = [tmp_path / f"lock{number}" for number in range(3)]
    argv = [PYTHON, "-I", "-c", code]
    async with open_child(argv, stdin=None, cwd=tmp_path, env=env) as child:
        child.hold([])
        for file in files:
            with file.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                child.hold([lock.fileno()])
        await until(lambda: marked(tag))
        for _ in range(2000):  # More than the socket takes before the guard has read the locks.
            child._control.send(b"h")  # pyright: ignore[reportPrivateUsage]
        assert [is_locked(file) for file in files] == [True] * 3
    assert marked(tag) == []
    assert [is_locked(file) for file in files] == [False] * 3
