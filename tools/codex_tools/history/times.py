"""Parse times, time zones and periods as people write them, and format times."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Literal

Unit = Literal["day", "week", "month"]

_AGO = re.compile(r"(\d{1,6})\s*([mhdw])", re.IGNORECASE)
_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_LAST_MS = 250_000_000_000_000
"""Milliseconds since 1970, in the year 9892: a later time has no date in some time zones."""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def zone_of(name: str | None) -> tzinfo | None:
    """Return the time zone with an IANA name; None for the machine's own time zone.

    Raises:
        ValueError: There is no time zone with this name.
    """
    if name is None:
        return None
    from zoneinfo import ZoneInfo, available_timezones

    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        import difflib

        near = difflib.get_close_matches(name, available_timezones(), n=1, cutoff=0.5)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name!r} is not an IANA time zone{hint}") from None


def instant(text: str, zone: tzinfo | None, *, end: bool = False) -> int:
    """Return the time in *text* as ms since 1970.

    *text* is a date or time in ISO 8601, in *zone* unless it names another one, or a time ago:
    `90m`, `24h`, `7d`, `2w`. With *end*, a date means the end of that day.

    Raises:
        ValueError: *text* is none of these.
    """
    text = text.strip()
    if ago := _AGO.fullmatch(text):
        return int(time.time() * 1000) - int(ago[1]) * _MS[ago[2].lower()]
    try:
        if _DATE.fullmatch(text):
            day = date.fromisoformat(text)
            return _start(day + timedelta(days=1) if end else day, zone)
        at = datetime.fromisoformat(text)
        if at.tzinfo is None and zone is not None:
            at = at.replace(tzinfo=zone)
        return round(at.timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{text!r} is not a date or time in ISO 8601 (2026-11-22, 2026-11-22T15:00) and not a"
            " time ago such as 24h or 7d"
        ) from None


def period_of(ms: int, unit: Unit, zone: tzinfo | None) -> tuple[str, int, int]:
    """Return the key, start and end (ms) of the day, ISO week or month that contains *ms*."""
    ms = min(max(ms, 0), _LAST_MS)  # The clock may have been wrong.
    at = datetime.fromtimestamp(ms / 1000, zone) if zone else datetime.fromtimestamp(ms / 1000)
    first, following, key = _UNITS[unit](at.date())
    return key, _start(first, zone), _start(following, zone)


def iso(ms: int | None) -> str | None:
    """Return a time as ISO 8601 in UTC; None if it is None, negative or after the year 9892."""
    if ms is None or not 0 <= ms < _LAST_MS:
        return None
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _start(day: date, zone: tzinfo | None) -> int:
    # A datetime without a zone is in the machine's time zone, by its rules for that day.
    return round(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp() * 1000)


def _day(day: date) -> tuple[date, date, str]:
    return day, day + timedelta(days=1), day.isoformat()


def _week(day: date) -> tuple[date, date, str]:
    year, week, weekday = day.isocalendar()
    monday = day - timedelta(days=weekday - 1)
    return monday, monday + timedelta(days=7), f"{year}-W{week:02}"


def _month(day: date) -> tuple[date, date, str]:
    first = day.replace(day=1)
    return first, (first + timedelta(days=32)).replace(day=1), f"{day:%Y-%m}"


_UNITS: dict[Unit, Callable[[date], tuple[date, date, str]]] = {
    "day": _day,
    "week": _week,
    "month": _month,
}
