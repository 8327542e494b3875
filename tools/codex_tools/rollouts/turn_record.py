"""Read what a rollout records of one turn: its settings, usage, cost, end and answer.

Codex's stdout is one witness of a turn, the rollout is the other. The rollout also records what
Codex made of the settings that it was given.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from codex_tools.codex.json_object import Json, object_of, text_of
from codex_tools.codex.record import Usage
from codex_tools.codex.sandbox_trouble import find_trouble
from codex_tools.pricing.prices import Prices
from codex_tools.rollouts.files import PACKED, blocks, ids_of, parts_of
from codex_tools.rollouts.line import LineSplitter, lines_of, parse_line
from codex_tools.rollouts.thread_reader import Mark, ThreadReader
from codex_tools.rollouts.token_counter import each_request
from codex_tools.rollouts.turn_builder import UNEXPLAINED
from codex_tools.rollouts.turn_reader import read_turns, segment_of

Ending = Literal["completed", "failed", "interrupted", "open"]

_ENDINGS: dict[str, Ending] = {
    "completed": "completed",
    # A Codex before 0.98 marks no ends. It writes a response once all of it has arrived, so an
    # answer without a call after it is the last of the turn (seen on 0.60.1).
    "answered": "completed",
    "failed": "failed",
    "interrupted": "interrupted",
}

_HEAD_OF_LINE = 200
"""Bytes at the start of a line that contain its type."""


@dataclass(frozen=True, slots=True)
class TurnMark:
    """Where the records of a turn begin in its thread's rollouts."""

    offset: int = 0
    """Bytes of the segment, unpacked, before the turn; 0 for a new thread."""
    since_ms: int = 0
    """Time before the turn, in ms since 1970; used where the rollout was rewritten."""
    segment: str = ""
    """The id of the segment that *offset* belongs to; "" for the thread's first."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that Codex recorded for a turn; None where it recorded none."""

    sandbox: str | None = None
    """The type of the sandbox policy, which a newer Codex may have added."""
    cwd: str | None = None
    model: str | None = None
    reasoning_effort: str | None = None
    approval: str | None = None
    """When Codex asks before a command; `exec` normally records "never"."""
    reviewer: str | None = None
    """Who answers these questions: "user", or a model."""


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """What a rollout records of the turns since a mark."""

    settings: Settings | None = None
    """The latest settings; None if no turn has begun since the mark."""
    ending: Ending | None = None
    """How the latest turn ended; None if no turn has begun since the mark."""
    usage: Usage | None = None
    """Tokens of all requests since the mark; None if no request was recorded."""
    cost_usd: float | None = None
    """Their cost; None if it is not known."""
    final_response: str | None = None
    """The answer of a turn that has completed."""
    error: str | None = None
    """The message of a turn that has failed; None if Codex recorded none."""
    troubles: tuple[str, ...] = ()
    """A warning for each command that failed because of the sandbox, without repeats."""
    has_lost_image: bool = False
    """True if Codex gave the model a text in place of an image."""
    commands: tuple[tuple[str, int | None, str], ...] = ()
    """Command, exit code and status of the latest turn's commands at its end, if that was read."""


def settings_of(context: Json) -> Settings:
    """Return the settings in the payload of a turn_context."""
    return Settings(
        sandbox=text_of(object_of(context, "sandbox_policy"), "type"),
        cwd=text_of(context, "cwd"),
        model=text_of(context, "model"),
        reasoning_effort=text_of(context, "effort"),
        approval=text_of(context, "approval_policy"),
        reviewer=text_of(context, "approvals_reviewer"),
    )


@dataclass(slots=True)
class SettingsFollower:
    """Read the settings of a turn from its rollout while Codex writes it."""

    path: Path
    offset: int
    """Where the next read begins."""
    newer_than: str = ""
    """The id of a fork: its rollout may hold copies of earlier turns, whose ids are smaller.

    0.163.0 copies a thread of 0.60.1, whose turns have no ids.
    """
    _splitter: LineSplitter = field(default_factory=LineSplitter)

    def read(self, end: int = sys.maxsize) -> list[Settings]:
        """Return the settings recorded since the last call; 0.60.1 repeats them in a turn.

        *end* is where to stop, in bytes of the rollout.

        Raises:
            OSError: The rollout cannot be read.
        """
        found: list[Settings] = []
        for block in parts_of(self.path, self.offset, end):
            self.offset += len(block)
            for line in self._splitter.feed(block):
                context = _context_in(line)
                if context is not None and (text_of(context, "turn_id") or "") >= self.newer_than:
                    found.append(settings_of(context))
        return found


def _context_in(line: bytes) -> Json | None:
    """Return the payload of a turn_context line; None for any other line."""
    if b'"turn_context"' not in line[:_HEAD_OF_LINE]:
        return None
    entry = parse_line(line)
    if entry is None or entry.get("type") != "turn_context":
        return None
    return object_of(entry, "payload")


@dataclass(slots=True)
class Models:
    """Collect the models of a reader's requests, with their service tiers."""

    tiers: list[tuple[str | None, str | None]] = field(
        default_factory=list[tuple[str | None, str | None]]
    )

    def number(self, model: str | None, cwd: str | None, tier: str | None) -> int:
        """Return the number of *model* in *tier*."""
        self.tiers.append((model, tier))
        return len(self.tiers) - 1


def read_record(
    segments: Sequence[Path],
    mark: TurnMark,
    prices: Prices,
    *,
    with_end: bool = True,
    turns: int | None = None,
) -> TurnRecord:
    """Return what rollouts record of the turns since *mark*.

    Args:
        segments: The rollouts of the mark's segment and of all later segments, the oldest first.
        mark: Where the turns begin.
        prices: The prices of tokens by model and time.
        with_end: False to leave out the answer, the error and the commands, which takes half as
            long.
        turns: Read only the first so many turns; None for all.

    Raises:
        OSError: A rollout cannot be read.
    """
    models = Models()
    found: list[_Since] = []
    for path in segments:
        # A later segment has begun since the mark.
        is_marked = ids_of(path.name)[1] == (mark.segment or ids_of(path.name)[0])
        offset = mark.offset if is_marked else 0
        since = _read_since(path, offset, mark.since_ms, models)
        if turns is not None and len(since.turns) > turns:
            # Somebody has gone on in the thread: a person, or another run.
            end = since.turns[turns].offset
            found.append(_read_since(path, offset, mark.since_ms, models, end))
            break
        found.append(since)
        turns = None if turns is None else turns - len(since.turns)
    rows = [row for each in found for row in each.rows]
    usage, cost = _usage_of(rows), _cost_of(rows, models, prices)
    settings = next((each.settings for each in reversed(found) if each.settings), None)
    begun = [each for each in found if each.turns]
    if not begun:
        return TurnRecord(settings=settings, usage=usage, cost_usd=cost)
    troubles: dict[str, None] = {}
    has_lost_image = False
    for each in begun:
        more, has_lost_another = _read_troubles(each.path, each.start, each.end)
        troubles |= more
        has_lost_image = has_lost_image or has_lost_another
    ending = _ENDINGS.get(begun[-1].reader.ending, "open")
    answer: str | None = None
    error: str | None = None
    commands: tuple[tuple[str, int | None, str], ...] = ()
    if with_end and ending in ("completed", "failed"):
        (turn, *_), _ = read_turns([segment_of(begun[-1].path, begun[-1].reader)], None, 1)
        answer, error = turn.final_response, turn.error
        error = None if error == UNEXPLAINED else error
        at_end = turn.commands_at_end
        commands = tuple(turn.commands if at_end is None else at_end)
    return TurnRecord(
        settings, ending, usage, cost, answer, error, tuple(troubles), has_lost_image, commands
    )


@dataclass(frozen=True, slots=True)
class _Since:
    """What one rollout records since a place in it."""

    path: Path
    reader: ThreadReader
    start: int
    """Where its new records begin."""
    end: int
    """Where they end."""
    turns: Sequence[Mark]
    """The turns that have begun since then."""
    rows: list[tuple[int, ...]]
    settings: Settings | None


def _read_since(
    path: Path, offset: int, since_ms: int, models: Models, end: int = sys.maxsize
) -> _Since:
    """Read a rollout to *end*; if it is shorter than *offset*, it was rewritten: times decide."""
    reader = ThreadReader(ids_of(path.name)[0], models)
    requests_before = turns_before = at = 0
    for block in _blocks_to(path, offset, end):
        if at == offset:
            requests_before, turns_before = len(reader.requests), len(reader.marks)
        reader.feed(block)
        at += len(block)
    if at == offset:
        requests_before, turns_before = len(reader.requests), len(reader.marks)
    reader.finish()
    if at >= offset:
        rows = [*each_request(reader.requests[requests_before:])]
        turns, start, settings_start = reader.marks[turns_before:], offset, offset
    else:
        rows = [row for row in each_request(reader.requests) if row[0] >= since_ms]
        turns = [mark for mark in reader.marks if mark.ms >= since_ms]
        start, settings_start = 0, 0 if turns else at
    follower = SettingsFollower(path, settings_start)
    settings = next(reversed(follower.read(end)), None)
    return _Since(path, reader, start, end, turns, rows, settings)


_SIGNS = (b"bwrap: ", b"LandlockRestrict", b": Read-only file system")
_LOST_IMAGE = (
    b"image content omitted because it could not be processed",  # 0.147 to 0.171
    b"is invalid: failed to decode image",  # 0.60.1
)


def _read_troubles(path: Path, offset: int, end: int) -> tuple[dict[str, None], bool]:
    """Return the warnings of find_trouble up to *end*, and True if an image was left out."""
    troubles: dict[str, None] = {}
    has_lost_image = False
    for line in lines_of(parts_of(path, offset, end)):
        has_lost_image = has_lost_image or any(sign in line for sign in _LOST_IMAGE)
        if b"_call_output" in line[:_HEAD_OF_LINE] and any(sign in line for sign in _SIGNS):
            payload = object_of(parse_line(line) or {}, "payload")
            is_output = (text_of(payload, "type") or "").endswith("_call_output")
            trouble = find_trouble(text_of(payload, "output") or "") if is_output else None
            if trouble is not None and len(troubles) < _TROUBLES_KEPT:
                troubles[trouble] = None
    return troubles, has_lost_image


_TROUBLES_KEPT = 5


def _blocks_to(path: Path, offset: int, end: int) -> Iterator[bytes]:
    """Yield the content of a rollout up to *end* in blocks, of which one ends at *offset*."""
    if not path.name.endswith(PACKED):
        yield from blocks(path, 0, min(offset, end))
        yield from blocks(path, offset, end)
        return
    at = 0
    for block in parts_of(path, 0, end):
        cut = offset - at
        at += len(block)
        if 0 < cut < len(block):
            yield block[:cut]
            block = block[cut:]
        yield block


def _usage_of(rows: list[tuple[int, ...]]) -> Usage | None:
    if not rows:
        return None
    input_, cached, output, reasoning = (sum(row[at] for row in rows) for at in (2, 3, 5, 6))
    return Usage(
        input_tokens=input_,
        cached_input_tokens=cached,
        output_tokens=output,
        reasoning_output_tokens=reasoning,
        total_tokens=input_ + output,
    )


def _cost_of(rows: list[tuple[int, ...]], models: Models, prices: Prices) -> float | None:
    """Return the cost in USD; None if a request has no known price, or there is none."""
    costs: list[float] = []
    for row in rows:
        cost = cost_of_request(row, models, prices)
        if cost is None:
            return None
        costs.append(cost)
    return round(sum(costs), 6) if costs else None


def cost_of_request(row: tuple[int, ...], models: Models, prices: Prices) -> float | None:
    """Return the cost of one request in USD; None if its model has no known price."""
    ms, context, input_, cached, write, output, *_ = row
    model, tier = models.tiers[context]
    price = prices.of(model, ms, tier)
    return None if price is None else price.cost(input_, cached, write, output)


def cost_without_rollout(
    usage: Usage | None, model: str | None, at_ms: int, prices: Prices
) -> float | None:
    """Return the cost in USD of the requests summed up in *usage*, or None if it is unknown.

    It is unknown if the model has no price, and if a request may have been so long that its
    tokens cost more. Then only a price for each request is right. The service tier is taken for
    the standard one, because only a rollout records it.
    """
    price = prices.of(model, at_ms)
    if usage is None or price is None or usage.input_tokens > price.above:
        return None
    cost = price.cost(usage.input_tokens, usage.cached_input_tokens, 0, usage.output_tokens)
    return None if cost is None else round(cost, 6)
