"""Look up the threads of one Codex home: state, usage, cost.

Threads on another machine need another `Threads`. So tools and runs receive one and never read
CODEX_HOME themselves. The newest thread of a folder comes from the index (history/thread_list.py):
without an index, all rollouts would have to be opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from codex_tools.codex.copy_paths import CopyPlace, find_copy
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
    find_rollouts,
    ids_of,
    local_home,
    meta_of,
    open_rollout,
)
from codex_tools.rollouts.line import LINE_LIMIT, parse_line, records_in
from codex_tools.rollouts.review import find_reviewer, review_in
from codex_tools.rollouts.turn_record import (
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
    """The rollout of the newest segment, to which Codex appends the next turn."""
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
    """Bytes of the newest segment's content, unpacked."""
    copy: CopyPlace | None = None
    """The copy that its last turn worked in; `cwd` is then the folder in the project."""

    @property
    def segment(self) -> str:
        """The id of the newest segment."""
        return ids_of(self.path.name)[1]


class Threads:
    """The threads of one Codex home. Each method reads files: never call it on the event loop."""

    def __init__(self, home: Path, prices: Prices, state_dir: Path | None = None) -> None:
        """Read nothing yet.

        Args:
            home: CODEX_HOME.
            prices: What tokens cost.
            state_dir: The folder with the copies of isolated runs; None if there are none.
        """
        self.home = home
        self._prices = prices
        self._state_dir = state_dir

    def state(self, thread_id: str, roots: Sequence[Path] = ()) -> ThreadState:
        """Return the state of a thread that Codex can resume, and whose folder is inside *roots*.

        Without roots the folder may be any.

        Raises:
            ThreadNotFound: There is no such thread, or it is archived.
        """
        state = self.find_state(thread_id)
        archived = self._at_home(read_state(find_archived(self.home, thread_id)))
        # A newer segment in the archive means that Codex has archived the thread, not only a part.
        if archived is not None and (state is None or archived.segment > state.segment):
            if in_roots(archived.cwd, roots):
                raise ThreadNotFound(
                    f"Thread {thread_id} is archived.",
                    f"Run `codex unarchive {thread_id}` in a terminal, then call again.",
                )
        elif state is not None and in_roots(state.cwd, roots):
            return state
        raise no_thread(thread_id, roots, f" in {self.home}")

    def find_state(self, thread_id: str | None) -> ThreadState | None:
        """Return the state of a thread, or None if there is no such thread to resume."""
        state = self._at_home(read_state(self._segments(thread_id)))
        if state is None or state.thread_id != thread_id:
            return None
        reviewer = find_reviewer(self.home, state.thread_id) if state.sandbox is None else None
        work = read_state([reviewer]) if reviewer is not None else None
        if work is None:
            return state
        # A review records its settings only in the thread in which the reviewer works.
        effort = work.reasoning_effort
        return replace(state, sandbox=work.sandbox, model=work.model, reasoning_effort=effort)

    def _at_home(self, state: ThreadState | None) -> ThreadState | None:
        """Return *state* with the folder in the project if the thread worked in a copy."""
        found = find_copy(self._state_dir, state.cwd) if state is not None else None
        return (
            state
            if state is None or found is None
            else replace(state, cwd=str(found.cwd), copy=found)
        )

    def is_kept(self, thread_id: str | None) -> bool:
        """Return True if Codex has written a rollout for the thread."""
        return bool(self._segments(thread_id))

    def follow_settings(
        self, thread_id: str, mark: TurnMark, *, is_fork: bool = False
    ) -> SettingsFollower | None:
        """Return a reader of the settings that Codex records in a turn; None without a rollout.

        *is_fork* is True for a thread whose rollout may begin with a copy of another thread's.
        """
        found = self._segments_since(thread_id, mark)
        if not found:
            return None
        path = found[-1]
        is_marked = ids_of(path.name)[1] == (mark.segment or thread_id)
        newer_than = thread_id if is_fork else ""
        return SettingsFollower(path, mark.offset if is_marked else 0, newer_than)

    def find_reviewer(self, thread_id: str) -> str | None:
        """Return the thread in which Codex's reviewer works for a review; None if not found."""
        path = find_reviewer(self.home, thread_id)
        return ids_of(path.name)[0] if path is not None else None

    def read_review(self, thread_id: str | None) -> Json | None:
        """Return what a review found, as `review_in` does; None if Codex did not record it."""
        try:
            found = self._segments(thread_id)
            return review_in(found[0]) if found else None
        except OSError:
            return None

    def follow_usage(self, thread_id: str, mark: TurnMark) -> UsageFollower | None:
        """Return a reader of the tokens that a thread uses since *mark*; None without a rollout."""
        found = self._segments_since(thread_id, mark)
        # Codex appends to no compressed rollout: it unpacks one first when it resumes the thread.
        if not found or found[-1].name.endswith(PACKED):
            return None
        path = found[-1]
        is_marked = ids_of(path.name)[1] == (mark.segment or thread_id)
        mark = mark if is_marked else TurnMark(0, mark.since_ms)
        return UsageFollower(path, mark, self._prices)

    def turn_record(
        self,
        thread_id: str | None,
        mark: TurnMark,
        *,
        with_end: bool = True,
        turns: int | None = None,
    ) -> TurnRecord | None:
        """Return what the rollouts record of a thread's turns since *mark*; None if there is none.

        This reads the whole segment of the mark, and all later ones. *with_end* is False to leave
        out the answer, the error and the commands. *turns* is the number of turns to read; None
        for all.
        """
        try:
            found = self._segments_since(thread_id, mark)
            if not found:
                return None
            return read_record(found, mark, self._prices, with_end=with_end, turns=turns)
        except OSError:
            return None

    def _segments(self, thread_id: str | None) -> list[Path]:
        return [] if thread_id is None else find_rollouts(self.home, thread_id)

    def _segments_since(self, thread_id: str | None, mark: TurnMark) -> list[Path]:
        """Return the rollouts that may hold records since *mark*, the oldest segment first."""
        first = mark.segment or thread_id or ""
        return [path for path in self._segments(thread_id) if ids_of(path.name)[1] >= first]

    def cost_of_usage(self, usage: Usage | None, model: str | None, at_ms: int) -> float | None:
        """Return what *usage* cost in USD where no rollout was kept; see `cost_without_rollout`."""
        return cost_without_rollout(usage, model, at_ms, self._prices)


def local_threads(prices: Prices, state_dir: Path) -> Threads:
    """Return the threads of this machine: those of CODEX_HOME, by default ~/.codex."""
    return Threads(local_home(), prices, state_dir)


def read_state(segments: Sequence[Path]) -> ThreadState | None:
    """Return the state of a thread at its last turn, or None if there is no rollout.

    Reads the first line of the newest segment, and then backwards only as far as needed.

    Args:
        segments: The thread's rollouts, one for each segment, the oldest first.
    """
    if not segments:
        return None
    known = {ids_of(path.name)[1]: path for path in segments}
    path: Path | None = segments[-1]
    end: int | None = None
    newest: tuple[Json, int] | None = None
    context: Json | None = None
    usage: Usage | None = None
    try:
        while path is not None:
            with open_rollout(path) as file:
                meta = meta_of(file.readline(LINE_LIMIT))
                if meta is None or not isinstance(meta.get("id"), str):
                    break
                size = file.seek(0, os.SEEK_END)
                newest = newest or (meta, size)
                end = size if end is None else min(end, size)
                context, usage = _last_turn(file, end, context, usage)
            if context is not None and usage is not None:
                break
            # A segment goes on from a place in an earlier one.
            base = object_of(meta, "history_base")
            path = known.pop(text_of(base, "thread_id") or "", None)
            offset: object = base.get("end_byte_offset")
            end = offset if isinstance(offset, int) and offset >= 0 else None
    except OSError:
        return None
    if newest is None:
        return None
    meta, size = newest
    source: object = meta.get("source")
    settings = settings_of(context or {})
    return ThreadState(
        thread_id=meta["id"],
        path=segments[-1],
        is_subagent="subagent" in source if isinstance(source, dict) else False,
        is_paginated=meta.get("history_mode") == "paginated",
        cwd=settings.cwd or text_of(meta, "cwd"),
        sandbox=sandbox_of(settings.sandbox),
        model=settings.model,
        reasoning_effort=settings.reasoning_effort,
        usage=usage,
        size=size,
    )


def _last_turn(
    file: BinaryIO, end: int, context: Json | None, usage: Usage | None
) -> tuple[Json | None, Usage | None]:
    """Return the last turn_context and running total before *end*, where they are still None."""
    for line in _records_backwards(file, end):
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
    return context, usage


def _records_backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    """Yield the records before *end*, the last one first; a torn line may hold several."""
    for line in _lines_backwards(file, end):
        yield from reversed(records_in(line))


def _lines_backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    position = end
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
