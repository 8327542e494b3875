"""Follow the tokens of a thread in its rollout while Codex writes it.

Codex writes the token line of a response as soon as it has received the response, before it runs
the tools that the response calls (seen on 0.60.1, 0.163.0 and 0.171.0). Sub-agents are not
counted: they are threads of their own, with their own rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from codex_tools.codex.record import Usage
from codex_tools.pricing.prices import Prices
from codex_tools.rollouts.files import blocks, ids_of
from codex_tools.rollouts.line import LINE_LIMIT
from codex_tools.rollouts.thread_reader import ThreadReader
from codex_tools.rollouts.token_counter import each_request
from codex_tools.rollouts.turn_record import Models, TurnMark, cost_of_request

READ_LIMIT = 16 * 1024 * 1024
"""Maximum bytes of one read; the next read continues there."""

TAILS = (256 * 1024, 4 * 1024 * 1024, 64 * 1024 * 1024)
"""Bytes before the mark that are searched for the latest token counts, one size after the other."""

_COUNT = b'"token_count"'


@dataclass(frozen=True, slots=True)
class DayShare:
    """The tokens that a run used on one day, and their cost."""

    tokens: int = 0
    usd: float = 0.0
    """The cost of the requests whose model has a known price."""
    is_priced: bool = True
    """True if that is the cost of all requests."""

    def plus(self, other: DayShare) -> DayShare:
        """Return the sum of both."""
        return DayShare(
            self.tokens + other.tokens,
            self.usd + other.usd,
            self.is_priced and other.is_priced,
        )


@dataclass(frozen=True, slots=True)
class Spent:
    """The tokens of some requests, and their cost."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    known_usd: float = 0.0
    """The cost of the requests whose model has a known price."""
    unpriced: tuple[str, ...] = ()
    """The models without a known price."""
    days: tuple[tuple[str, DayShare], ...] = ()
    """The shares of the days, as ISO dates in the machine's time zone."""

    @property
    def tokens(self) -> int:
        """All tokens: cached input is part of the input, reasoning part of the output."""
        return self.input_tokens + self.output_tokens

    @property
    def usage(self) -> Usage | None:
        """The tokens as results have them; None if no request was recorded."""
        if not self.tokens:
            return None
        return Usage(
            input_tokens=self.input_tokens,
            cached_input_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            reasoning_output_tokens=self.reasoning_tokens,
            total_tokens=self.tokens,
        )

    @property
    def cost_usd(self) -> float | None:
        """The cost in USD; None if a request has no known price, or there is none."""
        return None if self.unpriced or not self.tokens else round(self.known_usd, 6)

    def plus(self, other: Spent) -> Spent:
        """Return the sum of both."""
        days = dict(self.days)
        for day, share in other.days:
            days[day] = days.get(day, DayShare()).plus(share)
        return Spent(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.known_usd + other.known_usd,
            tuple(dict.fromkeys((*self.unpriced, *other.unpriced))),
            tuple(days.items()),
        )


def day_of(ms: float) -> str:
    """Return the day of a time (ms since 1970) in the machine's time zone, as an ISO date.

    Today for a time that no calendar has: a rollout may contain any number.
    """
    try:
        return datetime.fromtimestamp(ms / 1000).astimezone().date().isoformat()
    except (ValueError, OverflowError, OSError):
        return datetime.now().astimezone().date().isoformat()


class UsageFollower:
    """Counts the requests of one rollout from a mark on; each read continues the last one."""

    def __init__(self, path: Path, mark: TurnMark, prices: Prices) -> None:
        """Read nothing yet; *mark* is where the requests to count begin."""
        self._path, self._mark, self._prices = path, mark, prices
        self._reader: ThreadReader | None = None
        self._models = Models()
        self._at = 0
        """Bytes read so far."""
        self._since_ms = 0
        """Only requests since that time count, in a rollout that was written anew."""
        self._spent = Spent()

    def read(self) -> Spent:
        """Return what was used since the mark, after reading what Codex has written since.

        Only new bytes are read, at most READ_LIMIT of them.

        Raises:
            OSError: The rollout cannot be read.
        """
        size = self._path.stat().st_size
        if self._reader is None or size < self._at:
            self._begin(size)
        reader = self._reader
        assert reader is not None
        if size == self._at:
            return self._spent
        for block in blocks(self._path, self._at, self._at + READ_LIMIT):
            self._at += len(block)
            reader.feed(block)
        for row in each_request(reader.requests):
            if row[0] >= self._since_ms:
                self._spent = self._spent.plus(self._spent_by(row))
        reader.requests.clear()
        return self._spent

    def read_all(self) -> Spent:
        """Return what was used since the mark, after reading all that Codex has written since.

        Raises:
            OSError: The rollout cannot be read.
        """
        before = -1
        while self._at > before:
            before = self._at
            self.read()
        return self._spent

    def _begin(self, size: int) -> None:
        """Make a reader that stands at the mark, in a rollout of *size* bytes."""
        mark = self._mark
        self._models, self._spent = Models(), Spent()
        self._reader = reader = ThreadReader(ids_of(self._path.name)[0], self._models)
        if size < mark.offset or (self._at and size < self._at):
            # `codex migrate-rollouts` has written the file anew: only times tell the turns apart.
            self._at, self._since_ms = 0, mark.since_ms
            return
        self._at = mark.offset
        if not mark.offset:
            return
        head, tail = self._context_of(mark.offset)
        reader.feed(head)
        reader.feed(tail)
        # A turn of this server is never part of a copy, which Codex makes with the thread.
        reader.leave_copy()
        reader.requests.clear()

    def _context_of(self, end: int) -> tuple[bytes, bytes]:
        """Return the parts of the rollout before *end* that the counting rules depend on.

        They are the first line, which says whose rollout it is, and the end from the second to
        last token count on: a repeated total is no new request.
        """
        head = _first_line(self._path, end)
        tail = b""
        for size in TAILS:
            start = max(len(head), end - size)
            tail = b"".join(blocks(self._path, start, end))
            last = tail.rfind(_COUNT)
            found = tail.rfind(_COUNT, 0, max(last, 0))
            if found >= 0:
                return head, tail[tail.rfind(b"\n", 0, found) + 1 :]
            if start == len(head):
                return head, tail
        return head, tail[tail.find(b"\n") + 1 :]

    def _spent_by(self, row: tuple[int, ...]) -> Spent:
        ms, context, input_, cached, _, output, reasoning, *_ = row
        cost = cost_of_request(row, self._models, self._prices)
        model = self._models.tiers[context][0] or "an unknown model"
        share = DayShare(input_ + output, cost or 0.0, cost is not None)
        return Spent(
            input_tokens=input_,
            cached_tokens=cached,
            output_tokens=output,
            reasoning_tokens=reasoning,
            known_usd=share.usd,
            unpriced=() if cost is not None else (model,),
            days=((day_of(ms), share),),
        )


def _first_line(path: Path, end: int) -> bytes:
    """Return the first line of a rollout, or nothing if it is longer than LINE_LIMIT."""
    line = b""
    for block in blocks(path, 0, end):
        head, found, _ = block.partition(b"\n")
        line += head + found
        if found:
            return line
        if len(line) > LINE_LIMIT:
            break
    return b""
