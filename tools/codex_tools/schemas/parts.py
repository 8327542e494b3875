"""The parts that a strict schema is made of, and the limits on all of them.

The limits are OpenAI's (developers.openai.com/api/docs/guides/structured-outputs,
"Supported schemas", as of October 2026).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from codex_tools.codex.errors import InvalidOutputSchema
from codex_tools.schemas.node import DEEP, PATH, Impossible, Json, Node, cut, same, say, text
from codex_tools.schemas.restore import KEY, VALUE, Entries, Leaf, Shape, Text, Union
from codex_tools.schemas.validation import Validator

_LEVELS = 10
_PROPERTIES, _CHARACTERS, _VALUES = 5_000, 120_000, 1_000
_LONG_ENUM, _LONG_ENUM_CHARACTERS = 250, 15_000
_FORMATS = (
    *("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid"),
)
_BOUNDS = ("multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum")
_TOLD = ("minLength", "maxLength", "minProperties", "maxProperties")
NULL: Json = {"type": "null"}


@dataclass(frozen=True, slots=True)
class Part:
    """A schema as it is sent, and the shape that its answers have."""

    sent: Json
    shape: Shape


@dataclass(frozen=True, slots=True)
class At:
    """Where a part stands: its path in the caller's schema, its level in the sent one."""

    path: str
    level: int
    depth: int = 0

    def inside(self, path: str, levels: int = 0) -> At:
        """Return the place *path*, so many levels deeper."""
        if self.depth >= DEEP:
            raise InvalidOutputSchema(
                path, f"more than {DEEP} schemas inside each other; ask for less"
            )
        return At(cut(path, PATH), self.level + levels, self.depth + 1)

    def check_level(self) -> None:
        """Refuse an object or a list that stands inside too many others."""
        if self.level > _LEVELS:
            raise InvalidOutputSchema(
                self.path,
                f"objects and lists would stand inside each other more than {_LEVELS} levels deep,"
                " which OpenAI refuses; make it flatter, or leave this part as {} to get any JSON",
            )


class Tally:
    """What OpenAI counts over the whole schema."""

    def __init__(self) -> None:
        self._properties = self._characters = self._values = 0

    def add_names(self, path: str, *names: str, properties: bool = True) -> None:
        """Count names of properties, or of definitions."""
        self._properties += len(names) if properties else 0
        if self._properties > _PROPERTIES:
            raise InvalidOutputSchema(
                path,
                f"OpenAI takes at most {_PROPERTIES:,} properties in all; ask for fewer, or for"
                " a list of entries with a name and a value each",
            )
        self._add_characters(path, sum(map(len, names)))

    def add_values(self, path: str, values: list[object], *, is_const: bool) -> None:
        """Count the values of an enum or a const."""
        characters = sum(len(each) for each in values if isinstance(each, str))
        self._values += 0 if is_const else len(values)
        long = len(values) > _LONG_ENUM and characters > _LONG_ENUM_CHARACTERS
        if self._values > _VALUES or long:
            raise InvalidOutputSchema(
                path,
                f"OpenAI takes at most {_VALUES:,} enum values in all, and at most"
                f" {_LONG_ENUM_CHARACTERS:,} characters in an enum of more than {_LONG_ENUM};"
                " ask for a string and name the values in the prompt or in a file",
            )
        self._add_characters(path, characters)

    def _add_characters(self, path: str, characters: int) -> None:
        self._characters += characters
        if self._characters > _CHARACTERS:
            raise InvalidOutputSchema(
                path,
                f"OpenAI takes at most {_CHARACTERS:,} characters in all names of properties and"
                " $defs, enum and const values; shorten them or ask for less",
            )


def object_of(properties: Json, required: list[str] | None = None) -> Json:
    """Return a closed object with *properties*, in strict mode all of them required."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties] if required is None else required,
        "additionalProperties": False,
    }


def entries_of(key: Part, value: Part, least: float, most: float, told: str) -> Part:
    """Return a list of entries, in the place of free keys."""
    sent: Json = {
        "type": "array",
        "description": told,
        "items": object_of({KEY: key.sent, VALUE: value.sent}),
    }
    sent |= {"minItems": least} if least else {}
    sent |= {"maxItems": most} if most != float("inf") else {}
    return Part(sent, Entries(key.shape, value.shape, least, most))


def text_of(told: str, shape: Text) -> Part:
    """Return a string that holds JSON, for what no schema describes."""
    return Part({"type": "string", "description": f"{told}, written as JSON text."}, shape)


def either(parts: list[Part]) -> Part:
    """Return one of *parts*."""
    if len(parts) == 1:
        return parts[0]
    return Part({"anyOf": [each.sent for each in parts]}, Union([each.shape for each in parts]))


def optional(sent: Json) -> Json:
    """Return *sent* or null, which stands for leaving it out."""
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
    told = {"description": sent["description"]} if "description" in sent else {}
    return told | {"anyOf": [inner, NULL]}


def _listed(sent: Json) -> list[str]:
    kind = sent.get("type")
    return cast(list[str], kind) if isinstance(kind, list) else []


def annotated(part: Part, node: Node) -> Part:
    """Return *part* with the node's title and description, and what else it says in words."""
    if "$ref" in part.sent:
        return part  # Nothing may stand beside it.
    said = node.said
    lacking = [*_TOLD]
    lacking += ["pattern"] if not _is_plain(said.get("pattern", "")) else []
    lacking += ["format"] if said.get("format") not in _FORMATS else []
    if node.choices or node.conditions:
        lacking.clear()  # Told by each alternative.
    words = [f"{key} {say(said[key])}" for key in lacking if key in said] + node.words
    if node.excluded and lacking and not said.keys() & {"enum", "const"}:
        words.append(f"none of {say(node.excluded)}")
    own = part.sent.get("description")
    told = [each for each in (said.get("description"), own) if each]
    if len(told) == 2 and told[0][-1:] not in (".", "!", "?", ":"):
        told[0] += "."
    told += [f"({cut('; '.join(words), 1000)})"] if words else []
    notes = {"title": said["title"]} if "title" in said else {}
    notes |= {"description": " ".join(told)} if told else {}
    return Part(part.sent | notes, part.shape)


def keywords(node: Node, kind: str) -> Json:
    """Return what *node* says about the scalar *kind* and strict mode takes."""
    if kind in ("number", "integer"):
        return {key: node.said[key] for key in _BOUNDS if key in node.said}
    found: Json = {}
    if kind == "string" and _is_plain(node.said.get("pattern", "(?")):
        found["pattern"] = node.said["pattern"]
    if kind == "string" and node.said.get("format") in _FORMATS:
        found["format"] = node.said["format"]
    return found


def _is_plain(pattern: str) -> bool:
    """Tell whether *pattern* has no lookaround, flag or reference, which OpenAI refuses."""
    bare = re.sub(r"\\[^1-9]", "", pattern)
    return "\\" not in bare and not re.search(r"\(\?(?!:)", bare)


def fixed(node: Node, path: str, tally: Tally) -> Part:
    """Return the part for an enum or a const, with one alternative for each type of value."""
    is_const = "enum" not in node.said
    values: list[object] = [node.said["const"]] if is_const else node.said["enum"]
    if not is_const and "const" in node.said:
        values = [each for each in values if same(each, node.said["const"])]
    values = [each for each in values if not any(same(each, one) for one in node.excluded)]
    bounds = {key: node.said[key] for key in (*_BOUNDS, *_TOLD) if key in node.said}
    if bounds:
        validator = Validator(bounds)
        values = [each for each in values if validator.is_valid(each)]
    declared = node.said.get("type")
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
        raise Impossible(path, "no value is left of its enum or const")
    return either(parts)


def _fixed_texts(path: str, values: list[object]) -> Part:
    texts = [each for value in values if (each := text(value)) is not None]
    if len(texts) != len(values):
        raise InvalidOutputSchema(path, "a value is too deep or too large; take it out")
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


def check_end(root: Json, defined: Json) -> None:
    """Raise `Impossible` if no answer can ever end, as each part needs another."""
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
        raise Impossible(
            "$", "it needs itself without end: nothing in it is optional, null or an empty list"
        )
