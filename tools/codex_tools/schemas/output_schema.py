"""The caller's output schema: checked before the turn, the answer after it.

Codex hands the schema to the provider and validates nothing, neither the
schema nor the answer (0.60.1 to 0.169.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from codex_tools.codex.errors import InvalidOutputSchema, OutputMismatch
from codex_tools.codex.json_object import Json
from codex_tools.codex.masking import shorten
from codex_tools.codex.turn_result import TurnResult
from codex_tools.schemas.keywords import inner_schemas
from codex_tools.schemas.rewriter import StrictSchema, make_strict
from codex_tools.schemas.validation import (
    ALL_PROBLEMS_LIMIT,
    CHECKS_LIMIT,
    EndlessReference,
    TooManyChecks,
    Validator,
    count_checks,
)

PARTS_LIMIT = 12_000
"""Objects and lists of a schema; the provider takes 5,000 properties."""

_PROBLEMS_TOLD = 8


def check_schema(schema: Json) -> None:
    """Insist that *schema* is a JSON Schema (2020-12) that can be validated against.

    Raises:
        InvalidOutputSchema: It is not, or a $ref in it leads nowhere.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidOutputSchema(error.json_path, shorten(error.message, 500)) from None
    resource = DRAFT202012.create_resource(schema)
    for _, path, reference, resolver in _references(
        schema, "$", EMPTY_REGISTRY.resolver_with_root(resource)
    ):
        try:
            found = resolver.lookup(reference).contents
        except (Unresolvable, ValueError, TypeError, AttributeError):
            # The library lets the last three out for a pointer into what is no schema.
            found = None
        if not isinstance(found, dict | bool):
            raise InvalidOutputSchema(
                path, f"{reference!r} leads nowhere (remote schemas are never fetched)"
            )
        _check_end(path, reference, resolver)
    try:
        Validator(schema)
    except ValueError as error:
        raise InvalidOutputSchema(*error.args) from None
    try:
        count_checks(schema, None, find_targets(schema))
    except (EndlessReference, RecursionError):
        raise InvalidOutputSchema("$", "a $ref leads back to itself without end") from None
    except TooManyChecks:
        raise InvalidOutputSchema(
            "$", f"its references expand to more than {CHECKS_LIMIT:,} checks of one value"
        ) from None


def _check_end(path: str, reference: str, resolver: Any) -> None:
    """Insist that a chain of references that begins at *path* has an end."""
    from referencing.exceptions import Unresolvable

    seen: list[object] = []
    following: object = reference
    while isinstance(following, str):
        try:
            found = resolver.lookup(following)
        except (Unresolvable, ValueError, TypeError, AttributeError):
            return  # Told where that reference itself stands.
        if any(found.contents is each for each in seen):
            raise InvalidOutputSchema(path, "a $ref leads back to itself without end")
        seen.append(found.contents)
        node: object = found.contents
        resolver = found.resolver
        following = cast(Json, node).get("$ref") if isinstance(node, dict) else None


@dataclass(frozen=True, slots=True)
class Output:
    """The shape that an answer shall have."""

    schema: Json
    """The caller's own, against which the answer is validated."""
    strict: StrictSchema
    """What is sent: the same, as the provider takes it."""
    repairs: int
    """How many further turns may repair the answer."""
    validator: Validator
    """*schema*, compiled."""
    targets: Mapping[int, Sequence[object]]
    """Where the references of *schema* lead; see `count_checks`."""

    @classmethod
    def of(cls, schema: Json, repairs: int) -> Output:
        """Return the shape that *schema* describes.

        Raises:
            InvalidOutputSchema: It is no JSON Schema, or the provider takes nothing like it.
        """
        if _parts(schema) > PARTS_LIMIT:
            raise InvalidOutputSchema("$", f"it has more than {PARTS_LIMIT:,} parts")
        check_schema(schema)
        return cls(schema, make_strict(schema), repairs, Validator(schema), find_targets(schema))

    def read(self, turn: TurnResult) -> Any:
        """Return the answer of *turn* as data, in the caller's own shape.

        Raises:
            OutputMismatch: It is not JSON, or does not satisfy the schema.
        """
        try:
            answer = self.strict.restore(orjson.loads(turn.final_response or ""))
        except orjson.JSONDecodeError as error:
            raise OutputMismatch([f"$: the answer is not JSON ({error})"], turn) from None
        try:
            checks = count_checks(self.schema, answer, self.targets)
            all_ = checks <= ALL_PROBLEMS_LIMIT
            wrong = self.validator.problems(answer, all_=all_)
            found = [f"{path}: {problem}" for path, problem in wrong]
        except RecursionError:
            found = ["$: the answer is nested too deeply to be checked"]
        except TooManyChecks:
            found = [f"$: the answer needs more than {CHECKS_LIMIT:,} checks against output_schema"]
        if len(found) > _PROBLEMS_TOLD:
            found[_PROBLEMS_TOLD:] = [f"and {len(found) - _PROBLEMS_TOLD} more"]
        if found:
            raise OutputMismatch(found, turn)
        return answer


def _parts(node: object) -> int:
    """Return how many objects and lists *node* holds, itself counted, at most PARTS_LIMIT + 1."""
    count = 0
    ahead: list[object] = [node]
    while ahead and count <= PARTS_LIMIT:
        each = ahead.pop()
        if isinstance(each, dict):
            ahead += cast(Json, each).values()
        elif isinstance(each, list):
            ahead += cast(list[object], each)
        count += isinstance(each, dict | list)
    return count


def find_targets(schema: Json) -> dict[int, list[object]]:
    """Return where the references of *schema* lead, by the `id` of the object that has them."""
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

    root = EMPTY_REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))
    targets: dict[int, list[object]] = {}
    for node, _, reference, resolver in _references(schema, "$", root):
        try:
            targets.setdefault(id(node), []).append(resolver.lookup(reference).contents)
        except (Unresolvable, ValueError, TypeError, AttributeError):
            continue  # check_schema refuses such a schema.
    return targets


def _references(schema: object, path: str, resolver: Any) -> Iterator[tuple[Json, str, str, Any]]:
    """Yield each reference in *schema*: its object, its path, its text, and what resolves it."""
    from referencing.jsonschema import DRAFT202012

    if not isinstance(schema, dict):
        return
    node = cast(Json, schema)
    if "$id" in node:
        resolver = resolver.in_subresource(DRAFT202012.create_resource(node))
    for key in ("$ref", "$dynamicRef"):
        if isinstance(node.get(key), str):
            yield node, f"{path}.{key}", node[key], resolver
    for each, inner_path in inner_schemas(node, path):
        yield from _references(each, inner_path, resolver)
