"""Let a run work in a copy of its project, and find what it changed there.

The copy is laid out when the run leaves the queue. It is locked until the run has ended, and kept
afterwards: a later run in the same thread continues in it, and `applying` brings its changes to
the project. All functions here wait for the disk and for git.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from codex_tools.codex.copy_paths import CopyPlace
from codex_tools.codex.errors import RequestError
from codex_tools.codex.paths import project_root
from codex_tools.codex.sandbox import is_open_to_commands
from codex_tools.codex.toml import to_toml
from codex_tools.codex.turn_result import ChangeKind
from codex_tools.engines.config_layers import read_config
from codex_tools.engines.engine import TurnRequest
from codex_tools.runs import kept_run
from codex_tools.runs.kept_run import KeptRun
from codex_tools.runs.run_changes import shown
from codex_tools.worktree import changes as work_tree
from codex_tools.worktree.copies import Copy, clean_up, discard, lay_out, open_copy
from codex_tools.worktree.journal import recover
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import Snapshot, load_snapshot, take_snapshot
from codex_tools.worktree.tree_changes import Changes, changes_of, forget_changes
from codex_tools.worktree.tree_error import CopyBusy, TreeError

logger = logging.getLogger(__name__)

KEEP_COPIES_S = 7 * 24 * 3600
"""Seconds that a copy is kept after its last use: it may be as large as the project."""

_NO_FILE = "000000"


class NotIsolated(RequestError):
    """No copy of the project could be made for the run."""

    kind = "not_started"

    def __init__(self, root: Path, problem: str) -> None:
        self.root, self.problem = root, problem
        super().__init__(
            f"{root} could not be copied for an isolated run: {problem}.",
            "Nothing was started. Correct that, or call again with isolation none, which works in"
            " the folder itself.",
        )


class RunCopy:
    """The copy that one run works in, from the run's start to its end."""

    def __init__(
        self,
        shadow: Shadow,
        snapshot: Snapshot,
        copy: Copy,
        kept: KeptRun,
        before: Changes | None,
        warnings: tuple[str, ...],
    ) -> None:
        self._shadow, self._snapshot, self._copy, self._kept = shadow, snapshot, copy, kept
        self._before = before
        """What earlier runs had changed in the copy."""
        self._mutex = threading.Lock()
        self._is_over = False
        self.warnings = warnings
        self.folder = copy.folder
        self._cwd = copy.folder
        self.changes: Changes | None = None
        """All that was changed in the copy since it was laid out; None until it is known."""
        self.seen: work_tree.Changes | None = None
        """What this run alone changed; None until it is known."""
        self.problem = "the run was stopped before they could be compared"
        """Why the changes are not known."""

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """Paths that were not copied, each with the reason."""
        return self._kept.left_out

    def request_for(self, request: TurnRequest) -> TurnRequest:
        """Return *request* as a turn in the copy.

        The policy has judged the person's folder. The copy gets the trust that the person gives to
        the project, and the turn may load only the files of `.codex` that were judged there.

        Raises:
            NotIsolated: The folder of the turn is not in the copy.
        """
        root = self._shadow.root
        try:
            cwd = self._cwd = self._copy.at(request.cwd)
            add_dirs = tuple(self._moved(each) for each in request.add_dirs)
        except TreeError as error:
            raise NotIsolated(root, str(error)) from error
        files = request.project_files
        if files is not None:
            files = {
                str(self._moved(Path(path), is_folder=False)): id_ for path, id_ in files.items()
            }
        config = request.config
        levels = self._trust(request)
        if levels:
            tables: dict[str, Mapping[str, str]] = {
                folder: {"trust_level": level} for folder, level in levels.items()
            }
            config = (*config, ("projects", to_toml(tables)))
        return replace(
            request,
            cwd=cwd,
            add_dirs=add_dirs,
            config=config,
            project_files=files,
            held=(*request.held, self._copy.lock_fd),
        )

    def at_home(self, error: RequestError) -> RequestError:
        """Let *error* name the person's folder instead of the copy, and return it."""
        return name_home(error, self.folder, self._shadow.root)

    def finish(self) -> None:
        """Find what was changed in the copy, store it, and release the copy; may be called twice.

        It does not raise: `problem` says why the changes are not known.
        """
        with self._mutex:
            if self._is_over:
                return
            try:
                changes = changes_of(self._shadow, self._snapshot, self._copy)
                kept_run.save_changes(self._shadow.folder, self._kept, changes)
                self.seen = own_changes(changes, self._before, self._cwd, self._copy.folder)
                self.changes = changes
                if self._before is not None:
                    forget_changes(self._shadow, self._before)
            except (TreeError, OSError) as error:
                self.problem = str(error)
                logger.warning("the changes of %s are not known: %s", self._kept.run_id, error)
            finally:
                self._is_over = True
                self._copy.close()

    def close(self) -> None:
        """Release the copy."""
        self._copy.close()

    def _moved(self, path: Path, *, is_folder: bool = True) -> Path:
        """Return the path in the copy for one in the project; another path stays the same."""
        if not path.is_relative_to(self._shadow.root):
            return path
        if is_folder:
            return self._copy.at(path)
        return self._copy.folder / path.relative_to(self._shadow.root)

    def _trust(self, request: TurnRequest) -> dict[str, str]:
        """Return how far Codex may trust the folders of the copy: as those of the project."""
        config = read_config(None, request.profile, request.cwd, request.config)
        project = config.project
        if project is None or not project.is_decided:
            return {}
        return {
            str(self._moved(folder, is_folder=False)): "trusted" if is_trusted else "untrusted"
            for folder, is_trusted in project.folders
            if folder.is_relative_to(self._shadow.root)
        }


def name_home(error: RequestError, copy: Path, root: Path) -> RequestError:
    """Replace the folder of a *copy* in the texts of *error* by the project's, and return it."""
    error.message = error.message.replace(str(copy), str(root))
    error.hint = error.hint.replace(str(copy), str(root))
    return error


def own_changes(
    changes: Changes, before: Changes | None, cwd: Path, folder: Path
) -> work_tree.Changes:
    """Return what one run changed in a copy, without what earlier runs had changed there.

    Args:
        changes: All changes in the copy.
        before: The earlier ones; None if there are none.
        cwd: The folder of the run in the copy.
        folder: The copy.
    """
    earlier = {each.path: each for each in before.files} if before else {}
    kinds: dict[str, ChangeKind] = {}
    for each in changes.files:
        one = earlier.pop(each.path, None)
        old = (each.old_mode, each.old_blob) if one is None else (one.new_mode, one.new_blob)
        if old != (each.new_mode, each.new_blob):
            kinds[each.path] = _kind_of(old[0], each.new_mode)
    for path, one in earlier.items():  # This run took these changes back.
        kinds[path] = _kind_of(one.new_mode, one.old_mode)
    compared = _Compared(shown(each.path) for each in changes.left_out)
    named: dict[str, ChangeKind] = {shown(path): kind for path, kind in kinds.items()}
    return work_tree.Changes(cwd, folder, named, compared)


class _Compared(frozenset[str]):
    """All paths but those in the set, which may be folders; those end in a slash."""

    def __contains__(self, path: object) -> bool:
        hidden = any(each in (path, f"{path}/"[: len(each)]) for each in self)
        return not hidden


def _kind_of(old_mode: str, new_mode: str) -> ChangeKind:
    if old_mode == _NO_FILE:
        return "add"
    return "delete" if new_mode == _NO_FILE else "update"


def open_run_copy(
    state_dir: Path, run_id: str, request: TurnRequest, place: CopyPlace | None
) -> RunCopy:
    """Lay out a copy of the project for a run, or open the one that its thread worked in.

    Args:
        state_dir: The folder of this server's files.
        run_id: The id of the run.
        request: Its turn, in the person's folder.
        place: Where its thread worked before; None for a new thread or one without a copy.

    Raises:
        NotIsolated: There is no git, the project is too large, or the disk is full.
    """
    # Codex records real paths, and refuses a folder whose path holds a link.
    state_dir = state_dir.resolve()
    is_same = place is not None and request.cwd.is_relative_to(place.root)
    root = place.root if place is not None and is_same else project_root(request.cwd)
    warnings: list[str] = []
    try:
        shadow = Shadow.open(state_dir, root)
        if place is not None and is_same and not request.fork:
            try:
                return _reopen(shadow, run_id, request, place)
            except CopyBusy:
                raise
            except TreeError as error:
                warnings.append(f"isolation: {error}. The run works in a new copy of the project.")
        elif place is not None:
            why = "a fork" if request.fork else "another folder"
            warnings.append(f"isolation: {why} gets a new copy, without the thread's own changes.")
        snapshot = take_snapshot(shadow)
        copy = lay_out(shadow, snapshot)
        left_out = tuple((each.path, each.reason) for each in snapshot.left_out)
        kept = KeptRun(
            *(run_id, os.fspath(shadow.root), os.fspath(request.cwd)),
            *(snapshot.id, copy.id, snapshot.taken_at, left_out),
        )
        return _start(RunCopy(shadow, snapshot, copy, kept, None, tuple(warnings)), shadow, kept)
    except (TreeError, OSError) as error:
        problem = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise NotIsolated(root, problem) from error


def _reopen(shadow: Shadow, run_id: str, request: TurnRequest, place: CopyPlace) -> RunCopy:
    copy = open_copy(shadow, place.copy)
    try:
        snapshot = load_snapshot(shadow, copy.snapshot)
        before = changes_of(shadow, snapshot, copy)
        os.utime(copy.place)
    except BaseException:
        copy.close()
        raise
    left_out = tuple((each.path, each.reason) for each in snapshot.left_out)
    kept = KeptRun(
        *(run_id, os.fspath(shadow.root), os.fspath(request.cwd)),
        *(snapshot.id, copy.id, time.time(), left_out),
    )
    return _start(RunCopy(shadow, snapshot, copy, kept, before, ()), shadow, kept)


def _start(opened: RunCopy, shadow: Shadow, kept: KeptRun) -> RunCopy:
    """Store that the run works in the copy, for the case that its server dies; return *opened*."""
    try:
        kept_run.save(shadow.folder, kept)
    except BaseException:
        opened.close()
        raise
    return opened


def discard_copy(shadow: Shadow, copy: str) -> None:
    """Give up a copy with its snapshot; one that is no longer kept is none.

    Raises:
        CopyBusy: A run works in it.
    """
    try:
        opened = open_copy(shadow, copy)
    except CopyBusy:
        raise
    except TreeError:
        return
    discard(shadow, opened)


def remove_old_copies(state_dir: Path, keep_s: float = KEEP_COPIES_S) -> None:
    """Remove copies and changes not used for *keep_s*; complete what a crash interrupted."""
    trees = state_dir / "trees"
    if is_open_to_commands(state_dir):
        return  # A command of a run could have written a journal that changes any project.
    for folder in sorted(trees.glob("[0-9a-f]*")) if trees.is_dir() else ():
        if not any((folder / "journals").glob("*/journal.json")):
            continue
        try:
            root = os.fsdecode((folder / "root").read_bytes())
            for done in recover(Shadow.open(state_dir, Path(root))):
                how = "completed" if done.completed else "undone"
                logger.warning("an interrupted codex_apply in %s was %s", done.root, how)
        except (TreeError, OSError) as error:
            logger.warning("an interrupted codex_apply in %s: %s", folder, error)
    try:
        clean_up(state_dir, keep_s)
    except TreeError as error:
        logger.warning("cannot remove old copies: %s", error)
    kept_run.remove_old(state_dir, keep_s)
