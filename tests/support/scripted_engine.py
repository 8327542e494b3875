"""An engine without a process: it plays scripted events and writes the rollout of its threads.

It is the proof that the seam is one: nothing but this file is needed for another engine.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from codex_tools.codex.events import (
    AgentMessageItem,
    Event,
    ExitedEvent,
    ItemCompletedEvent,
    ThreadStartedEvent,
    TurnCompletedEvent,
)
from codex_tools.codex.json_object import Json
from codex_tools.codex.program import Program
from codex_tools.codex.record import Usage
from codex_tools.engines.engine import Keep, Plan, TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.engines.model_list import ModelList

USAGE = Usage(
    input_tokens=10,
    cached_input_tokens=4,
    output_tokens=2,
    reasoning_output_tokens=0,
    total_tokens=12,
)


@dataclass
class ScriptedEngine:
    """Answers each prompt with the prompt in capitals; the prompt `hang` never ends."""

    home: Path
    """Its threads lie here, as Codex's do in CODEX_HOME."""
    name: str = "scripted"
    turns: list[TurnRequest] = field(default_factory=list[TurnRequest])
    open_turns: int = 0
    asked: list[Path] = field(default_factory=list[Path])
    """The folders that `prepare` was asked about."""

    def opened(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def prepare(self, cwd: Path, rules: EnvironmentRules) -> Program:
        self.asked.append(cwd)
        return Program(Path("/no/program"), (1, 2, 3), "1.2.3", None, frozenset({"--ephemeral"}))

    async def plan_turn(self, request: TurnRequest) -> Plan:
        return Plan(("scripted",), ())

    async def list_models(self, program: Program, rules: EnvironmentRules) -> ModelList | None:
        return None

    @asynccontextmanager
    async def open_turn(
        self, request: TurnRequest, keep: Keep
    ) -> AsyncGenerator[AsyncGenerator[Event]]:
        self.turns.append(request)
        self.open_turns += 1
        try:
            yield self._events(request, keep)
        finally:
            self.open_turns -= 1

    async def _events(self, request: TurnRequest, keep: Keep) -> AsyncGenerator[Event]:
        number = len(self.turns)
        thread_id = request.thread_id or f"01a20000-0000-7000-8000-{number:012}"
        self._write(thread_id, request)
        keep(json.dumps({"type": "scripted", "turn": number}).encode())
        yield ThreadStartedEvent(thread_id)
        if request.prompt == "hang":
            await anyio.sleep_forever()
        await anyio.sleep(0.01)
        yield ItemCompletedEvent(AgentMessageItem("item_0", request.prompt.upper()))
        yield TurnCompletedEvent(USAGE)
        yield ExitedEvent(0, "")

    def _write(self, thread_id: str, request: TurnRequest) -> None:
        day = self.home / "sessions" / "2026" / "11" / "23"
        day.mkdir(parents=True, exist_ok=True)
        meta: Json = {"id": thread_id, "cwd": str(request.cwd), "source": "exec"}
        turn: Json = {"cwd": str(request.cwd), "model": request.model or "scripted-model"}
        turn["sandbox_policy"] = {"type": request.sandbox}
        at = "2026-11-23T03:09:56.100Z"
        with (day / f"rollout-2026-11-23T03-09-56-{thread_id}.jsonl").open("a") as file:
            for kind, payload in (("session_meta", meta), ("turn_context", turn)):
                if kind == "turn_context" or file.tell() == 0:
                    entry = {"timestamp": at, "type": kind, "payload": payload}
                    file.write(json.dumps(entry, separators=(",", ":")) + "\n")
