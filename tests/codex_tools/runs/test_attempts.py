"""When a turn is tried again, and how long is waited before."""

from __future__ import annotations

import pytest

from codex_tools.codex.errors import TurnFailed
from codex_tools.codex.events import parse_event
from codex_tools.codex.failures import classify
from codex_tools.codex.turn_result import TurnProgress, TurnResult
from codex_tools.runs.attempts import (
    BACKOFF_S,
    LAST_START_S,
    LONGEST_PAUSE_S,
    PASSING,
    TRIES,
    pause_before_next,
)
from codex_tools.runs.usage_limit import asked_pause
from support.fake_codex import events
from support.lab import Json

RATE_LIMIT = "exceeded retry limit, last status: 429 Too Many Requests"


def failed(message: str, *, touched: bool = False) -> TurnFailed:
    return TurnFailed(classify(message), TurnResult(touched=touched))


def pause(
    error: TurnFailed, tries: int = 1, age_s: float = 0.0, timeout_s: float = 3600.0
) -> float | None:
    return pause_before_next(error, tries, age_s, timeout_s)


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Rate limit reached. Please try again in 1.5s.", 1.5),
        ("Please try again in 20 seconds", 20.0),
        ("try again in 350ms. Visit the site", 0.35),
        ("Please try again in 6m0s.", 360.0),
        ("Please try again in 1h2m3.5s", 3723.5),
        ("Try again in about 3 minutes.", 180.0),
        ("please retry after 7 seconds or 8", 7.0),
        ("retrying in 2s", 2.0),
        ("try again in 1 minute 30 seconds", 90.0),
        ("try again in 2 days 3 hours 4 minutes.", 183840.0),
        ("try again in 5 parsecs", None),
        ("try again in 0s", None),
        ("try again in a moment", None),
        ("try again at 3:15 PM", None),
        ("", None),
    ],
)
def test_the_pause_that_a_provider_asks_for_is_read(message: str, seconds: float | None) -> None:
    assert asked_pause(message) == (None if seconds is None else pytest.approx(seconds))


async def test_a_passing_failure_is_tried_again_after_a_pause_that_grows() -> None:
    assert {"rate_limited", "overloaded", "network"} == PASSING
    for message in (RATE_LIMIT, "server_is_overloaded", "503 Service Unavailable, status: 503"):
        assert classify(message).kind in PASSING
        for tries, shortest in enumerate(BACKOFF_S, 1):
            paused = pause(failed(message), tries)
            assert paused is not None
            assert shortest <= paused <= shortest * 1.5
        assert pause(failed(message), TRIES) is None


async def test_what_the_provider_asks_for_is_honoured_up_to_a_minute() -> None:
    assert pause(failed(f"{RATE_LIMIT}: try again in 17s")) == 17.0
    assert pause(failed(f"{RATE_LIMIT}: try again in {LONGEST_PAUSE_S:g}s")) == LONGEST_PAUSE_S
    assert pause(failed(f"{RATE_LIMIT}: try again in {LONGEST_PAUSE_S + 1:g}s")) is None
    soon = pause(failed(f"{RATE_LIMIT}: try again in 1ms"))
    assert soon is not None
    assert soon >= BACKOFF_S[0]


async def test_no_pause_is_begun_that_the_run_s_time_does_not_last_for() -> None:
    asked = failed(f"{RATE_LIMIT}: try again in 30s")
    assert pause(asked, age_s=11, timeout_s=40) is None
    assert pause(asked, age_s=9, timeout_s=40) == 30.0


async def test_what_codex_itself_has_tried_for_long_is_not_tried_again() -> None:
    assert pause(failed("server_is_overloaded"), age_s=LAST_START_S - 1) is not None
    assert pause(failed("server_is_overloaded"), age_s=LAST_START_S + 1) is None


async def test_nothing_is_done_twice() -> None:
    assert pause(failed(RATE_LIMIT, touched=True)) is None


@pytest.mark.parametrize(
    "message",
    [
        "You've hit your usage limit. Try again in 5 minutes.",
        "You exceeded your current quota: insufficient_quota",
        "401 Unauthorized",
        "context_length_exceeded",
        "model_not_found",
        "no idea what this is, try again in 3s",
    ],
)
async def test_what_will_not_pass_is_not_tried_again(message: str) -> None:
    assert pause(failed(message)) is None


@pytest.mark.parametrize(
    ("item", "touched"),
    [
        ({"type": "agent_message", "text": "x"}, False),
        ({"type": "reasoning", "text": "x"}, False),
        ({"type": "todo_list", "items": []}, False),
        ({"type": "error", "message": "x"}, False),
        ({"type": "command_execution", "command": "ls", "status": "in_progress"}, True),
        ({"type": "file_change", "changes": [], "status": "failed"}, True),
        ({"type": "mcp_tool_call", "server": "a", "tool": "b", "status": "failed"}, True),
        ({"type": "web_search", "query": "x"}, True),
        ({"type": "something_new"}, True),
    ],
)
@pytest.mark.parametrize("kind", ["item.started", "item.completed"])
def test_a_turn_is_touched_by_whatever_it_may_have_done(
    item: Json, kind: str, touched: bool
) -> None:
    progress = TurnProgress()
    progress.add(parse_event(events({"type": kind, "item": {"id": "item_0"} | item})))
    assert progress.result().touched is touched
    progress.begin_turn(None)
    assert progress.result().touched is False
