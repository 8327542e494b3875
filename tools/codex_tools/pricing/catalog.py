"""Read OpenAI's prices from the library genai-prices, through a cache file.

Importing genai-prices takes about 0.15 s of CPU, and pydantic and an HTTP client
come with it. So the first process that needs a price imports the library and
writes OpenAI's prices to a file in the user's cache folder. Later processes read
that file and do not import the library.

The file's name holds the version of genai-prices, so each version has its own
file. A file that is missing, unreadable or damaged is written again. Where the
folder cannot be written, each process imports the library.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from codex_tools.codex.foreign_file import read_foreign
from codex_tools.pricing.price import Price, Timeline

if TYPE_CHECKING:
    from decimal import Decimal

    from genai_prices.types import MatchLogic, ModelInfo, ModelPrice, TieredPrices

FORMAT = 2
"""Number of the rules by which this package finds prices, and of the cache file's format.

Raise it with every change that may give another price for the same request, and
with every change of the file's format. Cache files of another number are not read,
and `Prices.fingerprint` changes, so stored costs are computed again.
"""


SIZE_LIMIT = 16 * 1024 * 1024
"""Maximum bytes of a cache file; one of genai-prices 0.2.3 has 30 KB."""


class Catalog:
    """OpenAI's prices as the installed genai-prices has them.

    Args:
        folder: The folder of the cache file; None for the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @cached_property
    def version(self) -> str:
        """The version of genai-prices."""
        return library_version()

    def find(self, name: str) -> Timeline | None:
        """Return the prices of the model *name* (in lower case), or None if it is unknown."""
        return self._models.get(name)

    @cached_property
    def _models(self) -> Mapping[str, Timeline]:
        # The version is read before the library is imported: an update in between then
        # pairs the old version with new prices, and the new version is priced again.
        version = self.version
        folder = cache_folder() if self._folder is None else self._folder
        if not folder.is_absolute():
            # Without a home folder, the path would be one inside the current project,
            # whose files are not trusted.
            return import_models()
        path = folder / f"prices-{FORMAT}-{version}.jsonl"
        models = _read_cache(path, version)
        if models is None:
            models = import_models()
            if _is_installed(version):  # Else these may be the prices of another version.
                _write_cache(path, version, models)
        return models


def cache_folder() -> Path:
    """Return the folder of this user for files that can be made again."""
    from platformdirs import user_cache_path

    return user_cache_path("mcp-server-codex", appauthor=False)


def library_version() -> str:
    """Return the version of the installed genai-prices, without importing it.

    Raises:
        ImportError: It is not installed.
    """
    found = find_spec("genai_prices")
    if found is not None and found.origin is not None:
        infos = [*Path(found.origin).parent.parent.glob("genai_prices-*.dist-info")]
        if len(infos) == 1:
            # importlib.metadata gives the same after 20 ms of CPU.
            return infos[0].name[len("genai_prices-") : -len(".dist-info")]
    from importlib.metadata import version

    return version("genai-prices")


def import_models() -> dict[str, Timeline]:
    """Import genai-prices and return the prices of OpenAI's models by their names."""
    from genai_prices.data import providers

    openai = next(provider for provider in providers if provider.id == "openai")
    names = {model.id.lower() for model in openai.models}
    names |= {name for model in openai.models for name in _names_in(model.match)}
    found = ((name, find_in_library(name)) for name in sorted(names))
    return {name: timeline for name, timeline in found if timeline is not None}


def find_in_library(name: str) -> Timeline | None:
    """Import genai-prices and return its prices of OpenAI's model *name*, or None."""
    if name.startswith("gpt-oss"):
        # genai-prices lists these, but OpenAI does not sell them: they run on the
        # user's machine or at any provider.
        return None

    from genai_prices.data import providers

    openai = next(provider for provider in providers if provider.id == "openai")
    model = openai.find_model(name)
    if model is not None and (name == model.id or name in _names_in(model.match)):
        return _timeline(model)
    return None


def _is_installed(version: str) -> bool:
    """Return True if genai-prices is installed in *version* now."""
    try:
        return library_version() == version
    except ImportError:  # In the middle of an update.
        return False


def _read_cache(path: Path, version: str) -> dict[str, Timeline] | None:
    """Return the prices in the cache file *path*, or None if it is not what was written."""
    try:
        head, _, body = read_foreign(path, SIZE_LIMIT, owned=True).partition(b"\n")
    except OSError:
        return None
    if head != _head(version, body):
        return None
    return {
        name: tuple((-inf if start is None else start, _price_of(rows)) for start, rows in dated)
        for name, dated in orjson.loads(body).items()
    }


def _write_cache(path: Path, version: str, models: Mapping[str, Timeline]) -> None:
    """Write *models* to the cache file *path*, or write nothing if that is not possible.

    Other processes see the whole file or none of it.
    """
    from tempfile import mkstemp

    body = orjson.dumps(
        {
            name: [[None if start == -inf else start, _rows(price)] for start, price in timeline]
            for name, timeline in models.items()
        }
    )
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, name = mkstemp(prefix=f"{path.name}.", dir=path.parent)  # With mode 0600.
        draft = Path(name)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(_head(version, body) + b"\n" + body)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def _head(version: str, body: bytes) -> bytes:
    """Return the first line of a cache file; *body* is the rest."""
    return orjson.dumps(
        {"format": FORMAT, "genai_prices": version, "crc32": f"{zlib.crc32(body):08x}"}
    )


def _rows(price: Price) -> list[list[float | None]]:
    """Return *price* and the prices of longer requests, as the cache file has them."""
    above = None if price.above == inf else price.above
    row = [price.input_usd, price.cached_usd, price.cache_write_usd, price.output_usd, above]
    return [row, *(_rows(price.beyond) if price.beyond is not None else [])]


def _price_of(rows: list[list[Any]]) -> Price:
    """Return the price that the cache file has as *rows*."""
    price: Price | None = None
    for *rates, above in reversed(rows):
        price = Price(*rates, above=inf if above is None else above, beyond=price)
    assert price is not None
    return price


def _names_in(match: MatchLogic) -> Iterator[str]:
    """Yield the exact names in *match*, in lower case.

    Other clauses are left out: "starts with gpt-5-nano-" also matches names of
    models that do not exist.
    """
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
            # A price by time of day. No model of OpenAI has one yet; no price is better
            # than a wrong one.
            return ()
        if (price := _price(dated.prices)) is None:
            return ()
        timeline.append((start_ms, price))
    # genai-prices uses its first price for requests before all start dates.
    return (*timeline, (-inf, timeline[-1][1])) if timeline else ()


def _price(prices: ModelPrice) -> Price | None:
    """Return *prices* as one Price, or None if text input or text output has no price."""
    plain, output = prices.input_mtok, prices.output_mtok
    if plain is None or output is None:
        return None
    # Tokens read from or written to the cache cost what other input costs, unless
    # they have a price of their own.
    cached = plain if prices.cache_read_mtok is None else prices.cache_read_mtok
    cache_write = plain if prices.cache_write_mtok is None else prices.cache_write_mtok
    rates = (plain, cached, cache_write, output)
    starts = {tier.start for rate in rates for tier in getattr(rate, "tiers", ())}
    price, above = None, inf
    for start in (*sorted(starts, reverse=True), -1):
        price = Price(*(_rate_above(start, rate) for rate in rates), above=above, beyond=price)
        above = start
    return price


def _rate_above(start: int, rate: Decimal | TieredPrices) -> float:
    """Return *rate* in USD per token for requests with just more input tokens than *start*."""
    from genai_prices.types import TieredPrices

    if isinstance(rate, TieredPrices):
        rate = [rate.base, *(tier.price for tier in rate.tiers if tier.start <= start)][-1]
    return float(rate) / 1e6
