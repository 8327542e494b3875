"""An engine without a process: it plays scripted events and writes the rollout of its threads.

It is the proof that the seam is one: nothing but this file is needed for another engine.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio

from codex_tools.codex.events import (
    AgentMessageItem,
    EngineEvent,
    Event,
    ExitedEvent,
    ItemCompletedEvent,
    QuestionsEvent,
    ThreadStartedEvent,
    TurnCompletedEvent,
)
from codex_tools.codex.json_object import Json
from codex_tools.codex.program import Program
from codex_tools.codex.questions import Answer, Question
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


QUESTIONS: dict[str, Question] = {
    "command": Question("question_1", "command", "need it", "rm x", "/p", "need it"),
    "patch": Question("question_1", "patch", files=("/p/a", "/p/b"), diff="+x"),
    "permissions": Question("question_1", "permissions", '{"network":true}', reason="to look"),
    "mcp_tool": Question("question_1", "mcp_tool", "Allow it?", schema={"type": "object"}),
    "form": Question(
        "question_1",
        "form",
        "Which?",
        schema={
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 1}},
            "required": ["n"],
        },
    ),
    "nested form": Question(
        "question_1",
        "form",
        "Which?",
        schema={"type": "object", "properties": {"n": {"type": "object"}}},
    ),
    "choice": Question("question_1", "choice", "Which?", options=(("q1", ("a", "b")),)),
    "caller": Question(
        "question_1",
        "form",
        "Which name?",
        schema={
            "type": "object",
            "properties": {"answer": {"type": "string"}},
            "required": ["answer"],
        },
        for_caller=True,
    ),
}
"""One question of each kind, by the prompt that asks it."""


class ScriptedHandle:
    """The handle of a scripted turn, which asks one question, or none."""

    def __init__(self, question: Question | None) -> None:
        self.questions: tuple[Question, ...] = ()
        if question is not None:
            self.questions = (replace(question, until=anyio.current_time() + 600),)
        self.answers: list[Answer] = []
        self.answered = anyio.Event()
        self.words: list[str] = []

    def answer(self, question_id: str, answer: Answer) -> bool:
        if not self.questions or self.questions[0].id != question_id:
            return False
        self.questions = ()
        self.answers.append(answer)
        self.answered.set()
        return True

    async def steer(self, text: str) -> None:
        self.words.append(text)


@dataclass
class ScriptedEngine:
    """Answers each prompt with the prompt in capitals; the prompt `hang` never ends.

    A prompt of QUESTIONS asks that question first, and is answered with the decision.
    """

    home: Path
    """Its threads lie here, as Codex's do in CODEX_HOME."""
    name: str = "scripted"
    turns: list[TurnRequest] = field(default_factory=list[TurnRequest])
    open_turns: int = 0
    handles: list[ScriptedHandle] = field(default_factory=list[ScriptedHandle])
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
        said = request.prompt.upper()
        if request.prompt == "hang":
            await anyio.sleep_forever()
        elif request.prompt in QUESTIONS:
            handle = ScriptedHandle(QUESTIONS[request.prompt])
            self.handles.append(handle)
            yield EngineEvent(self.name, handle)
            yield QuestionsEvent()
            await handle.answered.wait()
            yield QuestionsEvent()
            said = "accepted" if handle.answers[0].accept else "declined"
        await anyio.sleep(0.01)
        yield ItemCompletedEvent(AgentMessageItem("item_0", said))
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
