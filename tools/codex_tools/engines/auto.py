"""Run turns with one engine where it can, else with another one."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
)
from pathlib import Path

from codex_tools.codex.events import Event, NoticeEvent
from codex_tools.codex.program import Program
from codex_tools.engines.engine import (
    Engine,
    EngineAbsent,
    EngineFailed,
    EngineUnfit,
    Keep,
    Plan,
    TurnRequest,
)
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.engines.model_list import ModelList

AGAIN_AFTER_S = 600.0
"""Seconds in which an engine that did not start is not tried again with the same Codex.

A script that knows `exec` only may wait for input, and each try would take its 5 s.
"""


class AutoEngine:
    """Run each turn with the first engine if that can run it, else with the second one."""

    name = "auto"

    def __init__(self, first: Engine, fallback: Engine) -> None:
        """Remember the engines; *fallback* runs the turns that *first* cannot run."""
        self._first = first
        self._fallback = fallback
        self._absent: dict[tuple[Path, str], tuple[float, str]] = {}
        """When the first engine did not start with a Codex, and why."""

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Let the first engine keep processes ready; see `Engine.opened`."""
        return self._first.opened()

    async def prepare(self, cwd: Path, rules: EnvironmentRules) -> Program:
        """Find Codex and return its path, version and abilities; see `Engine.prepare`."""
        return await self._fallback.prepare(cwd, rules)

    async def list_models(self, program: Program, rules: EnvironmentRules) -> ModelList | None:
        """Return the models that *program* offers; see `Engine.list_models`."""
        return await self._fallback.list_models(program, rules)

    async def plan_turn(self, request: TurnRequest) -> Plan:
        """Return what would run the turn if all goes well; see `Engine.plan_turn`."""
        try:
            return await self._first.plan_turn(request)
        except EngineUnfit:
            if request.asks:
                raise
            return await self._fallback.plan_turn(request)

    @asynccontextmanager
    async def open_turn(
        self, request: TurnRequest, keep: Keep
    ) -> AsyncGenerator[AsyncGenerator[Event]]:
        """Start a turn and yield its events; see `Engine.open_turn`.

        The second engine takes over only if the first one raises before its first event: until
        then nothing was sent to a model.
        """
        async with AsyncExitStack() as stack:
            events, failure = None, self._recall(request)
            if failure is None:
                try:
                    events = await stack.enter_async_context(self._first.open_turn(request, keep))
                except EngineUnfit as error:
                    if request.asks:  # No other engine can ask.
                        raise
                    if isinstance(error, EngineFailed):
                        failure = error.message
                    if isinstance(error, EngineAbsent):
                        self._absent[_codex_of(request)] = (time.monotonic(), error.message)
            if events is None:
                events = await stack.enter_async_context(self._fallback.open_turn(request, keep))
                if failure is not None:
                    used, other = self._fallback.name, self._first.name
                    notice = f"The engine {used} ran this turn, not {other}: {failure}"
                    events = await stack.enter_async_context(aclosing(_after(notice, events)))
            yield events

    def _recall(self, request: TurnRequest) -> str | None:
        """Return why the first engine did not start with this Codex; None to try it."""
        since, failure = self._absent.get(_codex_of(request), (0.0, None))
        is_recent = time.monotonic() - since < AGAIN_AFTER_S
        return failure if is_recent and not request.asks else None


def _codex_of(request: TurnRequest) -> tuple[Path, str]:
    return request.program.path, request.program.version_text


async def _after(notice: str, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
    yield NoticeEvent(notice)
    async for event in events:
        yield event
