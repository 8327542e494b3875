"""A run is stopped from another process: by a request that its server obeys, and no other."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from mcp import Client

from codex_tools.engines.environment import DEPTH_VARIABLE
from codex_tools.runs import stop_file
from codex_tools.runs.result import EffectiveSettings, RunStatus, make_result
from codex_tools.runs.run import Run
from codex_tools.runs.stop_file import (
    VALID_S,
    RunElsewhere,
    StopFile,
    StopWatch,
    stop_elsewhere,
    take,
)
from codex_tools.runs.store import RunStore, StoredRuns, now
from support.fake_codex import FakeCodex
from support.lab import Json, Lab, call, commands, connect, marked_child, until

RUN = "run_0123456789abcdef"
SERVER = "0123456789abcdef"
HANGS = """
thread = "01a20000-0000-7000-8000-000000000001"
print(json.dumps({"type": "thread.started", "thread_id": thread}), flush=True)
print(json.dumps({"type": "turn.started"}), flush=True)
while not os.path.exists("ANSWER"):
    time.sleep(0.02)
item = {"id": "item_0", "type": "agent_message", "text": "the answer"}
print(json.dumps({"type": "item.completed", "item": item}))
usage = {"input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 2}
print(json.dumps({"type": "turn.completed", "usage": usage}))
sys.exit(0)
"""


@pytest.fixture
def answer(lab: Lab) -> Path:
    """A file whose existence lets the fake Codex answer."""
    return lab.root / "answer"


@pytest.fixture
def hanging(fake: FakeCodex, answer: Path) -> Path:
    fake.body = HANGS.replace("ANSWER", str(answer))
    return fake.build()


def let(answer: Path) -> None:
    answer.touch()


async def begin(client: Client, **options: Any) -> Json:
    return await call(client, "codex_run", prompt="go", wait_s=0, **options)


async def stop(client: Client, run: Json) -> tuple[Json, str]:
    """Call codex_stop; return the run in the result, and the text."""
    result = await client.call_tool("codex_stop", {"run_id": run["run_id"]})
    data = cast("Json", result.structured_content)["run"]
    assert result.is_error is (data["run_id"] is None)
    return data, cast("Any", result.content[0]).text


async def test_a_run_of_another_server_is_stopped_and_its_result_says_by_whom(
    mode: str, lab: Lab, hanging: Path
) -> None:
    tag = str(uuid.uuid4())
    async with connect(mode, hanging, lab, env={"FAR_END": tag}) as one:
        run = await begin(one)
        await until(lambda: any("fake/codex exec" in each for each in commands(tag)))
        async with connect(mode, hanging, lab) as two:
            stopped, text = await stop(two, run)
            assert not any("fake/codex exec" in each for each in commands(tag))
            again, _ = await stop(two, run)
        here = await call(one, "codex_run", prompt="go", wait_s=0)
        own, _ = await stop(one, here)
        waited = await one.call_tool("codex_wait", {"run_ids": [run["run_id"]]})
    assert stopped["status"] == "cancelled"
    assert stopped["error"]["kind"] == "cancelled"
    said = stopped["error"]["message"]
    assert said.startswith("The run was cancelled on request of mcp ")
    assert said.endswith(" through another server process.")
    assert said in text
    assert again == stopped
    assert cast("Json", waited.structured_content)["runs"] == [stopped]
    assert own["error"]["message"] == "The run was cancelled."
    assert not requests_in(lab.state)
    log = [json.loads(line) for line in (lab.state / "audit.jsonl").read_text().splitlines()]
    by = {each["run_id"]: each.get("stopped_by") for each in log if each["event"] == "ended"}
    assert by == {run["run_id"]: said.removesuffix(".").partition(" of ")[2], here["run_id"]: None}


async def test_a_queued_run_of_another_server_is_stopped(
    mode: str, lab: Lab, hanging: Path, answer: Path
) -> None:
    async with connect(mode, hanging, lab, "--max-runs", "1") as one:
        first = await begin(one)
        second = await begin(one)
        async with connect(mode, hanging, lab) as two:
            stopped, _ = await stop(two, second)
        let(answer)
        waited = await one.call_tool("codex_wait", {"run_ids": [first["run_id"]]})
    assert second["status"] == "queued"
    assert stopped["status"] == "cancelled"
    assert stopped["attempts"] == 0
    assert cast("Json", waited.structured_content)["runs"][0]["status"] == "completed"


async def test_a_server_that_does_not_take_the_request_is_named_and_its_run_goes_on(
    mode: str, lab: Lab, hanging: Path, answer: Path
) -> None:
    tag = str(uuid.uuid4())
    async with connect(mode, hanging, lab, env={"FAR_END": tag}) as one:
        run = await begin(one)
        pid = marked_child(tag)
        os.kill(pid, signal.SIGSTOP)
        try:
            async with connect(mode, hanging, lab) as two:
                refused, text = await stop(two, run)
        finally:
            os.kill(pid, signal.SIGCONT)
        await anyio.sleep(3 * stop_file.LOOK_EVERY_S)  # A request left behind would be taken.
        let(answer)
        waited = await one.call_tool("codex_wait", {"run_ids": [run["run_id"]]})
    assert refused["error"]["kind"] == "unknown_run"
    assert "belongs to another server process; that process has not taken the request" in text
    assert cast("Json", waited.structured_content)["runs"][0]["status"] == "completed"
    assert not requests_in(lab.state)


async def test_a_run_outside_the_roots_of_a_server_is_unknown_to_it(
    mode: str, lab: Lab, hanging: Path
) -> None:
    (other := lab.root / "other").mkdir()
    async with connect(mode, hanging, lab) as one:
        run = await begin(one)
        async with connect(mode, hanging, lab, "--root", str(other), cwd=other) as two:
            refused, _ = await stop(two, run)
        async with connect(mode, hanging, lab, "--root", str(lab.project)) as two:
            stopped, _ = await stop(two, run)
    assert refused["error"]["message"] == f"Run {run['run_id']} is not known to this server."
    assert stopped["status"] == "cancelled"


async def test_a_server_inside_a_run_stops_only_its_own_runs(
    mode: str, lab: Lab, hanging: Path
) -> None:
    inside = {DEPTH_VARIABLE: "1"}
    async with connect(mode, hanging, lab) as one:
        run = await begin(one)
        async with connect(mode, hanging, lab, "--max-depth", "2", env=inside) as two:
            refused, text = await stop(two, run)
            own, _ = await stop(two, await begin(two))
        here, _ = await stop(one, run)
    assert refused["error"]["kind"] == "unknown_run"
    assert "belongs to another server process; only that process can stop it." in text
    assert own["status"] == "cancelled"
    assert here["error"]["message"] == "The run was cancelled."


def requests_in(state: Path) -> list[Path]:
    """Return the requests in a state folder."""
    return [*state.glob("runs/*/stop*")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run in a state folder."""
    folder = tmp_path / "runs" / RUN
    folder.mkdir(parents=True, mode=0o700)
    return folder


def test_a_request_is_taken_once(folder: Path) -> None:
    request = StopFile(folder, SERVER, "a \x1b[31mred\u202e client\nof " + "x" * 500)
    assert request.is_there()
    by = take(folder, SERVER)
    assert by is not None
    assert by.startswith("a \ufffd[31mred\ufffd client of xxx")
    assert len(by) <= stop_file.BY_LIMIT
    assert not request.is_there()
    assert take(folder, SERVER) is None
    assert [*folder.iterdir()] == []


def test_a_request_is_private_and_can_be_withdrawn(folder: Path) -> None:
    request = StopFile(folder, SERVER, "a client")
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert request.withdraw()
    assert not request.withdraw()
    assert take(folder, SERVER) is None


def test_a_later_request_is_not_withdrawn_by_an_earlier_one(folder: Path) -> None:
    first = StopFile(folder, SERVER, "first")
    second = StopFile(folder, SERVER, "second")
    assert not first.withdraw()
    assert second.is_there()
    assert take(folder, SERVER) == "second"


def changed(**fields: object) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def holding(data: bytes) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.write_bytes(data)

    return change


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.rename(file.with_name("kept"))
        make(file)

    return change


def linked(file: Path) -> None:
    file.symlink_to("kept")


def given_away(file: Path) -> None:
    os.chown(file, 12345, 12345)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(changed(run_id="run_fedcba9876543210"), id="another run"),
        pytest.param(changed(server_id="f" * 16), id="another server"),
        pytest.param(changed(time_s=time.time() - VALID_S - 5), id="old"),
        pytest.param(changed(time_s=time.time() + VALID_S + 3600), id="of a clock that was wrong"),
        pytest.param(changed(time_s=float("nan")), id="at no time"),
        pytest.param(changed(time_s=None), id="without a time"),
        pytest.param(changed(by=None), id="by nobody"),
        pytest.param(changed(by=["a"]), id="by a list"),
        pytest.param(changed(more="x" * 5000), id="large"),
        pytest.param(holding(b"[]"), id="a list"),
        pytest.param(holding(b"[" * 4000), id="deep"),
        pytest.param(holding(b"\xff{"), id="no text"),
        pytest.param(holding(b""), id="empty"),
        pytest.param(replaced_by(linked), id="a link"),
        pytest.param(replaced_by(os.mkfifo), id="a pipe"),
        pytest.param(replaced_by(Path.mkdir), id="a folder"),
        pytest.param(
            given_away,
            id="another user's",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away"),
        ),
    ],
)
def test_what_is_no_valid_request_stops_nothing_and_is_removed(
    folder: Path, change: Callable[[Path], None]
) -> None:
    StopFile(folder, SERVER, "a client")
    file = folder / "stop.json"
    change(file)
    assert take(folder, SERVER) is None
    assert file.is_dir() or not os.path.lexists(file)


def test_no_request_is_written_where_others_may_write(folder: Path, tmp_path: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="other users may write to it"):
        StopFile(folder, SERVER, "a client")
    folder.chmod(0o700)
    link = tmp_path / "runs" / "run_fedcba9876543210"
    link.symlink_to(folder)
    with pytest.raises(OSError, match="run_fedcba9876543210"):
        StopFile(link, SERVER, "a client")
    assert [*folder.iterdir()] == []


async def test_a_server_without_runs_looks_for_nothing(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run = cast("Run", type("Over", (), {"run_id": RUN, "outcome": make_result("completed")})())
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            watch = StopWatch(tasks, store)
            watch.add(run)
        async with anyio.create_task_group() as tasks:
            watch = StopWatch(tasks, store)
    store.close()


def stored(store: RunStore, status: RunStatus, **fields: Any) -> None:
    setting = EffectiveSettings(cwd="/work", sandbox="read-only")
    store.save(make_result(status, run_id=RUN, setting=setting, **fields), now())


async def test_a_run_that_ends_before_the_request_is_taken_has_just_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_file, "TAKEN_WITHIN_S", 10**6)  # The end of the run ends the wait.
    store = RunStore(tmp_path)
    stored(store, "running")
    found = StoredRuns(tmp_path).load(RUN)
    assert found is not None
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop_elsewhere, StoredRuns(tmp_path), found, "a client")
            await until(lambda: (store.folder(RUN) / "stop.json").exists())
            stored(store, "completed")
    assert not requests_in(tmp_path)
    store.close()


async def test_a_request_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    stored(store, "running")
    found = StoredRuns(tmp_path).load(RUN)
    assert found is not None
    store.folder(RUN).chmod(0o722)
    with pytest.raises(RunElsewhere, match="cannot be written"):
        await stop_elsewhere(StoredRuns(tmp_path), found, "a client")
    store.close()


async def test_a_cancelled_call_withdraws_its_request(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    stored(store, "running")
    found = StoredRuns(tmp_path).load(RUN)
    assert found is not None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_elsewhere, StoredRuns(tmp_path), found, "a client")
        await until(lambda: (store.folder(RUN) / "stop.json").exists())
        tasks.cancel_scope.cancel()
    assert not requests_in(tmp_path)
    store.close()
