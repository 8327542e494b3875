"""Usage reports, against sums over single requests."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest

from codex_tools.codex.errors import InvalidArguments
from codex_tools.codex.json_object import Json
from codex_tools.history.index import ThreadIndex
from codex_tools.history.rate_limits import BUCKETS_SHOWN
from codex_tools.history.usage_report import GROUPS_LIMIT, GroupBy, UsageQuery, report
from codex_tools.usage import UsageResult
from support.index_checks import (
    PRICES,
    START,
    Rollout,
    cost_of,
    open_index,
    requests_of,
    row,
    rows,
    summed,
    thread_id,
    usage,
)
from support.synthetic_home import Request, Truth, make_home

QUARTER_MS = 900_000
ZONES = (
    "UTC",
    "Asia/Kathmandu",
    "America/New_York",
    "Pacific/Auckland",
    "Pacific/Chatham",
    "Australia/Lord_Howe",
    "America/St_Johns",
    "America/Santiago",
    "Africa/Cairo",
    "Europe/Berlin",
)
"""Of all offsets, and with clocks that change in the days of the home, some at midnight."""


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    home = tmp_path_factory.mktemp("reported")
    made = make_home(home, sessions=150, days=100, seed=51, turns=2, output_kb=0.1, start=START)
    made.unreadable.append(str(home))
    return made


@pytest.fixture(scope="module")
def requests(truth: Truth) -> list[Request]:
    return requests_of(truth)


@pytest.fixture(scope="module")
def history(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Generator[ThreadIndex]:
    """An index over that home, which no test changes."""
    home = Path(truth.unreadable[-1])
    with open_index(home, tmp_path_factory.mktemp("state")) as opened:
        opened.refresh()
        yield opened


def total(requests: Iterable[Request]) -> tuple[int, ...]:
    return summed(requests, lambda _: "").get("", (0, 0, 0, 0, 0))


def day(request: Request, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(request.ms / 1000, zone).strftime("%Y-%m-%d")


def week(request: Request, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(request.ms / 1000, zone).strftime("%G-W%V")


def month(request: Request, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(request.ms / 1000, zone).strftime("%Y-%m")


UNITS = {"day": day, "week": week, "month": month}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", ZONES)
def test_periods_are_those_of_the_time_zone(
    history: ThreadIndex, requests: list[Request], name: str, unit: Literal["day", "week", "month"]
) -> None:
    zone = ZoneInfo(name)
    told = usage(history, group_by=unit, timezone=name)
    assert rows(told) == summed(requests, lambda request: UNITS[unit](request, zone))
    keys = [group["key"] for group in told["groups"]]
    assert keys == sorted(keys)
    assert row(told["totals"]) == total(requests)
    for group in told["groups"]:
        of_it = [each for each in requests if UNITS[unit](each, zone) == group["key"]]
        assert group["cost_usd"] == pytest.approx(cost_of(of_it), abs=2e-6)


def test_periods_without_a_time_zone_are_the_machine_s(
    history: ThreadIndex, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("America/New_York", "Pacific/Auckland"):
        with monkeypatch.context() as patched:
            patched.setenv("TZ", name)
            time.tzset()
            found = rows(usage(history, timezone=None))
        time.tzset()
        assert found == summed(requests, lambda each: day(each, ZoneInfo(name)))  # noqa: B023 - called at once


def cuts(requests: list[Request], draw: random.Random) -> list[tuple[int | None, int | None]]:
    """Return ranges of all kinds: on a quarter, on a request, beside one, within one quarter."""

    def some() -> int:
        ms = draw.choice(requests).ms
        return draw.choice(
            (ms, ms + 1, ms - 1, ms - ms % QUARTER_MS, ms + draw.randrange(-(10**9), 10**9))
        )

    ranges: list[tuple[int | None, int | None]] = [(None, some()), (some(), None), (some(), None)]
    ranges += [(some(), some()) for _ in range(25)]  # Some of them the wrong way round.
    for _ in range(15):
        since = some()
        ranges.append((since, since + draw.choice((0, 1, 60_000, QUARTER_MS, QUARTER_MS + 1))))
    return ranges


@pytest.mark.parametrize("group_by", ["day", "week", "model", "cwd", "thread"])
def test_a_report_of_any_range_is_cut_to_the_millisecond(
    history: ThreadIndex, truth: Truth, requests: list[Request], group_by: GroupBy
) -> None:
    draw = random.Random(52)
    hits = 0
    for since, until in cuts(requests, draw):
        kept = [
            (session.thread_id, each)
            for session in truth.sessions.values()
            for each in session.requests
            if (since is None or each.ms >= since) and (until is None or each.ms < until)
        ]
        query = UsageQuery(group_by=group_by, zone=UTC, since_ms=since, until_ms=until)
        told = report(history, query)
        assert row(told["totals"]) == total(each for _, each in kept), (since, until)
        assert told["totals"]["threads"] == len({id_ for id_, _ in kept})
        assert told["totals"]["cost_usd"] == pytest.approx(
            cost_of(each for _, each in kept), abs=2e-6
        )
        sums: dict[str, list[Request]] = {}
        for id_, each in kept:
            keys = {"model": each.model, "cwd": each.cwd, "thread": id_}
            key = keys.get(group_by) or UNITS[group_by](each, ZoneInfo("UTC"))
            sums.setdefault(key, []).append(each)
        assert rows(told) == {key: total(some) for key, some in sums.items()}
        hits += bool(kept)
    assert hits > 20


def test_dates_are_whole_days_of_the_time_zone(
    history: ThreadIndex, requests: list[Request]
) -> None:
    for name in ("UTC", "America/New_York", "Asia/Kathmandu"):
        zone = ZoneInfo(name)
        told = usage(history, since="2025-03-08", until="2025-03-10", timezone=name)
        days = {"2025-03-08", "2025-03-09", "2025-03-10"}
        kept = [each for each in requests if day(each, zone) in days]
        assert kept
        assert row(told["totals"]) == total(kept)
        assert rows(told) == summed(kept, lambda each: day(each, zone))  # noqa: B023 - called at once


def test_times_ago_count_from_now(tmp_path: Path) -> None:
    now = int(time.time() * 1000)
    rollout = Rollout(tmp_path / "home", ms=now - 26 * 3_600_000).ask("Go.").use(100)
    rollout.ms = now - 3 * 3_600_000
    rollout.use(20)
    rollout.ms = now - 10 * 60_000
    rollout.use(3).save()
    with open_index(tmp_path / "home", tmp_path / "state") as history:
        for since, expected in {"15m": 3, "4h": 23, "1d": 23, "2d": 123, "1w": 123}.items():
            assert usage(history, since=since)["totals"]["input_tokens"] == expected
        assert usage(history, until="4h")["totals"]["input_tokens"] == 100


@pytest.mark.parametrize(
    "asked",
    [
        {"since": "soon"},
        {"until": "2025-13-01"},
        {"since": "2025-02-30"},
        {"since": ""},
        {"since": "-5h"},
        {"until": "9999-12-31"},
        {"timezone": "Mars/Olympus"},
        {"timezone": "../../etc/passwd"},
        {"timezone": "/etc/localtime"},
        {"timezone": ""},
    ],
)
def test_a_time_that_is_none_is_refused(history: ThreadIndex, asked: Json) -> None:
    with pytest.raises(InvalidArguments):
        usage(history, **asked)


def test_filters_count_what_fits_all_of_them(
    history: ThreadIndex, truth: Truth, requests: list[Request]
) -> None:
    for model in ("gpt-5.4", "GPT-5.2-Codex", "gpt-5", "nothing"):
        kept = [each for each in requests if each.model == model.lower()]
        assert row(usage(history, model=model)["totals"]) == total(kept)
        both = [each for each in kept if each.cwd == "/home/dev/api"]
        assert row(usage(history, model=model, cwd="/home/dev/api")["totals"]) == total(both)
    for session in list(truth.sessions.values())[::9]:
        told = usage(history, thread_id=session.thread_id, group_by="model")
        assert row(told["totals"]) == total(session.requests)
        assert rows(told) == summed(session.requests, lambda each: each.model)
    assert row(usage(history, thread_id="nobody's")["totals"]) == (0, 0, 0, 0, 0)


def test_a_folder_is_it_and_all_below_by_any_name(tmp_path: Path) -> None:
    home, real, link = tmp_path / "home", tmp_path / "a" / "b", tmp_path / "link"
    (real / "c").mkdir(parents=True)
    link.symlink_to(real)
    rollout = Rollout(home)
    folders = (real, f"{real}/", real / "c", f"{real}c", tmp_path / "a", link / "c", "/", "/else")
    for n, cwd in enumerate(folders):
        rollout.cwd = str(cwd)
        rollout.ask("Go.").use(10**n)
    rollout.save()
    with open_index(home, tmp_path / "state") as history:

        def used(cwd: object) -> int:
            return usage(history, cwd=str(cwd))["totals"]["input_tokens"]

        assert used(real) == used(f"{real}/") == used(f"{real}/c/..") == 111
        assert used(f"{real}c") == 1000
        assert used(tmp_path / "a") == 11111
        assert used(real / "c") == 100
        assert used(link) == 100111
        assert used("/else") == 10_000_000
        assert used("/") == 11_111_111
        assert used("/els") == used(f"{real}/%") == used("/nowhere") == 0


def test_the_largest_groups_come_first(history: ThreadIndex) -> None:
    for group_by in ("model", "cwd", "thread"):
        sizes = [group["total_tokens"] for group in usage(history, group_by=group_by)["groups"]]
        assert sizes == sorted(sizes, reverse=True)


def test_groups_beyond_the_most_are_left_out_and_told_of(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for number in range(1, GROUPS_LIMIT + 6):
        Rollout(home, number).ask("Go.").use(number).save()
    with open_index(home, tmp_path / "state") as history:
        told = usage(history, group_by="thread")
        assert len(told["groups"]) == GROUPS_LIMIT
        assert told["groups"][-1]["key"] == thread_id(6)
        assert "5 smaller groups are left out" in told["notes"][0]
        count = GROUPS_LIMIT + 5
        assert told["totals"]["input_tokens"] == count * (count + 1) // 2
        assert told["totals"]["threads"] == count
        (home / "sessions" / "2025" / "02" / "20").joinpath(
            f"rollout-2025-02-20T00-00-00-{thread_id(1)}.jsonl"
        ).unlink()
        for number in range(2, 6):
            Rollout(home, number).path.unlink()
        told = usage(history, group_by="thread")
        assert (len(told["groups"]), told["notes"]) == (GROUPS_LIMIT, [])


# Rate limits.


def window(percent: float, resets_at: object, minutes: int = 300) -> Json:
    return {"used_percent": percent, "window_minutes": minutes, "resets_at": resets_at}


def limits(percent: float, resets_at: object, **more: Any) -> Json:
    # Codex writes the ids first, since it has any.
    ids = {name: more.pop(name) for name in ("limit_id", "limit_name") if name in more}
    return ids | {"primary": window(percent, resets_at), "secondary": None, "credits": None} | more


def test_the_newest_rate_limits_of_all_threads_are_told(tmp_path: Path) -> None:
    now = int(time.time())
    home = tmp_path / "home"
    newest = Rollout(home, 1, ms=(now - 100) * 1000).ask("Go.")
    newest.use(
        1,
        limits=limits(
            40.5,
            now + 60,
            secondary=window(80, now - 60, 10_080),
            plan_type="plus",
            credits={"has_credits": True, "unlimited": False, "balance": "9.99"},
        ),
    )
    newest.use(2).save()  # It tells of none.
    Rollout(home, 2, ms=(now - 500) * 1000).ask("Go.").use(1, limits=limits(99, now + 60)).save()
    with open_index(home, tmp_path / "state") as history:
        told = usage(history)["rate_limits"]
        assert 95 <= told["age_s"] <= 110
        observed = datetime.fromisoformat(told["observed_at"])
        assert abs(observed - datetime.now(UTC) + timedelta(seconds=100)) < timedelta(seconds=10)
        assert (told["plan_type"], told["credits_balance"]) == ("plus", "9.99")
        primary, secondary = told["primary"], told["secondary"]
        assert (primary["used_percent"], primary["window_minutes"]) == (40.5, 300)
        assert (primary["expired"], secondary["expired"]) == (False, True)
        assert datetime.fromisoformat(primary["resets_at"]).timestamp() == now + 60
        assert secondary["window_minutes"] == 10_080
        # A filter is for the usage: an account has one limit.
        assert usage(history, model="none", until="2025-01-01")["rate_limits"] == told
        Rollout(home, 3, ms=now * 1000).ask("Go.").use(1, limits=limits(1, now + 600)).save()
        told = usage(history)["rate_limits"]
        assert told["primary"]["used_percent"] == 1
        assert (told["plan_type"], told["secondary"], told["credits_balance"]) == (None, None, None)


SPARK: Json = {"limit_id": "codex_bengalfox", "limit_name": "GPT-5.3-Codex-Spark"}
ACCOUNT: Json = {"limit_id": "codex", "limit_name": None}


def percents(history: ThreadIndex) -> tuple[float | None, dict[str, float]]:
    """Return the used part of the account's limits, and that of each other bucket."""
    told = usage(history)["rate_limits"]
    account = told["primary"] and told["primary"]["used_percent"]
    others = {each["limit_id"]: each["primary"]["used_percent"] for each in told["other_buckets"]}
    return account, others


def test_another_bucket_does_not_hide_the_account_s_limits(tmp_path: Path) -> None:
    home, now = tmp_path / "home", int(time.time())
    older = Rollout(home, 1, ms=(now - 900) * 1000).ask("Go.")
    older.use(1, limits=limits(76, now + 60, **ACCOUNT)).save()
    spark = Rollout(home, 2, ms=(now - 500) * 1000).ask("Go.")
    spark.use(1, limits=limits(0, now - 60, **SPARK, secondary=window(1, now + 60, 10_080))).save()
    with open_index(home, tmp_path / "state") as history:
        told = usage(history)["rate_limits"]
        assert told["primary"]["used_percent"] == 76
        assert 890 <= told["age_s"] <= 930
        (other,) = told["other_buckets"]
        assert 490 <= other["age_s"] <= 530
        assert (other["limit_id"], other["limit_name"]) == tuple(SPARK.values())
        assert (other["primary"]["used_percent"], other["primary"]["expired"]) == (0, True)
        assert other["secondary"]["used_percent"] == 1
        # A file that grows keeps what it had of each bucket.
        spark.use(2, limits=limits(5, now + 60, **SPARK)).save()
        assert percents(history) == (76, {"codex_bengalfox": 5})
        spark.use(3, limits=limits(77, now + 60, **ACCOUNT)).save()
        assert percents(history) == (77, {"codex_bengalfox": 5})
        # 0.60.1 names no bucket.
        Rollout(home, 3, ms=now * 1000).ask("Go.").use(1, limits=limits(78, now + 60)).save()
        assert percents(history) == (78, {"codex_bengalfox": 5})
        # The newest of a bucket may be in the older file, and in an archived one.
        moved = Rollout(home, 4, archived=True, ms=(now - 9000) * 1000).ask("Go.")
        moved.use(1, limits=limits(9, now + 60, **SPARK | {"limit_id": "codex_other"}))
        moved.use(2, limits=limits(3, now + 60, **SPARK)).save()
        assert percents(history) == (78, {"codex_bengalfox": 5, "codex_other": 9})
        spark.path.unlink()
        assert percents(history) == (78, {"codex_bengalfox": 3, "codex_other": 9})


def test_a_home_may_know_only_other_buckets(tmp_path: Path) -> None:
    home = tmp_path / "home"
    Rollout(home).ask("Go.").use(1, limits=limits(5, 1795364521, **SPARK)).save()
    with open_index(home, tmp_path / "state") as history:
        assert percents(history) == (None, {"codex_bengalfox": 5})
        told = usage(history)["rate_limits"]
    assert (told["observed_at"], told["age_s"], told["secondary"]) == (None, None, None)
    assert UsageResult.model_validate({**usage_of(home, tmp_path), "error": None})


def usage_of(home: Path, state: Path) -> Json:
    with open_index(home, state / "state") as history:
        return usage(history)


def test_only_the_newest_of_many_buckets_are_told(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for number in range(1, 30):
        many = Rollout(home, number, ms=number * 1_000_000).ask("Go.")
        for other in range(3):
            limit_id = f"b{3 * number + other}"
            many.use(1, limits=limits(5, 1, limit_id=limit_id, limit_name=[limit_id]))
        many.save()
    told = usage_of(home, tmp_path)["rate_limits"]["other_buckets"]
    assert [each["limit_id"] for each in told] == [f"b{89 - n}" for n in range(BUCKETS_SHOWN)]
    assert {each["limit_name"] for each in told} == {None}


# Service tiers and models without a price.


def priced(home: Path, number: int, model: str, *tiers: str | None) -> Rollout:
    """Add a thread with a request of 1,000 tokens in each of *tiers*."""
    rollout = Rollout(home, number, paginated=True, model=model)
    for turn, tier in enumerate(tiers, 1):
        settings: Json = {"model": model} | ({} if tier is None else {"service_tier": tier})
        rollout.event("thread_settings_applied", thread_id=rollout.id, thread_settings=settings)
        rollout.ask(f"Turn {turn}.").use(1000, 100).answer("Done.")
    return rollout.save()


def standard_usd(model: str) -> float:
    price = PRICES.of(model, int(START.timestamp() * 1000))
    assert price is not None
    return price.cost(1000, 0, 0, 100) or 0.0


@pytest.mark.parametrize("until", [None, (START + timedelta(seconds=890)).isoformat()])
def test_requests_cost_what_their_service_tier_costs(tmp_path: Path, until: str | None) -> None:
    home = tmp_path / "home"
    priced(home, 1, "gpt-5.5", None, "priority", "flex", "default", "priority")
    one = standard_usd("gpt-5.5")
    with open_index(home, tmp_path / "state") as history:
        told = usage(history, until=until)
        assert told["totals"]["cost_usd"] == pytest.approx(7.5 * one, abs=2e-6)
        assert told["unpriced_models"] == []
        (note,) = told["notes"]
        assert ": 1 in flex and 2 in priority." in note
        assert "standard price" in note
        # A tier is no group: the model has one row.
        assert len(usage(history, group_by="model")["groups"]) == 1
        # A filter leaves the note out with its requests.
        priced(home, 2, "gpt-5.4", None)
        assert usage(history, model="gpt-5.4")["notes"] == []
        assert usage(history, until="2024-01-01")["notes"] == []
        session = next(iter(usage(history, group_by="thread", model="gpt-5.5")["groups"]))
        assert session["cost_usd"] == pytest.approx(7.5 * one, abs=2e-6)


def test_a_tier_without_a_known_price_leaves_the_cost_unknown(tmp_path: Path) -> None:
    home = tmp_path / "home"
    priced(home, 1, "gpt-5.2-codex", None, "priority")
    priced(home, 2, "gpt-5.5", "zonk", "priority")
    known = standard_usd("gpt-5.2-codex") + 2.5 * standard_usd("gpt-5.5")
    told = usage_of(home, tmp_path)
    assert told["totals"]["cost_usd"] is None
    assert told["totals"]["cost_usd_known"] == pytest.approx(known, abs=2e-6)
    assert told["unpriced_models"] == ["gpt-5.2-codex", "gpt-5.5"]
    unpriced, applied = told["notes"]
    assert unpriced.startswith(f"Cost: at least ${known:.6f}; no price for ")
    assert "gpt-5.2-codex in the service tier priority" in unpriced
    assert "gpt-5.5 in the service tier zonk" in unpriced
    assert ": 1 in priority." in applied


NEW_MODELS = (
    *("codex-auto-review", "gpt-5.3-codex-spark", "gpt-6.2-astra", "gpt-6.2-sol"),
    "gpt-daybreak-blue-latest",
)


def test_a_home_with_models_without_a_price_has_its_known_part_in_front(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for number, model in enumerate(NEW_MODELS, 1):
        priced(home, number, model, None)
    unknown = usage_of(home, tmp_path)
    assert (unknown["totals"]["cost_usd"], unknown["totals"]["cost_usd_known"]) == (None, 0)
    assert unknown["notes"][0].startswith("Cost: unknown; no price for codex-auto-review, ")
    assert "--prices FILE" in unknown["notes"][0]
    Rollout(home, 9, model="gpt-5.4").ask("Go.").use(100_000, 1_000_000).save()
    told = usage_of(home, tmp_path)
    assert told["totals"]["cost_usd"] is None
    assert told["notes"][0].startswith("Cost: at least $15.25; no price for ")
    assert told["unpriced_models"] == list(NEW_MODELS)
    for number in range(20, 40):
        priced(home, number, f"acme-{number}", None)
    assert " and 15 more. To give one, " in usage_of(home, tmp_path)["notes"][0]


def test_long_context_and_cache_writes_are_priced_in_the_tier_of_each_request(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    rollout = Rollout(home, paginated=True, model="gpt-5.6-sol")
    settings = {"model": "gpt-5.6-sol", "service_tier": "priority"}
    rollout.event("thread_settings_applied", thread_settings=settings).ask("Go.")
    sizes = ((300_000, 200_000, 50_000), (200_000, 100_000, 90_000), (272_000, 0, 0))
    for number, (input_, cached, write) in enumerate(sizes):
        used = {
            "input_tokens": input_, "cached_input_tokens": cached,
            "cache_write_input_tokens": write, "output_tokens": 10,
            "reasoning_output_tokens": 5, "total_tokens": input_ + 10,
        }  # fmt: skip
        record = {"thread_id": rollout.id, "response_id": f"r{number}", "usage": used}
        rollout.put("token_usage_record", record)
    rollout.save()
    price = PRICES.of("gpt-5.6-sol", rollout.ms)
    assert price is not None
    expected = sum(2 * (price.cost(*size, 10) or 0) for size in sizes)
    assert usage_of(home, tmp_path)["totals"]["cost_usd"] == pytest.approx(expected, abs=2e-6)


def test_limits_whose_line_was_cut_off_leave_those_of_another_thread(tmp_path: Path) -> None:
    home = tmp_path / "home"
    older = Rollout(home, 1).ask("Go.").use(1, limits=limits(50, 1795364521)).save()
    newer = Rollout(home, 2, ms=older.ms).ask("Go.").use(1, limits=limits(99, 1795364521))
    newer.lines[-1] = newer.lines[-1][:-20]
    newer.answer("Gone.").save()
    with open_index(home, tmp_path / "state") as history:
        assert usage(history)["rate_limits"]["primary"]["used_percent"] == 50
        older.path.unlink()
        assert usage(history)["rate_limits"] is None


@pytest.mark.parametrize(
    "resets_at", [None, "soon", [], {}, -1, 0, True, 1.5, 1795364521, 10**10, 10**12, 10**15, 1e300]
)
def test_a_limit_that_resets_at_an_odd_time_spoils_no_report(
    tmp_path: Path, resets_at: object
) -> None:
    rollout = Rollout(tmp_path / "home").ask("Go.").use(5, limits=limits(50, resets_at)).save()
    with open_index(rollout.home, tmp_path / "state") as history:
        told = usage(history)
    assert told["totals"]["input_tokens"] == 5
    assert told["rate_limits"]["primary"]["used_percent"] == 50


@pytest.mark.parametrize("ms", [0, 5000, 86_400_000, 253_402_300_799_000])
def test_a_request_at_an_odd_time_is_counted(tmp_path: Path, ms: int) -> None:
    rollout = Rollout(tmp_path / "home", ms=ms).ask("Go.")
    rollout.ms = ms
    rollout.use(5)
    rollout.save(mtime_ms=10**12)
    with open_index(rollout.home, tmp_path / "state") as history:
        for group_by in ("day", "week", "month", "thread"):
            for zone in ("UTC", "Pacific/Auckland", "America/New_York"):
                told = usage(history, group_by=group_by, timezone=zone)
                assert told["totals"]["input_tokens"] == 5
                assert len(told["groups"]) == 1
