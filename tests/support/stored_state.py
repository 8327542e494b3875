"""A state folder with runs as servers leave it, and the commands that a person runs on it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from codex_tools.codex.errors import CodexError
from codex_tools.codex.record import Usage
from codex_tools.codex.turn_result import TurnResult
from codex_tools.runs.result import EffectiveSettings, RunStatus, make_result
from codex_tools.runs.store import Recorded, RunStore, now
from support.lab import Json, server_program

EVIL = (
    "\x1b]0;owned\x07\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b]8;;http://evil\x07\x9b2J\x9d0;x\x9c"
    "\u202ecod\u2066\u200b\u2028\u2029[/dim][bold]m[/x]:smile:\\" + "a" + "\u0301" * 200
)
"""Sequences that a terminal obeys, text that forges or disguises, and markup of rich."""

SECRET = "sk-proj-" + "abcDEF123456" * 3
"""A text that is masked as an API key."""


@contextmanager
def server(state: Path) -> Generator[RunStore]:
    """Be a server that is alive in *state*."""
    store = RunStore(state)
    try:
        yield store
    finally:
        store.close()


def run_id(number: int) -> str:
    return f"run_{number:016x}"


def keep(
    store: RunStore,
    number: int,
    status: RunStatus = "completed",
    *,
    answer: str = "the answer",
    created_at: str | None = None,
    cwd: str = "/work",
    model: str = "gpt-5.5",
    tokens: int | None = None,
    error: CodexError | None = None,
    recorded: Recorded | None = None,
    events: tuple[Json, ...] = (),
    **fields: Any,
) -> str:
    """Store a run as its server does; return its id."""
    turn = TurnResult(final_response=answer, thread_id="01a20000-0000-7000-8000-000000000001")
    setting = EffectiveSettings(model=model, cwd=cwd, sandbox="workspace-write")
    usage = None
    if tokens is not None:
        usage = Usage(
            input_tokens=tokens,
            cached_input_tokens=0,
            output_tokens=0,
            reasoning_output_tokens=0,
            total_tokens=tokens,
        )
    result = make_result(
        status, run_id=run_id(number), turn=turn, setting=setting, usage=usage, error=error
    )
    if status in ("running", "queued"):
        result = result.model_copy(update={"final_response": None})
    result = result.model_copy(update=fields)
    store.save(result, created_at or now(), None, recorded)
    if events:
        log = b"".join(json.dumps(each).encode() + b"\n" for each in events)
        store.log_path(run_id(number)).write_bytes(log)
    return run_id(number)


def item(kind: str, id_: str = "item_0", *, done: bool = True, **fields: Any) -> Json:
    """Return the event of an item."""
    event = "item.completed" if done else "item.started"
    return {"type": event, "item": {"id": id_, "type": kind, **fields}}


def command_event(command: str, exit_code: int | None = None) -> Json:
    """Return the event of a command that has started, or that has ended with *exit_code*."""
    status = "in_progress" if exit_code is None else "completed"
    facts: Json = {"aggregated_output": "", "exit_code": exit_code, "status": status}
    done = exit_code is not None
    return item("command_execution", done=done, command=command, **facts)


def person_runs(
    state: Path, *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of the console script on the state folder; its output is not a terminal."""
    environ = os.environ | {"HOME": str(state.parent), "CODEX_HOME": str(state.parent / "home")}
    environ |= {"TZ": "UTC", "LANG": "C.UTF-8"} | (env or {})
    argv = [server_program(), *words, "--state-dir", str(state)]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=120)


def json_of(state: Path, *words: str) -> Json:
    """Return what a command prints with --json."""
    done = person_runs(state, *words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return cast("Json", json.loads(done.stdout))


def check_obeyed_by_no_terminal(printed: str) -> str:
    """Check that there is nothing but colours in *printed*; return it without them."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert [letter for letter in plain if not letter.isprintable() and letter != "\n"] == []
    return plain
