"""Compute what one request to a model costs, in US dollars."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one request; its rates are in USD per token."""

    input_usd: float
    cached_usd: float
    cache_write_usd: float
    output_usd: float
    above: float = inf
    """Input tokens of the longest request at these rates; a longer one costs *beyond*."""
    beyond: Price | None = None
    """The price of all tokens of a request with more input tokens than *above*; None if that is
    unknown."""

    def cost(
        self, input_tokens: int, cached_tokens: int, cache_write_tokens: int, output_tokens: int
    ) -> float | None:
        """Return the cost of one request in USD, or None if a request so long has no known price.

        Call this for each request, never for the sum of several. A sum looks like
        one long request, whose tokens may cost twice as much.

        Args:
            input_tokens: All input of the request.
            cached_tokens: The part of the input that was read from the cache.
            cache_write_tokens: The part of the input that was written to the cache.
            output_tokens: All output, including reasoning.
        """
        if input_tokens > self.above:
            if self.beyond is None:
                return None
            return self.beyond.cost(input_tokens, cached_tokens, cache_write_tokens, output_tokens)
        uncached = input_tokens - cached_tokens - cache_write_tokens
        return (
            (uncached * self.input_usd if uncached > 0 else 0.0)
            + cached_tokens * self.cached_usd
            + cache_write_tokens * self.cache_write_usd
            + output_tokens * self.output_usd
        )

    def times(self, factor: float, longest: float = inf) -> Price:
        """Return this price times *factor*, without a price for more input tokens than *longest*.

        Args:
            factor: The number to multiply all rates by.
            longest: Input tokens of the longest request that has a price.
        """
        ends = self.above >= longest
        beyond = None if self.beyond is None or ends else self.beyond.times(factor, longest)
        return Price(
            self.input_usd * factor,
            self.cached_usd * factor,
            self.cache_write_usd * factor,
            self.output_usd * factor,
            longest if ends else self.above,
            beyond,
        )


Timeline = tuple[tuple[float, Price], ...]
"""Prices with their start times (milliseconds of Unix time), latest first.

An empty timeline means that the model is known and has no price.
"""
