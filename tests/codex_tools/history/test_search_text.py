"""Which lines of a rollout give words that can be searched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from codex_tools.history.search_text import TEXT_LIMIT, read_texts
from support.rollout_lines import (
    Json,
    asked,
    ended,
    event,
    line,
    new_asked,
    output,
    said,
    started,
    written,
)
from support.spent_by_child import (
    spent_on,
    write_long_lines,
    write_many_prompts,
    write_one_line,
    write_outputs,
)

IDE = "# Context from my IDE setup:\n\n## Active file: a.py\n\n## My request for Codex:\n"
REVIEW: Json = {"overall_explanation": "fine", "findings": [{"title": "slow", "body": "very"}]}


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


def test_the_words_of_a_prompt_are_those_of_its_request(tmp_path: Path) -> None:
    lines = [asked(f"{IDE}one"), new_asked(f"{IDE}two"), asked(IDE), new_asked(IDE), said("three")]
    assert words_of(tmp_path, *lines) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (event("item_completed", item={"type": "Plan", "text": "pack the zebra"}), "zebra"),
        (event("item_completed", item={"type": "ExitedReviewMode", "review_output": REVIEW}), "y"),
        (event("exited_review_mode", review_output=REVIEW), "very"),
    ],
)
def test_a_plan_and_a_review_are_answers(tmp_path: Path, answer: Json, words: str) -> None:
    told = words_of(tmp_path, started(), said("no"), answer, ended(), said("yes"))
    assert len(told) == 3
    assert words in told[0]
    assert told[1:] == ["done", "yes"]


def test_prompts_and_answers_without_an_envelope_are_found(tmp_path: Path) -> None:
    bare: list[Json] = [
        {"id": "x", "timestamp": "2025-08-19T08:25:08.000Z"},
        {"record_type": "state"},
        *(
            {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}
            for role, text in (
                ("user", "<environment_context></environment_context>"),
                ("user", "fix it"),
                ("assistant", "fixed"),
            )
        ),
        {"type": "reasoning", "summary": []},
    ]
    path = tmp_path / "rollout.jsonl"
    text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in bare)
    path.write_text(text + '{"type":"message","role":"user","content"')
    (found,) = read_texts(path, 0, path.stat().st_size)
    assert found == (["fix it", "fixed"], len(text))


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
    assert twice < 3 * once + 0.5
    assert much < little + 100
