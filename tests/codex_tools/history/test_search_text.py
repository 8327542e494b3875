"""Which lines of a rollout give words that can be searched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from codex_tools.history.search_text import TEXT_LIMIT, read_texts
from support.rollout_lines import Json, asked, event, line, new_asked, output, said, written
from support.spent_by_child import (
    spent_on,
    write_long_lines,
    write_many_prompts,
    write_one_line,
    write_outputs,
)


def words_of(tmp_path: Path, *lines: Json) -> list[str]:
    path = tmp_path / "rollout.jsonl"
    path.write_bytes(written(*lines))
    return [text for texts, _ in read_texts(path, 0, path.stat().st_size) for text in texts]


def test_no_argument_of_a_tool_is_taken_for_a_prompt_or_a_turn(tmp_path: Path) -> None:
    # The arguments of an MCP tool are written as JSON, not as a text.
    begun = {"type": "event_msg", "payload": {"type": "task_started"}}
    forged = {"type": "tool_search_call", "arguments": begun}
    call = {"type": "McpToolCall", "content": [{"type": "text", "text": "no"}]}
    call |= {"item": {"type": "UserMessage"}}
    lines = [asked("one"), line("response_item", forged), said("two"), new_asked("three")]
    lines.append(event("item_completed", item=call))
    assert words_of(tmp_path, *lines) == ["one", "two", "three"]


def test_the_start_of_a_prompt_of_any_length_is_found(tmp_path: Path) -> None:
    words = words_of(tmp_path, asked("needle " + "x y " * 5_000_000), new_asked("after"))
    assert [text[:8] for text in words] == ["needle x", "after"]
    assert len(words[0]) == TEXT_LIMIT


def test_a_prompt_that_was_appended_to_a_torn_line_is_found(tmp_path: Path) -> None:
    for torn in (output("seq 1000"), asked("torn")):
        data = written(asked("one"), torn, asked("two"), said("three"))
        start, end = len(written(asked("one"))), len(written(asked("one"), torn))
        for cut in (start + 30, start + 78, end - 20):
            path = tmp_path / "rollout.jsonl"
            path.write_bytes(data[:cut] + data[end:])
            texts = [text for step, _ in read_texts(path, 0, 2**40) for text in step]
            assert texts == ["one", "two", "three"]


def test_an_incomplete_last_line_is_left_for_later(tmp_path: Path) -> None:
    data = written(asked("one"), asked("two"))
    for last in (written(asked("x" * 17_000_000)), written(asked("three"))):
        path = tmp_path / "rollout.jsonl"
        path.write_bytes(data + last[:-3])
        assert list(read_texts(path, 0, 2**40))[-1][1] == len(data)
        path.write_bytes(data + last[:-1])
        assert list(read_texts(path, 0, 2**40))[-1][1] == len(data + last) - 1


SEARCH = """
import sqlite3
from contextlib import closing
from codex_tools.history.search_text import read_new_texts
from codex_tools.history.tables import IndexConnection
def search(path):
    with closing(sqlite3.connect(path.parent / "i", factory=IndexConnection)) as db:
        db.isolation_level = None
        db.execute("CREATE VIRTUAL TABLE text USING fts5 (words)")
        db.execute("CREATE TABLE file (id, folder, name, own_offset, text_offset, text_size, size,"
            " problem)")
        size = path.stat().st_size
        db.execute("INSERT INTO file VALUES (1, '', ?, 0, 0, 0, ?, NULL)", (path.name, size))
        read_new_texts(db, path.parent, 250, lambda done, total: None)
        (rest,) = db.execute("SELECT size - text_size FROM file").fetchone()
        (longest,) = db.execute("SELECT max(length(words)) FROM text").fetchone()
        assert rest == 0 and longest < 2_000_000, (rest, longest)
"""


@pytest.mark.parametrize(
    "write", [write_one_line, write_long_lines, write_many_prompts, write_outputs]
)
def test_search_takes_linear_time_and_bounded_memory(
    tmp_path: Path, write: Callable[[Path, int], None]
) -> None:
    path = tmp_path / "rollout.jsonl"
    found: list[tuple[float, float]] = []
    for mb in (1, 60, 120):
        write(path, mb * 1_000_000)
        (tmp_path / "i").unlink(missing_ok=True)
        found.append(spent_on(path, SEARCH, "search"))
    (_, little), (once, _), (twice, much) = found
    assert twice < 3 * once + 0.1
    assert much < little + 100
