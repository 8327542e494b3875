"""Record, the base of every value that crosses a boundary, and Usage."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen value with a fixed set of fields.

    The string under a field is its description in the JSON Schema that a
    client sees, so it is written for the model that reads it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class Usage(Record):
    """Tokens; cached is part of input, reasoning is part of output."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_output_tokens: int | None
    """Null where this Codex does not tell (before 0.147)."""
    total_tokens: int

    def minus(self, earlier: Usage) -> Usage:
        """Return what was used since *earlier*, a former reading of the same counter."""
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
