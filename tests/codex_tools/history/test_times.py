"""Time as people say it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_tools.history.times import instant, iso, period_of, zone_of

NEW_YORK = ZoneInfo("America/New_York")
KATHMANDU = ZoneInfo("Asia/Kathmandu")


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    ("text", "zone", "end", "expected"),
    [
        ("2025-03-09", UTC, False, "2025-03-09T00:00:00Z"),
        ("2025-03-09", UTC, True, "2025-03-10T00:00:00Z"),
        ("2025-03-09", NEW_YORK, False, "2025-03-09T05:00:00Z"),
        ("2025-03-09", NEW_YORK, True, "2025-03-10T04:00:00Z"),
        ("2025-11-02", NEW_YORK, True, "2025-11-03T05:00:00Z"),
        ("2025-03-09", KATHMANDU, False, "2025-03-08T18:15:00Z"),
        ("2024-02-29", UTC, True, "2024-03-01T00:00:00Z"),
        ("2025-12-31", UTC, True, "2026-01-01T00:00:00Z"),
        ("2025-03-09T12:30", NEW_YORK, False, "2025-03-09T16:30:00Z"),
        ("2025-03-09T12:30", NEW_YORK, True, "2025-03-09T16:30:00Z"),
        ("2025-03-09 12:30:01.250", KATHMANDU, False, "2025-03-09T06:45:01.250Z"),
        ("2025-03-09T12:30:00Z", NEW_YORK, False, "2025-03-09T12:30:00Z"),
        ("2025-03-09T12:30:00+05:45", NEW_YORK, False, "2025-03-09T06:45:00Z"),
        ("  2025-03-09 ", UTC, False, "2025-03-09T00:00:00Z"),
    ],
)
def test_dates_and_times_mean_what_they_say(
    text: str, zone: tzinfo, end: bool, expected: str
) -> None:
    assert instant(text, zone, end=end) == ms(expected)


@pytest.mark.parametrize(
    ("text", "ago_s"), [("90m", 5400), ("24h", 86_400), ("7d", 604_800), ("2W", 1_209_600)]
)
def test_a_time_ago_counts_from_now(text: str, ago_s: int) -> None:
    assert abs(instant(text, NEW_YORK) / 1000 - (time.time() - ago_s)) < 5


@pytest.mark.parametrize("text", ["", "now", "7", "7y", "h", "-7d", "2025", "2025-2-3", "99-01-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a date or time"):
        instant(text, UTC)


def test_a_time_zone_has_its_iana_name_and_a_slip_is_told() -> None:
    assert zone_of("Asia/Kathmandu") == KATHMANDU
    assert zone_of(None) is None
    with pytest.raises(ValueError, match="did you mean 'Europe/Berlin'"):
        zone_of("Europe/Berlyn")


@given(
    at=st.integers(3 * 86_400_000, 4 * 10**12),
    unit=st.sampled_from(["day", "week", "month"]),
    name=st.sampled_from(
        ["UTC", "America/New_York", "Asia/Kathmandu", "Pacific/Apia", "Africa/Cairo", "Asia/Gaza"]
    ),
)
def test_a_period_holds_its_instant_and_the_next_begins_where_it_ends(
    at: int, unit: Literal["day", "week", "month"], name: str
) -> None:
    zone = ZoneInfo(name)
    key, start, end = period_of(at, unit, zone)
    assert start <= at < end
    assert period_of(start, unit, zone) == (key, start, end)
    assert period_of(end - 1, unit, zone) == (key, start, end)
    assert period_of(end, unit, zone)[0] > key
    longest = {"day": 1, "week": 7, "month": 31}[unit]
    assert timedelta(milliseconds=end - start) <= timedelta(days=longest, hours=3)


@pytest.mark.parametrize(
    ("at", "unit", "key"),
    [
        ("2025-01-01T00:00:00Z", "week", "2025-W01"),
        ("2024-12-30T00:00:00Z", "week", "2025-W01"),
        ("2024-12-29T23:59:59Z", "week", "2024-W52"),
        ("2027-01-03T00:00:00Z", "week", "2026-W53"),
        ("2024-02-29T12:00:00Z", "month", "2024-02"),
        ("2025-12-31T23:59:59.999Z", "month", "2025-12"),
        ("2025-12-31T23:59:59.999Z", "day", "2025-12-31"),
    ],
)
def test_a_period_is_named_by_iso(at: str, unit: Literal["day", "week", "month"], key: str) -> None:
    assert period_of(ms(at), unit, UTC)[0] == key


def test_an_instant_is_told_in_utc_to_the_millisecond() -> None:
    assert iso(ms("2025-03-09T12:30:01.250+01:00")) == "2025-03-09T11:30:01.250Z"
    assert iso(None) is None
