"""Find the newest rate limits that Codex recorded, bucket by bucket.

The account has one bucket of limits. Some models, such as gpt-5.3-codex-spark, have a bucket of
their own, which says nothing about the account's.
"""

from __future__ import annotations

import sqlite3
import time
from typing import cast

import orjson

from codex_tools.codex.json_object import Json, text_of
from codex_tools.history.times import iso
from codex_tools.rollouts.line import parse_line

BUCKETS_SHOWN = 10
"""Buckets that a report shows besides the account's, at most; the newest ones."""


def newest_limits(db: sqlite3.Connection) -> Json | None:
    """Return the newest rate limits that Codex recorded in any thread; None if there are none."""
    others = _newest_others(db)
    at_ms, limits = _newest_of_account(db)
    if at_ms is None and not others:
        return None
    now = time.time()
    account: object = limits.get("credits")
    return {
        **_age(at_ms, now),
        "plan_type": text_of(limits, "plan_type"),
        **_windows(limits, now),
        "credits_balance": str(cast(Json, account)["balance"])
        if isinstance(account, dict) and cast(Json, account).get("balance") is not None
        else None,
        "other_buckets": [
            {
                "limit_id": limit_id,
                "limit_name": text_of(limits, "limit_name"),
                **_age(at_ms, now),
                **_windows(limits, now),
            }
            for limit_id, (at_ms, limits) in others.items()
        ],
    }


def _newest_of_account(db: sqlite3.Connection) -> tuple[int | None, Json]:
    rows = db.execute(
        "SELECT limits_ms, limits FROM file WHERE limits_ms IS NOT NULL ORDER BY limits_ms DESC"
    )
    for at_ms, text in rows:
        limits = parse_line(text) or {}
        if isinstance(limits.get("primary"), dict):
            return at_ms, limits
    return None, {}


def _newest_others(db: sqlite3.Connection) -> dict[str, tuple[int, Json]]:
    """Return the newest limits of each bucket but the account's, with their times, newest first."""
    found: dict[str, tuple[int, Json]] = {}
    for (text,) in db.execute("SELECT other_limits FROM file WHERE other_limits IS NOT NULL"):
        for at_ms, limits in orjson.loads(text):
            limit_id = limits["limit_id"]
            if limit_id not in found or found[limit_id][0] <= at_ms:
                found[limit_id] = at_ms, limits
    newest = sorted(found.items(), key=lambda each: each[1][0], reverse=True)
    return dict(newest[:BUCKETS_SHOWN])


def _age(at_ms: int | None, now: float) -> Json:
    if at_ms is None:
        return {"observed_at": None, "age_s": None}
    return {"observed_at": iso(at_ms), "age_s": max(0, round(now - at_ms / 1000))}


def _windows(limits: Json, now: float) -> Json:
    return {name: _window(limits.get(name), now) for name in ("primary", "secondary")}


def _window(window: object, now: float) -> Json | None:
    if not isinstance(window, dict):
        return None
    used, minutes, resets = (
        cast(Json, window).get(key) for key in ("used_percent", "window_minutes", "resets_at")
    )
    known = resets if isinstance(resets, int | float) and 0 <= resets < 10**12 else None
    return {
        "used_percent": float(used) if isinstance(used, int | float) else None,
        "window_minutes": int(minutes) if isinstance(minutes, int | float) else None,
        "resets_at": None if known is None else iso(round(known * 1000)),
        "expired": known is not None and known <= now,
    }
