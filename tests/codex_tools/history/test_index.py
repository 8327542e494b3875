"""The index over all rollouts: exact at first, and after whatever becomes of the files."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zstandard

from codex_tools.codex.errors import IndexUnavailable
from codex_tools.history.index import ThreadIndex
from codex_tools.pricing.prices import Prices, read_prices
from support.index_checks import (
    PRICES,
    START,
    Rollout,
    all_sessions,
    all_told,
    answers,
    assert_exact,
    bytes_read,
    cost_of,
    differences,
    for_writing,
    found_ids,
    marks,
    numbers,
    open_index,
    opened_files,
    requests_of,
    rollouts_in,
    row,
    rows,
    sessions,
    usage,
)
from support.synthetic_home import KINDS, Truth, make_home

ALL = {"include_archived": True, "include_subagents": True}

HOMES: dict[str, dict[str, Any]] = {
    "small": {"sessions": 60, "days": 20, "seed": 1, "packed": 0.3},
    "plain": {"sessions": 150, "days": 40, "seed": 2, "turns": 2, "output_kb": 0.2},
    "packed": {"sessions": 40, "days": 3, "seed": 3, "packed": 1.0},
    "tidy": {"sessions": 120, "days": 90, "seed": 4, "packed": 0.2, "weird": False},
}


@pytest.fixture(params=HOMES, scope="module")
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Truth]:
    """A home that no test changes, and the truth about it."""
    home = tmp_path_factory.mktemp(request.param)
    truth = make_home(home, start=START, **HOMES[request.param])
    assert {session.kind for session in truth.sessions.values()} == {*KINDS}
    return home, truth


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A home to be copied."""
    home = tmp_path_factory.mktemp("small")
    truth = make_home(home, start=START, sessions=30, days=9, seed=5, packed=0.2, output_kb=0.1)
    return home, truth


@pytest.fixture
def home(small: tuple[Path, Truth], tmp_path: Path) -> Path:
    """A copy of the small home, to be changed."""
    shutil.copytree(small[0], tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def truth(small: tuple[Path, Truth]) -> Truth:
    return small[1]


@pytest.fixture
def history(home: Path, tmp_path: Path) -> Generator[ThreadIndex]:
    """An index of that copy as it was."""
    with open_index(home, tmp_path / "state") as opened:
        opened.refresh()
        yield opened


def anew(history: ThreadIndex, tmp_path: Path) -> object:
    """Return what an index tells that is made from nothing."""
    scratch = tmp_path / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    return answers(history.home, scratch)


# All that is there.


def test_all_that_a_home_tells_is_exact(made: tuple[Path, Truth], tmp_path: Path) -> None:
    home, truth = made
    before = marks(home)
    with opened_files(home) as seen:
        assert_exact(answers(home, tmp_path), truth)
    assert len(rollouts_in(seen)) >= len(truth.sessions)
    assert for_writing(seen) == []
    assert marks(home) == before


def test_a_list_tells_of_each_thread_once_however_long_its_pages_are(
    made: tuple[Path, Truth], tmp_path: Path
) -> None:
    home, truth = made
    with open_index(home, tmp_path) as history:
        whole = all_sessions(history, **ALL, limit=100)
        assert {each["thread_id"] for each in whole} == set(truth.sessions)
        assert all_sessions(history, **ALL, limit=7) == whole
    order = [(each["last_active_at"], each["thread_id"]) for each in whole]
    assert order == sorted(sorted(order, key=lambda at: at[1]), key=lambda at: at[0], reverse=True)


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("agents", [False, True])
def test_archived_threads_and_sub_agents_are_listed_only_if_asked_for(
    made: tuple[Path, Truth], tmp_path: Path, archived: bool, agents: bool
) -> None:
    home, truth = made
    wanted = {
        session.thread_id
        for session in truth.sessions.values()
        if (archived or not session.archived) and (agents or not session.kind.endswith("agent"))
    }
    asked = {"include_archived": archived, "include_subagents": agents}
    with open_index(home, tmp_path) as history:
        listed = all_sessions(history, **asked, limit=100)
    assert {each["thread_id"] for each in listed} == wanted


def test_what_each_thread_cost_is_the_sum_over_its_requests(
    made: tuple[Path, Truth], tmp_path: Path
) -> None:
    home, truth = made
    with open_index(home, tmp_path) as history:
        told = usage(history, group_by="thread")
    assert told["unpriced_models"] == []
    assert told["totals"]["cost_usd"] == pytest.approx(cost_of(requests_of(truth)), abs=1e-5)
    for group in told["groups"]:
        expected = cost_of(truth.sessions[group["key"]].requests)
        assert group["cost_usd"] == pytest.approx(expected, abs=1e-6)
        assert group["cost_usd_known"] == group["cost_usd"]
        assert group["threads"] == 1


def test_files_that_are_no_rollouts_are_told_of(history: ThreadIndex, truth: Truth) -> None:
    told = usage(history)
    assert told["unreadable"] == len(truth.unreadable) == 2
    copies = sum(1 for session in truth.sessions.values() if session.copy is not None)
    noted = " ".join(told["notes"])
    for path in truth.unreadable:
        assert Path(path).name in noted
    assert f"{copies} files are copies" in noted


def test_a_home_without_threads_tells_nothing(tmp_path: Path) -> None:
    with open_index(tmp_path / "none", tmp_path / "state") as history:
        told = usage(history)
        assert row(told["totals"]) == (0, 0, 0, 0, 0)
        assert told["totals"]["cost_usd"] == 0
        assert (told["groups"], told["rate_limits"], told["sessions_read"]) == ([], None, 0)
        assert sessions(history)["sessions"] == []
        assert sessions(history)["total"] == 0
    assert not (tmp_path / "none").exists()


# What grows.


def pieces(draw: random.Random, data: bytes) -> list[int]:
    """Return the ends of some parts of a file, the last one its own."""
    lines = [at + 1 for at, byte in enumerate(data) if byte == ord("\n")]
    ends = {draw.randrange(1, len(data)) for _ in range(3)}
    ends |= {draw.choice(lines) + draw.choice((-1, 0, 0, 1)) for _ in range(3)}
    return [*sorted(end for end in ends if 0 < end < len(data)), len(data)]


def grow(path: Path, data: bytes, end: int, ms: int) -> None:
    """Append to a file up to *end*; Codex's clock goes on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size if path.exists() else 0
    with path.open("ab") as file:
        file.write(data[size:end])
    os.utime(path, ns=(ms * 1_000_000, ms * 1_000_000))


@pytest.mark.parametrize("seed", [11, 12])
def test_files_that_grow_piece_by_piece_tell_the_same_as_if_read_at_once(
    tmp_path: Path, seed: int
) -> None:
    whole, home = tmp_path / "whole", tmp_path / "home"
    truth = make_home(
        whole, sessions=12, days=9, seed=seed, turns=2, output_kb=0.1, weird=False, start=START
    )
    assert {session.kind for session in truth.sessions.values()} == {*KINDS}
    draw = random.Random(seed)
    with open_index(home, tmp_path / "state") as history:
        # One by one as they began: a fork never comes before its parent.
        for session in sorted(truth.sessions.values(), key=lambda each: each.thread_id):
            data = (whole / session.path).read_bytes()
            for n, end in enumerate(pieces(draw, data)):
                grow(home / session.path, data, end, session.active_ms + n)
                wrong = differences(all_told(history), anew(history, tmp_path))
                assert wrong == [], (session.kind, end)
        assert_exact(all_told(history), truth)


def test_of_a_file_that_grew_only_the_new_part_is_read(tmp_path: Path) -> None:
    home = tmp_path / "home"
    rollout = Rollout(home).ask("Read a lot.").use(10)
    rollout.item("function_call_output", call_id="c", output="x" * 30_000_000).save()
    with open_index(home, tmp_path / "state") as history:
        before = bytes_read()
        assert usage(history)["totals"]["input_tokens"] == 10
        assert bytes_read() - before > 30_000_000, "what counts bytes does not"
        rollout.use(500)
        grown = b"".join(line + b"\n" for line in rollout.lines)
        grow(rollout.path, grown, len(grown), rollout.ms)
        before = bytes_read()
        assert usage(history)["totals"]["input_tokens"] == 510
        assert bytes_read() - before < 1_000_000


def test_of_a_home_that_did_not_change_no_rollout_is_opened(
    home: Path, history: ThreadIndex
) -> None:
    with opened_files(home) as seen:
        usage(history)
        sessions(history)
    assert rollouts_in(seen) == []


def test_of_a_home_where_one_file_grew_only_that_one_is_opened(
    home: Path, tmp_path: Path, truth: Truth, history: ThreadIndex
) -> None:
    session = next(each for each in truth.sessions.values() if each.kind == "new")
    with (home / session.path).open("ab") as file:
        file.write(b'{"timestamp":"2025-03-09T00:00:00.000Z","type":"event_msg","payload":{}}\n')
    with opened_files(home) as seen:
        usage(history)
    assert rollouts_in(seen) == [Path(session.path).name]
    assert differences(all_told(history), anew(history, tmp_path)) == []


def test_a_second_index_of_the_same_home_reads_no_rollout(
    home: Path, tmp_path: Path, truth: Truth, history: ThreadIndex
) -> None:
    with opened_files(home) as seen:
        assert_exact(answers(home, tmp_path / "state"), truth)
    assert rollouts_in(seen) == []


# What else becomes of files. Each change returns what was lost or won by it, if that is known.

Change = Callable[[Path, Truth], None]


def _one(truth: Truth, kind: str = "new", *, packed: bool = False) -> str:
    return next(
        session.path
        for session in truth.sessions.values()
        if session.kind == kind
        and session.path.endswith(".zst") is packed
        and session.copy is None
        and not session.archived
    )


def truncate(home: Path, truth: Truth) -> None:
    path = home / _one(truth)
    os.truncate(path, path.stat().st_size // 2)


def replace_by_longer(home: Path, truth: Truth) -> None:
    others = sorted(truth.sessions.values(), key=lambda each: (home / each.path).stat().st_size)
    longest = next(o for o in reversed(others) if o.path.endswith(".jsonl"))
    path = home / _one(truth)
    own = path.name.removesuffix(".jsonl")[-36:]
    data = (home / longest.path).read_bytes().replace(longest.thread_id.encode(), own.encode())
    assert len(data) > path.stat().st_size
    path.write_bytes(data)


def rewrite(home: Path, truth: Truth) -> None:
    path = home / _one(truth)
    data, changed = path.read_bytes(), path.stat().st_mtime_ns
    assert b'"output_tokens":1' in data
    path.write_bytes(data.replace(b'"output_tokens":1', b'"output_tokens":2'))
    assert path.stat().st_size == len(data)
    os.utime(path, ns=(changed, changed + 1))


def replace_by_renaming(home: Path, truth: Truth) -> None:
    path = home / _one(truth)
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes().replace(b'"output_tokens":1', b'"output_tokens":2'))
    other.rename(path)


def archive(home: Path, truth: Truth) -> None:
    path = home / _one(truth, "old")
    path.rename(home / "archived_sessions" / path.name)


def compress(home: Path, truth: Truth) -> None:
    for kind in ("new", "old", "legacy_fork"):
        path = home / _one(truth, kind)
        stat = path.stat()
        packed = path.with_name(f"{path.name}.zst")
        packed.write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))
        os.utime(packed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        path.unlink()


def unpack(home: Path, truth: Truth) -> None:
    path = home / _one(truth, packed=True)
    plain = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    path.with_suffix("").write_bytes(plain)
    path.unlink()


def damage_packed(home: Path, truth: Truth) -> None:
    path = home / _one(truth, packed=True)
    path.write_bytes(path.read_bytes()[:-100])


def vanish(home: Path, truth: Truth) -> None:
    (home / _one(truth)).unlink()


def vanish_all_of_a_day(home: Path, truth: Truth) -> None:
    shutil.rmtree((home / _one(truth)).parent)


def vanish_all(home: Path, truth: Truth) -> None:
    shutil.rmtree(home / "sessions")


def move_all(home: Path, truth: Truth) -> None:
    (home / "sessions" / "2025").rename(home / "sessions" / "2026")


def become_folder(home: Path, truth: Truth) -> None:
    path = home / _one(truth)
    path.unlink()
    path.mkdir()


def become_garbage(home: Path, truth: Truth) -> None:
    path = home / _one(truth)
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size + 10))


def copy(home: Path, truth: Truth) -> None:
    path = home / _one(truth, "old")
    shutil.copy2(path, home / "archived_sessions" / path.name)


def rename_threads(home: Path, truth: Truth) -> None:
    index = home / "session_index.jsonl"
    index.write_text(index.read_text().replace("Name ", "Another name "))


def forget_names(home: Path, truth: Truth) -> None:
    (home / "session_index.jsonl").unlink()


CHANGES: list[Change] = [
    truncate,
    replace_by_longer,
    rewrite,
    replace_by_renaming,
    archive,
    compress,
    unpack,
    damage_packed,
    vanish,
    vanish_all_of_a_day,
    vanish_all,
    move_all,
    become_folder,
    become_garbage,
    copy,
    rename_threads,
    forget_names,
]
UNSEEN_IN_TOTALS = (archive, compress, unpack, move_all, copy, rename_threads, forget_names)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_after_a_change_an_index_tells_the_same_as_one_made_from_nothing(
    home: Path, tmp_path: Path, truth: Truth, history: ThreadIndex, change: Change
) -> None:
    before = all_told(history)
    change(home, truth)
    found = all_told(history)
    assert differences(found, anew(history, tmp_path)) == []
    assert (found["totals"] == before["totals"]) is (change in UNSEEN_IN_TOTALS)
    assert (found == before) is (change is copy)


def test_changes_one_after_the_other_and_all_at_once_tell_the_same(
    home: Path, tmp_path: Path, truth: Truth, history: ThreadIndex
) -> None:
    for change in (rewrite, copy, archive, rename_threads, vanish):
        change(home, truth)
        usage(history)
    assert differences(all_told(history), anew(history, tmp_path)) == []
    for path in [*home.rglob("rollout-*")][::2]:
        path.unlink()
    assert differences(all_told(history), anew(history, tmp_path)) == []
    shutil.rmtree(home / "sessions")
    shutil.rmtree(home / "archived_sessions")
    assert row(all_told(history)["totals"]) == (0, 0, 0, 0, 0)


def test_a_home_that_comes_back_is_exact_again(
    home: Path, truth: Truth, history: ThreadIndex, tmp_path: Path
) -> None:
    home.rename(tmp_path / "away")
    assert row(usage(history)["totals"]) == (0, 0, 0, 0, 0)
    (tmp_path / "away").rename(home)
    assert_exact(all_told(history), truth)


def test_a_thread_in_two_places_counts_once_and_by_the_other_if_the_first_vanishes(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    stale = Rollout(home, archived=True).ask("Begin.").use(100).save()
    with open_index(home, tmp_path / "state") as history:
        assert usage(history)["totals"]["input_tokens"] == 100
        Rollout(home).ask("Begin.").use(100).answer("Begun.").ask("More.").use(40).save()
        told = usage(history)
        assert row(told["totals"])[:2] == (2, 140)
        assert told["totals"]["threads"] == told["sessions_read"] == 1
        assert "1 files are copies" in " ".join(told["notes"])
        listed = sessions(history, **ALL)["sessions"]
        assert [(each["archived"], each["turn_count"]) for each in listed] == [(False, 2)]
        shutil.rmtree(home / "sessions")
        assert row(usage(history)["totals"])[:2] == (1, 100)
        listed = sessions(history, **ALL)["sessions"]
        assert [(each["archived"], each["turn_count"]) for each in listed] == [(True, 1)]
        stale.path.unlink()
        assert row(usage(history)["totals"])[:2] == (0, 0)


def test_a_stale_copy_that_grows_counts_once_it_is_ahead(tmp_path: Path) -> None:
    home = tmp_path / "home"
    Rollout(home).ask("Begin.").use(100).use(50).save()
    other = Rollout(home, archived=True).ask("Begin.").use(100).save()
    with open_index(home, tmp_path / "state") as history:
        assert row(usage(history)["totals"])[:2] == (2, 150)
        other.use(50).save()
        assert row(usage(history)["totals"])[:2] == (2, 150)
        other.use(3).save()
        assert row(usage(history)["totals"])[:2] == (3, 153)
        assert rows(usage(history, group_by="thread")) == {other.id: (3, 153, 0, 21, 0)}
        assert differences(all_told(history), anew(history, tmp_path)) == []


def legacy_fork(parent: Rollout, number: int = 9) -> Rollout:
    """Fork a thread as 0.169 does in the legacy way: all of it is copied, in one instant."""
    fork = Rollout(
        parent.home,
        number,
        ms=parent.ms + 60_000,
        meta={"forked_from_id": parent.id, "cli_version": "0.169.0", "history_mode": "legacy"},
    )
    for line in parent.lines:
        fork.lines.append(fork.lines[0][:40] + line[line.index(b'"type"') :])
    return fork


def test_a_fork_without_a_turn_of_its_own_has_used_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    parent = Rollout(home).ask("Begin.").use(100).use(20).answer("Begun.").use(3).save()
    fork = legacy_fork(parent).save()
    with open_index(home, tmp_path / "state") as history:
        assert rows(usage(history, group_by="thread")) == {parent.id: (3, 123, 0, 21, 0)}
        listed = {each["thread_id"]: each["turn_count"] for each in all_sessions(history)}
        assert listed == {parent.id: 1, fork.id: 0}


def test_a_fork_of_a_thread_in_two_places_has_copied_the_longer_one(tmp_path: Path) -> None:
    home = tmp_path / "home"
    stale = Rollout(home).ask("Begin.").use(100).save()
    parent = Rollout(home, archived=True).ask("Begin.").use(100).use(20).answer("Begun.").save()
    legacy_fork(parent).save()
    with open_index(home, tmp_path / "state") as history:
        assert rows(usage(history, group_by="thread")) == {stale.id: (2, 120, 0, 14, 0)}


@pytest.mark.parametrize("place", ["with it", "read before", "archived since", "gone"])
def test_what_a_fork_uses_at_once_is_told_from_its_copy_by_the_parent(
    tmp_path: Path, place: str
) -> None:
    parent = Rollout(tmp_path / "home").ask("Begin.").use(100).answer("Begun.").save()
    fork = legacy_fork(parent)
    with open_index(parent.home, tmp_path / "state") as history:
        if place != "with it":
            usage(history)
            parent.path.unlink()
        if place == "read before":
            parent.save()
        elif place == "archived since":
            parent.archived = True
            parent.save()
        fork.use(7).save()
        used = rows(usage(history, group_by="thread"))
    own = {fork.id: (1, 7, 0, 7, 0)} if place != "gone" else {}
    assert used == own | ({parent.id: (1, 100, 0, 7, 0)} if place != "gone" else {})


# Prices.


def priced(path: Path, text: str) -> Prices:
    path.write_text(text)
    return read_prices(path)


def test_other_prices_price_all_anew_without_reading_a_rollout(
    home: Path, truth: Truth, history: ThreadIndex, tmp_path: Path
) -> None:
    usual = usage(history)
    text = '[models."gpt-5.4"]\ninput = 1000\noutput = 2000\n'
    prices = priced(tmp_path / "prices.toml", text)
    with opened_files(home) as seen, open_index(home, tmp_path / "state", prices) as other:
        told = usage(other, group_by="thread")
        listed = all_sessions(other, **ALL)
    assert rollouts_in(seen) == []
    assert told["prices"] != usual["prices"]
    dear = cost_of(requests_of(truth), prices)
    assert dear > 3 * usual["totals"]["cost_usd"]
    assert told["totals"]["cost_usd"] == pytest.approx(dear)
    for group in told["groups"]:
        expected = cost_of(truth.sessions[group["key"]].requests, prices)
        assert group["cost_usd"] == pytest.approx(expected, abs=1e-5)
    for each in listed:
        expected = cost_of(truth.sessions[each["thread_id"]].requests, prices)
        assert each["cost_usd"] == pytest.approx(expected, abs=1e-5)
    # And back again.
    again = usage(history)
    assert [again[key] for key in ("totals", "groups", "prices")] == [
        usual[key] for key in ("totals", "groups", "prices")
    ]


def test_requests_to_a_model_without_a_price_have_no_cost_and_hide_no_other(
    home: Path, truth: Truth, history: ThreadIndex
) -> None:
    for path in home.rglob("rollout-*.jsonl"):
        path.write_bytes(path.read_bytes().replace(b'"gpt-5.4"', b'"acme-9"'))
    unknown = {
        session.thread_id
        for session in truth.sessions.values()
        if session.path.endswith(".jsonl")
        and any(model == "gpt-5.4" for _, model, _, _ in session.requests)
    }
    assert unknown
    told = usage(history, group_by="thread")
    assert told["unpriced_models"] == ["acme-9"]
    assert told["totals"]["cost_usd"] is None
    for group in told["groups"]:
        session = truth.sessions[group["key"]]
        is_plain = session.path.endswith(".jsonl")
        rest = [each for each in session.requests if not (is_plain and each.model == "gpt-5.4")]
        assert (group["cost_usd"] is None) is (session.thread_id in unknown)
        assert group["cost_usd_known"] == pytest.approx(cost_of(rest), abs=1e-6)
    assert {
        each["thread_id"] for each in all_sessions(history, **ALL) if each["cost_usd"] is None
    } == unknown
    assert rows(told) == {
        id_: numbers(used) for id_, used in truth.by_session.items() if used.requests
    }
    by_model = {
        group["key"]: group["cost_usd"] for group in usage(history, group_by="model")["groups"]
    }
    assert by_model["acme-9"] is None
    assert None not in (by_model["gpt-5.2-codex"], by_model["gpt-5.1-codex-max"])
    known = usage(history, model="gpt-5.2-codex")
    assert known["unpriced_models"] == []
    assert known["totals"]["cost_usd"] == by_model["gpt-5.2-codex"]


# A large home.


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A home with more files than a first page waits for."""
    home = tmp_path_factory.mktemp("large")
    truth = make_home(home, start=START, sessions=900, days=60, seed=7, turns=0.5, output_kb=0.08)
    return home, truth


@pytest.mark.parametrize(
    "asked", [{}, ALL | {"limit": 100}, {"cwd": "/home/dev/api"}, {"model": "gpt-5.4", "limit": 1}]
)
def test_the_first_page_of_a_large_home_is_right_before_all_is_read(
    large: tuple[Path, Truth], tmp_path: Path, asked: dict[str, object]
) -> None:
    home, truth = large
    with open_index(home, tmp_path / "whole") as history:
        history.refresh()
        whole = sessions(history, **asked)
        assert whole["total"] is not None
    with opened_files(home) as seen, open_index(home, tmp_path / "state") as history:
        first = sessions(history, **asked)
        opened = len(set(rollouts_in(seen)))
        assert first["sessions"] == whole["sessions"]
        assert first["next_cursor"] == whole["next_cursor"]
        assert first["total"] is None
        assert 0 < opened < len(truth.sessions)
        # The rest is read meanwhile.
        deadline = time.monotonic() + 60
        while sessions(history, **asked)["total"] is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert sessions(history, **asked) == whole
        if not asked:
            assert_exact(all_told(history), truth)
    assert for_writing(seen) == []


def test_a_first_page_that_only_the_oldest_files_fill_waits_for_them(tmp_path: Path) -> None:
    home, begin = tmp_path / "home", int(START.timestamp() * 1000)
    for number in range(1, 561):
        cwd = "/rare" if number < 4 else "/usual"
        Rollout(home, number, cwd=cwd, ms=begin + number * 60_000).ask("Go.").save()
    with open_index(home, tmp_path / "state") as history:
        assert sessions(history, cwd="/usual")["total"] is None
    with open_index(home, tmp_path / "other") as history:
        assert len(found_ids(history, cwd="/rare", limit=2)) == 2
    with open_index(home, tmp_path / "third") as history:
        page = sessions(history, cwd="/rare")
        assert (len(page["sessions"]), page["total"]) == (3, 3)


def test_paging_through_a_large_home_while_it_is_read_leaves_nothing_out(
    large: tuple[Path, Truth], tmp_path: Path
) -> None:
    home, truth = large
    with open_index(home, tmp_path / "state") as history:
        listed: list[str] = []
        cursor: str | None = None
        totals: list[int | None] = []
        while cursor or not listed:
            page = sessions(history, **ALL, limit=50, cursor=cursor)
            listed += [each["thread_id"] for each in page["sessions"]]
            totals.append(page["total"])
            cursor = page["next_cursor"]
    assert totals[0] is None
    assert len(listed) == len(set(listed))
    assert set(listed) == set(truth.sessions)


def test_usage_waits_for_all_though_a_list_did_not(
    large: tuple[Path, Truth], tmp_path: Path
) -> None:
    home, truth = large
    with open_index(home, tmp_path / "state") as history:
        assert sessions(history)["total"] is None
        assert row(usage(history)["totals"]) == numbers(truth.total)


def test_a_search_in_a_large_home_waits_for_all(large: tuple[Path, Truth], tmp_path: Path) -> None:
    home, truth = large
    oldest = min(
        (each for each in truth.sessions.values() if not each.archived and each.kind == "old"),
        key=lambda each: each.active_ms,
    )
    with open_index(home, tmp_path / "state") as history:
        assert oldest.thread_id in found_ids(history, query=f'"{oldest.prompt}"')


def test_progress_tells_how_many_files_are_read_and_of_how_many(
    large: tuple[Path, Truth], tmp_path: Path
) -> None:
    home, truth = large
    seen: list[tuple[int, int]] = []
    with open_index(home, tmp_path / "state") as history:
        assert history.refresh(lambda done, total: seen.append((done, total))) == 0
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {seen[-1][0]}
    assert seen[-1][0] >= len(truth.sessions)


def test_a_refresh_that_has_enough_tells_how_many_files_are_left(
    large: tuple[Path, Truth], tmp_path: Path
) -> None:
    home, _ = large
    with open_index(home, tmp_path / "state") as history:
        left = history.refresh(enough=lambda db, next_ns: True)
        assert left > 0
        assert history.refresh(enough=lambda db, next_ns: False, patience=0) == 0
        files = len(list(home.rglob("rollout-*")))
    with open_index(home, tmp_path / "other") as history:
        assert history.refresh(enough=lambda db, next_ns: True, patience=files) == 0


def test_an_index_that_is_closed_while_it_reads_on_ends_at_once(
    large: tuple[Path, Truth], tmp_path: Path
) -> None:
    home, truth = large
    history = ThreadIndex(home, tmp_path / "state", PRICES)
    with opened_files(home) as seen:
        sessions(history)
        history.close()
    assert len({*rollouts_in(seen)}) < len(truth.sessions)
    assert_exact(answers(home, tmp_path / "state"), truth)


def test_an_index_that_is_closed_before_it_reads_on_is_not_opened_again(
    large: tuple[Path, Truth], tmp_path: Path
) -> None:
    home, _ = large
    history = ThreadIndex(home, tmp_path / "state", PRICES)
    history.refresh(enough=lambda db, next_ns: True)
    with history.opened():
        history.finish_later()
        (reader,) = (each for each in threading.enumerate() if each.name == "history")
        time.sleep(0.2)  # It waits for this thread to be done.
    history.close()
    reader.join(60)
    assert not reader.is_alive()
    with pytest.raises(IndexUnavailable, match="ending"):
        history.refresh()
    opened = [each.path for each in psutil.Process().open_files()]
    assert [path for path in opened if path.startswith(str(tmp_path))] == []
