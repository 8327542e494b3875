"""Split a rollout into lines of bounded length; classify and parse single lines.

Most lines are classified by their first bytes and then skipped. Codex writes these bytes
itself; text from the model or from a command cannot reach them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from io import BytesIO
from operator import itemgetter
from typing import Any

import orjson

from codex_tools.codex.json_object import Json, objects_of, text_of

Counts = tuple[int, int, int, int, int]
"""Input, cached, cache-write, output and reasoning tokens of one reading."""

COMPACTED = "Compact task completed"
"""The agent message that Codex 0.60.1 writes after a compaction; it is not an answer."""

LINE_LIMIT = 16 * 1024 * 1024
"""Bytes of the longest line that is read as it is: images make lines of 10 MB and more."""
STRING_LIMIT = 512 * 1024
"""Bytes kept of a string in a longer line; a transcript shows 400,000 characters."""
RECORD = b'{"timestamp":"20'
"""How Codex begins each record."""
_RECORDS_LIMIT = 8
"""Places of a torn line, the last ones, at which a record is looked for by parsing."""

_COUNT_LIMIT = 2**50
"""Token counts from this number on are rejected as nonsense."""
_RECORD_STARTS = tuple(RECORD[:length] for length in range(3, 8))
_KINDS_LIMIT = 10_000
"""Entries of KNOWN_KINDS at which it is emptied, so that foreign files cannot fill memory."""

# Classifying by first bytes stays because it pays: the whole cold index takes 2.4 to 5.2 times
# the CPU time if orjson parses every line, and 1.14 to 1.34 times with a regular expression.

SKIP, COUNT, CONTEXT, ITEM, AGENT, STARTED, COMPLETED, META, ODD, OTHER, THREAD = range(11)
"""The kinds of lines. SKIP: nothing that a reader needs; ODD: not written as Codex writes it."""

HEAD_BYTES = 44
"""Bytes of a head, from `"type":"` on: up to six letters of an event_msg's payload type."""
NO_HEAD = slice(0, 0)
"""The head's place in an ODD line."""
UNNUMBERED = slice(40, 40 + HEAD_BYTES)
"""The head's place in a line without an ordinal: {"timestamp":"2026-11-22T15:21:59.595Z","type":"""
KNOWN_KINDS: dict[bytes, int] = {}
"""The kinds of all heads met so far."""
_KINDS = (
    (b'"type":"event_msg","payload":{"type":"token_', COUNT),
    (b'"type":"event_msg","payload":{"type":"item_c', ITEM),
    (b'"type":"event_msg","payload":{"type":"agent_', AGENT),
    (b'"type":"event_msg","payload":{"type":"user_m', OTHER),
    (b'"type":"event_msg","payload":{"type":"task_s', STARTED),
    (b'"type":"event_msg","payload":{"type":"task_c', COMPLETED),
    (b'"type":"event_msg","payload":{"type":"turn_a', OTHER),
    (b'"type":"event_msg","payload":{"type":"exited', OTHER),
    (b'"type":"event_msg","payload":{"type":"thread', THREAD),
    (b'"type":"token', OTHER),
    (b'"type":"turn_', CONTEXT),
)

_main_counts = itemgetter(
    "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens"
)


def lines_of(blocks: Iterable[bytes], limit: int = LINE_LIMIT) -> Iterator[bytes]:
    """Yield the lines of *blocks* with their line feeds; the last line may have none.

    See `LineSplitter` for torn lines and for lines of more than *limit* bytes.
    """
    splitter = LineSplitter(limit)
    for block in blocks:
        yield from splitter.feed(block)
    yield from splitter.rest()


class LineSplitter:
    """Split blocks into lines, in time linear in their bytes, and keep only a few times the limit.

    A line over the limit is yielded with its long strings shortened, see `LongLine`. A line that
    is still too long is left out. The records in a torn line are yielded one by one, see
    `records_in`.
    """

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._partial = PartialLine(limit)

    @property
    def size(self) -> int:
        """Bytes of the incomplete last line so far."""
        return self._partial.size

    def feed(self, block: bytes) -> Iterator[bytes]:
        """Yield the lines that *block* completes, with their line feeds."""
        lines = BytesIO(block)
        if self._partial.size:
            self._partial.add(lines.readline())
            if b"\n" not in block:
                return
            yield from self.rest()
        for line in lines:
            if line[-1] != 0x0A or len(line) > self._limit:
                self._partial.add(line)
                if line[-1] != 0x0A:
                    return
                yield from self.rest()
            elif line.find(RECORD, 1) < 0:
                yield line
            else:
                yield from records_in(line)

    def rest(self) -> Iterator[bytes]:
        """Yield the incomplete last line, as far as it was read, and forget it."""
        if line := self._partial.take():
            yield from records_in(line)


class PartialLine:
    """A line that is read in parts; beyond *limit* bytes, its long strings are shortened."""

    def __init__(self, limit: int = LINE_LIMIT, is_wanted: Callable[[bytes], bool] = bool) -> None:
        """*is_wanted* returns False for the start of a line that can be left out if it is long."""
        self.size = 0
        """Bytes of the line so far."""
        self.head = b""
        """The start of the line, if it is long."""
        self._limit = limit
        self._is_wanted = is_wanted
        self._parts: list[bytes] = []
        self._long: LongLine | None = None

    def add(self, part: bytes) -> None:
        """Add the next bytes of the line."""
        self.size += len(part)
        if self._long is not None:
            self._long.add(part)
            return
        self._parts.append(part)
        if self.size > self._limit:
            self.head = b"".join(self._parts)[:400]
            limit = self._limit if self._is_wanted(self.head) else 0
            self._long = LongLine(limit, self._parts)
            self._parts.clear()

    def whole(self) -> bytes:
        """Return the line if it is not long."""
        return b"".join(self._parts)

    def take(self) -> bytes:
        """Return the line, shortened if it is long, and forget it; empty if it was left out."""
        line = self.whole() if self._long is None else self._long.shortened()
        self.size, self.head, self._long = 0, b"", None
        self._parts.clear()
        return line


def records_in(line: bytes) -> list[bytes]:
    """Return the records in a line: usually the line itself.

    If Codex was killed while it wrote a record, a Codex before 0.147 appends the next record to
    what was written of it (seen on 0.60.1 to 0.120.0; 0.147.0 begins a new line). Then only the
    whole records are returned. A line that is JSON is never split, because the arguments of a
    tool can look like a record.
    """
    if line.find(RECORD, 1) < 0 or parse_line(line) is not None:
        return [line]
    places = [len(line)]
    while len(places) <= _RECORDS_LIMIT and (at := line.rfind(RECORD, 0, places[-1])) >= 0:
        places.append(at)
    found: list[bytes] = []
    while len(places) > 1:
        start = places.pop()
        for number, end in enumerate(places):
            if parse_line(line[start:end]) is not None:
                found.append(line[start:end])
                del places[number + 1 :]
                break
    return found or [line]


class LongLine:
    """A line of any length that is shortened while it is read.

    Of each string, the first STRING_LIMIT bytes are kept, up to a whole character. So the line
    stays valid JSON with all its fields: a prompt behind an image is not lost.
    """

    def __init__(self, limit: int, parts: Iterable[bytes] = ()) -> None:
        """Begin with *parts*; more than *limit* bytes are not kept of the line."""
        self._limit = limit
        self._kept = bytearray()
        self._begin = 0
        """Where the current string, or what is between two strings, begins in `_kept`."""
        self._is_cut = False
        """True if the rest of the current string is left out."""
        self._is_dropped = False
        self._escape = b""
        """A backslash at the end of the last part."""
        for part in parts:
            self.add(part)

    def add(self, part: bytes) -> None:
        """Take the next bytes of the line."""
        if self._is_dropped:
            return
        kept = self._kept
        part = self._escape + part
        # Of an even number of backslashes, each second one is escaped.
        self._escape = b"\\" if (len(part) - len(part.rstrip(b"\\"))) % 2 else b""
        for run in _RUN.finditer(part, 0, len(part) - len(self._escape)):
            start, end = run.span(1)
            room = STRING_LIMIT - len(kept) + self._begin
            if not self._is_cut:
                kept += part[start : min(end, start + room)]
                if end - start > room:
                    self._is_cut = True
                    kept[self._begin :] = _whole_characters(bytes(kept[self._begin :]))
            if run.end() > end:
                kept += b'"'
                self._begin, self._is_cut = len(kept), False
            if len(kept) > self._limit:
                self._is_dropped = True
                kept.clear()
                return

    def shortened(self) -> bytes:
        """Return the shortened line; empty if it is longer than the limit even so."""
        return bytes(self._kept)


_RUN = re.compile(rb'([^"\\]*+(?:\\.[^"\\]*+)*+)"?', re.DOTALL)
"""The bytes up to the next quotation mark that is not escaped, and that mark."""
_CHARACTERS = re.compile(
    rb"[^\\]*+(?:(?:\\[^u]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})[^\\]*+)*+",
    re.DOTALL,
)
"""The whole characters at the start of a JSON string; an escaped surrogate pair is one."""


def _whole_characters(text: bytes) -> bytes:
    """Return the start of a JSON string without a character that is cut at its end."""
    found = _CHARACTERS.match(text.decode("utf-8", "ignore").encode())
    return found[0] if found is not None else b""


def start_of(line: bytes) -> int:
    """Return the offset of `"type":"` in a line that starts as Codex writes it, else -1."""
    # {"timestamp":"2026-11-22T15:21:59.595Z","type":" or, in paginated history, an ordinal first.
    tag = line[40:48]
    if tag == b'"type":"':
        return 40
    return line.find(b'"type":"', 50, 80) if tag == b'"ordinal' else -1


def classify(line: bytes) -> tuple[int, slice]:
    """Return the kind of *line* and its head's place, which is most likely the next line's too."""
    start = start_of(line)
    if start < 0:
        return ODD, NO_HEAD
    place = UNNUMBERED if start == UNNUMBERED.start else slice(start, start + HEAD_BYTES)
    return _kind_of(line[place]), place


def _kind_of(head: bytes) -> int:
    """Return the kind of the lines with this head, and remember it."""
    kind = KNOWN_KINDS.get(head)
    if kind is not None:
        return kind
    if head.startswith(b'"type":"sessi'):
        return META  # Not remembered, because this head contains an id.
    if len(KNOWN_KINDS) > _KINDS_LIMIT:
        KNOWN_KINDS.clear()
    kind = next((kind for start, kind in _KINDS if head.startswith(start)), SKIP)
    if RECORD[:8] in head or head.endswith(_RECORD_STARTS):
        kind = ODD  # A torn record, with another one appended to it.
    return KNOWN_KINDS.setdefault(head, kind)


def has_start(data: bytes, start: bytes, since: int) -> bool:
    """Return True if *start* begins the type of a line in *data* from *since* on.

    The same bytes may occur deeper in a line: the arguments of an MCP tool are JSON themselves.
    """
    at = data.find(start, since)
    while at >= 0:
        if data.count(b"{", data.rfind(b"\n", 0, at) + 1, at) == 1:
            return True
        at = data.find(start, at + 1)
    return False


def last_usual(data: bytes, end: int) -> bytes:
    """Return the start of the last line before *end* that starts as Codex writes it."""
    while end > 0:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        head = data[begin : min(end, begin + 100)]
        if start_of(head) >= 0:
            return head
        end = begin
    return b""


def parse_line(data: bytes | str) -> Json | None:
    """Return *data* parsed; None if it is not a JSON object."""
    try:
        value: Json | None = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def without_instructions(line: bytes) -> bytes:
    """Return a session_meta line without the 20 KB of instructions that newer Codex writes.

    Parsing them too takes 1.07 times the CPU time of a cold index of many short threads.
    """
    if len(line) > 8000:
        start = line.find(b',"base_instructions":{"text":"')
        after = line.rfind(b',"history_mode":"')
        if 0 < start < after:
            return line[:start] + line[after:]
    return line


def counts_in(text: bytes) -> Counts | None:
    """Return the counts of a usage object in JSON; None if they make no sense."""
    try:
        return counts_of(orjson.loads(text))
    except orjson.JSONDecodeError:
        return None


def counts_of(usage: Any) -> Counts | None:
    """Return the counts of a parsed usage object; None if they make no sense."""
    try:
        input_, cached, output, reasoning = _main_counts(usage)
        write = usage.get("cache_write_input_tokens", 0)
    except (KeyError, TypeError):
        return None
    # The bitwise union is negative or too large if any of the numbers is.
    if (
        type(input_) is type(cached) is type(write) is type(output) is type(reasoning) is int
        and 0 <= input_ | cached | write | output | reasoning < _COUNT_LIMIT
    ):
        return input_, cached, write, output, reasoning
    return None


def records_errors(end: Json) -> bool:
    """Return True if the Codex that wrote this `task_complete` records why a turn failed.

    0.107 to 0.144.2 do not, and end a failed turn like any other, without an answer. 0.147.0 and
    later do; their `task_complete` also has the time at which the turn started.
    """
    return "error" in end or "started_at" in end


def user_text(item: Mapping[str, Any]) -> str | None:
    """Return the text of a message, such as a UserMessage item; None if it has no text."""
    texts = [text_of(part, "text") for part in objects_of(item, "content")]
    return "\n".join(text for text in texts if text) or None


def ms_at(line: bytes) -> int:
    """Return the time at the start of a line as ms since 1970, or 0 if there is none."""
    # {"timestamp":"2026-11-22T15:21:59.595Z"
    if not line.startswith(b'{"timestamp":"'):
        return 0
    try:
        return int(datetime.fromisoformat(line[14:38].decode()).timestamp() * 1000)
    except ValueError:
        return 0


def ms_of(text: object) -> int | None:
    """Return a time in ISO 8601 as ms since 1970; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
