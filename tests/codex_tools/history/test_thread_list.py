"""Lists of threads: filters, words to search for, how each stands, pages while all moves."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from codex_tools.codex.errors import InvalidArguments, ThreadNotFound
from codex_tools.codex.json_object import Json
from codex_tools.history.index import ThreadIndex
from codex_tools.runs.thread_lock import ThreadLock
from codex_tools.sessions import SessionsRequest, find_sessions
from support.index_checks import (
    START,
    Rollout,
    all_sessions,
    found_ids,
    marks,
    name_threads,
    open_index,
    opened_files,
    rollouts_in,
    sessions,
    thread_id,
    usage,
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def history(home: Path, tmp_path: Path) -> Generator[ThreadIndex]:
    with open_index(home, tmp_path / "state") as opened:
        yield opened


def test_what_is_not_known_is_null_and_a_zero_is_a_text(home: Path, history: ThreadIndex) -> None:
    Rollout(home, 1, cwd="", meta={"source": None, "git": {"branch": "0"}}).save()
    Rollout(home, 2, cwd="0", model="0").ask("0").save()
    known, unknown = sessions(history)["sessions"]
    fields = ("title", "cwd", "model", "git_branch", "source", "parent_thread_id")
    assert [known[name] for name in fields] == ["0", "0", "0", None, "exec", None]
    assert [unknown[name] for name in fields] == [None, None, None, "0", None, None]


# Words.


def thread(home: Path, *turns: str, number: int = 1, paginated: bool = False) -> Rollout:
    """Write a thread of prompts and answers in turn."""
    rollout = Rollout(home, number, paginated)
    for n, text in enumerate(turns):
        _ = rollout.answer(text) if n % 2 else rollout.ask(text)
    return rollout.save()


@pytest.mark.parametrize("paginated", [False, True])
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("lighthouse", True),  # of a prompt
        ("harbour", True),  # of an answer
        ("lighthouse harbour", True),  # of both
        ("harbour lighthouse", True),
        ("lighthouse submarine", False),
        ("lantern harbour", True),  # of two turns
        ("light", True),  # how a word begins
        ("house", False),  # how it ends
        ("LIGHTHOUSE", True),
        ("HaRbOuR", True),
        ('"paint the lighthouse"', True),
        ('"the lighthouse paint"', False),
        ('"paint the light"', True),
        ("'paint the lighthouse'", True),
        ('"paint the lighthouse" harbour', True),
        ('"paint the lighthouse" submarine', False),
        ("cafe", True),
        ("CAFÉ", True),
        ("café", True),
        ("cafe\u0301", True),
        ("naïve", True),
        ("naive", True),
        ("  lighthouse  ", True),
        ("lighthouse, harbour", True),
        ("(lighthouse)", True),
        ("src/harbour/main.py", True),
        ("harbour/main", True),
        ("main.py", True),
    ],
)
def test_words_are_found_where_all_of_them_occur(
    home: Path, history: ThreadIndex, query: str, found: bool, paginated: bool
) -> None:
    wanted = thread(
        home,
        "Paint the lighthouse.",
        "It is in src/harbour/main.py, naïve as it is.",
        "Now the lantern.",
        "As in the Café.",
        paginated=paginated,
    )
    thread(home, "Clean the kitchen.", "It is clean.", number=2, paginated=paginated)
    assert found_ids(history, query=query) == ([wanted.id] if found else [])


@pytest.mark.parametrize(
    "text",
    [
        'say "hello" to them',
        "a AND b OR c NOT d",
        "NEAR(lighthouse, 5)",
        "lighthouse NEAR harbour",
        "words : lighthouse",
        "words:lighthouse",
        "light*",
        "^light",
        "-light",
        "--force",
        "a - b",
        "{light}",
        "(light",
        "light)",
        "light + house",
        "'",
        "it's",
        "don't touch the cat's toy",
        "rock'n'roll",
        "C:\\temp\\file",
        "back\\slash",
        "a;b",
        "100%",
        "under_score",
        "%_%",
        "->",
        "=>",
        "??",
        "c++",
        "#42",
        "@name",
        "$HOME",
        "~/.codex",
        "x = y",
        "<b>bold</b>",
        "'; DROP TABLE file; --",
        "1) OR 1=1 --",
        '" OR "" = "',
        "e-mail",
        "v1.2.3",
        "🚀",
        "ﬁne",
        "İstanbul",
        "straße",
        "日本語",
        "你好世界",
        "한국어",
        "สวัสดี",
        "שלום",
        "مرحبا",
        "привет мир",
    ],
)
def test_what_was_said_is_found_by_itself_and_is_no_syntax(
    home: Path, history: ThreadIndex, text: str
) -> None:
    wanted = thread(home, f"First {text} last.", "Done.")
    thread(home, "Nothing of the kind here.", "Done.", number=2)
    assert found_ids(history, query=text) == [wanted.id]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("界你", False),
        ("好世", True),  # within
        ("世界", True),
        ("语", True),
        ("テスト", True),
        ("テスト 世界", True),
        ("テスト 世间", False),
        ("ラーメン", False),
    ],
)
def test_chinese_and_japanese_are_found_without_blanks(
    home: Path, history: ThreadIndex, query: str, found: bool
) -> None:
    wanted = thread(home, "你好世界。用中文语言", "これはテストです。")
    thread(home, "Nothing of the kind here.", number=2)
    assert found_ids(history, query=query) == ([wanted.id] if found else [])


@pytest.mark.parametrize(
    "query", ["Überhaupt", "überhaupt", "ÜBERHAUPT", "haupt", "Re-do", "100%", "überhaupt kitchen"]
)
def test_words_of_a_name_are_found(home: Path, history: ThreadIndex, query: str) -> None:
    wanted = thread(home, "Clean the kitchen.")
    other = thread(home, "Clean the kitchen.", number=2)
    name_threads(home, {wanted.id: "Überhaupt Re-do 100%", other.id: "Another 1000"})
    assert found_ids(history, query=query) == [wanted.id]


def test_a_name_is_the_newest_one_and_an_older_one_finds_nothing(
    home: Path, history: ThreadIndex
) -> None:
    wanted = thread(home, "Clean the kitchen.")
    name_threads(home, {wanted.id: "before"})
    assert found_ids(history, query="before") == [wanted.id]
    name_threads(home, {wanted.id: "after"})
    (told,) = sessions(history)["sessions"]
    assert told["name"] == "after"
    assert found_ids(history, query="after") == [wanted.id]
    assert found_ids(history, query="before") == []


def test_a_thread_is_found_by_its_id(home: Path, history: ThreadIndex) -> None:
    thread(home, "One.")
    wanted = thread(home, "Two.", number=2)
    assert found_ids(history, query=wanted.id) == [wanted.id]
    assert found_ids(history, query=wanted.id.upper()) == [wanted.id]


@pytest.mark.parametrize("query", ["", "   ", "\n", '"'])
def test_no_words_find_all(home: Path, history: ThreadIndex, query: str) -> None:
    thread(home, "One.")
    thread(home, "Two.", number=2)
    assert len(found_ids(history, query=query)) == 2


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    query=st.text(max_size=30) | st.text(alphabet="\"'*()-+:^{}\\ANDORNEAR %_\0\n\t;", max_size=20)
)
def test_any_text_may_be_searched_for(home: Path, history: ThreadIndex, query: str) -> None:
    if not home.exists():
        thread(home, "Clean the kitchen.")
    sessions(history, query=query)
    assert history.notes == []
    assert found_ids(history, query="kitchen") == [thread_id(1)]


def test_what_a_command_printed_or_the_model_read_is_not_searched(
    home: Path, history: ThreadIndex
) -> None:
    rollout = Rollout(home).ask("Look.")
    rollout.item("function_call_output", call_id="c", output="lighthouse")
    rollout.item("message", role="user", content=[{"type": "input_text", "text": "harbour"}])
    rollout.answer("Seen.").save()
    assert found_ids(history, query="lighthouse") == []
    assert found_ids(history, query="harbour") == []
    assert found_ids(history, query="look seen") == [rollout.id]


@pytest.mark.parametrize("paginated", [False, True])
def test_words_that_come_later_are_found_then(
    home: Path, history: ThreadIndex, paginated: bool
) -> None:
    rollout = thread(home, "Paint the lighthouse.", "Painted.", paginated=paginated)
    assert found_ids(history, query="harbour") == []
    rollout.ask("Then the harbour.").save()
    assert found_ids(history, query="harbour") == [rollout.id]
    assert found_ids(history, query="harbour lighthouse") == [rollout.id]
    rollout.answer("A submarine came.").save()
    assert found_ids(history, query="submarine") == [rollout.id]
    assert found_ids(history, query="lighthouse submarine harbour painted") == [rollout.id]


@pytest.mark.parametrize("searched", [False, True])
@pytest.mark.parametrize("paginated", [False, True])
@pytest.mark.parametrize("cut", [1, 30, -1])
def test_words_of_a_line_that_was_read_in_two_pieces_are_found(
    home: Path, history: ThreadIndex, paginated: bool, cut: int, searched: bool
) -> None:
    rollout = thread(home, "Paint the lighthouse.", "Painted.", paginated=paginated)
    size = rollout.path.stat().st_size
    rollout.ask("Then the harbour.")
    rollout.answer("A submarine came.").save()
    whole = rollout.path.read_bytes()
    rollout.path.write_bytes(whole[: size + cut if cut > 0 else cut])
    found_ids(history, **({"query": "lighthouse"} if searched else {}))
    rollout.path.write_bytes(whole)
    for word in ("lighthouse", "painted", "harbour", "submarine"):
        assert found_ids(history, query=word) == [rollout.id], word


def test_words_of_every_line_are_found_wherever_it_was_cut(
    home: Path, history: ThreadIndex
) -> None:
    draw = random.Random(41)
    rollout = Rollout(home)
    for n in range(40):
        _ = rollout.answer(f"answer{n}") if n % 2 else rollout.ask(f"prompt{n}")
    rollout.save()
    whole = rollout.path.read_bytes()
    for end in sorted(draw.sample(range(len(whole)), 60)):
        rollout.path.write_bytes(whole[:end])
        found_ids(history, query="prompt0")
    rollout.path.write_bytes(whole)
    lost = [
        word
        for n in range(40)
        if found_ids(history, query=(word := f"{'answer' if n % 2 else 'prompt'}{n}")) == []
    ]
    assert lost == []


def test_words_of_a_file_that_was_written_anew_are_gone(home: Path, history: ThreadIndex) -> None:
    thread(home, "Paint the lighthouse.")
    assert found_ids(history, query="lighthouse") == [thread_id(1)]
    thread(home, "Paint the house.", "Twice.")
    assert found_ids(history, query="lighthouse") == []
    assert found_ids(history, query="house twice") == [thread_id(1)]


def test_words_that_a_fork_has_copied_find_only_its_parent(
    home: Path, history: ThreadIndex
) -> None:
    parent = thread(home, "Paint the lighthouse.", "Painted.")
    fork = Rollout(
        home,
        2,
        ms=parent.ms + 60_000,
        meta={"forked_from_id": parent.id, "history_mode": "legacy"},
    )
    for line in parent.lines:
        fork.lines.append(fork.lines[0][:40] + line[line.index(b'"type"') :])
    fork.event("task_started", turn_id=thread_id(0x2001))
    fork.event("user_message", message="Now the harbour.", images=[])
    fork.answer("A submarine came.")
    fork.event("task_complete", turn_id=thread_id(0x2001), last_agent_message="A submarine came.")
    fork.save()
    assert found_ids(history, query="lighthouse") == [parent.id]
    assert found_ids(history, query="painted") == [parent.id]
    assert found_ids(history, query="harbour submarine") == [fork.id]


def test_words_are_found_in_packed_threads_too(home: Path, history: ThreadIndex) -> None:
    import zstandard

    rollout = thread(home, "Paint the lighthouse.", "Painted.")
    assert found_ids(history, query="lighthouse") == [rollout.id]
    packed = rollout.path.with_name(f"{rollout.path.name}.zst")
    packed.write_bytes(zstandard.ZstdCompressor().compress(rollout.path.read_bytes()))
    rollout.path.unlink()
    assert found_ids(history, query="lighthouse painted") == [rollout.id]


def test_texts_are_read_once(home: Path, history: ThreadIndex) -> None:
    for number in range(1, 20):
        thread(home, "Paint the lighthouse.", number=number)
    assert sessions(history, query="lighthouse")["total"] == 19
    with opened_files(home) as seen:
        assert sessions(history, query="lighthouse")["total"] == 19
    assert rollouts_in(seen) == []


# Filters.


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ({"cwd": "/a/b"}, [3, 1]),
        ({"cwd": "/a/b/"}, [3, 1]),
        ({"cwd": "/a/./x/../b"}, [3, 1]),
        ({"cwd": "/a/bc"}, [2]),
        ({"cwd": "/a"}, [3, 2, 1]),
        ({"cwd": "/"}, [5, 4, 3, 2, 1]),
        ({"cwd": "/a/b/c"}, [3]),
        ({"cwd": "/a/b/c/d"}, []),
        ({"cwd": "/a/%"}, []),
        ({"cwd": "/100%"}, [4]),
        ({"cwd": "/ü"}, [5]),
        ({"model": "gpt-5.4"}, [2]),
        ({"model": "GPT-5.4"}, [2]),
        ({"model": "gpt-5"}, []),
        ({"source": "vscode"}, [3]),
        ({"source": "nothing"}, []),
        ({"since": "2025-02-20T00:02:00Z"}, [5, 4, 3, 2]),
        ({"until": "2025-02-20T00:02:00Z"}, [1]),
        ({"since": "2025-02-20T01:02:00+01:00", "until": "2025-02-20T00:03:00Z"}, [2]),
        ({"since": "2025-02-22T00:00:00Z"}, []),
        ({"cwd": "/a", "model": "gpt-5.4", "query": "task"}, [2]),
        ({"cwd": "/a", "query": "task3"}, [3]),
    ],
)
def test_filters_leave_those_that_fit(
    home: Path, history: ThreadIndex, asked: Json, numbers: list[int]
) -> None:
    begin = int(START.timestamp() * 1000)
    for number, cwd in enumerate(("/a/b", "/a/bc", "/a/b/c", "/100%", "/ü/"), 1):
        model = "gpt-5.4" if number == 2 else "gpt-5.2-codex"
        source = {"source": "vscode"} if number == 3 else {}
        rollout = Rollout(
            home, number, cwd=cwd, model=model, ms=begin + number * 60_000, meta=source
        )
        rollout.ask(f"task{number}").use(5).save()
    found = sessions(history, **asked)
    assert [each["thread_id"] for each in found["sessions"]] == [thread_id(n) for n in numbers]
    assert found["total"] == len(numbers)
    assert found["next_cursor"] is None


def test_a_folder_is_found_by_any_of_its_names(
    home: Path, tmp_path: Path, history: ThreadIndex
) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "below").mkdir(parents=True)
    link.symlink_to(real)
    Rollout(home, 1, cwd=str(real / "below")).ask("One.").save()
    Rollout(home, 2, cwd=str(link / "below")).ask("Two.").save()
    Rollout(home, 3, cwd=f"{real}ly").ask("Three.").save()
    assert set(found_ids(history, cwd=str(link))) == {thread_id(1), thread_id(2)}
    assert found_ids(history, cwd=str(real)) == [thread_id(1)]


def test_a_folder_that_is_no_absolute_path_is_refused() -> None:
    with pytest.raises(ValidationError, match="absolute"):
        SessionsRequest.model_validate({"cwd": "here"})


def test_sub_agents_are_found_by_their_source(home: Path, history: ThreadIndex) -> None:
    spawn = {"subagent": {"thread_spawn": {"parent_thread_id": thread_id(1)}}}
    Rollout(home, 1).ask("One.").save()
    Rollout(home, 2, meta={"source": spawn}).ask("Two.").save()
    assert found_ids(history) == [thread_id(1)]
    assert found_ids(history, source="subagent") == [thread_id(2)]
    (agent,) = sessions(history, source="subagent")["sessions"]
    assert agent["parent_thread_id"] == thread_id(1)


# Pages.


def test_threads_of_one_instant_are_each_told_once(home: Path, history: ThreadIndex) -> None:
    for number in range(1, 12):
        Rollout(home, number).ask("At once.").save()
    assert [each["thread_id"] for each in all_sessions(history, limit=2)] == [
        thread_id(number) for number in range(1, 12)
    ]


def test_threads_that_come_go_and_move_while_one_pages_neither_repeat_nor_hide_others(
    home: Path, history: ThreadIndex
) -> None:
    begin = int(START.timestamp() * 1000)
    rollouts = [Rollout(home, n, ms=begin + n * 60_000).ask("Begin.").save() for n in range(1, 31)]
    seen: list[str] = []
    cursor: str | None = None
    for step in range(100):
        page = sessions(history, limit=4, cursor=cursor)
        seen += [each["thread_id"] for each in page["sessions"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        Rollout(home, 100 + step, ms=begin + 9_000_000 + step).ask("New.").save()
        moved = rollouts[step]
        moved.ms += 10_000_000
        moved.ask("It comes to the front.").save()
        rollouts[29 - step * 4].path.unlink()  # It was told already.
    assert len(seen) == len(set(seen))
    stayed = {each.id for each in rollouts[6:]}
    assert stayed <= set(seen)


@pytest.mark.parametrize("cursor", ["x", "", "1", "1.", ".a", "12.a;b", "9" * 30 + ".a", "1.a'b"])
def test_a_cursor_that_is_none_is_refused(home: Path, history: ThreadIndex, cursor: str) -> None:
    thread(home, "One.")
    with pytest.raises(InvalidArguments, match="cursor"):
        sessions(history, cursor=cursor)


def test_a_page_of_long_titles_is_cut_where_a_client_would_cut_it_and_goes_on(
    home: Path, history: ThreadIndex
) -> None:
    for number in range(1, 121):
        cwd = f"/{'folder' * 50}/{number}"
        Rollout(home, number, cwd=cwd).ask('\\"Very long. ' * 40).save()
    first = sessions(history, limit=100)
    assert 10 < len(first["sessions"]) < 100
    assert first["total"] == 120
    assert len(all_sessions(history, limit=100)) == 120


# How each stands.

HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(lock: Path) -> Generator[None]:
    """Let another process hold a lock."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
    finally:
        holder.communicate()


def status(history: ThreadIndex, state: Path) -> str:
    """Return how the only thread stands, in a list and by itself."""

    def asked(**given: str) -> Json:
        request = SessionsRequest.model_validate(given)
        return find_sessions(request, history, state, None, None)

    (told,) = asked()["sessions"]
    assert asked(thread_id=told["thread_id"])["session"]["status"] == told["status"]
    return told["status"]


def now_ms() -> int:
    return int(time.time() * 1000)


Lines = Callable[[Rollout], object]

AT_REST: list[tuple[str, bool, Lines, str]] = [
    ("new, completed", True, lambda r: r.ask("Go.").use(1).answer("Gone."), "completed"),
    (
        "new, failed",
        True,
        lambda r: r.ask("Go.").event("task_complete", turn_id=r.turn_id, error={"message": "no"}),
        "failed",
    ),
    (
        "new, aborted",
        True,
        lambda r: r.ask("Go.").event("turn_aborted", turn_id=r.turn_id, reason="interrupted"),
        "interrupted",
    ),
    ("old, answered", False, lambda r: r.ask("Go.").use(1).answer("Gone."), "completed"),
    ("nothing asked", False, lambda r: None, "unknown"),
]
AT_WORK: list[tuple[str, bool, Lines]] = [
    ("asked", True, lambda r: r.ask("Go.")),
    ("used", True, lambda r: r.ask("Go.").use(1)),
    ("asked again", True, lambda r: r.ask("Go.").use(1).answer("Gone.").ask("Again.")),
    ("asked", False, lambda r: r.ask("Go.")),
    ("used", False, lambda r: r.ask("Go.").use(1)),
    ("asked again", False, lambda r: r.ask("Go.").use(1).answer("Gone.").ask("Again.")),
]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("paginated", "lines", "expected"), [c[1:] for c in AT_REST], ids=[c[0] for c in AT_REST]
)
def test_a_turn_that_ended_stands_as_it_ended(
    home: Path,
    tmp_path: Path,
    history: ThreadIndex,
    paginated: bool,
    lines: Lines,
    expected: str,
    fresh: bool,
) -> None:
    rollout = Rollout(home, paginated=paginated)
    lines(rollout)
    rollout.save(mtime_ms=now_ms() if fresh else None)
    with held_elsewhere(home / "thread-writer-locks" / f"{rollout.id}.lock"):
        assert status(history, tmp_path / "state") == expected


@pytest.mark.parametrize(
    ("paginated", "lines"), [c[1:] for c in AT_WORK], ids=[f"{c[0]}-{c[1]}" for c in AT_WORK]
)
def test_an_open_turn_whose_thread_is_locked_is_running(
    home: Path, tmp_path: Path, history: ThreadIndex, paginated: bool, lines: Lines
) -> None:
    rollout = Rollout(home, paginated=paginated)
    lines(rollout)
    rollout.save()
    state = tmp_path / "state"
    stale = "interrupted" if paginated else "unknown"
    for lock in (home / "thread-writer-locks", state / "locks"):
        path = lock / f"{rollout.id}.lock"
        with held_elsewhere(path):
            assert status(history, state) == "running"
        assert path.exists()
        assert status(history, state) == stale
        with held_elsewhere(lock / f"{thread_id(77)}.lock"):
            assert status(history, state) == stale


def test_an_open_turn_whose_thread_this_server_locks_is_running(
    home: Path, tmp_path: Path, history: ThreadIndex
) -> None:
    rollout = Rollout(home, paginated=True).ask("Go.").save()
    state = tmp_path / "state"
    (home / "thread-writer-locks").mkdir()
    assert status(history, state) == "interrupted"
    lock = ThreadLock.take(home, state, rollout.id)
    assert status(history, state) == "running"
    lock.release()
    assert status(history, state) == "interrupted"


def test_asking_how_a_thread_stands_takes_no_lock(
    home: Path, tmp_path: Path, history: ThreadIndex
) -> None:
    rollout = Rollout(home, paginated=True).ask("Go.").save()
    lock = home / "thread-writer-locks" / f"{rollout.id}.lock"
    lock.parent.mkdir()
    lock.touch()
    before = marks(home)
    with opened_files(home) as seen:
        assert status(history, tmp_path / "state") == "interrupted"
    assert str(lock) not in [name for name, _ in seen]
    assert marks(home) == before
    fd = os.open(lock, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


@pytest.mark.parametrize(
    ("paginated", "age_s", "locks", "expected"),
    [
        (False, 0, False, "running"),
        (False, 60, False, "running"),
        (False, 600, False, "unknown"),
        (False, 0, True, "running"),
        (False, 600, True, "unknown"),
        (True, 0, False, "running"),
        (True, 600, False, "interrupted"),
        (True, 0, True, "interrupted"),  # A Codex that locks would hold it.
    ],
)
def test_an_open_turn_without_a_lock_is_running_while_it_is_fresh_if_no_lock_would_tell(
    home: Path,
    tmp_path: Path,
    history: ThreadIndex,
    paginated: bool,
    age_s: int,
    locks: bool,
    expected: str,
) -> None:
    at = now_ms() - age_s * 1000
    Rollout(home, paginated=paginated, ms=at).ask("Go.").use(1).save(mtime_ms=at)
    if locks:
        (home / "thread-writer-locks").mkdir()
    assert status(history, tmp_path / "state") == expected


@pytest.mark.parametrize(("paginated", "expected"), [(False, "unknown"), (True, "interrupted")])
def test_a_copy_of_a_home_runs_no_turn_unless_a_writer_locks_its_thread(
    home: Path, tmp_path: Path, history: ThreadIndex, paginated: bool, expected: str
) -> None:
    rollout = Rollout(home, paginated=paginated).ask("Go.").use(1).save(mtime_ms=now_ms())
    state = tmp_path / "state"
    assert status(history, state) == expected
    with held_elsewhere(home / "thread-writer-locks" / f"{rollout.id}.lock"):
        assert status(history, state) == "running"


# One.


def test_one_thread_is_told_with_its_newest_turns(home: Path, history: ThreadIndex) -> None:
    rollout = Rollout(home)
    for n in range(12):
        rollout.ask(f"prompt {n}").use(10 + n, 2).answer(f"answer {n}")
    rollout.save()
    found = sessions(history, thread_id=rollout.id.upper())
    assert found["session"]["thread_id"] == rollout.id
    assert (found["sessions"], found["total"]) == (None, None)
    assert [turn["prompt"] for turn in found["turns"]] == [f"prompt {n}" for n in (11, 10, 9, 8, 7)]
    assert [turn["usage"]["input_tokens"] for turn in found["turns"]] == [21, 20, 19, 18, 17]
    rollout.ask("prompt 12").save()
    rest = sessions(history, thread_id=rollout.id, turns=50, cursor=found["next_cursor"])
    assert [turn["prompt"] for turn in rest["turns"]] == [f"prompt {n}" for n in range(6, -1, -1)]
    assert rest["next_cursor"] is None
    assert rest["session"]["turn_count"] == 13


def test_an_archived_thread_and_a_sub_agent_are_told_by_their_ids(
    home: Path, history: ThreadIndex
) -> None:
    Rollout(home, 1, archived=True).ask("One.").save()
    Rollout(home, 2, meta={"thread_source": "subagent"}).ask("Two.").save()
    for number, prompt in ((1, "One."), (2, "Two.")):
        found = sessions(history, thread_id=thread_id(number))
        assert found["turns"][0]["prompt"] == prompt
    assert sessions(history, thread_id=thread_id(1))["session"]["resumable"] is False
    assert sessions(history, thread_id=thread_id(2))["session"]["resumable"] is True


@pytest.mark.parametrize("wanted", [thread_id(5), "", "../../etc/passwd", "%", "' OR 1=1 --"])
def test_a_thread_that_is_not_there_is_not_found(
    home: Path, history: ThreadIndex, wanted: str
) -> None:
    thread(home, "One.")
    with pytest.raises(ThreadNotFound):
        sessions(history, thread_id=wanted)


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "9999999999", "²", ""])
def test_a_cursor_of_turns_that_is_none_is_refused(
    home: Path, history: ThreadIndex, cursor: str
) -> None:
    thread(home, "One.")
    with pytest.raises(InvalidArguments, match="cursor"):
        sessions(history, thread_id=thread_id(1), cursor=cursor)


# Names and titles.

IDE = "# Context from my IDE setup:\n\n## Active file: " + "a" * 5000
MARKER = "\n\n## My request for Codex:\n"


@pytest.mark.parametrize("paginated", [False, True])
def test_a_title_is_the_first_request(home: Path, history: ThreadIndex, paginated: bool) -> None:
    rollout = Rollout(home, paginated=paginated).ask(f"{IDE}{MARKER}").answer("What?")
    rollout.ask(f"{IDE}{MARKER} rename\nthe parser ").answer("Renamed.").ask("More.").save()
    (told,) = sessions(history)["sessions"]
    assert (told["title"], told["turn_count"]) == ("rename the parser", 3)
    found = sessions(history, thread_id=rollout.id)["turns"]
    assert [turn["prompt"] for turn in found] == ["More.", "rename\nthe parser", None]
    assert found_ids(history, query="parser") == [rollout.id]
    assert found_ids(history, query="Active") == []


@pytest.mark.parametrize("cleared", ["", " ", None])
def test_a_name_that_was_cleared_is_none(
    home: Path, history: ThreadIndex, cleared: str | None
) -> None:
    rollout = Rollout(home).ask("Go.").save()
    name_threads(home, {rollout.id: "Old name"})
    assert sessions(history)["sessions"][0]["name"] == "Old name"
    name_threads(home, {rollout.id: cleared})
    assert sessions(history)["sessions"][0]["name"] is None
    assert found_ids(history, query="Old") == []
    name_threads(home, {rollout.id: "New name"})
    assert sessions(history)["sessions"][0]["name"] == "New name"


@pytest.mark.parametrize(
    ("path", "nickname", "name"),
    [
        ("/root/timer_audit", "Noether", "/root/timer_audit"),
        (None, "Noether", "Noether"),
        ("", "Noether", "Noether"),
        (None, None, None),
    ],
)
@pytest.mark.parametrize("place", ["spawn", "meta"])
def test_a_sub_agent_without_a_task_has_the_name_of_its_agent(
    home: Path,
    history: ThreadIndex,
    path: str | None,
    nickname: str | None,
    name: str | None,
    place: str,
) -> None:
    agent: Json = {"agent_path": path, "agent_nickname": nickname}
    spawn = {"parent_thread_id": thread_id(9)} | (agent if place == "spawn" else {})
    meta = {"source": {"subagent": {"thread_spawn": spawn}}} | (agent if place == "meta" else {})
    rollout = Rollout(home, paginated=True, meta=meta)
    rollout.event("task_started", turn_id=rollout.turn_id).answer("Two leaks.").save()
    given = {"include_subagents": True}
    (told,) = sessions(history, **given)["sessions"]
    assert (told["name"], told["title"]) == (name, None)
    if name is not None:
        assert found_ids(history, query=name.rpartition("/")[2].upper(), **given) == [rollout.id]
    name_threads(home, {rollout.id: "Its own"})
    assert sessions(history, **given)["sessions"][0]["name"] == "Its own"


def test_a_sub_agent_with_a_task_is_told_by_it(home: Path, history: ThreadIndex) -> None:
    spawn = {"parent_thread_id": thread_id(9), "agent_nickname": "Hilbert"}
    meta = {"source": {"subagent": {"thread_spawn": spawn}}}
    Rollout(home, meta=meta).ask("Look at it.").save()
    (told,) = sessions(history, include_subagents=True)["sessions"]
    assert (told["name"], told["title"]) == (None, "Look at it.")


# Old and empty files.


def test_a_thread_of_before_september_2025_is_told_with_what_it_holds(
    home: Path, history: ThreadIndex
) -> None:
    id_ = "38b123ff-0000-4dfe-bd12-d42671fcb25f"
    context = "<environment_context>\n  <cwd>/home/dev/shop</cwd>\n</environment_context>"
    lines: list[Json] = [
        {"id": id_, "timestamp": "2025-08-19T08:25:08.000Z", "git": {"branch": "main"}},
        {"record_type": "state"},
        *(
            {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}
            for role, kind, text in (
                ("user", "input_text", context),
                ("user", "input_text", "fix the till"),
                ("assistant", "output_text", "fixed"),
            )
        ),
    ]
    path = home / "sessions" / "2025" / "08" / "19" / f"rollout-2025-08-19T08-25-08-{id_}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    told = sessions(history, thread_id=id_)
    session, (turn,) = told["session"], told["turns"]
    assert (session["title"], session["cwd"], session["git_branch"], session["status"]) == (
        "fix the till", "/home/dev/shop", "main", "completed",
    )  # fmt: skip
    assert session["created_at"] == session["last_active_at"] == "2025-08-19T08:25:08.000Z"
    assert (turn["prompt"], turn["final_response"]) == ("fix the till", "fixed")
    assert found_ids(history, query="till fixed") == [id_]
    assert found_ids(history, cwd="/home/dev") == [id_]
    reported = usage(history)
    assert (reported["unreadable"], reported["sessions_read"], reported["notes"]) == (0, 1, [])


@pytest.mark.parametrize("others", [0, 1])
def test_an_empty_file_is_no_fault_and_no_thread(
    home: Path, history: ThreadIndex, others: int
) -> None:
    for number in range(2, 2 + others):
        Rollout(home, number).ask("Go.").save()
    empty = Rollout(home, 1)
    empty.lines.clear()
    empty.save()
    reported = usage(history)
    assert (reported["unreadable"], reported["sessions_read"], reported["notes"]) == (0, others, [])
    assert sessions(history)["total"] == others
    # A run that goes on fills it.
    Rollout(home, 1).ask("Go.").save()
    assert sessions(history)["total"] == others + 1
    assert usage(history)["sessions_read"] == others + 1
