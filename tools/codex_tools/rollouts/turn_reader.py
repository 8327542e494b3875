"""Read the turns of one thread from its rollout, newest first."""

from __future__ import annotations

import errno
from pathlib import Path

from codex_tools.rollouts.files import blocks, parts_of, thread_id_of
from codex_tools.rollouts.thread_reader import ThreadReader
from codex_tools.rollouts.token_counter import REQUEST_FIELDS
from codex_tools.rollouts.turn_builder import Turn, TurnBuilder

TURNS_LIMIT = 512 * 1024 * 1024
"""Maximum bytes of the turns that are read at a time."""


class _NoContexts:
    def number(self, model: str | None, cwd: str | None) -> int:
        """Return 0 for every context, because the turns do not show it."""
        return 0


def read_turns(path: Path, before: int | None, count: int) -> tuple[list[Turn], int]:
    """Return up to *count* turns of a rollout, newest first, and the number of turns before them.

    Args:
        path: The rollout.
        before: Return only turns before this one, counted from 0; None for the newest turns.
        count: The largest number of turns to return.

    Raises:
        OSError: The rollout cannot be read.
    """
    reader = ThreadReader(thread_id_of(path.name), _NoContexts())
    for block in blocks(path):
        reader.feed(block)
    reader.finish()
    marks = reader.marks
    last = len(marks) if before is None else min(before, len(marks))
    first = max(0, last - count)
    ends = [*(offset for offset, *_ in marks[1:]), reader.offset]
    used = [*(requests for *_, requests in marks[1:]), len(reader.requests) // REQUEST_FIELDS]
    turns: list[Turn] = []
    if first < last:
        data = _between(path, marks[first][0], ends[last - 1])
        for number in range(first, last):
            offset, ms, requests = marks[number]
            start = offset - marks[first][0]
            lines = data[start : ends[number] - marks[first][0]].split(b"\n")
            turn = TurnBuilder(ms).read(lines)
            rows = reader.requests[requests * REQUEST_FIELDS : used[number] * REQUEST_FIELDS]
            input_, cached, output, reasoning = (
                sum(rows[column::REQUEST_FIELDS]) for column in (2, 3, 5, 6)
            )
            turn.usage = (input_, cached, output, reasoning)
            turns.append(turn)
    turns.reverse()
    return turns, first


def _between(path: Path, start: int, end: int) -> bytes:
    if end - start > TURNS_LIMIT:
        raise OSError(errno.EFBIG, f"turns of more than {TURNS_LIMIT:,} bytes", str(path))
    return b"".join(parts_of(path, start, end))
