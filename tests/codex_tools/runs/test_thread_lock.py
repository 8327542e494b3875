"""The lock of a thread, with real processes that take it, hold it and die."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from codex_tools.codex.errors import ThreadBusy
from codex_tools.runs.thread_lock import ThreadLock
from support.lab import until

THREAD = "01a20661-b445-73e1-b566-c552cde98ccd"

TAKE = """\
import sys
from pathlib import Path
from codex_tools.codex.errors import ThreadBusy
from codex_tools.runs.thread_lock import ThreadLock
state, thread = Path(sys.argv[1]), sys.argv[2]
"""

HOLD = (
    TAKE + "lock = ThreadLock.take(state, thread)\nprint('taken', flush=True)\nsys.stdin.read()\n"
)

HAND_OVER = (
    TAKE
    + """\
import os, signal, subprocess
lock = ThreadLock.take(state, thread)
child = subprocess.Popen(["sleep", "600"], pass_fds=[lock.fd], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
)

RACE = (
    TAKE
    + """\
import os
print("ready", flush=True)
sys.stdin.readline()
taken = 0
for _ in range(int(sys.argv[3])):
    try:
        lock = ThreadLock.take(state, thread)
    except ThreadBusy:
        continue
    mark = os.open(state / "held", os.O_CREAT | os.O_EXCL)
    os.close(mark)
    taken += 1
    (state / "held").unlink()
    lock.release()
print(taken)
"""
)


def start(script: str, *arguments: object, close_fds: bool = True) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        close_fds=close_fds,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def is_busy(state: Path) -> bool:
    try:
        ThreadLock.take(state, THREAD).release()
    except ThreadBusy:
        return True
    return False


def test_of_two_takes_the_second_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    first = ThreadLock.take(tmp_path, THREAD)
    for _ in range(2):
        with pytest.raises(ThreadBusy) as caught:
            ThreadLock.take(tmp_path, THREAD)
        assert caught.value.thread_id == THREAD
        assert caught.value.retryable
    first.release()
    ThreadLock.take(tmp_path, THREAD).release()


def test_threads_do_not_lock_each_other_nor_other_state_folders(tmp_path: Path) -> None:
    locks = [
        ThreadLock.take(tmp_path / "a", THREAD),
        ThreadLock.take(tmp_path / "a", "another"),
        ThreadLock.take(tmp_path / "b", THREAD),
    ]
    for lock in locks:
        lock.release()


def test_a_release_leaves_no_file_and_no_open_descriptor(tmp_path: Path) -> None:
    lock = ThreadLock.take(tmp_path, THREAD)
    assert [path.name for path in (tmp_path / "locks").iterdir()] == [f"{THREAD}.lock"]
    lock.release()
    assert list((tmp_path / "locks").iterdir()) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lock.fd)


def test_a_refused_take_leaves_no_open_descriptor(tmp_path: Path) -> None:
    lock = ThreadLock.take(tmp_path, THREAD)
    probe = os.dup(lock.fd)
    os.close(probe)
    for _ in range(3):
        with pytest.raises(ThreadBusy):
            ThreadLock.take(tmp_path, THREAD)
    again = os.dup(lock.fd)
    os.close(again)
    assert again == probe
    lock.release()


def test_what_is_made_is_for_this_user_only(tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    old = os.umask(0o022)
    try:
        lock = ThreadLock.take(state, THREAD)
    finally:
        os.umask(old)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (state, state / "locks", state / "locks" / f"{THREAD}.lock")
    }
    assert modes == {"state": 0o700, "locks": 0o700, f"{THREAD}.lock": 0o600}
    lock.release()


def test_a_file_that_a_dead_server_left_does_not_lock(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / f"{THREAD}.lock").touch()
    ThreadLock.take(tmp_path, THREAD).release()
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    with start(HOLD, tmp_path, THREAD) as holder:
        assert first_line(holder) == "taken"
        assert is_busy(tmp_path)
        holder.kill()
    assert holder.returncode == -signal.SIGKILL
    assert not is_busy(tmp_path)


async def test_a_child_that_was_given_the_lock_keeps_it_when_its_parent_dies(
    tmp_path: Path,
) -> None:
    with start(HAND_OVER, tmp_path, THREAD) as parent:
        heir = int(first_line(parent))
    try:
        assert parent.returncode == -signal.SIGKILL
        assert is_busy(tmp_path)
    finally:
        os.kill(heir, signal.SIGKILL)
    await until(lambda: not is_busy(tmp_path), within_s=60)


def test_a_process_started_meanwhile_does_not_inherit_the_lock(tmp_path: Path) -> None:
    script = "import sys; print('up', flush=True); sys.stdin.read()"
    lock = ThreadLock.take(tmp_path, THREAD)
    with start(script, close_fds=False) as bystander:
        assert first_line(bystander) == "up"
        os.close(lock.fd)  # As if this process had died: the file stays.
        assert not is_busy(tmp_path)


def test_a_race_of_many_processes_never_gives_two_holders(tmp_path: Path) -> None:
    racers = [start(RACE, tmp_path, THREAD, 3000) for _ in range(6)]
    assert [first_line(racer) for racer in racers] == ["ready"] * 6
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    ends = [(*racer.communicate(), racer.returncode) for racer in racers]
    assert [(error, code) for _, error, code in ends] == [("", 0)] * 6
    assert sum(int(taken) for taken, _, _ in ends) > 100
    assert list((tmp_path / "locks").iterdir()) == []
