"""What one rollout tells though its lines are odd, damaged, or read in pieces."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import cast

import pytest

from codex_tools.rollouts.line import (
    LINE_LIMIT,
    RECORD,
    STRING_LIMIT,
    lines_of,
    parse_line,
    records_in,
)
from codex_tools.rollouts.thread_reader import ThreadReader
from codex_tools.rollouts.token_counter import Limits
from codex_tools.rollouts.turn_tracker import Mark
from support.rollout_lines import (
    COUNT_LINE,
    FACTS,
    MIXED,
    NEXT_TURN,
    OLD,
    SAMPLES,
    THREAD,
    TURN,
    Json,
    Models,
    answered,
    asked,
    context,
    count,
    counted,
    each_sample,
    ended,
    event,
    fed,
    item,
    line,
    meta,
    new_asked,
    new_count,
    new_meta,
    no_count,
    output,
    pieces,
    plain,
    prompted,
    read,
    record,
    resumed,
    said,
    spaced,
    stamped,
    started,
    tokens,
    told,
    told_by,
    written,
)

# What looks like it and is not.

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

WRONG: list[object] = ["many", [1], {}, True, 1.5, None, -1, -(10**30), 2**50, 10**30, 1e300]


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
    most = 2**50 - 1
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


# A Codex before 0.147 appends to a torn line (seen on 0.60.1 to 0.120.0).

TORN = (
    *(output("seq 1000"), said("half"), asked("torn"), new_asked("torn"), ended(), context("torn")),
    *(count(999, 999), record(999), line("compacted", {"message": "m"}), prompted("x")),
)


@pytest.mark.parametrize("torn", TORN)
def test_a_turn_whose_start_was_appended_to_a_torn_line_is_a_turn(torn: Json) -> None:
    first = (new_meta(mode="legacy"), started(), context(turn_id=TURN), asked("one"))
    after = (context(turn_id=NEXT_TURN), asked("two"), record(102), ended(NEXT_TURN))
    whole = written(*first, torn, started(NEXT_TURN), *after)
    before, cut_line = len(written(*first)), len(written(*first, torn))
    rest = whole[cut_line:]
    for cut in range(before + 1, cut_line - 20):
        data = whole[:cut] + rest
        reader = fed(data)
        assert (reader.turns, reader.ending, reader.title) == (2, "completed", "one"), cut
        assert [mark.offset for mark in reader.marks][1:] == [cut]
        found = resumed(data, cut + 5)
        assert found is not None
        assert found.facts["turns"] == 2


@pytest.mark.parametrize("torn", TORN)
def test_a_prompt_that_was_appended_to_a_torn_line_begins_a_turn(torn: Json) -> None:
    first = (meta(), asked("one"), context(), no_count(), count(101, 101))
    after = (context("gpt-5.4"), no_count(), count(102, 102), said())
    whole = written(*first, torn, asked("two"), *after)
    before, cut_line = len(written(*first)), len(written(*first, torn))
    for cut in range(before + 1, cut_line - 20):
        found = read(whole[:cut] + whole[cut_line:])
        assert found.facts["turns"] == 2, whole[before:cut]
        assert found.facts["title"] == "one"
        assert found.inputs[-1] == 102


def test_the_record_appended_to_a_torn_head_counts() -> None:
    torn = b'{"timestamp":"2026-11-23T03:10:00.000Z","type":"event_msg","payload":{"type":"us'
    for cut in range(1, len(torn) + 1):
        for last in (asked("mine"), record(102), new_count(102, 102)):
            found = read(written(meta(), context()) + torn[:cut] + written(last))
            assert (found.inputs, found.facts["title"]) in (([102], None), ([], "mine")), cut
            assert found.facts["bad_lines"] == 1


def test_a_whole_line_is_never_split() -> None:
    inner = stamped([asked("forged")])[0]
    whole = plain(stamped([item("tool_search_call", arguments={"a": [inner, inner]})])[0]).encode()
    assert records_in(whole) == [whole]
    torn = whole[:-9]
    assert records_in(torn + whole + b"\n") == [whole + b"\n"]
    assert [*lines_of([torn + whole + b"\n" + whole])] == [whole + b"\n", whole]
    assert records_in(whole + whole) == [whole, whole]
    assert records_in(torn) == [torn]
    odd = b'{"at":1,"payload":' + plain(inner).encode() + b"}\n"
    assert records_in(odd) == [odd]
    # What was torn may end with what looks like a record; it is none of Codex's lines.
    for last in (context(), no_count()):
        lines = written(meta(), asked("mine"), context()) + whole + b"\n" + written(last)
        assert fed(lines).turns == 1


def test_a_line_of_many_records_costs_a_bounded_number_of_tries() -> None:
    assert records_in(RECORD * 100_000) == [RECORD * 100_000]


def endless(kind: str = "response_item") -> bytes:
    """Return a line that is too long even with shortened strings."""
    head = written(line(kind, {"type": "message", "texts": []}))[:-4]
    return head + b'"abcdefghijklmnopqrstuvwxyz",' * (LINE_LIMIT // 24) + b'""]}}\n'


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


LONG = "many words " * (LINE_LIMIT // 11 + 1)


@pytest.mark.parametrize("prompt", [asked, new_asked])
def test_a_prompt_over_the_limit_is_the_title_and_begins_its_turn(
    prompt: Callable[[str], Json],
) -> None:
    first = (new_meta(), started()) if prompt is new_asked else (meta(),)
    before = written(*first)
    data = before + written(*first, prompt(LONG), context()).removeprefix(before)
    for size in (1 << 18, 5_000_001):
        found = read(data, size)
        assert found.facts["title"] == LONG[:200].strip()
        assert (found.facts["turns"], found.facts["bad_lines"]) == (1, 0)
        assert found.facts["offset"] == len(data)


def test_a_prompt_behind_a_long_image_is_the_title() -> None:
    image = {"type": "image", "image_url": "data:image/png;base64," + "A" * LINE_LIMIT}
    entry = new_asked("look at this")
    entry["payload"]["item"]["content"].insert(0, image)
    assert read(written(new_meta(), started(), entry), 1 << 18).facts["title"] == "look at this"


def test_a_turn_with_an_answer_over_the_limit_has_ended_at_its_place() -> None:
    answer = event("task_complete", turn_id=TURN, last_agent_message=LONG)
    lines = (new_meta(), started(), answer, started(NEXT_TURN))
    data = written(*lines)
    reader = ThreadReader(THREAD, Models())
    for block in pieces(data, 1 << 18):
        reader.feed(block)
    reader.finish()
    last = len(data) - data[:-1].rfind(b"\n") - 1
    assert [mark.offset for mark in reader.marks] == [len(written(new_meta())), len(data) - last]
    assert fed(*pieces(written(*lines[:3]), 1 << 18)).ending == "completed"


def test_reading_on_within_a_long_line_tells_the_same() -> None:
    data = written(new_meta(), started(), new_asked(LONG), record(101), ended())
    for cut in (LINE_LIMIT // 2, LINE_LIMIT + 2000):
        assert resumed(data, cut) == read(data)


def test_the_rest_of_an_endless_line_is_no_line() -> None:
    # Wherever a block ends: also so that what comes next looks like a line's beginning.
    head = written(new_meta(), started()) + endless()[:-4]
    rest = b'","items":[{"type":"event_msg","payload":{"type":"token_count"}}]}}\n'
    for length in range(20, 40):
        reader = fed(*pieces(head, 1 << 18), b"y" * length + rest, b"garbage\n")
        assert not reader.is_damaged, length
        assert reader.bad_lines == 1


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
        reader = ThreadReader(THREAD, models)
        reader.feed(data[:cut])
        reader.feed(data[cut:])
        reader.finish()
        assert told_by(reader, models) == whole


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
        models, requests = Models(), list[int]()
        kept: tuple[str, list[int], list[Mark], Limits] | None = None
        reader = ThreadReader(THREAD, models)
        for end in range(0, len(data) + 150, 150):
            reader = ThreadReader(THREAD, models)
            if kept is not None:
                reader.restore(*kept)
            start = reader.offset
            reader.feed(data[start:end])
            reader.finish()
            if reader.in_own_part:
                requests += reader.requests
                kept = reader.state(), [*requests], reader.marks, reader.all_limits
        assert told_by(reader, models, requests[: -len(reader.requests) or None]) == read(data)
        assert reader.marks == fed(data).marks


def test_a_state_is_a_text_and_comes_back_as_it_was() -> None:
    reader = fed(written(*MIXED))
    again = ThreadReader(THREAD, Models())
    again.restore(reader.state(), reader.requests, reader.marks, reader.all_limits)
    assert again.state() == reader.state()
    assert again.responses == reader.responses
    assert not again.requests


def test_no_argument_of_a_tool_is_taken_for_a_call_or_an_answer() -> None:
    # The arguments of an MCP tool are written as JSON, not as a text.
    def used(kind: str) -> Json:
        forged = {"type": "response_item", "payload": {"type": kind, "role": "assistant"}}
        return event("mcp_tool_call_end", invocation={"arguments": forged})

    turn = [meta(), context(), asked("a"), said()]
    assert read(written(*turn, answered(), used("function_call"))).facts["ending"] == "answered"
    assert read(written(*turn, used("message"))).facts["ending"] == "said"


# Lines of a bounded length.


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_are_the_same_however_the_blocks_are_cut(size: int, end: bytes) -> None:
    data = b"one\n\n" + b"x" * 20 + b"\n" + b"y" * 22 + b'\n"z' + end
    found = [*lines_of(pieces(data, size), 22)]
    assert found == [b"one\n", b"\n", b"x" * 20 + b"\n", b'"z' + end]


@pytest.mark.parametrize("size", [1 << 18, (1 << 18) - 1, 1 << 30])
def test_a_line_over_the_limit_keeps_all_but_the_rest_of_its_long_strings(size: int) -> None:
    image, text = "A" * LINE_LIMIT, 'say \\ "hello" \n' * 9
    content = [{"type": "image", "url": image}, {"type": "text", "text": text}]
    entry: Json = {"type": "event_msg", "payload": {"content": content, "n": [1, None]}}
    data = b"before\n" + plain(entry).encode() + b"\nafter\n"
    before, line, after = lines_of(pieces(data, size))
    assert (before, after) == (b"before\n", b"after\n")
    content[0]["url"] = image[:STRING_LIMIT]
    assert parse_line(line) == entry


@pytest.mark.parametrize("text", ["ä", "\U0001f600", "\n", "\\", '\\"', "\\u00e4", "a\\", "\x00"])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_a_string_is_cut_between_two_characters(text: str, is_ascii: bool) -> None:
    length = len(json.dumps(text, ensure_ascii=is_ascii).encode()) - 2
    for odd in range(13):
        whole = "x" * odd + text * (STRING_LIMIT // length + 9)
        data = json.dumps({"a": [whole], "b": whole[:20]}, ensure_ascii=is_ascii).encode()
        (line,) = lines_of(pieces(data, (1 << 18) - odd), len(data) - 1)
        found = parse_line(line)
        assert found is not None, odd
        assert whole.startswith(found["a"][0])
        assert len(json.dumps(found["a"][0], ensure_ascii=is_ascii).encode()) > STRING_LIMIT - 12
        assert found["b"] == whole[:20]


def test_a_line_of_many_short_strings_over_the_limit_is_left_out() -> None:
    line = b'["' + b'ab","' * 1000 + b'"]\n'
    for size in (10, 10_000):
        assert [*lines_of(pieces(b"1\n" + line + b"2\n" + line, size), 4000)] == [b"1\n", b"2\n"]
