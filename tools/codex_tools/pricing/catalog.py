"""What the package genai-prices knows of OpenAI's models, and a table of it.

Importing genai-prices costs a fifth of a second of CPU, and pydantic and an
HTTP client come with it. So what it says of OpenAI's models lies beside this
file, in `prices.json`, with a mark of what it was made from. The table is used
only while that mark is the installed package's; else the package is asked.
`make prices` makes it anew.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from codex_tools.pricing.price import Price, Timeline

if TYPE_CHECKING:
    from decimal import Decimal

    from genai_prices.types import MatchLogic, ModelInfo, ModelPrice, TieredPrices

TABLE = Path(__file__).with_name("prices.json")

Find = Callable[[str], Timeline | None]
"""Returns the prices of a model by its name in lower case; None if it has no such model."""

_OPENAI, _NEXT = b"\n        id='openai',\n", b"\n    Provider(\n"
"""How the package's part about OpenAI begins, and the one after it."""


class Catalog:
    """The installed genai-prices; imported when the table does not do for it."""

    def __init__(self, table: Path = TABLE) -> None:
        found = find_spec("genai_prices")
        self._folder = Path(found.origin).parent if found and found.origin else None
        data, code = self._read("data.py"), self._read("types.py")
        # Taken before the data is imported, so a mark is never newer than its
        # prices: what an update in between leaves behind is priced again, not kept.
        self.mark = f"{zlib.crc32(data):08x}-{zlib.crc32(code):08x}" if data else "none"
        """Another one whenever the package may say something else."""
        start = data.find(_OPENAI)
        part = data[start : data.find(_NEXT, start)] if start >= 0 else b""
        self.part = f"{zlib.crc32(part, zlib.crc32(code)):08x}" if part else "none"
        """Another one whenever it may say something else of OpenAI."""
        self._table = _read_table(table, self.part)

    @property
    def find(self) -> Find:
        """How to find a model's prices."""
        return find_in_package if self._table is None else self._table.get

    @property
    def version(self) -> str:
        """The package's version."""
        if self._folder is not None:
            found = [*self._folder.parent.glob("genai_prices-*.dist-info")]
            if len(found) == 1:
                # importlib.metadata would say the same for 20 ms.
                return found[0].name[len("genai_prices-") : -len(".dist-info")]
        from importlib.metadata import version

        return version("genai-prices")

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes() if self._folder is not None else b""
        except OSError:
            return b""


def make_table() -> bytes:
    """Return the table of what the installed package says of OpenAI's models."""
    from genai_prices.data import providers

    openai = next(provider for provider in providers if provider.id == "openai")
    names = {model.id.lower() for model in openai.models}
    names |= {name for model in openai.models for name in _names_in(model.match)}
    models = {
        name: [[None if start == -inf else start, _rows(price)] for start, price in found]
        for name in sorted(names)
        if (found := find_in_package(name)) is not None
    }
    lines = [f'"{name}":{orjson.dumps(dated).decode()}' for name, dated in models.items()]
    head = f'{{"of":"{Catalog().part}","models":{{\n'
    return (head + ",\n".join(lines) + "\n}}\n").encode()


def find_in_package(name: str) -> Timeline | None:
    """Return the prices of the model of OpenAI that genai-prices calls *name*, if there is one."""
    if name.startswith("gpt-oss"):
        return None  # Named, but not sold by OpenAI: it runs on the user's machine or anywhere.

    from genai_prices.data import providers

    openai = next(provider for provider in providers if provider.id == "openai")
    model = openai.find_model(name)
    if model is not None and (name == model.id or name in _names_in(model.match)):
        return _timeline(model)
    return None


def _read_table(path: Path, part: str) -> dict[str, Timeline] | None:
    """Return the prices by the names of their models; None if they are of something else."""
    try:
        content: Any = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    if content["of"] != part:
        return None
    return {
        name: tuple((-inf if start is None else start, _price_of(rows)) for start, rows in dated)
        for name, dated in content["models"].items()
    }


def _rows(price: Price) -> list[list[float | None]]:
    """Return a price and the one beyond it as the table has them, in USD per million tokens."""
    rates = [price.input_usd, price.cached_usd, price.cache_write_usd, price.output_usd]
    above = None if price.above == inf else price.above
    row = [*(round(rate * 1e6, 9) for rate in rates), above]
    return [row, *(_rows(price.beyond) if price.beyond is not None else [])]


def _price_of(rows: list[list[Any]]) -> Price:
    """Return the price that the table has as *rows*."""
    price: Price | None = None
    for *rates, above in reversed(rows):
        usd = (rate / 1e6 for rate in rates)
        price = Price(*usd, above=inf if above is None else above, beyond=price)
    assert price is not None
    return price


def _names_in(match: MatchLogic) -> Iterator[str]:
    """Yield the whole names that *match* has; "gpt-5-nano-" matches what begins like it."""
    from genai_prices.types import ClauseEquals, ClauseOr

    if isinstance(match, ClauseOr):
        for clause in match.or_:
            yield from _names_in(clause)
    elif isinstance(match, ClauseEquals):
        yield match.equals.lower()


def _timeline(model: ModelInfo) -> Timeline:
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


if __name__ == "__main__":
    TABLE.write_bytes(make_table())
