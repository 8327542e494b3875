"""What one rollout tells: the account of its thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from codex_tools.history.indexer import feed_file
from codex_tools.rollouts.thread_reader import ThreadReader
from codex_tools.rollouts.token_counter import REQUEST_FIELDS, each_request
from support.rollout_lines import (
    CONTEXT_AGENT,
    COPY,
    LEGACY_FORK,
    MIGRATED_FORK,
    NEXT_TURN,
    PARENT,
    SAMPLES,
    THREAD,
    TURN,
    Json,
    Models,
    Read,
    context,
    count,
    counted,
    each_sample,
    ended,
    fed,
    meta,
    ms_of,
    new_count,
    new_meta,
    no_count,
    plain,
    read,
    readings,
    record,
    resumed,
    settings,
    spaced,
    stamped,
    started,
    tokens,
    told,
    told_by,
    written,
)
from support.synthetic_home import KINDS, Session, make_home

# What counts.


@each_sample
def test_each_request_of_a_thread_counts_once(lines: tuple[Json, ...], inputs: list[int]) -> None:
    assert counted(*lines) == inputs


FAST, FLEX, PLAIN = settings("priority"), settings("flex"), settings()
TURNS = (started(), context(turn_id=TURN)), (started(NEXT_TURN), context(turn_id=NEXT_TURN))


@pytest.mark.parametrize("form", [plain, spaced])
@pytest.mark.parametrize(
    ("lines", "tiers"),
    [
        # A new thread of 0.163.0 and 0.171.0: the settings follow the turn's start.
        ((*TURNS[0], FAST, record(1), record(2), ended()), ["priority"] * 2),
        ((*TURNS[0], PLAIN, record(1), ended(), FAST, *TURNS[1], record(2)), [None, "priority"]),
        # A resumed one: they precede it, and 0.163.0 writes them twice.
        ((FAST, *TURNS[0], record(1), ended(), PLAIN, PLAIN, *TURNS[1], record(2)),
         ["priority", None]),
        ((FAST, *TURNS[0], record(1), ended(), FLEX, *TURNS[1], record(2)), ["priority", "flex"]),
        # The next turn, without settings of its own, keeps the tier (app-server).
        ((FAST, *TURNS[0], record(1), ended(), *TURNS[1], record(2)), ["priority"] * 2),
        # A change while a turn runs is for the next turn.
        ((*TURNS[0], FAST, record(1), FLEX, record(2), ended(), *TURNS[1], record(3)),
         ["priority", "priority", "flex"]),
        ((*TURNS[0], FAST, FLEX, record(1), ended(), *TURNS[1], record(3)), ["priority", "flex"]),
        ((*TURNS[0], record(1), FLEX, record(2), ended(), *TURNS[1], record(3)),
         [None, None, "flex"]),
        # A turn that was killed has no end.
        ((*TURNS[0], FAST, record(1), PLAIN, *TURNS[1], record(2)), ["priority", None]),
        # "default" and unknown names are recorded as they are; null is no name.
        ((settings("default"), *TURNS[0], record(1)), ["default"]),
        ((settings("zonk"), *TURNS[0], record(1)), ["zonk"]),
        ((settings(service_tier=None), *TURNS[0], record(1)), [None]),
        ((settings(service_tier=["priority"]), *TURNS[0], record(1)), [None]),
        # Without an id, settings are the thread's; those of a parent are not.
        ((settings("priority", None), *TURNS[0], record(1)), ["priority"]),
        ((FAST, settings("flex", PARENT), *TURNS[0], record(1)), ["priority"]),
        # No settings at all: 0.60.1 to 0.147.0.
        ((*TURNS[0], record(1)), [None]),
    ],
)  # fmt: skip
def test_a_request_has_the_service_tier_of_its_turn(
    lines: tuple[Json, ...], tiers: list[str | None], form: Callable[[Json], str]
) -> None:
    data = written(new_meta(), *lines, form=form)
    assert read(data).tiers == tiers
    assert read(data, 50).tiers == tiers
    ends = [n + 1 for n, byte in enumerate(data) if byte == 0x0A]
    for cut in ends:
        found = resumed(data, cut)
        assert found is not None
        assert found.tiers == tiers, data[:cut]


def test_a_tier_changes_nothing_but_the_context() -> None:
    lines = (new_meta(), *TURNS[0], record(1), ended(), *TURNS[1], record(2))
    tiers = read(written(*lines[:1], FAST, *lines[1:]))
    assert tiers.inputs == read(written(*lines)).inputs
    assert [request[1:3] for request in tiers.requests] == [("gpt-5.5", "/project")] * 2


def test_a_request_is_taken_with_all_its_numbers() -> None:
    usage = {"input_tokens": 10, "cached_input_tokens": 9, "cache_write_input_tokens": 8}
    usage |= {"output_tokens": 7, "reasoning_output_tokens": 6, "total_tokens": 17}
    recorded = record(1)
    recorded["payload"]["usage"] = usage
    for each in (told(usage, usage), recorded):
        (request,) = read(written(meta(), context(), each)).requests
        assert request == (ms_of(200), "gpt-5.5", "/project", (10, 9, 8, 7, 6))


def test_a_request_has_as_many_fields_as_is_said() -> None:
    requests = fed(written(meta(), context(), count(101, 101), count(203, 102))).requests
    assert len(requests) == 2 * REQUEST_FIELDS
    assert [len(request) for request in each_request(requests)] == [REQUEST_FIELDS] * 2


def test_a_count_that_is_emitted_again_counts_once() -> None:
    again = (count(101, 101), count(101, 101), count(203, 102), count(203, 102), count(203, 102))
    assert counted(meta(), context(), *again) == [101, 102]


def test_equal_requests_in_a_row_count_each() -> None:
    assert counted(meta(), context(), count(101, 101), count(202, 101)) == [101, 101]


def test_counts_without_info_begin_anew() -> None:
    # A second process whose only request used as much as that of the first.
    once = (no_count(), count(101, 101))
    assert counted(meta(), context(), *once, *once, no_count(7.5), count(101, 101)) == [101] * 3


@pytest.mark.parametrize("first", [50, 203, 204, 5000])
@pytest.mark.parametrize("between", [(), (no_count(),)], ids=["at once", "after a null"])
def test_totals_that_begin_again_are_no_difference_to_what_was(
    first: int, between: tuple[Json, ...]
) -> None:
    if first == 203 and not between:
        return  # Nobody could tell that from a count that is emitted again.
    before = (count(101, 101), count(203, 102))
    after = (count(first, first), count(first + 9, 9))
    assert counted(meta(), context(), *before, *between, *after) == [101, 102, first, 9]


@pytest.mark.parametrize("with_records", [True, False])
def test_a_paginated_fork_has_not_used_the_total_it_inherits(with_records: bool) -> None:
    base = {"thread_id": PARENT, "end_ordinal_exclusive": 9, "end_byte_offset": 1}
    fork = new_meta(first={"forked_from_id": PARENT, "history_base": base})
    records = ((record(101),), (record(102),)) if with_records else ((), ())
    lines = (
        *(fork, started(), context(turn_id=TURN)),
        *(*records[0], new_count(65_101, 101)),
        *(*records[1], new_count(65_203, 102), ended()),
    )
    assert counted(*lines) == [101, 102]
    reader = fed(written(*lines))
    assert (reader.in_own_part, reader.needs_parent, reader.own_offset) == (True, None, 0)
    assert reader.forked_id == PARENT


def test_the_own_part_may_begin_with_a_turn_context() -> None:
    own = (context("gpt-5.4", turn_id=TURN), new_count(1904, 101))
    lines = (new_meta(mode="legacy", first={"forked_from_id": PARENT}), *COPY, *own)
    data = written(*lines)
    found = read(data)
    assert found.inputs == [101]
    assert found.requests[0][1] == "gpt-5.4"
    assert found.facts["own_offset"] == data.index(plain(stamped(lines)[-2]).encode())


def test_the_own_part_of_a_copied_thread_begins_at_its_first_turn_not_older_than_itself() -> None:
    data = written(*LEGACY_FORK)
    reader = fed(data)
    assert data[reader.own_offset :].startswith(plain(stamped(LEGACY_FORK)[16]).encode())
    assert (reader.turns, reader.title, reader.ending) == (1, "my own", "completed")
    assert reader.in_own_part
    assert reader.needs_parent is None


def test_a_turn_id_equal_to_the_thread_s_is_its_own() -> None:
    fork = new_meta(mode="legacy", first={"forked_from_id": PARENT})
    own = (started(THREAD), new_count(1904, 101), ended(THREAD))
    assert counted(fork, *COPY, *own) == [101]


def test_a_second_session_meta_alone_tells_of_a_copy() -> None:
    lines = (meta(), *COPY, started(), new_count(1904, 101), ended())
    assert counted(*lines) == [101]
    reader = fed(written(*lines))
    assert reader.thread_id == THREAD


def test_a_second_session_meta_of_the_same_thread_tells_of_none() -> None:
    assert counted(meta(), context(), count(101, 101), meta(), count(203, 102)) == [101, 102]


def test_the_first_session_meta_says_whose_it_is_and_no_later_one() -> None:
    other = meta(PARENT, cwd="/of/the/parent", cli_version="0.1.0", source="cli")
    reader = fed(written(meta(forked_from_id=PARENT), other))
    assert (reader.thread_id, reader.cwd) == (THREAD, "/made/in")
    assert (reader.cli_version, reader.source, reader.forked_id) == ("0.60.1", "exec", PARENT)
    assert reader.created_ms == ms_of(-114)
    assert reader.git_branch == "feat/x"


NO_TURN_IDS = (
    meta(forked_from_id=PARENT),
    *COPY,
    context("gpt-5.4"),
    new_count(1904, 101),
    new_count(1904, 101),
    new_count(2006, 102),
)


@pytest.mark.parametrize("more", [(), (count(2801, 998),)], ids=["as it was", "gone on since"])
def test_a_copy_without_turn_ids_is_what_its_parent_has_too(more: tuple[Json, ...]) -> None:
    # The parent as it was written, less one key than in the copy.
    theirs = readings(
        *(meta(PARENT), no_count(), count(901, 901), count(901, 901), count(1803, 902), *more)
    )
    reader = ThreadReader(THREAD, Models())
    reader.feed(written(*NO_TURN_IDS))
    assert reader.needs_parent == PARENT
    assert not reader.in_own_part
    reader.finish(theirs)
    assert [request[2] for request in each_request(reader.requests)] == [101, 102]


def test_a_fork_whose_parent_has_other_readings_has_copied_none_of_them() -> None:
    reader = ThreadReader(THREAD, Models())
    reader.feed(written(*NO_TURN_IDS))
    reader.finish(readings(meta(PARENT), count(5, 5)))
    assert [request[2] for request in each_request(reader.requests)] == [901, 902, 101, 102]


def test_the_readings_of_a_thread_are_all_that_it_emitted() -> None:
    whole = ((101, 5, 0, 7, 3), (101, 5, 0, 7, 3))
    then = ((203, 5, 0, 7, 3), (102, 5, 0, 7, 3))
    lines = (meta(PARENT), no_count(), count(101, 101), count(101, 101), new_count(203, 102))
    assert readings(*lines) == [whole, whole, then]


def test_keeping_the_readings_changes_nothing_of_the_account() -> None:
    for lines, inputs in SAMPLES.values():
        reader = ThreadReader(THREAD, Models())
        reader.keep_counts()
        reader.feed(written(*lines))
        reader.finish()
        assert [request[2] for request in each_request(reader.requests)] == inputs


def test_a_fork_of_a_fork_has_copied_what_that_one_had_copied_too() -> None:
    theirs = readings(*NO_TURN_IDS, thread_id=THREAD)
    own = NEXT_TURN
    reader = ThreadReader(own, Models())
    copy = NO_TURN_IDS[1:]
    reader.feed(written(meta(own, forked_from_id=THREAD), meta(), *copy, new_count(2109, 103)))
    assert reader.needs_parent == THREAD
    reader.finish(theirs)
    assert [request[2] for request in each_request(reader.requests)] == [103]


def test_of_a_copy_whose_parent_is_gone_the_burst_of_the_first_second_is_left_out() -> None:
    burst = (new_count(901, 901) | {"at_ms": 500}, new_count(1803, 902) | {"at_ms": 1499})
    own = (new_count(1904, 101) | {"at_ms": 1500}, new_count(2006, 102) | {"at_ms": 9000})
    assert counted(meta(forked_from_id=PARENT), *burst, *own) == [101, 102]


def test_a_sub_agent_that_replays_its_parent_needs_it_too() -> None:
    source = {"subagent": {"thread_spawn": {"parent_thread_id": PARENT, "depth": 1}}}
    reader = ThreadReader(THREAD, Models())
    reader.feed(written(meta(source=source), *COPY))
    assert reader.needs_parent == PARENT


def test_a_sub_agent_with_its_parent_s_context_has_only_its_own_turns() -> None:
    reader = ThreadReader(THREAD, Models())
    data = written(*CONTEXT_AGENT)
    own = data.index(plain(stamped(CONTEXT_AGENT)[5]).encode())
    reader.feed(data[:own])
    assert (reader.turns, reader.ending, reader.title) == (0, "", None)
    assert not reader.in_own_part
    reader.feed(data[own:])
    assert (reader.turns, reader.ending, reader.title) == (1, "completed", "my own")
    assert (reader.is_subagent, reader.parent_id, reader.own_offset) == (True, PARENT, own)


@pytest.mark.parametrize("lines", [LEGACY_FORK, MIGRATED_FORK, CONTEXT_AGENT, NO_TURN_IDS])
def test_what_was_copied_is_no_turn_no_title_and_no_ending(lines: tuple[Json, ...]) -> None:
    reader = ThreadReader(THREAD, Models())
    copied = next((n for n, each in enumerate(lines) if each == started()), len(lines))
    for each in stamped(lines)[:copied]:
        reader.feed(plain(each).encode() + b"\n")
        assert (reader.turns, reader.ending, reader.title) == (0, "", None), each
        assert not reader.marks


def test_mixed_files_are_decided_by_each_event() -> None:
    newer = (record(103), new_count(306, 103), record(104), new_count(410, 104))
    older = (no_count(), count(105, 105), count(105, 105), count(211, 106))
    last = (record(107), new_count(318, 107))
    first = (count(101, 101), count(203, 102))
    assert counted(meta(), context(), *first, *newer, *older, *last) == [*range(101, 108)]


@pytest.mark.parametrize("form", [plain, spaced])
@pytest.mark.parametrize("between", [(), (no_count(),)], ids=["at once", "after a null"])
def test_a_record_tells_of_one_count_and_no_more(
    between: tuple[Json, ...], form: Callable[[Json], str]
) -> None:
    more = (new_count(202, 101), no_count(), new_count(303, 101))
    lines = (meta(), context(), record(101), *between, new_count(101, 101), *more)
    assert read(written(*lines, form=form)).inputs == [101, 101, 101]


@pytest.mark.parametrize("again", [count, new_count])
def test_an_old_count_that_is_emitted_again_is_not_what_a_record_told_of(
    again: Callable[[int, int], Json],
) -> None:
    lines = (count(101, 101), record(102), again(101, 101), new_count(203, 102))
    assert counted(meta(), context(), *lines) == [101, 102]


@pytest.mark.parametrize("nulls", [1, 2])
def test_a_record_still_tells_of_its_count_after_one_without_info(nulls: int) -> None:
    lines = (record(101), *[no_count()] * nulls, new_count(101, 101), new_count(203, 102))
    assert counted(meta(), context(), *lines) == [101, 102]


def test_after_a_record_and_no_info_another_count_is_another_request() -> None:
    # 0.169 died before it wrote the count; 0.60.1 resumed the thread.
    assert counted(meta(), context(), record(101), no_count(), count(102, 102)) == [101, 102]


def test_a_record_alone_counts() -> None:
    assert counted(meta(), context(), record(101), record(102)) == [101, 102]


def test_the_record_of_another_thread_does_not_count_nor_does_its_count() -> None:
    copied = (record(901, thread_id=PARENT), new_count(901, 901))
    assert counted(meta(), context(), *copied, record(101), new_count(1002, 101)) == [101]


def test_a_record_counts_where_it_names_the_thread_of_the_file_and_not_of_its_name() -> None:
    name = "01a20000-0000-7000-8000-000000000001"
    reader = ThreadReader(name, Models())
    other = (record(901, thread_id=name), new_count(1002, 901))
    reader.feed(written(meta(), context(), record(101), new_count(101, 101), *other))
    assert [request[2] for request in each_request(reader.requests)] == [101]
    assert reader.thread_id == THREAD


def test_a_response_counts_once_however_often_it_is_recorded() -> None:
    once = (record(101, "resp_a"), new_count(101, 101))
    again = (record(101, "resp_a"), new_count(101, 101), record(101, "resp_b"))
    assert counted(meta(), context(), *once, *again) == [101, 101]


def test_a_response_is_known_again_by_a_later_reader() -> None:
    data = written(meta(), context(), record(101, "resp_a"), record(102, "resp_b"))
    later = written(record(101, "resp_a"), record(102, "resp_b"), record(103, "resp_c"))
    found = resumed(data + later, len(data))
    assert found is not None
    assert found.inputs == [101, 102, 103]


@pytest.mark.parametrize("no_id", [None, ""])
def test_responses_without_an_id_count_each(no_id: str | None) -> None:
    nameless = record(101)
    nameless["payload"]["response_id"] = no_id
    assert counted(meta(), context(), nameless, nameless) == [101, 101]


@pytest.mark.parametrize("before", [(count(101, 101),), (no_count(),), (record(101),)])
def test_what_compaction_estimates_is_no_request(before: tuple[Json, ...]) -> None:
    nothing = dict.fromkeys(tokens(0, 0), 0)
    estimate = told(tokens(101), nothing | {"total_tokens": 6076})
    requests = counted(meta(), context(), *before, estimate, count(203, 102))
    assert requests == ([102] if before == (no_count(),) else [101, 102])


def test_a_request_without_input_or_without_output_counts() -> None:
    nothing = dict.fromkeys(tokens(0), 0)
    for one in ({"input_tokens": 101}, {"output_tokens": 1}):
        lines = (meta(), context(), told(nothing | one, nothing | one))
        assert len(counted(*lines)) == 1


@pytest.mark.parametrize("first", [count, new_count])
def test_the_same_total_written_by_another_version_is_the_same(
    first: Callable[[int, int], Json],
) -> None:
    second = new_count if first is count else count
    same = (first(101, 101), second(101, 101), first(101, 101), second(203, 102), first(203, 102))
    assert counted(meta(), context(), *same) == [101, 102]


def test_requests_are_of_the_model_and_folder_of_their_turn() -> None:
    lines = (
        *(meta(), count(100, 100), context("gpt-5", "/a"), count(201, 101)),
        *(context("gpt-5", "/b"), count(303, 102), context("gpt-5", "/b"), count(406, 103)),
        *(context("gpt-5.5", "/b"), record(104), new_count(510, 104)),
        *(context("gpt-5", "/a"), record(105), new_count(615, 105)),
    )
    models = [(model, cwd) for _, model, cwd, _ in read(written(*lines)).requests]
    assert models == [
        *[(None, "/made/in"), ("gpt-5", "/a"), ("gpt-5", "/b"), ("gpt-5", "/b")],
        *[("gpt-5.5", "/b"), ("gpt-5", "/a")],
    ]


def test_a_request_is_of_the_time_of_its_line() -> None:
    day = 86_400_000
    lines = (
        *(meta(), context(), count(101, 101) | {"at_ms": 1}, count(203, 102) | {"at_ms": day}),
        *(record(103) | {"at_ms": 2 * day - 7}, new_count(306, 103) | {"at_ms": 3 * day}),
    )
    data = written(*lines)
    assert [ms for ms, *_ in read(data).requests] == [*map(ms_of, (1, day, 2 * day - 7))]
    assert fed(data).active_ms == ms_of(3 * day)


# Whole homes.


@pytest.mark.parametrize(
    ("seed", "packed", "turns", "days"),
    [(1, 0.0, 3, 30), (2, 1.0, 2, 3), (3, 0.3, 6, 90), (4, 0.5, 1, 1)],
)
def test_the_account_of_a_home_is_exact_for_each_thread(
    tmp_path: Path, seed: int, packed: float, turns: float, days: int
) -> None:
    truth = make_home(
        tmp_path,
        sessions=40,
        days=days,
        seed=seed,
        packed=packed,
        turns=turns,
        output_kb=0.2,
    )
    sessions = truth.sessions.values()
    assert {session.kind for session in sessions} == {*KINDS}
    for session in sessions:
        found = read_file(tmp_path / session.path, session)
        assert found.requests == as_told(session), session
        names = ("turns", "ending", "cwd", "model", "active_ms", "thread_id")
        assert [found.facts[name] for name in names] == [getattr(session, name) for name in names]
        assert found.facts["title"] == session.prompt[:200]
        assert found.facts["bad_lines"] == 0
        if session.copy is not None:
            copied = read_file(tmp_path / session.copy, session).requests
            assert copied == as_told(session)[: len(copied)]
            assert len(copied) < len(session.requests)
    for name in truth.unreadable:
        reader = ThreadReader(THREAD, Models())
        feed_file(reader, str(tmp_path / name))
        assert not reader.is_readable
    assert truth.total.requests == sum(used.requests for used in truth.by_session.values())


def read_file(path: Path, session: Session) -> Read:
    models = Models()
    reader = ThreadReader(session.thread_id, models)
    feed_file(reader, str(path))
    return told_by(reader, models)


def as_told(session: Session) -> list[tuple[int, str | None, str | None, tuple[int, ...]]]:
    return [(ms, model, cwd, tuple(used)) for ms, model, cwd, used in session.requests]
