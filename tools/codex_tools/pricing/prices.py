"""Price requests: tokens in, US dollars out.

The prices are those that the package genai-prices brings along, for OpenAI's
models and the standard service tier, and before them the operator's own.
Nothing is ever fetched. What nobody names has no price, never a price of 0.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, cast

from codex_tools.pricing.catalog import Catalog
from codex_tools.pricing.price import Price, Timeline

_SELLERS = ("openai", "azure", "openrouter")
"""Prefixes (`openai/gpt-5.2`) under which OpenAI's models cost what OpenAI takes."""

_DATED = re.compile(r"(.+)-(20\d\d)(-?)(0[1-9]|1[0-2])\3(0[1-9]|[12]\d|3[01])")

_RATES = ("input", "cached_input", "cache_write", "output")
"""The operator's rates, in USD per million tokens, in the order of Price."""

_SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in ("prices.py", "catalog.py", "price.py", "prices.json")
)
"""What makes prices of the package's data."""

_MOST = 1_000_000_000
"""A rate or a number of tokens above it is a slip."""


class Prices:
    """Prices by model and time; `read_prices` makes them."""

    def __init__(self, overrides: Mapping[str, Price], catalog: Catalog, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        """Another one whenever a price may be another one."""
        self._overrides, self._catalog = overrides, catalog
        self._found: dict[str | None, Timeline] = {None: ()}

    @cached_property
    def version(self) -> str:
        """Where the prices come from, in words."""
        count = len(self._overrides)
        more = f" with {count} override{'s' * (count != 1)}" if count else ""
        return f"genai-prices {self._catalog.version}{more}"

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

    def _find(self, model: str) -> Timeline:
        for name in _names(model):
            if (price := self._overrides.get(name)) is not None:
                return ((-inf, price),)
        for name in _names(model):
            if (known := self._catalog.find(name)) is not None:
                return known
        return ()


def read_prices(overrides: Path | None = None) -> Prices:
    """Return the prices, the operator's own from the TOML file *overrides* first.

    Raises:
        ValueError: The file cannot be read or says something else than prices.
    """
    catalog = Catalog()
    ours = "-".join(_mark(path) for path in _SOURCES)
    fingerprint = f"{ours}/{catalog.mark}"
    if overrides is None:
        return Prices({}, catalog, fingerprint)

    from hashlib import sha256

    try:
        content = overrides.read_bytes()
        own = _parse(content)
    except OSError as error:
        raise ValueError(f"{overrides} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{overrides}: {error}") from error
    return Prices(own, catalog, f"{fingerprint}/{sha256(content).hexdigest()}")


def _mark(path: Path) -> str:
    """Return what tells one content of *path* from another, whenever it was installed."""
    try:
        return f"{zlib.crc32(path.read_bytes()):08x}"
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
