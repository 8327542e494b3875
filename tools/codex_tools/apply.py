"""Define codex_apply: bring the changes of an isolated run to the person's folder, or drop them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from codex_tools.codex.clean_text import clean
from codex_tools.codex.errors import CodexError, InvalidArguments, NotAllowed
from codex_tools.codex.paths import in_roots
from codex_tools.codex.record import Record
from codex_tools.codex.run_errors import UnknownRun
from codex_tools.codex.workers import on_disk
from codex_tools.runs.applying import (
    Applied,
    AppliedFile,
    ApplyAction,
    ApplyConflict,
    RunChangesKept,
)
from codex_tools.runs.result import RunError, RunResult, tell_error
from codex_tools.runs.result_text import Words, words_of_error
from codex_tools.runs.sites import HERE
from codex_tools.tool import Context, Tool, lines_of
from codex_tools.turn_options import Paths

FILES_LIMIT = 200
"""Maximum number of files in a result; those with a conflict come first."""

_NAMED = 20
"""Maximum number of files that a text names."""


class ApplyRequest(Record):
    """The arguments of codex_apply."""

    run_id: str
    action: ApplyAction
    """check: change nothing; apply: write into the person's folder; branch: commit to a new branch,
    no checkout; discard: delete the copy"""
    paths: Paths | None = None
    """Only these files or folders"""
    branch: str | None = Field(None, max_length=200)
    """Name of the new branch"""

    @model_validator(mode="after")
    def _goes_together(self) -> ApplyRequest:
        if (self.action == "branch") != (self.branch is not None):
            raise ValueError("branch: required with action branch, and only with it")
        if self.action == "discard" and self.paths is not None:
            raise ValueError("paths: cannot be combined with action discard")
        return self


class ApplyResult(Record):
    """What became of the changes of a run."""

    run_id: str | None
    action: ApplyAction | None
    applied: bool
    """True if these changes are in the person's folder."""
    files: list[AppliedFile]
    """Relative to the project; conflicts first, at most 200."""
    branch: str | None
    commit: str | None
    warnings: list[str]
    error: RunError | None
    next: str
    """Next step."""


async def apply(request: ApplyRequest, context: Context) -> ApplyResult:
    """Check, apply, commit or discard the changes of an isolated run.

    Raises:
        TooDeep: The caller is the model of a run, which would so leave its sandbox.
        UnknownRun: There is no such run, or it is outside the roots.
        InvalidArguments: The run is still running, was not isolated, or its changes are gone.
        NotAllowed: The person's folder must not be written to.
        PlaceUnavailable: The run's place has not sent its changes yet, and cannot be reached.
    """
    context.policy.check_depth(context.depth)
    run_id = request.run_id
    result = await context.runs.result(run_id)
    if not context.runs.is_own(run_id) and not await on_disk(
        in_roots, result.cwd, context.policy.roots
    ):
        raise UnknownRun(run_id)
    if not result.has_ended:
        raise InvalidArguments([f"run_id: {run_id} is {result.status}; wait with codex_wait first"])
    if result.place != HERE and result.changes is None and context.places is not None:
        from codex_tools.runs.copy_elsewhere import fetch_late

        await fetch_late(context.places, context.state_dir, result.place, run_id)
    kept = await on_disk(RunChangesKept, context.state_dir, run_id)
    paths = await on_disk(kept.paths_of, request.paths)
    warnings: tuple[str, ...] = ()
    if request.action in ("apply", "branch"):
        warnings = await _permit(request, context, kept, paths)
    try:
        done = await on_disk(act, kept, request.action, paths, request.branch, result)
    except ApplyConflict as error:
        return result_of(request, Applied(error.files), error=error)
    if request.action != "check":
        facts = {"run_id": run_id, "action": request.action, "files": len(done.files)}
        context.runs.audit.write("applied", {"caller": context.caller, **facts})
    return result_of(request, done, warnings=warnings)


def act(
    kept: RunChangesKept,
    action: ApplyAction,
    paths: Sequence[str] | None,
    branch: str | None,
    result: RunResult,
) -> Applied:
    """Do *action* with the changes of a run; see `RunChangesKept`, which raises the errors."""
    match action:
        case "check":
            return kept.check(paths)
        case "apply":
            return kept.apply(paths)
        case "branch":
            thread = f"\n\nThread: {result.thread_id}" if result.thread_id else ""
            message = f"Changes of Codex run {result.run_id}{thread}\n"
            return kept.branch(branch or "", message, paths)
        case "discard":
            return kept.discard()


async def _permit(
    request: ApplyRequest,
    context: Context,
    kept: RunChangesKept,
    paths: Sequence[str] | None,
) -> tuple[str, ...]:
    """Permit writing to the person's folder if the limits do, or a person does this once.

    Raises:
        NotAllowed: Neither does.
    """
    excesses = await on_disk(_excesses, request, context, kept, paths)
    if not excesses:
        return ()
    lines = [
        *lines_of(excesses),
        f"Folder: {clean(str(kept.root))}",
        f"What would be done: {request.action} the changes of {kept.kept.run_id}",
        "Accept to allow this once. Any other answer refuses it.",
    ]
    matter = (kept.kept, request.action, tuple(paths or ()), request.branch)
    return await context.grant(excesses, "\n".join(lines), matter)


def _excesses(
    request: ApplyRequest,
    context: Context,
    kept: RunChangesKept,
    paths: Sequence[str] | None,
) -> tuple[NotAllowed, ...]:
    if request.action == "branch":
        targets: list[Path] = [kept.root / ".git"]
    else:
        targets = kept.targets(paths)
    return context.policy.check_apply(kept.root, targets)


def result_of(
    request: ApplyRequest,
    done: Applied,
    *,
    warnings: Sequence[str] = (),
    error: CodexError | None = None,
) -> ApplyResult:
    """Return the bounded result of a call."""
    files = sorted(done.files, key=lambda each: each.action != "conflict")
    left = len(files) - FILES_LIMIT
    omitted = [f"files omits {left} more files."] if left > 0 else []
    return ApplyResult(
        run_id=request.run_id,
        action=request.action,
        applied=done.is_applied or (request.action == "apply" and error is None),
        files=files[:FILES_LIMIT],
        branch=done.branch,
        commit=done.commit,
        warnings=[*warnings, *done.warnings, *omitted],
        error=tell_error(error) if error is not None else None,
        next=_next(request, done, error),
    )


def _next(request: ApplyRequest, done: Applied, error: CodexError | None) -> str:
    """Return the next step as a sentence."""
    conflicts = [each.path for each in done.files if each.action == "conflict"]
    again = f'codex_apply with run_id "{request.run_id}" and action'
    if conflicts:
        return (
            f"{len(conflicts)} of {len(done.files)} files conflict, so apply changes nothing. Give"
            " paths with the other files, or run Codex again on the present files."
        )
    if error is not None:
        return "Follow the hint of the error."
    if request.action == "discard":
        return "The copy is deleted; nothing in the person's folder has changed."
    if done.was_applied:
        return "All of it was applied before, so nothing was changed."
    if request.action == "check":
        if not done.files:
            return "The run changed no files, so there is nothing to apply."
        return f'Nothing was changed yet. {again} "apply" makes these changes.'
    if request.action == "branch":
        return f"The commit is on branch {done.branch}; no file in the person's folder has changed."
    if not done.is_applied and done.files:
        return f'These files are applied, others of the run are not. {again} "check" shows them.'
    return f'The files are in the person\'s folder, not staged. {again} "discard" deletes the copy.'


def refuse(error: CodexError) -> ApplyResult:
    """Return the result of a request that was refused."""
    return ApplyResult(
        run_id=None,
        action=None,
        applied=False,
        files=[],
        branch=None,
        commit=None,
        warnings=[],
        error=tell_error(error),
        next="Follow the hint of the error.",
    )


def words(result: ApplyResult) -> Words:
    """Return a result as text: each file with what is done to it, and the next step."""
    if result.error is not None:
        text = words_of_error(result.error).text
        files = _lines(result)
        return Words("\n".join([text, *files, f"Next: {clean(result.next)}"]), is_error=True)
    head = f"{result.action} {result.run_id}: "
    if result.branch is not None:
        head += f"commit {result.commit} on branch {clean(result.branch)}"
    elif result.action == "discard":
        head += "done"
    else:
        head += "applied" if result.applied else "not applied"
    lines = [head, *_lines(result)]
    lines += [f"warning: {clean(each)}" for each in result.warnings]
    return Words("\n".join([*lines, f"Next: {clean(result.next)}"]))


def _lines(result: ApplyResult) -> list[str]:
    lines = [
        f"{each.action} {clean(each.path)}: {clean(each.reason)}"
        + (f" ({clean(each.warning)})" if each.warning else "")
        for each in result.files[:_NAMED]
    ]
    left = len(result.files) - _NAMED
    return [*lines, f"and {left} more files"] if left > 0 else lines


APPLY = Tool(
    name="codex_apply",
    title="Apply a Codex run's changes",
    description=(
        "Bring the changes of a run with isolation: copy into the person's folder: all of them or"
        " none. check first: it changes nothing and names each conflict."
    ),
    request=ApplyRequest,
    result=ApplyResult,
    call=apply,
    refuse=refuse,
    words=words,
    search_hint="apply, merge, commit or discard changes of isolated Codex run",
    idempotent=True,
    open_world=False,
)
