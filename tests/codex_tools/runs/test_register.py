"""The register of runs: no ghost after a failed start, and old files removed again and again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from codex_tools.codex.errors import InternalFault
from codex_tools.codex.turn_result import TurnResult
from codex_tools.engines.engine import TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.threads import Threads
from codex_tools.runs import event_log, pruning
from codex_tools.runs.opening import open_runs
from codex_tools.runs.register import Runs
from codex_tools.runs.result import make_result
from codex_tools.runs.store import RunStore, now
from codex_tools.runs.writer import StateWriter
from support.lab import until
from support.scripted_engine import ScriptedEngine

THREAD = "01a20661-b445-73e1-b566-c552cde98ccd"


def opened(folder: Path, *, max_runs: int = 1) -> Any:
    home = folder / "home"
    threads, engine = Threads(home, read_prices()), ScriptedEngine(home)
    return open_runs(folder / "state", engine=engine, threads=threads, max_runs=max_runs)


async def turn(folder: Path) -> TurnRequest:
    program = await ScriptedEngine(folder).prepare(folder, EnvironmentRules())
    return TurnRequest(program, "hello", folder, "read-only", timeout_s=60, stall_s=60)


async def test_a_start_that_fails_leaves_no_run_and_can_be_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(event: str, facts: Mapping[str, object]) -> None:
        raise TypeError("str is not valid UTF-8")

    async with opened(tmp_path) as runs:
        assert isinstance(runs, Runs)
        request = await turn(tmp_path)
        lock = await runs.lock_thread(THREAD)
        with monkeypatch.context() as patch:
            patch.setattr(runs.audit, "write", fail)
            with pytest.raises(TypeError):
                runs.start(request, None, caller="test", lock=lock)
        await runs.unlock_thread(lock)
        # Neither does it count as one at work, nor is its thread locked.
        again = await runs.lock_thread(THREAD)
        await runs.unlock_thread(again)
        run = runs.start(request, None, caller="test")
        assert run.result().status == "running"
        await run.done.wait()
        assert run.result().final_response == "HELLO"


async def test_a_name_that_is_not_utf_8_ends_neither_the_register_nor_other_runs(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    async with opened(tmp_path) as runs:
        # Policy.check refuses such a folder; this is what holds if one gets through.
        with pytest.raises(TypeError):
            runs.start(await turn(folder), None, caller="test")
        run = runs.start(await turn(tmp_path), None, caller="test")
        with anyio.fail_after(60):
            await run.done.wait()
        assert run.result().status == "completed"


@pytest.mark.parametrize("final", [None, "the end", "the end" * 3000])
async def test_an_earlier_message_is_never_shown_as_the_answer(
    tmp_path: Path, final: str | None
) -> None:
    """A failed run may leave a longer message on disk than the last one, which its result has."""
    long = "".join(f"line {n} " for n in range(10_000))
    store = RunStore(tmp_path / "state")
    for run_id, text, answer in (
        ("run_0000000000000001", final, long),
        ("run_0000000000000002", long, long),
    ):
        turn = TurnResult(thread_id=THREAD, final_response=text)
        result = make_result("failed", run_id=run_id, turn=turn, error=InternalFault())
        store.save(result, now(), answer)
    store.close()
    async with opened(tmp_path) as runs:
        assert (await runs.whole("run_0000000000000001")).final_response == final
        assert (await runs.whole("run_0000000000000002")).final_response == long


async def test_a_log_that_is_full_says_so_as_its_last_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "LOG_LIMIT", 100)
    writer = StateWriter()
    path = tmp_path / "run" / "events.jsonl"
    with event_log.EventLog(path, writer) as log:
        for n in range(9):
            log.add(b'{"type":"x","n":%d,"text":"%s"}' % (n, b"x" * 20))
    writer.close(60)
    page = event_log.read_page(path, 0, 10_000)
    assert page is not None
    assert [json.loads(line)["type"] for line in page.lines] == ["x", "x", "log_ends_here"]


async def test_old_files_are_removed_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "PRUNE_AFTER_S", 0.01)
    monkeypatch.setattr(pruning, "PRUNE_EVERY_S", 0.05)
    pruned: list[list[str]] = []
    async with opened(tmp_path) as runs:
        store = runs._store  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(store, "prune", pruned.append)
        await until(lambda: len(pruned) > 2)
    shutil.rmtree(tmp_path / "state")
