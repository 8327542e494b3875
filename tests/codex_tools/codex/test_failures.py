"""What Codex says when it fails, in the contract's words; its secrets masked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from codex_tools.codex.events import TurnFailedEvent, parse_event
from codex_tools.codex.failure_rules import KINDS_BY_CODE, KINDS_BY_STATUS, RULES
from codex_tools.codex.failures import classify, classify_exit, last_words, unasked


def body(message: str, **more: str | None) -> str:
    return json.dumps({"error": {"message": message, "param": None} | more})


NO_MODEL = "The model `bad-model` does not exist or you do not have access to it."
LIMIT = "hit your usage limit. Upgrade to Pro (https://chatgpt.com/explore/pro), visit"

# What Codex said, the kind it is, whether calling again as it is makes sense.
SAID = [
    # 0.60.1
    (f"unexpected status 400 Bad Request: {body('No.')}", "invalid_request", False),
    ("exceeded retry limit, last status: 401 Unauthorized", "not_authenticated", False),
    (f"unexpected status 403 Forbidden: {body('No.')}", "not_authenticated", False),
    (f"unexpected status 404 Not Found: {body(NO_MODEL)}", "model_unavailable", False),
    ("exceeded retry limit, last status: 429 Too Many Requests", "rate_limited", True),
    ("We're currently experiencing high demand, which may cause errors.", "overloaded", True),
    ("exceeded retry limit, last status: 503 Service Unavailable", "overloaded", True),
    ("exceeded retry limit, last status: 503", "overloaded", True),
    ("exceeded retry limit, last status: 500 Internal Server Error", "overloaded", True),
    (f"You've {LIMIT} again at Jan 1st, 2030 12:00 AM.", "usage_limit", False),
    ("Quota exceeded. Check your plan and billing details.", "usage_limit", False),
    (
        "Codex ran out of room in the model's context window. Start a new conversation or clear"
        " earlier history before retrying.",
        "context_window_exceeded",
        False,
    ),
    ("stream disconnected before completion: Invalid prompt: it was flagged.", "refused", False),
    ("stream closed before response.completed", "network", True),
    (
        "stream disconnected before completion: Rate limit reached for gpt-5. Please try again in"
        " 0.5s.",
        "rate_limited",
        True,
    ),
    (
        "Connection failed: error sending request for url (http://127.0.0.1:1/v1/responses)",
        "network",
        True,
    ),
    ("stream disconnected before completion: idle timeout waiting for SSE", "network", True),
    # 0.98.0 to 0.169.0
    (body("The model `nope` cannot.", type="invalid_request_error"), "invalid_request", False),
    (
        "unexpected status 401 Unauthorized: Incorrect API key provided: sk-xxx., url:"
        " http://127.0.0.1:8200/v1/responses",
        "not_authenticated",
        False,
    ),
    ("unexpected status 403 Forbidden: No., url: http://127.0.0.1:1", "not_authenticated", False),
    (NO_MODEL, "model_unavailable", False),
    ("The model does not exist", "model_unavailable", False),  # 0.171.0 adds no status.
    ("unexpected status 404 Not Found: Model not found, url: x", "model_unavailable", False),
    ("Selected model is at capacity. Please try a different model.", "overloaded", True),
    ("We\u2019re currently experiencing high demand, which may cause errors.", "overloaded", True),
    (f"You\u2019ve {LIMIT} again at Jan 1st, 2030 12:00 AM.", "usage_limit", False),
    (
        "Codex ran out of room in the model\u2019s context window. Start a new thread or clear"
        " earlier history before retrying.",
        "context_window_exceeded",
        False,
    ),
    ("Invalid prompt: it was flagged as potentially violating our policy.", "refused", False),
    ("Incomplete response returned, reason: max_output_tokens", "turn_failed", False),
    ("Incomplete response returned, reason: content_filter", "refused", False),
    (
        "Reconnecting... 2/5 (stream disconnected before completion: failed to lookup address"
        " information: Temporary failure in name resolution)",
        "network",
        True,
    ),
    ("Reconnecting... waiting for network (error sending request)", "network", True),
    # The provider's body, raw
    (body("No.", code="invalid_json_schema"), "invalid_output_schema", False),
    (body("Slow down.", type="requests", code="rate_limit_exceeded"), "rate_limited", True),
    (body("x", type="insufficient_quota", code="insufficient_quota"), "usage_limit", False),
    (body("x", code="context_length_exceeded"), "context_window_exceeded", False),
    (body("x", code="invalid_api_key"), "not_authenticated", False),
    (body("x", code="server_is_overloaded"), "overloaded", True),
    # Nothing of it is known
    ("The turn met something new.", "turn_failed", False),
    ("", "turn_failed", False),
]  # fmt: skip


@pytest.mark.parametrize(("said", "kind", "retryable"), SAID)
def test_what_codex_says_has_a_kind(said: str, kind: str, retryable: bool) -> None:
    failure = classify(said)
    assert (failure.kind, failure.retryable) == (kind, retryable)
    assert failure.message
    assert failure.hint


def test_the_message_is_codex_s_own_and_a_raw_body_is_unwrapped() -> None:
    assert classify(" It met something new.\n").message == "It met something new."
    assert classify(body(NO_MODEL)).message == NO_MODEL
    for odd in ("{not json", '{"error":"text"}', '{"error":{"message":7}}', '{"detail":"x"}', "[]"):
        assert classify(odd).message == odd
    assert classify("").message == "Codex reported a failure without a message."


BACKTRACE = "\n\nStack backtrace:\n   0: <unknown>\n   1: rate_limit\n   2: <unknown>\n"
USAGE = "\n\nUsage: codex exec [OPTIONS] [PROMPT]\n\nFor more information, try '--help'.\n"
FAILED = "Error: thread/resume: thread/resume failed: "
GONE = "no rollout found for thread id 00000000-0000-0000-0000-000000000000 (code -32600)"
LOG = "2026-11-22T15:33:04.246003Z ERROR codex_core::models_manager: stream disconnected\n"

STDERR = [
    ("Not inside a trusted directory and --skip-git-repo-check was not specified.\n", 1,
     "untrusted_directory"),
    (f"{FAILED}{GONE}{BACKTRACE}", 1, "thread_not_found"),
    (f"{FAILED}thread 01a2 already has an active writer (code -32600){BACKTRACE}", 1,
     "thread_busy"),
    (f"error: unexpected argument '--no-such-flag' found{USAGE}", 2, "codex_unsupported"),
    ("Error loading config.toml: TOML parse error at line 1, column 9\n", 1, "bad_config"),
    ("Error loading config.toml: unknown variant `x`, expected one of `a`, `b`\n", 1, "bad_config"),
    (
        'Error: approval_policy = "untrusted" is no longer supported; remove this setting\n',
        1,
        "bad_config",
    ),
    ("Error finding codex home: No such file or directory (os error 2)\n", 1, "bad_config"),
    ('Error: CODEX_HOME points to "/x", but that path does not exist\n', 1, "bad_config"),
    ("Output schema file /x/s.json is not valid JSON: expected value\n", 1,
     "invalid_output_schema"),
    ("Failed to read output schema file /x/s.json: No such file or directory (os error 2)\n", 1,
     "invalid_output_schema"),
    ("Error: Input exceeds the maximum length of 1048576 characters. (code -32602), data:"
     ' {"input_error_code":"input_too_large"}\n', 1, "prompt_too_large"),
    ("cannot run /x/codex in /y: No such file or directory\n", 127, "codex_not_found"),
    ("No prompt provided via stdin.\n", 1, "not_started"),
    (LOG, 1, "codex_crashed"),
    ("thread 'main' panicked at tui/src/lib.rs:1:2:\nat capacity\n", 101, "codex_crashed"),
    ("", 0, "codex_crashed"),
]  # fmt: skip


DATA = Path(__file__).parents[2] / "data"
MESSAGES = json.loads((DATA / "messages.json").read_text())
"""Texts of Codex and of programs that start it, as docs/errors.md shows them."""


@pytest.mark.parametrize(
    "row", MESSAGES, ids=[f"{number}-{row['kind']}" for number, row in enumerate(MESSAGES)]
)
def test_each_message_of_the_table_has_its_kind(row: dict[str, Any]) -> None:
    said, started = row["said"], row.get("started", False)
    match row["by"]:
        case "event":
            failure = classify(said)
        case "stderr":
            failure = classify_exit(row["exit"], said, None, started=started)
        case _:
            failure = classify_exit(row["exit"], "", None, started=started, printed=[said])
    assert (failure.kind, failure.retryable) == (row["kind"], row["retryable"])
    assert failure.hint
    if failure.kind == "not_started":
        assert f"exit code {row['exit']}" in failure.message


def test_the_table_of_messages_is_large_and_names_its_sources() -> None:
    real = [row for row in MESSAGES if row["source"] != "fake"]
    assert len(real) >= 60
    for row in real:
        for source in row["source"].split(", "):
            assert re.fullmatch(r"\d+\.\d+\.\d+|[\w-]+/[\w-]+#\d+( \(\d+\.\d+\.\d+\))?", source)


@pytest.mark.parametrize(("stderr", "exit_code", "kind"), STDERR)
def test_an_end_without_a_result_has_a_kind_by_its_stderr(
    stderr: str, exit_code: int, kind: str
) -> None:
    failure = classify_exit(exit_code, stderr, None, started=False)
    assert failure.kind == kind
    assert "<unknown>" not in failure.message
    assert "models_manager" not in failure.message


def test_a_crash_tells_how_codex_ended_and_what_it_said_last() -> None:
    panic = classify_exit(
        101, "thread 'main' panicked at lib.rs:1:2:\nindex out of bounds\n", "x", started=True
    )
    assert panic.message == (
        "Codex ended with exit code 101 and no result: thread 'main' panicked at lib.rs:1:2:\n"
        "index out of bounds"
    )
    assert panic.retryable
    killed = "Codex ended with signal 9 and no result."
    assert (
        classify_exit(-9, f"Reading prompt from stdin...\n{LOG}", None, started=True).message
        == killed
    )


def test_the_last_error_event_counts_where_stderr_says_nothing() -> None:
    lost = classify_exit(-15, LOG, "Reconnecting... 3/5 (stream disconnected)", started=True)
    assert (lost.kind, lost.retryable) == ("network", True)
    assert lost.message == "Reconnecting... 3/5 (stream disconnected)"


NEW = "Error: something new"


@pytest.mark.parametrize(
    ("exit_code", "stderr", "started", "kind", "retryable"),
    [
        (1, NEW, False, "not_started", False),
        (0, NEW, False, "not_started", False),
        (255, NEW, False, "not_started", False),
        (1, NEW, True, "turn_failed", False),
        (-9, NEW, False, "codex_crashed", True),
        (137, NEW, False, "codex_crashed", True),  # A shell's word for signal 9.
        (139, NEW, True, "codex_crashed", True),
        (101, f"thread 'main' panicked at x.rs:1:2:\n{NEW}", False, "codex_crashed", True),
        (1, "", False, "codex_crashed", True),
        (0, LOG, True, "codex_crashed", True),
        (1, "Error: database is locked", False, "not_started", True),
        (1, "Error: database is locked", True, "turn_failed", False),
    ],
)
def test_only_a_signal_a_panic_or_an_end_without_words_is_a_crash(
    exit_code: int, stderr: str, started: bool, kind: str, retryable: bool
) -> None:
    failure = classify_exit(exit_code, stderr, None, started=started)
    assert (failure.kind, failure.retryable) == (kind, retryable)


def test_all_that_a_wrapper_wrote_is_in_the_message() -> None:
    failure = classify_exit(126, "on stderr\n", None, started=False, printed=["one", "two"])
    assert failure.message == "Codex ended with exit code 126 before it began: on stderr\none\ntwo"
    # After the first event, a line that is none is not about the start.
    late = classify_exit(1, "on stderr\n", None, started=True, printed=["one"])
    assert late.message == "Codex ended with exit code 1 and no result: on stderr"


def test_the_reason_is_taken_from_the_log_where_the_words_do_not_name_it() -> None:
    words = "Error: internal error; agent loop died unexpectedly\n"
    log = (
        "2026-11-28T17:38:05.395646Z ERROR codex_core::codex: Failed to create session: failed to"
        " initialize rollout recorder: Read-only file system (os error 30)\n"
    )
    failure = classify_exit(1, log + words, None, started=False)
    assert failure.kind == "not_started"
    assert "Read-only file system" in failure.message
    assert "CODEX_HOME" in failure.hint
    assert classify_exit(1, log + words, None, started=True).kind == "turn_failed"


def test_a_turn_that_asked_no_model_names_hooks() -> None:
    assert (unasked().kind, unasked().retryable) == ("not_started", False)
    assert "hook" in unasked().hint


def test_last_words_are_the_end_of_what_was_meant_for_a_reader() -> None:
    stderr = (
        "Reading additional input from stdin...\nwarning: Untrusted configuration\n\n"
        + "".join(f"line {number}  \n" for number in range(20))
        + "\x1b[2m2026-11-22T15:33:04.246003Z\x1b[0m \x1b[31mERROR\x1b[0m codex_core: noise\n"
        + "Stack backtrace:\n   0: <unknown>\n"
    )
    assert last_words(stderr) == "\n".join(f"line {number}" for number in range(8, 20))


def test_every_failure_is_masked_and_bounded() -> None:
    secret = "sk-proj-abcdefghijklmnop"
    for failure in (
        classify(f"new: {secret}"),
        classify(body(f"Incorrect API key provided: {secret}.")),
        classify_exit(1, f"panicked at {secret}", None, started=False),
        classify_exit(1, "", secret, started=True),
        classify_exit(1, secret, None, started=False),
        classify_exit(1, "", None, started=False, printed=[secret]),
    ):
        assert "sk-proj" not in failure.message
        assert "[secret]" in failure.message
    assert len(classify("x" * 100_000).message) == 2000
    assert len(classify_exit(1, "x" * 100_000, None, started=False).message) == 2000


def test_no_part_of_a_secret_outlives_the_cut_of_a_long_message() -> None:
    secret = "sk-proj-" + "Q7" * 60
    for start in range(1000, 1600, 7):
        message = classify("a " * (start // 2) + secret + " z" * 2000).message
        assert "Q7Q7" not in message
    for end in range(500, 800, 7):
        message = classify("a " * 2000 + secret + " z" * (end // 2)).message
        assert "Q7Q7" not in message


@pytest.mark.parametrize(
    ("info", "kind"),
    [
        ("usageLimitExceeded", "usage_limit"),
        ("cyberPolicy", "refused"),
        ({"httpConnectionFailed": {"httpStatusCode": 401}}, "not_authenticated"),
        ({"responseTooManyFailedAttempts": {"httpStatusCode": 429}}, "rate_limited"),
        ({"responseStreamConnectionFailed": {"httpStatusCode": 502}}, "overloaded"),
        ({"responseStreamDisconnected": {"httpStatusCode": None}}, "turn_failed"),
        ({"responseStreamDisconnected": "cut"}, "turn_failed"),
        ({"a": {}, "b": {}}, "turn_failed"),
        ("other", "turn_failed"),
        ("aCodeOfTomorrow", "turn_failed"),
        (7, "turn_failed"),
        (None, "turn_failed"),
    ],
)
def test_codex_s_own_code_decides_where_the_text_says_nothing(info: object, kind: str) -> None:
    error = {"message": "it went wrong", "codex_error_info": info}
    event = parse_event(json.dumps({"type": "turn.failed", "error": error}).encode())
    assert isinstance(event, TurnFailedEvent)
    failure = classify(event.message, event.code)
    assert (failure.kind, failure.message) == (kind, "it went wrong")
    assert failure.hint


def test_a_text_with_a_pattern_is_more_exact_than_a_code() -> None:
    said = "You've hit your usage limit."
    assert classify(said, "rateLimitExceeded") == classify(said)


def test_each_kind_of_a_code_has_a_hint() -> None:
    known = {rule.kind for rule in RULES}
    assert {*KINDS_BY_CODE.values(), *KINDS_BY_STATUS.values()} <= known
