"""Map Codex's error text to an error kind, a hint and whether a retry can help.

The patterns are in `failure_rules.py`. A text that no pattern matches is kept as it is: as
`turn_failed` if Codex reported it, as `not_started` if Codex or the program that starts it wrote
it and ended before the first event. `codex_crashed` is a signal, a panic, or an end without words.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Any, cast

from codex_tools.codex.errors import Failure
from codex_tools.codex.failure_rules import KINDS_BY_CODE, KINDS_BY_STATUS, RULES, START_RULES, Rule
from codex_tools.codex.masking import quote

_READ = 20_000
"""Characters of a longer message that are matched, at each end."""

_UNKNOWN_HINT = (
    "Read Codex's message; no more is known. If it looks transient, continue with codex_resume."
)
_START_HINT = (
    "Another call will end the same way. Correct what the message names; `codex exec` in a terminal"
    " in the same folder shows it too."
)
_CRASH_HINT = (
    "Codex ended without reporting an outcome. Check its work, then continue with codex_resume."
    " `codex doctor` in a terminal may show the cause."
)


def classify(message: str, code: str | None = None) -> Failure:
    """Return the failure that Codex reported as *message*.

    Args:
        message: The text.
        code: Codex's own code, if it gave one. It decides where no pattern matches the text.
    """
    failure = _classify(message) or _by_code(message, code)
    return failure or Failure("turn_failed", _text(message), _UNKNOWN_HINT, False)


def classify_exit(
    returncode: int,
    stderr: str,
    last_error: str | None,
    *,
    started: bool,
    printed: Sequence[str] = (),
) -> Failure:
    """Return the failure of a turn that ended without a terminal event.

    Only a signal, a panic or an end without words is a crash, after which a retry may help.

    Args:
        returncode: Exit code of the process, negative for a signal.
        stderr: The end of its stderr: log lines, and perhaps the reason.
        last_error: Message of the last `error` event, if there was one.
        started: True if Codex sent an event.
        printed: Lines on stdout that are no events. A program that starts Codex may write so.
    """
    said = last_words(stderr) or last_error or ""
    if not started and (shown := last_words("\n".join(printed))):
        said = f"{said}\n{shown}".strip()
    ended = _ended(returncode)
    if "panicked at" not in stderr:
        if not started and (rule := _start_rule(said)) is not None:
            return _not_started(ended, said, rule.hint, retryable=rule.retryable)
        if (failure := _classify(said)) is not None:
            return failure
        # 0.60.1 writes "agent loop died unexpectedly", and the reason only to its log.
        logged = "" if started else _logged_errors(stderr)
        words = f"{said}\n{logged}".strip()
        if (rule := _start_rule(logged)) is not None:
            return _not_started(ended, words, rule.hint, retryable=rule.retryable)
        if said and _signal(returncode) is None:
            if started:
                message = f"Codex ended with {ended} and no result: {said}"
                return Failure("turn_failed", quote(message), _UNKNOWN_HINT, retryable=False)
            return _not_started(ended, words, _START_HINT)
    message = f"Codex ended with {ended} and no result" + (f": {said}" if said else ".")
    return Failure("codex_crashed", quote(message), _CRASH_HINT, retryable=True)


def start_hint(said: str) -> str | None:
    """Return what to do about *said*, the words of a program that could not start Codex."""
    rule = _start_rule(said)
    return None if rule is None else rule.hint


def unasked() -> Failure:
    """Return the failure of a turn that completed without an answer and without a token.

    Codex 0.147.0 to 0.171.0 ends so if a hook stops the prompt (UserPromptSubmit) or the thread
    (SessionStart), and says nothing about it.
    """
    return Failure(
        "not_started",
        "The turn completed without an answer and without using a token: it seems that Codex did"
        " not ask the model.",
        "A hook in Codex's configuration may have stopped the prompt: see `hooks` in CODEX_HOME"
        " and in the project's .codex folder.",
        retryable=False,
    )


def _not_started(ended: str, said: str, hint: str, *, retryable: bool = False) -> Failure:
    message = f"Codex ended with {ended} before it began: {said}"
    return Failure("not_started", quote(message), hint, retryable)


def _ended(returncode: int) -> str:
    if returncode < 0:
        return f"signal {-returncode}"
    number = _signal(returncode)
    return f"exit code {returncode}" + ("" if number is None else f" (signal {number})")


def _signal(returncode: int) -> int | None:
    """Return the signal that ended Codex; None if none did.

    A shell script that starts Codex exits with 128 plus the signal's number.
    """
    number = -returncode if returncode < 0 else returncode - 128
    return number if number in {*signal.Signals} else None


def _plain(message: str) -> str:
    # Codex prints typographic apostrophes since a version between 0.147 and 0.163.
    plain = message.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").strip()
    return plain if len(plain) <= 2 * _READ else plain[:_READ] + plain[-_READ:]


def _start_rule(said: str) -> Rule | None:
    plain = _plain(said)
    return next((rule for rule in START_RULES if rule.pattern.search(plain)), None)


def _classify(message: str) -> Failure | None:
    """Return the failure that *message* names; None if no rule matches."""
    plain = _plain(message)
    for rule in RULES:
        if rule.pattern.search(plain):
            return Failure(rule.kind, _text(message), rule.hint, rule.retryable)
    return None


def _by_code(message: str, code: str | None) -> Failure | None:
    """Return the failure that *code* names, with the hint of the first rule of its kind."""
    name, _, status = (code or "").partition(":")
    kind = KINDS_BY_CODE.get(name) or KINDS_BY_STATUS.get(status)
    if kind is None and status.startswith("5"):
        kind = "overloaded"
    rule = next((rule for rule in RULES if rule.kind == kind), None)
    if kind is None or rule is None:
        return None
    return Failure(kind, _text(message), rule.hint, rule.retryable)


def _text(message: str) -> str:
    text = quote(_inner_message(_plain(message)))
    return text or "Codex reported a failure without a message."


def _inner_message(message: str) -> str:
    """Return the provider's own message if *message* is a JSON error body, else *message*."""
    if not message.startswith("{"):
        return message
    import orjson

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


def _logged_errors(stderr: str) -> str:
    """Return the last three errors that Codex wrote to its log, without time and origin."""
    found: list[str] = []
    for line in _ANSI.sub("", stderr).splitlines():
        if (log := _LOG_LINE.match(line)) is not None and log[1] == "ERROR":
            found.append(line[log.end() :].partition(": ")[2])
    return "\n".join(dict.fromkeys(found[-3:]))
