"""What a schema says in one place, its references followed and its parts merged.

OpenAI's strict mode knows neither `allOf` nor keywords beside `$ref`, so what
they say together is gathered into one `Node`. Its alternatives stay apart.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from codex_tools.codex.errors import InvalidOutputSchema
from codex_tools.codex.json_object import Json
from codex_tools.schemas.keywords import ONE, inner_schemas

NODES = 40_000
"""More places than this are refused: OpenAI takes 5,000 properties, and merging can multiply."""
DEEP = 40
"""Schemas more deeply inside each other are refused, long before Python's stack is full."""
PATH = 500
"""Characters of a path that are kept; else those of a deep schema fill the memory."""
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_PAIRS = tuple(zip(_LOWER, _UPPER, strict=True))
_SAID = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "multipleOf"), "number"),
    **dict.fromkeys(("maximum", "exclusiveMaximum"), "number"),
    **dict.fromkeys(("pattern", "format", "minLength", "maxLength"), "string"),
    **dict.fromkeys(("minItems", "maxItems", "unevaluatedItems"), "array"),
    **dict.fromkeys(("required", "minProperties", "maxProperties"), "object"),
    **dict.fromkeys(("propertyNames", "unevaluatedProperties"), "object"),
    **dict.fromkeys(("type", "enum", "const", "title", "description"), ""),
}
"""The keywords that a Node keeps, and the type that each is about."""
_WORDS = {
    "contentEncoding": ("string", "encoded as {}"),
    "contentMediaType": ("string", "of the media type {}"),
    "uniqueItems": ("array", "no two items alike"),
    "contains": ("array", "at least one item is valid against {}"),
    "minContains": ("array", "at least {} such items"),
    "maxContains": ("array", "at most {} such items"),
    "dependentRequired": ("object", "where one of these is given, so are those: {}"),
    "not": ("", "not valid against {}"),
    "default": ("", "by default {}"),
    "examples": ("", "for example {}"),
}
"""The keywords that strict mode lacks and that only narrow: the model is told in words."""
_SAYING_NOTHING = {("not", "false"), ("uniqueItems", "false"), ("default", "null")}
_CONSTRAINING = {
    *(_SAID.keys() - {"title", "description"}),
    *(_WORDS.keys() - {"default", "examples"}),
    *(*ONE, "prefixItems", "dependentSchemas", "patternProperties", "properties"),
}

Choice = tuple[object, str, frozenset[int]]
"""One alternative: its schema, its path, and the schemas that it stands inside of."""


class Impossible(Exception):
    """No value can satisfy the schema there."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path, self.reason = path, reason


@dataclass(slots=True)
class Node:
    """What a schema and all that is merged into it say in one place."""

    said: Json = field(default_factory=dict[str, Any])
    types: set[str] = field(default_factory=set[str])
    """The types that its keywords are about, should it name none itself."""
    objects: list[tuple[Json, str]] = field(default_factory=list[tuple[Json, str]])
    arrays: list[tuple[Json, str]] = field(default_factory=list[tuple[Json, str]])
    choices: list[list[Choice]] = field(default_factory=list[list[Choice]])
    conditions: list[list[Choice]] = field(default_factory=list[list[Choice]])
    excluded: list[object] = field(default_factory=list[object])
    """The values that `not` takes out."""
    words: list[str] = field(default_factory=list[str])

    def is_bare(self) -> bool:
        """Tell whether nothing constrains it beside its choices."""
        parts = self.objects or self.arrays or self.excluded
        return not parts and not self.said.keys() - {"title", "description"}

    def is_leaf(self) -> bool:
        """Tell whether it is about scalars only."""
        inner = self.objects or self.arrays or self.choices or self.conditions
        return not inner and bool(self.said.keys() & {"type", "enum", "const"})

    def member(self, name: str, path: str) -> tuple[object, str]:
        """Return what it says about the property *name*, and where."""
        found: list[object] = []
        for each, where in self.objects:
            rest = each.get("additionalProperties", True)
            patterns = each.get("patternProperties", {})
            if name in each.get("properties", {}):
                found.append(each["properties"][name])
                path = cut(f"{where}.properties.{name}", PATH)
            elif patterns:  # They are not tried on the name, which can take for ever.
                found.append({"anyOf": [*patterns.values(), *([rest] if rest is not True else [])]})
            else:
                found.append(rest)
        return both(found), path

    def free_keys(self) -> tuple[object, list[tuple[str, object]]]:
        """Return the schema of keys that have no name, and those for patterns of keys."""
        key = "additionalProperties"
        free = both([each.get(key, True) for each, _ in self.objects])
        if not any(key in each for each, _ in self.objects):
            free = both([self.said.get("unevaluatedProperties", True)])
        found = (each.get("patternProperties", {}).items() for each, _ in self.objects)
        return free, [*itertools.chain.from_iterable(found)]

    def check(self, path: str) -> None:
        """Raise `Impossible` if its bounds exclude each other."""
        for lower, upper in _PAIRS:
            if self.said.get(lower, -math.inf) > self.said.get(upper, math.inf):
                raise Impossible(path, f"{lower} is above {upper}")

    def copy(self) -> Node:
        """Return what it says itself, for one of its alternatives to be merged into."""
        said = {k: v for k, v in self.said.items() if k not in ("title", "description")}
        excluded = [*self.excluded]
        return Node(said, {*self.types}, [*self.objects], [*self.arrays], excluded=excluded)


class Document:
    """The caller's schema: where each part stands, and where each reference leads."""

    def __init__(self, schema: Json) -> None:
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

        self._paths: dict[int, str] = {}
        self._targets: dict[int, list[object]] = {}
        self._spent = 0
        root = EMPTY_REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))
        inside: list[tuple[object, str, Any]] = [(schema, "$", root)]
        outside: list[tuple[object, str, Any]] = []
        while inside or outside:
            # What only a reference reaches comes last, so that the rest gets its own path.
            is_reached = not inside
            each, path, resolver = (inside or outside).pop()
            if isinstance(each, dict) and id(cast(Json, each)) in self._paths:
                continue
            path = cut(path, PATH)
            if is_reached:
                _check_schema(cast(object, each), path)  # Nobody has looked under unknown keywords.
            if not isinstance(each, dict):
                continue
            node = cast(Json, each)
            self.spend(path)
            self._paths[id(node)] = path
            if "$id" in node:
                resolver = resolver.in_subresource(DRAFT202012.create_resource(node))
            for key in ("$ref", "$dynamicRef"):
                if isinstance(reference := node.get(key), str):
                    try:
                        found = resolver.lookup(reference)
                    except (Unresolvable, ValueError, TypeError, AttributeError):
                        raise InvalidOutputSchema(
                            f"{path}.{key}", f"{say(reference)} leads nowhere"
                        ) from None
                    self._targets.setdefault(id(node), []).append(found.contents)
                    place = "$" + reference.partition("#")[2].replace("/", ".")
                    outside.append((found.contents, place, found.resolver))
            inside += [(each, where, resolver) for each, where in inner_schemas(node, path)]

    def path(self, schema: object) -> str | None:
        """Return where *schema* stands, or None if it is no part of the document."""
        return self._paths.get(id(schema))

    def spend(self, path: str, nodes: int = 1) -> None:
        """Count *nodes* more places to look at, and refuse a schema that has too many."""
        self._spent += nodes
        if self._spent > NODES:
            raise InvalidOutputSchema(
                path, f"the schema unfolds to more than {NODES:,} parts; ask for less at once"
            )

    def referred(self, schema: object) -> Json | None:
        """Return what *schema* only refers to, if it does not constrain it as well."""
        last: Json | None = None
        found: object = schema
        seen: set[int] = set()
        while isinstance(found, dict) and id(cast(Json, found)) not in seen:
            node = cast(Json, found)
            seen.add(id(node))
            targets = self._targets.get(id(node), [])
            parts = [*targets, *node.get("allOf", [])]
            parts += [each[0] for key in ("anyOf", "oneOf") if len(each := node.get(key, [])) == 1]
            if len(parts) != 1 or node.keys() & _CONSTRAINING:
                return last
            found = parts[0]
            if targets:
                last = cast(Json, found) if isinstance(found, dict) else None
        return last

    def gather(self, schema: object, path: str) -> Node:
        """Return what *schema* says.

        Raises:
            Impossible: Nothing can satisfy it.
            InvalidOutputSchema: It cannot be merged.
        """
        node = Node()
        self.merge(node, (schema, path, frozenset()))
        return node

    def merge(self, node: Node, choice: Choice) -> None:
        """Let *node* say what *choice* says as well."""
        schema, path, within = choice
        self.spend(path)
        if schema is False:
            raise Impossible(path, "false (or a false additionalProperties beside) allows nothing")
        if not isinstance(schema, dict):
            return
        said = cast(Json, schema)
        if id(said) in within:
            raise InvalidOutputSchema(
                path,
                "a schema that contains itself cannot be merged with the keywords beside it;"
                " let the $ref stand alone, as an own property or in anyOf",
            )
        if len(within) > DEEP:
            raise InvalidOutputSchema(
                path, f"more than {DEEP} $ref and allOf inside each other; merge some yourself"
            )
        within |= {id(said)}
        for key, value in said.items():
            self._take(node, key, value, path)
        if said.keys() & {"properties", "patternProperties", "additionalProperties"}:
            node.objects.append((said, path))
            node.types.add("object")
        if said.keys() & {"prefixItems", "items"}:
            node.arrays.append((said, path))
            node.types.add("array")
        for key in ("anyOf", "oneOf"):
            if key in said:
                each = [(s, f"{path}.{key}[{i}]", within) for i, s in enumerate(said[key])]
                node.choices.append(each)
                if key == "oneOf" and len(each) > 1:
                    node.words.append("exactly one of these forms")
        self._take_conditions(node, said, path, within)
        for target in self._targets.get(id(said), []):
            self.merge(node, (target, path, within))
        for i, each in enumerate(said.get("allOf", [])):
            self.merge(node, (each, f"{path}.allOf[{i}]", within))

    def _take(self, node: Node, key: str, value: Any, path: str) -> None:
        if key in _WORDS:
            about, words = _WORDS[key]
            if about:
                node.types.add(about)
            told = say(value)
            if key == "not" and told in ("true", "{}"):
                raise Impossible(path, f"not {told} allows nothing")
            if key == "not" and (values := _fixed_values(value)):
                node.excluded += values
            elif (key, told) not in _SAYING_NOTHING:
                node.words.append(words.format(told))
        if key not in _SAID:
            return
        if _SAID[key]:
            node.types.add(_SAID[key])
        old: Any = node.said.get(key)
        if key not in node.said:
            node.said[key] = value
        elif key in _LOWER:
            node.said[key] = max(old, value)
        elif key in _UPPER:
            node.said[key] = min(old, value)
        elif key == "required":
            node.said[key] = [*dict.fromkeys([*old, *value])]
        elif key in ("propertyNames", "unevaluatedProperties", "unevaluatedItems"):
            node.said[key] = both([old, value])
        elif key == "type":
            node.said[key] = _types_of_both(old, value)
        elif key == "enum":
            node.said[key] = [each for each in old if any(same(each, one) for one in value)]
        elif key == "const" and not same(old, value):
            raise Impossible(path, f"it must be both {say(old)} and {say(value)}")
        elif key == "multipleOf" and isinstance(old, int) and isinstance(value, int):
            node.said[key] = math.lcm(old, value)
        elif key in ("pattern", "format", "multipleOf") and old != value:
            node.words.append(f"{key}: {say(value)}")
        if node.said[key] == [] and key in ("type", "enum"):
            raise Impossible(path, f"no {key} is left that all its parts allow")

    def _take_conditions(self, node: Node, said: Json, path: str, within: frozenset[int]) -> None:
        if "if" in said and ("then" in said or "else" in said):
            true: Choice = ({"allOf": [said["if"], said.get("then", True)]}, path, within)
            against: Json = {"allOf": [_negated(said["if"]), said.get("else", True)]}
            node.conditions.append([true, (against, path, within)])
            node.words.append(f"the first form if valid against {say(said['if'])}, else another")
        for name, each in said.get("dependentSchemas", {}).items():
            given: Choice = ({"allOf": [{"required": [name]}, each]}, path, within)
            node.choices.append([given, ({"properties": {name: False}}, path, within)])
            node.types.add("object")


def _check_schema(found: object, path: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        if text(found) is None:  # Near the end of the stack, jsonschema may panic in Rust.
            raise RecursionError
        cast(Any, Draft202012Validator).check_schema(found)
    except (SchemaError, RecursionError) as error:
        told = error.message if isinstance(error, SchemaError) else "it is too deep"
        raise InvalidOutputSchema(path, f"no JSON Schema: {cut(told, 300)}") from None


def _fixed_values(schema: object) -> list[object]:
    """Return the only values that *schema* allows, if it says nothing else."""
    said = cast(Json, schema) if isinstance(schema, dict) else {}
    if said.keys() - {"const", "enum", "type", "title", "description"}:
        return []
    return [said["const"]] if "const" in said else said.get("enum", [])


def _negated(condition: object) -> object:
    """Return a schema for what is not valid against *condition*, true if it cannot be said.

    It can for one property of which the values are known, as a discriminator is.
    """
    said = cast(Json, condition) if isinstance(condition, dict) else {}
    members = said.get("properties", {})
    if said.keys() - {"properties", "required", "type"} or len(members) != 1:
        return True
    (name, each), *_ = members.items()
    if not _fixed_values(each) or said.get("required", [name]) != [name]:
        return True
    without: Json = {"properties": {name: {"not": each}}}
    return without if "required" in said else without | {"required": [name]}


def _types_of_both(old: str | list[str], new: str | list[str]) -> list[str]:
    ours = [old] if isinstance(old, str) else old
    theirs = [new] if isinstance(new, str) else new
    found = [each for each in ours if each in theirs or (each == "integer" and "number" in theirs)]
    if "number" in ours and "integer" in theirs:
        found.append("integer")
    return [*dict.fromkeys(found)]


def both(schemas: list[object]) -> object:
    """Return a schema that says what all *schemas* say."""
    telling = [each for each in schemas if each is not True and each != {}]
    if any(each is False for each in telling):
        return False
    return telling[0] if len(telling) == 1 else {"allOf": telling} if telling else True


def text(value: object) -> str | None:
    """Return *value* as JSON text, or None if it is too deep or too large a number."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        return None


def cut(told: str, limit: int) -> str:
    """Return the first *limit* characters of *told*, and a sign if there were more."""
    return told if len(told) <= limit else f"{told[:limit]}…"


def say(value: object) -> str:
    """Return *value* as JSON text to be read, not too long."""
    return cut(text(value) or "(too large to be shown)", 200)


def same(one: object, other: object) -> bool:
    """Tell whether two values are equal as JSON: 1 is 1.0, but not true."""
    return isinstance(one, bool) == isinstance(other, bool) and (
        one == other if isinstance(one, int | float) else text(one) == text(other)
    )
