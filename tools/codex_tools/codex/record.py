"""Define Record, the base class of all values that cross a boundary, and Usage."""

from __future__ import annotations

import ast
import functools
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema


class Record(BaseModel):
    """A frozen value with a fixed set of fields.

    The string under a field is its description in the JSON Schema that clients
    get. Write it for the model that reads it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Add the fields' descriptions; pydantic's own way would slow down each start."""
        schema = handler(core_schema)
        properties: dict[str, Any] = handler.resolve_ref_schema(schema).get("properties", {})
        for owner in reversed(cls.__mro__):
            for name, text in _strings_under_fields(owner.__module__, owner.__name__).items():
                field = cls.model_fields.get(name)
                key = (field.alias if field is not None else None) or name
                if key in properties:
                    properties[key]["description"] = text
        return schema


@functools.cache
def _strings_under_fields(module: str, name: str) -> dict[str, str]:
    owner = next((c for c in _classes(module) if c.name == name), None)
    body = owner.body if owner is not None else []
    found: dict[str, str] = {}
    for field, after in pairwise(body):
        match field, after:
            case (
                ast.AnnAssign(target=ast.Name(id=key)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[key] = " ".join(text.split())
            case _:
                pass
    return found


@functools.cache
def _classes(module: str) -> list[ast.ClassDef]:
    if not module.startswith("codex_tools."):
        return []
    source = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    return [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]


def _absolute(path: str) -> str:
    if not Path(path).is_absolute():
        raise ValueError("must be an absolute path")
    return path


Folder = Annotated[str, AfterValidator(_absolute)]
"""The absolute path of a folder, as a field of a Record."""


class Usage(Record):
    """Tokens; cached is part of input, reasoning is part of output."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_output_tokens: int | None
    """Null before Codex 0.147"""
    total_tokens: int

    def plus(self, other: Usage) -> Usage:
        """Return the sum of both; its reasoning tokens are known if either one's are."""
        mine, others = self.reasoning_output_tokens, other.reasoning_output_tokens
        known = mine is not None or others is not None
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            cached_input_tokens=self.cached_input_tokens + other.cached_input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_output_tokens=(mine or 0) + (others or 0) if known else None,
            total_tokens=self.total_tokens + other.total_tokens,
        )

    def minus(self, earlier: Usage) -> Usage:
        """Return the tokens used since *earlier*, a previous reading of the same counter."""
        reasoning = self.reasoning_output_tokens
        if reasoning is not None:
            reasoning -= earlier.reasoning_output_tokens or 0
        return Usage(
            input_tokens=self.input_tokens - earlier.input_tokens,
            cached_input_tokens=self.cached_input_tokens - earlier.cached_input_tokens,
            output_tokens=self.output_tokens - earlier.output_tokens,
            reasoning_output_tokens=reasoning,
            total_tokens=self.total_tokens - earlier.total_tokens,
        )
