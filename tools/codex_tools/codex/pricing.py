"""Price requests: tokens in, US dollars out.

The prices are those that the package genai-prices brings along, for OpenAI's
models and the standard service tier, and before them the operator's own.
Nothing is ever fetched. What nobody names has no price, never a price of 0.

Importing genai-prices costs a quarter of a second of CPU, and pydantic and an
HTTP client come with it; so it is imported when the first model asks for it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from decimal import Decimal

    from genai_prices.types import MatchLogic, ModelInfo, ModelPrice, TieredPrices

_SELLERS = ("openai", "azure", "openrouter")
"""Prefixes (`openai/gpt-5.2`) under which OpenAI's models cost what OpenAI takes."""

_DATED = re.compile(r"(.+)-(20\d\d)(-?)(0[1-9]|1[0-2])\3(0[1-9]|[12]\d|3[01])")

_RATES = ("input", "cached_input", "cache_write", "output")
"""The operator's rates, in USD per million tokens, in the order of Price."""

_MOST = 1_000_000_000
"""A rate or a number of tokens above it is a slip."""


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


_Timeline = tuple[tuple[float, Price], ...]
"""Prices with the time each starts (ms, UTC), latest first; empty: no price."""


class Prices:
    """Prices by model and time; `read_prices` makes them."""

    def __init__(self, overrides: Mapping[str, Price], fingerprint: str) -> None:
        self.fingerprint = fingerprint
        """Another one whenever a price may be another one."""
        self._overrides = overrides
        self._found: dict[str | None, _Timeline] = {None: ()}

    @cached_property
    def version(self) -> str:
        """Where the prices come from, in words."""
        from importlib.metadata import version

        count = len(self._overrides)
        more = f" with {count} override{'s' * (count != 1)}" if count else ""
        return f"genai-prices {version('genai-prices')}{more}"

    def of(self, model: str | None, at_ms: int) -> Price | None:
        """Return what a request to *model* costs, or None if nobody knows.

        Args:
            model: The model's id as Codex wrote it down.
            at_ms: When the request was made, in milliseconds of Unix time.
        """
        try:
            timeline = self._found[model]
        except KeyError:
            timeline = self._found[model] = self._find(cast(str, model))
        for start_ms, price in timeline:
            if at_ms >= start_ms:
                return price
        return None

    def _find(self, model: str) -> _Timeline:
        for name in _names(model):
            if (price := self._overrides.get(name)) is not None:
                return ((-inf, price),)
        for name in _names(model):
            if (known := _known(name)) is not None:
                return _timeline(known)
        return ()


def read_prices(overrides: Path | None = None) -> Prices:
    """Return the prices, the operator's own from the TOML file *overrides* first.

    Raises:
        ValueError: The file cannot be read or says something else than prices.
    """
    # Taken before the data is imported, so a fingerprint is never newer than its
    # prices: what an update in between leaves behind is priced again, not kept.
    found = find_spec("genai_prices")
    data = Path(found.origin).with_name("data.py") if found and found.origin else None
    fingerprint = f"{_mark(Path(__file__))}/{_mark(data)}"
    if overrides is None:
        return Prices({}, fingerprint)

    from hashlib import sha256

    try:
        content = overrides.read_bytes()
        own = _parse(content)
    except OSError as error:
        raise ValueError(f"{overrides} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{overrides}: {error}") from error
    return Prices(own, f"{fingerprint}/{sha256(content).hexdigest()}")


def _mark(path: Path | None) -> str:
    """Return what tells one content of *path* from another, whenever it was installed."""
    try:
        return f"{zlib.crc32(path.read_bytes()):08x}" if path else "none"
    except OSError:
        return "none"


def _names(model: str) -> Iterator[str]:
    """Yield the names by which *model* may be known, the most exact first."""
    name = model.strip().lower()
    while True:
        yield name
        if dated := _DATED.fullmatch(name):
            stem, year, _, month, day = dated.groups()
            yield f"{stem}-{year}-{month}-{day}"
            yield stem
        seller, _, rest = name.partition("/")
        if seller not in _SELLERS:
            return
        name = rest


def _known(name: str) -> ModelInfo | None:
    """Return the model of OpenAI that genai-prices calls *name*."""
    if name.startswith("gpt-oss"):
        return None  # Named, but not sold by OpenAI: it runs on the user's machine or anywhere.

    from genai_prices.data import providers

    openai = next(provider for provider in providers if provider.id == "openai")
    model = openai.find_model(name)
    if model is not None and (name == model.id or _spells(model.match, name)):
        return model
    return None


def _spells(match: MatchLogic, name: str) -> bool:
    """Tell whether *match* has all of *name*; "gpt-5-nano-" matches what begins like it."""
    from genai_prices.types import ClauseEquals, ClauseOr

    if isinstance(match, ClauseOr):
        return any(_spells(clause, name) for clause in match.or_)
    return isinstance(match, ClauseEquals) and match.is_match(name)


def _timeline(model: ModelInfo) -> _Timeline:
    """Return *model*'s prices by date, in the order in which genai-prices tries them."""
    from genai_prices.types import ConditionalPrice, ModelPrice, StartDateConstraint

    prices = model.prices
    timeline: list[tuple[float, Price]] = []
    if isinstance(prices, ModelPrice):
        prices = [ConditionalPrice(prices=prices)]
    for dated in reversed(prices):
        start_ms = -inf
        if isinstance(dated.constraint, StartDateConstraint):
            day = dated.constraint.start_date
            start_ms = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000
        elif dated.constraint is not None:
            return ()  # By time of day: no model of OpenAI's yet, and rather none than a wrong one.
        if (price := _price(dated.prices)) is None:
            return ()
        timeline.append((start_ms, price))
    # Before all of them the first one holds.
    return (*timeline, (-inf, timeline[-1][1])) if timeline else ()


def _price(prices: ModelPrice) -> Price | None:
    """Return *prices* as one Price, or None where they are not for text in and text out."""
    plain, output = prices.input_mtok, prices.output_mtok
    if plain is None or output is None:
        return None
    # Without a price of its own, what is read from or written to the cache is plain input.
    cached = plain if prices.cache_read_mtok is None else prices.cache_read_mtok
    cache_write = plain if prices.cache_write_mtok is None else prices.cache_write_mtok
    rates = (plain, cached, cache_write, output)
    starts = {tier.start for rate in rates for tier in getattr(rate, "tiers", ())}
    price, above = None, inf
    for start in (*sorted(starts, reverse=True), -1):
        price = Price(*(_rate_beyond(start, rate) for rate in rates), above=above, beyond=price)
        above = start
    return price


def _rate_beyond(start: int, rate: Decimal | TieredPrices) -> float:
    """Return *rate* in USD per token for requests just longer than *start*."""
    from genai_prices.types import TieredPrices

    if isinstance(rate, TieredPrices):
        rate = [rate.base, *(tier.price for tier in rate.tiers if tier.start <= start)][-1]
    return float(rate) / 1e6


def _parse(content: bytes) -> dict[str, Price]:
    """Return the operator's prices by the names of their models.

    Raises:
        ValueError: They are not as they should be.
    """
    import tomllib

    document = _table(tomllib.loads(content.decode()), "", ("models",))
    prices: dict[str, Price] = {}
    for model, value in _table(document.get("models", {}), "models").items():
        name, where = model.strip().lower(), f'models."{model}"'
        if name in prices:
            raise ValueError(f"{where} is there twice but for case and spaces")
        table = _table(value, where, (*_RATES, "long_context"))
        rates, above, beyond = _rates(table, where), inf, None
        if "long_context" in table:
            where += ".long_context"
            table = _table(table["long_context"], where, (*_RATES, "above"))
            above, beyond = table.get("above"), Price(*_rates(table, where))
            if not isinstance(above, int) or not _is_number(above):
                raise ValueError(f"{where}.above must be a whole number of tokens")
        prices[name] = Price(*rates, above, beyond)
    return prices


def _table(value: object, where: str, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return *value*, insisting that it is a table, with none but the keys *known*."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a table")
    table = cast(dict[str, Any], value)
    for key in table:
        if known is not None and key not in known:
            dots = " (a name with dots needs quotes)" if isinstance(table[key], dict) else ""
            raise ValueError(f"unknown key {f'{where}.{key}'.lstrip('.')}{dots}")
    return table


def _rates(table: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    """Return a table's rates in USD per token, in the order of Price."""
    for key in ("input", "output"):
        if key not in table:
            raise ValueError(f"{where}.{key} is missing")
    rates = {key: table.get(key, table["input"]) for key in _RATES}
    for key, rate in rates.items():
        if not _is_number(rate):
            raise ValueError(f"{where}.{key} must be a number from 0 to {_MOST}")
    plain, cached, cache_write, output = (rate / 1e6 for rate in rates.values())
    return plain, cached, cache_write, output


def _is_number(value: object) -> bool:
    # A bool is an int to Python; the bounds keep out NaN, infinity and what no float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST
