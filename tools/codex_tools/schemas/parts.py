"""Build the parts of a strict schema and check OpenAI's limits on all of them.

The limits are OpenAI's (developers.openai.com/api/docs/guides/structured-outputs,
"Supported schemas", as of October 2026).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from codex_tools.codex.errors import InvalidOutputSchema
from codex_tools.codex.json_object import Json
from codex_tools.schemas.json_text import cut, is_equal, show, to_json
from codex_tools.schemas.node import MAX_DEPTH, MAX_PATH, Node, Unsatisfiable
from codex_tools.schemas.restore import KEY, VALUE, Entries, Leaf, Shape, Text, Union
from codex_tools.schemas.validation import Validator

_LEVELS = 10
"""Levels of nested objects and lists that OpenAI takes."""
_PROPERTIES, _CHARACTERS, _VALUES = 5_000, 120_000, 1_000
"""Properties, characters in names and values, and enum values of a whole schema."""
_LONG_ENUM, _LONG_ENUM_CHARACTERS = 250, 15_000
"""An enum of more values than the first may have at most as many characters as the second."""
_FORMATS = (
    *("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid"),
)
_BOUNDS = ("multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum")
_DESCRIBED_BOUNDS = ("minLength", "maxLength", "minProperties", "maxProperties")
"""Keywords that strict mode lacks; the description gives them to the model."""
NULL: Json = {"type": "null"}


@dataclass(frozen=True, slots=True)
class Part:
    """A schema as it is sent, and the shape of its answers."""

    sent: Json
    shape: Shape


@dataclass(frozen=True, slots=True)
class Position:
    """The position of a part: its path in the caller's schema, its level in the sent one.

    The level counts nested objects and lists, the depth all nested schemas.
    """

    path: str
    level: int
    depth: int = 0

    def inside(self, path: str, levels: int = 0) -> Position:
        """Return the position of the inner schema at *path*, *levels* levels deeper.

        Raises:
            InvalidOutputSchema: It is nested more than MAX_DEPTH schemas deep.
        """
        if self.depth >= MAX_DEPTH:
            raise InvalidOutputSchema(
                path, f"schemas are nested more than {MAX_DEPTH} levels deep; ask for less"
            )
        return Position(cut(path, MAX_PATH), self.level + levels, self.depth + 1)

    def check_level(self) -> None:
        """Raise `InvalidOutputSchema` if OpenAI refuses an object or list at this level."""
        if self.level > _LEVELS:
            raise InvalidOutputSchema(
                self.path,
                f"objects and lists would be nested more than {_LEVELS} levels deep, which OpenAI"
                " refuses; make the schema flatter, or use {} here to get any JSON",
            )


class Tally:
    """The counts that OpenAI limits over the whole schema.

    Each method raises `InvalidOutputSchema` if its count is above the limit.
    """

    def __init__(self) -> None:
        self._properties = self._characters = self._values = 0

    def add_names(self, path: str, *names: str, properties: bool = True) -> None:
        """Count *names* of properties, or of definitions if not *properties*."""
        self._properties += len(names) if properties else 0
        if self._properties > _PROPERTIES:
            raise InvalidOutputSchema(
                path,
                f"OpenAI takes at most {_PROPERTIES:,} properties in all; up to this place, the"
                f" schema has {self._properties:,}. Ask for fewer, or for a list of entries with a"
                " name and a value each",
            )
        self._add_characters(path, sum(map(len, names)))

    def add_values(self, path: str, values: list[object], *, is_const: bool) -> None:
        """Count the values of an enum or a const."""
        characters = sum(len(each) for each in values if isinstance(each, str))
        self._values += 0 if is_const else len(values)
        problem = ""
        if self._values > _VALUES:
            problem = (
                f"OpenAI takes at most {_VALUES:,} enum values in all; up to this place, the"
                f" schema has {self._values:,}"
            )
        elif len(values) > _LONG_ENUM and characters > _LONG_ENUM_CHARACTERS:
            problem = (
                f"OpenAI takes at most {_LONG_ENUM_CHARACTERS:,} characters in an enum of more"
                f" than {_LONG_ENUM} values; this one has {characters:,}"
            )
        if problem:
            raise InvalidOutputSchema(
                path,
                f"{problem}. Ask for a string and name the values in the prompt or in a file",
            )
        self._add_characters(path, characters)

    def _add_characters(self, path: str, characters: int) -> None:
        self._characters += characters
        if self._characters > _CHARACTERS:
            raise InvalidOutputSchema(
                path,
                f"OpenAI takes at most {_CHARACTERS:,} characters in all names of properties and"
                " $defs, enum and const values; up to this place, the schema has"
                f" {self._characters:,}. Shorten them or ask for less",
            )


def object_of(properties: Json, required: list[str] | None = None) -> Json:
    """Return a closed object with *properties*; strict mode requires all of them."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties] if required is None else required,
        "additionalProperties": False,
    }


def entries_of(key: Part, value: Part, least: float, most: float, description: str) -> Part:
    """Return a list of entries with a key and a value, which replaces unnamed keys."""
    sent: Json = {
        "type": "array",
        "description": description,
        "items": object_of({KEY: key.sent, VALUE: value.sent}),
    }
    sent |= {"minItems": least} if least else {}
    sent |= {"maxItems": most} if most != float("inf") else {}
    return Part(sent, Entries(key.shape, value.shape, least, most))


def text_of(description: str, shape: Text) -> Part:
    """Return a string that holds JSON, for values that no strict schema can describe."""
    return Part({"type": "string", "description": f"{description}, written as JSON text."}, shape)


def any_of(parts: list[Part]) -> Part:
    """Return a part whose value is one of *parts*."""
    if len(parts) == 1:
        return parts[0]
    return Part({"anyOf": [each.sent for each in parts]}, Union([each.shape for each in parts]))


def optional(sent: Json) -> Json:
    """Return a schema for *sent* or null; null means that the property is left out."""
    kind = sent.get("type")
    if isinstance(kind, list):
        return sent if "null" in kind else sent | {"type": [*cast(list[str], kind), "null"]}
    if "anyOf" in sent:
        has_null = any("null" in (each.get("type"), *_listed(each)) for each in sent["anyOf"])
        return sent if has_null else sent | {"anyOf": [*sent["anyOf"], NULL]}
    if kind == "null":
        return sent
    if kind not in (None, "object", "array") and not sent.keys() & {"enum", "const"}:
        return sent | {"type": [kind, "null"]}
    inner = {key: each for key, each in sent.items() if key != "description"}
    description = {"description": sent["description"]} if "description" in sent else {}
    return description | {"anyOf": [inner, NULL]}


def _listed(sent: Json) -> list[str]:
    kind = sent.get("type")
    return cast(list[str], kind) if isinstance(kind, list) else []


def annotated(part: Part, node: Node) -> Part:
    """Return *part* with the node's title and description.

    The description also holds the constraints that strict mode cannot express.
    """
    if "$ref" in part.sent:
        return part  # Strict mode takes no keywords beside $ref.
    keywords = node.keywords
    lacking = [*_DESCRIBED_BOUNDS]
    lacking += ["pattern"] if not _is_plain(keywords.get("pattern", "")) else []
    lacking += ["format"] if keywords.get("format") not in _FORMATS else []
    if node.choices or node.conditions:
        lacking.clear()  # Each alternative describes them itself.
    words = [f"{key} {show(keywords[key])}" for key in lacking if key in keywords] + node.words
    if node.excluded and lacking and not keywords.keys() & {"enum", "const"}:
        words.append(f"none of {show(node.excluded)}")
    own = part.sent.get("description")
    texts = [each for each in (keywords.get("description"), own) if each]
    if len(texts) == 2 and texts[0][-1:] not in (".", "!", "?", ":"):
        texts[0] += "."
    texts += [f"({cut('; '.join(words), 1000)})"] if words else []
    notes = {"title": keywords["title"]} if "title" in keywords else {}
    notes |= {"description": " ".join(texts)} if texts else {}
    return Part(part.sent | notes, part.shape)


def scalar_keywords(node: Node, kind: str) -> Json:
    """Return the keywords of *node* for the scalar type *kind* that strict mode takes."""
    if kind in ("number", "integer"):
        return {key: node.keywords[key] for key in _BOUNDS if key in node.keywords}
    found: Json = {}
    if kind == "string" and _is_plain(node.keywords.get("pattern", "(?")):
        found["pattern"] = node.keywords["pattern"]
    if kind == "string" and node.keywords.get("format") in _FORMATS:
        found["format"] = node.keywords["format"]
    return found


def _is_plain(pattern: str) -> bool:
    """Return True if *pattern* has no lookaround, flag or backreference; OpenAI refuses those."""
    bare = re.sub(r"\\[^1-9]", "", pattern)
    return "\\" not in bare and not re.search(r"\(\?(?!:)", bare)


def fixed(node: Node, path: str, tally: Tally) -> Part:
    """Return the part for an enum or a const, with one alternative for each type of value.

    Raises:
        Unsatisfiable: No value satisfies the other keywords.
        InvalidOutputSchema: A value cannot be sent, or OpenAI's limits are exceeded.
    """
    is_const = "enum" not in node.keywords
    values: list[object] = [node.keywords["const"]] if is_const else node.keywords["enum"]
    if not is_const and "const" in node.keywords:
        values = [each for each in values if is_equal(each, node.keywords["const"])]
    values = [each for each in values if not any(is_equal(each, one) for one in node.excluded)]
    bounds = {
        key: node.keywords[key] for key in (*_BOUNDS, *_DESCRIBED_BOUNDS) if key in node.keywords
    }
    if bounds:
        validator = Validator(bounds)
        values = [each for each in values if validator.is_valid(each)]
    declared = node.keywords.get("type")
    types = [declared] if isinstance(declared, str) else declared
    kinds: dict[str, list[object]] = {}
    for value in values:
        kind = _kind(value)
        if types is None or kind in types or (kind == "integer" and "number" in types):
            kinds.setdefault("number" if kind == "integer" else kind, []).append(value)
    parts: list[Part] = []
    for kind, each in kinds.items():
        tally.add_values(path, each, is_const=is_const)
        if kind in ("object", "array"):
            parts.append(_fixed_texts(path, each))
            continue
        if kind == "number" and (types is None or "number" not in types):
            kind = "integer" if all(_kind(one) == "integer" for one in each) else "number"
        sent: Json = {"type": kind, **({"const": each[0]} if is_const else {"enum": each})}
        sent = NULL if kind == "null" else sent
        parts.append(Part(sent, Leaf(sent)))
    if not parts:
        raise Unsatisfiable(path, "no value is left of its enum or const under its other keywords")
    return any_of(parts)


def _fixed_texts(path: str, values: list[object]) -> Part:
    texts = [each for value in values if (each := to_json(value)) is not None]
    if len(texts) != len(values):
        raise InvalidOutputSchema(
            path,
            "a value of enum or const is nested too deeply or has too large a number; remove it",
        )
    part = text_of("One of these values", Text(texts=frozenset(texts)))
    return Part(part.sent | {"enum": texts}, part.shape)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int() | float():
            return "integer" if value == value // 1 else "number"
        case dict():
            return "object"
        case _:
            return "array"


def check_finite(root: Json, defined: Json) -> None:
    """Raise `Unsatisfiable` if every answer would be endless: each part requires another one."""
    ending: set[str] = set()
    everything = {**{f"#/$defs/{name}": each for name, each in defined.items()}, "#": root}

    def ends(sent: Json) -> bool:
        if "$ref" in sent:
            return sent["$ref"] in ending
        if "anyOf" in sent:
            return any(map(ends, sent["anyOf"]))
        if sent["type"] == "object":
            return all(map(ends, sent["properties"].values()))
        return sent["type"] != "array" or not sent.get("minItems") or ends(sent["items"])

    grows = True
    while grows and "#" not in ending:
        found = {
            name for name in [*everything][::-1] if name not in ending and ends(everything[name])
        }
        ending |= found
        grows = bool(found)
    if "#" not in ending:
        raise Unsatisfiable(
            "$",
            "it needs itself without end: no part of the cycle is optional, null or an empty list",
        )
