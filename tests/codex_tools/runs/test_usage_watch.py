"""A run that reaches a limit ends, unless the response that reached it was the answer."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest

from codex_tools.codex.budget import Budgets, Limit
from codex_tools.codex.events import (
    AgentMessageItem,
    CommandExecutionItem,
    Event,
    ExitedEvent,
    ItemCompletedEvent,
    ItemStartedEvent,
    ThreadStartedEvent,
    TurnCompletedEvent,
)
from codex_tools.engines.engine import Keep, TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.threads import Threads
from codex_tools.runs.opening import open_runs
from codex_tools.runs.result import RunResult
from support.rollout_lines import count, written
from support.scripted_engine import USAGE, ScriptedEngine


class Spender(ScriptedEngine):
    """Uses 108 tokens, and then does what the prompt says."""

    async def _events(self, request: TurnRequest, keep: Keep) -> AsyncGenerator[Event]:
        thread_id = f"01a20000-0000-7000-8000-{len(self.turns):012}"
        self._write(thread_id, request)
        yield ThreadStartedEvent(thread_id)
        (rollout,) = self.home.rglob(f"*{thread_id}.jsonl")
        with rollout.open("ab") as file:
            file.write(written(count(101, 101)))
        match request.prompt:
            case "answer":
                await anyio.sleep(0.2)
                yield ItemCompletedEvent(AgentMessageItem("item_0", "ANSWER"))
                await anyio.sleep(0.6)
            case "talk":
                yield ItemCompletedEvent(AgentMessageItem("item_0", "I shall do it."))
                await anyio.sleep_forever()
            case "command":
                yield ItemStartedEvent(CommandExecutionItem("item_0", "ls", None, "in_progress"))
                await anyio.sleep_forever()
            case "more":
                with rollout.open("ab") as file:
                    file.write(written(count(203, 102)))
                await anyio.sleep_forever()
            case _:
                await anyio.sleep_forever()
        yield TurnCompletedEvent(USAGE)
        yield ExitedEvent(0, "")


async def spend(folder: Path, prompt: str, *limits: Limit) -> RunResult:
    home = folder / "home"
    engine, threads = Spender(home), Threads(home, read_prices())
    program = await engine.prepare(folder, EnvironmentRules())
    request = TurnRequest(
        program, prompt, folder, "read-only", timeout_s=60, stall_s=60, limits=limits
    )
    async with open_runs(
        folder / "state", engine=engine, threads=threads, max_runs=1, budgets=Budgets()
    ) as runs:
        run = runs.start(request, None, caller="test")
        with anyio.fail_after(60):
            await run.done.wait()
        result = run.result()
    assert engine.open_turns == 0
    return result


async def test_an_answer_that_reaches_the_limit_is_not_lost(tmp_path: Path) -> None:
    result = await spend(tmp_path, "answer", Limit("max_tokens", 100))
    assert (result.status, result.final_response) == ("completed", "ANSWER")
    assert any("108 of 100 tokens (max_tokens)" in warning for warning in result.warnings)


@pytest.mark.parametrize("prompt", ["command", "more", "talk", "nothing"])
async def test_whatever_else_follows_ends_the_run(prompt: str, tmp_path: Path) -> None:
    result = await spend(tmp_path, prompt, Limit("max_tokens", 100))
    assert result.error is not None
    assert (result.status, result.error.kind) == ("failed", "budget_exhausted")
    assert result.usage is not None
    assert result.usage.total_tokens == (108 if prompt != "more" else 217)
    assert result.thread_id is not None
    assert result.thread_id in result.next


async def test_a_warning_comes_once_at_four_fifths(tmp_path: Path) -> None:
    result = await spend(tmp_path, "answer", Limit("max_tokens", 135))
    warnings = [warning for warning in result.warnings if "max_tokens" in warning]
    assert warnings == ["80% of a budget is used: 108 of 135 tokens (max_tokens)."]
    result = await spend(tmp_path / "more", "answer", Limit("max_tokens", 136))
    assert not [warning for warning in result.warnings if "max_tokens" in warning]


async def test_the_share_of_the_day_is_noted_with_the_end_of_the_run(tmp_path: Path) -> None:
    result = await spend(tmp_path, "answer")
    lines: list[dict[str, object]] = []
    for path in (tmp_path / "state" / "spending").iterdir():
        lines += [json.loads(line) for line in path.read_text().splitlines() if line]
    ended = [line for line in lines if line["ended"]]
    assert {line["run_id"] for line in lines} == {result.run_id}
    assert sum(int(str(line["tokens"])) for line in ended) == 108
