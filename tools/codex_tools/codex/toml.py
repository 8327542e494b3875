"""Values as TOML, each closed in itself."""

from __future__ import annotations

from typing import cast

import orjson

DEPTH_LIMIT = 32
"""How deep lists and tables may be nested."""


def to_toml(value: object, depth: int = 0) -> str:
    """Return *value* in one line of TOML, from which it cannot reach past its key.

    Raises:
        ValueError: It is null, which TOML lacks, too large, or nested too deeply.
    """
    if depth > DEPTH_LIMIT:
        raise ValueError(f"nested deeper than {DEPTH_LIMIT} levels")
    match value:
        case bool():
            return "true" if value else "false"
        case int() if not -(2**63) <= value < 2**63:
            raise ValueError("a whole number has 64 bits at most")
        case int() | float():
            return repr(value)
        case str():
            # A TOML basic string is a JSON string, but for DEL.
            return orjson.dumps(value).decode().replace("\x7f", "\\u007f")
        case list():
            inner = [to_toml(each, depth + 1) for each in cast(list[object], value)]
            return f"[{', '.join(inner)}]"
        case dict():
            pairs = cast(dict[str, object], value).items()
            inner = [f"{to_toml(k)} = {to_toml(v, depth + 1)}" for k, v in pairs]
            return f"{{{', '.join(inner)}}}"
        case _:
            raise ValueError("null has no form in Codex's configuration")
