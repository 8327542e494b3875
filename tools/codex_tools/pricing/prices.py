"""Find the price of a request: by its model and by the time at which it was made.

The operator's own prices come first, then those of the library genai-prices, for
OpenAI's models and the standard service tier. Nothing is fetched from the network.
A model that neither knows has no price; its cost is unknown, never 0.
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
    """

    def __init__(
        self, overrides: Mapping[str, Price], catalog: Catalog, overrides_hash: str = ""
    ) -> None:
        self._overrides, self._catalog = overrides, catalog
        self._overrides_hash = overrides_hash
        self._found: dict[str | None, Timeline] = {None: ()}

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

    def of(self, model: str | None, at_ms: int) -> Price | None:
        """Return the price of a request to *model*, or None if it is unknown.

        The first call for a model without an override reads the cache file of
        genai-prices' prices, or imports that library. Both are too slow for the event loop.

        Args:
            model: The model's id as Codex recorded it.
            at_ms: The time of the request, in milliseconds of Unix time.
        """
        try:
            timeline = self._found[model]
        except KeyError:
            timeline = self._found[model] = self._find(cast(str, model))
        for start_ms, price in timeline:
            if at_ms >= start_ms:
                return price
        return None

    def _find(self, model: str) -> Timeline:
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
        own = _parse(content)
    except OSError as error:
        raise ValueError(f"{overrides} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{overrides}: {error}") from error
    return Prices(own, Catalog(), sha256(content).hexdigest())


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


def _parse(content: bytes) -> dict[str, Price]:
    """Return the operator's prices by the names of their models, in lower case.

    Raises:
        ValueError: *content* is not TOML, or has an unknown, missing or wrong value.
    """
    import tomllib

    document = _checked_table(tomllib.loads(content.decode()), "", ("models",))
    prices: dict[str, Price] = {}
    for model, value in _checked_table(document.get("models", {}), "models").items():
        name, where = model.strip().lower(), f'models."{model}"'
        if name in prices:
            raise ValueError(
                f"{where} is there twice: case and spaces at the ends of a name do not count"
            )
        table = _checked_table(value, where, (*_RATES, "long_context"))
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
    return prices


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


def _is_number(value: object) -> bool:
    """Return True if *value* is a number from 0 to _MAX_VALUE."""
    # A bool is an int to Python. The bounds also exclude NaN, infinity and integers
    # that no float can hold.
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_VALUE
    )
