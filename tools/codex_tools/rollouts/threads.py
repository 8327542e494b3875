"""Look up the threads of one Codex home: state, usage, cost.

Threads on another machine need another `Threads`. So tools and runs receive one and never read
CODEX_HOME themselves. The newest thread of a folder comes from the index (history/thread_list.py):
without an index, all rollouts would have to be opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from codex_tools.codex.errors import ThreadNotFound, no_thread
from codex_tools.codex.events import read_usage
from codex_tools.codex.json_object import Json, object_of, text_of
from codex_tools.codex.paths import in_roots
from codex_tools.codex.record import Usage
from codex_tools.codex.sandbox import Sandbox, sandbox_of
from codex_tools.pricing.prices import Prices
from codex_tools.rollouts.files import (
    BLOCK,
    PACKED,
    find_archived,
    find_rollout,
    local_home,
    meta_of,
    open_rollout,
)
from codex_tools.rollouts.line import parse_line
from codex_tools.rollouts.turn_record import (
    LINE_LIMIT,
    SettingsFollower,
    TurnMark,
    TurnRecord,
    cost_without_rollout,
    read_record,
    settings_of,
)
from codex_tools.rollouts.usage_follower import UsageFollower


@dataclass(frozen=True, slots=True)
class ThreadState:
    """The state of a thread at its last turn; None where its rollout does not record a value."""

    thread_id: str
    path: Path
    is_subagent: bool
    is_paginated: bool
    """True if the history is paginated; Codex before 0.147 damages such a thread by resuming it."""
    cwd: str | None
    sandbox: Sandbox | None
    model: str | None
    reasoning_effort: str | None
    usage: Usage | None
    """The thread's running total; newer versions of Codex continue counting from this total."""
    size: int
    """Bytes of the rollout's content, unpacked."""


class Threads:
    """The threads of one Codex home. Each method reads files: never call it on the event loop."""

    def __init__(self, home: Path, prices: Prices) -> None:
        """*home* is CODEX_HOME, *prices* are what tokens cost."""
        self.home = home
        self._prices = prices

    def state(self, thread_id: str, roots: Sequence[Path] = ()) -> ThreadState:
        """Return the state of a thread that Codex can resume, and whose folder is inside *roots*.

        Without roots the folder may be any.

        Raises:
            ThreadNotFound: There is no such thread, or it is archived.
        """
        state = self.find_state(thread_id)
        if state is not None and in_roots(state.cwd, roots):
            return state
        archived = find_archived(self.home, thread_id) if state is None else None
        if archived is not None and roots:
            state = read_state(archived)
            archived = archived if state and in_roots(state.cwd, roots) else None
        if archived is not None:
            raise ThreadNotFound(
                f"Thread {thread_id} is archived.",
                f"Run `codex unarchive {thread_id}` in a terminal, then call again.",
            )
        raise no_thread(thread_id, roots, f" in {self.home}")

    def find_state(self, thread_id: str | None) -> ThreadState | None:
        """Return the state of a thread, or None if there is no such thread to resume."""
        path = find_rollout(self.home, thread_id) if thread_id is not None else None
        state = read_state(path) if path is not None else None
        return state if state is not None and state.thread_id == thread_id else None

    def is_kept(self, thread_id: str | None) -> bool:
        """Return True if Codex has written a rollout for the thread."""
        return thread_id is not None and find_rollout(self.home, thread_id) is not None

    def follow_settings(self, thread_id: str, mark: TurnMark) -> SettingsFollower | None:
        """Return a reader of the settings that Codex records in a turn; None without a rollout."""
        path = find_rollout(self.home, thread_id)
        return SettingsFollower(path, mark.offset) if path is not None else None

    def follow_usage(self, thread_id: str, mark: TurnMark) -> UsageFollower | None:
        """Return a reader of the tokens that a thread uses since *mark*; None without a rollout."""
        path = find_rollout(self.home, thread_id)
        # Codex appends to no compressed rollout: it unpacks one first when it resumes the thread.
        if path is None or path.name.endswith(PACKED):
            return None
        return UsageFollower(path, mark, self._prices)

    def turn_record(
        self, thread_id: str | None, mark: TurnMark, *, with_end: bool = True
    ) -> TurnRecord | None:
        """Return what the rollout records of a thread's turns since *mark*; None if there is none.

        This reads the whole rollout. *with_end* is False to leave out the answer and the error.
        """
        path = find_rollout(self.home, thread_id) if thread_id is not None else None
        try:
            if path is None:
                return None
            return read_record(path, mark, self._prices, with_end=with_end)
        except OSError:
            return None

    def cost_of_usage(self, usage: Usage | None, model: str | None, at_ms: int) -> float | None:
        """Return what *usage* cost in USD where no rollout was kept; see `cost_without_rollout`."""
        return cost_without_rollout(usage, model, at_ms, self._prices)


def local_threads(prices: Prices) -> Threads:
    """Return the threads of this machine: those of CODEX_HOME, by default ~/.codex."""
    return Threads(local_home(), prices)


def read_state(path: Path) -> ThreadState | None:
    """Return the state of a thread at its last turn, or None if *path* is not a rollout.

    Reads the first line, and then backwards from the end only as far as needed.
    """
    try:
        with open_rollout(path) as file:
            meta = meta_of(file.readline(LINE_LIMIT))
            if meta is None or not isinstance(meta.get("id"), str):
                return None
            size = file.seek(0, os.SEEK_END)
            context, usage = _last_turn(file)
    except OSError:
        return None
    source: object = meta.get("source")
    settings = settings_of(context)
    return ThreadState(
        thread_id=meta["id"],
        path=path,
        is_subagent="subagent" in source if isinstance(source, dict) else False,
        is_paginated=meta.get("history_mode") == "paginated",
        cwd=settings.cwd or text_of(meta, "cwd"),
        sandbox=sandbox_of(settings.sandbox),
        model=settings.model,
        reasoning_effort=settings.reasoning_effort,
        usage=usage,
        size=size,
    )


def _last_turn(file: BinaryIO) -> tuple[Json, Usage | None]:
    context: Json | None = None
    usage: Usage | None = None
    for line in _lines_backwards(file):
        # The text of a message may contain these words, so a line that does is parsed.
        if context is None and b'"turn_context"' in line:
            entry = parse_line(line) or {}
            if entry.get("type") == "turn_context":
                context = object_of(entry, "payload") or None
        elif usage is None and b'"token_count"' in line:
            entry = parse_line(line) or {}
            payload = object_of(entry, "payload")
            if entry.get("type") == "event_msg" and payload.get("type") == "token_count":
                usage = read_usage(object_of(object_of(payload, "info"), "total_token_usage"))
        if context is not None and usage is not None:
            break
    return context or {}, usage


def _lines_backwards(file: BinaryIO) -> Iterator[bytes]:
    position = file.seek(0, os.SEEK_END)
    later: list[bytes] = []
    kept = 0
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
            kept = len(first)
        elif kept <= LINE_LIMIT:
            later.append(first)
            kept += len(first)
        else:
            later = []  # Without its end, the line is no JSON and is passed over.
    yield b"".join(reversed(later))
