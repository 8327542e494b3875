"""Find the files of a git work tree that changed during a turn, by any means.

Codex reports the files that its patches change, but not those that its shell
commands change. So this module takes a snapshot of the work tree before a turn,
scans the tree again after it, and compares the files' contents. Commits, stashes,
switched branches and `git add` are not changes in themselves. Changes that the
user had not committed before the turn are not attributed to Codex.

git only lists names here; this module reads the contents itself. git must not
read them: .gitattributes, info/attributes and git's config may name filters, which
are programs. `git status` runs them, and the program in core.fsmonitor (seen with
git 2.39.5). Codex may have written those files, and could so escape its sandbox.

Every change between the two scans counts. Codex's changes cannot be distinguished
from those of the user, a file watcher or another run in the same tree.

Changes that are missed:
    * files that git ignores, files outside the tree, and empty folders
    * files in a nested repository; a submodule is one path that exists or not

Changes that are reported wrongly:
    * a file that was rewritten with its old content, if a filter (LFS, line ends)
      gives it another content in git
    * a file whose name changed only in case, where the file system ignores case
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import anyio

from codex_tools.codex.masking import quote
from codex_tools.codex.paths import repository_around
from codex_tools.codex.turn_result import ChangeKind
from codex_tools.codex.workers import on_disk
from codex_tools.worktree.files import File, GaveUp, Tree, folders_of, is_mount_point
from codex_tools.worktree.git import find_git, git_problem, run_git

FIRST_SCAN_S = 3.0
"""Seconds that the snapshot before a turn may take; the turn waits for it."""

SECOND_SCAN_S = 10.0
"""Seconds that the scan after a turn may take."""

FILES_LIMIT = 100_000
"""Files in the largest tree that is scanned.

10,000 files take about 0.2 s for each scan, and 4 MB of memory between the scans.
"""

SeenBy = Literal["patch", "git", "both"]
"""The source of a change: Codex's patches, the scans of the work tree, or both."""

_LOCATE_ARGS = ("rev-parse", "--show-toplevel", "--git-path", "index")
_LIST_ARGS = ("ls-files", "-z", "-t", "--stage", "--debug", "-c", "-o", "--exclude-standard")
_ENTRY = re.compile(
    rb"(?:\? ([^\0]+)|[A-Z] (\d{6}) ([0-9a-f]{40,64}) \d\t([^\0]+))\0"
    rb"(?:  (ctime: \d+:\d+\n  mtime: \d+:\d+)\n  dev: .*\n  uid: .*\n  size: (-?\d+)\t.*\n)?"
)
_TIMES = b"ctime: %d:%d\n  mtime: %d:%d"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a work tree at one time, without those that git ignores."""

    cwd: Path
    root: Path
    """The top of the work tree; *cwd* if the whole tree is too large."""
    git: Path
    index: Path
    taken_ns: int
    files: Mapping[bytes, File]
    """By path relative to *root*."""


@dataclass(frozen=True, slots=True)
class Changes:
    """How the files of a work tree differ from a snapshot."""

    cwd: Path
    root: Path
    kinds: Mapping[str, ChangeKind]
    """By path relative to *root*; U+FFFD replaces bytes that are not UTF-8."""
    looked_at: Set[str]
    """All paths that were compared, changed or not."""
    changed: tuple[bytes, ...] = ()
    """The paths of *kinds* as the file system has them."""

    def name(self, path: str) -> str | None:
        """Return *path* (absolute, or relative to *cwd*) relative to *root*; None if outside."""
        try:
            folder, _, base = str(self.cwd / path).rpartition("/")
            real = Path(os.path.realpath(folder or "/"), base)
        except ValueError:  # No file can have this path, for example one with a null byte.
            return None
        return str(real.relative_to(self.root)) if real.is_relative_to(self.root) else None


async def take_snapshot(cwd: Path, roots: Sequence[Path] = ()) -> Snapshot | None:
    """Return a snapshot of the work tree around *cwd*, or None if that is not possible.

    It is not possible without git, outside a repository, in a repository of another
    user, with more than FILES_LIMIT files in *cwd*, or within FIRST_SCAN_S.
    Nor is it possible if the repository's settings name a work tree without *cwd*. Of a
    work tree that is not the folder of `.git`, or is outside the *roots*, only *cwd* is
    scanned: it may belong to another project.
    Writes nothing, but git updates the mtime of a split index.
    """
    cwd = await on_disk(Path(cwd).resolve)
    git = await on_disk(find_git, cwd)
    if git is None:
        return None
    until = time.monotonic() + FIRST_SCAN_S
    with anyio.move_on_after(FIRST_SCAN_S):
        answer = await run_git(git, cwd, _LOCATE_ARGS)
        lines = [] if answer is None else os.fsdecode(answer).split("\n")
        if len(lines) != 3:
            return None
        root, index = Path(lines[0]), cwd / lines[1]
        if not cwd.is_relative_to(root):
            return None
        is_known = root == await on_disk(repository_around, cwd) and (
            not roots or any(root.is_relative_to(each) for each in roots)
        )
        for folder in dict.fromkeys((root, cwd) if is_known else (cwd,)):
            snapshot = Snapshot(cwd, folder, git, index, time.time_ns(), {})
            files = await _scan(snapshot, until, _add_contents)
            if files is not None:
                return replace(snapshot, files=files)
    return None


async def changes_since(before: Snapshot) -> Changes | None:
    """Scan the tree again and return how it differs from *before*, or None if that fails.

    It also fails if it takes longer than SECOND_SCAN_S.
    """
    until = time.monotonic() + SECOND_SCAN_S
    with anyio.move_on_after(SECOND_SCAN_S):
        return await _scan(before, until, partial(_compare, before))
    return None


async def explain_unseen(cwd: Path) -> str:
    """Return the reason why no changes can be found in *cwd*, as the end of a sentence."""
    git = await on_disk(find_git, cwd)
    if git is None:
        around = await on_disk(repository_around, cwd)
        return "there is no git to list files" if around else "cwd is in no git repository"
    problem, answer = "", None
    with anyio.move_on_after(FIRST_SCAN_S):
        problem = await git_problem(git, cwd, _LOCATE_ARGS)
        answer = await run_git(git, cwd, _LOCATE_ARGS)
    if problem:
        return f"git says: {problem}"
    root = os.fsdecode(answer or b"").partition("\n")[0]
    if root and not (await on_disk(Path(cwd).resolve)).is_relative_to(root):
        return f"the repository's work tree is elsewhere, in {quote(root, 300)}"
    return "the work tree is too large or too slow to read"


def merge(
    patched: Sequence[tuple[str, ChangeKind]], seen: Changes | None
) -> tuple[tuple[str, ChangeKind, SeenBy], ...]:
    """Return each changed path, the kind of its change and its source.

    Patched paths come first, in their order. The others follow, those near the root
    first, because installers write deep below it.

    Args:
        patched: The net change of each path by Codex's patches.
        seen: The changes that the scans found, or None. For a path that was compared,
            they decide whether and how it changed.
    """
    merged: list[tuple[str, ChangeKind, SeenBy]] = []
    if seen is None:
        return tuple((path, kind, "patch") for path, kind in patched)
    rest = dict(seen.kinds)
    for path, kind in patched:
        name = seen.name(path)
        if name is None:
            merged.append((path, kind, "patch"))
        elif name in seen.looked_at:
            if (truth := rest.pop(name, None)) is not None:
                merged.append((path, truth, "both"))
        elif os.path.lexists(seen.root / name):
            merged.append((path, kind, "patch"))
        elif kind != "add":  # It existed before the turn, and git ignored it.
            merged.append((path, "delete", "patch"))
    root = _to_text(os.fsencode(seen.root)).rstrip("/")
    for name in sorted(rest, key=lambda name: (name.count("/"), name)):
        merged.append((f"{root}/{name}", rest[name], "git"))
    return tuple(merged)


async def _scan(
    at: Snapshot, until: float, finish: Callable[[Tree, dict[bytes, File]], T]
) -> T | None:
    """Find the files that exist now and return the result of *finish*.

    Returns None if git fails or the scan gives up.
    """
    index_ns = await on_disk(_mtime_ns, at.index)
    listing = await run_git(at.git, at.root, _LIST_ARGS)
    if listing is None:
        return None

    def work() -> T | None:
        tree = Tree(os.fsencode(at.root), until)
        try:
            return finish(tree, _parse_listing(tree, listing, index_ns))
        except GaveUp:
            return None

    return await on_disk(work, abandon=True)


def _mtime_ns(path: Path) -> int:
    """Return the mtime of *path* in nanoseconds since the epoch, or 0 if it has none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _parse_listing(tree: Tree, listing: bytes, index_ns: int) -> dict[bytes, File]:
    """Return the files in git's *listing* that exist.

    Args:
        tree: The tree in which they are looked up.
        listing: The output of `git ls-files`.
        index_ns: The mtime of git's index, in nanoseconds since the epoch.

    Raises:
        GaveUp: There are too many files, time is up, or the listing has an unknown form.
    """
    files: dict[bytes, File] = {}
    end = 0
    for listed in _ENTRY.finditer(listing):
        if listed.start() != end or len(files) >= FILES_LIMIT:
            raise GaveUp
        end = listed.end()
        untracked, mode, blob, path, times, size = listed.groups()
        path = (path or untracked).rstrip(b"/")
        if path.startswith(b"/") or b"/../" in b"/%b/" % path:
            continue  # Only a forged index holds such a path.
        file = tree.find(path, repo=mode == b"160000" or listing[end - 2 : end] == b"/\0")
        if file is None:
            continue
        if mode is not None:
            file.tracked = True
            # If its times and size are those in the index, git's id of the content is
            # valid. A file as new as the index may have changed after git read it.
            if (
                times == _TIMES % (*divmod(file.ctime_ns, 10**9), *divmod(file.mtime_ns, 10**9))
                and (int(size) ^ file.size) & 0xFFFF_FFFF == 0
                and file.mtime_ns < index_ns
            ):
                file.blob = blob
        files[path] = file
    if end != len(listing):
        raise GaveUp
    return files


def _add_contents(tree: Tree, files: dict[bytes, File]) -> dict[bytes, File]:
    """Add the ids of contents that git does not know to *files*, small files first."""
    unknown = [path for path, file in files.items() if file.blob is None]
    for path in sorted(unknown, key=lambda path: files[path].size):
        files[path].is_read = True
        files[path].blob = tree.read(path, files[path])
    return files


def _compare(before: Snapshot, tree: Tree, after: dict[bytes, File]) -> Changes:
    """Return how the files *after* the turn differ from the snapshot *before* it."""
    kinds: dict[bytes, ChangeKind] = {}
    for path, old in before.files.items():
        # A file that git no longer lists may still exist: it is ignored now, or it is
        # in a nested repository.
        new = after.get(path) or tree.find(path, repo=old.is_folder)
        if new is None:
            kinds[path] = "delete"
        elif not _is_same(tree, path, old, new, before.taken_ns):
            kinds[path] = "update"
    added = after.keys() - before.files.keys()
    added -= {
        path
        for path in added
        if not after[path].is_folder and is_mount_point(path, after[path].size)
    }
    kinds |= dict.fromkeys(added - _existed_before(before, after, added, kinds), "add")
    return Changes(
        before.cwd,
        before.root,
        {_to_text(path): kind for path, kind in kinds.items()},
        {_to_text(path) for path in before.files.keys() | after.keys()},
        tuple(kinds),
    )


def _is_same(tree: Tree, path: bytes, old: File, new: File, taken_ns: int) -> bool:
    """Return True if *new* has the kind and the content of *old*.

    Without a known content, the same mtime is taken for the same content.
    """
    if old.kind != new.kind:
        return False
    if old.is_folder:
        return True
    same_stat = (old.size, old.mtime_ns, old.ctime_ns, old.inode) == (
        *(new.size, new.mtime_ns, new.ctime_ns, new.inode),
    )
    if same_stat and not old.touched_since(taken_ns):
        return True
    if old.size != new.size:
        return False
    if old.blob is not None:
        if old.blob == new.blob:
            return True
        read = tree.read(path, new, len(old.blob))
        if read is not None:
            return read == old.blob
    return old.mtime_ns == new.mtime_ns


def _existed_before(
    before: Snapshot, after: Mapping[bytes, File], added: Set[bytes], changed: Collection[bytes]
) -> set[bytes]:
    """Return those of the *added* paths that existed before, but were not listed.

    Such a file was ignored or in a nested repository, and has not changed since the
    snapshot. Files that came with a moved folder have not changed either. So two more
    signs are needed: an inode that the snapshot does not hold, and either changed
    ignore rules, an entry in git's index or a nested repository.
    """
    rules_changed = any(path.endswith(b".gitignore") for path in (*changed, *added))
    inodes = {file.inode for file in before.files.values()}
    repos = {path for path, file in before.files.items() if file.is_folder}
    hidden: set[bytes] = set()
    for path in added:
        file = after[path]
        if file.is_folder:
            is_hidden = any(known.startswith(path + b"/") for known in before.files)
        else:
            is_hidden = (
                not file.touched_since(before.taken_ns)
                and file.inode not in inodes
                and (rules_changed or file.tracked or not repos.isdisjoint(folders_of(path)))
            )
        if is_hidden:
            hidden.add(path)
    return hidden


def _to_text(path: bytes) -> str:
    return path.decode("utf-8", "replace")
