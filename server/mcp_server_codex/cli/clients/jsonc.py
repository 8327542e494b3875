"""Change one value in JSON with comments and trailing commas, and no other byte.

No package that we could use keeps all bytes of a file. So this module records the
position of each value and cuts or inserts text there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from mcp_server_codex.cli.clients.config_error import error_at, newline_of

_SPACE = re.compile(r"(?:\A\ufeff)?[ \t\r\n]*")
_SPACE_AND_COMMENTS = re.compile(r"(?:\A\ufeff)?(?:[ \t\r\n]|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_LINE_END = re.compile(r"[ \t\r]*(?:\n|\Z)")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_LITERAL = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")
_DEEPEST = 200
"""Nesting levels that are accepted."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its position in the text."""

    start: int
    end: int
    value: Any
    members: tuple[Member, ...] | None = None
    """The members of an object; None for any other value."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an object: its name, its value and the position of the comma after it."""

    name: str
    start: int
    colon: int
    node: Node
    comma: int | None


def parse(text: str, *, comments: bool) -> dict[str, Any]:
    """Return the object in *text*; an empty text is an empty object.

    Raises:
        ConfigError: *text* is not JSON, or not an object.
    """
    node = _Reader(text, comments=comments).document()
    if node is None:
        return {}
    if node.members is None:
        raise error_at(text, node.start, "the file is not a JSON object")
    return cast("dict[str, Any]", node.value)


def put(text: str, path: Sequence[str], value: Any) -> str:
    """Return *text* with *value* at *path*; create the objects along *path*.

    Raises:
        ConfigError: A value along *path* is not an object.
    """
    eol = newline_of(text)
    node = _Reader(text, comments=True).document()
    if node is None:
        whole = _written(_nested(path, value), "", "  ", eol, spread=True)
        gap = eol if text.strip("\ufeff \t\r\n") and not text.endswith("\n") else ""
        return text + gap + whole + eol
    unit = _unit(text, node)
    for at, name in enumerate(path):
        if node.members is None:
            raise error_at(text, node.start, f"{'.'.join(path[:at])} is not a JSON object")
        found = _member(node, name)
        if found is None:
            return _insert(text, node, name, _nested(path[at + 1 :], value), unit, eol)
        node = found.node
    written = _written(value, _line_indent(text, node.start), unit, eol, spread="\n" in text)
    return text[: node.start] + written + text[node.end :]


def remove(text: str, path: Sequence[str]) -> str:
    """Return *text* without the member at *path*, which must exist."""
    node = _Reader(text, comments=True).document()
    for name in path[:-1]:
        found = _member(node, name) if node else None
        node = found.node if found else None
    if node is None or node.members is None or (gone := _member(node, path[-1])) is None:
        return text
    index = node.members.index(gone)
    before = node.members[index - 1] if index else None
    start = len(text[: gone.start].rstrip(" \t\r\n"))
    end = gone.node.end if gone.comma is None else gone.comma + 1
    comments = _COMMENT.findall(text, _end_before(node, index), start)
    if comments and comments[-1].startswith("//") and not _LINE_END.match(text, end):
        start = gone.start  # A // comment needs the end of its line.
    head, tail = text[:start], text[end:]
    if gone.comma is None and before is not None and before.comma is not None:
        head = head[: before.comma] + head[before.comma + 1 :]
    if len(node.members) == 1 and not head[node.start + 1 :].strip():
        inner = tail[: node.end - 1 - end]
        if not inner.strip():
            return text[: node.start] + "{}" + text[node.end :]
    return head + tail


def _nested(path: Sequence[str], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def _member(node: Node, name: str) -> Member | None:
    """Return the last member called *name*: JSON parsers use the last of several."""
    return next((each for each in reversed(node.members or ()) if each.name == name), None)


def _end_before(node: Node, index: int) -> int:
    """Return the end of the text that precedes the member at *index*."""
    before = node.members[index - 1] if node.members and index else None
    if before is None:
        return node.start + 1
    return before.node.end if before.comma is None else before.comma + 1


def _insert(text: str, node: Node, name: str, value: Any, unit: str, eol: str) -> str:
    """Return *text* with a member added after the others and the comments after them."""
    tail = len(text[: node.end - 1].rstrip(" \t\r\n"))
    around = _line_indent(text, node.start)
    last = node.members[-1] if node.members else None
    if last is None:
        indent = around + unit
        member = f"{json.dumps(name)}: {_written(value, indent, unit, eol, spread=True)}"
        return f"{text[:tail]}{eol}{indent}{member}{eol}{around}{text[node.end - 1 :]}"
    spread = "\n" in text[node.start : last.start] + text[last.node.end : node.end]
    indent = _line_indent(text, last.start) if spread else around
    gap = " " if spread or text[last.colon + 1].isspace() else ""
    written = _written(value, indent, unit, eol, spread=spread, gap=gap)
    member = f"{json.dumps(name)}:{gap}{written}"
    lead = eol + indent if spread else gap
    if last.comma is None:
        end = last.node.end
        return f"{text[:end]},{text[end:tail]}{lead}{member}{text[tail:]}"
    return f"{text[:tail]}{lead}{member},{text[tail:]}"


def _written(value: Any, indent: str, unit: str, eol: str, *, spread: bool, gap: str = " ") -> str:
    if not spread:
        return json.dumps(value, separators=(f",{gap}", f":{gap}"), ensure_ascii=False)
    lines = json.dumps(value, indent=unit, ensure_ascii=False).split("\n")
    return (eol + indent).join(lines)


def _unit(text: str, root: Node) -> str:
    """Return the indentation of one level, taken from the first member."""
    if root.members and "\n" in text[root.start : root.members[0].start]:
        return _line_indent(text, root.members[0].start) or "  "
    return "  "


def _line_indent(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at].removeprefix("\ufeff")
    return line[: len(line) - len(line.lstrip(" \t"))]


class _Reader:
    """A parser that records the position of every value."""

    def __init__(self, text: str, *, comments: bool) -> None:
        self._text = text
        self._space = _SPACE_AND_COMMENTS if comments else _SPACE
        self._comments = comments

    def document(self) -> Node | None:
        at = self._skip(0)
        if at == len(self._text):
            return None
        node = self._node(at, 0)
        end = self._skip(node.end)
        if end != len(self._text):
            self._fail(end, "expected the end of the file")
        return node

    def _node(self, at: int, depth: int) -> Node:
        if depth > _DEEPEST:
            self._fail(at, f"nested too deeply: more than {_DEEPEST} levels")
        match self._text[at : at + 1]:
            case "{":
                return self._object(at, depth)
            case "[":
                return self._array(at, depth)
            case '"':
                return self._string(at)
            case _:
                found = _LITERAL.match(self._text, at)
                if found is None:
                    self._fail(at, "expected a value")
                return Node(at, found.end(), json.loads(found[0]))

    def _object(self, start: int, depth: int) -> Node:
        members: list[Member] = []
        at = self._skip(start + 1)
        while self._text[at : at + 1] != "}":
            if self._text[at : at + 1] != '"':
                self._fail(at, 'expected a name in quotes or "}"')
            name = self._string(at)
            colon = self._skip(name.end)
            if self._text[colon : colon + 1] != ":":
                self._fail(colon, 'expected ":"')
            node = self._node(self._skip(colon + 1), depth + 1)
            comma, after = self._comma(node.end, "}")
            members.append(Member(str(name.value), at, colon, node, comma))
            at = after
        value = {each.name: each.node.value for each in members}
        return Node(start, at + 1, value, tuple(members))

    def _array(self, start: int, depth: int) -> Node:
        values: list[Any] = []
        at = self._skip(start + 1)
        while self._text[at : at + 1] != "]":
            node = self._node(at, depth + 1)
            values.append(node.value)
            _, at = self._comma(node.end, "]")
        return Node(start, at + 1, values)

    def _comma(self, end: int, close: str) -> tuple[int | None, int]:
        """Return the position of the comma after a value, if any, and of the next token."""
        at = self._skip(end)
        if self._text[at : at + 1] == close:
            return None, at
        if self._text[at : at + 1] != ",":
            self._fail(at, f'expected "," or "{close}"')
        after = self._skip(at + 1)
        if self._text[after : after + 1] == close and not self._comments:
            self._fail(at, "a comma after the last value is not allowed here")
        return at, after

    def _string(self, at: int) -> Node:
        found = _STRING.match(self._text, at)
        if found is None:
            self._fail(at, "this string has no closing quote")
        try:
            return Node(at, found.end(), json.loads(found[0]))
        except ValueError:
            self._fail(at, "this string contains an invalid escape")

    def _skip(self, at: int) -> int:
        found = self._space.match(self._text, at)
        return found.end() if found else at

    def _fail(self, at: int, problem: str) -> NoReturn:
        if self._text[at : at + 2] in ("//", "/*"):
            problem = (
                "this comment has no end" if self._comments else "comments are not allowed here"
            )
        elif at >= len(self._text):
            problem = "unexpected end of the file"
        raise error_at(self._text, at, problem)
