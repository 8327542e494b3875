"""Find the schemas that a JSON Schema contains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from codex_tools.codex.json_object import Json

ONE = (
    *("additionalProperties", "contains", "contentSchema", "else", "if", "items", "not"),
    *("propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
)
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
"""The keywords of 2020-12 whose values are schemas.

ONE takes one schema, _MANY a list of them, _NAMED an object of them. Under other
keywords, `$ref` is plain data.
"""


def inner_schemas(node: dict[str, Any], path: str) -> Iterator[tuple[object, str]]:
    """Yield the schemas directly inside *node*, each with its JSON path."""
    for key in ONE:
        yield node.get(key), f"{path}.{key}"
    for key in _MANY:
        for i, each in enumerate(node.get(key, [])):
            yield each, f"{path}.{key}[{i}]"
    for key in _NAMED:
        for name, each in node.get(key, {}).items():
            yield each, f"{path}.{key}.{name}"


def with_references(schema: object, change: Callable[[str], str]) -> object:
    """Return *schema* with *change* applied to each reference in it; other data is shared."""
    if not isinstance(schema, dict):
        return schema
    node = dict(cast(Json, schema))
    for key in ("$ref", "$dynamicRef"):
        if isinstance(node.get(key), str):
            node[key] = change(node[key])
    for key in ONE:
        if key in node:
            node[key] = with_references(node[key], change)
    for key in _MANY:
        if key in node:
            node[key] = [with_references(each, change) for each in node[key]]
    for key in _NAMED:
        if key in node:
            inner = cast(Json, node[key])
            node[key] = {name: with_references(each, change) for name, each in inner.items()}
    return node
