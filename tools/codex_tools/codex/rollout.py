"""Read rollouts: the files in which Codex keeps its threads.

`$CODEX_HOME/sessions/YYYY/MM/DD/rollout-<local time>-<thread id>.jsonl`, or
`.jsonl.zst` once Codex has compressed it; `archived_sessions/` without the
date folders. One JSON object a line, appended, never rewritten in place. The
shapes were seen on 0.60.1 to 0.169.0.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from codex_tools.codex.events import read_usage
from codex_tools.codex.exec import Sandbox
from codex_tools.codex.record import Usage

Json = dict[str, Any]

_BLOCK = 256 * 1024
_HEAD_OF_LINE = 300
"""Within so many bytes a line names its type; strings inside it are escaped."""

_ENDINGS = (".jsonl", ".jsonl.zst")
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


def codex_home() -> Path:
    """Return the folder where Codex keeps its files."""
    return Path(os.environ.get("CODEX_HOME") or Path.home() / ".codex")


def find_rollout(home: Path, thread_id: str) -> Path | None:
    """Return the rollout of *thread_id* among the threads that can be resumed."""
    sessions = home / "sessions"
    # The id tells the day (UUID version 7), give or take a time zone; if not, look everywhere.
    for folder in (*_days_of(sessions, thread_id), sessions):
        found = [path for path in _rollouts(folder) if _is_of(path, thread_id)]
        if found:
            return Path(min(found, key=len))
    return None


def is_archived(home: Path, thread_id: str) -> bool:
    """Return whether the thread lies in the archive, where Codex does not resume it."""
    return any(_is_of(path, thread_id) for path in _rollouts(home / "archived_sessions"))


def _is_of(path: str, thread_id: str) -> bool:
    return path.endswith(tuple(f"-{thread_id}{ending}" for ending in _ENDINGS))


def _days_of(sessions: Path, thread_id: str) -> Iterator[Path]:
    try:
        created = datetime.fromtimestamp(int(thread_id.replace("-", "")[:12], 16) / 1000, tz=UTC)
        for days in (0, 1, -1):
            yield sessions / (created + timedelta(days=days)).strftime("%Y/%m/%d")
    except (ValueError, OverflowError, OSError):
        return  # Not a UUID of version 7.


def newest_thread(home: Path, cwd: Path | None) -> ThreadState | None:
    """Return the thread that was at work last, sub-agents left aside.

    Args:
        home: CODEX_HOME.
        cwd: Only threads whose last turn ran in this folder; None for any.
    """
    wanted = os.path.realpath(cwd) if cwd is not None else None
    for path in sorted(_rollouts(home / "sessions"), key=_changed_at, reverse=True):
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
        with _open(path) as file:
            meta = _payload(file.readline())
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
            context = _payload(line)
        elif usage is None and b'"type":"token_count"' in head:
            usage = _total(_payload(line))
        if context is not None and usage is not None:
            break
    return context or {}, usage


def _total(payload: Json | None) -> Usage | None:
    info: object = (payload or {}).get("info")
    total: object = cast(Json, info).get("total_token_usage") if isinstance(info, dict) else None
    return read_usage(cast(Json, total)) if isinstance(total, dict) else None


def _payload(line: bytes) -> Json | None:
    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    payload: object = cast(Json, data).get("payload") if isinstance(data, dict) else None
    return cast(Json, payload) if isinstance(payload, dict) else None


def _text(data: Json, key: str) -> str | None:
    value = data.get(key)
    return value if isinstance(value, str) and value else None


def _changed_at(path: str) -> float:
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0


def _rollouts(folder: Path) -> Iterator[str]:
    """Yield the path of every rollout below *folder*."""
    ahead = [str(folder)]
    while ahead:
        try:
            with os.scandir(ahead.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        ahead.append(entry.path)
                    elif entry.name.startswith("rollout-") and entry.name.endswith(_ENDINGS):
                        yield entry.path
        except OSError:
            continue  # It was archived or removed while we looked.


@contextmanager
def _open(path: Path) -> Generator[BinaryIO]:
    with path.open("rb") as file:
        if path.suffix != ".zst":
            yield file
            return
        import io

        import zstandard

        try:
            plain = zstandard.ZstdDecompressor().stream_reader(file).read()
        except zstandard.ZstdError as error:
            raise OSError(f"{path} is damaged: {error}") from error
        yield io.BytesIO(plain)


def _lines_backwards(file: BinaryIO) -> Iterator[bytes]:
    position = file.seek(0, os.SEEK_END)
    later: list[bytes] = []
    while position:
        size = min(_BLOCK, position)
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
