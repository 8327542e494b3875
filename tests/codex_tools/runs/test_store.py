"""Runs on disk: kept whole, read by others, outliving their servers, never in the way."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import orjson
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from codex_tools.codex.errors import Cancelled
from codex_tools.codex.turn_result import TurnResult
from codex_tools.runs.event_log import LOG_LIMIT, EventLog
from codex_tools.runs.result import (
    EffectiveSettings,
    RunResult,
    RunStatus,
    make_result,
)
from codex_tools.runs.result_text import error_text
from codex_tools.runs.store import KEEP_BYTES, KEEP_S, Recorded, RunStore, StoredRuns, now
from codex_tools.runs.writer import StateWriter
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Json, Lab, call, connect, marked, until

RUN = "run_0123456789abcdef"
THREAD = "01a20661-b445-73e1-b566-c552cde98ccd"
HELLO = events(thread_line(), *answer_lines("hello"))

MAKE = """\
import json, os, random, resource, signal, sys, threading, time
from pathlib import Path
from codex_tools.codex.turn_result import TurnResult
from codex_tools.runs.event_log import EventLog
from codex_tools.runs.result import make_result
from codex_tools.runs.result_text import error_text
from codex_tools.runs.store import RunStore, now
from codex_tools.runs.writer import StateWriter

def result(number, status="running", text=""):
    turn = TurnResult(thread_id="01a20661-b445-73e1-b566-c552cde98ccd", final_response=text)
    return make_result(status, run_id=f"run_{number:016x}", turn=turn, structured_output=text)

def settle(writer):
    done = threading.Event()
    writer.put(done.set)
    assert done.wait(60)

state = Path(sys.argv[1])
"""

HOLD = """
store = RunStore(state)
store.save(result(int(sys.argv[2])), now())
print("saved", flush=True)
sys.stdin.read()
if sys.argv[3] == "close":
    store.close()
os.kill(os.getpid(), signal.SIGKILL)
"""

WRITE = """
store = RunStore(state)
for round in range(10 ** 9):
    store.save(result(int(sys.argv[2]), text="x" * (500_000 if round % 2 else 5)), now())
    if round == 1:
        print("saved", flush=True)
"""

KILL = """
reader, kills, faults, seen = RunStore(state), 0, [], set()
for round in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        store = RunStore(state)
        for number in range(10 ** 9):
            text = "x" * random.choice([5, 50_000, 500_000])
            store.save(result(number % 3 + round % 4, text=text), now())
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    for path in (state / "runs").glob("*/run.json"):
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            faults.append(f"{path}: {error}")
        stored = reader.load(path.parent.name)
        if stored is None or stored.result.error.kind != "interrupted":
            faults.append(f"{path} is not that of an interrupted run")
        seen.add(path.parent.name)
locks = len(list((state / "servers").iterdir()))
reader.prune()
left = len(list((state / "servers").iterdir()))
print(json.dumps({"kills": kills, "faults": faults, "seen": len(seen),
                  "locks": locks, "left": left}))
"""

SHARE = """
store, mine, all_ = RunStore(state), int(sys.argv[2]), range(40)
for number in all_:
    if number % 2 == mine:
        store.save(result(number), now())
        store.save(result(number, "completed" if number % 4 < 2 else "running", "done"), now())
print("saved", flush=True)
sys.stdin.readline()
loaded = [store.load(f"run_{number:016x}") for number in all_]
print(json.dumps([each and each.result.status for each in loaded]), flush=True)
sys.stdin.readline()
"""

FULL = """
store = RunStore(state)
store.save(result(1, text="first"), "then")
limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
limit(5000)
try:
    store.save(result(1, "completed", "x" * 9000), "later")
    print("nothing was wrong")
except OSError:
    print(store.load("run_%016x" % 1).result.structured_output)
writer = StateWriter()
with EventLog(store.log_path("run_%016x" % 1), writer) as log:
    log.add(b"a" * 3000)
    log.add(b"b" * 3000)
    settle(writer)
    limit(resource.RLIM_INFINITY)
    log.add(b"c" * 10)
    log.add(b"d" * 10)
settle(writer)
store.save(result(1, "completed", "last"), "later")
print(store.load("run_%016x" % 1).result.structured_output)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKE + script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def running(script: str, *arguments: object) -> Generator[subprocess.Popen[str]]:
    """Run *script* until it says a line; kill it in the end."""
    with start(script, *arguments) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "saved\n"
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


@contextmanager
def opened(state: Path) -> Generator[RunStore]:
    store = RunStore(state)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def log_of(store: RunStore, run_id: str) -> Generator[EventLog]:
    """Open the log of a run; on leaving, all is written."""
    writer = StateWriter()
    with EventLog(store.log_path(run_id), writer) as log:
        yield log
    writer.close(60)


def run_id(number: int) -> str:
    return f"run_{number:016x}"


def result(number: int, status: RunStatus = "completed", text: str = "answer") -> RunResult:
    turn = TurnResult(thread_id=THREAD, final_response=text, files_changed=(("/é/a", "add"),))
    error = Cancelled(turn) if status == "cancelled" else None
    setting = EffectiveSettings(model="m", sandbox="read-only", cwd="/c", codex_version="0.169.0")
    return make_result(
        status, run_id=run_id(number), turn=turn, setting=setting, attempts=1, error=error
    )


def folder_of(state: Path, number: int) -> Path:
    return state / "runs" / run_id(number)


def keep(store: RunStore, number: int, status: RunStatus = "completed") -> None:
    store.save(result(number, status), now())
    with log_of(store, run_id(number)) as log:
        log.add(b"{}")


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))


def kept_runs(state: Path) -> set[int]:
    return {int(path.name.removeprefix("run_"), 16) for path in (state / "runs").iterdir()}


def test_what_is_saved_is_loaded_by_this_server_and_by_another(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store, opened(tmp_path / "s") as other:
        for number, status in enumerate(("completed", "cancelled", "running", "queued")):
            saved = result(number, cast("RunStatus", status))
            store.save(saved, "2026-11-23T03:09:56.214Z")
            for reader in (store, other):
                loaded = reader.load(run_id(number))
                assert loaded is not None
                if reader is store and status in ("running", "queued"):
                    # Its register knows the runs that it has at work, and asks for no other.
                    assert loaded.result.error is not None
                    assert loaded.result.error.kind == "interrupted"
                else:
                    assert loaded.result == saved
                assert loaded.created_at == "2026-11-23T03:09:56.214Z"
                assert loaded.updated_at > loaded.created_at
        store.save(result(2, "completed", "newer"), now())
        loaded = other.load(run_id(2))
        assert loaded is not None
        assert loaded.result == result(2, "completed", "newer")
        assert other.load(run_id(99)) is None


class EndingServer(StoredRuns):
    """A reader that asks whether a server is alive just after that has stored an end, and ended."""

    server: RunStore

    def lives(self, server_id: str, *, remove: bool = False) -> bool:
        self.server.save(result(1, "completed", "the answer"), now())
        self.server.close()
        return super().lives(server_id, remove=remove)


def test_a_run_that_ends_together_with_its_server_is_not_interrupted(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        keep(store, 1, "running")
        reader = EndingServer(tmp_path)
        reader.server = store
        loaded = reader.load(run_id(1))
    assert loaded is not None
    assert loaded.died is False
    assert loaded.result == result(1, "completed", "the answer")


def test_a_run_names_its_server_until_it_ends(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        keep(store, 1, "running")
        keep(store, 2)
        alive, ended = (StoredRuns(tmp_path).load(run_id(number)) for number in (1, 2))
    dead = StoredRuns(tmp_path).load(run_id(1))
    assert alive is not None
    assert ended is not None
    assert dead is not None
    assert (alive.server_id, alive.died) == (store.server_id, False)
    assert (ended.server_id, ended.died) == ("", False)
    assert (dead.server_id, dead.died) == (store.server_id, True)


def test_what_is_kept_is_for_this_user_only(tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    old = os.umask(0)
    try:
        with opened(state) as store:
            keep(store, 1)
            found = {path: stat.S_IMODE(path.stat().st_mode) for path in state.rglob("*")}
    finally:
        os.umask(old)
    found[state] = stat.S_IMODE(state.stat().st_mode)
    names = {path.name for path in found}
    assert {"runs", "servers", run_id(1), "run.json", "events.jsonl"} <= names
    assert len(found) == 8
    for path, bits in found.items():
        file_bits = 0o200 if path.suffix == ".lock" else 0o600
        assert bits == (0o700 if path.is_dir() else file_bits), path


def test_nothing_but_the_record_and_the_events_is_left_by_a_run(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        keep(store, 1, "running")
        keep(store, 1)
        assert sorted(p.name for p in folder_of(tmp_path, 1).iterdir()) == [
            "events.jsonl",
            "run.json",
        ]
    assert list((tmp_path / "servers").iterdir()) == []


def test_a_reader_never_sees_half_a_record(tmp_path: Path) -> None:
    with opened(tmp_path) as store, running(WRITE, tmp_path, 1), running(WRITE, tmp_path, 2):
        sizes: set[int] = set()
        end = time.monotonic() + 2
        while time.monotonic() < end or len(sizes) < 2:
            for number in (1, 2):
                data = (folder_of(tmp_path, number) / "run.json").read_bytes()
                sizes.add(len(json.loads(data)["result"]["structured_output"]))
                loaded = store.load(run_id(number))
                assert loaded is not None
                assert loaded.result.thread_id == THREAD
    assert sizes == {5, 500_000}


def test_a_record_is_whole_whenever_its_server_is_killed(tmp_path: Path) -> None:
    with start(KILL, tmp_path, 120) as process:
        output, _ = process.communicate()
    told = json.loads(output)
    assert told["faults"] == []
    assert told["kills"] == 120
    assert told["seen"] == 6
    # The locks of the dead go when files are removed; some died before they had one.
    assert told["locks"] > 60
    assert told["left"] == 1


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_run_of_a_server_that_is_gone_was_interrupted(tmp_path: Path, end: str) -> None:
    with opened(tmp_path) as store:
        with running(HOLD, tmp_path, 1, end) as server:
            alive = store.load(run_id(1))
            server.communicate()
        dead = store.load(run_id(1))
    with opened(tmp_path) as store:
        later = store.load(run_id(1))
    assert server.returncode == -signal.SIGKILL
    assert alive is not None
    assert alive.result.status == "running"
    assert "codex_wait" in alive.result.next
    for stored in (dead, later):
        assert stored is not None
        assert stored.result.status == "failed"
        assert stored.result.error is not None
        assert stored.result.error.kind == "interrupted"
        assert stored.result.thread_id == THREAD
        assert f'codex_resume with thread_id "{THREAD}"' in stored.result.next
        assert stored.created_at == alive.created_at


def test_two_servers_share_a_folder(tmp_path: Path) -> None:
    state = tmp_path / "not" / "there"
    with start(SHARE, state, 0) as one, start(SHARE, state, 1) as two:
        for server in (one, two):
            assert server.stdout is not None
            assert server.stdout.readline() == "saved\n"
        seen = [json.loads(ask(server)) for server in (one, two)]
        for mine, statuses in enumerate(seen):
            for number, status in enumerate(statuses):
                at_work = "failed" if number % 2 == mine else "running"
                assert status == ("completed" if number % 4 < 2 else at_work)
        with opened(state) as store:
            two.kill()
            two.wait()
            loaded = [store.load(run_id(number)) for number in range(40)]
            store.prune()
        one.communicate("\n")
    statuses = [stored and stored.result.status for stored in loaded]
    assert statuses == ["completed", "completed", "running", "failed"] * 10
    assert len(kept_runs(state)) == 40


def test_a_server_that_starts_while_others_clear_up_is_known_to_live(tmp_path: Path) -> None:
    clear = """
store = RunStore(state)
print("saved", flush=True)
while True:
    store.prune()
"""
    taken_for_dead = 0
    with opened(tmp_path) as reader, running(clear, tmp_path), running(clear, tmp_path):
        end = time.monotonic() + 3
        while time.monotonic() < end:
            with opened(tmp_path) as store:
                store.save(result(1, "running"), now())
                loaded = reader.load(run_id(1))
            taken_for_dead += loaded is None or loaded.result.status != "running"
    assert taken_for_dead == 0


def test_a_dead_server_is_not_taken_for_a_living_one_by_many_who_look(tmp_path: Path) -> None:
    look = """
store = RunStore(state)
print("saved", flush=True)
while True:
    store.load("run_%016x" % 1)
"""
    with running(HOLD, tmp_path, 1, "kill") as server:
        server.communicate()
    taken_for_living = 0
    with opened(tmp_path) as store, running(look, tmp_path), running(look, tmp_path):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            loaded = store.load(run_id(1))
            assert loaded is not None
            taken_for_living += loaded.result.status == "running"
    assert taken_for_living == 0


def test_events_are_kept_byte_for_byte(tmp_path: Path) -> None:
    lines = [b"{}", b"", b'{"a": 1}\r', b"no json \x00\xff\xfe", b"x" * 3_000_000, "é".encode()]
    with opened(tmp_path) as store:
        with log_of(store, RUN) as log:
            for line in lines[:3]:
                log.add(line)
        with log_of(store, RUN) as log:
            for line in lines[3:]:
                log.add(line)
        with log_of(store, run_id(2)):
            pass
    data = (tmp_path / "runs" / RUN / "events.jsonl").read_bytes()
    assert data == b"".join(line + b"\n" for line in lines)
    assert not folder_of(tmp_path, 2).exists()


async def test_the_events_of_a_run_are_kept_as_codex_wrote_them(lab: Lab, fake: FakeCodex) -> None:
    odd = b'not json\r\n{"type": "new.kind", "\\u00e9": 1.0}\n"\xff\xfe"\n' + b"y" * 200_000
    fake.stdout = events(thread_line()) + odd + b"\n" + events(*answer_lines("é"))
    async with connect("auto", fake.build(), lab) as client:
        done = await call(client, "codex_run", prompt="x")
        path = lab.state / "runs" / done["run_id"] / "events.jsonl"
        assert path.read_bytes() == fake.stdout
    assert done["status"] == "completed"


def test_a_log_ends_at_its_limit_with_a_whole_line(tmp_path: Path) -> None:
    line = b"x" * (LOG_LIMIT // 5)
    with opened(tmp_path) as store:
        with log_of(store, RUN) as log:
            for _ in range(8):
                log.add(line)
            log.add(b"short")
        with log_of(store, run_id(2)) as log:
            log.add(b"x" * (LOG_LIMIT - 1))
        with log_of(store, run_id(3)) as log:
            log.add(b"x" * LOG_LIMIT)
            log.add(b"short")
    data = (tmp_path / "runs" / RUN / "events.jsonl").read_bytes()
    end = b'{"type":"log_ends_here","limit_bytes":67108864}\n'
    assert data == (line + b"\n") * 4 + end
    assert (folder_of(tmp_path, 2) / "events.jsonl").stat().st_size == LOG_LIMIT
    assert (folder_of(tmp_path, 3) / "events.jsonl").read_bytes() == end


def record(**fields: object) -> bytes:
    made: Json = {
        "server_id": "0123456789abcdef",
        "created_at": "2026-11-23T03:09:56.214Z",
        "updated_at": "2026-11-23T03:09:56.214Z",
        "result": result(1, "running").model_dump(),
    }
    return orjson.dumps({**made, **fields}, default=str)


def without(key: str) -> bytes:
    made = cast("Json", orjson.loads(record()))
    del made[key]
    return orjson.dumps(made)


def changed(**fields: object) -> bytes:
    return record(result=result(1).model_dump() | fields)


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "cut": record()[:-40],
    "zeros": b"\0" * 5000,
    "not UTF-8": b'{"result": "\xff\xfe"}',
    "null": b"null",
    "list": b"[]",
    "word": b'"result"',
    "number": b"7",
    "deep": b"[" * 1_000_000,
    "empty object": b"{}",
    "no result": without("result"),
    "no time": without("created_at"),
    "no server": without("server_id"),
    "result of another kind": record(result=[1, 2]),
    "a number for a time": record(created_at=7),
    "a number for a server": record(server_id=7),
    "a null byte in the server": record(server_id="a\0b"),
    "a path for a server": record(server_id="../runs/" + run_id(1)),
    "a long server": record(server_id="x" * 5000),
    "another run": changed(run_id=run_id(2)),
    "no run": changed(run_id=None),
}
"""By what is wrong with it."""

AT_WORK = ("a path for a server", "a long server", "a number for a server")
"""Those of no server that lives: their run may as well count as interrupted."""


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_or_foreign_record_is_none(tmp_path: Path, fault: str) -> None:
    with opened(tmp_path) as store:
        folder = folder_of(tmp_path, 1)
        folder.mkdir()
        (folder / "run.json").write_bytes(DAMAGED[fault])
        loaded = store.load(run_id(1))
        assert loaded is None or (fault in AT_WORK and loaded.result.status == "failed")
        keep(store, 2, "running")
        store.prune([run_id(2)])
        assert kept_runs(tmp_path) == {1, 2}
        age(folder, KEEP_S + 100)
        keep(store, 3)
        age(folder_of(tmp_path, 3), KEEP_S / 2 - 100)  # The clock was not set forward.
        store.prune([run_id(2)])
        assert kept_runs(tmp_path) == {2, 3}


@pytest.mark.parametrize("can_resume", [True, False])
def test_a_run_without_a_rollout_is_not_offered_for_resume_when_its_server_dies(
    tmp_path: Path, can_resume: bool
) -> None:
    with opened(tmp_path) as store:
        recorded = Recorded(0, 0, has_schema=False, is_kept=can_resume)
        store.save(result(1, "running"), now(), recorded=recorded)
        loaded = store.load(run_id(1))
    assert loaded is not None
    assert loaded.result.status == "failed"
    assert (f'codex_resume with thread_id "{THREAD}"' in loaded.result.next) is can_resume
    # A client that shows its model nothing but the text of an error learns the same.
    told = f"Next: {loaded.result.next}" if can_resume else "There is no thread to resume"
    assert told in error_text(loaded.result)


OTHER_BUILDS: dict[str, tuple[bytes, Json]] = {
    "a field more": (changed(colour="blue"), {}),
    "a field less": (
        record(result={"run_id": run_id(1), "status": "completed", "thread_id": THREAD}),
        {"final_response": None, "commands": [], "files_changed": [], "warnings": []},
    ),
    "a field of another shape": (changed(next=7, usage="many"), {"next": "Nothing is left to do."}),
    "a field more inside": (
        changed(
            files_changed=[
                {"path": "/a", "kind": "add", "seen_by": "git", "size": 3},
                {"path": "/b", "kind": "delete", "seen_by": "git", "mode": "100644"},
            ]
        ),
        {
            "files_changed": [
                {"path": "/a", "kind": "add", "seen_by": "git"},
                {"path": "/b", "kind": "delete", "seen_by": "git"},
            ]
        },
    ),
    "items of another shape": (
        changed(commands=[7, {"command": "a", "exit_code": 0, "status": "completed"}, {"c": 1}]),
        {"commands": [{"command": "a", "exit_code": 0, "status": "completed"}]},
    ),
    "an error more": (
        changed(status="failed", error={"kind": "new", "message": "m", "hint": "h", "x": 1}),
        {
            "status": "failed",
            "error": {"kind": "new", "message": "m", "hint": "h", "retryable": False},
        },
    ),
    "a status that means an end": (
        changed(
            status="budget_spent",
            error={"kind": "budget", "message": "m", "hint": "h", "retryable": False},
        ),
        {"status": "failed"},
    ),
    "a status that means a run at work": (changed(status="needs_answer"), {"status": "failed"}),
    "a later version": (record(version=99, result=result(1).model_dump()), {}),
    "no version": (record(result=result(1).model_dump()), {}),
}
"""Records of older and newer builds, and what must be read of each in any case."""


@pytest.mark.parametrize("kind", OTHER_BUILDS)
def test_a_record_of_an_older_or_newer_build_is_read_as_far_as_it_can(
    tmp_path: Path, kind: str
) -> None:
    data, expected = OTHER_BUILDS[kind]
    with opened(tmp_path) as store:
        folder_of(tmp_path, 1).mkdir()
        (folder_of(tmp_path, 1) / "run.json").write_bytes(data)
        loaded = store.load(run_id(1))
    assert loaded is not None
    told = loaded.result.model_dump()
    assert told["thread_id"] == THREAD
    assert told["run_id"] == run_id(1)
    assert {key: told[key] for key in expected} == expected


def test_a_record_that_is_no_file_is_none(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        runs = tmp_path / "runs"
        (runs / run_id(1) / "run.json").mkdir(parents=True)
        (runs / run_id(2)).write_text("a file")
        (runs / run_id(3)).mkdir()
        (runs / run_id(3) / "run.json").symlink_to("run.json")
        (runs / run_id(4)).mkdir()
        with (runs / run_id(4) / "run.json").open("wb") as huge:
            huge.truncate(300 * 1024 * 1024)
        assert [store.load(run_id(number)) for number in (1, 2, 3, 4)] == [None] * 4
        store.prune()


def test_no_id_leads_out_of_the_folder(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with opened(state) as store:
        keep(store, 1)
        for elsewhere in ("elsewhere", "runs/run_x", "runs/RUN_0123456789ABCDEF"):
            shutil.copytree(folder_of(state, 1), state / elsewhere)
        ids = [
            *("../elsewhere", "run_x", "RUN_0123456789ABCDEF", str(state / "elsewhere")),
            *("", ".", "..", "run_", f"{run_id(1)}/", f"{run_id(1)}\n", f" {run_id(1)}"),
            *(f"../runs/{run_id(1)}", f"{run_id(1)}/../{run_id(1)}", f"{run_id(1)}\0"),
            *("run_" + "\N{ARABIC-INDIC DIGIT ONE}" * 16, "run_" + "1" * 100_000, "\udcff"),
        ]
        for each in ids:
            assert store.load(each) is None, each
        assert store.load(run_id(1)) is not None


def test_old_runs_are_removed_but_none_at_work(tmp_path: Path) -> None:
    with opened(tmp_path) as store, opened(tmp_path) as other:
        with running(HOLD, tmp_path, 5, "kill") as server:
            server.communicate()
        keep(store, 1)
        keep(store, 2)
        keep(store, 3, "running")
        keep(other, 4, "queued")
        keep(store, 6, "cancelled")
        keep(store, 7)
        (tmp_path / "runs" / "a file").touch()
        outside = tmp_path / "outside"
        shutil.copytree(folder_of(tmp_path, 1), outside)
        (tmp_path / "runs" / "link").symlink_to(outside)
        for number in (1, 3, 4, 5, 6):
            age(folder_of(tmp_path, number), KEEP_S + 100)
        age(folder_of(tmp_path, 2), KEEP_S - 100)
        age(folder_of(tmp_path, 7), KEEP_S / 2 - 100)
        age(outside, KEEP_S + 100)
        # One of them was written to of late.
        (folder_of(tmp_path, 6) / "events.jsonl").touch()
        for _ in range(2):
            store.prune([run_id(3)])
        assert sorted(path.name for path in outside.iterdir()) == ["events.jsonl", "run.json"]
        (tmp_path / "runs" / "a file").unlink()
        (tmp_path / "runs" / "link").unlink(missing_ok=True)
        assert kept_runs(tmp_path) == {2, 3, 4, 6, 7}
        for reader, number, status in ((other, 3, "running"), (store, 4, "queued")):
            loaded = reader.load(run_id(number))
            assert loaded is not None
            assert loaded.result.status == status


DAY_S = 24 * 3600


def test_a_clock_that_is_set_forward_removes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for number in range(1, 6):
            keep(store, number)
            age(folder_of(tmp_path, number), number * DAY_S)
        wrong = time.time() + 365 * DAY_S
        store.prune(now_s=wrong)
        # A run that ends at the wrong time makes no difference, and neither does one at work.
        for number in (6, 7):
            keep(store, number)
            age(folder_of(tmp_path, number), number - 365 * DAY_S - 10)
        store.prune([run_id(7)], now_s=wrong)
        store.prune([run_id(7)], now_s=wrong + DAY_S / 2)
        assert kept_runs(tmp_path) == set(range(1, 8))
        # The clock is right again: what bears a future time is no reason to remove the others.
        store.prune(now_s=time.time())
        assert kept_runs(tmp_path) == set(range(1, 8))


def test_after_a_long_pause_old_runs_are_removed_a_day_later(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for number, days in ((1, 40), (2, 39), (3, 0)):
            keep(store, number)
            age(folder_of(tmp_path, number), days * DAY_S)
        store.prune()
        assert kept_runs(tmp_path) == {1, 2, 3}
        keep(store, 4)
        store.prune(now_s=time.time() + 1.1 * DAY_S)
        assert kept_runs(tmp_path) == {3, 4}


def test_when_too_much_is_kept_the_oldest_go_but_none_at_work(tmp_path: Path) -> None:
    with opened(tmp_path) as store, opened(tmp_path) as other:
        for number in range(1, 8):
            keep(other if number == 7 else store, number, "running" if number > 5 else "completed")
            with (folder_of(tmp_path, number) / "events.jsonl").open("r+b") as log:
                log.truncate(KEEP_BYTES if number > 5 else KEEP_BYTES * 3 // 10)
            age(folder_of(tmp_path, number), number * 60)
        store.prune([run_id(6)])
        assert kept_runs(tmp_path) == {1, 2, 3, 6, 7}
        with (folder_of(tmp_path, 1) / "events.jsonl").open("r+b") as log:
            log.truncate(2)
        store.prune([run_id(6)])
        assert kept_runs(tmp_path) == {1, 2, 3, 6, 7}


def test_the_locks_of_dead_servers_are_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as store, opened(tmp_path), running(HOLD, tmp_path, 1, "kill") as alive:
        with running(HOLD, tmp_path, 2, "kill") as dead:
            dead.communicate()
        assert len(list((tmp_path / "servers").iterdir())) == 4
        store.prune()
        assert len(list((tmp_path / "servers").iterdir())) == 3
        loaded = [store.load(run_id(number)) for number in (1, 2)]
        assert alive.poll() is None
    assert [stored and stored.result.status for stored in loaded] == ["running", "failed"]


def test_on_a_full_disk_the_former_record_stays_and_no_line_is_half(tmp_path: Path) -> None:
    with start(FULL, tmp_path) as process:
        output, _ = process.communicate()
    assert output.split("\n") == ["first", "last", ""]
    lines = (folder_of(tmp_path, 1) / "events.jsonl").read_bytes().split(b"\n")
    whole = [b"a" * 3000, b"b" * 3000, b"c" * 10, b"d" * 10]
    assert lines[0] == whole[0]
    assert lines[-1] == b"" or whole[1].startswith(lines[-1])
    assert set(lines[1:-1]) <= set(whole), [line[-40:] for line in lines]


def a_file(state: Path) -> Path:
    state.write_text("")
    return state


def below_a_file(state: Path) -> Path:
    return a_file(state) / "below"


def with_a_file_for_runs(state: Path) -> Path:
    state.mkdir()
    (state / "runs").write_text("")
    return state


def where_nothing_can_be_made(_: Path) -> Path:
    return Path("/proc/self/state")


@pytest.mark.parametrize(
    "spoil", [a_file, below_a_file, with_a_file_for_runs, where_nothing_can_be_made]
)
async def test_a_server_without_a_usable_folder_serves_on(
    lab: Lab, fake: FakeCodex, spoil: Callable[[Path], Path]
) -> None:
    fake.stdout = HELLO
    unusable = spoil(lab.root / "unusable")
    place = lab.root / "tmp"
    place.mkdir()
    options = ("--state-dir", str(unusable))
    (lab.root / "exposed").mkdir()
    env = {"XDG_RUNTIME_DIR": str(place), "TMPDIR": str(lab.root / "exposed")}
    async with connect("auto", fake.build(), lab, *options, env=env) as client:
        result = await call(client, "codex_run", prompt="x")
        handed_back = await call(client, "codex_run", prompt="x", wait_s=0)
        ids = [result["run_id"], handed_back["run_id"]]
        waited = cast("Any", await client.call_tool("codex_wait", {"run_ids": ids}))
        kept_in = list(place.iterdir())
        assert list((lab.root / "exposed").iterdir()) == []
    assert result["final_response"] == "hello"
    for run in waited.structured_content["runs"]:
        assert run["final_response"] == "hello"
    assert len(kept_in) == 1
    assert list(place.iterdir()) == []
    for run in (result, *waited.structured_content["runs"]):
        assert run["warnings"][0].startswith("The state folder /")
        assert "cannot be used" in run["warnings"][0]
    assert "cannot be used" in lab.log.read_text()


async def test_a_server_on_a_full_disk_serves_on(lab: Lab, fake: FakeCodex) -> None:
    """Nothing over 100 bytes can be written, but by Codex."""
    fake.stdout = HELLO
    codex = lab.root / "roomy"
    codex.write_text(f'#!/bin/sh\nulimit -S -f unlimited\nexec "{fake.build()}" "$@"\n')
    codex.chmod(0o755)
    tag = str(uuid.uuid4())

    def limit(size: int) -> None:
        (server,) = marked(tag)
        resource.prlimit(server, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    async with connect("auto", codex, lab, env={"FAR_END": tag}) as client:
        limit(100)
        full = await call(client, "codex_run", prompt="x")
        handed_back = await call(client, "codex_run", prompt="x", wait_s=0)
        ids = [full["run_id"], handed_back["run_id"]]
        waited = cast("Any", await client.call_tool("codex_wait", {"run_ids": ids}))
        unkept = not (lab.state / "runs" / full["run_id"] / "run.json").exists()
        limit(resource.RLIM_INFINITY)
        room = await call(client, "codex_run", prompt="x")
        kept = json.loads((lab.state / "runs" / room["run_id"] / "run.json").read_bytes())
        # What could not be written is written again later: the results outlive this server.
        for run_id in ids:
            await until((lab.state / "runs" / run_id / "run.json").exists)
        later = [json.loads((lab.state / "runs" / i / "run.json").read_bytes()) for i in ids]
    assert full["status"] == "completed"
    assert full["final_response"] == "hello"
    for run in waited.structured_content["runs"]:
        assert run["final_response"] == "hello"
    assert unkept
    assert [each["result"]["status"] for each in later] == ["completed"] * 2
    assert kept["result"]["final_response"] == "hello"


@pytest.mark.parametrize("what", ["all of it", "runs"])
async def test_a_server_whose_folder_vanishes_serves_on(
    lab: Lab, fake: FakeCodex, what: str
) -> None:
    fake.stdout = HELLO
    async with connect("auto", fake.build(), lab) as client:
        before = await call(client, "codex_run", prompt="x")
        shutil.rmtree(lab.state if what == "all of it" else lab.state / "runs")
        after = await call(client, "codex_run", prompt="x")
        again = await call_after_clearing_up(client, lab)
        ids = [run["run_id"] for run in (before, after, again)]
        waited = cast("Any", await client.call_tool("codex_wait", {"run_ids": ids}))
    statuses = [run["status"] for run in waited.structured_content["runs"]]
    assert statuses == ["completed"] * 3


async def test_a_server_beside_damaged_and_hostile_records_serves_on(
    lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    for number, data in enumerate(DAMAGED.values()):
        folder = folder_of(lab.state, number)
        folder.mkdir(parents=True)
        (folder / "run.json").write_bytes(data)
    kinds: set[str] = set()
    async with connect("auto", fake.build(), lab) as client:
        for number in range(len(DAMAGED)):
            result = await client.call_tool("codex_wait", {"run_ids": [run_id(number)]})
            error = cast("Json", result.structured_content)["error"]
            kinds |= {error["kind"]} if error else set()
        done = await call_after_clearing_up(client, lab)
    assert done["status"] == "completed"
    assert kinds == {"unknown_run"}


async def call_after_clearing_up(client: Client, lab: Lab) -> Json:
    """Run Codex when the server has looked for old files, which is 5 s after its start."""
    await anyio.sleep(6)
    try:
        return await call(client, "codex_run", prompt="x")
    except MCPError as error:
        pytest.fail(f"{error}: {lab.log.read_text()[-2000:]}")


def test_the_files_of_a_turn_whose_server_and_guard_were_killed_are_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.md").touch()
    with opened(tmp_path / "state") as living, opened(tmp_path / "state") as store:
        left = tmp_path / "state" / "scratch" / f"{'0' * 16}-{'1' * 16}"
        left.mkdir()
        (left / "output_schema.json").touch()
        (left / "link").symlink_to(precious)
        others = [Path(f"{each.scratch}-{'2' * 16}") for each in (living, store)]
        for folder in others:
            folder.mkdir()
        store.prune()
        assert not left.exists()
        assert all(folder.is_dir() for folder in others)
    assert (precious / "thesis.md").exists()


def test_a_dead_server_does_not_live_on_by_a_lock_of_a_reader(tmp_path: Path) -> None:
    with running(HOLD, tmp_path, 1, "kill") as server:
        server.communicate()
    (lock,) = (tmp_path / "servers").glob("*.lock")
    reader = os.open(lock, os.O_RDONLY if os.geteuid() == 0 else os.O_WRONLY)
    fcntl.flock(reader, fcntl.LOCK_EX)
    with opened(tmp_path) as store:
        loaded = store.load(run_id(1))
        assert loaded is not None
        assert loaded.result.status != "running"
    os.close(reader)


def test_who_closes_second_also_returns_when_the_server_no_longer_counts_as_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its end the server closes the store from two tasks, and leaves after the faster one."""
    store = RunStore(tmp_path / "state")
    (alive,) = (tmp_path / "state/servers").iterdir()
    unlinking, go_on = threading.Event(), threading.Event()
    unlink = Path.unlink

    def unlink_slowly(path: Path, missing_ok: bool = False) -> None:
        unlinking.set()
        assert go_on.wait(30)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_slowly)
    left: list[bool] = []
    first = threading.Thread(target=store.close)
    second = threading.Thread(target=lambda: (store.close(), left.append(alive.exists())))
    first.start()
    assert unlinking.wait(30)
    second.start()
    second.join(0.1)
    go_on.set()
    for thread in (first, second):
        thread.join(30)
    assert left == [False]
