"""Price the requests of one run: read them from the rollout and price each by itself."""

from __future__ import annotations

from pathlib import Path

from codex_tools.codex.record import Usage
from codex_tools.pricing.prices import Prices
from codex_tools.rollouts.files import blocks, thread_id_of
from codex_tools.rollouts.thread_reader import ThreadReader
from codex_tools.rollouts.token_counter import each_request


class _Models:
    """Collect the models of a reader's requests."""

    def __init__(self) -> None:
        self.names: list[str | None] = []

    def number(self, model: str | None, cwd: str | None) -> int:
        """Return the number of *model*."""
        self.names.append(model)
        return len(self.names) - 1


def cost_of(path: Path, since_ms: int, prices: Prices) -> float | None:
    """Return the cost in USD of a thread's requests since a time.

    The cost is None if a request has no known price, or if no request was recorded.

    Args:
        path: The thread's rollout.
        since_ms: Milliseconds since 1970.
        prices: The prices of tokens by model and time.

    Raises:
        OSError: The rollout cannot be read.
    """
    models = _Models()
    reader = ThreadReader(thread_id_of(path.name), models)
    for block in blocks(path):
        reader.feed(block)
    reader.finish()
    costs: list[float] = []
    for ms, context, input_, cached, write, output, _ in each_request(reader.requests):
        if ms >= since_ms:
            price = prices.of(models.names[context], ms)
            if price is None:
                return None
            costs.append(price.cost(input_, cached, write, output))
    return round(sum(costs), 6) if costs else None


def cost_without_rollout(
    usage: Usage | None, model: str | None, at_ms: int, prices: Prices
) -> float | None:
    """Return the cost in USD of the requests summed up in *usage*, or None if it is unknown.

    It is unknown if the model has no price, and if a request may have been so long that its
    tokens cost more. Then only a price for each request is right.
    """
    price = prices.of(model, at_ms)
    if usage is None or price is None or usage.input_tokens > price.above:
        return None
    cost = price.cost(usage.input_tokens, usage.cached_input_tokens, 0, usage.output_tokens)
    return round(cost, 6)
