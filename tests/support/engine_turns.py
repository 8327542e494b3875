"""Run turns on an engine directly, without a server around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codex_tools.codex.errors import CodexError, TurnFailed
from codex_tools.codex.turn_result import TurnProgress, TurnResult
from codex_tools.engines.driver import run_turn
from codex_tools.engines.engine import Engine, TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from support.lab import Lab


async def request_for(engine: Engine, lab: Lab, prompt: str, **more: Any) -> TurnRequest:
    """Return a turn in *lab*'s project, read-only unless *more* says otherwise."""
    program = await engine.prepare(lab.project, EnvironmentRules())
    values: dict[str, Any] = {
        "cwd": lab.project,
        "sandbox": "read-only",
        "timeout_s": 120.0,
        "stall_s": 120.0,
    }
    return TurnRequest(program=program, prompt=prompt, **(values | more))


@dataclass
class Ran:
    """What came of a turn."""

    result: TurnResult
    error: CodexError | None = None
    lines: list[bytes] = field(default_factory=list[bytes])

    @property
    def kind(self) -> str | None:
        error = self.error
        return error.failure.kind if isinstance(error, TurnFailed) else error and error.kind


async def run(
    engine: Engine,
    lab: Lab,
    prompt: str,
    report: Callable[[TurnProgress], None] = lambda _: None,
    **more: Any,
) -> Ran:
    """Run a turn as the server would; return its result, also of a turn that failed."""
    request = await request_for(engine, lab, prompt, **more)
    progress = TurnProgress(thread_id=request.resumed)
    lines: list[bytes] = []
    try:
        result = await run_turn(engine, request, report, lines.append, progress=progress)
    except CodexError as error:
        return Ran(progress.result(), error, lines)
    return Ran(result, None, lines)


def untouched(home: Path) -> dict[str, bytes]:
    """Return the files that no run may write, with their contents."""
    names = ("config.toml", "auth.json")
    files = [home / name for name in names] + sorted((home / "rules").rglob("*"))
    return {str(file): file.read_bytes() for file in files if file.is_file()}
