"""How a thread stood at its last turn, by its rollout: what resuming goes on from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from codex_tools.codex.events import read_usage
from codex_tools.codex.json_object import Json
from codex_tools.codex.record import Usage
from codex_tools.codex.sandbox import Sandbox
from codex_tools.rollouts.files import BLOCK, SESSIONS, open_rollout, payload_of, rollouts_below

_HEAD_OF_LINE = 300
"""Within so many bytes a line names its type; strings inside it are escaped."""

_SANDBOXES: dict[str, Sandbox] = {
    "read-only": "read-only",
    "workspace-write": "workspace-write",
    "danger-full-access": "danger-full-access",
}


@dataclass(frozen=True, slots=True)
class ThreadState:
    """How a thread stood at its last turn; None where its rollout does not tell."""

    thread_id: str
    path: Path
    is_subagent: bool
    is_paginated: bool
    """Codex before 0.147 damages such a thread by resuming it."""
    cwd: str | None
    sandbox: Sandbox | None
    model: str | None
    reasoning_effort: str | None
    usage: Usage | None
    """The thread's running total, from which newer versions go on counting."""


def newest_thread(home: Path, cwd: Path | None) -> ThreadState | None:
    """Return the thread that was at work last, sub-agents left aside.

    Args:
        home: CODEX_HOME.
        cwd: Only threads whose last turn ran in this folder; None for any.
    """
    wanted = os.path.realpath(cwd) if cwd is not None else None
    for path in sorted(rollouts_below(home / SESSIONS), key=_changed_at, reverse=True):
        state = read_state(Path(path))
        if state is None or state.is_subagent:
            continue
        if wanted is None or (state.cwd and os.path.realpath(state.cwd) == wanted):
            return state
    return None


def read_state(path: Path) -> ThreadState | None:
    """Read how a thread stood at its last turn; None if *path* is no rollout.

    Reads the first line, and the last ones backwards only as far as needed.
    """
    try:
        with open_rollout(path) as file:
            meta = payload_of(file.readline())
            if meta is None or not isinstance(meta.get("id"), str):
                return None
            context, usage = _last_turn(file)
    except OSError:
        return None
    source: object = meta.get("source")
    policy: object = context.get("sandbox_policy")
    kind = cast(Json, policy).get("type") if isinstance(policy, dict) else None
    return ThreadState(
        thread_id=meta["id"],
        path=path,
        is_subagent="subagent" in source if isinstance(source, dict) else False,
        is_paginated=meta.get("history_mode") == "paginated",
        cwd=_text(context, "cwd") or _text(meta, "cwd"),
        sandbox=_SANDBOXES.get(kind) if isinstance(kind, str) else None,
        model=_text(context, "model"),
        reasoning_effort=_text(context, "effort"),
        usage=usage,
    )


def _last_turn(file: BinaryIO) -> tuple[Json, Usage | None]:
    context: Json | None = None
    usage: Usage | None = None
    for line in _lines_backwards(file):
        head = line[:_HEAD_OF_LINE]
        if context is None and b'"type":"turn_context"' in head:
            context = payload_of(line)
        elif usage is None and b'"type":"token_count"' in head:
            usage = _total(payload_of(line))
        if context is not None and usage is not None:
            break
    return context or {}, usage


def _total(payload: Json | None) -> Usage | None:
    info: object = (payload or {}).get("info")
    total: object = cast(Json, info).get("total_token_usage") if isinstance(info, dict) else None
    return read_usage(cast(Json, total)) if isinstance(total, dict) else None


def _text(data: Json, key: str) -> str | None:
    value = data.get(key)
    return value if isinstance(value, str) and value else None


def _changed_at(path: str) -> float:
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0


def _lines_backwards(file: BinaryIO) -> Iterator[bytes]:
    position = file.seek(0, os.SEEK_END)
    later: list[bytes] = []
    while position:
        size = min(BLOCK, position)
        position -= size
        file.seek(position)
        first, *others = file.read(size).split(b"\n")
        if others:
            later.append(others.pop())
            yield b"".join(reversed(later))
            yield from reversed(others)
            later = [first]
        else:
            later.append(first)
    yield b"".join(reversed(later))
