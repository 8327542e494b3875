"""Change one value in TOML, and no other byte.

tomllib parses the text. This module finds the statements and cuts or inserts
whole ones. tomlkit is not used: when it removes a table, it also removes the
comments after the table, even those that belong to the next one.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mcp_server_codex.cli.clients.config_error import ConfigError, error_at, newline_of

Keys = tuple[str, ...]

_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\r\n\ufeff]|#[^\n]*)*")
_EMPTY_LINE = re.compile(r"[ \t]*\r?\n")


@dataclass(frozen=True, slots=True)
class _Statement:
    """A table header, or a key with its value."""

    path: Keys
    """The path of the table that a header opens, or the full path of a key."""
    is_header: bool
    start: int
    """Offset of the start of the line."""
    value: int
    """Offset of the start of the value; for a header, the end of the header."""
    value_end: int
    end: int
    """Offset of the start of the next line, after any comment on this one."""


def parse(text: str) -> dict[str, Any]:
    """Return the data in *text*.

    Raises:
        ConfigError: *text* is not TOML.
    """
    try:
        return tomllib.loads(text.replace("\ufeff", " ", 1) if text[:1] == "\ufeff" else text)
    except tomllib.TOMLDecodeError as error:
        found = _PLACE.fullmatch(str(error))
        if found is None:
            raise ConfigError(str(error)) from None
        if found[2] is None:
            raise error_at(text, len(text), found[1]) from None
        raise ConfigError(found[1], int(found[2]), int(found[3])) from None


def put(text: str, path: Sequence[str], value: Any) -> str:
    """Return *text* with *value* at *path*; create the tables along *path*.

    Raises:
        ConfigError: A value along *path* is not a table.
    """
    target, eol = tuple(path), newline_of(text)
    table, name = target[:-1], target[-1]
    data, found = parse(text), list(_statements(text))
    for each in found:  # The value is in one statement or in an inline table.
        if not each.is_header and each.path == target[: len(each.path)]:
            return _replace(text, each, target, data, value)
    is_table = isinstance(value, dict)
    if is_table and any(each.path[: len(target)] == target for each in found):
        return put(remove(text, target), target, value)
    headers = [each for each in found if each.is_header and each.path == table]
    if headers and (len(target) > 2 or not is_table):
        inside = [each for each in found if each.path[:-1] == table and not each.is_header]
        after = max([*headers, *inside], key=lambda each: each.start)
        lead = "" if text[: after.end].endswith("\n") else eol
        line = f"{_key(name)} = {_inline(value)}{eol}"
        return text[: after.end] + lead + line + text[after.end :]
    if len(table) > 1 and not any(each.path[: len(table)] == table for each in found):
        return put(text, table, {name: value})
    if is_table:
        return _append(text, target, cast("dict[str, Any]", value), eol)
    return _append(text, table, {name: value}, eol)


def _append(text: str, keys: Keys, table: dict[str, Any], eol: str) -> str:
    """Return *text* with a table appended after an empty line."""
    lines = [f"[{'.'.join(map(_key, keys))}]"]
    lines += [f"{_key(name)} = {_inline(each)}" for name, each in table.items()]
    lead = "" if not text.strip("\ufeff") or text.endswith("\n") else eol
    if text.strip("\ufeff \t\r\n") and not text.endswith(("\n\n", "\n\r\n")):
        lead += eol
    return text + lead + eol.join(lines) + eol


def remove(text: str, path: Sequence[str]) -> str:
    """Return *text* without the value at *path*, including all of its statements."""
    target = tuple(path)
    for each in _statements(text):
        if not each.is_header and each.path == target[: len(each.path)] != target:
            return _replace(text, each, target, parse(text), None)
    gone: list[list[int]] = []
    for each in _statements(text):
        if each.path[: len(target)] == target:
            if gone and not text[gone[-1][1] : each.start].strip():
                gone[-1][1] = each.end
            else:
                gone.append([each.start, each.end])
    for start, end in reversed(gone):
        head, tail = text[:start], text[end:]
        if head.endswith(("\n\n", "\n\r\n")) and (not tail or _EMPTY_LINE.match(tail)):
            head = head[: -2 if head.endswith("\r\n") else -1]
        text = head + tail
    return text


def _replace(text: str, each: _Statement, target: Keys, data: Any, value: Any) -> str:
    """Rewrite the value of one statement, with *value* at *target*, or without it if None."""
    for name in each.path:
        data = data[name]
    rest = target[len(each.path) :]
    written = _with(data, rest, value) if rest else value
    return text[: each.value] + _inline(written) + text[each.value_end :]


def _with(data: Any, path: Keys, value: Any) -> Any:
    if not path:
        return value
    if not isinstance(data, dict):
        raise ConfigError(
            f"cannot add {path[0]!r}: the value that should contain it is not a table"
        )
    table = cast("dict[str, Any]", data)
    if len(path) == 1 and value is None:
        return {name: each for name, each in table.items() if name != path[0]}
    return table | {path[0]: _with(table.get(path[0], {}), path[1:], value)}


def _statements(text: str) -> Generator[_Statement]:
    """Yield all statements of *text*, which must be valid TOML."""
    table: Keys = ()
    at = 0
    while (at := _past(_BLANK, text, at)) < len(text):
        line = text.rfind("\n", 0, at) + 1
        start = max(line, 1 if text[:1] == "\ufeff" else 0)
        if text[at] == "[":
            stop = _end_of(text, at)
            table = _keys(text[at:stop].strip().strip("[]"))
            yield _Statement(table, True, start, stop, stop, _next_line(text, stop))
        else:
            equals = _end_of(text, at, "=")
            value = equals + 1 + len(text[equals + 1 :]) - len(text[equals + 1 :].lstrip(" \t"))
            stop = _end_of(text, value)
            path = table + _keys(text[at:equals])
            yield _Statement(path, False, start, value, stop, _next_line(text, stop))
        at = _next_line(text, stop)


def _end_of(text: str, at: int, until: str = "\n#") -> int:
    """Return the end of the element at *at*: before a character of *until* outside of brackets."""
    depth = 0
    while at < len(text):
        if text.startswith(('"""', "'''"), at):
            at = _end_of_long_string(text, at)
        elif text[at] in "\"'":
            at = _end_of_string(text, at)
        elif text[at] in until and depth == 0:
            break
        elif text[at] == "#":
            at = _next_line(text, at)
        else:
            depth += (text[at] in "[{") - (text[at] in "]}")
            at += 1
    return len(text[:at].rstrip(" \t\r")) if until == "\n#" else at


def _end_of_string(text: str, at: int) -> int:
    quote = text[at]
    at += 1
    while text[at] != quote:
        at += 2 if text[at] == "\\" and quote == '"' else 1
    return at + 1


def _end_of_long_string(text: str, at: int) -> int:
    quote = text[at] * 3
    at += 3
    while not text.startswith(quote, at):
        at += 2 if text[at] == "\\" and quote == '"""' else 1
    at += 3
    while text[at : at + 1] == quote[0]:  # Up to two quotes may precede the closing three.
        at += 1
    return at


def _next_line(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1


def _past(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _keys(dotted: str) -> Keys:
    """Return the parts of a dotted key."""
    names: list[str] = []
    data: Any = tomllib.loads(f"{dotted.strip()} = 0")
    while isinstance(data, dict):
        name, data = next(iter(cast("dict[str, Any]", data).items()))
        names.append(name)
    return tuple(names)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _string(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _inline(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _string(value)
        case int() | float():
            return repr(value)
        case list():
            return f"[{', '.join(map(_inline, cast('list[Any]', value)))}]"
        case dict():
            table = cast("dict[str, Any]", value)
            inside = ", ".join(f"{_key(name)} = {_inline(each)}" for name, each in table.items())
            return f"{{ {inside} }}" if inside else "{}"
        case _:
            raise ConfigError(f"cannot write a value of the type {type(value).__name__} here")
