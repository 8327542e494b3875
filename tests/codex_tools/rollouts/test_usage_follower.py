"""The tokens of a run at work: each request once, by the bytes that Codex has written since."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
import zstandard

from codex_tools.codex.json_object import Json
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts import usage_follower
from codex_tools.rollouts.threads import Threads
from codex_tools.rollouts.token_counter import REQUEST_FIELDS, each_request
from codex_tools.rollouts.turn_record import TurnMark, read_record
from codex_tools.rollouts.usage_follower import DayShare, Spent, UsageFollower, day_of
from support.rollout_lines import (
    COPY,
    NEXT_TURN,
    PARENT,
    THREAD,
    asked,
    context,
    count,
    each_sample,
    fed,
    meta,
    new_count,
    new_meta,
    no_count,
    output,
    pieces,
    record,
    written,
)

PRICES = read_prices(None)
NAME = f"rollout-2026-11-23T03-09-56-{THREAD}.jsonl"


def inputs_from(data: bytes, offset: int) -> list[int]:
    """Return the input tokens of each request after *offset*, as a reader of the whole finds."""
    before = len(list(each_request(fed(data[:offset]).requests)))
    return [row[2] for row in each_request(fed(data).requests)][before:]


def follow(folder: Path, data: bytes, offset: int, size: int) -> Spent:
    """Follow a rollout from *offset* on, while the rest is written in pieces of *size* bytes."""
    path = folder / NAME
    path.write_bytes(data[:offset])
    follower = UsageFollower(path, TurnMark(offset), PRICES)
    follower.read()
    spent = Spent()
    with path.open("ab", buffering=0) as file:
        for piece in pieces(data[offset:], size):
            file.write(piece)
            found = follower.read()
            assert found.tokens >= spent.tokens
            spent = found
    return spent


@each_sample
@pytest.mark.parametrize("size", [70, 10_000])
def test_each_request_counts_once_wherever_the_run_begins(
    lines: Sequence[Json], inputs: list[int], size: int, tmp_path: Path
) -> None:
    data = written(*lines)
    assert follow(tmp_path, data, 0, size).input_tokens == sum(inputs_from(data, 0))
    ends = [at + 1 for at, byte in enumerate(data) if byte == 0x0A]
    for offset in ends:
        # A run begins only where no copy of another thread is being written.
        if fed(data[:offset]).in_own_part and fed(data[:offset]).has_meta:
            expected = inputs_from(data, offset)
            assert follow(tmp_path, data, offset, size).input_tokens == sum(expected), offset
    if "fork" not in data.decode():
        assert inputs_from(data, 0) == inputs


@each_sample
def test_the_end_of_a_long_thread_is_enough_to_know_where_it_stands(
    lines: Sequence[Json], inputs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_follower, "TAILS", (500, 2000))
    half = len(lines) // 2
    data = written(*lines[:half], *[output("x" * 300)] * 5, *lines[half:])
    ends = [at + 1 for at, byte in enumerate(data) if byte == 0x0A]
    for offset in ends:
        if fed(data[:offset]).in_own_part and fed(data[:offset]).has_meta:
            expected = inputs_from(data, offset)
            assert follow(tmp_path, data, offset, 10_000).input_tokens == sum(expected), offset


def test_a_turn_of_an_old_codex_in_a_fork_counts_at_once(tmp_path: Path) -> None:
    # It writes no turn ids, which tell the copy of the parent and the fork's own part apart.
    fork = written(new_meta(mode="legacy", first={"forked_from_id": PARENT}), *COPY)
    own = written(asked("mine"), context(), no_count(), count(107, 107), count(107, 107))
    assert follow(tmp_path, fork + own, len(fork), 100).input_tokens == 107


def test_what_was_read_once_is_never_read_again(tmp_path: Path) -> None:
    path = tmp_path / NAME
    old = written(meta(), no_count(), count(101, 101), output("x" * 5000), count(203, 102))
    path.write_bytes(old)
    follower = UsageFollower(path, TurnMark(len(old)), PRICES)
    assert follower.read().usage is None
    for total, last in ((306, 103), (410, 104)):
        before = path.read_bytes()
        path.write_bytes(b"#" * len(before) + written(count(total, last)))
        assert follower.read().input_tokens == total - 203


def test_a_look_reads_a_bounded_part_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_follower, "READ_LIMIT", 1000)
    path = tmp_path / NAME
    path.write_bytes(written(meta(), count(101, 101), output("x" * 3000), count(203, 102)))
    follower = UsageFollower(path, TurnMark(), PRICES)
    looks = [follower.read().input_tokens for _ in range(6)]
    assert looks[0] < looks[-1] == 203
    assert UsageFollower(path, TurnMark(), PRICES).read_all().input_tokens == 203


def test_it_agrees_with_what_is_read_at_the_end_of_a_turn(tmp_path: Path) -> None:
    first = written(new_meta(), record(101), new_count(101, 101))
    data = first + written(record(102), new_count(203, 102), record(103), new_count(306, 103))
    path = tmp_path / NAME
    path.write_bytes(data)
    for mark in (TurnMark(), TurnMark(len(first))):
        spent = UsageFollower(path, mark, PRICES).read()
        found = read_record([path], mark, PRICES)
        assert (spent.usage, spent.cost_usd) == (found.usage, found.cost_usd)


def test_a_rollout_that_is_written_anew_is_counted_by_time(tmp_path: Path) -> None:
    path = tmp_path / NAME
    data = written(meta(), count(101, 101), count(203, 102))
    since = fed(data).requests[REQUEST_FIELDS]
    path.write_bytes(data)
    follower = UsageFollower(path, TurnMark(len(data) + 1000, since), PRICES)
    assert follower.read().input_tokens == 102
    # And while it is followed.
    path.write_bytes(data + written(count(306, 103)))
    follower = UsageFollower(path, TurnMark(0, since), PRICES)
    assert follower.read().input_tokens == 306
    path.write_bytes(data)
    assert follower.read().input_tokens == 102


def test_only_a_rollout_that_codex_can_append_to_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "sessions" / "2026" / "11" / "23"
    folder.mkdir(parents=True)
    threads = Threads(tmp_path, PRICES)
    assert threads.follow_usage(THREAD, TurnMark()) is None
    data = written(meta(), count(101, 101))
    (folder / f"{NAME}.zst").write_bytes(zstandard.compress(data))
    assert threads.follow_usage(THREAD, TurnMark(len(data))) is None
    (folder / NAME).write_bytes(data + written(count(203, 102)))
    follower = threads.follow_usage(THREAD, TurnMark(len(data)))
    assert follower is not None
    assert follower.read().input_tokens == 102


def test_the_newest_segment_of_a_thread_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "sessions" / "2026" / "11" / "23"
    folder.mkdir(parents=True)
    threads = Threads(tmp_path, PRICES)
    first = written(new_meta(), record(101), new_count(101, 101))
    base = {"thread_id": THREAD, "end_ordinal_exclusive": 3, "end_byte_offset": len(first)}
    later = written(new_meta(history_base=base), record(102), new_count(203, 102))
    more = written(record(103), new_count(306, 103))
    (folder / NAME).write_bytes(first)
    (folder / NAME.replace(".jsonl", f"_{NEXT_TURN}.jsonl")).write_bytes(later + more)
    follower = threads.follow_usage(THREAD, TurnMark(len(later), segment=NEXT_TURN))
    assert follower is not None
    assert follower.read().input_tokens == 103
    # A segment that has begun since the mark belongs to the run as a whole.
    follower = threads.follow_usage(THREAD, TurnMark(len(first)))
    assert follower is not None
    assert follower.read().input_tokens == 102 + 103


def test_a_model_without_a_price_has_tokens_and_no_cost(tmp_path: Path) -> None:
    def turn(model: str, total: int, last: int) -> bytes:
        return written(
            {"type": "turn_context", "payload": {"cwd": "/p", "model": model}}, count(total, last)
        )

    path = tmp_path / NAME
    path.write_bytes(written(meta()) + turn("gpt-5.4", 101, 101))
    follower = UsageFollower(path, TurnMark(), PRICES)
    priced = follower.read()
    assert priced.cost_usd
    assert priced.unpriced == ()
    with path.open("ab") as file:
        file.write(turn("no-such-model", 203, 102))
    both = follower.read()
    assert (both.tokens, both.cost_usd) == (203 + 14, None)
    assert (both.known_usd, both.unpriced) == (priced.known_usd, ("no-such-model",))


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Niue"])
def test_a_request_belongs_to_the_day_of_this_machine(
    zone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        late, early = (
            datetime(2026, 11, day, hour).timestamp() for day, hour in ((23, 23), (24, 1))
        )
        assert [day_of(at * 1000) for at in (late, early)] == ["2026-11-23", "2026-11-24"]
        path = tmp_path / NAME
        lines = [meta(), count(101, 101), count(203, 102)]
        entries = [json.loads(each) for each in written(*lines).splitlines()]
        for entry, at in zip(entries[1:], (late, early), strict=True):
            utc = datetime.fromtimestamp(at).astimezone(tz=None).astimezone()
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(utc.timestamp()))
            entry["timestamp"] = stamp
        text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in entries)
        path.write_text(text)
        days = dict(UsageFollower(path, TurnMark(), PRICES).read().days)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert days == {
        "2026-11-23": DayShare(108, 0.0, is_priced=False),
        "2026-11-24": DayShare(109, 0.0, is_priced=False),
    }


@pytest.mark.parametrize("ms", [-(10**18), 10**18, 253_402_300_799_999, -62_135_596_800_000])
def test_each_time_has_a_day(ms: int) -> None:
    assert len(day_of(ms)) == len("2026-11-23")


def test_a_rollout_that_is_gone_is_an_error_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(written(meta(), count(101, 101)))
    follower = UsageFollower(path, TurnMark(), PRICES)
    follower.read()
    path.unlink()
    with pytest.raises(OSError, match=NAME):
        follower.read()
