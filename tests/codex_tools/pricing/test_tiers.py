"""Prices of service tiers, as multiples of the standard price."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from codex_tools.pricing import tiers
from codex_tools.pricing.price import Price
from codex_tools.pricing.prices import read_prices
from codex_tools.pricing.tiers import factor_of, tier_named

NOW_MS = 1795521600000
PRICES = read_prices()
LONG = 272_000

OWN = """\
[models."my-model"]
input = 2
cached_input = 1
output = 10
tiers = { Priority = 3, flex = 0.25, turbo = 7 }
[models."my-model".long_context]
above = 1000
input = 4
output = 20

[models."gpt-5.5"]
input = 1
output = 1

[models."gpt-6.2-sol"]
input = 1
output = 1
"""


def of(model: str, tier: str | None, at_ms: int = NOW_MS) -> Price | None:
    return PRICES.of(model, at_ms, tier)


def cost(
    model: str, tier: str | None, input_: int, cached: int = 0, write: int = 0
) -> float | None:
    price = of(model, tier)
    assert price is not None, (model, tier)
    return price.cost(input_, cached, write, 100)


@pytest.mark.parametrize(
    ("model", "tier", "times"),
    [
        ("gpt-5.5", "priority", 2.5),
        ("gpt-5.4", "priority", 2),
        ("gpt-5.4-mini", "priority", 2),
        ("gpt-5.3-codex", "priority", 2),
        *((f"gpt-5.6-{name}", "priority", 2) for name in ("sol", "terra", "luna")),
        *((f"gpt-6-{name}", "priority", 2) for name in ("sol", "astra", "luna")),
        *((f"gpt-6.1-{name}", "priority", 2) for name in ("sol", "terra")),
        ("gpt-6-astra", "ultrafast", 6),
        *((f"gpt-{name}", "flex", 0.5) for name in ("5.4", "5.5", "5.6-sol", "6-astra", "6.1-sol")),
        ("o4-mini", "priority", 2 / 1.1),
        ("gpt-5.5", "fast", 2.5),
        ("gpt-5.5", " Priority ", 2.5),
        ("openai/gpt-5.5-2026-04-23", "priority", 2.5),
    ],
)
def test_a_tier_multiplies_all_rates(model: str, tier: str, times: float) -> None:
    for tokens in ((100_000, 90_000, 0), (100_000, 50_000, 20_000), (100, 0, 100), (0, 0, 0)):
        standard = cost(model, None, *tokens)
        assert standard is not None
        assert cost(model, tier, *tokens) == pytest.approx(times * standard, rel=1e-9)


def test_the_request_of_the_case_costs_two_and_a_half_times_as_much() -> None:
    price = of("gpt-5.5", "priority")
    assert price is not None
    assert price.cost(1200, 1000, 0, 34) == pytest.approx(0.0063, rel=1e-9)


@pytest.mark.parametrize("tier", [None, "", "default", "Default", "auto", "standard"])
def test_the_standard_tier_costs_the_standard_price(tier: str | None) -> None:
    assert tier_named(tier) is None
    assert of("gpt-5.5", tier) == PRICES.of("gpt-5.5", NOW_MS)


@pytest.mark.parametrize(
    ("model", "tier"),
    [
        ("gpt-5.5", "turbo"),  # 0.171.0 records any name.
        ("gpt-5.5", "ultrafast"),
        ("gpt-5.2-codex", "priority"),
        ("gpt-5.3-codex", "flex"),
        *(
            (model, tier)
            for model in ("gpt-6.2-sol", "gpt-6.2-astra", "gpt-5.3-codex-spark", "no-such-model")
            for tier in ("priority", "flex", None)
        ),
        *((model, None) for model in ("codex-auto-review", "gpt-daybreak-blue-latest")),
        *((model, None) for model in ("gpt-daybreak-red-latest", "gpt-daybreak-2")),
    ],
)
def test_a_model_or_tier_that_is_not_known_has_no_price(model: str, tier: str | None) -> None:
    assert of(model, tier) is None


def test_no_model_has_no_price_in_any_tier() -> None:
    assert PRICES.of(None, NOW_MS, "priority") is None
    assert PRICES.of(None, NOW_MS) is None


@pytest.mark.parametrize(
    ("model", "tier", "times"),
    [("gpt-5.6-sol", "priority", 2), ("gpt-6-astra", "ultrafast", 6), ("gpt-5.5", "flex", 0.5)],
)
def test_a_long_request_in_a_tier_costs_that_multiple_of_a_long_one(
    model: str, tier: str, times: float
) -> None:
    for input_ in (LONG, LONG + 1):
        standard = cost(model, None, input_, 200_000, 1000)
        assert standard is not None
        assert cost(model, tier, input_, 200_000, 1000) == pytest.approx(times * standard, rel=1e-9)
    short, long = cost(model, tier, LONG), cost(model, tier, LONG + 1)
    assert short is not None
    assert long is not None
    assert long > 1.9 * short


@pytest.mark.parametrize("model", ["gpt-5.4", "gpt-5.5"])
def test_a_long_request_without_a_price_in_the_tier_has_no_cost(model: str) -> None:
    assert cost(model, "priority", LONG) is not None
    assert cost(model, "priority", LONG + 1) is None
    assert cost(model, None, LONG + 1) is not None


def test_a_price_without_an_end_gets_one() -> None:
    plain = Price(1, 1, 1, 1)
    assert plain.times(2) == Price(2, 2, 2, 2)
    assert plain.times(2, 10) == Price(2, 2, 2, 2, above=10)
    assert plain.times(2, 10).cost(11, 0, 0, 0) is None
    longer = Price(1, 1, 1, 1, above=20, beyond=plain)
    assert longer.times(3, 10) == Price(3, 3, 3, 3, above=10)
    assert longer.times(3, 30) == Price(3, 3, 3, 3, 20, Price(3, 3, 3, 3, above=30))


def test_the_price_of_the_request_s_day_is_multiplied() -> None:
    change = round(datetime(2026, 8, 21, tzinfo=UTC).timestamp() * 1000)
    for at_ms, usd in ((change - 1, 1.0), (change, 0.8)):
        price = of("gpt-5.6-sol", "priority", at_ms)
        assert price is not None
        assert price.cost(100_000, 0, 0, 0) == pytest.approx(usd, rel=1e-9)


def test_each_model_with_a_factor_has_a_standard_price() -> None:
    table = tiers._FACTORS  # pyright: ignore[reportPrivateUsage]
    assert set(table) == {"priority", "flex", "ultrafast"}
    for tier, models in table.items():
        assert tier_named(tier) == tier
        for model in models:
            assert of(model, None) is not None, model
            assert factor_of(tier, model) is not None


def test_the_operator_s_own_factors_come_first(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(OWN)
    prices = read_prices(path)

    def usd(model: str, tier: str | None, input_: int = 1000) -> float | None:
        price = prices.of(model, NOW_MS, tier)
        return None if price is None else price.cost(input_ * 1000, 0, 0, 0)

    assert [usd("my-model", tier, 1) for tier in ("priority", "fast", "flex", "turbo", None)] == [
        pytest.approx(factor * 0.002) for factor in (3, 3, 0.25, 7, 1)
    ]
    # Each factor is for long requests, too.
    assert usd("my-model", "priority") == pytest.approx(12)
    assert usd("my-model", "other") is None
    # A known model keeps its factors, whatever its rates are; a new one has none.
    assert usd("gpt-5.5", "priority", 1) == pytest.approx(0.0025)
    assert usd("gpt-6.2-sol", "priority", 1) is None
    assert usd("gpt-6.2-sol", None, 1) == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("2", "tiers must be a table"),
        ('{ fast = "2" }', "tiers.fast must be a number"),
        ("{ flex = -1 }", "tiers.flex must be a number"),
        ("{ default = 1 }", "tiers.default is the standard tier"),
    ],
)
def test_a_factor_that_makes_no_sense_is_refused(tmp_path: Path, value: str, says: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(f'[models."m"]\ninput = 1\noutput = 1\ntiers = {value}\n')
    with pytest.raises(ValueError, match="prices") as caught:
        read_prices(path)
    assert says in str(caught.value)
