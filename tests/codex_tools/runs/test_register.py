"""The register of runs: no ghost after a failed start, and old files removed again and again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from codex_tools.engines.engine import TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.threads import Threads
from codex_tools.runs import register
from codex_tools.runs.register import Runs, open_runs
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


async def test_old_files_are_removed_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "PRUNE_AFTER_S", 0.01)
    monkeypatch.setattr(register, "PRUNE_EVERY_S", 0.05)
    pruned: list[list[str]] = []
    async with opened(tmp_path) as runs:
        store = runs._store  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(store, "prune", pruned.append)
        await until(lambda: len(pruned) > 2)
    shutil.rmtree(tmp_path / "state")
