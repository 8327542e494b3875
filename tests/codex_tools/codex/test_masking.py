"""What may be shown of a text."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from codex_tools.codex.masking import mask, shorten

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.SflKxwRJSMeKKF2QT4"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("key sk-proj-abcDEF123456_x-y.", "key [secret]."),
        ("API key - sk-test-***56789", "API key - [secret]"),
        ("provided: sk-proj-********************wxyz.", "provided: [secret]."),
        ("Authorization: Bearer abc.def-123456==", "Authorization: [secret]"),
        ("authorization: bearer abcdefghijk", "authorization: [secret]"),
        (f'token="{JWT}"', 'token="[secret]"'),
        ("https://user:pass@host/path", "https://[secret]@host/path"),
        ("http://u:p@127.0.0.1:8080", "http://[secret]@127.0.0.1:8080"),
        ("ghp_abcdefghijklmnop and AKIAIOSFODNN7EXAMPLE", "[secret] and [secret]"),
        ("OPENAI_API_KEY=sk-abcdefgh12345678", "OPENAI_API_KEY=[secret]"),
        ("two: sk-aaaaaaaaaa, sk-bbbbbbbbbb", "two: [secret], [secret]"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: [secret]"),
        ("redis://:hunter2@cache:6379", "redis://[secret]@cache:6379"),
        ("glpat-abcdefghij1234567890 hf_abcdefghijklmnop", "[secret] [secret]"),
        ("key AIzaSyA1234567890abcdefghijklmnop", "key [secret]"),
        ("sk_live_abcdefghijklmnop", "[secret]"),
        ('{"api_key": "abcdef123456", "a": 1}', '{"api_key": "[secret]", "a": 1}'),
        ("DB_PASSWORD=correcthorse1battery pytest", "DB_PASSWORD=[secret] pytest"),
        ("https://host/?token=0123456789abcdef&x=1", "https://host/?token=[secret]&x=1"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----\nafter",
            "[secret]\nafter",
        ),
    ],
)
def test_secrets_are_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "sk-learn and sk-xxx.",
        "task-force",
        "risk-free-thing",
        "a disk-***-thing",
        "the bearer of news",
        "https://host:8080/a:b@c",
        "mail me@example.com",
        "eyJ and keyJabcdefgh.abcdefgh.abc",
        "SyntaxError: unexpected token: identifier",
        "max_tokens=4096, total_tokens: 123456789012",
        "Authorization: basic",
        "password: required",
        "basic understanding of authorization",
    ],
)
def test_ordinary_words_are_not_masked(text: str) -> None:
    assert mask(text) == text


def test_the_secrets_of_the_environment_are_masked_wherever_they_show_up() -> None:
    code = "import sys; from codex_tools.codex.masking import mask; print(mask(sys.argv[1]))"
    text = "keys hunter2-hunter2 and hunter2-hunter2-longer; short pass, plain word, /run/secrets/a"
    env = {
        "MY_API_KEY": "hunter2-hunter2",
        "my_password": "hunter2-hunter2-longer",
        "SHORT_TOKEN": "short",
        "WORD": "plain word",
        "SECRET_FILE": "/run/secrets/a",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, text], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (
        "keys [secret] and [secret]; short pass, plain word, /run/secrets/a"
    )


def test_masking_takes_time_in_proportion_to_the_text() -> None:
    begin = "-----BEGIN PRIVATE KEY-----"
    for piece in (begin, "eyJ" + "a" * 50, "token=", "://a:", "sk-*", "Bearer "):
        mask(piece * (200_000 // len(piece)))  # Does not hang.


def test_a_long_text_keeps_its_head_and_tail_around_a_marked_gap() -> None:
    assert shorten("x" * 100, 100) == "x" * 100
    text = "".join(f"{number:05}" for number in range(2000))
    short = shorten(text, 1000)
    assert len(short) == 1000
    parts = re.fullmatch(r"(\d+)\n\[… ([\d,]+) characters left out …\]\n(\d+)", short)
    assert parts is not None
    assert text.startswith(parts[1])
    assert text.endswith(parts[3])
    assert len(parts[1]) + int(parts[2].replace(",", "")) + len(parts[3]) == len(text)
