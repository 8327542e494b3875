"""What a run says of itself while it is at work."""

from __future__ import annotations

import pytest

from codex_tools.runs.run import short_count


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999, "999"),
        (1000, "1k"),
        (1250, "1.2k"),
        (9999, "9.9k"),
        (45_770, "45k"),
        (999_999, "999k"),
        (3_456_000, "3.4M"),
        (12_000_000_000, "12G"),
    ],
)
def test_a_count_of_tokens_is_short_and_never_rounded_up(number: int, text: str) -> None:
    assert short_count(number) == text
