"""The mirror of a place is history: it is kept long, and then removed with all that is empty."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from codex_tools.places.mirror import Home, Mirror, places_with
from codex_tools.places.place import Place
from codex_tools.places.places import Places
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.threads import Threads

DAY = 86400.0

OLD, NEW = (f"01a20000-0000-7000-8000-00000000000{number}" for number in (1, 2))


def rollout(thread_id: str, day: str) -> str:
    return f"sessions/2026/11/{day}/rollout-2026-11-{day}T00-00-00-{thread_id}.jsonl"


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    """Two threads: one had its last turn 40 days ago, the other one yesterday."""
    mirror = Mirror(tmp_path, "box")
    mirror.claim()
    for thread_id, day, days in ((OLD, "01", 40), (NEW, "02", 1)):
        mirror.write(thread_id, rollout(thread_id, day), 0, b"{}\n")
        mirror.remember(thread_id, Home(tmp_path, tmp_path, "c", "s"))
        age(mirror.home / rollout(thread_id, day), days)
        age(mirror.home / "threads" / f"{thread_id}.json", 40)
    return mirror


def test_only_threads_without_a_turn_for_long_are_removed(mirror: Mirror, tmp_path: Path) -> None:
    (mirror.home / "threads" / f"{NEW}.123").write_text("half")
    age(mirror.home / "threads" / f"{NEW}.123", 1)
    mirror.prune(30 * DAY)
    left = {path.name for path in (mirror.home / "threads").iterdir()}
    assert left == {f"{NEW}.json"}  # Its file is as old, but its last turn is not.
    assert places_with(tmp_path, NEW) == ["box"]
    assert [path.name for path in (mirror.home / "sessions").glob("*/*/*")] == ["02"]
    mirror.prune(0.5 * DAY)
    assert places_with(tmp_path, NEW) == []
    assert not [*(mirror.home / "sessions").iterdir()]


def test_each_mirror_is_kept_as_long_as_its_place_says(mirror: Mirror, tmp_path: Path) -> None:
    def places(*known: Place) -> Places:
        prices = read_prices(None)
        found = {place.name: place for place in known}
        return Places(found, tmp_path, prices, Threads(tmp_path / "home", prices))

    places(Place("box")).prune()
    places(Place("other", keep_history_days=30)).prune()  # `box` was removed from the file.
    assert places_with(tmp_path, OLD) == ["box"]
    places(Place("box", keep_history_days=30)).prune()
    assert places_with(tmp_path, OLD) == []
    assert places_with(tmp_path, NEW) == ["box"]


def test_this_machine_keeps_as_long_as_the_place_that_keeps_the_longest(tmp_path: Path) -> None:
    prices = read_prices(None)
    threads = Threads(tmp_path / "home", prices)
    known = {name: Place(name, keep_days=days) for name, days in (("a", 3), ("b", 30))}
    assert Places(known, tmp_path, prices, threads).keep_s == 30 * DAY
    assert Places({}, tmp_path, prices, threads).keep_s == 0
