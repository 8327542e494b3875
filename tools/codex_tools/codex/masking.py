"""Mask secrets in texts that are shown, and shorten long texts."""

from __future__ import annotations

import functools
import os
import re

MASK = "[secret]"

_SHAPES = re.compile(
    r"""
    \bsk-(?:[\w-]*\*[\w*-]*|[\w-]{8,})                    # OpenAI keys, and their masked forms
    | \b(?i:bearer)\s+[\w.~+/=-]{8,}
    | (?<=uthorization:\ )(?i:basic)\s+[\w+/=-]{4,}
    | (?<![\w-])eyJ[\w-]{8,4000}\.[\w-]{8,8000}\.[\w-]*    # JSON Web Tokens
    | \b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|xai-|gsk_|hf_|npm_|pypi-|ya29\.)[\w-]{10,}
    | \b(?:[rs]k_(?:live|test)_|AKIA|ASIA|AIza)[\w-]{10,}
    | (?<=://)[^/\s:@]*:[^/\s]+(?=@)                      # URLs with credentials
    | -----BEGIN\ [A-Z ]{0,30}PRIVATE\ KEY-----(?:(?!-----END).){0,20000}(?:-----END[A-Z ]*-----)?
    """,
    re.VERBOSE | re.DOTALL,
)
_GIVEN = re.compile(
    r"""((?:api[_-]?key|secret|password|passwd|token)["']?\s?[:=]\s?["']?)"""
    r"""(?=[^\s"',;&]{0,200}\d)[^\s"',;&\[]{12,}""",
    re.IGNORECASE,
)
"""A value that contains digits and follows a name such as api_key or password."""

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8
"""Characters of the shortest environment value that is masked; shorter ones match too much."""


def mask(text: str) -> str:
    """Return *text* with everything that looks like a secret replaced by [secret].

    The values of environment variables of this process with a secret's name are replaced too.
    """
    known = _known()
    if known is not None:
        text = known.sub(MASK, text)
    return _GIVEN.sub(rf"\1{MASK}", _SHAPES.sub(MASK, text))


@functools.cache
def _known() -> re.Pattern[str] | None:
    values = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST and not value.startswith("/")
    }
    longest_first = sorted(values, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if values else None


def shorten(text: str, limit: int, whole: str | None = None) -> str:
    """Return *text*, or its head and tail around a marked gap, in at most *limit* characters.

    The gap names *whole*, the URI of the resource with the whole text, unless it is None.
    """
    if len(text) <= limit:
        return text
    gap, at = "", "" if whole is None else f"; all of it is in the resource {whole}"
    for _ in range(2):  # The number in the gap changes the length of the gap.
        gap = f"\n[… {len(text) - limit + len(gap):,} characters left out{at} …]\n"
    room = max(limit - len(gap), 0)
    tail = room // 3
    return text[: room - tail] + gap + text[len(text) - tail :]


def quote(text: str, limit: int = 2000) -> str:
    """Return *text* for a message: secrets are masked, then the text is shortened."""
    if len(text) > 20 * limit:
        return shorten(mask(text[: 10 * limit]) + mask(text[-10 * limit :]), limit)
    return shorten(mask(text), limit)
