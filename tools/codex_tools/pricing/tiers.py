"""Find the factor by which a service tier changes the standard price of a model.

The factors are the ratios of OpenAI's list prices as LiteLLM 1.109.1 records them: a rate
with the ending `_priority`, `_flex` or `_ultrafast` divided by the rate without it. The
ratio is the same for input, cached input, cache writes and output, except where a rate is
rounded to a whole cent. genai-prices 0.2.3 has no prices of tiers for models of OpenAI.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import NamedTuple

STANDARD = frozenset(("", "default", "auto", "standard"))
"""Tiers at the standard price; a request without a tier is one of them."""

_SPELLED = {"fast": "priority"}
"""Names of tiers in Codex's configuration; 0.120.0 to 0.171.0 send "fast" as "priority"."""

_LONG_CONTEXT = 272_000
"""Input tokens up to which a model has a price for a tier, if it has none for more."""


class Factor(NamedTuple):
    """The price of a tier as a multiple of the standard price."""

    times: float
    above: float = inf
    """Input tokens of the longest request with a known price in this tier."""


def _all(times: float, models: str, above: float = inf) -> dict[str, Factor]:
    """Return the same factor for each of *models*, which are separated by spaces."""
    return dict.fromkeys(models.split(), Factor(times, above))


_NEW = (
    "gpt-5.6 gpt-5.6-sol gpt-5.6-terra gpt-5.6-luna"
    " gpt-6-astra gpt-6-sol gpt-6-luna gpt-6.1-sol gpt-6.1-terra"
)
_FACTORS: Mapping[str, Mapping[str, Factor]] = {
    "priority": {
        **_all(2, f"gpt-5 gpt-5.1 gpt-5.2 gpt-5.3-codex gpt-5.4-mini gpt-4.1-nano {_NEW}"),
        **_all(2, "gpt-5.4", _LONG_CONTEXT),
        **_all(2.5, "gpt-5.5", _LONG_CONTEXT),
        **_all(1.8, "gpt-5-mini"),
        **_all(1.75, "gpt-4.1 gpt-4.1-mini o3"),
        **_all(20 / 11, "o4-mini"),
    },
    "flex": {
        **_all(
            0.5,
            "gpt-5 gpt-5-mini gpt-5-nano gpt-5.1 gpt-5.2 gpt-5.4 gpt-5.4-mini gpt-5.4-nano"
            f" gpt-5.4-pro gpt-5.5 o3 o4-mini {_NEW}",
        ),
        **_all(0.5, "gpt-5.5-pro", _LONG_CONTEXT),
    },
    "ultrafast": _all(6, "gpt-6-astra gpt-6.1-sol"),
}


def tier_named(tier: str | None) -> str | None:
    """Return the name of a recorded tier in the table, or None for the standard tier."""
    name = (tier or "").strip().lower()
    return None if name in STANDARD else _SPELLED.get(name, name)


def factor_of(tier: str, model: str) -> Factor | None:
    """Return the factor of *tier* for a model's name in lower case, or None if it is unknown."""
    return _FACTORS.get(tier, {}).get(model)
