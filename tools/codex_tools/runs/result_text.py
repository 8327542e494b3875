"""Tell the result of a run as text, for clients that show their model only text.

Gemini CLI 0.61.0, opencode 1.18.33, Continue 1.5.47, openai-agents 0.24.0, LangChain's adapters
0.3.2 and mcp-use 1.7.1 show only the text of a success. Claude Code 2.1.332 shows only the text of
an error.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass

from codex_tools.codex.clean_text import clean, indent_after_first
from codex_tools.codex.masking import shorten
from codex_tools.codex.questions import Question, describe
from codex_tools.runs.open_question import OpenQuestion
from codex_tools.runs.result import (
    FOLLOW_HINT,
    RESULT_LIMIT,
    RunError,
    RunResult,
    run_uri,
)


@dataclass(frozen=True, slots=True)
class Words:
    """A tool's result as text, with what the server needs to send it."""

    text: str
    tail: str | None = None
    """A second text, sent apart so that the first one stays valid JSON."""
    is_error: bool = False
    has_data: bool = True
    """False if the result is sent without structured content."""
    whole_answer: str | None = None
    """Address of the resource with the whole answer; None if the result contains it."""


def words_of(result: RunResult) -> Words:
    """Return a run's result as text: its answer and what a caller needs next, or its error."""
    failed = result.status in ("failed", "timed_out")
    tail = None
    if result.status == "completed" and result.structured_output is not None:
        # Clients join several texts with a line break, or show them one after the other.
        tail = f"{_RULE.lstrip()}{_tail(result, RESULT_LIMIT)}"
        text = _answer(result, RESULT_LIMIT - len(tail))
    elif failed:
        text = error_text(result, warnings=True)
    else:
        text = text_of(result, RESULT_LIMIT)
    uri = run_uri(result.run_id)
    # The address of the run's diff begins in the same way.
    shortened = uri is not None and re.search(rf"{uri}(?!/)", f"{text}{result.final_response}")
    return Words(text, tail, is_error=failed, whole_answer=uri if shortened else None)


def text_of(result: RunResult, limit: int) -> str:
    """Return a run's result as one text of about *limit* characters, whose tail is never cut."""
    if result.error is not None:
        return error_text(result, warnings=True, limit=limit)
    tail = _tail(result, limit)
    return f"{_answer(result, limit - len(tail) - len(_RULE))}{_RULE}{tail}"


_RULE = "\n\n---\n"
"""Stands between the answer and the tail."""


def _answer(result: RunResult, room: int) -> str:
    """Return the answer of a run, or what Codex has said so far, in about *room* characters."""
    if result.status == "completed" and result.structured_output is not None:
        # Not orjson, which fails for integers of more than 64 bits.
        answer = json.dumps(result.structured_output, ensure_ascii=False, separators=(",", ":"))
        return _cut(answer, room, result)
    if result.planned is not None:
        command = shlex.join(result.planned.argv)
        return _cut(f"Dry run: nothing was started. The command would be:\n{command}", room, result)
    said = result.final_response
    if result.status == "completed":
        return "Codex gave no answer." if said is None else _cut(said, room, result)
    state = f"Status: {result.status}. This is not the final result."
    if result.questions:
        state = "\n".join([state, *map(_question_text, result.questions)])
    if not said:
        return state
    return f"{state}\nCodex's latest message:\n{_cut(said, room - 100, result)}"


def _question_text(question: OpenQuestion) -> str:
    asked = Question(
        question.id,
        question.kind,
        question.text,
        question.command,
        question.cwd,
        question.reason,
        tuple(question.files),
        question.diff,
        options=tuple((each.id, tuple(each.labels)) for each in question.options),
    )
    lines = [
        f"{question.id}: {each}" if not n else f"  {each}" for n, each in enumerate(describe(asked))
    ]
    if question.content_schema is not None:
        lines.append(f"  Schema of content: {json.dumps(question.content_schema)}")
    return "\n".join(lines)


def _cut(text: str, room: int, result: RunResult) -> str:
    return shorten(text, max(room, 200), run_uri(result.run_id))


def _tail(result: RunResult, limit: int) -> str:
    """Return the lines below an answer: thread, files, tokens, warnings and the next step."""
    lines = [] if result.thread_id is None else [f"thread_id: {result.thread_id}"]
    so_far = "" if result.has_ended else " so far"
    lines += _files_line(result, so_far, limit)
    if so_far and result.usage is not None:
        lines.append(f"tokens so far: {result.usage.total_tokens:,}")
    lines += _warning_lines(result, limit)
    return "\n".join([*lines, f"Next: {clean(result.next)}"])


_NAMED = 10
"""Maximum number of files, and of warnings, that a text names."""


def _files_line(result: RunResult, so_far: str, limit: int) -> list[str]:
    files = result.files_changed
    if not files:
        return []
    shown: list[str] = []
    room = limit // 5
    for file in files[:_NAMED]:
        text = f"{_one_line(file.path, 500)} ({file.kind})"
        room -= len(text)
        if room < 0 and shown:
            break
        shown.append(text)
    more = f" and {len(files) - len(shown)} more" if len(files) > len(shown) else ""
    where = " in the copy" if result.copy_folder is not None else ""
    lines = [f"files changed{where}{so_far} ({len(files)}): {', '.join(shown)}{more}"]
    if result.changes is not None and result.changes.patch is not None:
        lines.append(f"diff: {result.changes.patch}")
    return lines


def _warning_lines(result: RunResult, limit: int) -> list[str]:
    lines: list[str] = []
    room = limit // 5
    for warning in result.warnings[:_NAMED]:
        text = _one_line(warning, 1000)
        room -= len(text)
        if room < 0 and lines:
            break
        lines.append(f"warning: {text}")
    left = len(result.warnings) - len(lines)
    return [*lines, f"{left} more warnings"] if left else lines


def _one_line(text: str, limit: int) -> str:
    """Return *text* cleaned, on one line, its middle left out above *limit* characters."""
    text = clean(text)
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


def words_of_error(error: RunError) -> Words:
    """Return the text of an error of a request without a run."""
    message = indent_after_first(error.message)
    return Words(f"{error.kind}: {message}\nHint: {clean(error.hint)}", is_error=True)


def error_text(result: RunResult, *, warnings: bool = False, limit: int = RESULT_LIMIT) -> str:
    """Return an error with all that a client needs if it shows its model only this text.

    Args:
        result: The result of a run that did not end well.
        warnings: True to name the warnings too; the tools of `codex mcp-server` had none.
        limit: Maximum characters of the text; only long messages and lists are cut to it.
    """
    lines: list[str] = []
    if result.error is not None:
        again = "yes" if result.error.retryable else "no"
        message = shorten(result.error.message, max(limit // 5, 200))
        lines += [
            f"{result.error.kind}: {indent_after_first(message)}",
            f"Hint: {clean(result.error.hint)}",
            f"Retry unchanged: {again}",
        ]
        if result.next != FOLLOW_HINT:
            lines.append(f"Next: {clean(result.next)}")
    if result.thread_id is not None:
        lines.append(f"thread_id: {result.thread_id}")
    if result.run_id is not None:
        lines.append(f"run_id: {result.run_id}")
    lines += _files_line(result, " so far", limit)
    if warnings:
        lines += _warning_lines(result, limit)
    if result.final_response:
        end = result.final_response[-min(1500, max(limit - sum(map(len, lines)) - 100, 200)) :]
        cut = "…" if len(end) < len(result.final_response) else ""
        lines.append(f"Codex's last message:\n  {indent_after_first(f'{cut}{end}')}")
    return "\n".join(lines)
