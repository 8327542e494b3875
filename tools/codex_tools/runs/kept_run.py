"""Keep what a run changed in its project beside its result; of an isolated run its copy, too.

STATE/trees/KEY/runs/RUN.json       the run's snapshot and copy, and the paths that it changed
STATE/trees/KEY/runs/RUN.changes    its changes, as `Changes.dump` writes them

Any process of this user may read and write these files. Each is replaced as a whole.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import cast

from codex_tools.codex.json_object import Json
from codex_tools.worktree.apply_plan import applied_paths
from codex_tools.worktree.copies import open_copy
from codex_tools.worktree.repository import read_file
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import load_snapshot, write_whole
from codex_tools.worktree.tree_changes import Changes, changes_of
from codex_tools.worktree.tree_error import CopyBusy, TreeError

VERSION = 1
"""Version of these files: raise it when the meaning of a field changes, not for a new field."""

RECORD_LIMIT = 1 << 28
"""Maximum bytes of a file that is read; 100,000 changed files take about 20 MB."""

PATHS_LIMIT = 5000
"""Maximum number of changed paths by which runs are compared with each other."""

ENDED_WITHIN_S = 5.0
"""Seconds to wait for the processes of a run whose server has died; its guard ends them."""

_RUN_ID = re.compile(r"run_[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A run that changed files, as it is kept with its project."""

    run_id: str
    root: str
    """The project's folder."""
    cwd: str
    """The folder in the project that the run was asked to work in."""
    snapshot: str
    copy: str
    """The copy that it worked in; empty if it was not isolated."""
    began_at: float
    """Time at which its snapshot was taken or it began to work, in seconds since 1970."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Paths that were not copied, each with the reason."""
    paths: tuple[str, ...] = ()
    """The paths that it changed, at most PATHS_LIMIT."""
    has_changes: bool = False
    """True if its changes are stored."""
    applied_at: float | None = None
    """Time at which all its changes were in the project; None before.

    For a run that was not isolated: the time of its end.
    """
    is_discarded: bool = False
    node: str = ""
    """The machine of a Ray cluster that has the copy; empty elsewhere."""
    version: int = VERSION

    @property
    def is_isolated(self) -> bool:
        """True if it worked in a copy of the project."""
        return bool(self.copy)


def find(state_dir: Path, run_id: str) -> tuple[Path, KeptRun] | None:
    """Return the folder of the project and what is kept of a run; None if nothing is."""
    if _RUN_ID.fullmatch(run_id) is None:
        return None
    for path in state_dir.glob(f"trees/*/runs/{run_id}.json"):
        if (kept := _read(path)) is not None:
            return path.parent.parent, kept
    return None


def save(folder: Path, kept: KeptRun) -> None:
    """Store *kept* in the project's *folder* of the state folder.

    Raises:
        OSError: It cannot be written.
    """
    runs = folder / "runs"
    runs.mkdir(mode=0o700, exist_ok=True)
    write_whole(runs / f"{kept.run_id}.json", json.dumps(asdict(kept)))


def save_changes(
    folder: Path, kept: KeptRun, changes: Changes, paths: Sequence[str] | None = None
) -> KeptRun:
    """Store what a run changed, and return the run with it.

    *paths* are the paths by which it is compared with other runs, by default those of *changes*.

    Raises:
        OSError: It cannot be written.
    """
    runs = folder / "runs"
    runs.mkdir(mode=0o700, exist_ok=True)
    write_whole(runs / f"{kept.run_id}.changes", changes.dump())
    if paths is None:
        paths = [each.path for each in changes.files]
    kept = replace(kept, paths=tuple(paths[:PATHS_LIMIT]), has_changes=True)
    save(folder, kept)
    return kept


def load_changes(folder: Path, kept: KeptRun) -> Changes:
    """Return what a run changed.

    Raises:
        TreeError: It is not kept.
    """
    content = read_file(str(folder / "runs" / f"{kept.run_id}.changes"), RECORD_LIMIT)
    if content is None:
        raise TreeError(f"the changes of {kept.run_id} are not kept")
    return Changes.load(content.decode("utf-8", "surrogatepass"))


def collect(state_dir: Path, folder: Path, kept: KeptRun) -> tuple[KeptRun, Changes]:
    """Find and store what a run changed that has ended without that, and return both.

    Raises:
        TreeError: Its copy is no longer kept, or is in use.
        OSError: The state folder cannot be written to.
    """
    shadow = Shadow.open(state_dir, Path(kept.root))
    until = time.monotonic() + ENDED_WITHIN_S
    while True:
        try:
            copy = open_copy(shadow, kept.copy)
            break
        except CopyBusy:
            if time.monotonic() >= until:
                raise
            time.sleep(0.1)
    with copy:
        if copy.snapshot != kept.snapshot:
            raise TreeError(f"the copy of {kept.run_id} is no longer kept")
        changes = changes_of(shadow, load_snapshot(shadow, kept.snapshot), copy)
    return save_changes(folder, kept, changes), changes


def is_applied(folder: Path, changes: Changes) -> bool:
    """Return True if all *changes* were applied to the project."""
    return applied_paths(folder, changes.id) >= {each.path for each in changes.files}


def others(folder: Path, kept: KeptRun) -> Iterator[KeptRun]:
    """Yield the other runs of the project whose changes may meet those of *kept*.

    A run that was applied before the other one began is a part of what that one began with. So is
    a run that worked in the project itself and ended before the other one began.
    """
    for path in sorted((folder / "runs").glob("run_*.json")):
        other = _read(path) if path.stem != kept.run_id else None
        if other is None or other.is_discarded or kept.is_discarded:
            continue
        if kept.is_isolated and other.copy == kept.copy:
            continue
        if kept.applied_at is not None and kept.applied_at <= other.began_at:
            continue
        if other.applied_at is None or other.applied_at > kept.began_at:
            yield other


def sharing(folder: Path, kept: KeptRun) -> list[KeptRun]:
    """Return all runs that worked in the same copy, this one included."""
    found = (_read(path) for path in sorted((folder / "runs").glob("run_*.json")))
    return [each for each in found if each is not None and each.copy == kept.copy]


def common_paths(kept: KeptRun, other: KeptRun) -> list[str]:
    """Return the paths that both runs changed, or of which one is a folder of the other."""
    theirs = set(other.paths)
    above = {outer for path in theirs for outer in _folders_of(path)}
    return [
        path
        for path in kept.paths
        if path in theirs or path in above or any(each in theirs for each in _folders_of(path))
    ]


def remove_old(state_dir: Path, older_than_s: float) -> None:
    """Remove what is kept of runs, and patches, that were not changed for *older_than_s*."""
    now = time.time()
    for pattern in ("trees/*/runs/run_*", "trees/*/patches/*", "trees/*/applied/*"):
        for path in state_dir.glob(pattern):
            with suppress(OSError):
                if now - path.stat().st_mtime > older_than_s:
                    path.unlink()


def _folders_of(path: str) -> Iterator[str]:
    outer = path.rpartition("/")[0]
    while outer:
        yield outer
        outer = outer.rpartition("/")[0]


def _read(path: Path) -> KeptRun | None:
    """Return what is kept of a run; None if it cannot be read. A later build may store more."""
    content = read_file(os.fspath(path), RECORD_LIMIT)
    if content is None:
        return None
    known = {each.name for each in fields(KeptRun)}
    try:
        read = cast(Json, json.loads(content))
        values = {key: value for key, value in read.items() if key in known}
        for name in ("left_out", "paths"):
            values[name] = tuple(values.get(name, ()))
        values["left_out"] = tuple((str(one), str(other)) for one, other in values["left_out"])
        kept = KeptRun(**values)
    except (ValueError, TypeError, AttributeError):
        return None
    return kept if kept.run_id == path.stem and kept.version == VERSION else None
