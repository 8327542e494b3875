"""What one rollout tells of its thread: whose it is, and how it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

import pytest

from codex_tools.rollouts.token_counter import BUCKETS_KEPT
from support.rollout_lines import (
    LEGACY_FORK,
    MIXED,
    NEW,
    NEXT_TURN,
    OLD,
    PARENT,
    THREAD,
    TURN,
    Json,
    aborted,
    answered,
    asked,
    call,
    context,
    count,
    ended,
    event,
    fed,
    meta,
    ms_of,
    new_asked,
    new_count,
    new_meta,
    no_count,
    output,
    plain,
    read,
    record,
    resumed,
    said,
    spaced,
    stamped,
    started,
    written,
)

# How the thread stands.

IN_TURN = (meta(), asked("one"), context(), no_count(), count(101, 101))
OPEN = (new_meta(), started(), context(turn_id=TURN), new_asked("one"))
LEGACY_OPEN = (new_meta(mode="legacy"), started(), context(turn_id=TURN), asked("one"))
ENDINGS: dict[str, tuple[tuple[Json, ...], int, str]] = {
    "nothing yet": ((meta(),), 0, ""),
    "old, asked": (IN_TURN, 1, "asked"),
    "old, at work": ((*IN_TURN, call(), output("x")), 1, "asked"),
    "old, said": ((*IN_TURN, call(), said()), 1, "said"),
    "old, answered": ((*IN_TURN, said(), count(203, 102), answered()), 1, "answered"),
    "old, said and at work": ((*IN_TURN, said(), answered(), call(), output("x")), 1, "asked"),
    "old, said, worked, said": ((*IN_TURN, said(), answered(), call(), said()), 1, "said"),
    "old, asked again": ((*IN_TURN, said(), answered(), asked("two")), 2, "asked"),
    "old, answered again": ((*IN_TURN, said(), answered(), asked("two"), said(), answered()), 2,
                            "answered"),
    "old, thinking is not saying": ((*IN_TURN, event("agent_reasoning", text="x")), 1, "asked"),
    "old, interrupted": ((*IN_TURN, aborted()), 1, "interrupted"),
    "new, open": (OPEN, 1, "open"),
    "new, at work": ((*OPEN, call(), record(101), output("x"), new_count(101, 101)), 1, "open"),
    "new, completed": ((*OPEN, answered(), ended()), 1, "completed"),
    "new, failed": ((*OPEN, ended(error={"message": "bad"})), 1, "failed"),
    "new, no error": ((*OPEN, ended(error=None)), 1, "completed"),
    "new, interrupted": ((*OPEN, no_count(), aborted()), 1, "interrupted"),
    "new, open again": ((*OPEN, ended(), started(NEXT_TURN)), 2, "open"),
    "new, told of an error": ((*OPEN, event("task_complete", last='{"error":1}')), 1, "completed"),
    "legacy, open": (LEGACY_OPEN, 1, "open"),
    "legacy, said": ((*LEGACY_OPEN, said(), answered()), 1, "open"),
    "legacy, steered": ((*LEGACY_OPEN, asked("and"), said()), 1, "open"),
    "legacy, completed": ((*LEGACY_OPEN, said(), answered(), ended()), 1, "completed"),
    "old resumed by new": ((*IN_TURN, said(), started(), asked("two"), ended()), 2, "completed"),
    "legacy, killed, resumed by old": ((*LEGACY_OPEN, asked("two"), context(), no_count(), said()),
                                       2, "said"),
    "legacy, killed, resumed by old with its former context":
        ((*IN_TURN, started(), asked("two"), asked("three"), context(), said()), 3, "said"),
    "new resumed by old": ((*LEGACY_OPEN, ended(), asked("two"), said()), 2, "said"),
}  # fmt: skip


@pytest.mark.parametrize("size", [None, 50])
@pytest.mark.parametrize(("lines", "turns", "ending"), ENDINGS.values(), ids=ENDINGS)
def test_the_last_turn_stands_as_its_lines_say(
    lines: tuple[Json, ...], turns: int, ending: str, size: int | None
) -> None:
    facts = read(written(*lines), size).facts
    assert (facts["turns"], facts["ending"]) == (turns, ending)
    assert facts["title"] == ("one" if turns else None)


@pytest.mark.parametrize("ask", [asked, new_asked])
def test_the_title_is_the_first_prompt_in_one_short_line(ask: Callable[[str], Json]) -> None:
    first = (meta(), started(), ask("  \n\n "), ask("Fix\n  the\ttests\n"), ask("two"))
    assert fed(written(*first)).title == "Fix the tests"
    long = fed(written(meta(), started(), ask("word " * 2000))).title
    assert long is not None
    assert long.startswith("word word")
    assert len(long) == 200


def test_the_title_is_all_text_that_a_prompt_has() -> None:
    parts = [{"type": "image", "url": "x"}, {"type": "text", "text": "look"}, 7]
    user = {"type": "UserMessage", "id": "u", "content": [*parts, {"type": "text", "text": "here"}]}
    assert fed(written(new_meta(), event("item_completed", item=user))).title == "look here"


def test_each_turn_is_marked_where_it_begins() -> None:
    for lines, prompts in ((OLD, (3, 17)), (NEW, (1, 15)), (LEGACY_FORK, (16,))):
        data, entries = written(*lines), stamped(lines)
        reader = fed(data)
        places = [data.index(plain(entries[n]).encode()) for n in prompts]
        assert [mark.offset for mark in reader.marks] == places
        times = [entries[n]["timestamp"] for n in prompts]
        assert [mark.ms for mark in reader.marks] == [
            round(datetime.fromisoformat(time).timestamp() * 1000) for time in times
        ]
        before = [read(data[:place]).inputs for place in places]
        if lines is not LEGACY_FORK:
            assert [mark.requests for mark in reader.marks] == [len(each) for each in before]
    assert [mark.requests for mark in fed(written(*LEGACY_FORK)).marks] == [0]


@pytest.mark.parametrize("cut", [0, 40])
def test_an_old_codex_in_a_paginated_thread_has_damaged_it(cut: int) -> None:
    old = asked("as the older one") | {"paginated": False}
    data = written(*NEW, old)
    for size in (None, 50):
        assert not read(written(*NEW), size).facts["is_damaged"]
        assert read(data, size).facts["is_damaged"]
    found = resumed(data, len(written(*NEW)) + cut)
    assert found is not None
    assert found.facts["is_damaged"]
    found = resumed(data + written(*NEW)[-1:], len(data))
    assert found is not None
    assert found.facts["is_damaged"]


@pytest.mark.parametrize("lines", [OLD, MIXED, LEGACY_FORK], ids=["old", "mixed", "fork"])
def test_a_thread_that_was_never_paginated_is_not_damaged(lines: tuple[Json, ...]) -> None:
    facts = read(written(*lines)).facts
    assert (facts["is_paginated"], facts["is_damaged"]) == (False, False)


def percent(data: bytes) -> tuple[float, int] | None:
    reader = fed(data)
    if reader.limits is None or reader.limits_ms is None:
        return None
    return json.loads(reader.limits)["primary"]["used_percent"], reader.limits_ms


@pytest.mark.parametrize("form", [plain, spaced])
def test_the_newest_limits_that_are_filled_in_are_kept(form: Callable[[Json], str]) -> None:
    first = (meta(), context(), no_count())
    cases: list[tuple[tuple[Json, ...], float, int]] = [
        ((count(101, 101, 10.5), count(203, 102)), 10.5, 300),
        ((count(101, 101, 10.5), count(203, 102, 11.5), no_count()), 11.5, 400),
        ((count(101, 101, 10.5), no_count(12.5), count(203, 102)), 12.5, 400),
        ((no_count(12.5), count(101, 101, 13.5), count(203, 102)), 13.5, 400),
        ((record(101), new_count(101, 101, 14.5), record(102), new_count(203, 102)), 14.5, 400),
    ]
    assert percent(written(*first, count(101, 101), form=form)) is None
    for lines, used, ms in cases:
        assert percent(written(*first, *lines, form=form)) == (used, ms_of(ms))


@pytest.mark.parametrize("form", [plain, spaced])
def test_a_count_that_is_emitted_again_may_bring_newer_limits(form: Callable[[Json], str]) -> None:
    # So it is when the limit is reached: nothing more is used, and 100 percent are told.
    lines = (meta(), context(), count(101, 101, 99.5), count(101, 101, 100.0))
    assert percent(written(*lines, form=form)) == (100.0, ms_of(300))


def test_limits_are_known_to_a_later_reader() -> None:
    data = written(meta(), context(), count(101, 101, 10.5))
    for more, used in ((count(203, 102), 10.5), (count(203, 102, 11.5), 11.5)):
        found = resumed(data + written(more), len(data))
        assert found is not None
        assert found.facts["limits"]["primary"]["used_percent"] == used


def bucket(percent: float | None, limit_id: str | None = None, name: str | None = None) -> Json:
    """Return a token_count of 0.163.0 with the rate limits of a bucket."""
    told = no_count(percent)
    told["payload"]["rate_limits"] = {
        "limit_id": limit_id, "limit_name": name, **told["payload"]["rate_limits"]
    }  # fmt: skip
    return told


def with_use(total: int, told: Json) -> Json:
    """Return *told* as the reading of a request."""
    used = new_count(total, 1)
    used["payload"]["rate_limits"] = told["payload"]["rate_limits"]
    return used


def buckets(reader_limits: str | None, others: str | None) -> dict[str, float]:
    found = {"account": json.loads(reader_limits)} if reader_limits else {}
    found |= {each["limit_id"]: each for _, each in json.loads(others or "[]")}
    return {name: each["primary"]["used_percent"] for name, each in found.items()}


SPARK = "codex_bengalfox"


@pytest.mark.parametrize("form", [plain, spaced])
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([bucket(76, "codex"), bucket(1, SPARK)], {"account": 76, SPARK: 1}),
        ([bucket(1, SPARK), bucket(76, "codex")], {"account": 76, SPARK: 1}),
        ([bucket(76, "codex"), bucket(1, SPARK), bucket(2, SPARK)], {"account": 76, SPARK: 2}),
        ([bucket(1, SPARK), bucket(76, "codex"), bucket(2, SPARK), bucket(77, "codex")],
         {"account": 77, SPARK: 2}),
        # Nulls, which later turns write, hide nothing.
        ([bucket(76, "codex"), bucket(1, SPARK), bucket(None, "codex"), bucket(None, SPARK)],
         {"account": 76, SPARK: 1}),
        # 0.60.1 names no bucket: it is the account's.
        ([bucket(76, "codex"), no_count(78.0), bucket(1, SPARK)], {"account": 78, SPARK: 1}),
        ([bucket(76, None), bucket(1, SPARK)], {"account": 76, SPARK: 1}),
        ([bucket(76, ""), bucket(1, SPARK)], {"account": 76, SPARK: 1}),
        ([bucket(1, SPARK)], {SPARK: 1}),
        ([bucket(1, SPARK), bucket(2, "codex_other"), bucket(3, 'a"b')],
         {SPARK: 1, "codex_other": 2, 'a"b': 3}),
        # A bucket whose name begins like the account's is another one.
        ([bucket(76, "codex"), bucket(1, "codex2")], {"account": 76, "codex2": 1}),
    ],
)  # fmt: skip
def test_the_newest_limits_of_each_bucket_are_kept(
    lines: list[Json], expected: dict[str, float], form: Callable[[Json], str]
) -> None:
    used = [with_use(n + 1, each) for n, each in enumerate(lines)]
    for told in (lines, used, [lines[0], *used[1:]], [used[0], *lines[1:]]):
        data = written(new_meta(), context(), *told, form=form)
        for size in (len(data), 50, 1000):
            reader = fed(*(data[start : start + size] for start in range(0, len(data), size)))
            assert buckets(reader.limits, reader.other_limits) == expected
        for cut in (n + 1 for n, byte in enumerate(data) if byte == 0x0A):
            found = resumed(data, cut)
            assert found is not None
            account = json.dumps(found.facts["limits"]) if found.facts["limits"] else None
            assert buckets(account, found.facts["other_limits"]) == expected


def test_another_bucket_is_kept_with_its_time_and_name() -> None:
    lines = (bucket(1, SPARK, "GPT-5.3-Codex-Spark"), bucket(76, "codex"))
    reader = fed(written(new_meta(), context(), *lines))
    ((ms, limits),) = json.loads(reader.other_limits or "")
    assert (ms, limits["limit_name"]) == (ms_of(200), "GPT-5.3-Codex-Spark")
    assert reader.limits_ms == ms_of(300)


def test_a_file_with_many_buckets_keeps_some_and_the_account_s() -> None:
    many = [bucket(n, f"b{n}") for n in range(1, 100)]
    for lines in ([bucket(76, "codex"), *many], [*many, bucket(76, "codex")]):
        used = [with_use(n + 1, each) for n, each in enumerate(lines)]
        for data in (written(new_meta(), context(), *each) for each in (lines, used)):
            reader = fed(data)
            assert len(json.loads(reader.other_limits or "")) <= BUCKETS_KEPT
            assert '"used_percent":76' in (reader.limits or "")


# Whose it is.


def test_instructions_of_any_length_hide_nothing() -> None:
    long = new_meta(first={"forked_from_id": PARENT})
    decoy = ',"history_mode":"legacy","git":{"branch":"wrong"}' * 400
    long["payload"]["base_instructions"]["text"] = decoy
    long["payload"]["git"] = {"branch": "right"}
    reader = fed(written(long))
    assert (reader.thread_id, reader.forked_id, reader.git_branch) == (THREAD, PARENT, "right")
    assert reader.is_paginated


@pytest.mark.parametrize(
    ("more", "source", "is_subagent", "parent"),
    [
        ({"source": "cli"}, "cli", False, None),
        ({"source": "vscode", "thread_source": "user"}, "vscode", False, None),
        ({"source": {"subagent": "review"}}, "subagent", True, None),
        ({"source": {"custom": {"x": 1}}}, "custom", False, None),
        ({"source": "exec", "thread_source": "subagent"}, "exec", True, None),
        ({"parent_thread_id": PARENT}, "exec", False, PARENT),
        (
            {"source": {"subagent": {"thread_spawn": {"parent_thread_id": PARENT}}}},
            *("subagent", True, PARENT),
        ),
        ({"source": None}, None, False, None),
        ({"source": {}}, None, False, None),
    ],
)
def test_the_session_meta_says_where_a_thread_comes_from(
    more: Json, source: str | None, is_subagent: bool, parent: str | None
) -> None:
    reader = fed(written(meta(**more)))
    assert (reader.source, reader.is_subagent, reader.parent_id) == (source, is_subagent, parent)


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff" * 99, b"{}\n", b'{"type":"session_meta"}\n'])
def test_what_is_no_rollout_is_not_readable(data: bytes) -> None:
    reader = fed(data)
    assert not reader.is_readable
    assert (reader.thread_id, reader.turns, reader.ending) == (THREAD, 0, "")


def test_a_rollout_whose_head_is_lost_is_readable() -> None:
    reader = fed(written(context(), count(101, 101)))
    assert reader.is_readable
    assert not reader.has_meta
