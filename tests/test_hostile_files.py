"""Files that a neighbour or a confined command put where this server reads: nothing waits for them.

Each case hung the server before, or made it serve what another user had planted.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from codex_tools.history.tables import SCHEMA
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import PNG, Json, Lab, call, connect, environment, server_program
from support.rollout_lines import context, meta

THREAD = "01a20661-b445-73e1-b566-c552cde98ccd"
RUN = "run_0123456789abcdef"
WITHIN_S = 100
"""No answer takes so long: a longer one is taken for none."""


def rollout_path(home: Path) -> Path:
    day = home / "sessions" / "2026" / "11" / "23"
    day.mkdir(parents=True, exist_ok=True)
    return day / f"rollout-2026-11-23T03-09-56-{THREAD}.jsonl"


def rollout_head() -> bytes:
    lines = (meta(THREAD), context())
    return b"".join(json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in lines)


def run_file(lab: Lab, name: str) -> Path:
    folder = lab.state / "runs" / RUN
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def pipe_for_rollout(lab: Lab) -> None:
    os.mkfifo(rollout_path(lab.home))


def sparse_rollout(lab: Lab) -> None:
    with rollout_path(lab.home).open("wb") as file:
        file.write(rollout_head())
        file.truncate(3 * 1024**3)


def endless_line(lab: Lab) -> None:
    with rollout_path(lab.home).open("wb") as file:
        file.write(rollout_head())
        for _ in range(200):
            file.write(b"x" * 1024**2)


def pipe_for_names(lab: Lab) -> None:
    os.mkfifo(lab.home / "session_index.jsonl")


def endless_name(lab: Lab) -> None:
    with (lab.home / "session_index.jsonl").open("wb") as file:
        file.truncate(3 * 1024**3)


def pipe_for_record(lab: Lab) -> None:
    os.mkfifo(run_file(lab, "run.json"))


def sparse_record(lab: Lab) -> None:
    with run_file(lab, "run.json").open("wb") as file:
        file.truncate(3 * 1024**3)


def pipe_for_audit(lab: Lab) -> None:
    lab.state.mkdir()
    os.mkfifo(lab.state / "audit.jsonl")


def pipe_for_audit_lock(lab: Lab) -> None:
    lab.state.mkdir()
    os.mkfifo(lab.state / "audit.lock")
    with (lab.state / "audit.jsonl").open("wb") as file:
        file.truncate(5 * 1024**2)


def pipe_for_config(lab: Lab) -> None:
    (lab.home / "config.toml").unlink()
    os.mkfifo(lab.home / "config.toml")


def pipe_for_project_config(lab: Lab) -> None:
    (lab.project / ".codex").mkdir()
    os.mkfifo(lab.project / ".codex" / "config.toml")


def pipe_for_index(lab: Lab) -> None:
    index_path(lab).parent.mkdir(parents=True)
    os.mkfifo(index_path(lab))


def index_path(lab: Lab) -> Path:
    import zlib

    return lab.state / "history" / f"{zlib.crc32(os.fsencode(lab.home)):08x}-{SCHEMA}.sqlite"


CALLS: Sequence[tuple[str, Json]] = (
    ("codex_sessions", {}),
    ("codex_sessions", {"thread_id": THREAD}),
    ("codex_usage", {}),
    ("codex_resume", {"prompt": "x", "thread_id": THREAD}),
    ("codex_wait", {"run_ids": [RUN]}),
    ("codex_run", {"prompt": "x"}),
)


@pytest.mark.parametrize(
    "plant",
    [
        pipe_for_rollout,
        sparse_rollout,
        endless_line,
        pipe_for_names,
        endless_name,
        pipe_for_record,
        sparse_record,
        pipe_for_audit,
        pipe_for_audit_lock,
        pipe_for_config,
        pipe_for_project_config,
        pipe_for_index,
    ],
)
def test_a_planted_file_neither_delays_an_answer_nor_the_end(
    lab: Lab, fake: FakeCodex, plant: Callable[[Lab], None]
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    plant(lab)
    command = [server_program(), "--codex-bin", str(fake.build()), "--state-dir", str(lab.state)]
    hello: Json = {"protocolVersion": "2025-06-18", "capabilities": {}}
    hello["clientInfo"] = {"name": "test", "version": "0"}
    frames: list[Json] = [
        {"id": "hello", "method": "initialize", "params": hello},
        {"method": "notifications/initialized"},
    ]
    for number, (tool, arguments) in enumerate(CALLS):
        params = {"name": tool, "arguments": arguments}
        frames.append({"id": number, "method": "tools/call", "params": params})
    with (
        lab.log.open("ab") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=lab.project,
            env=environment(lab),
        ) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            text = b"".join(json.dumps({"jsonrpc": "2.0"} | f).encode() + b"\n" for f in frames)
            server.stdin.write(text)
            server.stdin.flush()
            answers: dict[object, Json] = {}
            with anyio_deadline(server):
                while len(answers) < len(CALLS) + 1 and (line := server.stdout.readline()):
                    message = json.loads(line)
                    if "id" in message:
                        answers[message["id"]] = message
            assert len(answers) == len(CALLS) + 1
            server.stdin.close()
            assert server.wait(WITHIN_S) == 0
        finally:
            server.kill()
    run = answers[len(CALLS) - 1]["result"]["structuredContent"]
    assert run["status"] == "completed", run
    assert "Traceback" not in lab.log.read_text()


class anyio_deadline:
    """Kill a server that gives no answer."""

    def __init__(self, server: subprocess.Popen[bytes]) -> None:
        import threading

        self._timer = threading.Timer(WITHIN_S, server.kill)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


ENDLESS = (
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n WHERE i < 0"
)


@pytest.mark.parametrize("trap", ["view", "trigger", "shadow"])
async def test_an_index_with_an_endless_statement_is_built_anew(
    mode: str, lab: Lab, fake: FakeCodex, trap: str
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    rollout_path(lab.home).write_bytes(rollout_head())
    async with connect(mode, fake.build(), lab) as client:
        await client.call_tool("codex_sessions", {})
    (lab.home / "session_index.jsonl").write_text(
        json.dumps({"id": THREAD, "thread_name": "named"}) + "\n"
    )
    db = sqlite3.connect(index_path(lab))
    if trap == "view":
        db.executescript(
            "DROP TABLE file; CREATE VIEW file AS "
            + ENDLESS.format("i AS id, '' AS folder, '' AS name, 1 AS size, 1 AS mtime_ns")
        )
    elif trap == "trigger":
        db.executescript(
            "CREATE TRIGGER t AFTER INSERT ON name BEGIN"
            " INSERT INTO meta SELECT 'k', count(*) FROM file a, file b, file c, ("
            " SELECT 1 FROM bucket UNION ALL SELECT 1) d; END"
        )
    else:
        db.executescript("CREATE TABLE extra (a); CREATE VIEW text_extra AS SELECT 1")
    db.close()
    async with connect(mode, fake.build(), lab) as client:
        with anyio.fail_after(WITHIN_S):
            found = cast("Any", await client.call_tool("codex_sessions", {}))
    (thread,) = found.structured_content["sessions"]
    assert (thread["thread_id"], thread["name"]) == (THREAD, "named")
    with sqlite3.connect(index_path(lab)) as db:
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    assert not names & {"t", "extra", "text_extra"}
    assert "file" in names


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("theirs", ["state", "state/runs", "record"])
async def test_no_result_that_another_user_planted_is_served(
    mode: str, lab: Lab, fake: FakeCodex, theirs: str
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    codex = fake.build()
    async with connect(mode, codex, lab) as client:
        real = await call(client, "codex_run", prompt="x")
    record = lab.state / "runs" / real["run_id"] / "run.json"
    record.write_text(record.read_text().replace("hello", "planted"))
    path = record if theirs == "record" else lab.root / theirs
    os.chown(path, 12345, 12345)
    path.chmod(0o777)
    async with connect(mode, codex, lab) as client:
        waited = cast("Any", await client.call_tool("codex_wait", {"run_ids": [real["run_id"]]}))
        new = await call(client, "codex_run", prompt="x")
    assert "planted" not in json.dumps(waited.structured_content)
    assert "planted" not in str(waited.content)
    assert new["status"] == "completed"
    assert any("another user" in each for each in new["warnings"]) == (theirs != "record")


async def test_a_state_folder_that_others_could_write_to_is_closed_to_them(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    (lab.state / "runs").mkdir(parents=True)
    for folder in (lab.state, lab.state / "runs"):
        folder.chmod(0o777)
    async with connect(mode, fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt="x")
    assert not any("state folder" in each for each in result["warnings"])
    for folder in (lab.state, *(each for each in lab.state.iterdir() if each.is_dir())):
        assert folder.stat().st_mode & 0o777 == 0o700, folder


async def test_locks_that_a_reader_can_hold_stop_nothing(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    codex = fake.build()
    async with connect(mode, codex, lab) as client:
        await call(client, "codex_run", prompt="x")
        await client.call_tool("codex_usage", {})
        held = [path.open("rb") for path in lab.state.rglob("*") if path.is_file()]
        held += [path.open("rb") for path in (lab.home / "mcp-server-codex").iterdir()]
        for file in held:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # A lock that this server shows to earlier builds.
        rollout_path(lab.home).write_bytes(rollout_head())
        async with connect(mode, codex, lab) as other:
            with anyio.fail_after(WITHIN_S):
                for each in (client, other):
                    result = await call(each, "codex_run", prompt="x")
                    assert result["status"] == "completed"
                    found = cast("Any", await each.call_tool("codex_sessions", {}))
                    assert THREAD in str(found.structured_content)
                    assert "temporary index" not in str(found.structured_content)
    for file in held:
        file.close()


async def test_a_full_queue_refuses_further_runs_and_takes_them_again_later(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = f"while not os.path.exists({str(lab.root / 'go')!r}): time.sleep(0.02)"
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    options = ("--max-runs", "1", "--max-queue", "2")
    async with connect(mode, fake.build(), lab, *options) as client:
        runs = [await call(client, "codex_run", prompt="x", wait_s=0) for _ in range(3)]
        assert [run["status"] for run in runs] == ["running", "queued", "queued"]
        refused = await call(client, "codex_run", prompt="x", wait_s=0)
        error = refused["error"]
        assert (refused["status"], error["kind"]) == ("failed", "queue_full")
        assert error["retryable"] is True
        assert "limit is 2" in error["message"]
        assert "--max-queue" in error["hint"]
        (lab.root / "go").touch()
        ids = [run["run_id"] for run in runs]
        await client.call_tool("codex_wait", {"run_ids": ids, "wait_s": 60})
        assert (await call(client, "codex_run", prompt="x"))["status"] == "completed"


async def test_an_image_that_is_too_large_is_refused_before_it_is_read(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    with (lab.project / "huge.png").open("wb") as file:
        file.write(PNG)
        file.truncate(1_500_000_000)
    for name in ("a.png", "b.png"):
        with (lab.project / name).open("wb") as file:
            file.write(PNG + bytes(30 * 1024**2))
    async with connect(mode, fake.build(), lab) as client:
        for images in (["huge.png"], ["a.png", "b.png"]):
            error = (await call(client, "codex_run", prompt="x", images=images))["error"]
            assert error["kind"] == "invalid_arguments", images
        assert not fake.was_started
        fake.stdout = events(thread_line(), *answer_lines("hello"))
        fake.build()
        result = await call(client, "codex_run", prompt="x", images=["a.png"])
    assert result["status"] == "completed"
    assert "52,428,800" in error["message"]
