"""The caller's output schema: checked before the turn, the answer after it.

Codex hands the schema to the provider and validates nothing, neither the
schema nor the answer (0.60.1 to 0.169.0).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import orjson

from codex_tools.codex.errors import InvalidOutputSchema, OutputMismatch
from codex_tools.codex.failure import shorten
from codex_tools.codex.turn import TurnResult

Json = dict[str, Any]

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
    resolver = EMPTY_REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))
    for path, reference in _references(schema, "$"):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise InvalidOutputSchema(
                path, f"{reference!r} leads nowhere (remote schemas are never fetched)"
            ) from None


def read_output(schema: Json, turn: TurnResult) -> Any:
    """Return the answer of *turn* as data, validated against *schema*.

    Raises:
        OutputMismatch: It is not JSON, or does not satisfy the schema.
    """
    try:
        answer = orjson.loads(turn.final_response or "")
    except orjson.JSONDecodeError as error:
        raise OutputMismatch([f"$: the answer is not JSON ({error})"], turn) from None
    found = [f"{path}: {problem}" for path, problem in problems(schema, answer)]
    if len(found) > _PROBLEMS_TOLD:
        found[_PROBLEMS_TOLD:] = [f"and {len(found) - _PROBLEMS_TOLD} more"]
    if found:
        raise OutputMismatch(found, turn)
    return answer


def problems(schema: Json, value: object) -> list[tuple[str, str]]:
    """Return where and how *value* breaks *schema*, as JSON paths and sentences."""
    # Imported late: it takes as long as starting Codex does.
    from jsonschema import Draft202012Validator
    from referencing.jsonschema import EMPTY_REGISTRY

    validator: Any = Draft202012Validator(schema, registry=EMPTY_REGISTRY)
    found = ((e.json_path, shorten(e.message, 300)) for e in validator.iter_errors(value))
    return sorted(found)


def _references(schema: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(schema, dict):
        for key, value in cast(Json, schema).items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield f"{path}.{key}", value
            yield from _references(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(cast(list[object], schema)):
            yield from _references(value, f"{path}[{index}]")
