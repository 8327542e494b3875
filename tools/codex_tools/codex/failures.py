"""What Codex said -> a kind, a hint, retryable or not.

Codex has no error codes: it prints sentences, which change with each version,
and passes on the provider's JSON. The patterns below were all seen on real
binaries, 0.60.1 to 0.169.0. What none of them matches keeps Codex's own words
and is `turn_failed`, or `codex_crashed` if there was no terminal event.
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
        "The account's allowance is used up. Wait until the time that the message names, or use"
        " another account or model; trying again now will fail.",
    ),
    _rule(
        "context_window_exceeded",
        r"ran out of room in the model's context|context_length_exceeded|context window"
        r"|maximum context length",
        "Begin a new thread with codex_run and give it only what it needs.",
    ),
    _rule(
        "prompt_too_large",
        r"exceeds the maximum length of \d+ characters|input_too_large",
        "Put the material into files inside cwd and name them in the prompt.",
    ),
    _rule(
        "invalid_output_schema",
        r"invalid schema for response_format|invalid_json_schema|output schema file",
        "The provider takes only strict schemas: every object needs additionalProperties: false"
        " and all its properties in required. Correct output_schema.",
    ),
    _rule(
        "refused",
        r"^invalid prompt\b|invalid_prompt|before completion: invalid prompt|content[_ ]policy"
        r"|content[_ ]filter|usage policy|cyber_policy|flagged",
        "The provider declined the request on policy grounds. Put it in other words, or leave it.",
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
        "Run `codex login` in a terminal, or give the provider's key in the environment of this"
        " server; then call again.",
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
        "Wait a moment and call again; run fewer calls at once.",
        retryable=True,
    ),
    _rule(
        "thread_busy",
        r"already has an active writer",
        "Another process is at work in this thread. Wait until it has ended, then call again.",
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
        "Codex works only inside git repositories unless told otherwise: give a cwd inside one,"
        " or set skip_git_repo_check: true if you mean this folder.",
    ),
    _rule(
        "bad_config",
        r"error loading config|error finding codex home|codex_home points|toml parse error"
        r"|config profile .{1,80} not found|required mcp servers failed|failed to parse config"
        r"|no longer supported; remove this setting",
        "Codex's own configuration is at fault; correct it at the place that the message names.",
    ),
    _rule(
        "codex_unsupported",
        r"error: unexpected argument|unrecognized subcommand|requires a newer version of codex",
        "The installed Codex does not know an option. Update it: npm install -g @openai/codex.",
    ),
    _rule(
        "codex_not_found",
        r"^cannot run .* in ",  # Said by guard.py, not by Codex.
        "The program or the folder went away, or may not be used. Check both paths.",
    ),
    _rule(
        "network",
        r"connection failed|error sending request|dns error|failed to lookup address"
        r"|waiting for network|stream disconnected|stream closed before|connection (reset|refused)"
        r"|idle timeout waiting for sse|timed? ?out|tls handshake|reconnecting\.\.\.",
        "The provider could not be reached, or the connection broke. Check the network and call"
        " again with codex_resume.",
        retryable=True,
    ),
    _rule(
        "invalid_request",
        r"invalid_request_error|status:? 4\d\d\b|400 bad request",
        "The provider rejected the request; the message says why.",
    ),
)

_READ = 20_000
"""Characters of a message that are read, at either end."""

_UNKNOWN_HINT = (
    "Codex's message above is all that is known. If it looks transient, continue with codex_resume."
)
_CRASH_HINT = (
    "Codex ended without saying how the turn went. Check its work, then continue with codex_resume;"
    " `codex doctor` in a terminal may tell more."
)


def classify(message: str) -> Failure:
    """Return the failure that Codex reported as *message*."""
    return _classify(message, "turn_failed", _UNKNOWN_HINT)


def classify_exit(returncode: int, stderr: str, last_error: str | None) -> Failure:
    """Return the failure behind an end without a terminal event.

    Args:
        returncode: Exit code of the process, negative for a signal.
        stderr: The end of what it wrote there: logs, and perhaps the reason.
        last_error: The last `error` event, if there was one.
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
    # Typographic apostrophes came in between 0.147 and 0.163.
    plain = message.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").strip()
    if len(plain) > 2 * _READ:
        plain = plain[:_READ] + plain[-_READ:]
    text = quote(_inner_message(plain))
    for rule in _RULES:
        if rule.pattern.search(plain):
            return Failure(rule.kind, text, rule.hint, rule.retryable)
    return Failure(otherwise, text or "Codex reported a failure without a message.", hint, False)


def _inner_message(message: str) -> str:
    """Return the provider's own message where all of *message* is its JSON body."""
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
    """Return what Codex wrote to *stderr* for a reader, without its log lines."""
    kept: list[str] = []
    for line in _ANSI.sub("", stderr).splitlines():
        if line.startswith("Stack backtrace"):
            break
        if line.strip() and not _LOG_LINE.match(line) and not line.startswith(_NOISE):
            kept.append(line.rstrip())
    return "\n".join(kept[-12:])
