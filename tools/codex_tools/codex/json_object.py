"""Json, the type of a parsed JSON object, and functions that read its fields.

Codex's own output and files are foreign input: any field may be missing or of another type.
`read_exactly` and `write_exactly` keep integers of any length; orjson refuses to write those above
64 bits, and reads them as the nearest float.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
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


class NotExact(ValueError):
    """A JSON text has no exact value: a key twice in one object, or a number beyond a double."""


_LONG_NUMBER = re.compile(rb"\d{16}|\d[eE]")


def read_exactly(text: str | bytes, *, unique_keys: bool = True) -> Any:
    """Return the value of a JSON text, integers with all their digits.

    A number with a fraction becomes the nearest double, as with any JSON reader. A number above
    2^53 that is an integer keeps its value, even if it is written with a fraction or an exponent.

    Args:
        text: The text.
        unique_keys: False to take the last value where an object has the same key twice.

    Raises:
        NotExact: A number is beyond the range of a double, or an object has the same key twice.
        ValueError: The text is not JSON.
    """
    import orjson  # Here, because the doctor imports this file to find out whether orjson works.

    found = None
    try:
        found = orjson.loads(text)  # Strict: no NaN, no lone surrogates, no deep nesting.
    except orjson.JSONDecodeError as error:
        if "infinity" not in str(error):  # What orjson says of a number beyond a double.
            raise
    else:
        data = text if isinstance(text, bytes) else text.encode()
        if not unique_keys and not _LONG_NUMBER.search(data):
            return found
    try:
        exact = json.loads(
            text,
            parse_int=_integer,
            parse_float=_number,
            object_pairs_hook=_object_of_pairs if unique_keys else None,
        )
    except RecursionError:
        raise NotExact("it is nested too deeply") from None
    if found is None and exact is not None:  # The strict parser has not seen its texts.
        json.dumps(exact, ensure_ascii=False).encode()
    return exact


def write_exactly(value: object, default: Callable[[Any], Any] | None = None) -> bytes:
    """Return *value* as JSON, integers with all their digits.

    Raises:
        TypeError: JSON cannot express the value.
    """
    import orjson

    try:
        return orjson.dumps(value, default=default)
    except TypeError:
        try:
            return json.dumps(
                value, default=default, ensure_ascii=False, allow_nan=False, separators=(",", ":")
            ).encode()
        except (ValueError, RecursionError) as error:
            raise TypeError(str(error)) from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python reads at most 4,300 digits.
        raise NotExact(f"the integer {text[:20]}… has {len(text):,} digits") from None


def _number(text: str) -> int | float:
    found = float(text)
    if math.isinf(found):
        raise NotExact(f"the number {text[:40]} is too large for a double")
    if found == 0 and re.search(r"[1-9]", re.split("[eE]", text)[0]):
        raise NotExact(f"the number {text[:40]} is too small for a double")
    if abs(found) >= 2**53:
        exact = Decimal(text)
        if exact != Decimal(found) and exact == exact.to_integral_value():
            return int(exact)
    return found


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise NotExact(f"an object has the key {json.dumps(key[:100])} twice")
            seen.add(key)
    return found
