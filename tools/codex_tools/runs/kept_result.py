"""Add to the result of a run what has become of its changes since it ended."""

from __future__ import annotations

from pathlib import Path

from codex_tools.codex.masking import is_cut_of, shorten
from codex_tools.runs import kept_run
from codex_tools.runs.kept_run import KeptRun
from codex_tools.runs.result import FILES_KEPT, ChangedFile, RunResult, with_next
from codex_tools.runs.run_changes import changes_of_copy, shown
from codex_tools.runs.sites import HERE
from codex_tools.worktree.tree_changes import Changes
from codex_tools.worktree.tree_error import TreeError

_NAMED = 5
"""Maximum number of common files, and of other runs, that a result names."""


def may_differ(result: RunResult) -> bool:
    """Return True if `refreshed` may return another result."""
    has_changed = result.changes is not None and bool(result.changes.files)
    return result.has_ended and (result.copy_folder is not None or has_changed)


def refreshed(state_dir: Path, result: RunResult) -> RunResult:
    """Return *result* with the present state of its changes; any other result as it is.

    The changes may have been applied, discarded, or met by those of another run. If the server of
    the run died, they are looked for now. This function waits for the disk and for git.
    """
    if not may_differ(result) or result.run_id is None:
        return result
    found = kept_run.find(state_dir, result.run_id)
    if found is None:
        return result
    folder, kept = found
    warnings = list(result.warnings)
    if result.changes is None and not kept.is_discarded:
        try:
            if kept.has_changes:
                result = _with_changes(result, kept, kept_run.load_changes(folder, kept))
            elif result.place != HERE:
                warnings.append(
                    f"The changes are still at the place {result.place}: codex_apply with action"
                    " check fetches them."
                )
            else:
                kept, changes = kept_run.collect(state_dir, folder, kept)
                result = _with_changes(result, kept, changes)
        except (TreeError, OSError) as error:
            warnings.append(f"changes is null: {error}.")
    if result.changes is not None and result.changes.applied != (kept.applied_at is not None):
        applied = result.changes.model_copy(update={"applied": kept.applied_at is not None})
        result = result.model_copy(update={"changes": applied})
    if kept.is_discarded:
        warnings.append("The copy and the changes in it were discarded with codex_apply.")
        changes = result.changes and result.changes.model_copy(update={"patch": None})
        result = result.model_copy(update={"copy_folder": None, "changes": changes})
    warnings += _overlaps(folder, kept)
    result = result.model_copy(update={"warnings": warnings})
    return with_next(result, can_resume="codex_resume" in result.next)


def with_answer(result: RunResult, answer: str | None, limit: int) -> RunResult:
    """Return *result* with its *answer* of at most *limit* characters instead of its beginning."""
    # The progress of a failed run may end with an earlier message than its result does.
    if answer is None or not is_cut_of(result.final_response or "", answer):
        return result
    return result.model_copy(update={"final_response": shorten(answer, limit)})


def _with_changes(result: RunResult, kept: KeptRun, changes: Changes) -> RunResult:
    made = changes_of_copy(changes, kept.left_out, kept.run_id, applied=False)
    files = [
        ChangedFile(path=shown(each.path), kind=each.kind, seen_by="git")
        for each in changes.files[:FILES_KEPT]
    ]
    return result.model_copy(update={"changes": made, "files_changed": files})


def _overlaps(folder: Path, kept: KeptRun) -> list[str]:
    """Return a warning for each other run that changed files which this one changed."""
    warnings: list[str] = []
    for other in kept_run.others(folder, kept):
        common = [shown(path) for path in kept_run.common_paths(kept, other)]
        if not common:
            continue
        if len(warnings) == _NAMED:
            return [*warnings, "More runs changed the same files."]
        more = f" and {len(common) - _NAMED} more" if len(common) > _NAMED else ""
        files = f"{', '.join(common[:_NAMED])}{more}"
        warnings.append(f"{other.run_id} {_met(kept, other, files)}")
    return warnings


def _met(kept: KeptRun, other: KeptRun, files: str) -> str:
    """Return how the run *other* met the run *kept* in *files*, as the end of a sentence."""
    if kept.is_isolated and other.is_isolated:
        return (
            f"changed the same files: {files}. After one of the two is applied, look at the other"
            " with codex_apply, action check."
        )
    if kept.is_isolated:
        return (
            f"changed the same files: {files}, in the project itself. Look at the changes of this"
            " run with codex_apply, action check, before you apply them."
        )
    if other.is_isolated:
        return (
            f"changed the same files: {files}, in its copy. Look at its changes with codex_apply,"
            " action check, before you apply them."
        )
    return (
        f"changed the same files: {files}, in the same folder at the same time. Each of the two"
        " results may hold changes of the other run."
    )
