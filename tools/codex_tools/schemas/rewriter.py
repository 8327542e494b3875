"""Rewrite an output schema for OpenAI's strict mode, and convert the answers back.

Codex sends `output_schema` as `text.format` with `strict: true`. OpenAI answers 400
to every keyword that strict mode lacks. So a schema is rewritten, or refused with the
path of the part that cannot be. Keywords that only narrow go into `description`: the
answer is validated against the caller's own schema afterwards.

The dialect and its limits: developers.openai.com/api/docs/guides/structured-outputs
("Supported schemas", as others quote it until October 2026). Others report further
rules of the API that are not documented there: every schema without anyOf or $ref
needs a `type`, even beside const and enum. An enum holds values of one type. A pattern
has no lookaround. Arrays count as levels of nesting, anyOf does not. $ref has no
keywords beside it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from codex_tools.codex.errors import InvalidOutputSchema
from codex_tools.codex.json_object import Json
from codex_tools.schemas.json_text import show, to_json
from codex_tools.schemas.node import Choice, Document, Node, Unsatisfiable, all_of
from codex_tools.schemas.parts import (
    NULL,
    Part,
    Position,
    Tally,
    annotated,
    any_of,
    check_finite,
    entries_of,
    fixed,
    object_of,
    optional,
    scalar_keywords,
    text_of,
)
from codex_tools.schemas.restore import (
    WRAPPER,
    Array,
    Entries,
    Leaf,
    Member,
    Object,
    Ref,
    Shape,
    Text,
    Tuple,
    Union,
    Walk,
    Wrapped,
    faults_in,
    place,
)

_COMBINATIONS = 64
"""Combinations of alternatives that are written out for one node."""
_OTHERS, _FURTHER = "other_entries", "further_items"
"""The properties for unnamed keys of an object, and for items behind a list's prefix."""


class Ambiguous(Exception):
    """An answer has no certain form; *problems* are sentences, each with a JSON path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class StrictSchema:
    """A schema to send, with the shapes that convert its answers back."""

    schema: Json
    _shape: Shape = field(repr=False)
    _named: Mapping[str, Shape] = field(repr=False)

    def restore(self, answer: object) -> object:
        """Return *answer* in the form of the caller's schema.

        Values that have that form already, or fit no shape, are returned unchanged.

        Raises:
            Ambiguous: The answer gives two values for one key, for example.
        """
        walk = Walk(self._named)
        try:
            found = walk.restore(self._shape, answer)[0]
            problems = faults_in(found) if walk.has_faults else []
        except RecursionError:
            return answer
        if problems:
            raise Ambiguous(problems)
        return found


def make_strict(schema: Json) -> StrictSchema:
    """Return *schema* in the form for strict mode; `check_schema` must have accepted it.

    Raises:
        InvalidOutputSchema: It cannot be rewritten, or no value can satisfy it.
    """
    try:
        document = Document(schema)
        found = _rewrite(document, schema, wrapped=False) or _rewrite(
            document, schema, wrapped=True
        )
    except Unsatisfiable as error:
        raise InvalidOutputSchema(
            error.path, f"no answer can satisfy it: {error.reason}; allow at least one value"
        ) from None
    assert found is not None  # A wrapped root is always an object.
    original = to_json(schema)
    if original is not None and original == to_json(found.schema):
        return replace(found, schema=schema)
    return found


def _rewrite(document: Document, schema: Json, *, wrapped: bool) -> StrictSchema | None:
    """Return the strict schema, or None if the root is no object and must be wrapped.

    A definition turns out to be unsatisfiable only after references to it were rewritten. The
    schema is then rewritten again without them: what is optional is left out.
    """
    impossible: dict[int, Unsatisfiable] = {}
    while True:
        known = len(impossible)
        found = _Rewriter(document, schema, impossible, wrapped=wrapped).rewrite_root()
        if len(impossible) == known:
            return found


class _Rewriter:
    def __init__(
        self,
        document: Document,
        schema: Json,
        impossible: dict[int, Unsatisfiable],
        *,
        wrapped: bool,
    ) -> None:
        self._document, self._schema, self._wrapped = document, schema, wrapped
        self._impossible = impossible
        """The definitions that no value satisfies, by the `id` of each."""
        self._names: dict[int, str] = {}
        if not wrapped:
            self._names = {id(each): "#" for each in (schema, document.referred(schema) or schema)}
        self._waiting: list[tuple[str, Json]] = []
        self._named: dict[str, Shape] = {}
        self._tally = Tally()
        self._open: set[int] = set()

    def rewrite_root(self) -> StrictSchema | None:
        """Return the strict schema, or None if the root is no object and must be wrapped."""
        if self._wrapped:
            part = self._rewrite(self._schema, Position("$", 2))
            part = Part(object_of({WRAPPER: part.sent}), Wrapped(part.shape))
        else:
            part = self._node(self._document.gather(self._schema, "$"), Position("$", 1))
            if part.sent.get("type") != "object":
                return None
        self._named["#"] = part.shape
        defined: Json = {}
        known = len(self._impossible)
        while self._waiting:
            name, target = self._waiting.pop(0)
            at = Position(self._document.path(target) or "$", 1)
            try:
                each = self._rewrite(target, at)
            except Unsatisfiable as error:
                self._impossible[id(target)] = error
                continue
            defined[name], self._named[name] = each.sent, each.shape
        if len(self._impossible) > known:
            return None  # The caller rewrites the schema again.
        check_finite(part.sent, defined)
        sent = part.sent | ({"$defs": defined} if defined else {})
        return StrictSchema(sent, part.shape, self._named)

    def _rewrite(self, schema: object, at: Position) -> Part:
        self._document.spend(at.path)
        target = self._document.referred(schema)
        if target is None and id(schema) in self._open:  # It contains itself through a merged $ref.
            target = cast(Json, schema)
        elif target is None:
            known = {id(schema)} if self._document.path(schema) else set[int]()
            self._open |= known
            try:
                return self._node(self._document.gather(schema, at.path), at)
            finally:
                self._open -= known
        if "description" in cast(Json, schema):
            node = self._document.gather(schema, at.path)
            if node.is_leaf():
                return self._node(node, at)
        if id(target) in self._impossible:
            raise self._impossible[id(target)]
        name = self._name(target, at)
        return Part({"$ref": "#" if name == "#" else f"#/$defs/{name}"}, Ref(name))

    def _name(self, target: Json, at: Position) -> str:
        if id(target) not in self._names:
            path = self._document.path(target) or "$"
            last = re.sub(r"[^A-Za-z0-9_-]", "_", path.rpartition(".")[2]).strip("_") or "root"
            taken = {*self._names.values()}
            more = (f"{last}_{i}" for i in itertools.count(2))
            name = next(each for each in itertools.chain([last], more) if each not in taken)
            self._names[id(target)] = name
            self._tally.add_names(at.path, name, properties=False)
            self._waiting.append((name, target))
        return self._names[id(target)]

    def _node(self, node: Node, at: Position) -> Part:
        node.check(at.path)
        split = node.choices or node.conditions
        part = self._alternatives(node, at) if split else self._types(node, at)
        return annotated(part, node)

    def _alternatives(self, node: Node, at: Position) -> Part:
        groups = [*node.choices]
        if len(node.conditions) <= 3:
            groups += node.conditions
        else:  # Commonly one for each value of a property, so only one applies.
            within = frozenset[int].intersection(*(true[2] for true, _ in node.conditions))
            rest: Json = {"allOf": [false[0] for _, false in node.conditions]}
            groups.append([*(true for true, _ in node.conditions), (rest, at.path, within)])
        combinations = math.prod(len(group) for group in groups)
        if combinations > _COMBINATIONS:
            raise InvalidOutputSchema(
                at.path,
                f"{combinations:,} combinations of alternatives (anyOf, oneOf, if,"
                f" dependentSchemas) are more than {_COMBINATIONS}; write one anyOf with a whole"
                " object for each case",
            )
        alone = node.is_bare() and len(groups) == 1 and not node.conditions
        parts: list[Part] = []
        for combination in itertools.product(*groups):
            try:
                parts.append(self._alternative(None if alone else node, combination, at))
            except Unsatisfiable:
                continue
        if not parts:
            raise Unsatisfiable(at.path, "none of its alternatives can be satisfied")
        return any_of(parts)

    def _alternative(self, node: Node | None, choices: tuple[Choice, ...], at: Position) -> Part:
        path = choices[0][1]
        if node is None:
            return self._rewrite(choices[0][0], at.inside(path))
        self._document.spend(path)
        merged = node.copy()
        for choice in choices:
            self._document.merge(merged, choice)
        return self._node(merged, at.inside(path))

    def _types(self, node: Node, at: Position) -> Part:
        if node.keywords.keys() & {"enum", "const"}:
            return fixed(node, at.path, self._tally)
        declared: str | list[str] = node.keywords.get("type", sorted(node.types))
        types = [declared] if isinstance(declared, str) else declared
        if not types:
            return text_of("Any JSON value", Text())
        scalars = [each for each in types if each not in ("object", "array")]
        if "number" in scalars and "integer" in scalars:
            scalars.remove("integer")
        parts: list[Part] = []
        trouble: Unsatisfiable | None = None
        for kind in types:
            try:
                if kind == "object":
                    parts.append(self._object(node, at))
                elif kind == "array":
                    parts.append(self._array(node, at))
            except Unsatisfiable as error:
                trouble = error
        if len(parts) == 1 and scalars == ["null"] and parts[0].sent.get("type") in types:
            sent = parts[0].sent | {"type": [parts[0].sent["type"], "null"]}
            return Part(sent, Union([parts[0].shape, Leaf(NULL)]))
        bounds = {each: scalar_keywords(node, each) for each in scalars}
        if sum(map(bool, bounds.values())) == 0 or len({*scalars} - {"null"}) == 1:
            groups = [scalars] if scalars else []
        else:
            groups = [[each] for each in scalars]
        for group in groups:
            sent: Json = {"type": group[0] if len(group) == 1 else group}
            for each in group:
                sent |= bounds[each]
            parts.append(Part(sent, Leaf(sent)))
        if not parts and trouble is not None:
            raise trouble
        return any_of(parts)

    def _object(self, node: Node, at: Position) -> Part:
        at.check_level()
        needed = dict.fromkeys(cast(list[str], node.keywords.get("required", [])))
        named = (name for each, _ in node.objects for name in each.get("properties", {}))
        names = [*dict.fromkeys([*named, *needed])]
        free, patterns = node.unnamed_keys()
        if not names and free is True and not patterns and "propertyNames" not in node.keywords:
            return text_of("A JSON object", Text(only_objects=True))
        members: dict[str, Member] = {}
        properties: Json = {}
        for name in names:
            self._document.spend(at.path, len(node.objects))
            inner, path = node.member(name, at.path)
            try:
                part = self._rewrite(inner, at.inside(path, 1))
            except Unsatisfiable as error:
                if name in needed:
                    reason = f"{show(name)} is required, but {error.reason}"
                    # A definition is named itself, not the property that refers to it.
                    refers = isinstance(inner, dict) and "$ref" in inner
                    raise Unsatisfiable(error.path if refers else path, reason) from None
                continue
            members[name] = Member(part.shape, name in needed)
            sent = part.sent if name in needed else optional(part.sent)
            if "$ref" in part.sent and isinstance(inner, dict) and "description" in inner:
                description = cast(Json, inner)["description"]
                if name in needed:
                    node.words.append(f"{name}: {description}")  # Not beside $ref.
                else:
                    sent = {"description": description} | sent
            properties[name] = sent
        self._tally.add_names(at.path, *properties)
        others = self._entries(node, free, patterns, at, is_alone=not names)
        if others is not None and not names:
            return others
        beside: tuple[str, Entries] | None = None
        if others is not None:
            name = _OTHERS
            while name in names:
                name += "_"
            properties[name] = others.sent
            beside = (name, cast(Entries, others.shape))
            self._tally.add_names(at.path, name)
        required = [name for name in needed if name in properties]
        required += [name for name in properties if name not in needed]
        shape = Object(members, free is not False or bool(patterns), beside)
        return Part(object_of(properties, required), shape)

    def _entries(
        self,
        node: Node,
        free: object,
        patterns: list[tuple[str, object]],
        at: Position,
        *,
        is_alone: bool,
    ) -> Part | None:
        """Return the part for unnamed keys, or None if there can be none."""
        if (free is True and not patterns and not is_alone) or (free is False and not patterns):
            return None
        options = [each for _, each in patterns]
        options += [free] if not patterns or free not in (True, False) else []
        deeper = 0 if is_alone else 1
        at.inside(at.path, deeper + 1).check_level()
        path = f"{at.path}.additionalProperties" if not patterns else f"{at.path}.patternProperties"
        keys: list[object] = [{"type": "string"}, node.keywords.get("propertyNames", True)]
        if len(patterns) == 1 and free in (True, False):
            keys.append({"pattern": patterns[0][0]})
        elif patterns:
            node.words += [f"keys with pattern {name}" for name, _ in patterns]
        try:
            key = self._rewrite({"allOf": keys}, at.inside(f"{at.path}.propertyNames", deeper + 2))
            value = self._rewrite(
                options[0] if len(options) == 1 else {"anyOf": options}, at.inside(path, deeper + 2)
            )
        except Unsatisfiable:
            return None
        self._tally.add_names(at.path, "key", "value")
        keywords = node.keywords if is_alone else {}
        least, most = keywords.get("minProperties", 0), keywords.get("maxProperties", math.inf)
        about = "The entries of an object" if is_alone else "The further entries of this object"
        return entries_of(key, value, least, most, f"{about}, each key once.")

    def _array(self, node: Node, at: Position) -> Part:
        least, most = node.keywords.get("minItems", 0), node.keywords.get("maxItems", math.inf)
        length = max((len(each.get("prefixItems", [])) for each, _ in node.arrays), default=0)
        rest = all_of([each.get("items", True) for each, _ in node.arrays])
        if not any("items" in each for each, _ in node.arrays):
            rest = node.keywords.get("unevaluatedItems", True)
        if not length:
            return self._list(rest, least, most, node.keywords.keys(), at)
        places = [
            all_of(
                [
                    [*each.get("prefixItems", []), *[each.get("items", True)] * length][i]
                    for each, _ in node.arrays
                ]
            )
            for i in range(min(length, int(most) if most < length else length))
        ]
        like = {to_json(each) for each in places}
        ends = most <= length or rest is False or (rest is True and least <= length)
        if len(like) == 1 and None not in like and ends:
            bounds = {"maxItems"} | ({"minItems"} if least else set[str]())
            return self._list(places[0], least, min(most, length), bounds, at)
        return self._places(places, None if ends else rest, least, most, at)

    def _list(self, item: object, least: float, most: float, bounds: Any, at: Position) -> Part:
        at.check_level()
        try:
            part = self._rewrite(item, at.inside(f"{at.path}.items", 1))
        except Unsatisfiable as error:
            if least > 0:
                raise Unsatisfiable(
                    at.path, f"minItems is {show(least)}, but {error.reason}"
                ) from None
            part, most, bounds = Part({"type": "string"}, Leaf({"type": "string"})), 0, {"maxItems"}
        sent: Json = {"type": "array", "items": part.sent}
        sent |= {"minItems": least} if "minItems" in bounds else {}
        sent |= {"maxItems": most} if "maxItems" in bounds else {}
        return Part(sent, Array(part.shape, least, most))

    def _places(
        self, places: list[object], rest: object, least: float, most: float, at: Position
    ) -> Part:
        """Return the part for a list of *places*: an object with one property for each."""
        at.check_level()
        members: list[Member] = []
        properties: Json = {}
        for i, each in enumerate(places):
            try:
                part = self._rewrite(each, at.inside(f"{at.path}.prefixItems[{i}]", 1))
            except Unsatisfiable:
                if i < least:
                    raise
                rest = None
                break
            members.append(Member(part.shape, i < least))
            properties[place(i)] = part.sent if i < least else optional(part.sent)
        further: tuple[str, Array] | None = None
        if rest is not None:
            more = max(least - len(places), 0), most - len(places)
            bounds = {"minItems"} if more[0] else set[str]()
            bounds |= {"maxItems"} if more[1] < math.inf else set()
            part = self._list(rest, *more, bounds, at.inside(at.path, 1))
            properties[_FURTHER] = part.sent
            further = (_FURTHER, cast(Array, part.shape))
        self._tally.add_names(at.path, *properties)
        description = {"description": "A list, its items in this order."}
        return Part(object_of(properties) | description, Tuple(members, further))
