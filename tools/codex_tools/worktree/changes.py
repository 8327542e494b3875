"""See what became of the user's files, by whatever means.

Codex tells of its patches, not of what its shell commands do to files. So the
files of a git work tree are looked at before a turn and after it. What counts
is what the tree holds, not what git makes of it: commits, stashes, switched
branches and `git add` are no changes in themselves, and what the user had not
committed is not taken for Codex's doing.

git only lists names here. It must not look at a file's content: the filters
that .gitattributes, info/attributes and the config may name are programs, and
`git status` runs them (seen with 2.39.5, as core.fsmonitor). Codex may have
written those, and would so leave its sandbox. Hence the contents are read here.

Whoever changes a file between the two looks, it counts: the user, a watcher,
another run in the same tree. They cannot be told apart.

Not seen: what git ignores, what lies outside the tree or in a repo inside it
(a submodule is one path, there or not), empty folders. Wrongly seen: a file
that was rewritten as it was, but which a filter (LFS, line ends) makes another
for git; a name of which only the case was changed, where case does not count.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import anyio
from anyio.abc import Process

from codex_tools.codex.turn_result import ChangeKind
from codex_tools.codex.workers import on_disk
from codex_tools.worktree.files import File, GaveUp, Tree, folders_of

FIRST_LOOK_S = 3.0
SECOND_LOOK_S = 10.0

FILES_LIMIT = 100_000
"""The most files of a tree that is looked at.

10,000 take some 0.2 s each time and 4 MB from the first look to the second.
"""

LISTING_LIMIT = 64 * 1024 * 1024
"""The most bytes of git's listing, some 220 a file."""

SeenBy = Literal["patch", "git", "both"]

_SAFE = {
    # A partial clone fetches what it lacks, by a program that its config names:
    # ls-files does so to unfold a sparse index (seen with 2.39.5).
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
_OPTIONS = (
    "--no-pager",
    # Empty, not "false": git before 2.36 takes that for a program's name.
    *("-c", "core.fsmonitor="),
    *("-c", "core.hooksPath=/dev/null"),
)
_WHERE = ("rev-parse", "--show-toplevel", "--git-path", "index")
_LIST = ("ls-files", "-z", "-t", "--stage", "--debug", "-c", "-o", "--exclude-standard")
_LISTED = re.compile(
    rb"(?:\? ([^\0]+)|[A-Z] (\d{6}) ([0-9a-f]{40,64}) \d\t([^\0]+))\0"
    rb"(?:  (ctime: \d+:\d+\n  mtime: \d+:\d+)\n  dev: .*\n  uid: .*\n  size: (-?\d+)\t.*\n)?"
)
_TIMES = b"ctime: %d:%d\n  mtime: %d:%d"

_MOUNT_POINTS = (b".codex", b".agents", b".aws")
"""Places that the sandbox keeps commands from, and makes where they are not there."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a work tree that git does not ignore, as they once were."""

    cwd: Path
    root: Path
    """The work tree; only *cwd* where the whole one is too large."""
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
    """By path relative to *root*; U+FFFD stands for what is not UTF-8 in it."""
    looked_at: Set[str]
    """All paths, changed or not, of which this tells."""

    def name(self, path: str) -> str | None:
        """Return the name that *path*, absolute or in *cwd*, has here, if it has one."""
        try:
            folder, _, base = str(self.cwd / path).rpartition("/")
            real = Path(os.path.realpath(folder or "/"), base)
        except ValueError:  # A path that no file can have.
            return None
        return str(real.relative_to(self.root)) if real.is_relative_to(self.root) else None


async def take_snapshot(cwd: Path) -> Snapshot | None:
    """Look at the work tree around *cwd*, as far as that is cheap and safe.

    None where it cannot be done: no git, no repo or another user's, more than
    FILES_LIMIT files in *cwd*, slower than FIRST_LOOK_S. Nothing is written
    but, by git, the mtime of a split index.
    """
    cwd = await on_disk(Path(cwd).resolve)
    git = await on_disk(find_git, cwd)
    if git is None:
        return None
    until = time.monotonic() + FIRST_LOOK_S
    with anyio.move_on_after(FIRST_LOOK_S):
        answer = await _ask(git, cwd, _WHERE)
        lines = [] if answer is None else os.fsdecode(answer).split("\n")
        if len(lines) != 3:
            return None
        root, index = Path(lines[0]), cwd / lines[1]
        for folder in dict.fromkeys((root, cwd)):
            snapshot = Snapshot(cwd, folder, git, index, time.time_ns(), {})
            files = await _look(snapshot, until, _know_contents)
            if files is not None:
                return replace(snapshot, files=files)
    return None


async def changes_since(before: Snapshot) -> Changes | None:
    """Look again and compare; None where that cannot be done within SECOND_LOOK_S."""
    until = time.monotonic() + SECOND_LOOK_S
    with anyio.move_on_after(SECOND_LOOK_S):
        return await _look(before, until, partial(_compare, before))
    return None


def merge(
    patched: Sequence[tuple[str, ChangeKind]], seen: Changes | None
) -> tuple[tuple[str, ChangeKind, SeenBy], ...]:
    """Return each changed path, how it has changed, and by which means that was seen.

    *patched* are the net changes by patches; they come first, in their order. A
    path of which *seen* tells is as *seen* tells, changed or not. Of the others
    those near the root come first: what installers write lies deep.
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
        elif kind != "add":  # It was there before, and ignored.
            merged.append((path, "delete", "patch"))
    root = _shown(os.fsencode(seen.root)).rstrip("/")
    for name in sorted(rest, key=lambda name: (name.count("/"), name)):
        merged.append((f"{root}/{name}", rest[name], "git"))
    return tuple(merged)


def find_git(cwd: Path) -> Path | None:
    """Return the git to use for *cwd*; None without a repo around *cwd*.

    None of the project's own folders on PATH (a virtual environment, say) is
    searched: Codex may have put a program of that name there.
    """
    around = (folder for folder in (cwd, *cwd.parents) if os.path.lexists(folder / ".git"))
    project = next(around, None)
    if project is None:
        return None
    folders = [
        folder
        for folder in os.get_exec_path()
        if folder.startswith("/") and not Path(os.path.realpath(folder)).is_relative_to(project)
    ]
    found = shutil.which("git", path=os.pathsep.join(folders)) if folders else None
    return Path(found) if found is not None else None


async def _ask(git: Path, folder: Path, words: Sequence[str]) -> bytes | None:
    """Return what git says in *folder*; None if it fails or says too much."""
    try:
        process = await _start(git, folder, words)
    except OSError:
        return None
    assert process.stdout is not None
    parts: list[bytes] = []
    size = 0
    try:
        async for part in process.stdout:
            size += len(part)
            if size > LISTING_LIMIT:
                return None
            parts.append(part)
        return b"".join(parts) if await process.wait() == 0 else None
    finally:
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                process.kill()
            await process.aclose()


async def _start(git: Path, folder: Path, words: Sequence[str]) -> Process:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Shielded: a process whose start was cancelled half-way would have no owner.
    with anyio.CancelScope(shield=True):
        return await anyio.open_process(
            [os.fspath(git), *_OPTIONS, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=env | _SAFE,
            start_new_session=True,
        )
    raise AssertionError("a shielded scope is never left without a result")


async def _look(
    at: Snapshot, until: float, finish: Callable[[Tree, dict[bytes, File]], T]
) -> T | None:
    """Return what *finish* makes of the files that are there now."""
    index_ns = await on_disk(_mtime_ns, at.index)
    listing = await _ask(at.git, at.root, _LIST)
    if listing is None:
        return None

    def work() -> T | None:
        tree = Tree(os.fsencode(at.root), until)
        try:
            return finish(tree, _find_all(tree, listing, index_ns))
        except GaveUp:
            return None

    return await on_disk(work, abandon=True)


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _find_all(tree: Tree, listing: bytes, index_ns: int) -> dict[bytes, File]:
    """Return the files that git has listed and that are there.

    Raises:
        GaveUp: There are too many, or this git lists them otherwise.
    """
    files: dict[bytes, File] = {}
    end = 0
    for listed in _LISTED.finditer(listing):
        if listed.start() != end or len(files) >= FILES_LIMIT:
            raise GaveUp
        end = listed.end()
        untracked, mode, blob, path, times, size = listed.groups()
        path = (path or untracked).rstrip(b"/")
        if path.startswith(b"/") or b"/../" in b"/%b/" % path:
            continue  # Of a forged index.
        file = tree.find(path, repo=mode == b"160000" or listing[end - 2 : end] == b"/\0")
        if file is None:
            continue
        if mode is not None:
            file.tracked = True
            # As it was when git last read it: so git tells it, too. But if it is as
            # young as the index, it may have changed after git had read it.
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


def _know_contents(tree: Tree, files: dict[bytes, File]) -> dict[bytes, File]:
    """Return *files* with the contents that git does not know, the small ones first."""
    unknown = [path for path, file in files.items() if file.blob is None]
    for path in sorted(unknown, key=lambda path: files[path].size):
        files[path].blob = tree.read(path, files[path])
    return files


def _compare(before: Snapshot, tree: Tree, after: dict[bytes, File]) -> Changes:
    kinds: dict[bytes, ChangeKind] = {}
    for path, old in before.files.items():
        # What git lists no more may be there still: ignored now, or in a repo inside.
        new = after.get(path) or tree.find(path, repo=old.is_folder)
        if new is None:
            kinds[path] = "delete"
        elif not _is_same(tree, path, old, new, before.taken_ns):
            kinds[path] = "update"
    added = after.keys() - before.files.keys()
    added -= {path for path in added if _is_mount_point(path, after[path])}
    kinds |= dict.fromkeys(added - _hidden(before, after, added, kinds), "add")
    return Changes(
        before.cwd,
        before.root,
        {_shown(path): kind for path, kind in kinds.items()},
        {_shown(path) for path in before.files.keys() | after.keys()},
    )


def _is_same(tree: Tree, path: bytes, old: File, new: File, taken_ns: int) -> bool:
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


def _hidden(
    before: Snapshot, after: Mapping[bytes, File], added: Set[bytes], changed: Collection[bytes]
) -> set[bytes]:
    """Return which of the *added* were there before, but not listed.

    They were ignored or in a repo inside the repo, and were not touched since.
    So look those that came with a moved folder, too: hence further signs.
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


def _is_mount_point(path: bytes, file: File) -> bool:
    """Return whether Codex's sandbox has left *path*: 0.120.0 does so with each run."""
    return path.rpartition(b"/")[2] in _MOUNT_POINTS and not file.is_folder and file.size == 0


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "replace")
