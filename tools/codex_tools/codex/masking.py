"""Mask secrets in texts that are shown, and shorten long texts."""

from __future__ import annotations

import functools
import json
import os
import re
from typing import cast

from codex_tools.codex.secret_patterns import MASK, is_ordinary, is_secret, mask_patterns, rank_of

_SAMPLE = 120
"""Characters of a value that decide whether it is masked."""

_SECRET_PART = re.compile(
    r"(?:^|[^A-Za-z])(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?![A-Za-z])", re.IGNORECASE
)

_SHORTEST = 8
"""Characters of the shortest environment value that is masked; shorter ones match too much."""

_LONG = 16
"""Characters from which on an environment value with a secret's name is masked whatever it is."""

_STRUCTURE = frozenset(("id", "type", "status", "event", "kind", "time", "event_type", "role"))
"""Fields of an event, an item or a record that say what it is; so do all names that end in _id."""


def mask(text: str) -> str:
    """Return *text* with everything that looks like a secret replaced by [secret].

    The values of environment variables of this process with a secret's name are replaced too.
    """
    known = _known()
    if known is not None:
        text = known.sub(MASK, text)
    return mask_patterns(text)


def mask_values(value: object, name: str = "", *, is_record: bool = False) -> object:
    """Return JSON data with the secrets in its texts replaced, and its structure unchanged.

    Args:
        value: The data.
        name: The name of the property that has this value.
        is_record: True if this is an event, an item or a record, whose ids and types are kept.
    """
    match value:
        case str():
            return MASK if _is_secret_of(name, value, given=False) else mask(value)
        case dict():
            members = cast(dict[str, object], value)
            return {
                key: each
                if is_record and (key in _STRUCTURE or key.endswith("_id"))
                else mask_values(each, key, is_record=is_record and key == "item")
                for key, each in members.items()
            }
        case list():
            items = cast(list[object], value)
            before = [None, *items]
            return [
                MASK if _is_secret_of(option, each, given=True) else mask_values(each, name)
                for each, option in zip(items, map(_option_of, before), strict=False)
            ]
        case _:
            return value


def _option_of(value: object) -> str:
    """Return *value* if it is an option of a command, such as --password; else an empty string."""
    if isinstance(value, str) and value.startswith("-") and "=" not in value:
        return value
    return ""


def _is_secret_of(name: str, value: object, *, given: bool) -> bool:
    if not isinstance(value, str):
        return False
    rank = rank_of(name)
    return rank > 0 and is_secret(value[:_SAMPLE], rank, quoted=True, given=given)


def mask_line(line: bytes) -> str:
    """Return a line of JSON as text with secrets replaced; it stays valid JSON.

    A line without secrets is returned as it is, and one that is not JSON is masked as text.
    """
    import orjson  # Not needed by the commands for people, which find out whether it works.

    def fragment(number: str) -> orjson.Fragment:
        return orjson.Fragment(number)

    text = line.decode("utf-8", "replace").strip()
    try:
        # A fragment is written as it was read: orjson itself refuses an integer above 64 bits.
        value = json.loads(text, parse_float=fragment, parse_int=fragment)
        masked = mask_values(value, is_record=True)
        return text if masked == value else orjson.dumps(masked).decode()
    except (ValueError, TypeError, RecursionError):
        return mask(text)


@functools.cache
def _known() -> re.Pattern[str] | None:
    values = {value for name, value in os.environ.items() if _is_known_secret(name, value)}
    longest_first = sorted(values, key=len, reverse=True)
    return re.compile("|".join(map(_as_pattern, longest_first))) if values else None


def _is_known_secret(name: str, value: str) -> bool:
    if len(value) < _SHORTEST or is_ordinary(value):
        return False
    rank = rank_of(name)
    if not rank and _SECRET_PART.search(name):  # As in TOKEN_OF_THE_BOT.
        rank = 1
    if rank and len(value) >= _LONG and not re.search(r"\s", value):
        return True  # Also one of words, such as a passphrase; it occurs nowhere else.
    return rank > 0 and is_secret(value[:_SAMPLE], rank, quoted=True, given=True)


def _as_pattern(value: str) -> str:
    """Return the pattern of an environment value; a value of letters only is a word of its own."""
    pattern = re.escape(value)
    return rf"(?<![A-Za-z]){pattern}(?![A-Za-z])" if value.isalpha() else pattern


def shorten(text: str, limit: int, whole: str | None = None) -> str:
    """Return *text*, or its head and tail around a marked gap, in at most *limit* characters.

    The gap names *whole*, the URI of the resource with the whole text, unless it is None.
    """
    if len(text) <= limit:
        return text
    gap, at = "", "" if whole is None else f"; all of it is in the resource {whole}"
    for _ in range(2):  # The number in the gap changes the length of the gap.
        gap = f"\n[… {len(text) - limit + len(gap):,} characters left out{at} …]\n"
    room = max(limit - len(gap), 0)
    tail = room // 3
    return text[: room - tail] + gap + text[len(text) - tail :]


def is_cut_of(short: str, text: str) -> bool:
    """Return True if *short* is *text* with a marked gap, as `shorten` returns it."""
    head, gap, rest = short.partition("\n[… ")
    tail = rest.partition(" …]\n")[2]
    is_cut = bool(gap) and len(text) > len(head) + len(tail)
    return is_cut and text.startswith(head) and text.endswith(tail)


def quote(text: str, limit: int = 2000) -> str:
    """Return *text* for a message: secrets are masked, then the text is shortened."""
    if len(text) > 20 * limit:
        return shorten(mask(text[: 10 * limit]) + mask(text[-10 * limit :]), limit)
    return shorten(mask(text), limit)
