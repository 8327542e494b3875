"""Decide where a run works, and find what it changed there: in the person's folder or in a copy."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from codex_tools.codex.workers import on_disk
from codex_tools.engines.engine import TurnRequest
from codex_tools.runs import kept_run
from codex_tools.runs.isolation import NotIsolated, open_run_copy
from codex_tools.runs.kept_run import KeptRun
from codex_tools.runs.run import Run
from codex_tools.runs.sites import Site
from codex_tools.worktree.changes import (
    Changes,
    Snapshot,
    changes_since,
    explain_unseen,
    take_snapshot,
)
from codex_tools.worktree.contents import Contents, compare_contents, keep_contents
from codex_tools.worktree.tree_error import TreeError

if TYPE_CHECKING:
    from codex_tools.runs.copy_elsewhere import CopyElsewhere

STOPPED_WITHIN_S = 20.0
"""Maximum seconds to look at the copy of a run that was stopped; 50,000 files take about 1 s."""

INTERRUPTED_WITHIN_S = 0.5
"""Maximum seconds for that when the server ends; the next server looks at the copy otherwise."""


class WorkPlace:
    """Where one run works."""

    def __init__(
        self, run: Run, site: Site, state_dir: Path, roots: Sequence[Path], *, can_copy: bool
    ) -> None:
        """Prepare nothing yet.

        Args:
            run: The run.
            site: The place where it works.
            state_dir: The folder for copies.
            roots: Folders outside of which no work tree is looked at.
            can_copy: False if *state_dir* is temporary, so that no copy would be kept.
        """
        self._run, self._state_dir, self._roots = run, state_dir, roots
        self._site, self._can_copy = site, can_copy
        self.engine = site.engine
        """Runs the turns: at another place, the seat of the run."""
        self._elsewhere: CopyElsewhere | None = None
        self._before: Snapshot | None = None
        self._contents: Contents | None = None
        self._began_at = 0.0

    async def enter(self, stack: AsyncExitStack) -> TurnRequest:
        """Make the place ready, and return the run's turn in it; *stack* ends what was opened.

        Raises:
            NotIsolated: No copy could be made.
            PlaceUnavailable: The place cannot be used.
        """
        run, request = self._run, self._run.request
        if request.isolation == "copy":
            if not self._can_copy:
                raise NotIsolated(request.cwd, "the state folder of this server cannot be used")
            if self._site.elsewhere is not None:
                from codex_tools.runs.copy_elsewhere import open_copy_elsewhere

                run.copy = self._elsewhere = copy = await open_copy_elsewhere(
                    stack, self._site.elsewhere, self._state_dir, run
                )
                self.engine = copy.seat
                run.warnings = (*run.warnings, *copy.warnings)
                return copy.request_for(request)
            return await on_disk(self._lay_out)
        await self.remember()
        return request

    async def remember(self) -> None:
        """Remember the work tree as it is before the run can change it; a copy has no other runs.

        Called again when the run has waited, because others may have worked there meanwhile.
        """
        request = self._run.request
        if request.isolation != "copy" and request.sandbox != "read-only":
            self._began_at = time.time()
            before = self._before = await take_snapshot(request.cwd, self._roots)
            if before is not None and self._can_copy:
                self._contents = await on_disk(keep_contents, self._state_dir, before, abandon=True)
            self._run.look = self.look

    async def look(self) -> None:
        """Find what the run changed."""
        run = self._run
        if self._elsewhere is not None:
            await self._elsewhere.fetch(run)
        elif run.copy is not None:
            await on_disk(_finish, run)
        elif run.request.sandbox != "read-only":
            if self._before is not None:
                run.seen = await changes_since(self._before)
            if run.seen is None:
                run.unseen = await explain_unseen(run.request.cwd)
            elif run.seen.changed and self._contents is not None:
                await on_disk(self._compare, self._contents, run.seen, abandon=True)

    def _compare(self, contents: Contents, seen: Changes) -> None:
        """Find which lines changed in the person's folder, and keep that for other runs."""
        run = self._run
        try:
            shadow, diff = compare_contents(self._state_dir, contents, seen.changed)
            names = [os.fspath(seen.root / os.fsdecode(path)) for path in seen.changed]
            kept = KeptRun(
                *(run.run_id, os.fspath(shadow.root), os.fspath(run.request.cwd)),
                *(diff.snapshot, "", self._began_at),
                applied_at=time.time(),
            )
            paths = [os.path.relpath(name, shadow.root) for name in names]
            kept_run.save_changes(shadow.folder, kept, diff, sorted(paths))
            run.diff = diff
        except TreeError as error:
            run.undiffed = str(error)
        except OSError as error:
            run.undiffed = error.strerror or str(error)

    def note_thread(self, thread_id: str) -> None:
        """Store where a thread of another place belongs; called in the writer's thread."""
        if self._elsewhere is not None:
            self._elsewhere.note_thread(thread_id)

    def _lay_out(self) -> TurnRequest:
        run = self._run
        place = run.before.copy if run.before is not None else None
        run.progress.doing = "copying the project"
        # Kept here, in the worker thread: a run that is cancelled meanwhile must release the copy.
        run.copy = copy = open_run_copy(self._state_dir, run.run_id, run.request, place)
        run.warnings = (*run.warnings, *copy.warnings)
        run.progress.doing = "starting Codex"
        return copy.request_for(run.request)


async def leave_copy(run: Run) -> None:
    """Look at what a run changed that was stopped or interrupted, as far as there is time.

    When the server ends, only copies are looked at: Claude Code gives it 0.5 s in all.
    """
    if run.seen is not None or (run.copy is None and not run.stopped):
        return
    with anyio.move_on_after(STOPPED_WITHIN_S if run.stopped else INTERRUPTED_WITHIN_S):
        if run.copy is not None:
            await on_disk(_finish, run, abandon=True)
        elif run.look is not None and run.unseen is None:
            await run.look()


def _finish(run: Run) -> None:
    assert run.copy is not None
    run.copy.finish()
    run.seen = run.copy.seen
    run.unseen = run.copy.problem if run.seen is None else None
