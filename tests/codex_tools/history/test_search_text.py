"""Which lines of a rollout give words that can be searched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codex_tools.history.search_text import read_texts
from support.rollout_lines import (
    Json,
    asked,
    ended,
    event,
    line,
    new_asked,
    said,
    started,
    written,
)

IDE = "# Context from my IDE setup:\n\n## Active file: a.py\n\n## My request for Codex:\n"
REVIEW: Json = {"overall_explanation": "fine", "findings": [{"title": "slow", "body": "very"}]}


def words_of(tmp_path: Path, *lines: Json) -> list[str]:
    path = tmp_path / "rollout.jsonl"
    path.write_bytes(written(*lines))
    return read_texts(path, 0, path.stat().st_size)[0]


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
    assert read_texts(path, 0, path.stat().st_size) == (["fix it", "fixed"], len(text))
