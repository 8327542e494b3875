"""One line of a rollout: its kind by its head, its time, its numbers.

Lines are told by their first bytes, where strings from elsewhere cannot reach,
and by slices: parsing each would take several times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, cast

import orjson

from codex_tools.codex.json_object import Json

Counts = tuple[int, int, int, int, int]
"""Input, cached, cache-write, output and reasoning tokens of one reading."""

_MOST = 2**50
_MOST_KEPT = 10_000

HEAD_BYTES = 44
"""From `"type":"` on, so much tells an event_msg by six letters of the payload's type."""
NOWHERE = slice(0, 0)
FLAT = slice(40, 40 + HEAD_BYTES)
"""Where the type stands without an ordinal: {"timestamp":"2026-11-22T15:21:59.595Z","type":"""
PASS, COUNT, RECORD, CONTEXT, ITEM, PROMPT, AGENT, STARTED, COMPLETED, RARE, META, ODD = range(12)
"""What a line is to a reader."""
_KINDS = (
    (b'"type":"event_msg","payload":{"type":"token_', COUNT),
    (b'"type":"event_msg","payload":{"type":"item_c', ITEM),
    (b'"type":"event_msg","payload":{"type":"user_m', PROMPT),
    (b'"type":"event_msg","payload":{"type":"agent_', AGENT),
    (b'"type":"event_msg","payload":{"type":"task_s', STARTED),
    (b'"type":"event_msg","payload":{"type":"task_c', COMPLETED),
    (b'"type":"event_msg","payload":{"type":"turn_a', RARE),
    (b'"type":"token', RECORD),
    (b'"type":"turn_', CONTEXT),
)
KNOWN_KINDS: dict[bytes, int] = {}
"""The kinds of lines by their heads, as far as they were met."""

COUNT_HEAD = b'token_count","info":{"total_token_usage":{'
RECORD_HEAD = b'token_usage_record","payload":{"thread_id":"%b",'
COMPACTED = "Compact task completed"
"""What 0.60.1 lets the agent say after a compaction; it is no answer."""
LAST_HEAD = b',"last_token_usage":'
LIMITS = b'"primary":{'
"""What a token_count has where rate limits are filled in."""
_hours: dict[bytes, int] = {}
"""When an hour begins (ms), by the 28 bytes of a line that tell it."""
_MINUTES = {b"%02d" % n: n * 60_000 for n in range(60)}
_SECONDS = {b"%02d" % n: n * 1000 for n in range(60)}
_MILLIS = {b"%03d" % n: n for n in range(1000)}
_time_parts = struct.Struct("28s2sx2sx3s").unpack_from
_main_counts = itemgetter(
    "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_output_tokens"
)


def user_text(item: Mapping[str, Any]) -> str | None:
    """Return the text of a UserMessage item."""
    content: object = item.get("content")
    parts = cast("list[object]", content) if isinstance(content, list) else []
    texts = [text_of(cast(Json, part), "text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if text) or None


def without_instructions(line: bytes) -> bytes:
    """Return a session_meta less the 20 KB of instructions that newer ones carry."""
    if len(line) > 8000:
        start = line.find(b',"base_instructions":{"text":"')
        after = line.rfind(b',"history_mode":"')
        if 0 < start < after:
            return line[:start] + line[after:]
    return line


def loads(data: bytes | str) -> Json | None:
    """Return *data* parsed, or None if it is no JSON object."""
    try:
        value: Json | None = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def counts_in(text: bytes) -> Counts | None:
    """Return the numbers of a usage in JSON, or None if they make no sense."""
    try:
        usage = orjson.loads(text)
        input_, cached, output, reasoning = _main_counts(usage)
        write = usage.get("cache_write_input_tokens", 0)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    # A union below 0 or too large tells of any that is.
    if (
        type(input_) is type(cached) is type(write) is type(output) is type(reasoning) is int
        and 0 <= input_ | cached | write | output | reasoning < _MOST
    ):
        return input_, cached, write, output, reasoning
    return None


def text_of(data: Mapping[str, Any], key: str) -> str | None:
    """Return the text under *key*; None for anything else, and for no text."""
    value = data.get(key)
    return value if isinstance(value, str) and value else None


def inner(data: Mapping[str, Any], key: str) -> Json:
    """Return the object under *key*; an empty one for anything else."""
    value: Json | None = data.get(key)
    return value if isinstance(value, dict) else {}


def start_of(line: bytes) -> int:
    """Return where `"type":"` is in a line that begins as Codex writes them, or -1."""
    # {"timestamp":"2026-11-22T15:21:59.595Z","type":" or, paginated, an ordinal before it.
    tag = line[40:48]
    if tag == b'"type":"':
        return 40
    return line.find(b'"type":"', 50, 80) if tag == b'"ordinal' else -1


def last_usual(data: bytes, end: int) -> bytes:
    """Return the start of the last line before *end* that begins as Codex writes them."""
    while end > 0:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        head = data[begin : min(end, begin + 100)]
        if start_of(head) >= 0:
            return head
        end = begin
    return b""


def classify(line: bytes) -> tuple[int, slice]:
    """Return what *line* is, and where its head is: most likely the next one's too."""
    start = start_of(line)
    if start < 0:
        return ODD, NOWHERE
    head = FLAT if start == FLAT.start else slice(start, start + HEAD_BYTES)
    return _kind_of(line[head]), head


def _kind_of(head: bytes) -> int:
    """Return what lines are that have *head*, and keep it."""
    kind = KNOWN_KINDS.get(head)
    if kind is not None:
        return kind
    if head.startswith(b'"type":"sessi'):
        return META  # Not kept: an id is in it.
    if len(KNOWN_KINDS) > _MOST_KEPT:
        KNOWN_KINDS.clear()
    kind = next((kind for begin, kind in _KINDS if head.startswith(begin)), PASS)
    return KNOWN_KINDS.setdefault(head, kind)


def ms_at(line: bytes) -> int:
    """Return the time of a line that begins as Codex writes them, in ms since 1970, or 0."""
    try:
        hour, minute, second, ms = _time_parts(line)
        start = _hours.get(hour) or _hour(hour)
        return start + _MINUTES[minute] + _SECONDS[second] + _MILLIS[ms]
    except (KeyError, ValueError, struct.error):
        return 0


def _hour(head: bytes) -> int:
    """Return when the hour of `{"timestamp":"2026-11-22T15:` begins, and keep it.

    Raises:
        ValueError: It is something else.
    """
    if not head.startswith(b'{"timestamp":"'):
        raise ValueError
    if len(_hours) > _MOST_KEPT:
        _hours.clear()
    hour = datetime.fromisoformat(head[14:].decode("ascii") + "00+00:00")
    return _hours.setdefault(head, int(hour.timestamp()) * 1000)


def ms_of(text: object) -> int | None:
    """Return a time in ISO 8601 as ms since 1970; None if it is none."""
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
