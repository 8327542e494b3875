"""The index under kills, rivals, full disks and damage: the answers stay exact."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from codex_tools.codex.errors import IndexUnavailable
from codex_tools.codex.json_object import Json
from codex_tools.history.index import UNUSED_S
from codex_tools.history.tables import SCHEMA, IndexConnection, open_database
from codex_tools.history.usage_report import UsageQuery, report
from support.codex_versions import cannot_have
from support.index_checks import (
    START,
    Indexers,
    all_told,
    answers,
    assert_exact,
    marks,
    numbers,
    open_index,
    opened_files,
    rollouts_in,
    row,
    usage,
)
from support.index_process import UNAVAILABLE
from support.synthetic_home import Truth, make_home

HOME: dict[str, Any] = {"days": 30, "turns": 1, "output_kb": 0.1, "start": START}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A home of more than a hundred files that no test changes, and the truth about it."""
    home = tmp_path_factory.mktemp("home")
    return home, make_home(home, sessions=120, seed=21, packed=0.1, **HOME)


@pytest.fixture
def home(made: tuple[Path, Truth]) -> Path:
    return made[0]


@pytest.fixture
def truth(made: tuple[Path, Truth]) -> Truth:
    return made[1]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(scope="module")
def indexers() -> Generator[Indexers]:
    with Indexers() as started:
        yield started


def index_in(state: Path) -> Path:
    """Return the one database that a state folder holds."""
    (found,) = state.rglob("*.sqlite")
    return found


# Killed.


class Live:
    """A home that Codex is at work in: files grow, and some are written anew."""

    def __init__(self, whole: Path, home: Path, draw: random.Random) -> None:
        self.whole, self.home, self.draw = whole, home, draw
        self.names = [str(path.relative_to(whole)) for path in whole.rglob("rollout-*")]
        shutil.copytree(whole, home)
        for name in draw.sample(self.names, len(self.names) // 2):
            if name.endswith(".jsonl"):
                os.truncate(home / name, int((home / name).stat().st_size * draw.random()))

    def go_on(self) -> None:
        """Let some files grow, and touch others."""
        for name in self.draw.sample(self.names, 8):
            path, rest = self.home / name, (self.whole / name).read_bytes()
            size = path.stat().st_size
            with path.open("ab") as file:
                file.write(rest[size : size + self.draw.randrange(1, 40_000)])
        for name in self.draw.sample(self.names, len(self.names) * 3 // 4):
            os.utime(self.home / name)

    def end(self) -> None:
        """Let all files become what they shall be."""
        for name in self.names:
            shutil.copy2(self.whole / name, self.home / name)


def killed_at(indexers: Indexers, delay_s: float, home: Path, state: Path) -> int:
    """Start to index, kill that after a while, and return how it ended."""
    before = marks(home)
    pid = indexers.start(home, state, batch=3)
    time.sleep(delay_s)
    os.kill(pid, signal.SIGKILL)
    ended = indexers.ended(pid)
    assert marks(home) == before
    return ended


def duration_of(indexers: Indexers, home: Path, states: Path) -> float:
    """Return how long it takes to index a home from nothing, in seconds.

    The shortest of some: where the machine was busy meanwhile, who is to be
    killed within that time would have come to its end.
    """
    took_s: list[float] = []
    for n in range(3):
        began = time.monotonic()
        assert indexers.ended(indexers.start(home, states / str(n), batch=3)) == 0
        took_s.append(time.monotonic() - began)
    return min(took_s)


def test_an_index_whose_makers_were_killed_a_hundred_times_is_exact(
    home: Path, truth: Truth, tmp_path: Path, state: Path, indexers: Indexers
) -> None:
    draw = random.Random(31)
    longest = duration_of(indexers, home, tmp_path / "others")
    live = Live(home, tmp_path / "live", draw)
    killed = 0
    for _ in range(500):  # Some come to their end before they are killed.
        delay_s = draw.uniform(0, longest)
        killed += killed_at(indexers, delay_s, live.home, state) == -signal.SIGKILL
        live.go_on()
        if killed == 100:
            break
    assert killed == 100
    live.end()
    assert_exact(answers(live.home, state), truth)


def test_an_index_is_exact_if_its_making_was_killed_a_few_times_from_the_beginning(
    home: Path, truth: Truth, tmp_path: Path, indexers: Indexers
) -> None:
    draw = random.Random(32)
    longest = duration_of(indexers, home, tmp_path / "others")
    killed = 0
    for n in range(12):
        for _ in range(draw.randint(1, 4)):
            # Who comes later finds a part done, and is done sooner.
            delay_s = draw.uniform(0, longest * 0.5)
            killed += killed_at(indexers, delay_s, home, tmp_path / str(n)) == -signal.SIGKILL
        assert_exact(answers(home, tmp_path / str(n)), truth)
    assert killed > 12


# Several at once.


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("batch", [7, 250])
def test_processes_that_index_a_home_at_once_are_each_exact(
    home: Path,
    truth: Truth,
    tmp_path: Path,
    state: Path,
    indexers: Indexers,
    count: int,
    batch: int,
) -> None:
    outs = [tmp_path / f"{n}.json" for n in range(count)]
    pids = [indexers.start(home, state, batch=batch, out=str(out)) for out in outs]
    assert [indexers.ended(pid) for pid in pids] == [0] * count
    for out in outs:
        told = cast("Json", json.loads(out.read_text()))
        assert told["notes"] == []
        assert_exact(told, truth)


def wait_for_stop(pid: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_locked(told: Json) -> bool:
    return any("another process holds its write lock" in note for note in told["notes"])


@pytest.mark.parametrize("read_before", [0, 50])
def test_a_stopped_process_costs_the_others_nothing_but_a_note(
    home: Path, truth: Truth, tmp_path: Path, state: Path, indexers: Indexers, read_before: int
) -> None:
    stopped = indexers.start(home, state, batch=10, stop_after=read_before)
    try:
        wait_for_stop(stopped)
        out = tmp_path / "out.json"
        waiting = indexers.start(home, state, wait_s=60, out=str(out))
        assert indexers.ended(waiting) == 0
        told = cast("Json", json.loads(out.read_text()))
        assert_exact(told, truth)
        assert is_locked(told)
        with open_index(home, state) as history:
            assert is_locked(usage(history))
            os.kill(stopped, signal.SIGKILL)
            indexers.ended(stopped)
            # The lock is free: the shared index is used again, and the note is gone.
            assert not is_locked(usage(history))
            assert_exact(all_told(history), truth)
            assert len([*state.rglob("*.sqlite")]) == 1
    finally:
        with suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)
    assert_exact(answers(home, state), truth)


def test_two_versions_side_by_side_leave_each_other_s_index_alone(
    home: Path, truth: Truth, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes = ("codex_tools.history.index", "codex_tools.history.tables")
    answers(home, state)
    (ours,) = state.rglob("*.sqlite")
    before = ours.read_bytes()
    for module in indexes:
        monkeypatch.setattr(f"{module}.SCHEMA", SCHEMA + 1)
    assert_exact(answers(home, state), truth)
    monkeypatch.undo()
    assert ours.read_bytes() == before
    with opened_files(home) as seen:
        assert_exact(answers(home, state), truth)
    assert rollouts_in(seen) == []
    # One that no version has opened for a month goes when another one is made.
    other = next(path for path in state.rglob("*.sqlite") if path != ours)
    long_ago = time.time() - UNUSED_S - 100
    os.utime(other, (long_ago, long_ago))
    ours.unlink()
    answers(home, state)
    assert [*state.rglob("*.sqlite")] == [ours]


def test_a_process_waits_longer_for_one_that_gets_on(
    home: Path, truth: Truth, tmp_path: Path, state: Path, indexers: Indexers
) -> None:
    """It is stopped again and again, each time for less than the other waits."""
    first = indexers.start(home, state, batch=10, stop_after=0)
    wait_for_stop(first)
    out = tmp_path / "out.json"
    second = indexers.start(home, state, wait_s=4, out=str(out))
    for _ in range(6):
        time.sleep(1)
        os.kill(first, signal.SIGCONT)
        wait_for_stop(first)
    os.kill(first, signal.SIGKILL)
    indexers.ended(first)
    assert indexers.ended(second) == 0
    assert_exact(json.loads(out.read_text()), truth)


# No place to keep it.


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "state"


def a_file(tmp_path: Path) -> Path:
    (tmp_path / "state").write_text("")
    return tmp_path / "state"


def with_a_file_in_it(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "history").write_text("")
    return tmp_path / "state"


def a_broken_link(tmp_path: Path) -> Path:
    (tmp_path / "state").symlink_to(tmp_path / "nowhere" / "else")
    return tmp_path / "state"


def of_the_kernel(tmp_path: Path) -> Path:
    return Path("/proc/self/state")


@pytest.mark.parametrize(
    "place",
    [below_a_file, a_file, with_a_file_in_it, a_broken_link, of_the_kernel],
    ids=lambda place: place.__name__,
)
def test_where_no_index_can_be_kept_the_answers_are_exact_and_say_so(
    home: Path, truth: Truth, tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    state = place(tmp_path)
    with open_index(home, state) as history:
        assert_exact(all_told(history), truth)
        (note,) = history.notes
        assert f"cannot be kept in {state}" in note
        assert note in usage(history)["notes"]


def test_an_index_of_its_own_is_gone_once_it_is_closed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = tmp_path / "places"
    places.mkdir()
    monkeypatch.setattr("codex_tools.codex.private_folder._places", lambda: [places])
    with open_index(home, a_file(tmp_path)) as history:
        usage(history)
        assert [*places.iterdir()] != []
    assert [*places.iterdir()] == []


@pytest.mark.parametrize("most", [0, 4096, 100_000, 300_000])
def test_where_no_file_can_grow_the_answer_is_a_clear_error_and_nothing_is_broken(
    home: Path, truth: Truth, tmp_path: Path, state: Path, indexers: Indexers, most: int
) -> None:
    out = tmp_path / "out.json"
    limited = indexers.start(home, state, out=str(out), file_size=most, batch=50)
    assert indexers.ended(limited) == UNAVAILABLE
    assert "cannot be used" in json.loads(out.read_text())["error"]
    assert_exact(answers(home, state), truth)


def test_a_full_disk_spoils_no_index_that_was_there(
    home: Path, truth: Truth, tmp_path: Path, state: Path, indexers: Indexers
) -> None:
    live = Live(home, tmp_path / "live", random.Random(33))
    answers(live.home, state)
    live.end()
    out = tmp_path / "out.json"
    limited = indexers.start(live.home, state, out=str(out), file_size=50_000, batch=50)
    assert indexers.ended(limited) == UNAVAILABLE
    assert_exact(answers(live.home, state), truth)


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=300k tmpfs "$1" && cd "$2" && exec "$3" -c '
import json, sys
from pathlib import Path
from support.index_checks import all_told, open_index
with open_index(Path(sys.argv[1]), Path(sys.argv[2])) as history:
    told = all_told(history) | {"notes": history.notes}
print(json.dumps(told))
' "$4" "$1"
"""


def test_on_a_full_disk_the_answers_are_exact_and_say_so(
    home: Path, truth: Truth, tmp_path: Path
) -> None:
    unshared = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*unshared, "mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    except (OSError, subprocess.CalledProcessError):
        cannot_have("a small disk: mounting in a user namespace")
    place = tmp_path / "disk"
    place.mkdir()
    tests = Path(__file__).parents[2]
    shell = ["sh", "-c", ON_A_SMALL_DISK, "sh", place, tests, sys.executable, home]
    done = subprocess.run([*unshared, *shell], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = cast("Json", json.loads(done.stdout))
    assert_exact(told, truth)
    assert f"cannot be kept in {place}" in told["notes"][0]
    assert "full" in told["notes"][0]


# Damage.


def emptied(index: Path) -> None:
    index.write_bytes(b"")


def garbage(index: Path) -> None:
    index.write_bytes(random.Random(1).randbytes(200_000))


def half(index: Path) -> None:
    os.truncate(index, index.stat().st_size // 2)


def cut_in_a_page(index: Path) -> None:
    os.truncate(index, index.stat().st_size - 1000)


def cut_to_its_head(index: Path) -> None:
    os.truncate(index, 50)


def overwritten_in_the_middle(index: Path) -> None:
    size = index.stat().st_size
    with index.open("r+b") as file:
        file.seek(size // 4)
        file.write(random.Random(2).randbytes(size // 2))


def zeros_in_the_middle(index: Path) -> None:
    size = index.stat().st_size
    with index.open("r+b") as file:
        file.seek(size // 3)
        file.write(bytes(size // 3))


def of_another_schema(index: Path) -> None:
    db = sqlite3.connect(index)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.execute(f"PRAGMA user_version = {version + 1}")
    db.close()


def of_something_else(index: Path) -> None:
    index.unlink()
    db = sqlite3.connect(index)
    db.execute("CREATE TABLE other (x)")
    db.close()


def with_a_log_of_garbage(index: Path) -> None:
    index.with_name(f"{index.name}-wal").write_bytes(random.Random(3).randbytes(100_000))


def with_shared_memory_of_garbage(index: Path) -> None:
    index.with_name(f"{index.name}-shm").write_bytes(random.Random(4).randbytes(32_768))


def with_only_a_log(index: Path) -> None:
    index.rename(f"{index}-wal")


def gone(index: Path) -> None:
    index.unlink()


def gone_with_its_folder(index: Path) -> None:
    shutil.rmtree(index.parent)


def become_a_folder(index: Path) -> None:
    index.unlink()
    index.mkdir()


DAMAGES = [
    emptied,
    garbage,
    half,
    cut_in_a_page,
    cut_to_its_head,
    overwritten_in_the_middle,
    zeros_in_the_middle,
    of_another_schema,
    of_something_else,
    with_a_log_of_garbage,
    with_shared_memory_of_garbage,
    with_only_a_log,
    gone,
    gone_with_its_folder,
    become_a_folder,
]


def exact_sooner_or_later(home: Path, state: Path, truth: Truth) -> None:
    """Ask up to three times: an answer is exact, or a clear error and at once."""
    for _ in range(3):
        try:
            told = answers(home, state)
        except IndexUnavailable:
            continue
        assert_exact(told, truth)
        return
    raise AssertionError("it does not recover")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_index_is_made_anew(
    home: Path, truth: Truth, state: Path, damage: Callable[[Path], None]
) -> None:
    answers(home, state)
    damage(index_in(state))
    exact_sooner_or_later(home, state, truth)
    assert_exact(answers(home, state), truth)


@pytest.mark.parametrize(
    "damage",
    [d for d in DAMAGES if d not in (with_a_log_of_garbage, with_shared_memory_of_garbage)],
    ids=lambda damage: damage.__name__,
)
def test_an_index_that_is_damaged_while_it_is_open_is_made_anew(
    home: Path, truth: Truth, state: Path, damage: Callable[[Path], None]
) -> None:
    with open_index(home, state) as history:
        all_told(history)
        damage(index_in(state))
        for _ in range(3):
            try:
                told = all_told(history)
            except IndexUnavailable:
                continue
            assert_exact(told, truth)
            break
        else:
            raise AssertionError("it does not recover")
    exact_sooner_or_later(home, state, truth)


@pytest.mark.parametrize("damage", [gone, gone_with_its_folder], ids=["index", "folder"])
def test_an_index_that_is_deleted_between_reading_and_telling_is_not_told_from_empty(
    home: Path, truth: Truth, state: Path, damage: Callable[[Path], None]
) -> None:
    with open_index(home, state) as history:
        history.refresh()
        damage(index_in(state))
        try:
            told = report(history, UsageQuery())
        except IndexUnavailable:
            return
        assert row(told["totals"]) == numbers(truth.total)


def test_two_homes_in_one_state_folder_do_not_meet(
    home: Path, truth: Truth, tmp_path: Path, state: Path
) -> None:
    other = make_home(tmp_path / "other", sessions=9, seed=22, **HOME)
    for _ in range(2):
        assert_exact(answers(home, state), truth)
        assert_exact(answers(tmp_path / "other", state), other)


def test_an_index_is_for_nobody_else_s_eyes(home: Path, state: Path) -> None:
    answers(home, state)
    for path in (*state.iterdir(), *(state / "history").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_new_index_can_be_opened_by_several_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(4, timeout=60)

    def open_all() -> None:
        for number in range(60):
            start.wait()
            try:
                open_database(tmp_path / f"{number}.sqlite").close()
            except BaseException:  # Whatever it is: the others wait for this thread.
                start.abort()
                raise

    with ThreadPoolExecutor(4) as pool:
        for opened in [pool.submit(open_all) for _ in range(4)]:
            opened.result()


def test_a_statement_that_never_ends_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT max(i) FROM n"
    with closing(open_database(tmp_path / "index.sqlite")) as db:
        with monkeypatch.context() as patch:
            patch.setattr("codex_tools.history.tables.STATEMENT_S", 0.1)
            with pytest.raises(sqlite3.OperationalError, match="interrupted"):
                db.execute(endless).fetchall()
        assert db.execute("SELECT 1").fetchall() == [(1,)]
        assert isinstance(db, IndexConnection)
        db.stop.set()
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            db.execute(endless).fetchall()


@pytest.mark.parametrize("ending", ["", "-wal", "-shm", "-journal"])
def test_no_other_file_than_a_regular_one_is_given_to_sqlite(tmp_path: Path, ending: str) -> None:
    os.mkfifo(tmp_path / f"index.sqlite{ending}")
    with pytest.raises(OSError, match=r"not a regular file|No such device"):
        open_database(tmp_path / "index.sqlite")
