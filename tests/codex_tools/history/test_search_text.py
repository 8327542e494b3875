"""Which lines of a rollout give words that can be searched."""

from __future__ import annotations

from pathlib import Path

from codex_tools.history.search_text import read_texts
from support.rollout_lines import Json, asked, event, line, new_asked, said, written


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
