"""What one rollout tells: the account of its thread, and how the thread stands.

Each request here has another number of input tokens, so that a list of them
says which ones were counted.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codex_tools.codex.account import REQUEST_FIELDS, each_request
from codex_tools.codex.intake import feed_file
from codex_tools.codex.ledger import LINE_LIMIT, Ledger
from codex_tools.codex.line import Counts
from homes import KINDS, Session, make_home

Json = dict[str, Any]

PARENT = "01a203da-44d3-7691-b0ab-2028070f8cec"
OLD_TURN = "01a203da-9ef9-7441-827b-ac0c97c81a88"
THREAD = "01a20661-b445-73e1-b566-c552cde98ccd"
TURN = "01a20661-b464-7331-a5c0-132af57480e6"
NEXT_TURN = "01a20661-c872-7a83-9064-a07f7334751f"

BEGIN = datetime(2026, 11, 23, 3, 9, 56, 214_000, tzinfo=UTC)
PARENT_COMMAND = "what the parent did"


class Models:
    """The contexts of requests, numbered as they come."""

    def __init__(self) -> None:
        self.known: list[tuple[str | None, str | None]] = []

    def number(self, model: str | None, cwd: str | None) -> int:
        if (model, cwd) not in self.known:
            self.known.append((model, cwd))
        return self.known.index((model, cwd))


# Lines, as Codex writes them: 0.60.1 unless it says otherwise.


def line(kind: str, payload: Json) -> Json:
    return {"type": kind, "payload": payload}


def event(kind: str, **more: Any) -> Json:
    return line("event_msg", {"type": kind} | more)


def item(kind: str, **more: Any) -> Json:
    return line("response_item", {"type": kind} | more)


def meta(thread_id: str = THREAD, **more: Any) -> Json:
    payload: Json = {"id": thread_id, "timestamp": "2026-11-23T03:09:56.100Z", "cwd": "/made/in"}
    payload |= {"originator": "codex_exec", "cli_version": "0.60.1", "source": "exec"}
    return line("session_meta", payload | more | {"git": {"branch": "feat/x"}})


def new_meta(thread_id: str = THREAD, *, mode: str = "paginated", **more: Any) -> Json:
    """Return the session_meta of 0.169.0."""
    payload: Json = {"account_scoped": True, "session_id": thread_id, "id": thread_id}
    payload |= more.pop("first", {})
    payload |= {"timestamp": "2026-11-23T03:09:56.100Z", "cwd": "/made/in"}
    payload |= {"cli_version": "0.169.0", "source": "exec", "thread_source": "user"} | more
    payload |= {"base_instructions": {"text": "Be helpful."}, "history_mode": mode, "git": {}}
    return line("session_meta", payload)


def context(model: str = "gpt-5.5", cwd: str = "/project", turn_id: str | None = None) -> Json:
    turn = {"turn_id": turn_id, "root_turn_id": turn_id} if turn_id else {}
    return line("turn_context", turn | {"cwd": cwd, "approval_policy": "never", "model": model})


def tokens(input_: int, write: int | None = None) -> Json:
    """Return the numbers of a reading; 0.169 writes *write* as well."""
    writes = {} if write is None else {"cache_write_input_tokens": write}
    return (
        {"input_tokens": input_, "cached_input_tokens": 5}
        | writes
        | {"output_tokens": 7, "reasoning_output_tokens": 3, "total_tokens": input_ + 7}
    )


def limits(percent: float | None) -> Json:
    window = percent and {"used_percent": percent, "window_minutes": 300, "resets_at": 1795364521}
    return {"primary": window, "secondary": None, "credits": None}


def told(total: Json, last: Json, percent: float | None = None) -> Json:
    info = {"total_token_usage": total, "last_token_usage": last, "model_context_window": 258400}
    return event("token_count", info=info, rate_limits=limits(percent))


def count(total: int, last: int, percent: float | None = None) -> Json:
    return told(tokens(total), tokens(last), percent)


def new_count(total: int, last: int, percent: float | None = None) -> Json:
    return told(tokens(total, 0), tokens(last, 0), percent)


def no_count(percent: float | None = None) -> Json:
    return event("token_count", info=None, rate_limits=limits(percent))


def record(last: int, response_id: str | None = None, thread_id: str = THREAD) -> Json:
    usage = tokens(last, 0)
    return line("token_usage_record", {
        "thread_id": thread_id,
        "turn_id": TURN,
        "session_id": thread_id,
        "root_turn_id": TURN,
        "response_id": response_id or f"resp_{last}",
        "usage": usage,
        "turn_token_usage": tokens(777_777, 0),
        "thread_token_usage": tokens(888_888, 0),
    })  # fmt: skip


def started(turn_id: str = TURN) -> Json:
    return event("task_started", turn_attribution={"turn_id": turn_id}, turn_id=turn_id)


def ended(turn_id: str = TURN, **error: Any) -> Json:
    return event("task_complete", turn_id=turn_id, last_agent_message="done", **error)


def aborted() -> Json:
    return event("turn_aborted", turn_id=TURN, reason="interrupted")


def asked(prompt: str) -> Json:
    return event("user_message", message=prompt, images=[])


def new_asked(prompt: str, turn_id: str = TURN) -> Json:
    part: Json = {"type": "text", "text": prompt, "text_elements": []}
    user: Json = {"type": "UserMessage", "id": "u", "content": [part]}
    return event("item_completed", thread_id=THREAD, turn_id=turn_id, item=user)


def said(text: str = "done") -> Json:
    return event("agent_message", message=text)


def answered(text: str = "done") -> Json:
    content = [{"type": "output_text", "text": text}]
    return item("message", role="assistant", content=content)


def prompted(text: str) -> Json:
    return item("message", role="user", content=[{"type": "input_text", "text": text}])


def call() -> Json:
    return item("function_call", name="shell_command", arguments="{}", call_id="c")


def output(text: str) -> Json:
    return item("function_call_output", call_id="c", output=text)


def clock(ms: int) -> str:
    at = BEGIN + timedelta(milliseconds=ms)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"


def stamped(lines: Sequence[Json]) -> list[Json]:
    """Give each line a time, 100 ms apart from `at_ms`, and an ordinal if it is paginated."""
    found: list[Json] = []
    paginated, ms = False, 0
    for n, each in enumerate(lines):
        ms = each.get("at_ms", ms)
        paginated = each.get("paginated", paginated or _says_paginated(each))
        ordinal = {"ordinal": n} if paginated else {}
        type_and_payload = {"type": each["type"], "payload": each["payload"]}
        found.append({"timestamp": clock(ms)} | ordinal | type_and_payload)
        ms += 100
    return found


def _says_paginated(each: Json) -> bool:
    return each["type"] == "session_meta" and each["payload"].get("history_mode") == "paginated"


def plain(entry: Json) -> str:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False)


def spaced(entry: Json) -> str:
    return json.dumps(entry)


def written(*lines: Json, form: Callable[[Json], str] = plain) -> bytes:
    return "".join(form(each) + "\n" for each in stamped(lines)).encode()


# Reading.


@dataclass
class Read:
    """All that a ledger tells, in a form to be compared."""

    inputs: list[int]
    requests: list[tuple[int, str | None, str | None, tuple[int, ...]]]
    facts: Json = field(default_factory=dict[str, Any])


FACTS = (
    *("thread_id", "known", "created_ms", "active_ms", "made_in", "source", "is_subagent"),
    *("parent_id", "forked_id", "cli_version", "git_branch", "is_paginated", "is_damaged"),
    *("model", "cwd", "title", "turns", "ending", "limits", "limits_ms", "bad_lines"),
    *("offset", "own_offset", "is_readable", "is_settled"),
)


def told_by(ledger: Ledger, models: Models, earlier: array[int] | None = None) -> Read:
    requests = (earlier or array("q")) + ledger.requests
    found = [(ms, *models.known[n], tuple(used)) for ms, n, *used in each_request(requests)]
    facts = {name: getattr(ledger, name) for name in FACTS}
    return Read([used[0] for *_, used in found], found, facts)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def fed(*blocks: bytes) -> Ledger:
    ledger = Ledger(THREAD, Models())
    for block in blocks:
        ledger.feed(block)
    ledger.finish()
    return ledger


def read(data: bytes, size: int | None = None) -> Read:
    models = Models()
    ledger = Ledger(THREAD, models)
    for block in pieces(data, size or len(data) or 1):
        ledger.feed(block)
    ledger.finish()
    return told_by(ledger, models)


def counted(*lines: Json) -> list[int]:
    """Return the input tokens of each request that is counted; nothing may be amiss.

    It is the same for lines as Codex writes them and for such as it does not,
    which go another way.
    """
    found, odd = read(written(*lines)), read(written(*lines, form=spaced))
    assert found.facts["bad_lines"] == odd.facts["bad_lines"] == 0
    assert found.requests == odd.requests
    return found.inputs


def resumed(data: bytes, cut: int) -> Read | None:
    """Read up to *cut*, go on with another ledger; None where that cannot be done."""
    models = Models()
    first = Ledger(THREAD, models)
    first.feed(data[:cut])
    first.finish()
    if not first.is_settled:
        return None
    second = Ledger(THREAD, models)
    second.restore(first.state(), "\n".join(first.responses))
    second.feed(data[first.offset :])
    second.finish()
    return told_by(second, models, first.requests)


def readings(*lines: Json, thread_id: str = PARENT) -> list[tuple[Counts, Counts]]:
    ledger = Ledger(thread_id, Models())
    ledger.keep_counts()
    ledger.feed(written(*lines))
    ledger.finish()
    assert ledger.counts is not None
    return ledger.counts


# Whole threads of each kind, and what of them counts.

OLD = (
    meta(),
    prompted("<environment_context>\n  <cwd>/project</cwd>\n</environment_context>"),
    prompted("do it"),
    asked("do it"),
    context(),
    no_count(),
    count(101, 101, 10.5),
    call(),
    output("Exit code: 0"),
    context(),
    count(101, 101),
    count(203, 102),
    said(),
    count(203, 102, 12.5),
    count(306, 103, 13.5),
    answered(),
    prompted("and now?"),
    asked("and now?"),
    context("gpt-5.1-codex-max", "/else"),
    no_count(),
    said("later"),
    count(104, 104),
    answered("later"),
)
NEW = (
    new_meta(),
    started(),
    context(turn_id=TURN),
    prompted("do it"),
    new_asked("do it"),
    call(),
    record(101),
    output("fine"),
    new_count(101, 101, 10.5),
    answered(),
    record(102),
    new_count(203, 102),
    ended(),
    new_count(203, 0) | {"at_ms": 5000},
    line("compacted", {"message": "all of it"}),
    started(NEXT_TURN),
    context("gpt-5.4", turn_id=NEXT_TURN),
    new_asked("and now?", NEXT_TURN),
    no_count(),
    aborted(),
)
MIXED = (
    *OLD,
    started(),
    context("gpt-5.4", turn_id=TURN),
    asked("as a newer one"),
    record(105),
    new_count(209, 105, 20.5),
    said(),
    record(106),
    new_count(315, 106),
    ended(),
    asked("as the older one"),
    context("gpt-5.1-codex-max"),
    no_count(),
    count(107, 107),
    said(),
    answered(),
)
COPY = (
    meta(PARENT),
    asked("the parent's"),
    context("gpt-5.2-codex"),
    no_count(),
    new_count(901, 901),
    new_count(901, 901),
    output(PARENT_COMMAND),
    new_count(1803, 902),
    said("the parent's"),
    answered("the parent's"),
    aborted(),
)
LEGACY_FORK = (
    new_meta(mode="legacy", first={"forked_from_id": PARENT}),
    *COPY,
    started(OLD_TURN),
    record(903, thread_id=PARENT),
    new_count(2706, 903),
    ended(OLD_TURN),
    started(),
    context("gpt-5.4", turn_id=TURN),
    asked("my own"),
    record(101),
    new_count(2807, 101),
    said(),
    answered(),
    record(102),
    new_count(2909, 102, 20.5),
    ended(),
)
CONTEXT_AGENT = (
    new_meta(
        first={"forked_from_id": PARENT, "parent_thread_id": PARENT},
        source={"subagent": {"thread_spawn": {"parent_thread_id": PARENT, "depth": 1}}},
        thread_source="subagent",
    ),
    new_meta(PARENT),
    started(OLD_TURN),
    context("gpt-5.2-codex", turn_id=OLD_TURN),
    prompted("the parent's"),
    started(),
    context("gpt-5.4", turn_id=TURN),
    new_asked("my own"),
    record(101),
    new_count(101, 101),
    ended(),
)
MIGRATED_FORK = (
    new_meta(first={"forked_from_id": PARENT}, cli_version="0.60.1"),
    started(OLD_TURN),
    *(each for each in COPY if each["type"] != "session_meta"),
    ended(OLD_TURN),
    started(),
    context("gpt-5.4", turn_id=TURN),
    new_asked("my own"),
    record(101),
    new_count(1904, 101),
    ended(),
)
SAMPLES = {
    "old": (OLD, [101, 102, 103, 104]),
    "new": (NEW, [101, 102]),
    "mixed": (MIXED, [101, 102, 103, 104, 105, 106, 107]),
    "legacy fork": (LEGACY_FORK, [101, 102]),
    "context agent": (CONTEXT_AGENT, [101]),
    "migrated fork": (MIGRATED_FORK, [101]),
}
each_sample = pytest.mark.parametrize(("lines", "inputs"), SAMPLES.values(), ids=SAMPLES)


# What counts.


@each_sample
def test_each_request_of_a_thread_counts_once(lines: tuple[Json, ...], inputs: list[int]) -> None:
    assert counted(*lines) == inputs


def test_a_request_is_taken_with_all_its_numbers() -> None:
    usage = {"input_tokens": 10, "cached_input_tokens": 9, "cache_write_input_tokens": 8}
    usage |= {"output_tokens": 7, "reasoning_output_tokens": 6, "total_tokens": 17}
    recorded = record(1)
    recorded["payload"]["usage"] = usage
    for each in (told(usage, usage), recorded):
        (request,) = read(written(meta(), context(), each)).requests
        assert request == (ms_of(200), "gpt-5.5", "/project", (10, 9, 8, 7, 6))


def ms_of(ms: int) -> int:
    return round(BEGIN.timestamp() * 1000) + ms


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
    ledger = fed(written(*lines))
    assert (ledger.is_settled, ledger.needs_parent, ledger.own_offset) == (True, None, 0)
    assert ledger.forked_id == PARENT


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
    ledger = fed(data)
    assert data[ledger.own_offset :].startswith(plain(stamped(LEGACY_FORK)[16]).encode())
    assert (ledger.turns, ledger.title, ledger.ending) == (1, "my own", "completed")
    assert ledger.is_settled
    assert ledger.needs_parent is None


def test_a_turn_id_equal_to_the_thread_s_is_its_own() -> None:
    fork = new_meta(mode="legacy", first={"forked_from_id": PARENT})
    own = (started(THREAD), new_count(1904, 101), ended(THREAD))
    assert counted(fork, *COPY, *own) == [101]


def test_a_second_session_meta_alone_tells_of_a_copy() -> None:
    lines = (meta(), *COPY, started(), new_count(1904, 101), ended())
    assert counted(*lines) == [101]
    ledger = fed(written(*lines))
    assert ledger.thread_id == THREAD


def test_a_second_session_meta_of_the_same_thread_tells_of_none() -> None:
    assert counted(meta(), context(), count(101, 101), meta(), count(203, 102)) == [101, 102]


def test_the_first_session_meta_says_whose_it_is_and_no_later_one() -> None:
    other = meta(PARENT, cwd="/of/the/parent", cli_version="0.1.0", source="cli")
    ledger = fed(written(meta(forked_from_id=PARENT), other))
    assert (ledger.thread_id, ledger.made_in, ledger.cwd) == (THREAD, "/made/in", "/made/in")
    assert (ledger.cli_version, ledger.source, ledger.forked_id) == ("0.60.1", "exec", PARENT)
    assert ledger.created_ms == ms_of(-114)
    assert ledger.git_branch == "feat/x"


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
    ledger = Ledger(THREAD, Models())
    ledger.feed(written(*NO_TURN_IDS))
    assert ledger.needs_parent == PARENT
    assert not ledger.is_settled
    ledger.finish(theirs)
    assert [request[2] for request in each_request(ledger.requests)] == [101, 102]


def test_a_fork_whose_parent_has_other_readings_has_copied_none_of_them() -> None:
    ledger = Ledger(THREAD, Models())
    ledger.feed(written(*NO_TURN_IDS))
    ledger.finish(readings(meta(PARENT), count(5, 5)))
    assert [request[2] for request in each_request(ledger.requests)] == [901, 902, 101, 102]


def test_the_readings_of_a_thread_are_all_that_it_emitted() -> None:
    whole = ((101, 5, 0, 7, 3), (101, 5, 0, 7, 3))
    then = ((203, 5, 0, 7, 3), (102, 5, 0, 7, 3))
    lines = (meta(PARENT), no_count(), count(101, 101), count(101, 101), new_count(203, 102))
    assert readings(*lines) == [whole, whole, then]


def test_keeping_the_readings_changes_nothing_of_the_account() -> None:
    for lines, inputs in SAMPLES.values():
        ledger = Ledger(THREAD, Models())
        ledger.keep_counts()
        ledger.feed(written(*lines))
        ledger.finish()
        assert [request[2] for request in each_request(ledger.requests)] == inputs


def test_a_fork_of_a_fork_has_copied_what_that_one_had_copied_too() -> None:
    theirs = readings(*NO_TURN_IDS, thread_id=THREAD)
    own = NEXT_TURN
    ledger = Ledger(own, Models())
    copy = NO_TURN_IDS[1:]
    ledger.feed(written(meta(own, forked_from_id=THREAD), meta(), *copy, new_count(2109, 103)))
    assert ledger.needs_parent == THREAD
    ledger.finish(theirs)
    assert [request[2] for request in each_request(ledger.requests)] == [103]


def test_of_a_copy_whose_parent_is_gone_the_burst_of_the_first_second_is_left_out() -> None:
    burst = (new_count(901, 901) | {"at_ms": 500}, new_count(1803, 902) | {"at_ms": 1499})
    own = (new_count(1904, 101) | {"at_ms": 1500}, new_count(2006, 102) | {"at_ms": 9000})
    assert counted(meta(forked_from_id=PARENT), *burst, *own) == [101, 102]


def test_a_sub_agent_that_replays_its_parent_needs_it_too() -> None:
    source = {"subagent": {"thread_spawn": {"parent_thread_id": PARENT, "depth": 1}}}
    ledger = Ledger(THREAD, Models())
    ledger.feed(written(meta(source=source), *COPY))
    assert ledger.needs_parent == PARENT


def test_a_sub_agent_with_its_parent_s_context_has_only_its_own_turns() -> None:
    ledger = Ledger(THREAD, Models())
    data = written(*CONTEXT_AGENT)
    own = data.index(plain(stamped(CONTEXT_AGENT)[5]).encode())
    ledger.feed(data[:own])
    assert (ledger.turns, ledger.ending, ledger.title) == (0, "", None)
    assert not ledger.is_settled
    ledger.feed(data[own:])
    assert (ledger.turns, ledger.ending, ledger.title) == (1, "completed", "my own")
    assert (ledger.is_subagent, ledger.parent_id, ledger.own_offset) == (True, PARENT, own)


@pytest.mark.parametrize("lines", [LEGACY_FORK, MIGRATED_FORK, CONTEXT_AGENT, NO_TURN_IDS])
def test_what_was_copied_is_no_turn_no_title_and_no_ending(lines: tuple[Json, ...]) -> None:
    ledger = Ledger(THREAD, Models())
    copied = next((n for n, each in enumerate(lines) if each == started()), len(lines))
    for each in stamped(lines)[:copied]:
        ledger.feed(plain(each).encode() + b"\n")
        assert (ledger.turns, ledger.ending, ledger.title) == (0, "", None), each
        assert not ledger.marks


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
    ledger = Ledger(name, Models())
    other = (record(901, thread_id=name), new_count(1002, 901))
    ledger.feed(written(meta(), context(), record(101), new_count(101, 101), *other))
    assert [request[2] for request in each_request(ledger.requests)] == [101]
    assert ledger.thread_id == THREAD


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


def test_responses_without_an_id_count_each() -> None:
    nameless = record(101)
    nameless["payload"]["response_id"] = None
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


# What looks like it and is not.

COUNT_LINE = plain(stamped([count(999, 999)])[0])
RECORD_LINE = plain(stamped([record(999)])[0])
LOOKALIKES = (COUNT_LINE, RECORD_LINE, COUNT_LINE + "\n" + RECORD_LINE, "\n" + COUNT_LINE + "\n")


@pytest.mark.parametrize("text", LOOKALIKES)
def test_what_stands_in_a_string_does_not_count(text: str) -> None:
    shell = {"type": "CommandExecution", "aggregated_output": text}
    strings = (
        *(output(text), prompted(text), answered(text), asked(text), said(text)),
        *(event("item_completed", item=shell), line("compacted", {"message": text})),
        *(event("task_complete", last_agent_message=text), new_asked(text)),
    )
    for each in strings:
        assert counted(meta(), context(), each, count(101, 101)) == [101]


def test_what_stands_deeper_in_a_line_does_not_count() -> None:
    inner = stamped([count(999, 999)])[0]
    deeper = (item("tool_output", result=inner), line("world_state", {"state": inner}))
    for each in (*deeper, event("mcp_tool_call_end", result=inner)):
        assert counted(meta(), context(), each, count(101, 101)) == [101]


def test_prompts_that_nobody_wrote_are_no_title() -> None:
    lines = (meta(), prompted("<environment_context>"), prompted("<subagent_notification>"))
    assert fed(written(*lines, asked("mine"))).title == "mine"


def backwards(entry: Json) -> str:
    def turned(value: Json) -> Json:
        return {
            name: turned(cast(Json, inner)) if isinstance(inner, dict) else inner
            for name, inner in reversed(value.items())
        }

    return plain(turned(entry))


def timed(change: Callable[[str], str]) -> Callable[[Json], str]:
    return lambda entry: plain(entry | {"timestamp": change(entry["timestamp"])})


ODD: dict[str, Callable[[Json], str]] = {
    "spaces": spaced,
    "another order of keys": backwards,
    "microseconds": timed(lambda at: at.replace("Z", "999Z")),
    "no zone": timed(lambda at: at.removesuffix("Z")),
    "an offset": timed(lambda at: at.replace("Z", "+00:00")),
    "no ASCII": lambda entry: json.dumps(entry | {"ä": "ö"}, separators=(",", ":")),
    "a key more": lambda entry: plain({"at": 1} | entry),
}


@each_sample
@pytest.mark.parametrize("form", ODD.values(), ids=ODD)
def test_lines_in_another_form_tell_the_same(
    lines: tuple[Json, ...], inputs: list[int], form: Callable[[Json], str]
) -> None:
    found, usual = read(written(*lines, form=form)), read(written(*lines))
    assert found.inputs == inputs
    assert found.requests == usual.requests
    # What an old Codex is at is told by the bytes of its lines alone.
    rough = ("ending",) if form in (spaced, backwards) else ()
    for name in FACTS:
        if name not in ("offset", "own_offset", *rough):
            assert found.facts[name] == usual.facts[name], name


@pytest.mark.parametrize("name", [name for name in ODD if name != "another order of keys"])
def test_a_line_in_another_form_among_usual_ones_tells_the_same(name: str) -> None:
    for lines, inputs in SAMPLES.values():
        entries = stamped(lines)
        usual = [plain(entry) for entry in entries]
        for n, entry in enumerate(entries):
            found = read("\n".join((*usual[:n], ODD[name](entry), *usual[n + 1 :], "")).encode())
            assert found.inputs == inputs, entry


# What is damaged.

WRONG: list[object] = ["many", [1], {}, True, 1.5, None, -1, -(10**30), 10**15, 10**30, 1e300]


@pytest.mark.parametrize("name", [name for name in tokens(0, 0) if name != "total_tokens"])
@pytest.mark.parametrize("value", WRONG, ids=str)
def test_a_count_with_a_number_that_is_none_does_not_count(name: str, value: object) -> None:
    wrong = told(tokens(203, 0), tokens(102, 0) | {name: value})
    found = read(written(meta(), context(), count(101, 101), wrong, new_count(306, 103)))
    assert found.inputs == [101, 103]
    assert found.facts["bad_lines"] == 1


@pytest.mark.parametrize("name", [name for name in tokens(0, 0) if name != "total_tokens"])
@pytest.mark.parametrize("value", WRONG, ids=str)
def test_a_record_with_a_number_that_is_none_leaves_it_to_its_count(
    name: str, value: object
) -> None:
    wrong = record(102)
    wrong["payload"]["usage"][name] = value
    found = read(written(meta(), context(), record(101), new_count(101, 101), wrong))
    assert found.inputs == [101]
    assert found.facts["bad_lines"] == 1
    found = read(written(meta(), context(), wrong, new_count(102, 102), new_count(205, 103)))
    assert found.inputs == [102, 103]


def test_the_largest_number_that_is_one_counts() -> None:
    most = 10**15 - 1
    assert counted(meta(), context(), count(most, most), record(most)) == [most, most]


@pytest.mark.parametrize("total", [None, 1, [], "x"])
def test_a_count_without_a_total_does_not_count(total: object) -> None:
    wrong = told(cast(Json, total), tokens(101))
    found = read(written(meta(), context(), wrong, count(203, 102)))
    assert (found.inputs, found.facts["bad_lines"]) == ([102], 1)


@pytest.mark.parametrize("info", [[], "oops", 1, {}])
def test_info_of_another_kind_does_not_count(info: object) -> None:
    wrong = event("token_count", info=info, rate_limits=None)
    found = read(written(meta(), context(), wrong, count(102, 102)))
    assert (found.inputs, found.facts["bad_lines"]) == ([102], 1)


GARBAGE = (b"\xff\x00 garbage", b"[]", b"42", b'{"type":"event_msg"}', b'"type":"token_count"')


@each_sample
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_between_the_lines_is_told_of_and_passed_over(
    lines: tuple[Json, ...], inputs: list[int], garbage: bytes
) -> None:
    data = written(*lines).replace(b"\n", b"\n" + garbage + b"\n")
    found = read(data)
    assert found.inputs == inputs
    assert found.facts["bad_lines"] == len(lines)


def test_empty_lines_are_nothing() -> None:
    data = written(*OLD).replace(b"\n", b"\n\n  \n")
    found = read(data)
    assert (found.inputs, found.facts["bad_lines"]) == ([101, 102, 103, 104], 0)


def test_a_line_torn_in_the_middle_of_the_file_costs_no_other() -> None:
    first = written(meta(), context(), count(101, 101))
    torn = written(count(203, 102))
    last = written(count(306, 103))
    for cut in range(1, torn.index(b'"last_token_usage"') + 40):
        found = read(first + torn[:cut] + b"\n" + last)
        assert found.inputs == [101, 103]
        assert found.facts["bad_lines"] <= 1


@each_sample
def test_a_torn_last_line_waits_for_its_end(lines: tuple[Json, ...], inputs: list[int]) -> None:
    data = written(*lines)
    start = data.rindex(b"\n", 0, -1) + 1
    whole = read(data)
    for cut in range(start, len(data) - 2, 13):
        found = read(data[:cut])
        assert found.facts["offset"] == start
        assert found.facts["bad_lines"] == 0
        assert resumed(data, cut) in (whole, None)


@pytest.mark.parametrize("last", [count(203, 102), record(102)], ids=["count", "record"])
def test_a_whole_last_line_without_a_line_feed_counts_and_once(last: Json) -> None:
    data = written(meta(), context(), count(101, 101), last)
    for ending in (b"", b" ", b"\r"):
        assert read(data[:-1] + ending).inputs == [101, 102]
    assert read(data[:-1]).facts["offset"] == len(data) - 1
    for more in (b"", written(last), written(count(306, 103))):
        found = resumed(data + more, len(data) - 1)
        assert found is not None
        assert found == read(data + more)


def test_a_line_after_one_without_a_line_feed_counts_too() -> None:
    data = written(meta(), context(), count(101, 101))[:-1]
    found = resumed(data + written(count(203, 102)), len(data))
    assert found is not None
    assert found.inputs == [101, 102]


def endless(kind: str = "response_item") -> bytes:
    """Return a line that is too long even less the block that brings its end."""
    head = written(line(kind, {"type": "message", "text": ""}))[:-4]
    return head + b"x" * (LINE_LIMIT + (4 << 20)) + b'"}}\n'


@pytest.mark.parametrize(
    ("kind", "bad"), [("response_item", 0), ("compacted", 0), ("event_msg", 1)]
)
@pytest.mark.parametrize("size", [1 << 20, 3_999_999])
def test_an_endless_line_is_left_out_and_told_of_if_it_might_have_counted(
    kind: str, bad: int, size: int
) -> None:
    first, last = written(meta(), context(), count(101, 101)), written(count(203, 102))
    data = first + endless(kind) + last
    found = read(data, size)
    assert (found.inputs, found.facts["bad_lines"]) == ([101, 102], bad)
    assert found.facts["offset"] == len(data)


def test_two_endless_lines_are_left_out_each() -> None:
    data = written(meta(), context()) + endless("event_msg") * 2 + written(count(101, 101))
    found = read(data, 1 << 20)
    assert (found.inputs, found.facts["bad_lines"]) == ([101], 2)


def test_the_rest_of_an_endless_line_is_no_line() -> None:
    # Wherever a block ends: also so that what comes next looks like a line's beginning.
    head = written(new_meta(), started()) + endless()[:-4]
    rest = b'","items":[{"type":"event_msg","payload":{"type":"token_count"}}]}}\n'
    for length in range(20, 40):
        ledger = fed(head, b"y" * length + rest, b"garbage\n")
        assert not ledger.is_damaged, length
        assert ledger.bad_lines == 1


# However it is read.


@each_sample
@pytest.mark.parametrize("size", [1, 7, 100, 4096])
def test_blocks_of_any_size_tell_the_same(
    lines: tuple[Json, ...], inputs: list[int], size: int
) -> None:
    data = written(*lines)
    found = read(data, size)
    assert found.inputs == inputs
    assert found == read(data)


@pytest.mark.parametrize("name", ["new", "mixed", "legacy fork", "context agent"])
def test_a_cut_at_any_byte_tells_the_same(name: str) -> None:
    data = written(*SAMPLES[name][0])
    whole = read(data)
    models = Models()
    for cut in range(len(data)):
        ledger = Ledger(THREAD, models)
        ledger.feed(data[:cut])
        ledger.feed(data[cut:])
        ledger.finish()
        assert told_by(ledger, models) == whole


@each_sample
def test_reading_on_at_any_line_tells_the_same(lines: tuple[Json, ...], inputs: list[int]) -> None:
    data = written(*lines)
    whole = read(data)
    settled = 0
    cut = 0
    while (cut := data.find(b"\n", cut) + 1) > 0:
        for inside in (cut, cut + 17):
            found = resumed(data, inside)
            settled += found is not None
            assert found in (whole, None), inside
    assert settled > 4


@pytest.mark.parametrize(
    "last", [count(102, 102), new_count(101, 101), new_count(202, 101)], ids=[1, 2, 3]
)
def test_reading_on_between_a_record_and_what_follows_tells_the_same(last: Json) -> None:
    for between in ((), (no_count(),), (count(50, 50),)):
        data = written(meta(), context(), count(50, 50), record(101), *between, last, last)
        for cut in range(0, len(data), 20):
            assert resumed(data, cut) == read(data)


def test_reading_on_forgets_no_bad_line() -> None:
    data = written(meta(), context()) + b"garbage\n" + written(count(101, 101))
    for cut in range(len(data)):
        assert resumed(data, cut) == read(data)


def test_reading_on_ever_again_tells_the_same() -> None:
    for lines, _ in SAMPLES.values():
        data = written(*lines)
        models, requests = Models(), array("q")
        state, responses, marks = b"", "", list[tuple[int, int, int]]()
        ledger = Ledger(THREAD, models)
        for end in range(0, len(data) + 150, 150):
            ledger = Ledger(THREAD, models)
            if state:
                ledger.restore(state, responses)
            start = ledger.offset
            ledger.feed(data[start:end])
            ledger.finish()
            if ledger.is_settled:
                before = len(requests) // REQUEST_FIELDS
                marks += [(at, ms, before + n) for at, ms, n in ledger.marks]
                requests += ledger.requests
                state, responses = ledger.state(), "\n".join(ledger.responses)
        assert told_by(ledger, models, requests[: -len(ledger.requests) or None]) == read(data)
        assert marks == fed(data).marks


def test_a_state_is_plain_bytes_and_comes_back_as_it_was() -> None:
    ledger = fed(written(*MIXED))
    again = Ledger(THREAD, Models())
    again.restore(ledger.state(), "\n".join(ledger.responses))
    assert again.state() == ledger.state()
    assert again.responses == ledger.responses
    assert not again.requests


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
        ledger = fed(data)
        places = [data.index(plain(entries[n]).encode()) for n in prompts]
        assert [offset for offset, *_ in ledger.marks] == places
        times = [entries[n]["timestamp"] for n in prompts]
        assert [ms for _, ms, _ in ledger.marks] == [
            round(datetime.fromisoformat(time).timestamp() * 1000) for time in times
        ]
        before = [read(data[:place]).inputs for place in places]
        if lines is not LEGACY_FORK:
            assert [number for *_, number in ledger.marks] == [len(each) for each in before]
    assert [number for *_, number in fed(written(*LEGACY_FORK)).marks] == [0]


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
    ledger = fed(data)
    if ledger.limits is None:
        return None
    return ledger.limits["primary"]["used_percent"], ledger.limits_ms


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


# Whose it is.


def test_instructions_of_any_length_hide_nothing() -> None:
    long = new_meta(first={"forked_from_id": PARENT})
    decoy = ',"history_mode":"legacy","git":{"branch":"wrong"}' * 400
    long["payload"]["base_instructions"]["text"] = decoy
    long["payload"]["git"] = {"branch": "right"}
    ledger = fed(written(long))
    assert (ledger.thread_id, ledger.forked_id, ledger.git_branch) == (THREAD, PARENT, "right")
    assert ledger.is_paginated


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
    ledger = fed(written(meta(**more)))
    assert (ledger.source, ledger.is_subagent, ledger.parent_id) == (source, is_subagent, parent)


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff" * 99, b"{}\n", b'{"type":"session_meta"}\n'])
def test_what_is_no_rollout_is_not_readable(data: bytes) -> None:
    ledger = fed(data)
    assert not ledger.is_readable
    assert (ledger.thread_id, ledger.turns, ledger.ending) == (THREAD, 0, "")


def test_a_rollout_whose_head_is_lost_is_readable() -> None:
    ledger = fed(written(context(), count(101, 101)))
    assert ledger.is_readable
    assert not ledger.known


# Any thread that Codex could have written.


class Codex:
    """Writes a rollout as Codex would, and knows what each request used."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        self.lines: list[Json] = []
        self.used: list[tuple[int, ...]] = []
        self.total = (0, 0, 0, 0, 0)
        self.is_old = True
        self.last: tuple[int, ...] | None = None
        self.turn = 0
        self.responses = 0
        self.model = "gpt-5.5"
        self.prefix = ""

    def numbers(self, used: Sequence[int]) -> Json:
        names = [name for name in tokens(0, 0) if name != "total_tokens"]
        numbers = dict(zip(names, used, strict=True)) | {"total_tokens": used[0] + used[3]}
        if self.is_old:
            del numbers["cache_write_input_tokens"]
        return numbers

    def emit(self, last: Sequence[int], percent: float | None = None) -> None:
        self.lines.append(told(self.numbers(self.total), self.numbers(last), percent))

    def begin(self, by_old: bool) -> None:
        """Start a process that resumes the thread."""
        if self.turn and not self.is_old:
            self.lines.append(ended())
        self.is_old, self.last = by_old, None
        self.turn += 1
        if by_old:
            self.total = (0, 0, 0, 0, 0)
            self.lines += [asked("go on"), context(self.model), no_count()]
        else:
            turn_id = f"{self.thread_id[:-4]}{0x9000 + self.turn:04x}"
            self.lines += [started(turn_id), context(self.model, turn_id=turn_id), asked("go on")]

    def step(self, what: str, numbers: tuple[int, ...]) -> None:
        match what:
            case "request":
                self.request(numbers)
            case "again" if self.last is not None:
                self.emit(self.last, 50.5)
            case "compaction" if self.last is not None:
                self.emit((0, 0, 0, 0, 0))
                self.lines.append(line("compacted", {"message": COUNT_LINE}))
            case "abort" if not self.is_old:
                self.lines.append(no_count())
                self.begin(by_old=False)
            case "model":
                self.model = f"gpt-{numbers[0]}"
                self.begin(self.is_old)
            case "output":
                self.lines += [call(), output(COUNT_LINE * 3)]
            case "old" | "new":
                self.begin(what == "old")
            case _:
                pass

    def request(self, numbers: tuple[int, ...]) -> None:
        input_, cached, write, output_, reasoning = numbers
        used = (input_, cached, 0 if self.is_old else write, output_, reasoning)
        self.total = cast(Counts, tuple(map(sum, zip(self.total, used, strict=True))))
        self.used.append(used)
        self.last = used
        if not self.is_old:
            self.responses += 1
            told_of = record(1, f"resp_{self.prefix}{self.responses}", self.thread_id)
            told_of["payload"]["usage"] = self.numbers(used)
            self.lines.append(told_of)
        self.emit(used)


NUMBERS = st.tuples(
    st.integers(1, 3), st.integers(0, 2), st.integers(0, 1), st.integers(0, 2), st.integers(0, 2)
)
WORDS = ("request", "request", "again", "compaction", "abort", "model", "output", "old", "new")
STEPS = st.lists(st.tuples(st.sampled_from(WORDS), NUMBERS), max_size=30)


def used_in(found: Read) -> list[tuple[int, ...]]:
    return [used for *_, used in found.requests]


@settings(max_examples=120, deadline=None)
@given(steps=STEPS, by_old=st.booleans(), size=st.integers(20, 3000), cut=st.floats(0, 1))
def test_the_account_of_any_thread_is_exact(
    steps: list[tuple[str, tuple[int, ...]]], by_old: bool, size: int, cut: float
) -> None:
    codex = Codex(THREAD)
    codex.lines.append(meta())
    codex.begin(by_old)
    for step in steps:
        codex.step(*step)
    data = written(*codex.lines)
    found = read(data)
    assert used_in(found) == codex.used
    assert found.facts["turns"] == codex.turn
    assert found.facts["bad_lines"] == 0
    assert read(data, size) == found
    assert resumed(data, int(len(data) * cut)) == found


@settings(max_examples=120, deadline=None)
@given(theirs=STEPS, ours=STEPS, by_old=st.booleans(), size=st.integers(20, 3000))
def test_the_account_of_any_legacy_fork_is_of_its_own_part(
    theirs: list[tuple[str, tuple[int, ...]]],
    ours: list[tuple[str, tuple[int, ...]]],
    by_old: bool,
    size: int,
) -> None:
    codex = Codex(PARENT)
    codex.begin(by_old)
    for step in theirs:
        codex.step(*step)
    codex.thread_id, codex.used, codex.turn, codex.prefix = THREAD, [], 0, "own"
    fork = new_meta(mode="legacy", first={"forked_from_id": PARENT})
    codex.lines = [fork, meta(PARENT), *codex.lines]
    codex.begin(by_old=False)
    for step in ours:
        codex.step(*step)
    data = written(*codex.lines)
    found = read(data)
    assert used_in(found) == codex.used
    assert found.facts["turns"] == codex.turn
    assert read(data, size) == found


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
        ledger = Ledger(THREAD, Models())
        feed_file(ledger, tmp_path / name)
        assert not ledger.is_readable
    assert truth.total.requests == sum(used.requests for used in truth.by_session.values())


def read_file(path: Path, session: Session) -> Read:
    models = Models()
    ledger = Ledger(session.thread_id, models)
    feed_file(ledger, path)
    return told_by(ledger, models)


def as_told(session: Session) -> list[tuple[int, str | None, str | None, tuple[int, ...]]]:
    return [(ms, model, cwd, tuple(used)) for ms, model, cwd, used in session.requests]
