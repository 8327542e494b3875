"""Validate values against JSON Schema (2020-12) in bounded time.

A caller chooses the schema, and a model chooses the value. Both can be chosen such that validation
never ends. A worker thread does not help, because the validator holds Python's interpreter lock.
Three limits apply:

* Patterns run on an engine that is linear in the text (jsonschema-rs). That engine lacks
  look-around and back-references; for these, jsonschema-rs limits backtracking.
* `uniqueItems` compares hashes: 20,000 objects take 8 ms, where Python's jsonschema took 25 s for
  4,000.
* `$ref`, `allOf` and similar keywords can apply schemas to one value exponentially often.
  `count_checks` counts these checks beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast
from urllib.parse import quote

from codex_tools.codex.json_object import Json
from codex_tools.codex.masking import shorten
from codex_tools.schemas.keywords import with_references

CHECKS_LIMIT = 1_000_000
"""Maximum number of times that parts of a schema are applied to parts of a value: about 0.3 s.

An answer of 1 MB with a schema of ordinary size needs some 500,000.
"""

BACKTRACK_LIMIT = 2_000
"""Maximum backtracking steps of a pattern with look-around or back-references on one text."""

ALL_PROBLEMS_LIMIT = 20_000
"""Number of checks above which only the first problem is reported: each further problem takes as
long to find as the first."""

_FANCY = re.compile(r"\(\?<?[=!]|\\[1-9k]")
_FANCY_CHECKS = 30
"""Cost, in checks, of such a pattern for each character of the text.

Each of the BACKTRACK_LIMIT steps can scan the whole text: 100,000 characters took 1 s. With the
former fixed cost and limit, one look-ahead on 1,000,000 characters took 43 s.
"""

_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


class TooManyChecks(Exception):
    """A schema and a value together need more than CHECKS_LIMIT checks."""


class EndlessReference(Exception):
    """A $ref leads back to itself without descending into the value."""


class Validator:
    """A compiled schema."""

    def __init__(self, schema: object) -> None:
        """Compile *schema*; remote references are never fetched.

        Raises:
            ValueError: *schema* cannot be compiled; the arguments are (path, problem).
        """
        # Imported late: most runs have no schema.
        from jsonschema_rs import Draft202012Validator, FancyRegexOptions, ValidationError

        options = FancyRegexOptions(backtrack_limit=BACKTRACK_LIMIT)
        try:
            self._compiled: Any = Draft202012Validator(
                cast(Any, with_references(schema, _quoted)), pattern_options=options, offline=True
            )
        except ValidationError as error:
            raise ValueError(json_path(error.instance_path), error.message) from None

    def is_valid(self, value: object) -> bool:
        """Return True if *value* is valid against the schema."""
        return self._compiled.is_valid(value)

    def problems(self, value: object, *, all_: bool = True) -> list[tuple[str, str]]:
        """Return the problems of *value*: the JSON path of each, and a sentence.

        Args:
            value: The value.
            all_: False to stop at the first problem.
        """
        from jsonschema_rs import ValidationError

        if self.is_valid(value):
            return []
        found: list[Any] = []
        if all_:
            found = [*self._compiled.iter_errors(value)]
        else:
            try:
                self._compiled.validate(value)
            except ValidationError as error:
                found = [error]
        return sorted((json_path(e.instance_path), shorten(e.message, 300)) for e in found)


def _quoted(reference: str) -> str:
    """Return a reference as a valid URI: generic models are named `Box[int]`, for example."""
    return quote(reference, safe="%#/:?&=+$,;@!*'()~._-")


@lru_cache(maxsize=256)
def pattern_validator(pattern: str) -> Validator:
    """Return a validator for one pattern.

    Raises:
        ValueError: *pattern* is not a regular expression.
    """
    return Validator({"pattern": pattern})


def problems(schema: Json, value: object) -> list[tuple[str, str]]:
    """Return the problems of *value* with *schema*; only for schemas that no caller chooses."""
    return Validator(schema).problems(value)


def json_path(parts: Sequence[str | int]) -> str:
    """Return a path as JSONPath: $.items[0]['a b']."""
    path = "$"
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _NAME.fullmatch(part):
            path += f".{part}"
        else:
            path += "['" + part.replace("\\", "\\\\").replace("'", "\\'") + "']"
    return path


def count_checks(schema: object, value: object, targets: Mapping[int, Sequence[object]]) -> int:
    """Return the number of times that parts of *schema* are applied to parts of *value*.

    Args:
        schema: The schema.
        value: The value.
        targets: The schemas that references lead to, by the `id` of the object in the schema that
            has the references.

    Raises:
        TooManyChecks: The number exceeds CHECKS_LIMIT.
        EndlessReference: A reference leads back to itself without descending into the value.
        RecursionError: The value is nested too deeply.
    """
    return _Counter(targets).count(schema, value)


class _Counter:
    """Counts checks and caches the count of each pair of schema and value.

    Counting therefore takes at most the schema's size times the value's, even where the resulting
    number is astronomical.
    """

    def __init__(self, targets: Mapping[int, Sequence[object]]) -> None:
        self._targets = targets
        self._known: dict[tuple[int, int], int | None] = {}
        self._visits = 0

    def count(self, schema: object, value: object) -> int:
        """Return the number of checks of *value* against *schema*."""
        self._visits += 1
        if self._visits > CHECKS_LIMIT:
            raise TooManyChecks
        if not isinstance(schema, dict):
            return 1
        key = (id(cast(object, schema)), _key_of(value))
        if key in self._known:
            known = self._known[key]
            if known is None:
                raise EndlessReference
            return known
        self._known[key] = None  # Being counted.
        node = cast(Json, schema)
        total = 1 + _own_checks(node, value)
        for inner in self._always_applied(node):
            total += self.count(inner, value)
        for inner, each in self._perhaps_applied(node, value):
            try:
                total += self.count(inner, each)
            except EndlessReference:
                continue  # Another alternative may end it.
        if total > CHECKS_LIMIT:
            raise TooManyChecks
        self._known[key] = total
        return total

    def _always_applied(self, node: Json) -> Iterator[object]:
        """Yield each schema that *node* applies to every value itself."""
        yield from cast(list[object], node.get("allOf", ()))
        yield from self._targets.get(id(node), ())

    def _perhaps_applied(self, node: Json, value: object) -> Iterator[tuple[object, object]]:
        """Yield each other schema that *node* may apply, with the value it is applied to."""
        for key in ("anyOf", "oneOf"):
            for inner in cast(list[object], node.get(key, ())):
                yield inner, value
        for key in ("not", "if", "then", "else"):
            if key in node:
                yield node[key], value
        if isinstance(value, dict):
            yield from _applied_to_object(node, cast(Json, value))
        elif isinstance(value, list):
            yield from _applied_to_list(node, cast(list[object], value))


def _applied_to_object(node: Json, value: Json) -> Iterator[tuple[object, object]]:
    for inner in node.get("dependentSchemas", {}).values():
        yield inner, value
    named: Json = node.get("properties", {})
    # Each pattern might match; matching is not tried here.
    general = [*node.get("patternProperties", {}).values()]
    general += [node[k] for k in ("additionalProperties", "unevaluatedProperties") if k in node]
    if not named and not general and "propertyNames" not in node:
        return
    for name, each in value.items():
        if name in named:
            yield named[name], each
        for inner in general:
            yield inner, each
        if "propertyNames" in node:
            yield node["propertyNames"], name


def _applied_to_list(node: Json, value: list[object]) -> Iterator[tuple[object, object]]:
    prefix: list[object] = node.get("prefixItems", [])
    yield from zip(prefix, value, strict=False)
    general = [node[k] for k in ("items", "contains", "unevaluatedItems") if k in node]
    for each in value if general else ():
        for inner in general:
            yield inner, each


def _key_of(value: object) -> int:
    """Return a number that is the same for values with the same count of checks.

    Texts of one length have the same count, and so have all numbers, booleans and nulls.
    """
    if isinstance(value, str):
        return -1 - len(value)
    return id(cast(object, value)) if isinstance(value, dict | list) else 0


def _own_checks(node: Json, value: object) -> int:
    """Return the cost, in checks, of the keywords of *node* that apply no other schema."""
    cost = len(node.get("enum", ())) // 20
    match value:
        case str() if _is_fancy(node.get("pattern")):
            cost += _FANCY_CHECKS * len(value)
        case dict():
            fancy = sum(map(_is_fancy, node.get("patternProperties", ())))
            cost += fancy * _FANCY_CHECKS * sum(map(len, cast(Json, value)))
        case _:
            pass
    return cost


def _is_fancy(pattern: object) -> bool:
    return isinstance(pattern, str) and _FANCY.search(pattern) is not None
