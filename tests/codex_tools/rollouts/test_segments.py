"""Threads in several files: segments, copies, moved parts. A thread is the set of them."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from codex_tools.codex.errors import ThreadNotFound
from codex_tools.history.index import ThreadIndex
from codex_tools.rollouts.files import find_rollouts
from codex_tools.rollouts.threads import Threads
from codex_tools.rollouts.turn_record import TurnMark
from support.index_checks import (
    PRICES,
    Json,
    Rollout,
    all_sessions,
    found_ids,
    open_index,
    sessions,
    usage,
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def history(home: Path, tmp_path: Path) -> Generator[ThreadIndex]:
    with open_index(home, tmp_path / "state") as opened:
        yield opened


def first_segment(home: Path) -> Rollout:
    """Return a thread of the turns alpha, beta and gamma, and note where gamma begins."""
    return (
        Rollout(home, paginated=True, model="gpt-5.5", sandbox="workspace-write")
        .ask("alpha")
        .use(1000, response="r1")
        .answer("answer alpha")
        .ask("beta")
        .use(2000, response="r2")
        .answer("answer beta")
    )


def segmented(home: Path) -> tuple[Rollout, Rollout]:
    """Return a thread whose last turn, gamma, was taken back, and then delta was asked."""
    first = first_segment(home)
    end = first.size
    first.ask("gamma").use(4000, response="r3").answer("answer gamma").save()
    # The totals go on from the base's, so both segments reach the same one.
    second = first.next_segment(0x100, end, model="gpt-5.1-codex-max")
    second.total = 3000
    second.ask("delta").use(4000, response="r4").answer("answer delta").save()
    return first, second


def only(history: ThreadIndex) -> Json:
    """Return the one thread of a home, which no note may call a copy."""
    (thread,) = all_sessions(history, include_archived=True)
    counted = usage(history)
    assert counted["sessions_read"] == 1
    assert not counted["notes"]
    assert counted["totals"]["input_tokens"] == thread["usage"]["input_tokens"]
    assert counted["totals"]["threads"] == 1
    return thread


def prompts(history: ThreadIndex, thread_id: str) -> list[str]:
    """Return the prompts of a thread's turns, oldest first."""
    told = sessions(history, thread_id=thread_id, turns=50)
    assert told["session"]["turn_count"] == len(told["turns"])
    return [turn["prompt"] for turn in reversed(told["turns"])]


def test_a_thread_of_two_segments_is_one(home: Path, history: ThreadIndex) -> None:
    first, second = segmented(home)
    thread = only(history)
    assert thread["usage"]["input_tokens"] == 11_000
    assert (thread["title"], thread["model"]) == ("alpha", "gpt-5.1-codex-max")
    assert thread["rollout_path"] == str(second.path)
    assert prompts(history, first.id) == ["alpha", "beta", "delta"]
    newest = sessions(history, thread_id=first.id)["turns"][0]
    assert (newest["sandbox"], newest["final_response"]) == ("read-only", "answer delta")
    assert newest["usage"]["input_tokens"] == 4000
    beta = sessions(history, thread_id=first.id)["turns"][1]
    assert beta["usage"]["input_tokens"] == 2000
    for word in ("alpha", "delta"):
        assert found_ids(history, query=word) == [first.id]
    assert found_ids(history, query="alpha delta") == [first.id]


def test_a_resume_takes_the_settings_of_the_newest_segment(home: Path) -> None:
    _, second = segmented(home)
    state = Threads(home, PRICES).state(second.id)
    assert (state.sandbox, state.model) == ("read-only", "gpt-5.1-codex-max")
    assert (state.path, state.size) == (second.path, second.size)
    assert state.usage is not None
    assert state.usage.input_tokens == 7000


def test_a_segment_without_turns_goes_on_as_its_base_did_then(
    home: Path, history: ThreadIndex
) -> None:
    first = first_segment(home)
    end = first.size
    first.sandbox = "danger-full-access"
    first.ask("gamma").use(4000, response="r3").save()
    first.next_segment(0x100, end).save()
    state = Threads(home, PRICES).state(first.id)
    assert (state.sandbox, state.model) == ("workspace-write", "gpt-5.5")
    assert state.usage is not None
    assert state.usage.input_tokens == 3000
    thread = only(history)
    assert (thread["turn_count"], thread["status"]) == (2, "completed")
    assert prompts(history, first.id) == ["alpha", "beta"]
    assert thread["usage"]["input_tokens"] == 7000


def test_all_turns_may_be_taken_back(home: Path, history: ThreadIndex) -> None:
    _, second = segmented(home)
    third = second.next_segment(0x200, None).ask("zeta").use(64, response="r5").answer("z").save()
    thread = only(history)
    assert (thread["title"], thread["turn_count"]) == ("zeta", 1)
    assert thread["usage"]["input_tokens"] == 11_064
    assert prompts(history, third.id) == ["zeta"]


def test_a_thread_of_many_segments_is_followed_back_to_its_first(
    home: Path, history: ThreadIndex
) -> None:
    segment = first_segment(home).save()
    for number in range(1, 18):
        kept = segment.size
        segment.ask(f"slip {number}").use(100, response=f"slip {number}").answer("no").save()
        segment = segment.next_segment(0x100 * number, kept)
        segment.ask(f"good {number}").use(10, response=f"good {number}").answer("yes").save()
    assert prompts(history, segment.id) == [
        *("alpha", "beta"),
        *(f"good {number}" for number in range(1, 18)),
    ]
    assert only(history)["usage"]["input_tokens"] == 3000 + 17 * 110


@pytest.mark.parametrize("cold", [True, False])
def test_an_index_knows_a_segment_that_comes_later(
    home: Path, history: ThreadIndex, cold: bool
) -> None:
    first = first_segment(home)
    end = first.size
    first.ask("gamma").use(4000, response="r3").answer("answer gamma").save()
    if not cold:
        assert only(history)["usage"]["input_tokens"] == 7000
    second = first.next_segment(0x100, end).ask("delta").use(1, response="r4").save()
    assert only(history)["usage"]["input_tokens"] == 7001
    second.use(2, response="r5").answer("x").ask("epsilon").use(3, response="r6").save()
    assert only(history)["usage"]["input_tokens"] == 7006
    assert prompts(history, first.id) == ["alpha", "beta", "delta", "epsilon"]
    first.use(5, response="late").save()
    assert only(history)["usage"]["input_tokens"] == 7011
    second.path.unlink()
    assert only(history)["usage"]["input_tokens"] == 7005
    assert prompts(history, first.id) == ["alpha", "beta", "gamma"]


def test_copies_add_nothing(home: Path, history: ThreadIndex) -> None:
    first, second = segmented(home)
    for path in (first.path, second.path):
        shutil.copy2(path, path.with_name(f"{path.stem} (1).jsonl"))
        archive = home / "archived_sessions"
        archive.mkdir(exist_ok=True)
        shutil.copy2(path, archive)
    (thread,) = all_sessions(history)
    assert thread["usage"]["input_tokens"] == 11_000
    assert thread["rollout_path"] == str(second.path)
    counted = usage(history)
    assert counted["totals"]["input_tokens"] == 11_000
    assert counted["sessions_read"] == 1
    assert counted["notes"] == [
        "4 files are copies of other rollouts; each thread was counted once."
    ]
    assert find_rollouts(home, first.id) == [first.path, second.path]


def test_both_halves_of_a_thread_that_was_moved_while_it_was_written_count(
    home: Path, history: ThreadIndex
) -> None:
    whole = first_segment(home)
    cut = next(n for n, line in enumerate(whole.lines) if b'"beta"' in line) - 2
    early = Rollout(home, paginated=True, archived=True, lines=whole.lines[:cut]).save()
    late = Rollout(home, paginated=True)
    late.lines = [whole.lines[0], *whole.lines[cut:]]
    late.save()
    assert early.id == late.id
    (thread,) = all_sessions(history, include_archived=True)
    assert thread["usage"]["input_tokens"] == 3000
    assert usage(history)["totals"]["input_tokens"] == 3000


def test_what_codex_archives_is_archived_whole(home: Path, history: ThreadIndex) -> None:
    first, second = segmented(home)
    archive = home / "archived_sessions"
    archive.mkdir()
    shutil.move(first.path, archive)
    # Only the newest segment tells where the thread is.
    assert not only(history)["archived"]
    assert Threads(home, PRICES).state(first.id).sandbox == "read-only"
    shutil.move(second.path, archive)
    assert only(history)["archived"]
    with pytest.raises(ThreadNotFound, match="archived"):
        Threads(home, PRICES).state(first.id)
    shutil.move(archive / first.path.name, first.path)
    assert only(history)["archived"]
    # The first segment's sandbox is wider than that of the thread's last turn.
    with pytest.raises(ThreadNotFound, match="archived"):
        Threads(home, PRICES).state(first.id)
    assert prompts(history, first.id) == ["alpha", "beta", "delta"]


def test_a_thread_may_have_lost_its_first_segment(home: Path, history: ThreadIndex) -> None:
    first, second = segmented(home)
    first.path.unlink()
    thread = only(history)
    assert (thread["title"], thread["usage"]["input_tokens"]) == ("delta", 4000)
    assert prompts(history, second.id) == ["delta"]
    assert Threads(home, PRICES).state(second.id).sandbox == "read-only"


@pytest.mark.parametrize("kind", ["fork", "sub-agent"])
def test_a_child_of_a_segmented_thread_is_a_thread_of_its_own(
    kind: str, home: Path, history: ThreadIndex
) -> None:
    first, second = segmented(home)
    base = {"thread_id": second.segment_id, "end_ordinal_exclusive": 9, "end_byte_offset": 900}
    more: Json = {"parent_thread_id": first.id, "thread_source": "subagent"}
    if kind == "fork":
        more = {"forked_from_id": first.id, "history_base": base}
    child = Rollout(home, 0x900, paginated=True, meta=more)
    child.ask("eta").use(16, response="r7").answer("e")
    end = child.size
    child.ask("theta").use(32, response="r8").answer("t").save()
    again = child.next_segment(0xA00, end)
    again.ask("iota").use(64, response="r9").answer("i").save()
    listed = all_sessions(history, include_subagents=True)
    totals = {each["thread_id"]: each["usage"]["input_tokens"] for each in listed}
    assert totals == {first.id: 11_000, child.id: 112}
    assert prompts(history, child.id) == ["eta", "iota"]
    (told,) = [each for each in listed if each["thread_id"] == child.id]
    assert first.id in (told["parent_thread_id"], told["forked_from_id"])
    assert usage(history)["totals"]["input_tokens"] == 11_112


def test_segments_that_go_on_from_each_other_end(home: Path, history: ThreadIndex) -> None:
    first, second = segmented(home)
    wrong = Rollout(
        home,
        paginated=True,
        meta={"history_base": {"thread_id": second.segment_id, "end_byte_offset": 99_999}},
        lines=[],
    )
    wrong.lines += first.lines[1:]
    wrong.save()
    assert only(history)["usage"]["input_tokens"] == 11_000
    assert Threads(home, PRICES).state(first.id).sandbox == "read-only"


def test_turns_that_were_rolled_back_are_not_shown(home: Path, history: ThreadIndex) -> None:
    thread = Rollout(home).ask("keep").use(1).answer("kept").ask("slip").use(2).answer("slipped")
    thread.ask("slip again").use(4).event("thread_rolled_back", num_turns=2)
    thread.save()
    told = only(history)
    assert (told["turn_count"], told["status"], told["title"]) == (1, "completed", "keep")
    assert prompts(history, thread.id) == ["keep"]
    thread.ask("instead").use(8).answer("done").save()
    assert prompts(history, thread.id) == ["keep", "instead"]
    (newest, kept) = sessions(history, thread_id=thread.id)["turns"]
    assert (newest["usage"]["input_tokens"], kept["usage"]["input_tokens"]) == (8, 1)
    assert only(history)["usage"]["input_tokens"] == 15
    thread.event("thread_rolled_back", num_turns=9).save()
    assert prompts(history, thread.id) == []
    thread.ask("anew").use(16).answer("done").save()
    assert only(history)["title"] == "anew"


@pytest.mark.parametrize("count", [0, -1, None, "1", 1.5])
def test_a_senseless_roll_back_takes_nothing(
    count: object, home: Path, history: ThreadIndex
) -> None:
    thread = Rollout(home).ask("keep").use(1).answer("kept")
    thread.event("thread_rolled_back", num_turns=count).save()
    assert prompts(history, thread.id) == ["keep"]


def test_a_turn_in_a_new_segment_is_found_since_the_mark(home: Path) -> None:
    first = first_segment(home).save()
    threads = Threads(home, PRICES)
    before = threads.state(first.id)
    mark = TurnMark(before.size, first.ms, before.segment)
    assert threads.turn_record(first.id, mark) is not None
    first.ask("gamma").use(4000, response="r3").save()
    second = first.next_segment(0x100, before.size)
    second.ask("delta").use(5, response="r4").answer("answer delta").save()
    record = threads.turn_record(first.id, mark)
    assert record is not None
    assert (record.ending, record.final_response) == ("completed", "answer delta")
    assert record.usage is not None
    assert record.usage.input_tokens == 4005
    assert record.settings is not None
    assert record.settings.sandbox == "read-only"
    follower = threads.follow_settings(first.id, mark)
    assert follower is not None
    assert [each.sandbox for each in follower.read()] == ["read-only"]
