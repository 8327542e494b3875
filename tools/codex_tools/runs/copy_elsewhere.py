"""Let a run work in a copy of its project at another place, and fetch what it changed there."""

from __future__ import annotations

import logging
import os
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import anyio

from codex_tools.codex.copy_paths import CopyPlace
from codex_tools.codex.errors import InvalidArguments, RequestError
from codex_tools.codex.paths import project_root
from codex_tools.codex.place_errors import PlaceUnavailable
from codex_tools.codex.workers import on_disk
from codex_tools.engines.engine import TurnRequest
from codex_tools.places.mirror import Home
from codex_tools.places.place import Place
from codex_tools.places.places import Elsewhere, Places
from codex_tools.places.seat import Seat, open_seat
from codex_tools.runs import kept_run
from codex_tools.runs.isolation import NotIsolated, name_home, own_changes
from codex_tools.runs.kept_run import KeptRun
from codex_tools.runs.run import Run
from codex_tools.worktree import changes as work_tree
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import Snapshot, load_snapshot, take_snapshot
from codex_tools.worktree.tree_changes import Changes
from codex_tools.worktree.tree_error import TreeError

logger = logging.getLogger(__name__)

AGAIN_WITHIN_S = 20.0
"""Maximum seconds to fetch changes by another connection, after the first one was lost."""

STOPPED_WITHIN_S = 20.0
"""Maximum seconds to fetch the changes of a run that was stopped."""


class CopyElsewhere:
    """The copy that one run works in at another place; see `isolation.RunCopy`."""

    def __init__(
        self, shadow: Shadow, seat: Seat, site: Elsewhere, kept: KeptRun, before: Changes | None
    ) -> None:
        self._shadow, self._site, self._kept, self._before = shadow, site, kept, before
        self.seat = seat
        self.folder = seat.folder
        self.warnings: tuple[str, ...] = ()
        self.changes: Changes | None = None
        """All that was changed in the copy since it was laid out; None until it is known."""
        self.seen: work_tree.Changes | None = None
        """What this run alone changed; None until it is known."""
        self.problem = "the run was stopped before the place had sent them"
        """Why the changes are not known."""

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """Paths that were not sent, each with the reason."""
        return self._kept.left_out

    def request_for(self, request: TurnRequest) -> TurnRequest:
        """Return *request* as a turn at the place, with the paths that the copy has there.

        Raises:
            NotIsolated: A folder of the turn is not in the project.
        """
        root = self._shadow.root
        for folder in (request.cwd, *request.add_dirs):
            if not folder.is_relative_to(root):
                raise NotIsolated(root, f"{folder} is not inside it, and nothing else is sent")
        return replace(
            request,
            program=self.seat.program,
            cwd=self.folder / request.cwd.relative_to(root),
            add_dirs=tuple(self.folder / each.relative_to(root) for each in request.add_dirs),
        )

    def at_home(self, error: RequestError) -> RequestError:
        """Let *error* name the person's folder instead of the copy, and return it."""
        return name_home(error, self.folder, self._shadow.root)

    def note_thread(self, thread_id: str) -> None:
        """Store which project and which copy a thread of the place belongs to."""
        home = Home(
            *(Path(self._kept.root), Path(self._kept.cwd), self._kept.copy, self._kept.snapshot),
            self._kept.node,
        )
        try:
            self._site.mirror.remember(thread_id, home)
        except OSError as error:
            logger.warning("cannot store the place of thread %s: %s", thread_id, error)

    async def fetch(self, run: Run) -> None:
        """Fetch what was changed; it does not raise: `problem` says why that is not known."""
        if self.seen is None:
            try:
                await self._fetch()
            except (TreeError, OSError, PlaceUnavailable) as error:
                self.problem = str(error).rstrip(".")
                logger.warning("the changes of %s are not known: %s", run.run_id, error)
            run.seen = self.seen
            run.unseen = self.problem if self.seen is None else None
        run.warnings = (*run.warnings, *self.seat.warnings)
        self.seat.warnings.clear()

    async def leave(self, run: Run) -> None:
        """Fetch what a run has changed that was stopped; not if the server ends."""
        if self.seen is None and run.stopped:
            with anyio.move_on_after(STOPPED_WITHIN_S, shield=True):
                await self.fetch(run)

    def finish(self) -> None:
        """Do nothing: `fetch` did it while the place could be reached."""

    def close(self) -> None:
        """Do nothing: the seat is closed by the stack that opened it."""

    async def _fetch(self) -> None:
        if self.seat.is_lost:
            changes = await _collect_again(self._site, self._shadow, self._kept)
        else:
            snapshot = await on_disk(load_snapshot, self._shadow, self._kept.snapshot)
            changes = await self.seat.collect(snapshot)

        def keep() -> None:
            kept_run.save_changes(self._shadow.folder, self._kept, changes)
            cwd = self.folder / Path(self._kept.cwd).relative_to(self._kept.root)
            self.seen = own_changes(changes, self._before, cwd, self.folder)
            self.changes = changes

        await on_disk(keep)


async def open_copy_elsewhere(
    stack: AsyncExitStack, site: Elsewhere, state_dir: Path, run: Run
) -> CopyElsewhere:
    """Connect to a place and lay out the project of *run* there; *stack* ends the connection.

    Raises:
        NotIsolated: There is no git, or the project cannot be read.
        PlaceUnavailable: The place cannot be used.
    """
    request = run.request
    before = run.before.copy if run.before is not None else None
    is_same = before is not None and request.cwd.is_relative_to(before.root) and not request.fork

    def open_shadow() -> Shadow:
        return Shadow.open(state_dir.resolve(), root)

    root = await on_disk(project_root, request.cwd)
    if before is not None and is_same:
        root = before.root
    try:
        shadow = await on_disk(open_shadow)
        known = await on_disk(_known_copy, site, shadow, run, before) if is_same else None
        place = await on_disk(_place_of, site, request.thread_id)
        async with site.starting:
            run.progress.doing = f"connecting to {site.place.name}"
            seat = await stack.enter_async_context(
                open_seat(place, site.mirror, run.run_id, shadow, links=site.links)
            )
            run.progress.doing = f"sending the project to {site.place.name}"
            copy, earlier = await _settle(seat, shadow, known)
        left_out = tuple((each.path, each.reason) for each in copy.left_out)
        kept = KeptRun(
            *(run.run_id, os.fspath(shadow.root), os.fspath(request.cwd)),
            *(copy.id, seat.copy, time.time(), left_out),
            node=seat.node,
        )
        await on_disk(kept_run.save, shadow.folder, kept)
    except (TreeError, OSError) as error:
        problem = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise NotIsolated(root, problem) from error
    made = CopyElsewhere(shadow, seat, site, kept, earlier)
    if is_same and earlier is None:
        made.warnings = (
            "isolation: the thread's copy at the place is no longer kept. The run works in a new"
            " copy of the project.",
        )
    stack.push_async_callback(made.leave, run)
    run.progress.doing = "starting Codex"
    return made


async def fetch_late(places: Places, state_dir: Path, place: str, run_id: str) -> None:
    """Fetch the changes of a run whose place could not send them when the run ended.

    Raises:
        InvalidArguments: They are no longer kept at the place, or the place has been removed.
        PlaceUnavailable: The place cannot be reached, or another run works in the copy.
    """
    found = await on_disk(kept_run.find, state_dir, run_id)
    if found is None or found[1].has_changes or found[1].is_discarded:
        return
    site, (folder, kept) = places.of(place), found
    try:
        shadow = await on_disk(lambda: Shadow.open(state_dir.resolve(), Path(kept.root)))
        changes = await _collect_again(site, shadow, kept)
        await on_disk(kept_run.save_changes, folder, kept, changes)
    except (TreeError, OSError) as error:
        raise InvalidArguments([f"run_id: {error}"]) from error


async def _collect_again(site: Elsewhere, shadow: Shadow, kept: KeptRun) -> Changes:
    """Connect to a place once more, and fetch what was changed in the copy of a run there.

    Raises:
        PlaceUnavailable: The place cannot be reached, or the copy is in use.
        TreeError: The copy is no longer kept, here or there.
    """
    name = site.place.name
    try:
        snapshot = await on_disk(load_snapshot, shadow, kept.snapshot)
        with anyio.fail_after(AGAIN_WITHIN_S):
            async with (
                site.starting,
                open_seat(
                    *(replace(site.place, node=kept.node), site.mirror, kept.run_id, shadow),
                    links=site.links,
                ) as seat,
            ):
                if await seat.reopen(kept.copy) is not None:
                    raise TreeError(f"the copy of {kept.run_id} is no longer kept at {name}")
                return await seat.collect(snapshot)
    except TimeoutError:
        problem = f"it did not send the changes within {AGAIN_WITHIN_S:g} s"
        raise PlaceUnavailable(name, problem) from None


async def _settle(
    seat: Seat, shadow: Shadow, known: tuple[str, Snapshot] | None
) -> tuple[Snapshot, Changes | None]:
    """Give the seat the copy of an earlier run, or a new one.

    Returns:
        The snapshot that was laid out, and what earlier runs have changed in the copy.
    """
    objects = await seat.reopen(known[0] if known is not None else None)
    if objects is None and known is not None:
        return known[1], await seat.collect(known[1])
    snapshot = await on_disk(take_snapshot, shadow)
    await seat.lay(snapshot, objects or ())
    return seat.snapshot or snapshot, None


def _place_of(site: Elsewhere, thread_id: str | None) -> Place:
    """Return the place, and of a Ray cluster the machine that has the thread."""
    home = site.mirror.find_home(thread_id) if thread_id is not None else None
    return replace(site.place, node=home.node) if home is not None else site.place


def _known_copy(
    site: Elsewhere, shadow: Shadow, run: Run, before: CopyPlace
) -> tuple[str, Snapshot] | None:
    """Return the id and the snapshot of the copy in which the thread worked before."""
    thread_id = run.request.thread_id
    home = site.mirror.find_home(thread_id) if thread_id is not None else None
    if home is None:
        return None
    with suppress(TreeError):
        snapshot = load_snapshot(shadow, home.snapshot)
        with suppress(OSError):
            os.utime(shadow.folder / "snapshots" / snapshot.id)  # It is kept on from now.
        return before.copy, snapshot
    return None
