"""When a usage limit resets, read from what Codex says."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from codex_tools.runs.usage_limit import reset_time

NOW = datetime(2026, 11, 29, 14, 5, 30).astimezone()
HIT = "You've hit your usage limit. Upgrade to Pro (https://x.y/pricing)"
MESSAGES = Path(__file__).parents[2] / "data" / "messages.json"


def on(year: int, month: int, day: int, hour: int, minute: int) -> datetime:
    return datetime(year, month, day, hour, minute).astimezone()


@pytest.mark.parametrize(
    ("said", "at"),
    [
        ("or try again at Jan 1st, 2030 12:00 AM.", on(2030, 1, 1, 0, 0)),
        ("or try again at Dec 22nd, 2026 12:30 PM.", on(2026, 12, 22, 12, 30)),
        ("or try again at Mar 3rd, 2027 1:09 AM.", on(2027, 3, 3, 1, 9)),
        ("or try again at Jul 14th, 2027 11:59 PM.", on(2027, 7, 14, 23, 59)),
        ("Try again at 3:05 PM.", on(2026, 11, 29, 15, 5)),
        ("try again at 2:05 PM.", on(2026, 11, 29, 14, 5)),
        ("try again at 15:05.", on(2026, 11, 29, 15, 5)),
        # Midnight has passed since.
        ("try again at 12:00 AM.", on(2026, 11, 30, 0, 0)),
        ("Try again in 3 days 2 hours 1 minute.", NOW + timedelta(days=3, hours=2, minutes=1)),
        ("try again in 45 seconds", NOW + timedelta(seconds=45)),
        ("or try again later.", None),
        ("try again at Foo 1st, 2030 12:00 AM.", None),
        ("try again at Feb 30th, 2030 12:00 AM.", None),
        ("try again at 27:99.", None),
        ("try again in 999999999999999999 days.", None),
        ("", None),
    ],
)
def test_the_time_of_a_reset_is_read(said: str, at: datetime | None) -> None:
    assert reset_time(f"{HIT}, visit https://x.y/usage {said}", NOW) == at


def test_a_time_just_past_is_not_that_of_tomorrow() -> None:
    assert reset_time("try again at 2:04 PM.", NOW) == on(2026, 11, 29, 14, 4)
    late = datetime(2026, 11, 29, 23, 59, 59).astimezone()
    assert reset_time("try again at 12:04 AM.", late) == on(2026, 11, 30, 0, 4)


def test_each_known_message_that_names_a_time_is_read() -> None:
    known = cast("list[dict[str, Any]]", json.loads(MESSAGES.read_text()))
    limits = [each["said"] for each in known if each["kind"] == "usage_limit"]
    named = [text for text in limits if "try again at" in text]
    assert len(named) >= 2
    assert {reset_time(text, NOW) for text in named} == {on(2030, 1, 1, 0, 0)}
    assert {reset_time(text, NOW) for text in limits if text not in named} == {None}
