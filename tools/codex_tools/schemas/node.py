"""Merge a schema with the schemas it refers to or combines by `allOf`.

OpenAI's strict mode takes neither `allOf` nor keywords beside `$ref`. So all keywords
that hold for the same value are merged into one `Node`. Alternatives are not merged.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, cast

from codex_tools.codex.errors import InvalidOutputSchema
from codex_tools.codex.json_object import Json
from codex_tools.schemas.json_text import cut, is_equal, show, to_json
from codex_tools.schemas.keywords import ONE, inner_schemas

MAX_NODES = 40_000
"""Schema nodes that one schema may expand to.

OpenAI takes 5,000 properties, but merging can multiply what must be processed.
"""
MAX_DEPTH = 40
"""Levels of nested schemas; more are refused long before Python's stack is full."""
MAX_PATH = 500
"""Characters of a JSON path that are kept; whole paths of a deep schema fill the memory."""
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_PAIRS = tuple(zip(_LOWER, _UPPER, strict=True))
_KEPT = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "multipleOf"), "number"),
    **dict.fromkeys(("maximum", "exclusiveMaximum"), "number"),
    **dict.fromkeys(("pattern", "format", "minLength", "maxLength"), "string"),
    **dict.fromkeys(("minItems", "maxItems", "unevaluatedItems"), "array"),
    **dict.fromkeys(("required", "minProperties", "maxProperties"), "object"),
    **dict.fromkeys(("propertyNames", "unevaluatedProperties"), "object"),
    **dict.fromkeys(("type", "enum", "const", "title", "description"), ""),
}
"""The keywords that a Node keeps, each with the type that it constrains ("": any)."""
_DESCRIBED = {
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
"""Narrowing keywords that strict mode lacks: the type each constrains, and its description."""
_NO_EFFECT = {("not", "false"), ("uniqueItems", "false"), ("default", "null")}
"""Keywords with values that the description leaves out."""
_CONSTRAINING = {
    *(_KEPT.keys() - {"title", "description"}),
    *(_DESCRIBED.keys() - {"default", "examples"}),
    *(*ONE, "prefixItems", "dependentSchemas", "patternProperties", "properties"),
}

Choice = tuple[object, str, frozenset[int]]
"""An alternative: its schema, its path, and the ids of the schemas that are being merged."""


class Unsatisfiable(Exception):
    """No value can satisfy the schema at *path*."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path, self.reason = path, reason


@dataclass(slots=True)
class Node:
    """The merged keywords of all schemas that hold for the same value."""

    keywords: Json = field(default_factory=dict[str, Any])
    types: set[str] = field(default_factory=set[str])
    """The types that its keywords constrain; used if it has no `type`."""
    objects: list[tuple[Json, str]] = field(default_factory=list[tuple[Json, str]])
    arrays: list[tuple[Json, str]] = field(default_factory=list[tuple[Json, str]])
    choices: list[list[Choice]] = field(default_factory=list[list[Choice]])
    conditions: list[list[Choice]] = field(default_factory=list[list[Choice]])
    excluded: list[object] = field(default_factory=list[object])
    """The values that `not` excludes."""
    words: list[str] = field(default_factory=list[str])
    """Constraints that only the description can express."""

    def is_bare(self) -> bool:
        """Return True if nothing but its choices constrains it."""
        parts = self.objects or self.arrays or self.excluded
        return not parts and not self.keywords.keys() - {"title", "description"}

    def is_leaf(self) -> bool:
        """Return True if it constrains scalars only."""
        inner = self.objects or self.arrays or self.choices or self.conditions
        return not inner and bool(self.keywords.keys() & {"type", "enum", "const"})

    def member(self, name: str, path: str) -> tuple[object, str]:
        """Return the schema of the property *name*, and its path."""
        found: list[object] = []
        for each, where in self.objects:
            rest = each.get("additionalProperties", True)
            patterns = each.get("patternProperties", {})
            if name in each.get("properties", {}):
                found.append(each["properties"][name])
                path = cut(f"{where}.properties.{name}", MAX_PATH)
            elif patterns:  # The name is not matched: a pattern may take exponential time.
                found.append({"anyOf": [*patterns.values(), *([rest] if rest is not True else [])]})
            else:
                found.append(rest)
        return all_of(found), path

    def unnamed_keys(self) -> tuple[object, list[tuple[str, object]]]:
        """Return the schema of unnamed keys, and each pattern of keys with its schema."""
        key = "additionalProperties"
        free = all_of([each.get(key, True) for each, _ in self.objects])
        if not any(key in each for each, _ in self.objects):
            free = all_of([self.keywords.get("unevaluatedProperties", True)])
        found = (each.get("patternProperties", {}).items() for each, _ in self.objects)
        return free, [*itertools.chain.from_iterable(found)]

    def check(self, path: str) -> None:
        """Raise `Unsatisfiable` if a lower bound is above its upper bound."""
        for lower, upper in _PAIRS:
            least, most = self.keywords.get(lower, -math.inf), self.keywords.get(upper, math.inf)
            if least > most:
                raise Unsatisfiable(path, f"{lower} {show(least)} is above {upper} {show(most)}")

    def copy(self) -> Node:
        """Return a copy without its choices, into which one of them can be merged."""
        keywords = {k: v for k, v in self.keywords.items() if k not in ("title", "description")}
        excluded = [*self.excluded]
        return Node(keywords, {*self.types}, [*self.objects], [*self.arrays], excluded=excluded)


class Document:
    """The caller's schema: the path of each part and the target of each reference."""

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
            # Parts that only a reference reaches come last, so the others get their own paths.
            is_reached = not inside
            each, path, resolver = (inside or outside).pop()
            if isinstance(each, dict) and id(cast(Json, each)) in self._paths:
                continue
            path = cut(path, MAX_PATH)
            if is_reached:
                _check_schema(cast(object, each), path)  # Below an unknown keyword.
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
                            f"{path}.{key}", f"{show(reference)} is not in the schema"
                        ) from None
                    self._targets.setdefault(id(node), []).append(found.contents)
                    place = "$" + reference.partition("#")[2].replace("/", ".")
                    outside.append((found.contents, place, found.resolver))
            inside += [(each, where, resolver) for each, where in inner_schemas(node, path)]

    def path(self, schema: object) -> str | None:
        """Return the path of *schema*, or None if it is not a part of the document."""
        return self._paths.get(id(schema))

    def spend(self, path: str, nodes: int = 1) -> None:
        """Count *nodes* more nodes to process.

        Raises:
            InvalidOutputSchema: They are more than MAX_NODES in all.
        """
        self._spent += nodes
        if self._spent > MAX_NODES:
            raise InvalidOutputSchema(
                path,
                f"the schema expands to more than {MAX_NODES:,} parts, with references and"
                " alternatives resolved; ask for less at once",
            )

    def referred(self, schema: object) -> Json | None:
        """Return the target of *schema* if it is nothing but a reference, else None."""
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
        """Return *schema* and all that it refers to or combines, merged into one node.

        Raises:
            Unsatisfiable: No value can satisfy it.
            InvalidOutputSchema: It cannot be merged.
        """
        node = Node()
        self.merge(node, (schema, path, frozenset()))
        return node

    def merge(self, node: Node, choice: Choice) -> None:
        """Merge *choice* into *node*, which then has the constraints of both."""
        schema, path, within = choice
        self.spend(path)
        if schema is False:
            raise Unsatisfiable(
                path, "false (or additionalProperties: false beside it) allows no value"
            )
        if not isinstance(schema, dict):
            return
        keywords = cast(Json, schema)
        if id(keywords) in within:
            raise InvalidOutputSchema(
                path,
                "a schema that contains itself cannot be merged with the keywords beside its $ref;"
                " move the $ref to a property of its own or into anyOf, without other keywords",
            )
        if len(within) > MAX_DEPTH:
            raise InvalidOutputSchema(
                path,
                f"$ref and allOf are nested more than {MAX_DEPTH} levels deep; merge some of them",
            )
        within |= {id(keywords)}
        for key, value in keywords.items():
            self._merge_keyword(node, key, value, path)
        if keywords.keys() & {"properties", "patternProperties", "additionalProperties"}:
            node.objects.append((keywords, path))
            node.types.add("object")
        if keywords.keys() & {"prefixItems", "items"}:
            node.arrays.append((keywords, path))
            node.types.add("array")
        for key in ("anyOf", "oneOf"):
            if key in keywords:
                each = [(s, f"{path}.{key}[{i}]", within) for i, s in enumerate(keywords[key])]
                node.choices.append(each)
                if key == "oneOf" and len(each) > 1:
                    node.words.append("exactly one of these forms")
        self._merge_conditions(node, keywords, path, within)
        for target in self._targets.get(id(keywords), []):
            self.merge(node, (target, path, within))
        for i, each in enumerate(keywords.get("allOf", [])):
            self.merge(node, (each, f"{path}.allOf[{i}]", within))

    def _merge_keyword(self, node: Node, key: str, value: Any, path: str) -> None:
        if key in _DESCRIBED:
            about, words = _DESCRIBED[key]
            if about:
                node.types.add(about)
            shown = show(value)
            if key == "not" and shown in ("true", "{}"):
                raise Unsatisfiable(path, f"not: {shown} allows no value")
            if key == "not" and (values := _fixed_values(value)):
                node.excluded += values
            elif (key, shown) not in _NO_EFFECT:
                node.words.append(words.format(shown))
        if key not in _KEPT:
            return
        if _KEPT[key]:
            node.types.add(_KEPT[key])
        old: Any = node.keywords.get(key)
        if key not in node.keywords:
            node.keywords[key] = value
        elif key in _LOWER:
            node.keywords[key] = max(old, value)
        elif key in _UPPER:
            node.keywords[key] = min(old, value)
        elif key == "required":
            node.keywords[key] = [*dict.fromkeys([*old, *value])]
        elif key in ("propertyNames", "unevaluatedProperties", "unevaluatedItems"):
            node.keywords[key] = all_of([old, value])
        elif key == "type":
            node.keywords[key] = _types_of_both(old, value)
        elif key == "enum":
            node.keywords[key] = [each for each in old if any(is_equal(each, one) for one in value)]
        elif key == "const" and not is_equal(old, value):
            raise Unsatisfiable(path, f"const must be both {show(old)} and {show(value)}")
        elif key == "multipleOf" and isinstance(old, int) and isinstance(value, int):
            node.keywords[key] = math.lcm(old, value)
        elif key in ("pattern", "format", "multipleOf") and old != value:
            node.words.append(f"{key}: {show(value)}")
        if node.keywords[key] == [] and key in ("type", "enum"):
            if old is None:
                raise Unsatisfiable(path, f"{key} [] allows no value")
            raise Unsatisfiable(path, f"no {key} is in both {show(old)} and {show(value)}")

    def _merge_conditions(
        self, node: Node, keywords: Json, path: str, within: frozenset[int]
    ) -> None:
        if "if" in keywords and ("then" in keywords or "else" in keywords):
            true: Choice = ({"allOf": [keywords["if"], keywords.get("then", True)]}, path, within)
            against: Json = {"allOf": [_negated(keywords["if"]), keywords.get("else", True)]}
            node.conditions.append([true, (against, path, within)])
            node.words.append(
                f"the first form if valid against {show(keywords['if'])}, else another"
            )
        for name, each in keywords.get("dependentSchemas", {}).items():
            given: Choice = ({"allOf": [{"required": [name]}, each]}, path, within)
            node.choices.append([given, ({"properties": {name: False}}, path, within)])
            node.types.add("object")


def _check_schema(found: object, path: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        if to_json(found) is None:  # Near a full stack, jsonschema may panic in Rust.
            raise RecursionError
        cast(Any, Draft202012Validator).check_schema(found)
    except (SchemaError, RecursionError) as error:
        reason = error.message if isinstance(error, SchemaError) else "it is nested too deeply"
        raise InvalidOutputSchema(path, f"not a JSON Schema: {cut(reason, 300)}") from None


def _fixed_values(schema: object) -> list[object]:
    """Return the values in *schema*'s const or enum; none if it has other constraints."""
    keywords = cast(Json, schema) if isinstance(schema, dict) else {}
    if keywords.keys() - {"const", "enum", "type", "title", "description"}:
        return []
    return [keywords["const"]] if "const" in keywords else keywords.get("enum", [])


def _negated(condition: object) -> object:
    """Return a schema for values that are not valid against *condition*.

    That is possible for one property with known values, such as a discriminator. For
    any other condition, the result is True.
    """
    keywords = cast(Json, condition) if isinstance(condition, dict) else {}
    members = keywords.get("properties", {})
    if keywords.keys() - {"properties", "required", "type"} or len(members) != 1:
        return True
    (name, each), *_ = members.items()
    if not _fixed_values(each) or keywords.get("required", [name]) != [name]:
        return True
    without: Json = {"properties": {name: {"not": each}}}
    return without if "required" in keywords else without | {"required": [name]}


def _types_of_both(old: str | list[str], new: str | list[str]) -> list[str]:
    ours = [old] if isinstance(old, str) else old
    theirs = [new] if isinstance(new, str) else new
    found = [each for each in ours if each in theirs or (each == "integer" and "number" in theirs)]
    if "number" in ours and "integer" in theirs:
        found.append("integer")
    return [*dict.fromkeys(found)]


def all_of(schemas: list[object]) -> object:
    """Return a schema with the constraints of all *schemas*."""
    parts = [each for each in schemas if each is not True and each != {}]
    if any(each is False for each in parts):
        return False
    return parts[0] if len(parts) == 1 else {"allOf": parts} if parts else True
