"""Prices agree with genai-prices for each model, length and time, and with the operator's file."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data import providers
from genai_prices.types import (
    ClauseContains,
    ClauseEquals,
    ClauseOr,
    ClauseStartsWith,
    ConditionalPrice,
    MatchLogic,
    ModelInfo,
    ModelPrice,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)

from codex_tools.pricing import catalog as catalog_module
from codex_tools.pricing import tiers
from codex_tools.pricing.catalog import FORMAT, Catalog, find_in_library, import_models
from codex_tools.pricing.price import Price, Timeline
from codex_tools.pricing.prices import Prices, read_prices

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NOW_MS = 1795521600000
DAY_MS = 86_400_000

OPENAI = next(provider for provider in providers if provider.id == "openai")
FAMILIES = ("gpt-5", "gpt-6", "codex", "gpt-4.1", "gpt-4o", "gpt-chat", "o1", "o3", "o4")
MODELS = [
    model
    for model in OPENAI.models
    if model.id.startswith(FAMILIES) and isinstance(model.match, ClauseEquals | ClauseOr)
]

OWN = """\
[models."my-model"]
input = 1.25
cached_input = 0.125
cache_write = 1.5
output = 10.0
[models."my-model".long_context]
above = 272000
input = 2.5
cached_input = 0.25
output = 15

[models." GPT-5.2 "]
input = 100
output = 0
"""


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def names(match: MatchLogic) -> Iterator[str]:
    if isinstance(match, ClauseOr):
        for clause in match.or_:
            yield from names(clause)
    elif isinstance(match, ClauseEquals):
        yield match.equals


def versions(model: ModelInfo) -> list[ModelPrice]:
    prices = model.prices
    return [prices] if isinstance(prices, ModelPrice) else [dated.prices for dated in prices]


def times(model: ModelInfo) -> Iterator[datetime]:
    """Yield times around each change of the model's prices."""
    yield from (datetime(2020, 1, 1, tzinfo=UTC), NOW, datetime(2040, 1, 1, tzinfo=UTC))
    for dated in [] if isinstance(model.prices, ModelPrice) else model.prices:
        if isinstance(dated.constraint, StartDateConstraint):
            start = datetime.fromisoformat(f"{dated.constraint.start_date}T00:00:00+00:00")
            yield from (start - timedelta(milliseconds=1), start, start + timedelta(hours=23))


def inputs(model: ModelInfo) -> list[int]:
    """Return numbers of input tokens around each threshold of the model."""
    rates = [rate for prices in versions(model) for rate in vars(prices).values()]
    starts = {tier.start for r in rates if isinstance(r, TieredPrices) for tier in r.tiers}
    return [100_000, 3_000_000, *(start + more for start in starts for more in (-1, 0, 1))]


def named(model: str, at_ms: int = NOW_MS, prices: Prices | None = None) -> Price:
    price = (prices or read_prices()).of(model, at_ms)
    assert price is not None
    return price


def own(folder: Path, text: str | bytes) -> Path:
    path = folder / "prices.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def environment(cache: Path, path: Path | None = None) -> dict[str, str]:
    """Return an environment whose user keeps caches below *cache*."""
    own = {"HOME": str(cache), "XDG_CACHE_HOME": str(cache / "xdg")}
    return os.environ | own | ({"PYTHONPATH": str(path)} if path else {})


def run_python(code: str, *arguments: Path, cache: Path, path: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(cache, path),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_a_request_costs_what_genai_prices_says_under_each_of_the_model_s_names(
    model: ModelInfo,
) -> None:
    prices = read_prices()
    spelled = list(names(model.match))
    assert spelled
    for name, moment in product(spelled, times(model)):
        # The whole grid for one name; the others have only to find the same price.
        grid = inputs(model) if name == spelled[0] else [300_000]
        for tokens, share in product(grid, ((0, 0), (0.9, 0), (0, 0.4), (0.5, 0.5))):
            cached, cache_write = (int(tokens * part) for part in share)
            usage = Usage(
                input_tokens=tokens,
                cache_read_tokens=cached,
                cache_write_tokens=cache_write,
                output_tokens=1000,
            )
            expected = calc_price(
                usage, name, provider_id="openai", genai_request_timestamp=moment
            ).total_price
            assert expected > 0
            price = named(name, ms(moment), prices)
            assert price.cost(tokens, cached, cache_write, 1000) == pytest.approx(
                float(expected), rel=1e-9, abs=0
            ), (name, moment, tokens, share)


def every_name() -> set[str]:
    """Return all names that genai-prices has for any model of anybody."""
    models = [model for provider in providers for model in provider.models]
    spelled = {name.lower() for model in models for name in names(model.match)}
    return spelled | {model.id.lower() for model in models}


@pytest.mark.parametrize("cached", [False, True])
def test_a_catalog_finds_what_the_library_finds_under_each_name(
    cached: bool, tmp_path: Path
) -> None:
    if cached:
        assert Catalog(tmp_path).find("gpt-5")
    found = Catalog(tmp_path)
    for name in every_name() | {
        "gpt-oss-20b",
        "gpt-5.2-superduper",
        "gpt-5-nano-",
        "gpt-4o-20240513",
    }:
        assert found.find(name) == find_in_library(name), name


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the version of genai-prices at each time that a catalog asks the library."""
    seen: list[str] = []

    def import_and_count() -> dict[str, Timeline]:
        seen.append(catalog_module.library_version())
        return import_models()

    monkeypatch.setattr(catalog_module, "import_models", import_and_count)
    return seen


def test_the_library_is_asked_once_for_all_catalogs(tmp_path: Path, imports: list[str]) -> None:
    folder = tmp_path / "not" / "there"
    first, second = Catalog(folder), Catalog(folder)
    assert not folder.exists()
    assert first.find("gpt-5") == second.find("gpt-5") is not None
    assert first.find("gpt-5.4") == Catalog(folder).find("gpt-5.4")
    assert len(imports) == 1
    (path,) = folder.iterdir()
    assert path.name == f"prices-{FORMAT}-{version('genai-prices')}.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_cache_is_in_the_user_s_cache_folder(tmp_path: Path) -> None:
    code = "from codex_tools.pricing.catalog import *; Catalog().find(''); print(cache_folder())"
    folder = Path(run_python(code, cache=tmp_path).strip())
    assert folder.is_relative_to(tmp_path)
    assert folder.name == "mcp-server-codex"
    assert len([*folder.iterdir()]) == 1


def test_another_version_of_the_library_has_another_file(
    tmp_path: Path, imports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for installed in ("0.2.3", "0.2.4", "0.2.3", "0.2.4"):
        monkeypatch.setattr(catalog_module, "library_version", lambda is_now=installed: is_now)
        assert Catalog(tmp_path).find("gpt-5")
    assert imports == ["0.2.3", "0.2.4"]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"prices-{FORMAT}-0.2.3.jsonl",
        f"prices-{FORMAT}-0.2.4.jsonl",
    }
    # A file that was copied under the name of another version is not used.
    old, new = sorted(tmp_path.iterdir())
    new.write_bytes(old.read_bytes())
    assert Catalog(tmp_path).find("gpt-5")
    assert len(imports) == 3


def test_prices_of_an_update_in_between_are_not_kept(
    tmp_path: Path, imports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog(tmp_path)
    before = catalog.version

    def gone() -> str:
        raise PackageNotFoundError

    for now in (lambda: "0.2.99", gone):
        catalog = Catalog(tmp_path)
        assert catalog.version == before
        with monkeypatch.context() as patch:
            patch.setattr(catalog_module, "import_models", import_models)
            patch.setattr(catalog_module, "library_version", now)
            assert catalog.find("gpt-5")
        assert not [*tmp_path.iterdir()]
    assert Catalog(tmp_path).find("gpt-5")
    assert imports == [before]


def test_a_damaged_or_foreign_cache_file_is_written_again(
    tmp_path: Path, imports: list[str]
) -> None:
    known = Catalog(tmp_path).find("gpt-5")
    (path,) = tmp_path.iterdir()
    made = path.read_bytes()
    digit = made.replace(b"e-6,", b"e-7,", 1)
    assert digit != made
    foreign = (
        *(b"", b"{", b"\n", b"null\n{}", made[:-1], made[:1000], made + b"\n", digit),
        made.replace(f'"format":{FORMAT}'.encode(), b'"format":999'),
        made.partition(b"\n")[2],
        bytes(1000),
    )
    for count, content in enumerate(foreign, 2):
        path.write_bytes(content)
        assert Catalog(tmp_path).find("gpt-5") == known
        assert path.read_bytes() == made
        assert Catalog(tmp_path).find("gpt-5") == known
        assert len(imports) == count


def test_a_cache_file_that_cannot_be_read_is_done_without(
    tmp_path: Path, imports: list[str]
) -> None:
    known = Catalog(tmp_path).find("gpt-5")
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    assert Catalog(tmp_path).find("gpt-5") == Catalog(tmp_path).find("gpt-5") == known
    assert len(imports) == 3
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, imports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0o500)
    folders = [tmp_path / "file", tmp_path / "file" / "below", Path("/proc/no/such")]
    if os.geteuid() != 0:
        folders.append(tmp_path / "locked")
    for folder in folders:
        for _ in range(2):
            assert Catalog(folder).find("gpt-5")
    assert len(imports) == 2 * len(folders)
    assert not [*(tmp_path / "locked").iterdir()]
    # A full disk is noticed late: nothing is left behind, and nothing is used.
    imports.clear()
    full = tmp_path / "full"

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        assert Catalog(full).find("gpt-5")
    assert not [*full.iterdir()]
    assert Catalog(full).find("gpt-5")
    assert len(imports) == 2


def test_a_relative_folder_is_neither_read_nor_written(
    tmp_path: Path, imports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Catalog(tmp_path / "cache").find("gpt-5")
    monkeypatch.chdir(tmp_path)
    for folder in (Path("cache"), Path("~/.cache")):
        assert Catalog(folder).find("gpt-5")
    assert len(imports) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


RACE = """\
import sys
from codex_tools.pricing import catalog
def wait_then_import(known=catalog.import_models):
    print("here", flush=True)
    sys.stdin.readline()
    return known()
catalog.import_models = wait_then_import
print(catalog.Catalog().find("gpt-5.4"), len(catalog.Catalog()._models))
"""


def test_processes_that_need_prices_at_once_all_get_them(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE],
            env=environment(tmp_path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        for process in processes:  # All of them have found no cache file.
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
        said = {process.communicate("go\n", timeout=60)[0] for process in processes}
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert {process.returncode for process in processes} == {0}
    assert said == {f"{find_in_library('gpt-5.4')} {len(import_models())}\n"}
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert path.suffix == ".jsonl"


def test_the_models_compared_are_many_and_have_tiers_and_changing_prices() -> None:
    ids = {model.id for model in MODELS}
    assert {"gpt-5", "gpt-5.3-codex", "gpt-5.6-sol", "gpt-6.1-sol", "codex-mini"} <= ids
    assert len(ids) > 40
    assert sum(len(inputs(model)) > 2 for model in MODELS) > 5
    assert sum(len(list(times(model))) > 3 for model in MODELS) > 3


@pytest.mark.parametrize(
    ("model", "usd"),
    [
        *((f"gpt-5{more}", 0.3375) for more in ("", "-codex", ".1", ".1-codex", ".1-codex-max")),
        ("gpt-5-mini", 0.0675),
        ("gpt-5.1-codex-mini", 0.0675),
        ("gpt-5.2", 0.4725),
        ("gpt-5.2-codex", 0.4725),
        ("gpt-5.3-codex", 0.4725),
        ("gpt-5.4", 0.625),
        ("gpt-5.4-mini", 0.1875),
        ("gpt-5.5", 1.25),
        ("gpt-5.6-sol", 0.96),
        ("gpt-6-astra", 2.4),
        ("gpt-6-sol", 0.48),
        ("gpt-6.1-sol", 0.39),
        ("gpt-6-luna", 0.024),
        ("codex-mini-latest", 0.5475),
    ],
)
def test_ten_requests_cost_what_was_found_by_hand(model: str, usd: float) -> None:
    price = named(model)
    assert price.cost(100_000, 90_000, 0, 1_000) == pytest.approx(usd / 10, rel=1e-9)


def test_ten_requests_do_not_cost_what_one_of_ten_times_the_length_costs() -> None:
    price = named("gpt-5.4")
    assert price.cost(100_000, 90_000, 0, 1_000) == pytest.approx(0.0625, rel=1e-9)
    assert price.cost(1_000_000, 900_000, 0, 10_000) == pytest.approx(1.175, rel=1e-9)


def test_a_threshold_is_the_last_length_at_the_lower_price() -> None:
    price = named("gpt-5.4")
    assert price.cost(272_000, 0, 0, 0) == pytest.approx(0.68)
    assert price.cost(272_001, 0, 0, 0) == pytest.approx(1.360005)


def test_a_price_is_that_of_the_request_s_day_in_utc() -> None:
    prices = read_prices()
    change = ms(datetime(2026, 8, 21, tzinfo=UTC))
    before, after = (named("gpt-5.6-sol", at, prices) for at in (change - 1, change))
    assert before.cost(100_000, 0, 0, 0) == pytest.approx(0.5)
    assert after.cost(100_000, 0, 0, 0) == pytest.approx(0.4)
    assert named("gpt-5.6-sol", 0, prices) is before
    assert named("gpt-5.6-sol", change + 400 * DAY_MS, prices) is after


@pytest.mark.parametrize("cached", [False, True])
def test_prices_that_openai_does_not_have_yet_are_read_as_genai_prices_reads_them(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rate(base: int, **tiers: int) -> TieredPrices:
        return TieredPrices(
            base=Decimal(base),
            tiers=[Tier(start=int(at[1:]), price=Decimal(usd)) for at, usd in tiers.items()],
        )

    def new(name: str, prices: ModelPrice | list[ConditionalPrice]) -> ModelInfo:
        return ModelInfo(id=name, match=ClauseEquals(name), prices=prices)

    uneven = ModelPrice(
        input_mtok=rate(1, _100=2, _200=4, _300=8),
        cache_read_mtok=rate(16, _200=32),
        cache_write_mtok=rate(64, _150=128),
        output_mtok=rate(256, _0=512),
    )
    flat = ModelPrice(input_mtok=Decimal(3), output_mtok=Decimal(5))
    free = ModelPrice(
        input_mtok=Decimal(3), cache_read_mtok=Decimal(0), output_mtok=rate(1, _250=7)
    )
    first, second = (StartDateConstraint(date(2026, month, 1)) for month in (3, 6))
    models = [
        new("uneven", uneven),
        new(
            "dated",
            [
                ConditionalPrice(first, prices=flat),
                ConditionalPrice(second, prices=uneven),
                ConditionalPrice(first, prices=free),
            ],
        ),
        new(
            "started",
            [ConditionalPrice(first, prices=flat), ConditionalPrice(second, prices=free)],
        ),
    ]
    night = TimeOfDateConstraint(time(1), time(5))
    unpriced = [
        new("no-output", ModelPrice(input_mtok=Decimal(3))),
        new("no-input", ModelPrice(output_mtok=Decimal(3))),
        new("never", []),
        new(
            "partly",
            [
                ConditionalPrice(prices=flat),
                ConditionalPrice(first, prices=ModelPrice(output_mtok=Decimal(3))),
            ],
        ),
        new("nightly", [ConditionalPrice(prices=flat), ConditionalPrice(night, prices=free)]),
    ]
    models += [
        ModelInfo(id="begins", match=ClauseStartsWith("begin"), prices=flat),
        ModelInfo(id="loose", match=ClauseOr([ClauseContains("loose")]), prices=flat),
    ]
    monkeypatch.setattr(OPENAI, "models", [*OPENAI.models, *models, *unpriced])
    if cached:
        assert Catalog(tmp_path).find("uneven")
    prices = Prices({}, Catalog(tmp_path))
    days = [datetime(2026, month, 1, tzinfo=UTC) for month in (2, 3, 5, 6, 7)]
    tokens = [0, 1, *(at + more for at in (100, 150, 200, 250, 300) for more in (-1, 0, 1))]
    for model, day, count in product(models, days, tokens):
        usage = Usage(
            input_tokens=count,
            cache_read_tokens=count // 3,
            cache_write_tokens=count // 3,
            output_tokens=10,
        )
        expected = calc_price(
            usage, model.id, provider_id="openai", genai_request_timestamp=day
        ).total_price
        cost = named(model.id, ms(day), prices).cost(count, count // 3, count // 3, 10)
        assert cost == pytest.approx(float(expected), rel=1e-9, abs=0), (model.id, day, count)
    for name in [*(model.id for model in unpriced), "begin", "begins-so", "a-loose-one"]:
        assert prices.of(name, NOW_MS) is None


def test_uncached_input_is_never_below_nothing() -> None:
    price = Price(1, 0.5, 2, 10)
    assert price.cost(100, 60, 30, 1) == 10 + 30 + 60 + 10
    assert price.cost(100, 80, 30, 1) == 40 + 60 + 10
    assert price.cost(0, 0, 0, 0) == 0


@pytest.mark.parametrize(
    "model",
    [
        None,
        "",
        " ",
        "/",
        "openai/",
        "no-such-model",
        "gpt-5.3-codex-spark",
        "codex-auto-review",
        "gpt-5.4-superduper",
        "gpt-5-nano-superduper",
        "gpt-5.6-sol-superduper",
        "my-moderation-model",
        "computer-use-2030",
        "gpt-5.",
        "gpt-",
        "xgpt-5.2",
        "gpt-5.2x",
        "gpt-5.2-2026",
        "gpt-5.2-2026-13-01",
        "gpt-5.2-2026-01-32",
        "gpt-5.2-2026-0101",
        "gpt-5.2-1999-01-01",
        "2026-01-01",
        "ollama/gpt-5.2",
        "groq/openai/gpt-5.2",
        "openai//gpt-5.2",
        "anthropic/claude-sonnet-4-5",
        "claude-sonnet-4-5",
        "gemini-2.5-pro",
        "gpt-oss:20b",
        "gpt-oss-20b",
        "openai/gpt-oss-120b",
        "whisper-1",
        "text-embedding-3-large",
    ],
)
def test_what_nobody_prices_has_no_price(model: str | None) -> None:
    prices = read_prices()
    for at_ms in (0, NOW_MS, NOW_MS):
        assert prices.of(model, at_ms) is None


@pytest.mark.parametrize(
    ("model", "same"),
    [
        (" GPT-5.2\n", "gpt-5.2"),
        ("gpt-5.2-codex-2026-01-01", "gpt-5.2-codex"),
        ("gpt-5.2-codex-20260101", "gpt-5.2-codex"),
        ("openai/gpt-5.2", "gpt-5.2"),
        ("OpenAI/GPT-5.2", "gpt-5.2"),
        ("azure/gpt-5.4", "gpt-5.4"),
        ("openrouter/openai/gpt-5.5", "gpt-5.5"),
        ("openrouter/openai/gpt-5.6-sol-20260901", "gpt-5.6-sol"),
        ("gpt-5-nano-2025-08-07", "gpt-5-nano"),
        ("gpt-5-2-20251211", "gpt-5.2"),
        # A date that genai-prices names has its own price.
        ("gpt-4o-20240513", "gpt-4o-2024-05-13"),
        ("openai/gpt-4o-20240513", "gpt-4o-2024-05-13"),
        ("gpt-4o-2024-05-14", "gpt-4o"),
    ],
)
def test_a_model_is_known_by_its_name_less_seller_and_date(model: str, same: str) -> None:
    prices = read_prices()
    assert named(model, NOW_MS, prices) == named(same, NOW_MS, prices)
    assert named("gpt-4o") != named("gpt-4o-2024-05-13")


def test_the_operator_s_price_comes_first(tmp_path: Path) -> None:
    prices = read_prices(own(tmp_path, OWN))
    for model in ("my-model", "My-Model ", "openai/my-model", "my-model-2026-01-01"):
        price = named(model, 0, prices)
        expected = (100_000 * 1.25 + 90_000 * 0.125 + 10_000 * 1.5 + 1000 * 10) / 1e6
        assert price.cost(200_000, 90_000, 10_000, 1000) == pytest.approx(expected, rel=1e-9)
        expected = (272_000 - 90_000 - 10_000) * 1.25 + 90_000 * 0.125 + 10_000 * 1.5
        assert price.cost(272_000, 90_000, 10_000, 0) == pytest.approx(expected / 1e6, rel=1e-9)
        # Beyond the threshold, too, a cache write without a rate of its own is plain input.
        expected = (272_001 - 90_000) * 2.5 + 90_000 * 0.25 + 1000 * 15
        assert price.cost(272_001, 90_000, 10_000, 1000) == pytest.approx(expected / 1e6, rel=1e-9)
    for model in ("gpt-5.2", "azure/gpt-5.2", "gpt-5.2-2025-12-11"):
        price = named(model, NOW_MS, prices)
        assert price.cost(1_000_000, 900_000, 50_000, 7) == pytest.approx(100, rel=1e-9)
    assert prices.of("other/my-model", 0) is None
    assert named("gpt-5.2-codex", NOW_MS, prices) == named("gpt-5.2-codex")


def test_the_more_exact_of_the_operator_s_names_wins(tmp_path: Path) -> None:
    exact = ["openai/m-2026-01-01", "openai/m", "m-2026-01-01", "m"]
    text = "".join(f'[models."{m}"]\ninput = {n}\noutput = 0\n' for n, m in enumerate(exact, 1))
    prices = read_prices(own(tmp_path, text))
    found = [
        ("openai/m-20260101", 1),
        ("openrouter/openai/m-2026-01-01", 1),
        ("openai/m-2026-02-02", 2),
        ("azure/m-2026-01-01", 3),
        ("m-2026-02-02", 4),
    ]
    for model, usd in found:
        assert named(model, 0, prices).cost(1_000_000, 0, 0, 0) == pytest.approx(usd), model


ENTRY = '[models."m"]\ninput = 1\noutput = 1\n'
DEEP = ENTRY + '[models."m".long_context]\nabove = 1\ninput = 1\noutput = 1\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[model.m]\ninput = 1\noutput = 1", "unknown key model"),
        (ENTRY + "price = 1", 'unknown key models."m".price'),
        (DEEP + "cached = 1", 'unknown key models."m".long_context.cached'),
        ("[models.gpt-5.2]\ninput = 1\noutput = 1", "needs quotes"),
        ("models = 1", "models must be a table"),
        ("[models]\nm = 1", 'models."m" must be a table'),
        (ENTRY + "long_context = 1", 'models."m".long_context must be a table'),
        ("[models.m]\ninput = 1", 'models."m".output is missing'),
        ("[models.m]\noutput = 1", 'models."m".input is missing'),
        (DEEP.replace("above = 1\n", ""), 'models."m".long_context.above must be'),
        (DEEP.removesuffix("output = 1\n"), 'models."m".long_context.output is missing'),
        (ENTRY + '[models."M "]\ninput = 1\noutput = 1', 'models."M " is there twice'),
        (ENTRY + ENTRY, "line 4"),
        ("[models", "at end of document"),
        (b"\xff", "utf-8"),
    ],
)
def test_a_file_that_says_something_else_is_refused_in_one_sentence(
    text: str | bytes, says: str, tmp_path: Path
) -> None:
    path = own(tmp_path, text)
    with pytest.raises(ValueError, match="prices") as caught:
        read_prices(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def toml(name: str, values: dict[str, str]) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in values.items()), ""])


@pytest.mark.parametrize("key", ["input", "cached_input", "cache_write", "output", "above"])
@pytest.mark.parametrize(
    "value",
    [
        *("-1", "-0.1", "nan", "inf", "-inf", "1e400", "1e10", f"1{400 * '0'}"),
        *("true", "false", '"1"', "[1]", "2026-01-01", "{}"),
    ],
)
def test_a_rate_is_a_number(key: str, value: str, tmp_path: Path) -> None:
    rates = {"input": "1", "output": "1"}
    deep = toml("models.m.long_context", {"above": "1", **rates, key: value})
    texts = [toml("models.m", rates) + deep]
    if key != "above":
        texts.append(toml("models.m", {**rates, key: value}))
    for text in texts:
        with pytest.raises(ValueError, match=rf'prices\.toml: models\."m".*\.{key} must be a '):
            read_prices(own(tmp_path, text))


def test_a_rate_may_be_nothing_and_a_threshold_is_whole(tmp_path: Path) -> None:
    zero = DEEP.replace("= 1", "= 0")
    assert named("m", 0, read_prices(own(tmp_path, zero))).cost(1, 0, 0, 1) == 0
    with pytest.raises(ValueError, match=r"long_context\.above must be a whole number"):
        read_prices(own(tmp_path, DEEP.replace("above = 1", "above = 1.0")))
    for text in ("", "[models]", "# nothing yet"):
        assert read_prices(own(tmp_path, text)).of("m", 0) is None


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ValueError, match="cannot be read: ") as caught:
            read_prices(path)
        assert str(path) in str(caught.value)


def test_the_version_names_the_package_and_counts_the_overrides(tmp_path: Path) -> None:
    package = f"genai-prices {version('genai-prices')}"
    assert read_prices().version == package
    assert read_prices(own(tmp_path, "")).version == package
    assert read_prices(own(tmp_path, ENTRY)).version == f"{package} with 1 override"
    assert read_prices(own(tmp_path, OWN)).version == f"{package} with 2 overrides"


def test_a_fingerprint_changes_with_the_overrides_and_only_with_them(tmp_path: Path) -> None:
    texts = [ENTRY, ENTRY.replace("1", "2"), OWN, ""]
    seen = {read_prices(own(tmp_path, text)).fingerprint for text in texts}
    seen.add(read_prices().fingerprint)
    assert len(seen) == 5
    assert read_prices().fingerprint in seen
    (tmp_path / "sub").mkdir()
    assert read_prices(own(tmp_path / "sub", OWN)).fingerprint in seen


def test_a_fingerprint_changes_with_the_library_s_version_and_our_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "genai_prices"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    code = "from codex_tools.pricing.prices import read_prices; print(read_prices().fingerprint)"
    seen = {read_prices().fingerprint, run_python(code, cache=tmp_path).strip()}
    assert len(seen) == 1
    info = tmp_path / "genai_prices-0.2.4.dist-info"
    info.mkdir()
    for number in ("0.2.4", "0.2.5"):
        info = info.rename(tmp_path / f"genai_prices-{number}.dist-info")
        seen.add(run_python(code, cache=tmp_path, path=tmp_path).strip())
    monkeypatch.setattr("codex_tools.pricing.prices.FORMAT", FORMAT + 1)
    seen.add(read_prices().fingerprint)
    assert len(seen) == 4


def test_a_change_of_the_rules_or_of_the_file_comes_with_another_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when the same data gives other prices or another file: then raise FORMAT."""

    def usd(base: int, **tiers: int) -> TieredPrices:
        steps = [Tier(start=int(at[1:]), price=Decimal(rate)) for at, rate in tiers.items()]
        return TieredPrices(base=Decimal(base), tiers=steps)

    plain = ModelPrice(input_mtok=Decimal("1.1"), output_mtok=Decimal(9))
    long = ModelPrice(
        input_mtok=usd(2, _200=3, _400=5),
        cache_read_mtok=usd(1, _300=2),
        cache_write_mtok=Decimal(7),
        output_mtok=usd(11, _200=13),
    )
    day = StartDateConstraint(date(2026, 3, 1))
    dated = [ConditionalPrice(prices=long), ConditionalPrice(day, prices=plain)]
    night = [ConditionalPrice(TimeOfDateConstraint(time(1), time(5)), prices=plain)]
    either = ClauseOr([ClauseEquals("Two"), ClauseEquals("two-2026-01-01"), ClauseStartsWith("t")])
    models = [
        ModelInfo(id="one", match=ClauseStartsWith("one"), prices=plain),
        ModelInfo(id="pair", match=either, prices=dated),
        ModelInfo(id="night", match=ClauseEquals("night"), prices=night),
        ModelInfo(id="gpt-oss-1", match=ClauseEquals("gpt-oss-1"), prices=plain),
    ]
    monkeypatch.setattr(OPENAI, "models", models)
    monkeypatch.setattr(catalog_module, "library_version", lambda: "0")
    cache, overrides = tmp_path / "cache", own(tmp_path, OWN)
    monkeypatch.setattr(catalog_module, "cache_folder", lambda: cache)
    prices = read_prices(overrides)
    found = [
        (model, at_ms, tier, prices.of(model, at_ms, tier))
        for model, at_ms, tier in product(
            (
                *("one", "one-more", "pair", "two", "TWO ", "two-20260101", "two-2026-02-02"),
                *("openai/two", "x/two", "three", "night", "gpt-oss-1", "my-model", "gpt-5.2"),
            ),
            (0, ms(datetime(2026, 3, 1, tzinfo=UTC)) - 1, NOW_MS),
            (None, "priority", "flex"),
        )
    ]
    (file,) = cache.iterdir()
    assert sum(price is not None for *_, price in found) == 30
    factors = repr(tiers._FACTORS)  # pyright: ignore[reportPrivateUsage]
    digest = sha256((repr(found) + factors).encode() + file.read_bytes()).hexdigest()[:16]
    assert (FORMAT, digest) == (2, "65cd4f90b81c8e11")


def test_a_version_is_found_where_several_are_left_behind(tmp_path: Path) -> None:
    (tmp_path / "genai_prices").mkdir()
    (tmp_path / "genai_prices" / "__init__.py").touch()
    for number in ("0.2.4", "0.2.5"):
        folder = tmp_path / f"genai_prices-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: genai-prices\nVersion: {number}\n")
    code = "from codex_tools.pricing.catalog import library_version; print(library_version())"
    assert run_python(code, cache=tmp_path, path=tmp_path).strip() in ("0.2.4", "0.2.5")


PRICED = """\
import sys
from pathlib import Path
slow = {"genai_prices", "pydantic", "httpx2", "importlib.metadata"}
assert slow.isdisjoint(sys.modules)
from codex_tools.pricing.catalog import Catalog
from codex_tools.pricing.prices import read_prices
plain = read_prices()
assert plain.fingerprint and plain.version and plain.of(None, 0) is None
assert slow.isdisjoint(sys.modules) and {"tomllib", "platformdirs"}.isdisjoint(sys.modules)
prices = read_prices(Path(sys.argv[1]))
assert prices.fingerprint and prices.of("openai/my-model-2026-01-01", 0)
assert prices.of("gpt-5.2", 0)
assert slow.isdisjoint(sys.modules) and "platformdirs" not in sys.modules
assert prices.of("gpt-5.4", 0) and prices.version
print("genai_prices" in sys.modules)
assert "genai_prices" in sys.modules or slow.isdisjoint(sys.modules)
"""


def test_the_library_is_imported_at_the_first_need_and_never_again(tmp_path: Path) -> None:
    file = own(tmp_path, OWN)
    assert [run_python(PRICED, file, cache=tmp_path).strip() for _ in range(3)] == [
        *("True", "False", "False"),
    ]


OFFLINE = """\
import sys
seen = []
sys.addaudithook(lambda event, _: event.startswith("socket.") and seen.append(event))
from codex_tools.pricing.prices import read_prices
prices = read_prices()
assert prices.version and prices.of("gpt-5.4", 0) and not prices.of("no-such-model", 0)
import threading
assert threading.active_count() == 1
assert not seen, seen
import socket
socket.socket().close()
assert seen
"""


def test_pricing_opens_no_socket_and_starts_no_thread(tmp_path: Path) -> None:
    for _ in range(2):  # Without a cache file, and with one.
        run_python(OFFLINE, cache=tmp_path)
