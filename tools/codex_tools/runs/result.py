"""RunResult, what every tool that runs Codex answers, and how a turn becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import orjson
from pydantic import Field, ValidationError

from codex_tools.codex.errors import CodexError, Interrupted, TurnFailed
from codex_tools.codex.json_object import Json
from codex_tools.codex.masking import quote, shorten
from codex_tools.codex.record import Record, Usage
from codex_tools.codex.sandbox import Sandbox
from codex_tools.codex.turn_result import ChangeKind, TurnResult
from codex_tools.worktree.changes import SeenBy, merge

RESPONSE_LIMIT = 40_000
"""The most characters of `final_response`."""

RESULT_LIMIT = 48_000
"""The most characters of a whole result as JSON.

Claude Code puts a tool result of more than 50,000 characters aside and shows
the model its first 2 KB.
"""

FILES_KEPT = 200
_TEXT_LIMIT = 300

RunStatus = Literal["completed", "failed", "timed_out", "cancelled", "running", "queued"]


class ChangedFile(Record):
    """A path that differs from what it was before the turn."""

    path: str
    kind: Literal["add", "update", "delete"]
    seen_by: Literal["patch", "git", "both"] = "patch"
    """Codex's patches, or git's work tree, where shell commands show too"""


class RanCommand(Record):
    """A shell command, cut to its first and last words, without its output."""

    command: str
    exit_code: int | None
    status: Literal["in_progress", "completed", "failed"]


class CalledTool(Record):
    """A call of an MCP tool, or of Codex's own (*server* is null)."""

    server: str | None
    tool: str
    status: Literal["in_progress", "completed", "failed"]


class PlanStep(Record):
    """A step of the model's plan."""

    text: str
    completed: bool


class RunError(Record):
    """Why a run failed, and what to do."""

    kind: str
    message: str
    hint: str
    retryable: bool


class RunResult(Record):
    """What a run has come to."""

    run_id: str | None
    status: RunStatus
    thread_id: str | None
    """Give it to codex_resume."""
    final_response: str | None
    structured_output: Any
    usage: Usage | None
    """This turn's tokens."""
    cost_usd: float | None
    """Estimate; null when unknown"""
    model: str | None
    reasoning_effort: str | None
    sandbox: Sandbox | None
    cwd: str | None
    codex_version: str | None
    duration_s: float
    files_changed: list[ChangedFile] = Field(max_length=FILES_KEPT)
    """Net; the user's own earlier changes are not in it."""
    commands: list[RanCommand]
    """The newest 50."""
    command_count: int
    tool_calls: list[CalledTool]
    searches: list[str]
    plan: list[PlanStep]
    warnings: list[str]
    attempts: int
    error: RunError | None
    next: str
    """What to do now."""


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """What a run really ran with; None where that is not known."""

    model: str | None = None
    reasoning_effort: str | None = None
    sandbox: Sandbox | None = None
    cwd: str | None = None
    codex_version: str | None = None
    can_resume: bool = True


def make_result(
    status: RunStatus,
    *,
    run_id: str | None = None,
    turn: TurnResult | None = None,
    usage: Usage | None = None,
    cost_usd: float | None = None,
    structured_output: Any = None,
    setting: EffectiveSettings | None = None,
    files: Sequence[tuple[str, ChangeKind, SeenBy]] | None = None,
    duration_s: float = 0.0,
    attempts: int = 0,
    warnings: Sequence[str] = (),
    error: CodexError | None = None,
) -> RunResult:
    """Return the bounded result of a run, or of a request that was refused.

    *files* are those that changed, by whatever means; without it, the patched ones.
    """
    turn, setting = turn or TurnResult(), setting or EffectiveSettings()
    files = merge(turn.files_changed, None) if files is None else files
    told = tell_error(error) if error is not None else None
    result = RunResult(
        run_id=run_id,
        status=status,
        thread_id=turn.thread_id,
        final_response=None
        if turn.final_response is None
        else shorten(turn.final_response, RESPONSE_LIMIT, run_uri(run_id)),
        structured_output=structured_output,
        usage=usage,
        cost_usd=cost_usd,
        model=setting.model,
        reasoning_effort=setting.reasoning_effort,
        sandbox=setting.sandbox,
        cwd=setting.cwd,
        codex_version=setting.codex_version,
        duration_s=round(duration_s, 3),
        files_changed=[
            ChangedFile(path=path, kind=kind, seen_by=seen_by)
            for path, kind, seen_by in files[:FILES_KEPT]
        ],
        commands=[
            RanCommand(command=_short(c.command), exit_code=c.exit_code, status=c.status)
            for c in turn.commands
        ],
        command_count=turn.command_count,
        tool_calls=[
            CalledTool(server=c.server, tool=c.tool, status=c.status) for c in turn.tool_calls
        ],
        searches=[_short(query) for query in turn.searches],
        plan=[PlanStep(text=_short(text), completed=done) for text, done in turn.plan[:50]],
        warnings=[*turn.warnings, *warnings, *_left_out(files)],
        attempts=attempts,
        error=told,
        next=_next(status, run_id, turn.thread_id if setting.can_resume else None, told),
    )
    return _fitted(result, turn.final_response)


def refused(error: CodexError) -> RunResult:
    """Return the result of a request that was refused."""
    return make_result("failed", error=error)


def run_uri(run_id: str | None) -> str | None:
    """Return the address of a run's whole result, as the server's resource."""
    return None if run_id is None else f"codex://runs/{run_id}"


def interrupt(result: RunResult) -> RunResult:
    """Return *result*, of a run at work, as that of one whose server has died."""
    told = tell_error(Interrupted())
    return result.model_copy(
        update={
            "status": "failed",
            "error": told,
            "next": _next("failed", result.run_id, result.thread_id, told),
        }
    )


def read_result(data: object, run_id: str) -> RunResult:
    """Return the result that an older or newer build wrote as *data*, as far as it can be read.

    A field that this build does not know is left out, one that is missing is empty, and so is one
    whose value has another shape. A status that this build does not know becomes `failed` where
    there is an error, else `running`, which the caller of this function checks.

    Raises:
        ValueError: *data* is not the result of the run *run_id*.
    """
    if not isinstance(data, dict) or cast(Json, data).get("run_id") != run_id:
        raise ValueError("not the record of this run")
    fields = dict(cast(Json, data))
    status = fields.get("status")
    if status not in get_args(RunStatus):
        fields["status"] = "failed" if fields.get("error") else "running"
    empty = make_result("failed").model_dump()
    for _ in range(_REPAIRS):
        try:
            result = RunResult.model_validate(fields)
            break
        except ValidationError as problem:
            _repair(fields, problem, empty)
    else:
        raise ValueError("too much of the record cannot be read")
    if result.status == fields["status"] == status:
        return result
    note = f"Another version of this server wrote this record, with status {status!r:.40}."
    return result.model_copy(update={"warnings": [*result.warnings, note]})


_REPAIRS = 5
"""How often a record is repaired: once for each level of nesting, and once more."""


def _repair(fields: Json, problem: ValidationError, empty: Json) -> None:
    """Change what *problem* names in a record, so that it can be validated."""
    bad_items: dict[str, set[int]] = {}
    for fault in problem.errors(include_url=False):
        name, *rest = fault["loc"]
        if fault["type"] == "extra_forbidden":
            owner: Any = fields
            for part in fault["loc"][:-1]:
                owner = owner[part] if owner is not None else None
            if owner is not None:  # Else it was emptied for another fault.
                owner.pop(fault["loc"][-1], None)
        elif rest and isinstance(rest[0], int):
            bad_items.setdefault(str(name), set()).add(rest[0])
        elif rest == ["retryable"] and name == "error":
            fields["error"] = {**fields["error"], "retryable": False}
        else:
            fields[str(name)] = empty[str(name)]
    for name, bad in bad_items.items():
        # The other items of the list are kept.
        fields[name] = [item for i, item in enumerate(fields[name]) if i not in bad]


def fit(result: RunResult, limit: int) -> RunResult:
    """Return *result* in at most *limit* characters of JSON, as far as that can be.

    Where it stands among others, even structured output may be left out; `next`
    then says how to get it.
    """
    result = _fitted(result, result.final_response, limit)
    if _size(result) <= limit:
        return result
    error = result.error and result.error.model_copy(
        update={"message": shorten(result.error.message, 150)}
    )
    whole = f'codex_wait with run_ids ["{result.run_id}"] alone tells all'
    if result.thread_id is not None:
        whole += f'; codex_resume with thread_id "{result.thread_id}" goes on'
    result = result.model_copy(update={"error": error, "next": f"{whole}.", "warnings": []})
    if _size(result) > limit:
        result = result.model_copy(update={"structured_output": None})
    return result


def _short(text: str) -> str:
    return quote(text, _TEXT_LIMIT)


def _left_out(files: Sequence[object]) -> list[str]:
    more = len(files) - FILES_KEPT
    return [f"files_changed leaves out {more} more files."] if more > 0 else []


def _fitted(result: RunResult, response: str | None, limit: int = RESULT_LIMIT) -> RunResult:
    """Return *result* within *limit*: long lists are cut first, then *response*.

    Structured output is what was asked for and is never cut.
    """
    if _size(result) <= limit:
        return result
    if result.structured_output is not None and response is not None:
        response = "(see structured_output)"  # The same answer; the parsed one is kept.
        result = result.model_copy(update={"final_response": response})
    note = "Lists were cut to fit."
    lists = {name: list(getattr(result, name)) for name in _KEPT_END}
    sizes = {name: len(_json(items)) for name, items in lists.items()}
    while sum(sizes.values()) > limit * 3 // 10 and _size(result) > limit:
        longest = max(sizes, key=sizes.__getitem__)
        half = len(lists[longest]) // 2
        kept = lists[longest][len(lists[longest]) - half :] if _KEPT_END[longest] else None
        lists[longest] = lists[longest][:half] if kept is None else kept
        sizes[longest] = len(_json(lists[longest]))
        result = result.model_copy(update=lists | {"warnings": [*lists["warnings"], note]})
    room = len(result.final_response or "")
    while response and (over := _size(result) - limit) > 0 and room > 200:
        # Escapes make JSON longer than its text: cut in proportion, again if need be.
        room = max(room - over - 100, room * 2 // 3, 200)
        short = shorten(response, room, run_uri(result.run_id))
        result = result.model_copy(update={"final_response": short})
    return result


_KEPT_END = {
    "files_changed": False,
    "commands": True,
    "tool_calls": True,
    "searches": True,
    "plan": False,
    "warnings": True,
}
"""The lists of a result, and whether their end is worth more than their beginning."""


def _size(result: RunResult) -> int:
    return len(_json(result.model_dump()))


def _json(value: object) -> str:
    return orjson.dumps(value, default=Record.model_dump).decode()


def tell_error(error: CodexError) -> RunError:
    """Return *error* as the caller gets it."""
    kind, retryable = error.kind, error.retryable
    if isinstance(error, TurnFailed):
        kind, retryable = error.failure.kind, error.failure.retryable
    return RunError(
        kind=kind,
        message=quote(error.message, 4000),
        hint=error.hint,
        retryable=retryable,
    )


@dataclass(frozen=True, slots=True)
class Words:
    """A tool's result as text, and how the server must send it."""

    text: str
    is_error: bool = False
    has_data: bool = True
    """False if the result is sent without structured content."""
    whole_answer: str | None = None
    """Address of the resource that holds what was cut out of the result, if something was."""


def words_of(result: RunResult) -> Words:
    """Return a run's result as text: its answer, or why it failed."""
    uri = run_uri(result.run_id)
    whole = uri if uri is not None and uri in (result.final_response or "") else None
    if result.status in ("failed", "timed_out"):
        return Words(error_text(result), is_error=True, whole_answer=whole)
    return Words(result.final_response or result.next, whole_answer=whole)


def words_of_error(error: RunError) -> Words:
    """Return the text of an error that came without a run."""
    return Words(f"{error.kind}: {error.message}\nHint: {error.hint}", is_error=True)


def error_text(result: RunResult) -> str:
    """Return all that a caller needs who sees nothing but this text."""
    lines: list[str] = []
    if result.error is not None:
        again = "yes" if result.error.retryable else "no"
        lines += [
            f"{result.error.kind}: {result.error.message}",
            f"Hint: {result.error.hint}",
            f"Worth trying again as it is: {again}",
        ]
    if result.thread_id is not None:
        lines.append(f"thread_id: {result.thread_id}")
    if result.run_id is not None:
        lines.append(f"run_id: {result.run_id}")
    if result.files_changed:
        paths = ", ".join(f"{f.path} ({f.kind})" for f in result.files_changed[:10])
        lines.append(f"files changed by then ({len(result.files_changed)}): {paths}")
    if result.final_response:
        end = result.final_response[-1500:]
        cut = "…" if len(end) < len(result.final_response) else ""
        lines.append(f"Codex's last message:\n{cut}{end}")
    return "\n".join(lines)


def _next(
    status: RunStatus, run_id: str | None, thread_id: str | None, error: RunError | None
) -> str:
    resume = f'codex_resume with thread_id "{thread_id}"' if thread_id else None
    if status in ("running", "queued"):
        return f'Wait for it with codex_wait and run_ids ["{run_id}"], or stop it with codex_stop.'
    if error is None:
        return f"To continue this thread, call {resume}." if resume else "Nothing is left to do."
    if error.kind in ("wrong_thread", "context_window_exceeded"):
        return "Begin a new thread with codex_run, as the hint of the error says."
    if resume is None and "codex_resume" in error.hint:
        # The error does not know that Codex kept no thread.
        return "There is no thread to resume; call codex_run again instead."
    if resume is None or error.kind in ("thread_not_found", "thread_busy", "prompt_too_large"):
        return "Follow the hint of the error."
    return f"Follow the hint of the error; to continue this thread, call {resume}."
