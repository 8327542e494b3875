"""Bring the changes of an isolated run to its project, or give them up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from codex_tools.codex.errors import CodexError, InvalidArguments, RequestError
from codex_tools.codex.record import Record
from codex_tools.codex.sandbox import is_open_to_commands
from codex_tools.runs import kept_run
from codex_tools.runs.isolation import discard_copy
from codex_tools.runs.run_changes import shown
from codex_tools.worktree.apply_plan import PathPlan, make_plan
from codex_tools.worktree.branch import make_branch
from codex_tools.worktree.journal import apply_plan, needs_recovery, recover
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.tree_changes import Changes, forget_changes
from codex_tools.worktree.tree_error import NotAppliable, RolledBack, TreeError

ApplyAction = Literal["check", "apply", "branch", "discard"]


class AppliedFile(Record):
    """What applying does, did or would do with one file."""

    path: str
    action: Literal["write", "delete", "merge", "same", "conflict"]
    reason: str
    warning: str | None
    """Why the file acts by itself once it is there"""


class ApplyConflict(RequestError):
    """The changes do not fit what is in the project now; nothing was changed."""

    kind = "apply_conflict"

    def __init__(
        self, run_id: str, problem: str, files: Sequence[AppliedFile] = (), branch: str = ""
    ) -> None:
        self.run_id, self.problem, self.files = run_id, problem, tuple(files)
        super().__init__(
            f"The changes of {run_id} were not applied, and nothing was changed: {problem}.",
            "Correct what the message names or give another branch, or use action apply."
            if branch
            else "Give paths to apply the others, make a branch with action branch, or run Codex"
            " again on the present files.",
        )


class NotApplied(CodexError):
    """The changes could not be written; the files are as before."""

    kind = "internal"
    retryable = True

    def __init__(self, run_id: str, problem: str) -> None:
        self.run_id, self.problem = run_id, problem
        super().__init__(
            f"The changes of {run_id} were not applied: {problem}.",
            "Free space or correct the permissions that the message names, and call again.",
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of the changes of a run."""

    files: tuple[AppliedFile, ...] = ()
    is_applied: bool = False
    """True if all of its changes are in the project now."""
    was_applied: bool = False
    """True if nothing was left to apply, because all was applied before."""
    branch: str | None = None
    commit: str | None = None
    warnings: tuple[str, ...] = ()


class RunChangesKept:
    """The changes of one isolated run, as they are kept; each method waits for the disk and git."""

    def __init__(self, state_dir: Path, run_id: str, is_read_only: bool = False) -> None:
        """Find what is kept; for *is_read_only*, also of a run that was not isolated.

        Raises:
            InvalidArguments: The run was not isolated, or its changes are gone.
        """
        if not is_read_only and is_open_to_commands(state_dir):
            raise InvalidArguments(
                [
                    f"run_id: commands of every run can write in {state_dir}, so nothing from there"
                    " is applied. The operator can set another folder with --state-dir"
                ]
            )
        found = kept_run.find(state_dir, run_id)
        if found is None or not (is_read_only or found[1].is_isolated):
            raise InvalidArguments(
                [
                    f"run_id: no changes of {run_id} are kept in a copy: it was not isolated, or it"
                    " was more than a week ago. Without isolation, changes are in the folder itself"
                ]
            )
        self._state_dir = state_dir
        self._folder, self.kept = found
        self.root = Path(self.kept.root)

    def paths_of(self, paths: Sequence[str] | None) -> tuple[str, ...] | None:
        """Return *paths* relative to the project; they may be absolute, there or in the copy."""
        if paths is None:
            return None
        copy = self._folder / "copies" / self.kept.copy / self.root.name
        found: list[str] = []
        for path in paths:
            for folder in (copy, copy.resolve(), self.root):
                path = path.removeprefix(f"{folder}/")
            found.append(path.removeprefix("./"))
        if any("\ufffd" in path for path in found):  # A result shows names that are not UTF-8 so.
            names = {shown(each.path): each.path for each in self._changes().files}
            found = [names.get(path, path) for path in found]
        return tuple(found)

    def targets(self, paths: Sequence[str] | None) -> list[Path]:
        """Return the absolute paths that applying may change."""
        chosen = None if paths is None else tuple(each.rstrip("/") for each in paths)
        return [
            self.root / each.path
            for each in self._changes().files
            if chosen is None
            or any(each.path == one or each.path.startswith(f"{one}/") for one in chosen)
        ]

    def check(self, paths: Sequence[str] | None) -> Applied:
        """Return what `apply` would do; change nothing.

        Raises:
            InvalidArguments: A path is not among the changes, or the changes are gone.
        """
        changes, shadow = self._changes(), self._shadow()
        plan = self._plan(shadow, changes, paths)
        warnings: tuple[str, ...] = ()
        if needs_recovery(shadow):
            warnings = ("Another codex_apply in this project is at work or was interrupted.",)
        done = kept_run.is_applied(self._folder, changes)
        return Applied(plan, done, done, warnings=warnings)

    def apply(self, paths: Sequence[str] | None) -> Applied:
        """Apply the changes: all of the chosen paths or none.

        Raises:
            ApplyConflict: A path cannot be applied; nothing was changed.
            NotApplied: A file could not be written; nothing was changed.
            InvalidArguments: A path is not among the changes, or the changes are gone.
        """
        run_id, changes, shadow = self.kept.run_id, self._changes(), self._shadow()
        if kept_run.is_applied(self._folder, changes) and changes.files:
            return Applied(self._plan(shadow, changes, paths), True, True)
        try:
            recover(shadow)
            plan = make_plan(shadow, changes, paths)
            if plan.conflicts:
                raise ApplyConflict(run_id, _described(plan.conflicts), _told(plan.files))
            before = all(each.reason == _BEFORE for each in plan.files)
            apply_plan(shadow, plan)
        except NotAppliable as error:
            raise ApplyConflict(run_id, str(error)) from error
        except RolledBack as error:
            raise NotApplied(run_id, str(error)) from error
        except TreeError as error:
            raise InvalidArguments([str(error)]) from error
        except OSError as error:
            raise NotApplied(run_id, error.strerror or str(error)) from error
        done = kept_run.is_applied(self._folder, changes)
        if done:
            self._save(applied_at=time.time())
        return Applied(_told(plan.files), done, before)

    def branch(self, name: str, message: str, paths: Sequence[str] | None) -> Applied:
        """Commit the changes to a new branch, without a checkout.

        Raises:
            ApplyConflict: The branch exists, git knows no identity, or the changes do not fit HEAD.
            InvalidArguments: A path is not among the changes, or the changes are gone.
        """
        changes = self._changes()
        try:
            made = make_branch(self._shadow(), changes, name, message, paths)
        except NotAppliable as error:
            raise ApplyConflict(self.kept.run_id, str(error), branch=name) from error
        except TreeError as error:
            raise InvalidArguments([str(error)]) from error
        except OSError as error:
            raise NotApplied(self.kept.run_id, error.strerror or str(error)) from error
        done = kept_run.is_applied(self._folder, changes)
        return Applied(_told(made.files), done, branch=made.name, commit=made.commit)

    def discard(self) -> Applied:
        """Give up the copy, and with it the changes of all runs that worked in it.

        Raises:
            InvalidArguments: A run works in it, or it is gone already.
        """
        self._check_kept()
        shadow = self._shadow()
        runs = kept_run.sharing(self._folder, self.kept)
        try:
            discard_copy(shadow, self.kept.copy)
        except TreeError as error:
            raise InvalidArguments([f"run_id: {error}"]) from error
        for each in runs:
            with suppress(TreeError):
                forget_changes(shadow, kept_run.load_changes(self._folder, each))
            kept_run.save(self._folder, replace(each, is_discarded=True))
        others = [each.run_id for each in runs if each.run_id != self.kept.run_id]
        warnings = (
            (f"The copy was also that of {', '.join(others)}, of the same thread.",)
            if others
            else ()
        )
        done = self.kept.applied_at is not None
        return Applied(is_applied=done, warnings=warnings)

    def patch(self, offset: int, room: int) -> tuple[bytes, int | None]:
        """Return a page of the whole diff, and the offset of the next page; None after the last.

        Raises:
            InvalidArguments: The changes are gone.
        """
        patch = self._changes().patch
        try:
            if patch is None:
                return b"", None
            with patch.open("rb") as file:
                file.seek(offset)
                page = file.read(room)
                more = bool(file.read(1))
        except OSError:
            raise InvalidArguments([f"run_id: {self.kept.run_id} has no diff any more"]) from None
        if more and b"\n" in page:
            page = page[: page.rindex(b"\n") + 1]
        return page, offset + len(page) if more else None

    def _changes(self) -> Changes:
        self._check_kept()
        try:
            if not self.kept.has_changes:
                self.kept, changes = kept_run.collect(self._state_dir, self._folder, self.kept)
                return changes
            return kept_run.load_changes(self._folder, self.kept)
        except (TreeError, OSError) as error:
            raise InvalidArguments([f"run_id: {error}"]) from error

    def _check_kept(self) -> None:
        if self.kept.is_discarded:
            raise InvalidArguments([f"run_id: the changes of {self.kept.run_id} were discarded"])

    def _shadow(self) -> Shadow:
        try:
            shadow = Shadow.open(self._state_dir, self.root)
        except (TreeError, OSError) as error:
            raise InvalidArguments([f"run_id: {error}"]) from error
        if shadow.folder.name != self._folder.name:
            raise InvalidArguments([f"run_id: {self.root} has another repository by now"])
        return shadow

    def _plan(
        self, shadow: Shadow, changes: Changes, paths: Sequence[str] | None
    ) -> tuple[AppliedFile, ...]:
        try:
            return _told(make_plan(shadow, changes, paths).files)
        except (TreeError, OSError) as error:
            raise InvalidArguments([str(error)]) from error

    def _save(self, *, applied_at: float) -> None:
        self.kept = replace(self.kept, applied_at=applied_at)
        with suppress(OSError):  # Whether the paths were applied is recorded by the journal.
            kept_run.save(self._folder, self.kept)


_BEFORE = "applied before"

_NAMED = 5
"""Maximum number of conflicts that an error names."""


def _told(plans: Sequence[PathPlan]) -> tuple[AppliedFile, ...]:
    return tuple(
        AppliedFile(
            path=shown(each.path), action=each.action, reason=each.reason, warning=each.warning
        )
        for each in plans
    )


def _described(conflicts: Sequence[PathPlan]) -> str:
    named = "; ".join(f"{shown(each.path)}: {each.reason}" for each in conflicts[:_NAMED])
    more = len(conflicts) - _NAMED
    return f"{named}; and {more} more" if more > 0 else named
