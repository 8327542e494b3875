"""Check the caller's output schema before the turn, and validate the answer after it.

Codex hands the schema to the provider. Codex validates neither the schema nor the answer (0.60.1
to 0.169.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from codex_tools.codex.errors import InvalidOutputSchema, OutputMismatch
from codex_tools.codex.json_object import Json, NotExact, read_exactly
from codex_tools.codex.masking import shorten
from codex_tools.codex.turn_result import TurnResult
from codex_tools.schemas.keywords import inner_schemas
from codex_tools.schemas.validation import (
    ALL_PROBLEMS_LIMIT,
    CHECKS_LIMIT,
    EndlessReference,
    TooManyChecks,
    Validator,
    count_checks,
)

if TYPE_CHECKING:  # Few calls have a schema, and each server pays for what it imports.
    from codex_tools.schemas.rewriter import StrictSchema

PARTS_LIMIT = 12_000
"""Maximum objects and lists of a schema; the provider takes 5,000 properties."""

_PROBLEMS_SHOWN = 8
"""Maximum number of problems in one error."""


def check_schema(schema: Json) -> None:
    """Check that *schema* is a JSON Schema (2020-12) that answers can be validated against.

    Raises:
        InvalidOutputSchema: *schema* is not one, or a $ref in it cannot be resolved.
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
            # The library raises the last three for a pointer into a value that is no schema.
            found = None
        if not isinstance(found, dict | bool):
            raise InvalidOutputSchema(
                path, f"{reference!r} cannot be resolved (remote schemas are never fetched)"
            )
        _check_end(path, reference, resolver)
    try:
        Validator(schema)
    except ValueError as error:
        raise InvalidOutputSchema(*error.args) from None
    try:
        count_checks(schema, None, find_targets(schema))
    except (EndlessReference, RecursionError):
        raise InvalidOutputSchema("$", "a $ref refers to itself endlessly") from None
    except TooManyChecks:
        raise InvalidOutputSchema(
            "$", f"its references expand to more than {CHECKS_LIMIT:,} checks of one value"
        ) from None


def _check_end(path: str, reference: str, resolver: Any) -> None:
    """Check that the chain of references that begins at *path* has an end."""
    from referencing.exceptions import Unresolvable

    seen: list[object] = []
    following: object = reference
    while isinstance(following, str):
        try:
            found = resolver.lookup(following)
        except (Unresolvable, ValueError, TypeError, AttributeError):
            return  # The check of that reference itself reports this.
        if any(found.contents is each for each in seen):
            raise InvalidOutputSchema(path, "a $ref refers to itself endlessly")
        seen.append(found.contents)
        node: object = found.contents
        resolver = found.resolver
        following = cast(Json, node).get("$ref") if isinstance(node, dict) else None


@dataclass(frozen=True, slots=True)
class Output:
    """The schema that an answer must satisfy, compiled."""

    schema: Json
    """The caller's own schema, against which the answer is validated."""
    strict: StrictSchema
    """The schema that is sent: *schema*, rewritten as the provider accepts it."""
    repairs: int
    """Maximum number of further turns to repair the answer."""
    validator: Validator
    """*schema*, compiled."""
    targets: Mapping[int, Sequence[object]]
    """The targets of the references of *schema*; see `count_checks`."""

    @classmethod
    def of(cls, schema: Json, repairs: int) -> Output:
        """Check and compile *schema*.

        Args:
            schema: The caller's schema.
            repairs: Maximum number of further turns to repair the answer.

        Raises:
            InvalidOutputSchema: *schema* is not a JSON Schema, or the provider accepts no form of
                it.
        """
        from codex_tools.schemas.rewriter import make_strict

        if _parts(schema) > PARTS_LIMIT:
            raise InvalidOutputSchema("$", f"it has more than {PARTS_LIMIT:,} parts")
        check_schema(schema)
        return cls(schema, make_strict(schema), repairs, Validator(schema), find_targets(schema))

    def read(self, turn: TurnResult) -> Any:
        """Return the answer of *turn* as data that satisfies the caller's schema.

        Raises:
            OutputMismatch: The answer is not JSON, or does not satisfy the schema.
        """
        from codex_tools.schemas.rewriter import Ambiguous

        try:
            answer = self.strict.restore(read_exactly(turn.final_response or ""))
        except NotExact as error:
            raise OutputMismatch([f"$: {error}"], turn) from None
        except ValueError as error:
            raise OutputMismatch([f"$: the answer is not JSON ({error})"], turn) from None
        except Ambiguous as error:
            raise OutputMismatch(_shown(error.problems), turn) from None
        try:
            checks = count_checks(self.schema, answer, self.targets)
            all_ = checks <= ALL_PROBLEMS_LIMIT
            wrong = self.validator.problems(answer, all_=all_)
            found = [f"{path}: {problem}" for path, problem in wrong]
        except RecursionError:
            found = ["$: the answer is nested too deeply to be checked"]
        except TooManyChecks:
            found = [f"$: the answer needs more than {CHECKS_LIMIT:,} checks against output_schema"]
        if found:
            raise OutputMismatch(_shown(found), turn)
        return answer


def _shown(problems: list[str]) -> list[str]:
    if len(problems) <= _PROBLEMS_SHOWN:
        return problems
    return [*problems[:_PROBLEMS_SHOWN], f"and {len(problems) - _PROBLEMS_SHOWN} more"]


def _parts(node: object) -> int:
    """Count the objects and lists in *node*, itself included, up to PARTS_LIMIT + 1."""
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
    """Return the targets of all references, by the `id` of the object that has them."""
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
    """Yield each reference in *schema*: its object, its path, its text, and its resolver."""
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
