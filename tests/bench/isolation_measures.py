"""The measurements of snapshots and copies, beside `git worktree add` of the same commit."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from measures import HERE

sys.path.insert(0, str(HERE.parent))

from figure import Figure, pair

from codex_tools.worktree.copies import Copy, discard, lay_out
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import take_snapshot
from codex_tools.worktree.tree_changes import changes_of
from support.work_trees import run_git

FILES = 5_000
"""Default number of files; the limits of the big project are for LIMITS_FROM files and more."""

LIMITS_FROM = 50_000
FILE_BYTES = 10_800
"""Bytes of a file: 50,000 of them are the 540 MB of the limits."""

SNAPSHOT_RATIO = 0.15
LAYOUT_RATIO = 1.2
USED_RATIO = 0.15
ADDED_MS = 200.0
SMALL_FILES = 100

T = TypeVar("T")


class Timed(Protocol):
    """Measure the wall time of a piece of work under a name, and return what it returns."""

    def __call__(self, name: str, work: Callable[[], T]) -> T: ...


IDENTITY = ("-c", "user.name=A", "-c", "user.email=a@example.com")


def measure_isolation(runs: int, files: int = FILES) -> list[Figure]:
    """Return what isolation costs in a project with *files* files, and in a small one."""
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        since = time.perf_counter()
        done = work()
        taken.setdefault(name, []).append((time.perf_counter() - since) * 1000)
        return done

    with tempfile.TemporaryDirectory() as place:
        big = _make_project(Path(place, "big"), files)
        for number in range(runs):
            _measure_once(Path(place), big, number, timed)
        shadow = Shadow.open(Path(place, "state"), _make_project(Path(place, "small"), SMALL_FILES))
        take_snapshot(shadow)
        for _ in range(runs):
            timed("small", lambda: _run_once(shadow))
            timed("status", lambda: run_git(shadow.root, "status", "--short"))
    yardstick = tuple(taken["worktree"])
    name = f"isolation, {files:,} files"
    return [
        Figure(
            name,
            what,
            "ms",
            tuple(taken[key]),
            "git worktree add",
            yardstick,
            "ratio",
            limit if files >= LIMITS_FROM else None,
        )
        for what, key, limit in (
            ("first snapshot", "snapshot", SNAPSHOT_RATIO),
            ("layout", "layout", LAYOUT_RATIO),
            ("layout in a used copy", "used", USED_RATIO),
        )
    ] + [
        Figure(
            f"isolation, {SMALL_FILES} files",
            "all that a run adds",
            "ms",
            tuple(taken["small"]),
            "git status",
            tuple(taken["status"]),
            "difference",
            ADDED_MS,
        )
    ]


def _measure_once(place: Path, big: Path, number: int, timed: Timed) -> None:
    """Measure a copy of the project *big*, and a work tree of git's, with nothing known before.

    Nothing is deleted in between: writing is slow for seconds after a large tree was deleted.
    """
    tree, state = place / f"tree{number}", place / f"state{number}"
    _dirty(big, number)
    shadow = Shadow.open(state, big)
    snapshot = timed("snapshot", lambda: take_snapshot(shadow))

    def ours() -> Copy:
        os.sync()  # What was written before must not be written now.
        return timed("layout", lambda: lay_out(shadow, snapshot))

    def beside() -> None:
        os.sync()
        timed("worktree", lambda: run_git(big, "worktree", "add", "-q", "-d", str(tree)))

    copies: list[Copy] = []
    pair(number, lambda: copies.append(ours()), beside)
    (copy,) = copies
    (copy.folder / "0" / "0.py").write_text("changed by a run\n")
    discard(shadow, copy)
    _dirty(big, number + 1)
    later = take_snapshot(shadow)
    timed("used", lambda: lay_out(shadow, later)).close()


def _run_once(shadow: Shadow) -> None:
    """Do all that an isolated run does beside the run of Codex."""
    snapshot = take_snapshot(shadow)
    with lay_out(shadow, snapshot) as copy:
        changes_of(shadow, snapshot, copy)


def _make_project(root: Path, files: int) -> Path:
    """Make a repository with *files* committed files of text that does not compress well."""
    root.mkdir()
    run_git(root, "init", "-q")
    run_git(root, "config", "gc.auto", "0")
    for number in range(files):
        folder = root / str(number // 100)
        folder.mkdir(exist_ok=True)
        noise = os.urandom(FILE_BYTES // 2).hex()
        lines = (noise[at : at + 71] for at in range(0, len(noise), 71))
        (folder / f"{number % 100}.py").write_text("\n".join(lines))
    run_git(root, "add", ".")
    run_git(root, *IDENTITY, "commit", "-qm", "all")
    run_git(root, "gc", "-q")
    return root


def _dirty(root: Path, number: int) -> None:
    for each in range(20):
        (root / str(each % 10) / f"{each}.py").write_text(f"changed {number}\n")
    (root / f"new{number}.txt").write_text("new\n")
