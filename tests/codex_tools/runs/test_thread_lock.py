"""The lock of a thread, with real processes that take it, hold it and die."""

from __future__ import annotations

import fcntl
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
home, thread = Path(sys.argv[1]), sys.argv[2]
"""

HOLD = (
    TAKE
    + """\
lock = ThreadLock.take(home, home / "state", thread)
print("taken", flush=True)
sys.stdin.read()
"""
)

HAND_OVER = (
    TAKE
    + """\
import os, signal, subprocess
lock = ThreadLock.take(home, home / "state", thread)
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
        lock = ThreadLock.take(home, home / "state", thread)
    except ThreadBusy:
        continue
    mark = os.open(home / "held", os.O_CREAT | os.O_EXCL)
    os.close(mark)
    taken += 1
    (home / "held").unlink()
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


def take(home: Path, thread: str = THREAD, *, state: str = "state") -> ThreadLock:
    return ThreadLock.take(home, home / state, thread)


def is_busy(home: Path) -> bool:
    try:
        take(home).release()
    except ThreadBusy:
        return True
    return False


def test_of_two_takes_the_second_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    first = take(tmp_path)
    for _ in range(2):
        with pytest.raises(ThreadBusy) as caught:
            take(tmp_path)
        assert caught.value.thread_id == THREAD
        assert caught.value.retryable
    first.release()
    take(tmp_path).release()


def test_threads_do_not_lock_each_other_nor_those_of_other_homes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    locks = [take(tmp_path / "a"), take(tmp_path / "a", "another"), take(tmp_path / "b")]
    for lock in locks:
        lock.release()


def test_a_release_leaves_no_file_and_no_open_descriptor(tmp_path: Path) -> None:
    lock = take(tmp_path)
    assert [path.name for path in (tmp_path / "mcp-server-codex").iterdir()] == [f"{THREAD}.lock"]
    lock.release()
    assert list((tmp_path / "mcp-server-codex").iterdir()) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lock.fd)


def test_a_refused_take_leaves_no_open_descriptor(tmp_path: Path) -> None:
    lock = take(tmp_path)
    probe = os.dup(lock.fd)
    os.close(probe)
    for _ in range(3):
        with pytest.raises(ThreadBusy):
            take(tmp_path)
    again = os.dup(lock.fd)
    os.close(again)
    assert again == probe
    lock.release()


def test_what_is_made_is_for_this_user_only(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        lock = take(tmp_path)
    finally:
        os.umask(old)
    folder = tmp_path / "mcp-server-codex"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / f"{THREAD}.lock")]
    assert modes == [0o700, 0o200]
    lock.release()


def test_servers_with_different_state_folders_exclude_each_other(tmp_path: Path) -> None:
    link = tmp_path / "link"
    home = tmp_path / "home"
    home.mkdir()
    link.symlink_to(home)
    lock = take(home, state="one")
    for name, state in ((home, "two"), (link, "one")):
        with pytest.raises(ThreadBusy):
            take(name, state=state)
    lock.release()
    take(link, state="two").release()


def test_a_home_that_cannot_be_written_to_is_locked_in_the_state_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "mcp-server-codex").parent.mkdir()
    # A file where the folder has to be: root may write to any folder.
    (
        home / "mcp-server-codex"
    ).touch()  # Root writes to any folder; no one makes a folder of a file.
    for folder in (home, tmp_path / "missing"):
        lock = ThreadLock.take(folder, tmp_path / "state", THREAD)
        with pytest.raises(ThreadBusy):
            ThreadLock.take(folder, tmp_path / "state", THREAD)
        lock.release()
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("thread_id", ["../../elsewhere", "a/b", "x" * 5000, "\0", "caf\udce9"])
def test_no_thread_id_leads_out_of_the_folder(tmp_path: Path, thread_id: str) -> None:
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    lock = ThreadLock.take(home, tmp_path / "state", thread_id)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent == home / "mcp-server-codex"
    lock.release()


def test_a_server_of_an_earlier_build_is_respected(tmp_path: Path) -> None:
    locks = tmp_path / "state" / "locks"
    locks.mkdir(parents=True)
    with (locks / f"{THREAD}.lock").open("w") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        assert is_busy(tmp_path)
    assert not is_busy(tmp_path)


CONFINED = """\
import fcntl, os, sys
path = sys.argv[1]
if os.getuid() == 0:
    os.setresuid(12345, 12345, 12345)
held = []
for flags in (os.O_RDONLY, os.O_PATH):
    try:
        fd = os.open(path, flags)
    except OSError:
        continue
    for take in (
        lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
        lambda: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB),
        lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
    ):
        try:
            take()
            held.append(fd)
        except OSError:
            pass
print("tried", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no locks of open files")
def test_a_process_that_may_only_read_cannot_hold_a_lock(tmp_path: Path) -> None:
    """As a command in a sandbox: the same user, without the right to write or to change modes."""
    folder = tmp_path / "mcp-server-codex"
    folder.mkdir()
    path = folder / f"{THREAD}.lock"
    path.touch(mode=0o200)
    if os.getuid() == 0:  # Root may read any file: another user owns the file and tries.
        for each in (*tmp_path.parents[:2], tmp_path, folder):
            each.chmod(0o755)
        os.chown(path, 12345, 12345)
    with start(CONFINED, path) as confined:
        assert first_line(confined) == "tried"
        assert not is_busy(tmp_path)
        confined.kill()


def test_a_file_that_a_dead_server_left_does_not_lock(tmp_path: Path) -> None:
    (tmp_path / "mcp-server-codex").mkdir()
    (tmp_path / "mcp-server-codex" / f"{THREAD}.lock").touch()
    take(tmp_path).release()
    assert list((tmp_path / "mcp-server-codex").iterdir()) == []


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
    lock = take(tmp_path)
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
    assert list((tmp_path / "mcp-server-codex").iterdir()) == []
