"""Json, the type of a parsed JSON object, and functions that read its fields.

Codex's own output and files are foreign input: any field may be missing or of another type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

Json = dict[str, Any]
"""A JSON object as a parser returns it: keys are strings, values are of any JSON type."""


def text_of(data: Mapping[str, Any], key: str) -> str | None:
    """Return the string under *key*; None for an empty string or a value of another type."""
    value = data.get(key)
    return value if isinstance(value, str) and value else None


def object_of(data: Mapping[str, Any], key: str) -> Json:
    """Return the object under *key*; an empty object for a value of another type."""
    value: Json | None = data.get(key)
    return value if isinstance(value, dict) else {}


def objects_of(data: Mapping[str, Any], key: str) -> list[Json]:
    """Return the objects of the list under *key*; an empty list for a value of another type."""
    value = data.get(key)
    if not isinstance(value, list):
        return []
    return [cast(Json, each) for each in cast(list[object], value) if isinstance(each, dict)]
