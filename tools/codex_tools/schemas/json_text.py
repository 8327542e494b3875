"""Write and compare values as JSON."""

from __future__ import annotations

import json

import orjson


def to_json(value: object) -> str | None:
    """Return *value* as JSON with sorted keys, or None if JSON cannot express it."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        pass
    try:  # An integer above 64 bits.
        text = json.dumps(
            value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        text.encode()
        return text
    except (TypeError, ValueError, RecursionError):
        return None


def cut(message: str, limit: int) -> str:
    """Return the first *limit* characters of *message*, and "…" if there are more."""
    return message if len(message) <= limit else f"{message[:limit]}…"


def show(value: object) -> str:
    """Return *value* as JSON for a message, at most 200 characters of it."""
    return cut(to_json(value) or "(too large to be shown)", 200)


def is_equal(one: object, other: object) -> bool:
    """Return True if two values are equal as JSON: 1 equals 1.0, but not true."""
    return isinstance(one, bool) == isinstance(other, bool) and (
        one == other if isinstance(one, int | float) else to_json(one) == to_json(other)
    )
