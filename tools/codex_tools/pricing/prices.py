"""Find the price of a request: by its model, its time and its service tier.

The operator's own prices come first, then those of the library genai-prices for
OpenAI's models. Both are prices of the standard tier; another tier multiplies them
(`tiers`). Nothing is fetched from the network. A model or a tier that neither knows
has no price; its cost is unknown, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, cast

from codex_tools.codex.foreign_file import read_foreign
from codex_tools.pricing.catalog import FORMAT, SIZE_LIMIT, Catalog
from codex_tools.pricing.price import Price, Timeline
from codex_tools.pricing.tiers import Factor, factor_of, tier_named

_SELLERS = ("openai", "azure", "openrouter")
"""Prefixes (`openai/gpt-5.2`) under which a model costs what OpenAI charges for it."""

_DATED = re.compile(r"(.+)-(20\d\d)(-?)(0[1-9]|1[0-2])\3(0[1-9]|[12]\d|3[01])")
"""A model's name with a date at its end: `gpt-5.2-2025-12-11` or `gpt-5.2-20251211`."""

_RATES = ("input", "cached_input", "cache_write", "output")
"""The rates in the operator's file, in USD per million tokens, in the order of Price."""

_MAX_VALUE = 1_000_000_000
"""The largest rate or number of tokens in the operator's file; a larger one is a mistake."""


class Prices:
    """Prices by model and time, made by `read_prices`.

    Args:
        overrides: The operator's prices by model.
        catalog: The prices of genai-prices.
        overrides_hash: A hash of the file that *overrides* come from.
        own_factors: The operator's factors by model and service tier.
    """

    def __init__(
        self,
        overrides: Mapping[str, Price],
        catalog: Catalog,
        overrides_hash: str = "",
        own_factors: Mapping[str, Mapping[str, Factor]] | None = None,
    ) -> None:
        self._overrides, self._catalog = overrides, catalog
        self._overrides_hash = overrides_hash
        self._own_factors = own_factors or {}
        self._found: dict[tuple[str | None, str | None], Timeline] = {}

    @cached_property
    def fingerprint(self) -> str:
        """A text that changes whenever a price may have changed.

        It holds the number of our own rules (`FORMAT`, raised by hand), the version
        of genai-prices and the hash of the operator's file.
        """
        return f"{FORMAT}/{self._catalog.version}/{self._overrides_hash}"

    @cached_property
    def version(self) -> str:
        """The source of the prices in words, such as "genai-prices 0.2.3 with 1 override"."""
        count = len(self._overrides)
        more = f" with {count} override{'s' * (count != 1)}" if count else ""
        return f"genai-prices {self._catalog.version}{more}"

    def of(self, model: str | None, at_ms: int, tier: str | None = None) -> Price | None:
        """Return the price of a request to *model*, or None if it is unknown.

        The first call for a model without an override reads the cache file of
        genai-prices' prices, or imports that library. Both are too slow for the event loop.

        Args:
            model: The model's id as Codex recorded it.
            at_ms: The time of the request, in milliseconds of Unix time.
            tier: The service tier as Codex recorded it; None for the standard tier.
        """
        try:
            timeline = self._found[model, tier]
        except KeyError:
            timeline = self._found[model, tier] = self._find(model, tier_named(tier))
        for start_ms, price in timeline:
            if at_ms >= start_ms:
                return price
        return None

    def _find(self, model: str | None, tier: str | None) -> Timeline:
        timeline = () if model is None else self._standard(model)
        if model is None or tier is None:
            return timeline
        factor = self._factor(model, tier)
        if factor is None:
            return ()
        return tuple((start, price.times(*factor)) for start, price in timeline)

    def _factor(self, model: str, tier: str) -> Factor | None:
        """Return the factor of *tier* for *model*: the operator's own, or that of the table."""
        for name in _names(model):
            if (factor := self._own_factors.get(name, {}).get(tier)) is not None:
                return factor
        return next(filter(None, (factor_of(tier, name) for name in _names(model))), None)

    def _standard(self, model: str) -> Timeline:
        """Return the prices of *model* in the standard tier."""
        for name in _names(model):
            if (price := self._overrides.get(name)) is not None:
                return ((-inf, price),)
        for name in _names(model):
            if (known := self._catalog.find(name)) is not None:
                return known
        return ()


def read_prices(overrides: Path | None = None) -> Prices:
    """Return prices that use the operator's TOML file *overrides* before genai-prices.

    Raises:
        ValueError: The file cannot be read, or it is not as documented.
    """
    if overrides is None:
        return Prices({}, Catalog())

    from hashlib import sha256

    try:
        content = read_foreign(overrides, SIZE_LIMIT, follow=True)
        own, factors = _parse(content)
    except OSError as error:
        raise ValueError(f"{overrides} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{overrides}: {error}") from error
    return Prices(own, Catalog(), sha256(content).hexdigest(), factors)


def _names(model: str) -> Iterator[str]:
    """Yield the names under which *model* may have a price, the most exact one first."""
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


def _parse(content: bytes) -> tuple[dict[str, Price], dict[str, dict[str, Factor]]]:
    """Return the operator's prices, and factors of tiers, by their models' names in lower case.

    Raises:
        ValueError: *content* is not TOML, or has an unknown, missing or wrong value.
    """
    import tomllib

    document = _checked_table(tomllib.loads(content.decode()), "", ("models",))
    prices: dict[str, Price] = {}
    factors: dict[str, dict[str, Factor]] = {}
    for model, value in _checked_table(document.get("models", {}), "models").items():
        name, where = model.strip().lower(), f'models."{model}"'
        if name in prices:
            raise ValueError(
                f"{where} is there twice: case and spaces at the ends of a name do not count"
            )
        table = _checked_table(value, where, (*_RATES, "long_context", "tiers"))
        factors[name] = _factors(table.get("tiers", {}), f"{where}.tiers")
        rates, above, beyond = _rates(table, where), inf, None
        if "long_context" in table:
            where += ".long_context"
            table = _checked_table(table["long_context"], where, (*_RATES, "above"))
            above, beyond = table.get("above"), Price(*_rates(table, where))
            if not isinstance(above, int) or not _is_number(above):
                raise ValueError(
                    f"{where}.above must be a whole number of tokens from 0 to {_MAX_VALUE:,}"
                )
        prices[name] = Price(*rates, above, beyond)
    return prices, factors


def _checked_table(
    value: object, where: str, known: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Return *value* as a table.

    Args:
        value: The value in the operator's file.
        where: Its dotted key there, for messages.
        known: The only keys that the table may have; None for any.

    Raises:
        ValueError: *value* is no table, or has a key that is not in *known*.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a table")
    table = cast(dict[str, Any], value)
    for key in table:
        if known is not None and key not in known:
            dots = " (a name with dots needs quotes)" if isinstance(table[key], dict) else ""
            raise ValueError(
                f"unknown key {f'{where}.{key}'.lstrip('.')}{dots}; known are {', '.join(known)}"
            )
    return table


def _rates(table: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    """Return the rates in *table* in USD per token, in the order of Price.

    Raises:
        ValueError: One is missing, no number or too large.
    """
    for key in ("input", "output"):
        if key not in table:
            raise ValueError(f"{where}.{key} is missing")
    rates = {key: table.get(key, table["input"]) for key in _RATES}
    for key, rate in rates.items():
        if not _is_number(rate):
            raise ValueError(f"{where}.{key} must be a number from 0 to {_MAX_VALUE:,}")
    plain, cached, cache_write, output = (rate / 1e6 for rate in rates.values())
    return plain, cached, cache_write, output


def _factors(value: object, where: str) -> dict[str, Factor]:
    """Return the operator's factors by the names of their tiers.

    Raises:
        ValueError: *value* is no table, or one of its values is no number or too large.
    """
    factors: dict[str, Factor] = {}
    for tier, times in _checked_table(value, where).items():
        if not _is_number(times):
            raise ValueError(f"{where}.{tier} must be a number from 0 to {_MAX_VALUE:,}")
        if (name := tier_named(tier)) is None:
            raise ValueError(f"{where}.{tier} is the standard tier, which costs the rates above")
        factors[name] = Factor(times)
    return factors


def _is_number(value: object) -> bool:
    """Return True if *value* is a number from 0 to _MAX_VALUE."""
    # A bool is an int to Python. The bounds also exclude NaN, infinity and integers
    # that no float can hold.
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_VALUE
    )
