"""Turns go to the second engine only where the first one did not begin them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from codex_tools.codex.errors import CodexError, NotAllowed
from codex_tools.codex.events import Event, ExitedEvent, NoticeEvent
from codex_tools.codex.program import Program
from codex_tools.engines import auto
from codex_tools.engines.auto import AutoEngine
from codex_tools.engines.engine import (
    EngineAbsent,
    EngineFailed,
    EngineUnfit,
    Keep,
    Plan,
    TurnRequest,
)
from support.scripted_engine import ScriptedEngine


@dataclass
class BrokenEngine(ScriptedEngine):
    """Fails with `error`, before or after its first event."""

    error: CodexError | None = None
    begins: bool = False
    name: str = "broken"
    tries: int = 0

    async def plan_turn(self, request: TurnRequest) -> Plan:
        assert self.error is not None
        raise self.error

    @asynccontextmanager
    async def open_turn(
        self, request: TurnRequest, keep: Keep
    ) -> AsyncGenerator[AsyncGenerator[Event]]:
        assert self.error is not None
        self.tries += 1
        if not self.begins:
            raise self.error
        yield self._fail()

    async def _fail(self) -> AsyncGenerator[Event]:
        assert self.error is not None
        yield NoticeEvent("begun")
        raise self.error


def request_in(folder: Path) -> TurnRequest:
    program = Program(Path("/no/program"), (1, 2, 3), "1.2.3", None, frozenset())
    return TurnRequest(program, "hello", folder, "read-only", 60.0, 60.0)


async def events_of(engine: AutoEngine, folder: Path) -> list[Event]:
    async with engine.open_turn(request_in(folder), lambda _: None) as events:
        return [event async for event in events]


def notices_of(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, NoticeEvent)]


UNFIT = EngineUnfit("that", "1.2.3", "hint")
FAILED = EngineFailed("a working one", "1.2.3", "hint")
ABSENT = EngineAbsent("a working one", "1.2.3", "hint")


@pytest.mark.parametrize("error", [UNFIT, FAILED], ids=["unfit", "failed"])
async def test_the_second_engine_runs_what_the_first_did_not_begin(
    tmp_path: Path, error: CodexError
) -> None:
    second = ScriptedEngine(tmp_path / "home")
    engine = AutoEngine(BrokenEngine(tmp_path / "home", error=error), second)
    events = await events_of(engine, tmp_path)
    assert isinstance(events[-1], ExitedEvent)
    assert (len(second.turns), second.open_turns) == (1, 0)
    told = "The engine scripted ran this turn, not broken: Codex 1.2.3 lacks a working one."
    assert notices_of(events) == ([told] if error is FAILED else [])
    assert (await engine.plan_turn(request_in(tmp_path))).argv == ("scripted",)


@pytest.mark.parametrize(
    ("error", "begins"),
    [(UNFIT, True), (FAILED, True), (NotAllowed("path", "replaced", "--root"), False)],
    ids=["unfit", "failed", "not allowed"],
)
async def test_a_turn_that_began_or_is_forbidden_is_not_run_again(
    tmp_path: Path, error: CodexError, begins: bool
) -> None:
    second = ScriptedEngine(tmp_path / "home")
    engine = AutoEngine(BrokenEngine(tmp_path / "home", error=error, begins=begins), second)
    with pytest.raises(type(error)):
        await events_of(engine, tmp_path)
    assert second.turns == []


@pytest.mark.parametrize(
    ("error", "again_after_s", "tries"),
    [(ABSENT, 600.0, 1), (ABSENT, 0.0, 2), (FAILED, 600.0, 2), (UNFIT, 600.0, 2)],
    ids=["absent", "absent, long ago", "failed", "unfit"],
)
async def test_an_engine_that_did_not_start_is_not_tried_at_once_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: CodexError,
    again_after_s: float,
    tries: int,
) -> None:
    first = BrokenEngine(tmp_path / "home", error=error)
    second = ScriptedEngine(tmp_path / "home")
    engine = AutoEngine(first, second)
    monkeypatch.setattr(auto, "AGAIN_AFTER_S", again_after_s)
    told = [notices_of(await events_of(engine, tmp_path)) for _ in range(2)]
    assert (first.tries, len(second.turns)) == (tries, 2)
    assert told[0] == told[1]
    assert len(told[0]) == (error is not UNFIT)


async def test_an_error_of_the_caller_starts_no_second_turn(tmp_path: Path) -> None:
    first, second = ScriptedEngine(tmp_path / "home"), ScriptedEngine(tmp_path / "home")
    engine = AutoEngine(first, second)
    with pytest.raises(EngineUnfit):
        async with engine.open_turn(request_in(tmp_path), lambda _: None):
            raise UNFIT
    assert (len(first.turns), first.open_turns, second.turns) == (1, 0, [])
