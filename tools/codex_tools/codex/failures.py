"""Map Codex's error text to an error kind, a hint and whether a retry can help.

Codex has no error codes. It prints sentences, which change with each version, and passes on the
provider's JSON. All patterns below match texts of real binaries, 0.60.1 to 0.169.0. A text that
no pattern matches is kept as it is: as `turn_failed`, or as `codex_crashed` if there was no
terminal event.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import orjson

from codex_tools.codex.errors import Failure, Kind
from codex_tools.codex.masking import quote


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: Kind
    pattern: re.Pattern[str]
    hint: str
    retryable: bool = False


def _rule(kind: Kind, pattern: str, hint: str, *, retryable: bool = False) -> _Rule:
    return _Rule(kind, re.compile(pattern, re.IGNORECASE), hint, retryable)


_RULES = (
    _rule(
        "usage_limit",
        r"hit your usage limit|usage_limit_reached|quota exceeded|insufficient_quota"
        r"|usage_not_included|out of credits|spend(ing)? (limit|cap)",
        "The account's allowance is used up; a retry now will fail. Wait until the time that the"
        " message names, or use another account or model.",
    ),
    _rule(
        "context_window_exceeded",
        r"ran out of room in the model's context|context_length_exceeded|context window"
        r"|maximum context length",
        "Begin a new thread with codex_run, and give it only what the task needs.",
    ),
    _rule(
        "prompt_too_large",
        r"exceeds the maximum length of \d+ characters|input_too_large",
        "Shorten the prompt: put the material into files inside cwd and name the files.",
    ),
    _rule(
        "invalid_output_schema",
        r"invalid schema for response_format|invalid_json_schema|output schema file",
        "Correct output_schema. The provider accepts only strict schemas: every object needs"
        " additionalProperties: false and all its properties in required.",
    ),
    _rule(
        "refused",
        r"^invalid prompt\b|invalid_prompt|before completion: invalid prompt|content[_ ]policy"
        r"|content[_ ]filter|usage policy|cyber_policy|flagged",
        "The provider declined the request under its policy. Rephrase the request, or drop it.",
    ),
    _rule(
        "model_unavailable",
        r"model_not_found|model .{1,80}(does not exist|is not supported|not available|not found)"
        r"|do not have access to it",
        "Leave model out to use Codex's default, or name one that this account can use.",
    ),
    _rule(
        "not_authenticated",
        r"status:? 40[13]\b|401 unauthorized|403 forbidden|invalid_api_key|incorrect api key"
        r"|not logged in|log ?in again|refresh token|token (has )?expired"
        r"|missing environment variable|authentication",
        "Run `codex login` in a terminal, or put the provider's key into this server's"
        " environment. Then call again.",
    ),
    _rule(
        "overloaded",
        r"server_is_overloaded|at capacity|experiencing high demand|overloaded"
        r"|status:? 5\d\d\b|internal server error|bad gateway|service unavailable",
        "The provider is overloaded. Call again in a minute, or name another model.",
        retryable=True,
    ),
    _rule(
        "rate_limited",
        r"status:? 429\b|429 too many requests|rate[_ ]limit",
        "Wait a moment and call again. Run fewer calls at once.",
        retryable=True,
    ),
    _rule(
        "thread_busy",
        r"already has an active writer",
        "Another process is writing to this thread. Wait until that process has ended, then call"
        " again.",
        retryable=True,
    ),
    _rule(
        "thread_not_found",
        r"no rollout found for thread|no saved session found|session not found",
        "Check the thread_id, or begin a new thread with codex_run.",
    ),
    _rule(
        "untrusted_directory",
        r"not inside a trusted directory",
        "By default, Codex works only inside git repositories. Set cwd to a folder inside one, or"
        " set skip_git_repo_check: true to work in this folder.",
    ),
    _rule(
        "bad_config",
        r"error loading config|error finding codex home|codex_home points|toml parse error"
        r"|config profile .{1,80} not found|required mcp servers failed|failed to parse config"
        r"|no longer supported; remove this setting",
        "Correct Codex's own configuration at the place that the message names.",
    ),
    _rule(
        "codex_unsupported",
        r"error: unexpected argument|unrecognized subcommand|requires a newer version of codex",
        "The installed Codex is too old for an option or model. Update Codex: npm install -g"
        " @openai/codex.",
    ),
    _rule(
        "codex_not_found",
        r"^cannot run .* in ",  # Written by guard.py, not by Codex.
        "Check both paths: the program or the folder no longer exists, or access is denied.",
    ),
    _rule(
        "network",
        r"connection failed|error sending request|dns error|failed to lookup address"
        r"|waiting for network|stream disconnected|stream closed before|connection (reset|refused)"
        r"|idle timeout waiting for sse|timed? ?out|tls handshake|reconnecting\.\.\.",
        "The provider could not be reached, or the connection broke. Check the network, then"
        " continue with codex_resume.",
        retryable=True,
    ),
    _rule(
        "invalid_request",
        r"invalid_request_error|status:? 4\d\d\b|400 bad request",
        "Change the request as the message says; the provider rejected it.",
    ),
)

_READ = 20_000
"""Characters of a longer message that are matched, at each end."""

_UNKNOWN_HINT = (
    "Read Codex's message; no more is known. If it looks transient, continue with codex_resume."
)
_CRASH_HINT = (
    "Codex ended without reporting an outcome. Check its work, then continue with codex_resume."
    " `codex doctor` in a terminal may show the cause."
)


def classify(message: str) -> Failure:
    """Return the failure that Codex reported as *message*."""
    return _classify(message, "turn_failed", _UNKNOWN_HINT)


def classify_exit(returncode: int, stderr: str, last_error: str | None) -> Failure:
    """Return the failure of a turn that ended without a terminal event.

    Args:
        returncode: Exit code of the process, negative for a signal.
        stderr: The end of its stderr: log lines, and perhaps the reason.
        last_error: Message of the last `error` event, if there was one.
    """
    said = last_words(stderr) or last_error or ""
    if "panicked at" not in stderr:
        failure = _classify(said, "codex_crashed", _CRASH_HINT)
        if failure.kind != "codex_crashed":
            return failure
    how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    message = f"Codex ended with {how} and no result" + (f": {said}" if said else ".")
    return Failure("codex_crashed", quote(message), _CRASH_HINT, retryable=True)


def _classify(message: str, otherwise: Kind, hint: str) -> Failure:
    # Codex prints typographic apostrophes since a version between 0.147 and 0.163.
    plain = message.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").strip()
    if len(plain) > 2 * _READ:
        plain = plain[:_READ] + plain[-_READ:]
    text = quote(_inner_message(plain))
    for rule in _RULES:
        if rule.pattern.search(plain):
            return Failure(rule.kind, text, rule.hint, rule.retryable)
    return Failure(otherwise, text or "Codex reported a failure without a message.", hint, False)


def _inner_message(message: str) -> str:
    """Return the provider's own message if *message* is a JSON error body, else *message*."""
    if not message.startswith("{"):
        return message
    try:
        body = orjson.loads(message)
    except orjson.JSONDecodeError:
        return message
    error = cast(dict[str, Any], body).get("error") if isinstance(body, dict) else None
    inner = cast(dict[str, Any], error).get("message") if isinstance(error, dict) else None
    return inner if isinstance(inner, str) and inner else message


_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z?\s+(TRACE|DEBUG|INFO|WARN|ERROR)\b")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_NOISE = (
    "Reading prompt from stdin",
    "Reading additional input from stdin",
    "warning:",
    "WARNING:",
)


def last_words(stderr: str) -> str:
    """Return the last 12 lines of *stderr* that Codex wrote for a reader, without log lines."""
    kept: list[str] = []
    for line in _ANSI.sub("", stderr).splitlines():
        if line.startswith("Stack backtrace"):
            break
        if line.strip() and not _LOG_LINE.match(line) and not line.startswith(_NOISE):
            kept.append(line.rstrip())
    return "\n".join(kept[-12:])
