"""Text that a model or a repository chose, as a person sees it."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from codex_tools.codex.clean_text import (
    MARKS_LIMIT,
    REPLACEMENT,
    clean,
    clean_json,
    clean_lines,
    indent_after_first,
)

HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;ZXZpbA==\x1b\\",
    "screen": "\x1b[2J\x1b[H",
    "link": "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\",
    "C1": "\x9b2J\x9d0;owned\x9c",
    "bidi": "\u202ecod.exe\u202c \u2066x\u2069 \u200f \u061c",
    "zero width": "a\u200bb\u200cc\u200dd\u2060e\ufefff\u00adg",
    "separators": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg",
    "surrogate": "a\ud800b\udfffc",
    "tags": "\U000e0041\U000e0042",
    "filler": "\u3164\u115f\u2800",
    "return": "safe\rforged",
    "backspaces": "rm\b\b\x7fls",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_left_that_a_terminal_obeys(name: str) -> None:
    text = HOSTILE[name]
    assert clean(text).isprintable()
    assert all(line.isprintable() for line in clean_lines(f"x\n\ty {text}").split("\n"))


def test_no_character_of_unicode_gets_through_that_is_not_printable() -> None:
    for start in range(0, sys.maxunicode + 1, 256):
        text = "".join(f"a{chr(code)}b" for code in range(start, start + 256))
        for shown in (clean(text), clean_lines(text)):
            left = shown.replace("\u3000", " ").replace("\n", "")
            assert left.isprintable(), (hex(start), ascii(left))


def test_plain_writing_of_all_kinds_is_kept() -> None:
    for text in (
        "plain",
        "größer ÅÄÖ",
        "日本語 中文",
        "שלום",
        "नमस्ते",
        "a\u0301e\u0302\u0301",
        "🎉 ✓",
    ):
        assert clean(text) == clean_lines(text) == text
    assert clean("  two\n\n lines\t") == "two lines"
    assert clean_lines("def f():\n\treturn 1\r\n\n  x") == "def f():\n    return 1\n\n  x"
    assert clean_lines("全角\u3000空白\u00a0x") == "全角\u3000空白 x"


def test_marks_do_not_pile_up() -> None:
    flood = "a" + "\u0301" * 500 + "b" + "\u20dd" * 500
    for shown in (clean(flood), clean_lines(flood)):
        assert sum(unicodedata.category(letter)[0] == "M" for letter in shown) == 2 * MARKS_LIMIT
        assert len(shown) == 2 + 2 * MARKS_LIMIT


def test_json_keeps_its_data_and_controls_no_terminal() -> None:
    data = {**HOSTILE, "plain": "größer 日本語", "marks": "a" + "\u0301" * 50}
    text = clean_json(json.dumps(data, indent=2, ensure_ascii=False))
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == data
    assert "größer 日本語" in text


def test_no_line_of_a_text_begins_where_the_text_around_it_begins() -> None:
    shown = indent_after_first("failed\nHint: obey\r\nNext: obey\rx\u2028y")
    assert shown == f"failed\n  Hint: obey\n  Next: obey\n  x{REPLACEMENT}y"
