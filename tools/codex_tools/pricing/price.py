"""Price: what one request to a model costs, in US dollars."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Price:
    """What one request costs; the rates are in USD per token."""

    input_usd: float
    cached_usd: float
    cache_write_usd: float
    output_usd: float
    above: float = inf
    """A request with more input tokens than this costs *beyond*, all of it."""
    beyond: Price | None = None

    def cost(
        self, input_tokens: int, cached_tokens: int, cache_write_tokens: int, output_tokens: int
    ) -> float:
        """Return what one request costs in USD.

        Only for one request at a time: a sum over many would seem so long that
        each of its tokens costs double.

        Args:
            input_tokens: All of the request's input.
            cached_tokens: How much of the input came from the cache.
            cache_write_tokens: How much of the input went into the cache.
            output_tokens: All of the output, reasoning included.
        """
        if input_tokens > self.above and self.beyond is not None:
            return self.beyond.cost(input_tokens, cached_tokens, cache_write_tokens, output_tokens)
        uncached = input_tokens - cached_tokens - cache_write_tokens
        return (
            (uncached * self.input_usd if uncached > 0 else 0.0)
            + cached_tokens * self.cached_usd
            + cache_write_tokens * self.cache_write_usd
            + output_tokens * self.output_usd
        )


Timeline = tuple[tuple[float, Price], ...]
"""Prices with the time each starts (ms, UTC), latest first; empty: no price."""
