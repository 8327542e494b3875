"""Define RunResult, the result of every tool that runs Codex, and make one from a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema

from codex_tools.codex.errors import CodexError, Interrupted, TurnFailed
from codex_tools.codex.json_object import Json, write_exactly
from codex_tools.codex.masking import quote, shorten
from codex_tools.codex.record import Record, Usage
from codex_tools.codex.sandbox import Sandbox
from codex_tools.codex.turn_result import ChangeKind, TurnResult
from codex_tools.runs.open_question import OpenQuestion
from codex_tools.runs.run_changes import RunChanges, shorten_changes
from codex_tools.worktree.changes import SeenBy, merge

RESPONSE_LIMIT = 40_000
"""Maximum characters of `final_response`."""

RESULT_LIMIT = 48_000
"""Maximum characters of a whole result as JSON.

Claude Code saves a tool result of more than 50,000 characters elsewhere and shows the model only
its first 2 KB.
"""

SAID_TWICE = 1000
"""Characters of an answer from which a result has only its parsed form, not its text as well."""

FILES_KEPT = 200
_TEXT_LIMIT = 300

RunStatus = Literal[
    "completed",
    "failed",
    "timed_out",
    "cancelled",
    "running",
    "queued",
    "needs_answer",
    "planned",
]
"""`planned` is the status of a dry run only, and is never stored."""


class ChangedFile(Record):
    """A file that the turn added, updated or deleted."""

    path: str
    kind: Literal["add", "update", "delete"]
    seen_by: Literal["patch", "git", "both"] = "patch"
    """patch: Codex's patches; git: the work tree, with shell commands' changes"""


class RanCommand(Record):
    """A shell command without its output; a long command keeps only its first and last words."""

    command: str
    exit_code: int | None
    status: Literal["in_progress", "completed", "failed"]


class CalledTool(Record):
    """A call of an MCP tool, or of one of Codex's own tools (*server* is null)."""

    server: str | None
    tool: str
    status: Literal["in_progress", "completed", "failed"]


class PlanStep(Record):
    """A step of the model's plan."""

    text: str
    completed: bool


class PlannedTurn(Record):
    """What a dry run would have started; secrets in it are masked."""

    argv: list[str]
    environment: list[str]
    timeout_s: float
    stall_s: float


class RunError(Record):
    """The reason why a run failed, and a hint."""

    kind: str
    message: str
    hint: str
    retryable: bool


class RunResult(Record):
    """The result of a run, final or so far."""

    # pydantic's own `copy` must not be the name of an attribute.
    model_config = ConfigDict(serialize_by_alias=True)

    run_id: str | None
    status: RunStatus
    thread_id: str | None
    """Pass it to codex_resume."""
    final_response: str | None
    structured_output: Any
    usage: Usage | None
    """This turn's tokens, so far while it runs."""
    cost_usd: float | None
    """Estimate; null when unknown"""
    model: str | None
    reasoning_effort: str | None
    sandbox: Sandbox | None
    cwd: str | None
    codex_version: str | None
    place: str = "here"
    """Where it ran."""
    engine: str | None
    """exec or app-server"""
    duration_s: float
    files_changed: list[ChangedFile] = Field(max_length=FILES_KEPT)
    """Net, without the user's own earlier changes."""
    changes: RunChanges | None
    """Null while it runs, and where nobody could look."""
    copy_folder: str | None = Field(alias="copy")
    """The folder that an isolated run worked in."""
    commands: list[RanCommand]
    """The newest 50."""
    command_count: int
    tool_calls: list[CalledTool]
    searches: list[str]
    plan: list[PlanStep]
    warnings: list[str]
    attempts: int
    planned: PlannedTurn | None
    """With dry_run: what would be started; environment has names only."""
    questions: list[OpenQuestion]
    """With needs_answer: what Codex waits for; see codex_answer."""
    error: RunError | None
    next: str
    """Next step."""

    @property
    def has_ended(self) -> bool:
        """True if the run is over, or was only planned."""
        return self.status not in ("running", "queued", "needs_answer")


LooseRun = Annotated[RunResult, WithJsonSchema({"type": "object"}, mode="serialization")]
"""A result whose schema is not repeated, to keep the list of tools short."""


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """The settings that a run really used; None where unknown."""

    model: str | None = None
    reasoning_effort: str | None = None
    sandbox: Sandbox | None = None
    cwd: str | None = None
    codex_version: str | None = None
    can_resume: bool = True
    place: str = "here"


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
    changes: RunChanges | None = None,
    copy: str | None = None,
    duration_s: float = 0.0,
    attempts: int = 0,
    warnings: Sequence[str] = (),
    planned: PlannedTurn | None = None,
    questions: Sequence[OpenQuestion] = (),
    error: CodexError | None = None,
) -> RunResult:
    """Return the bounded result of a run, or of a request that was refused.

    *files* are all changed files; if it is None, the result lists the patched files.
    """
    turn, setting = turn or TurnResult(), setting or EffectiveSettings()
    files = merge(turn.files_changed, None) if files is None else files
    run_error = tell_error(error) if error is not None else None
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
        place=setting.place,
        engine=turn.engine,
        duration_s=round(duration_s, 3),
        files_changed=[
            ChangedFile(path=path, kind=kind, seen_by=seen_by)
            for path, kind, seen_by in files[:FILES_KEPT]
        ],
        changes=changes,
        copy=copy,
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
        planned=planned,
        questions=list(questions),
        error=run_error,
        next="",
    )
    result = with_next(result, can_resume=setting.can_resume)
    return _fitted(result, turn.final_response)


def with_next(result: RunResult, *, can_resume: bool = True) -> RunResult:
    """Return *result* with the next step that its other fields call for."""
    thread_id = result.thread_id if can_resume else None
    error = result.error
    if thread_id is None and error is not None and "codex_resume" in error.hint:
        # The error does not know that Codex kept no thread.
        error = error.model_copy(update={"hint": NO_THREAD})
        result = result.model_copy(update={"error": error})
    following = _next(result.status, result.run_id, thread_id, result.error)
    changes = result.changes
    if result.copy_folder is not None and changes is not None and changes.files:
        following = f"{_next_of_copy(result.run_id, is_applied=changes.applied)} {following}"
    return result.model_copy(update={"next": following.removesuffix(" " + NOTHING_LEFT)})


def refused(error: CodexError) -> RunResult:
    """Return the result of a request that was refused."""
    # An error of a place names it.
    setting = EffectiveSettings(place=str(getattr(error, "place", "here")))
    return make_result("failed", setting=setting, error=error)


def run_uri(run_id: str | None) -> str | None:
    """Return the address of a run's whole result, as the server's resource."""
    return None if run_id is None else f"codex://runs/{run_id}"


def interrupt(result: RunResult, *, can_resume: bool = True) -> RunResult:
    """Return *result* of a running or queued run, changed to that of a run whose server died.

    *can_resume* is False if Codex kept no rollout of the run's thread.
    """
    found = result.model_copy(
        update={"status": "failed", "error": tell_error(Interrupted()), "questions": []}
    )
    return with_next(found, can_resume=can_resume)


def complete(result: RunResult, answer: str) -> RunResult:
    """Return *result* of an interrupted run, changed to one that completed with *answer*."""
    note = "The server process of this run ended. Codex's rollout says that the turn was completed."
    found = result.model_copy(
        update={
            "status": "completed",
            "error": None,
            "questions": [],
            "final_response": shorten(answer, RESPONSE_LIMIT),
            "warnings": [*result.warnings, note],
        }
    )
    return with_next(found)


def read_result(data: object, run_id: str) -> RunResult:
    """Return the result that an older or newer build wrote as *data*, as far as it is readable.

    Unknown fields are dropped. Missing fields, and fields of another type, become empty. An unknown
    status becomes `failed` if there is an error, else `running`, which the caller of this function
    checks.

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
        raise ValueError("too much of the record is unreadable")
    if result.status == fields["status"] == status:
        return result
    note = f"Another version of this server wrote this record, with status {status!r:.40}."
    return result.model_copy(update={"warnings": [*result.warnings, note]})


_REPAIRS = 5
"""Maximum number of repairs of a record: one for each level of nesting, and one more."""


def _repair(fields: Json, problem: ValidationError, empty: Json) -> None:
    """Change the fields that *problem* names in a record, so that the record can be validated."""
    bad_items: dict[str, set[int]] = {}
    for fault in problem.errors(include_url=False):
        name, *rest = fault["loc"]
        if fault["type"] == "extra_forbidden":
            owner: Any = fields
            for part in fault["loc"][:-1]:
                owner = owner[part] if owner is not None else None
            if owner is not None:  # Else another fault has emptied the owner.
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
    """Shorten *result* to at most *limit* characters of JSON, as far as possible.

    In a list of several results, even structured output may be left out. `next` then says how to
    get the whole result.
    """
    result = _fitted(result, result.final_response, limit)
    if _size(result) <= limit:
        return result
    error = result.error and result.error.model_copy(
        update={"message": shorten(result.error.message, 150)}
    )
    whole = f'codex_wait with run_ids ["{result.run_id}"] alone returns the whole result'
    if result.thread_id is not None and "codex_resume" in result.next:
        whole += f'; codex_resume with thread_id "{result.thread_id}" continues the thread'
    result = result.model_copy(update={"error": error, "next": f"{whole}.", "warnings": []})
    if _size(result) > limit:
        result = result.model_copy(update={"structured_output": None})
    return result


def _short(text: str) -> str:
    return quote(text, _TEXT_LIMIT)


def _left_out(files: Sequence[object]) -> list[str]:
    more = len(files) - FILES_KEPT
    return [f"files_changed omits {more} more files."] if more > 0 else []


def _fitted(result: RunResult, response: str | None, limit: int = RESULT_LIMIT) -> RunResult:
    """Shorten *result* to *limit* characters: first cut long lists, then *response*.

    Structured output is never cut, because the caller asked for it.
    """
    if result.structured_output is not None and len(response or "") > SAID_TWICE:
        response = "(see structured_output)"
        result = result.model_copy(update={"final_response": response})
    if _size(result) <= limit:
        return result
    result = result.model_copy(update={"changes": shorten_changes(result.changes, limit // 8)})
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
        # Escapes make JSON longer than its text: cut in proportion, and repeat if needed.
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
"""The lists of a result; True if cutting the list keeps its end, not its beginning."""


def _size(result: RunResult) -> int:
    return len(_json(result.model_dump()))


def _json(value: object) -> str:
    return write_exactly(value, Record.model_dump).decode()


def tell_error(error: CodexError) -> RunError:
    """Return *error* as the Record that callers get."""
    kind, retryable = error.kind, error.retryable
    if isinstance(error, TurnFailed):
        kind, retryable = error.failure.kind, error.failure.retryable
    return RunError(
        kind=kind,
        message=quote(error.message, 4000),
        hint=error.hint,
        retryable=retryable,
    )


NOTHING_LEFT = "Nothing is left to do."
"""The next step after a run that cannot be continued."""

NO_THREAD = "There is no thread to resume; call codex_run again instead."
"""The hint of an error whose own hint is to resume a thread that Codex did not keep."""

FOLLOW_HINT = "Follow the hint of the error."
"""The next step after an error that says what to do."""


def _next(
    status: RunStatus, run_id: str | None, thread_id: str | None, error: RunError | None
) -> str:
    resume = f'codex_resume with thread_id "{thread_id}"' if thread_id else None
    if status in ("running", "queued", "needs_answer"):
        return (
            f'Wait for it with codex_wait and run_ids ["{run_id}"], or stop it with codex_stop. It'
            " ends with the connection that started it."
        )
    if status == "planned":
        return "Nothing was started. Call again without dry_run to start it."
    if error is None:
        return f"To continue this thread, call {resume}." if resume else NOTHING_LEFT
    if error.kind in ("wrong_thread", "context_window_exceeded"):
        return "Begin a new thread with codex_run, as the hint of the error says."
    if resume is None or error.kind in (
        "thread_not_found",
        "thread_busy",
        "queue_full",
        "prompt_too_large",
        "not_allowed",
    ):
        return FOLLOW_HINT
    return f"Follow the hint of the error; to continue this thread, call {resume}."


def _next_of_copy(run_id: str | None, *, is_applied: bool) -> str:
    """Return the next step for the changes of an isolated run."""
    call = f'codex_apply with run_id "{run_id}" and action'
    if is_applied:
        return f'The changes are applied. {call} "discard" deletes the copy.'
    return (
        f'The changes are in a copy only. {call} "check" shows what applying them would do, "apply"'
        ' does it, "discard" drops them.'
    )
