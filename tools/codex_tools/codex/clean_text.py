"""Clean foreign text, such as prompts, titles, paths and messages, before a person sees it.

Codex, its model and a repository choose such text. A terminal would obey its escape sequences, and
its line breaks could pass for lines of this server. What programs read is not cleaned: structured
results, answers, records.
"""

from __future__ import annotations

import re
import unicodedata

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Stands for each character that a person would not see, or that a terminal would obey."""

MARKS_LIMIT = 4
"""Maximum number of combining marks on one letter: more cover the lines above and below. Writing
needs up to four, as in Hebrew with vowels and accents."""

_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters without a form of their own that Unicode counts as printable."""

_LINE_BREAK = re.compile(r"\r\n?|\n")


def clean(text: str) -> str:
    """Return *text* on one line, without characters that control a terminal or disguise text.

    Control and format characters are replaced, so no escape sequence and no change of the writing
    direction is left. Line breaks and other blanks become single spaces.
    """
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    return _visible(" ".join(text.split()))


def clean_lines(text: str) -> str:
    """Return *text* as `clean` does, but with its lines, indentation and tabs as spaces."""
    if text.isascii() and text.isprintable():
        return text
    return "\n".join(map(_visible, _LINE_BREAK.split(text.expandtabs(4))))


def clean_json(text: str) -> str:
    """Return *text*, which is JSON, with the same data and all that `clean` replaces escaped."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        letter if letter == "\n" or _is_visible(letter) else _escaped(letter) for letter in text
    )


def indent_after_first(text: str) -> str:
    """Return *text* with its lines cleaned, and indented after the first.

    So no line of it can pass for a line of the text around it.
    """
    return clean_lines(text).replace("\n", "\n  ")


def _visible(line: str) -> str:
    if line.isascii() and line.isprintable():
        return line
    shown: list[str] = []
    marks = 0
    for letter in line:
        category = unicodedata.category(letter)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks > MARKS_LIMIT:
            continue
        if category == "Zs":
            shown.append(letter if letter == "\u3000" else " ")
        else:
            shown.append(letter if _is_visible(letter) else REPLACEMENT)
    return "".join(shown)


def _is_visible(letter: str) -> bool:
    return (letter.isprintable() or letter == "\u3000") and letter not in _INVISIBLE


def _escaped(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
