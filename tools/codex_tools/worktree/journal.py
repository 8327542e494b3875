"""Apply a plan to the project so that all of it happens or none.

The old and the new bytes go to a journal in the state folder first. New files are written beside
their place and renamed. If that fails, the old files are restored. After a crash, `recover` deletes
what was only prepared, or completes what was begun. git's index is not touched.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from codex_tools.codex.private_folder import claim_folder
from codex_tools.worktree.apply_plan import (
    BLOCKED,
    FOLDER,
    LINK,
    NO_FILE,
    Now,
    PathPlan,
    Plan,
    applied_paths,
    look,
)
from codex_tools.worktree.no_links import open_root, parent_of, remove_folder
from codex_tools.worktree.repository import read_file
from codex_tools.worktree.scan import is_plain
from codex_tools.worktree.shadow import LOCK_WITHIN_S, Shadow, locked
from codex_tools.worktree.snapshot import write_whole
from codex_tools.worktree.tree_error import NotAppliable, RolledBack, TreeError

FORMAT = 1
"""The version of the journal."""

_ID = re.compile(r"[0-9a-f-]{1,64}")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What `recover` did with one journal."""

    root: Path
    completed: bool
    """True if the application was completed; False if it was undone."""
    untouched: tuple[str, ...]
    """Paths that were left alone, because they were changed after the crash."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One path to change."""

    number: int
    path: bytes
    mode: str
    blob: str
    permissions: int | None
    """Permissions of the new file; None for those that new files get."""
    old: Now
    old_mtime_ns: int

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]


def apply_plan(shadow: Shadow, plan: Plan) -> Plan:
    """Carry out *plan*, and record that its paths were applied; return the plan.

    Raises:
        NotAppliable: It holds a conflict, or a file has changed since; nothing was changed.
        RolledBack: A file could not be written; all files are as before.
    """
    if plan.conflicts:
        first = plan.conflicts[0]
        raise NotAppliable(f"{first.path}: {first.reason}")
    with locked(shadow.folder / "apply.lock", LOCK_WITHIN_S):
        for folder in _journals(shadow):
            _finish(shadow, folder)
        if plan.work:
            root_fd = open_root(shadow.root)
            try:
                _apply(shadow, plan, root_fd)
            finally:
                os.close(root_fd)
        _record(shadow, plan.changes, [each.path for each in plan.files])
    return plan


def recover(shadow: Shadow) -> tuple[Recovered, ...]:
    """Undo or complete what a killed process had begun to apply to the project.

    Raises:
        CopyBusy: Another process is applying changes.
    """
    with locked(shadow.folder / "apply.lock", LOCK_WITHIN_S):
        return tuple(done for folder in _journals(shadow) if (done := _finish(shadow, folder)))


def needs_recovery(shadow: Shadow) -> bool:
    """Return True if there is a journal: a process applies changes now, or was killed."""
    # What has no journal yet is being prepared, by a process that holds the lock.
    return any((shadow.folder / "journals").glob("*/journal.json"))


def _journals(shadow: Shadow) -> Iterator[Path]:
    for folder in sorted((shadow.folder / "journals").glob("*")):
        if _ID.fullmatch(folder.name) and (folder / "journal.json").exists():
            yield folder
        else:
            remove_folder(folder)


def _apply(shadow: Shadow, plan: Plan, root_fd: int) -> None:
    claim_folder(shadow.folder / "journals")
    name = f"{int(time.time()):x}-{secrets.token_hex(6)}"
    folder = shadow.folder / "journals" / name
    for each in (folder, folder / "old", folder / "new"):
        each.mkdir(mode=0o700)
    try:
        steps = [
            _prepare(shadow, plan, folder, root_fd, number, each)
            for number, each in enumerate(plan.work)
        ]
        made = _missing_folders(root_fd, steps)
        _write_journal(folder, plan, steps, made)
    except BaseException:
        remove_folder(folder)
        raise
    _sync(folder)
    try:
        _stage(folder, root_fd, steps)
        _check_again(shadow, root_fd, steps)
    except BaseException as error:
        _clear(folder, root_fd, steps, made)
        remove_folder(folder)
        if isinstance(error, OSError):
            raise RolledBack(f"nothing was changed: {error.strerror or error}") from error
        raise
    (folder / "begun").touch()
    _sync(folder)
    done: list[_Step] = []
    try:
        for step in _in_order(steps):
            done.append(step)
            _do(folder, root_fd, step)
    except BaseException as error:
        for step in reversed(done):
            _undo(shadow, folder, root_fd, step)
        _clear(folder, root_fd, steps, made)
        remove_folder(folder)
        if isinstance(error, OSError):
            raise RolledBack(f"the files were restored: {error.strerror or error}") from error
        raise
    _record(shadow, plan.changes, [each.path for each in plan.files])
    (folder / "journal.json").unlink()
    remove_folder(folder)


def _prepare(
    shadow: Shadow, plan: Plan, folder: Path, root_fd: int, number: int, file: PathPlan
) -> _Step:
    """Copy the old and the new content of a path to the journal."""
    path = os.fsencode(file.path)
    mtime_ns = 0
    if file.now.mode not in (NO_FILE, FOLDER, BLOCKED):
        with parent_of(root_fd, path) as parent:
            name = path.rpartition(b"/")[2]
            mtime_ns = os.lstat(name, dir_fd=parent).st_mtime_ns
            if file.now.mode == LINK:
                content = os.readlink(name, dir_fd=parent)
                (folder / "old" / str(number)).write_bytes(content)
            else:
                _copy_out(parent, name, folder / "old" / str(number))
    if file.mode != NO_FILE:
        with (folder / "new" / str(number)).open("wb") as new:
            git = shadow.git(objects=plan.objects)
            git.run("cat-file", "blob", file.blob or "none", into=new, limit=1 << 40)
            new.flush()
            os.fsync(new.fileno())
    permissions = None
    if file.now.mode in ("100644", "100755") and file.mode in ("100644", "100755"):
        permissions = file.now.permissions
        if file.mode != file.now.mode:
            permissions &= ~0o111
            if file.mode == "100755":
                permissions |= (permissions & 0o444) >> 2
    return _Step(number, path, file.mode, file.blob, permissions, file.now, mtime_ns)


def _copy_out(parent: int, name: bytes, to: Path) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=parent), "rb") as opened, to.open("wb") as copied:  # noqa: PTH123
        shutil.copyfileobj(opened, copied, 1 << 20)
        copied.flush()
        os.fsync(copied.fileno())


def _missing_folders(root_fd: int, steps: Iterable[_Step]) -> list[bytes]:
    """Return the folders that the steps will make, the outer ones first."""
    missing: dict[bytes, None] = {}
    for step in steps:
        if step.mode == NO_FILE:
            continue
        parts = step.path.split(b"/")
        for count in range(1, len(parts)):
            outer = b"/".join(parts[:count])
            if outer not in missing:
                try:
                    with parent_of(root_fd, outer + b"/x"):
                        pass
                except OSError:
                    missing[outer] = None
    return list(missing)


def _write_journal(folder: Path, plan: Plan, steps: Iterable[_Step], made: list[bytes]) -> None:
    described = [
        {**asdict(step), "path": os.fsdecode(step.path), "old": asdict(step.old)} for step in steps
    ]
    journal = {
        **{"format": FORMAT, "changes": plan.changes, "root": os.fspath(plan.root)},
        **{"steps": described, "made": [os.fsdecode(each) for each in made]},
        "paths": [each.path for each in plan.files],
    }
    write_whole(folder / "journal.json", json.dumps(journal))


def _sync(folder: Path) -> None:
    fd = open_root(folder)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _temp(folder: Path, step: _Step) -> bytes:
    """Return the name of the new file beside its place."""
    return os.fsencode(f".apply-{folder.name}-{step.number}")


def _stage(folder: Path, root_fd: int, steps: Iterable[_Step]) -> None:
    """Write the new files beside their places, where these can be reached already."""
    for step in steps:
        if step.mode != NO_FILE and step.old.mode != BLOCKED:
            _write_temp(folder, root_fd, step)


def _write_temp(folder: Path, root_fd: int, step: _Step) -> None:
    source = folder / "new" / str(step.number)
    with parent_of(root_fd, step.path, []) as parent:
        _write_beside(parent, _temp(folder, step), source, step.mode, step.permissions)


def _write_beside(
    parent: int, name: bytes, source: Path, mode: str, permissions: int | None
) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)
    if mode == LINK:
        os.symlink(source.read_bytes(), name, dir_fd=parent)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o777 if mode == "100755" else 0o666, dir_fd=parent)
    with open(fd, "wb") as new, source.open("rb") as content:  # noqa: PTH123
        shutil.copyfileobj(content, new, 1 << 20)
        if permissions is not None:
            os.fchmod(fd, permissions)
        new.flush()
        os.fsync(fd)


def _check_again(shadow: Shadow, root_fd: int, steps: Iterable[_Step]) -> None:
    """Raise NotAppliable if a path is no longer as it was planned."""
    for step in steps:
        now = look(root_fd, step.path, shadow.object_format)
        if (now.mode, now.blob) != (step.old.mode, step.old.blob):
            raise NotAppliable(f"{os.fsdecode(step.path)} has changed since the plan was made")


def _in_order(steps: Iterable[_Step]) -> list[_Step]:
    """Return deletions first, so that they make room; then the others."""
    return sorted(steps, key=lambda step: (step.mode != NO_FILE, step.number))


def _do(folder: Path, root_fd: int, step: _Step) -> None:
    """Delete the file of a step, or put the new one into its place."""
    if step.mode == NO_FILE:
        with parent_of(root_fd, step.path) as parent:
            _check_stamp(parent, step)
            os.unlink(step.name, dir_fd=parent)
        _remove_empty(root_fd, step.path.rpartition(b"/")[0])
        return
    if step.old.mode == BLOCKED:
        _write_temp(folder, root_fd, step)
    if step.old.mode == FOLDER:
        _remove_empty_below(root_fd, step.path)
    with parent_of(root_fd, step.path) as parent:
        if step.old.mode in ("100644", "100755", LINK):
            _check_stamp(parent, step)
        temp = _temp(folder, step)
        os.rename(temp, step.name, src_dir_fd=parent, dst_dir_fd=parent)


def _check_stamp(parent: int, step: _Step) -> None:
    state = os.lstat(step.name, dir_fd=parent)
    stamp = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if step.old.stamp and stamp != tuple(step.old.stamp):
        raise OSError(f"{os.fsdecode(step.path)} changed at this moment")


def _remove_empty(root_fd: int, folder: bytes) -> None:
    """Remove *folder* and those above it as far as they are empty."""
    while folder:
        try:
            with parent_of(root_fd, folder) as parent:
                os.rmdir(folder.rpartition(b"/")[2], dir_fd=parent)
        except OSError:
            return
        folder = folder.rpartition(b"/")[0]


def _remove_empty_below(root_fd: int, folder: bytes) -> None:
    """Remove *folder* and the folders in it; a file in one of them makes this fail."""
    with suppress(FileNotFoundError), parent_of(root_fd, folder + b"/x") as inner:
        for name in os.listdir(inner):  # noqa: PTH208
            _remove_empty_below(root_fd, folder + b"/" + os.fsencode(name))
        with parent_of(root_fd, folder) as parent:
            os.rmdir(folder.rpartition(b"/")[2], dir_fd=parent)


def _undo(shadow: Shadow, folder: Path, root_fd: int, step: _Step) -> None:
    """Restore the old file of a step, unless it is there or was changed since."""
    now = look(root_fd, step.path, shadow.object_format)
    old = step.old
    if (now.mode, now.blob) == (old.mode, old.blob) or not now.is_like(step.mode, step.blob):
        return
    with suppress(OSError):
        if old.mode in (NO_FILE, FOLDER, BLOCKED):
            with parent_of(root_fd, step.path) as parent:
                os.unlink(step.name, dir_fd=parent)
            _remove_empty(root_fd, step.path.rpartition(b"/")[0])
            return
        with parent_of(root_fd, step.path, []) as parent:
            temp = _temp(folder, step)
            source = folder / "old" / str(step.number)
            permissions = None if old.mode == LINK else old.permissions
            _write_beside(parent, temp, source, old.mode, permissions)
            os.utime(
                temp,
                ns=(step.old_mtime_ns, step.old_mtime_ns),
                dir_fd=parent,
                follow_symlinks=False,
            )
            os.rename(temp, step.name, src_dir_fd=parent, dst_dir_fd=parent)


def _clear(folder: Path, root_fd: int, steps: Iterable[_Step], made: Iterable[bytes]) -> None:
    """Delete what was written beside the files, and the folders made for it."""
    for step in steps:
        with suppress(OSError), parent_of(root_fd, step.path) as parent:
            os.unlink(_temp(folder, step), dir_fd=parent)
    for each in sorted(made, key=len, reverse=True):
        with suppress(OSError), parent_of(root_fd, each) as parent:
            os.rmdir(each.rpartition(b"/")[2], dir_fd=parent)


def _finish(shadow: Shadow, folder: Path) -> Recovered | None:
    """Undo or complete the application that a killed process had begun."""
    root, steps, made, changes, paths = _read_journal(folder)
    untouched: list[str] = []
    begun = (folder / "begun").exists()
    try:
        root_fd = open_root(root)
    except OSError:  # The project is gone.
        remove_folder(folder)
        return None
    try:
        if begun:
            for step in _in_order(steps):
                now = look(root_fd, step.path, shadow.object_format)
                is_gone = step.mode == NO_FILE and now.mode == BLOCKED
                if is_gone or now.is_like(step.mode, step.blob):
                    continue
                is_old = (now.mode, now.blob) == (step.old.mode, step.old.blob)
                made_room = step.old.mode in (FOLDER, BLOCKED) and now.mode == NO_FILE
                if not (is_old or made_room):
                    untouched.append(os.fsdecode(step.path))
                    continue
                try:
                    if step.mode != NO_FILE:
                        _write_temp(folder, root_fd, step)
                    _do(folder, root_fd, step)
                except OSError:
                    untouched.append(os.fsdecode(step.path))
            _record(shadow, changes, [path for path in paths if path not in untouched])
            made = []
        _clear(folder, root_fd, steps, made)
    finally:
        os.close(root_fd)
    (folder / "journal.json").unlink()
    remove_folder(folder)
    return Recovered(root, begun, tuple(untouched))


def _read_journal(folder: Path) -> tuple[Path, list[_Step], list[bytes], str, list[str]]:
    content = read_file(str(folder / "journal.json"), 1 << 30)
    try:
        read = cast(dict[str, Any], json.loads(content or b""))
        if read["format"] != FORMAT:
            raise TreeError(f"the journal {folder} has an unknown format")
        steps = [
            _Step(
                number=int(each["number"]),
                path=os.fsencode(each["path"]),
                mode=each["mode"],
                blob=each["blob"],
                permissions=each["permissions"],
                old=_old(each["old"]),
                old_mtime_ns=each["old_mtime_ns"],
            )
            for each in read["steps"]
        ]
        made = [os.fsencode(each) for each in read["made"]]
        if not all(map(is_plain, [*made, *(step.path for step in steps)])):
            raise TreeError(f"the journal {folder} names a path that is not allowed")
        return Path(read["root"]), steps, made, read["changes"], read["paths"]
    except (ValueError, KeyError, TypeError) as error:
        raise TreeError(f"the journal {folder} cannot be read: {error}") from error


def _old(read: dict[str, Any]) -> Now:
    return Now(
        *(read["mode"], read["blob"], read["permissions"], read["detail"]), tuple(read["stamp"])
    )


def _record(shadow: Shadow, changes: str, paths: Iterable[str]) -> None:
    """Record that *paths* were applied, so that it is not done twice."""
    claim_folder(shadow.folder / "applied")
    known = sorted({*applied_paths(shadow.folder, changes), *paths})
    content = json.dumps({"paths": known, "at": time.time()})
    write_whole(shadow.folder / "applied" / f"{changes}.json", content)
