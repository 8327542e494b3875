"""What may be shown of a text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codex_tools.codex.masking import mask, mask_line, shorten

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


CASES = json.loads((Path(__file__).parents[2] / "data" / "masking.json").read_text("utf-8"))
"""Texts with secrets, as they are and masked, and texts without any.

A mark ¦ in a token keeps scanners of repositories from taking it for a real one.
"""


@pytest.mark.parametrize(("text", "masked"), CASES["masked"])
def test_each_form_of_a_secret_is_masked(text: str, masked: str) -> None:
    assert mask(text.replace("¦", "")) == masked


@pytest.mark.parametrize("text", CASES["kept"])
def test_a_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert mask(text) == text


def test_only_values_that_are_secrets_are_known_from_the_environment() -> None:
    code = "import sys; from codex_tools.codex.masking import mask; print(mask(sys.argv[1]))"
    env = {
        "MONKEY_ENV": "production",
        "KEYBOARD_LAYOUT": "dvorak-intl",
        "TOKENIZERS_PARALLELISM": "disabled-1",
        "SECRET_STAGE": "production",
        "API_KEY": "production",
        "DB_TOKEN_HOST": "db.example.com",
        "AUTH_TOKEN_TTL": "1234567890",
        "SSH_KEY": "~/.ssh/id_ed25519",
        "BOT_TOKEN_OLD": "swordfish-1",
    }
    text = " ".join([*env.values()][:-1])
    done = subprocess.run(
        [sys.executable, "-c", code, f"{text} swordfish-1"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{text} [secret]"


def test_a_masked_event_is_valid_json_with_its_ids_types_and_numbers() -> None:
    line = (
        rb'{"type":"item.completed","thread_id":"token=0123456789abcdef","item":{"id":"item_1",'
        rb'"type":"mcp_tool_call","status":"completed","arguments":{"id":"ghp_abcdefghijklmnop1",'
        rb'"n":123456789012345678901234567890,"x":1e400,"args":["--password","swordfish","-v"],'
        rb'"token":"abc123def4"},"aggregated_output":"DB_PASSWORD=\"abc def\"\n\"x\""}}'
    )
    assert mask_line(line) == (
        r'{"type":"item.completed","thread_id":"token=0123456789abcdef","item":{"id":"item_1",'
        r'"type":"mcp_tool_call","status":"completed","arguments":{"id":"[secret]",'
        r'"n":123456789012345678901234567890,"x":1e400,"args":["--password","[secret]","-v"],'
        r'"token":"[secret]"},"aggregated_output":"DB_PASSWORD=\"[secret]\"\n\"x\""}}'
    )
    plain = b'{ "type": "turn.completed", "usage": {"input_tokens": 1.0} }'
    assert mask_line(plain) == plain.decode()
    assert mask_line(b"not JSON: token=0123456789abcdef") == "not JSON: token=[secret]"


HOSTILE = (
    *("-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\nabc", "eyJ" + "a" * 50),
    *("eyJ.eyJ.", "token=", "://a:", "://", "sk-*", "sk-", "Bearer ", "a=", "key='", 'key=\\"'),
    *("-pa ", "mysql -pa ", "curl -u a:b ", "curl ", "docker login ", "a", "-", "\\", "a_key: "),
    *("password", "authorization: basic ", "cookie: a=", "machine a login b ", "SG.", "1:", "/"),
    *("token=aA1/", "token=/a/", "password: a_", "[secret]", "token: aaaaaaaa_!", "--token "),
)


@pytest.mark.parametrize("piece", HOSTILE)
def test_masking_takes_time_in_proportion_to_the_text(piece: str) -> None:
    """Ten times the text may take up to 40 times as long; quadratic time would take 100 times."""

    def measure(length: int) -> float:
        text = piece * (length // len(piece))
        times: list[float] = []
        for _ in range(3):
            start = time.process_time()
            mask(text)
            times.append(time.process_time() - start)
        return min(times)

    assert measure(200_000) < 40 * max(measure(20_000), 0.002)


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
