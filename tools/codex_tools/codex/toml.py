"""Write single values as TOML, for Codex's `-c key=value`."""

from __future__ import annotations

from typing import cast

import orjson

DEPTH_LIMIT = 32
"""Levels of nested lists and tables, at most."""


def to_toml(value: object, depth: int = 0) -> str:
    """Return *value* as one line of TOML that cannot set anything but its own key.

    Raises:
        ValueError: *value* is or contains null, which TOML lacks, has an integer of more than
            64 bits, or is nested too deeply.
    """
    if depth > DEPTH_LIMIT:
        raise ValueError(f"nested deeper than {DEPTH_LIMIT} levels")
    match value:
        case bool():
            return "true" if value else "false"
        case int() if not -(2**63) <= value < 2**63:
            raise ValueError("an integer must fit into 64 bits (-2**63 to 2**63 - 1)")
        case int() | float():
            return repr(value)
        case str():
            # A TOML basic string is a JSON string, except for DEL.
            return orjson.dumps(value).decode().replace("\x7f", "\\u007f")
        case list():
            inner = [to_toml(each, depth + 1) for each in cast(list[object], value)]
            return f"[{', '.join(inner)}]"
        case dict():
            pairs = cast(dict[str, object], value).items()
            inner = [f"{to_toml(k)} = {to_toml(v, depth + 1)}" for k, v in pairs]
            return f"{{{', '.join(inner)}}}"
        case _:
            raise ValueError("null cannot be written in Codex's configuration (TOML)")
