"""Read the turns of one thread from its rollouts, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codex_tools.rollouts.files import parts_of
from codex_tools.rollouts.line import lines_of
from codex_tools.rollouts.thread_reader import ThreadReader
from codex_tools.rollouts.token_counter import REQUEST_FIELDS
from codex_tools.rollouts.turn_builder import Turn, TurnBuilder
from codex_tools.rollouts.turn_tracker import Mark


@dataclass(frozen=True, slots=True)
class Segment:
    """The turns of one rollout that belong to its thread's history."""

    path: Path
    marks: Sequence[Mark]
    end: int
    """Offset of the end of the history in this rollout."""
    requests: Sequence[int]
    """All requests of the rollout, REQUEST_FIELDS numbers each."""


def segment_of(path: Path, reader: ThreadReader) -> Segment:
    """Return the turns that *reader* has found in the rollout *path*, which it has read whole."""
    return Segment(path, reader.marks, reader.offset, reader.requests)


def read_turns(
    segments: Sequence[Segment], before: int | None, count: int
) -> tuple[list[Turn], int]:
    """Return up to *count* turns of a thread, newest first, and the number of turns before them.

    Only the lines of these turns are read, one by one.

    Args:
        segments: The thread's history, the oldest segment first.
        before: Return only turns before this one, counted from 0; None for the newest turns.
        count: The largest number of turns to return.

    Raises:
        OSError: A rollout cannot be read.
    """
    places = [(segment, number) for segment in segments for number in range(len(segment.marks))]
    last = len(places) if before is None else min(before, len(places))
    first = max(0, last - count)
    turns = [_read_turn(segment, number) for segment, number in places[first:last]]
    turns.reverse()
    return turns, first


def _read_turn(segment: Segment, number: int) -> Turn:
    marks, mark = segment.marks, segment.marks[number]
    is_last = number + 1 == len(marks)
    end = mark.end or (segment.end if is_last else marks[number + 1].offset)
    total = len(segment.requests) // REQUEST_FIELDS
    used = mark.requests_end or (total if is_last else marks[number + 1].requests)
    parts = parts_of(segment.path, mark.offset, min(end, segment.end))
    turn = TurnBuilder(mark.ms).read(lines_of(parts))
    rows = segment.requests[mark.requests * REQUEST_FIELDS : used * REQUEST_FIELDS]
    input_, cached, output, reasoning = (
        sum(rows[column::REQUEST_FIELDS]) for column in (2, 3, 5, 6)
    )
    turn.usage = (input_, cached, output, reasoning)
    return turn
