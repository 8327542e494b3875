"""Decide for each changed path what applying it to the project means, against its files now.

Each path has three states: in the snapshot, after the run, and in the project now. What only the
run changed is written or deleted. What both changed is merged by lines, or is a conflict. Planning
writes nothing to the project.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from codex_tools.worktree.no_links import open_root, parent_of, read_at
from codex_tools.worktree.repository import read_file
from codex_tools.worktree.scan import PATH_LIMIT, is_plain
from codex_tools.worktree.shadow import BLOB_LIMIT, Shadow
from codex_tools.worktree.tree_changes import Changes, FileChange
from codex_tools.worktree.tree_error import GitFailed, TreeError

Action = Literal["write", "delete", "merge", "same", "conflict"]

NO_FILE = "000000"
FOLDER = "040000"
SPECIAL = "special"
BLOCKED = "blocked"
LINK = "120000"

_BINARY_SAMPLE = 8000
"""Bytes at the start of a file in which a null byte makes it binary, as for git."""


@dataclass(frozen=True, slots=True)
class Now:
    """What is at a path now."""

    mode: str
    """As git writes it; NO_FILE, FOLDER, SPECIAL, or BLOCKED if a folder of it is none."""
    blob: str = ""
    permissions: int = 0
    detail: str = ""
    """The path that blocks it, or why it cannot be read."""
    stamp: tuple[int, ...] = ()
    """Stat data that a change of the file changes."""

    def is_like(self, mode: str, blob: str) -> bool:
        """Return True if it has that kind and content."""
        return self.mode == mode and (mode == NO_FILE or self.blob == blob)


@dataclass(frozen=True, slots=True)
class PathPlan:
    """What applying means for one path."""

    path: str
    action: Action
    reason: str
    now: Now
    mode: str = NO_FILE
    """The mode that the path will have."""
    blob: str = ""
    """The content that it will have, in the shadow repository."""
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What applying changes to a project means."""

    changes: str
    root: Path
    files: tuple[PathPlan, ...]
    objects: tuple[str, ...]

    @property
    def conflicts(self) -> tuple[PathPlan, ...]:
        """The paths that cannot be applied."""
        return tuple(each for each in self.files if each.action == "conflict")

    @property
    def work(self) -> tuple[PathPlan, ...]:
        """The paths that will change."""
        return tuple(each for each in self.files if each.action in ("write", "delete", "merge"))


def make_plan(shadow: Shadow, changes: Changes, paths: Collection[str] | None = None) -> Plan:
    """Plan how to apply *changes* to the project.

    Args:
        shadow: The project's shadow repository.
        changes: The changes of a run.
        paths: The paths to apply, files or folders of them; None for all.

    Raises:
        TreeError: One of *paths* is not among the changes, or git failed.
    """
    chosen = choose(changes, paths)
    applied = applied_paths(shadow.folder, changes.id)
    root_fd = open_root(shadow.root)
    try:
        planned = [
            _plan_path(shadow, changes, root_fd, each, done=each.path in applied) for each in chosen
        ]
        planned = list(_resolve(root_fd, planned))
    finally:
        os.close(root_fd)
    return Plan(changes.id, shadow.root, tuple(planned), changes.objects)


def applied_paths(folder: Path, changes: str) -> frozenset[str]:
    """Return the paths of *changes* that were applied before; *folder* is the project's."""
    content = read_file(str(folder / "applied" / f"{changes}.json"), 1 << 28)
    try:
        return frozenset(json.loads(content)["paths"]) if content is not None else frozenset()
    except (ValueError, KeyError, TypeError):
        return frozenset()


def look(root_fd: int, path: bytes, algorithm: str) -> Now:
    """Return what is at *path*; no link is followed.

    Args:
        root_fd: The project's folder.
        path: A path below it.
        algorithm: "sha1" or "sha256": how git names contents.
    """
    try:
        with parent_of(root_fd, path) as folder:
            name = path.rpartition(b"/")[2]
            state = os.lstat(name, dir_fd=folder)
            stamp = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
            permissions = stat.S_IMODE(state.st_mode)
            if stat.S_ISDIR(state.st_mode):
                return Now(FOLDER)
            if stat.S_ISLNK(state.st_mode):
                content = os.readlink(name, dir_fd=folder)
                digest = hashlib.new(algorithm, b"blob %d\0" % len(content), usedforsecurity=False)
                digest.update(content)
                return Now(LINK, digest.hexdigest(), permissions, stamp=stamp)
            if not stat.S_ISREG(state.st_mode):
                return Now(SPECIAL, detail="it is not a regular file")
            mode = "100755" if permissions & 0o100 else "100644"
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(name, flags, dir_fd=folder), "rb") as opened:  # noqa: PTH123
                size = os.fstat(opened.fileno()).st_size
                digest = hashlib.new(algorithm, b"blob %d\0" % size, usedforsecurity=False)
                while block := opened.read(1 << 20):
                    digest.update(block)
            return Now(mode, digest.hexdigest(), permissions, stamp=stamp)
    except FileNotFoundError:
        return Now(NO_FILE)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return Now(BLOCKED, detail=os.fsdecode(_blocker(root_fd, path)))
        return Now(SPECIAL, detail=f"it cannot be read: {error.strerror or error}")


def _blocker(root_fd: int, path: bytes) -> bytes:
    """Return the outermost folder of *path* that is a link or a file."""
    parts = path.split(b"/")
    for count in range(1, len(parts)):
        outer = b"/".join(parts[:count])
        try:
            with parent_of(root_fd, outer) as folder:
                if not stat.S_ISDIR(os.lstat(parts[count - 1], dir_fd=folder).st_mode):
                    return outer
        except OSError:
            return outer
    return path


def choose(changes: Changes, paths: Collection[str] | None) -> list[FileChange]:
    """Return the changes of *paths*, files or folders; None for all.

    Raises:
        TreeError: One of them was not changed.
    """
    if paths is None:
        return list(changes.files)
    chosen: list[FileChange] = []
    unknown = set(paths)
    for each in changes.files:
        named = {p for p in paths if each.path == p or each.path.startswith(p.rstrip("/") + "/")}
        if named:
            chosen.append(each)
            unknown -= named
    if unknown:
        raise TreeError(f"paths: the run did not change {', '.join(sorted(unknown)[:5])}")
    return chosen


def _plan_path(
    shadow: Shadow, changes: Changes, root_fd: int, change: FileChange, *, done: bool
) -> PathPlan:
    """Plan one path, without regard to what other paths of the plan do."""
    path = os.fsencode(change.path)
    if not is_plain(path) or len(os.fsencode(shadow.root)) + len(path) > PATH_LIMIT:
        return PathPlan(change.path, "conflict", "the path is not allowed", Now(NO_FILE))
    now = look(root_fd, path, shadow.object_format)
    made = PathPlan(change.path, "same", "", now, warning=change.warning)
    if done:
        return replace(made, reason="applied before")
    if (inner := _repository_in(root_fd, path, change.part)) is not None:
        return replace(made, action="conflict", reason=f"{inner} is another repository now")
    made = replace(made, mode=change.new_mode, blob=change.new_blob)
    if change.new_mode not in (NO_FILE, "100644", "100755", LINK):
        return replace(made, action="conflict", reason="it is not a file")
    if now.mode in (SPECIAL, BLOCKED, FOLDER) and change.new_mode != NO_FILE:
        return _blocked(made)
    if now.is_like(change.new_mode, change.new_blob):
        return replace(made, reason="the project has the same content")
    if now.mode in (SPECIAL, BLOCKED, FOLDER):
        if now.mode == BLOCKED:
            return replace(made, reason="it is gone already")
        return replace(made, action="conflict", reason=f"deleted by the run, now {_what(now)}")
    if now.is_like(change.old_mode, change.old_blob):
        action: Action = "delete" if change.kind == "delete" else "write"
        return replace(made, action=action, reason="only the run changed it")
    return _both(shadow, changes, change, made)


def _what(now: Now) -> str:
    return "a folder" if now.mode == FOLDER else now.detail


def _blocked(made: PathPlan) -> PathPlan:
    """Return a conflict that `_resolve` may lift: another path of the plan makes room."""
    now = made.now
    if now.mode == SPECIAL:
        return replace(made, action="conflict", reason=now.detail)
    if now.mode == FOLDER:
        return replace(made, action="conflict", reason="a folder is in the way")
    return replace(made, action="conflict", reason=f"{now.detail} is a link or a file now")


def _both(shadow: Shadow, changes: Changes, change: FileChange, made: PathPlan) -> PathPlan:
    """Plan a path that was changed by the run and in the project."""
    root_fd = open_root(shadow.root)
    try:
        mine = _content(root_fd, os.fsencode(change.path))
    finally:
        os.close(root_fd)
    return merge_contents(shadow, changes.objects, change, made, mine)


def merge_contents(
    shadow: Shadow,
    objects: Sequence[str],
    change: FileChange,
    made: PathPlan,
    mine: bytes | None,
) -> PathPlan:
    """Plan a path that was changed by the run and elsewhere.

    Args:
        shadow: The repository with the contents.
        objects: The folders of objects to borrow.
        change: The run's change.
        made: The plan so far, with the other side's state.
        mine: The other side's content; None if it cannot be merged.
    """
    now = made.now
    conflict = replace(made, action="conflict")
    if change.kind == "delete":
        return replace(conflict, reason="deleted by the run, and changed by now")
    if now.mode == NO_FILE:
        return replace(conflict, reason="changed by the run, and deleted by now")
    if LINK in (now.mode, change.new_mode, change.old_mode):
        return replace(conflict, reason="changed on both sides, and one is a symbolic link")
    if change.kind == "add" and now.blob != change.new_blob:
        return replace(conflict, reason="added by the run, and exists with other content")
    old_mode = change.old_mode if change.kind == "update" else change.new_mode
    mode = now.mode if change.new_mode == old_mode else change.new_mode
    if now.blob in (change.old_blob, change.new_blob):
        if now.blob == change.new_blob and now.mode == mode:
            return replace(made, mode=mode, reason="the project has the same content")
        return replace(made, mode=mode, action="merge", reason="content and mode are combined")
    if change.new_blob == change.old_blob:
        reason = "only the mode changes"
        if now.mode == mode:
            return replace(made, mode=mode, blob=now.blob, reason="the project has the same mode")
        if mine is None:
            return replace(conflict, reason="changed on both sides, and too large to merge")
        blob = shadow.write_blob(mine)
        return replace(made, mode=mode, blob=blob, action="merge", reason=reason)
    found = shadow.contents((change.old_blob, change.new_blob), objects)
    base, theirs = found[change.old_blob], found[change.new_blob]
    if mine is None or base is None or theirs is None:
        return replace(conflict, reason="changed on both sides, and too large to merge")
    if any(b"\0" in each[:_BINARY_SAMPLE] for each in (mine, base, theirs)):
        return replace(conflict, reason="a binary file, changed on both sides")
    merged = merge_lines(shadow, mine, base, theirs)
    if merged is None:
        return replace(conflict, reason="both changed the same lines")
    blob = shadow.write_blob(merged)
    if (now.mode, now.blob) == (mode, blob):
        return replace(made, mode=mode, blob=blob, reason="the project has these changes already")
    return replace(made, action="merge", mode=mode, blob=blob, reason="both changed other lines")


def _content(root_fd: int, path: bytes) -> bytes | None:
    try:
        with parent_of(root_fd, path) as folder:
            return read_at(folder, path.rpartition(b"/")[2], BLOB_LIMIT)
    except OSError:
        return None


def merge_lines(shadow: Shadow, mine: bytes, base: bytes, theirs: bytes) -> bytes | None:
    """Merge two versions of a text by lines; return None if both changed the same lines."""
    with tempfile.TemporaryDirectory(dir=shadow.folder) as folder:
        names = ("mine", "base", "theirs")
        for name, content in zip(names, (mine, base, theirs), strict=True):
            Path(folder, name).write_bytes(content)
        files = [os.fspath(Path(folder, name)) for name in names]
        try:
            return shadow.git().run("merge-file", "-p", "-q", *files)
        except GitFailed:
            return None


def _repository_in(root_fd: int, path: bytes, part: str) -> str | None:
    """Return the folder of *path*, inside *part*, that has a git folder of its own."""
    parts = path.split(b"/")
    start = len(os.fsencode(part).split(b"/")) if part else 0
    for count in range(start + 1, len(parts)):
        try:
            with parent_of(root_fd, b"/".join([*parts[:count], b".git"])) as folder:
                os.lstat(b".git", dir_fd=folder)
                return os.fsdecode(b"/".join(parts[:count]))
        except OSError:
            continue
    return None


def _resolve(root_fd: int, planned: list[PathPlan]) -> Iterator[PathPlan]:
    """Yield the plans; lift conflicts where deleted paths make room, find clashes of case."""
    deleted = {each.path for each in planned if each.action == "delete"}
    gone = deleted | {each.path for each in planned if each.now.mode == NO_FILE}
    folded: Mapping[str, int] = {}
    if _ignores_case(root_fd):
        counts: dict[str, int] = {}
        for each in planned:
            if each.action != "delete":
                counts[each.path.casefold()] = counts.get(each.path.casefold(), 0) + 1
        folded = counts
    for each in planned:
        if folded.get(each.path.casefold(), 0) > 1:
            yield replace(each, action="conflict", reason="two names differ only in case")
        elif each.action != "conflict":
            yield each
        elif (each.now.mode == BLOCKED and each.now.detail in deleted) or (
            each.now.mode == FOLDER and _is_emptied(root_fd, os.fsencode(each.path), gone)
        ):
            yield replace(each, action="write", reason="only the run changed it")
        else:
            yield each


def _is_emptied(root_fd: int, path: bytes, gone: Collection[str]) -> bool:
    """Return True if each file in the folder *path* is among those *gone* after the plan."""
    try:
        with parent_of(root_fd, path + b"/x") as folder:
            for name in os.listdir(folder):  # noqa: PTH208
                inner = path + b"/" + os.fsencode(name)
                if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                    if not _is_emptied(root_fd, inner, gone):
                        return False
                elif os.fsdecode(inner) not in gone:
                    return False
    except OSError:
        return False
    return True


def _ignores_case(root_fd: int) -> bool:
    """Return True if the file system does not tell names by case, judged by one name."""
    for name in os.listdir(root_fd):
        if name.swapcase() != name:
            try:
                one = os.lstat(name, dir_fd=root_fd)
                other = os.lstat(name.swapcase(), dir_fd=root_fd)
            except OSError:
                return False
            return one.st_ino == other.st_ino
    return False
