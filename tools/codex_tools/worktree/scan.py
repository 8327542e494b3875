"""Write the files of a folder, as the bytes on disk, into a tree of the shadow repository.

git lists names and hashes contents here, but with the settings and attributes of the shadow
repository only. So it converts nothing and runs nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from codex_tools.worktree.files import folders_of, is_mount_point
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.tree_error import GitFailed, TreeError

FILE_LIMIT = 1024 * 1024 * 1024
"""Bytes of the largest file that a snapshot takes; larger ones are named as left out."""

NEW_BYTES_LIMIT = 16 * 1024 * 1024 * 1024
"""Bytes of all files that one snapshot reads because they are new or changed."""

FILES_LIMIT = 1_000_000
"""Files in the largest tree."""

PATH_LIMIT = 4000
"""Bytes of the longest path; Linux allows 4,095 for a whole path."""

NAME_LIMIT = 255

_ATTEMPTS = 3
"""Times that git reads changed files; it fails if one of them changes meanwhile."""

_BLOCKING = (b".gitignore", b".gitattributes")
"""Files that git opens; a FIFO of that name would block it."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A path that a snapshot does not hold; a folder ends in a slash."""

    path: str
    reason: str


@dataclass(slots=True)
class Scan:
    """The tree of a folder, and what is not in it."""

    tree: str = ""
    left_out: list[LeftOut] = field(default_factory=list[LeftOut])
    folders: list[bytes] = field(default_factory=list[bytes])
    """Folders without any file."""
    repositories: list[bytes] = field(default_factory=list[bytes])
    """Folders of nested repositories, which have a scan of their own."""
    carried: list[str] = field(default_factory=list[str])
    """Ignored files that are in the tree because `.worktreeinclude` names them."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder to scan, and the files that direct the scan."""

    path: str
    index: Path
    """Our own index of the folder: the tree of the last scan, and the stat data of its files."""
    excludes: Path
    """Ignore patterns in addition to the .gitignore files."""
    known: Path
    """The index whose entries count as tracked: a copy of the person's, or *index*."""
    tracked: Set[bytes] | None = None
    """The entries of *known*; None if it is *index*."""
    submodules: Set[bytes] = frozenset()
    include: Path | None = None
    """Patterns of ignored files to take all the same."""


def is_plain(path: bytes) -> bool:
    """Return True if *path* is relative, stays below its folder, and names nothing of git's."""
    return all(
        part not in (b"", b".", b"..") and len(part) <= NAME_LIMIT and part.lower() != b".git"
        for part in path.split(b"/")
    )


def scan(shadow: Shadow, at: Folder, lock_fd: int | None) -> Scan:
    """Write the tree of a folder and return it.

    Raises:
        TreeError: git failed, or the tree is too large.
    """
    found = Scan()
    git = shadow.git(at.path, at.known, lock_fd=lock_fd)
    own = shadow.git(at.path, at.index, lock_fd=lock_fd)
    others = ("ls-files", "-z", "-o")
    rules = ("--exclude-per-directory=.gitignore", f"--exclude-from={at.excludes}")
    with ThreadPoolExecutor(3) as pool:
        tracked_now = pool.submit(own.run, "ls-files", "-z", "-t", "-c", "-m")
        untracked_now = pool.submit(git.run, *others, *rules)
        ignored_now = pool.submit(git.run, *others, *rules, "-i", "--directory")
        known, changed = _parse(tracked_now.result())
        untracked = untracked_now.result().split(b"\0")[:-1]
        ignored = ignored_now.result().split(b"\0")[:-1]
    files = {path for path in untracked if not path.endswith(b"/")}
    nested = {path.rstrip(b"/") for path in untracked if path.endswith(b"/")} | at.submodules
    carried: set[bytes] = set()
    if at.include is not None:
        listed = git.run(*others, "-i", f"--exclude-from={at.include}").split(b"\0")[:-1]
        carried = {path for path in listed if not path.endswith(b"/")} - files
        found.carried = sorted(map(os.fsdecode, carried))
    real = _Folders(os.fsencode(at.path))
    found.repositories = sorted(
        path for path in nested if is_plain(path) and real.is_folder(path) and path not in files
    )
    _walk(at.path, {*ignored, *(b"%b/" % path for path in nested)}, found)
    whole = {path for path in ignored if path.endswith(b"/")}
    found.left_out += [
        LeftOut(os.fsdecode(path), "ignored")
        for path in ignored
        if path not in carried
        and whole.isdisjoint(each + b"/" for each in folders_of(path.rstrip(b"/")))
    ]
    wanted = files | carried | (known if at.tracked is None else at.tracked)
    if len(wanted) > FILES_LIMIT:
        raise TreeError(f"{at.path} has more than {FILES_LIMIT:,} files")
    candidates = (wanted - known) | (changed & wanted)
    taken = set(_take(candidates, real, known if at.tracked is None else at.tracked, found))
    _update(shadow, at, (known - wanted) | ((candidates - taken) & known), taken, lock_fd)
    found.tree = own.run("write-tree", "--missing-ok").decode().strip()
    return found


def _parse(listing: bytes) -> tuple[set[bytes], set[bytes]]:
    """Return the entries of our index, and those of them that changed or are gone."""
    lines = listing.split(b"\0")[:-1]
    known = {line[2:] for line in lines if line[0] == 72}  # H
    return known, {line[2:] for line in lines if line[0] != 72}


def _take(
    candidates: Iterable[bytes], real: _Folders, tracked: Set[bytes], found: Scan
) -> Iterator[bytes]:
    """Yield those of the *candidates* that exist and can be taken; name the others that exist.

    What Codex's sandbox leaves behind is passed over: in the person's folder it would be taken for
    a change of the run, and would be applied.
    """
    total = 0
    for path in sorted(candidates):
        reason = ""
        try:
            if not is_plain(path):
                reason = "its name is reserved or not valid"
            elif len(real.root) + len(path) > PATH_LIMIT:
                reason = "its path is too long"
            elif not real.has_folders(path):
                continue
            else:
                state = os.lstat(real.root + b"/" + path)
                if stat.S_ISREG(state.st_mode):
                    if path not in tracked and is_mount_point(path, state.st_size):
                        continue
                    total += state.st_size
                    if state.st_size > FILE_LIMIT:
                        reason = f"it is larger than {FILE_LIMIT >> 20:,} MB"
                        total -= state.st_size
                    elif not os.access(real.root + b"/" + path, os.R_OK):
                        reason = "it cannot be read"
                elif not stat.S_ISLNK(state.st_mode):
                    continue  # A folder, or what the walk has named.
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                continue
            reason = error.strerror or "it cannot be read"
        if total > NEW_BYTES_LIMIT:
            raise TreeError(f"more than {NEW_BYTES_LIMIT >> 30} GB of files are new or changed")
        if reason:
            found.left_out.append(LeftOut(os.fsdecode(path), reason))
        else:
            yield path


def _update(
    shadow: Shadow, at: Folder, gone: Set[bytes], new: Set[bytes], lock_fd: int | None
) -> None:
    """Bring our index up to date; git reads the *new* and changed files."""
    git = shadow.git(at.path, at.index, lock_fd=lock_fd)
    if gone:
        listing = b"\0".join(sorted(gone)) + b"\0"
        git.run("update-index", "--force-remove", "-z", "--stdin", stdin=listing)
    if not new:
        return
    for attempt in range(_ATTEMPTS):
        try:
            listing = b"\0".join(sorted(new)) + b"\0"
            git.run(
                "update-index", "--add", "--remove", "--replace", "-z", "--stdin", stdin=listing
            )
            return
        except GitFailed:
            if attempt == _ATTEMPTS - 1:
                raise
            at.index.with_name(at.index.name + ".lock").unlink(missing_ok=True)


class _Folders:
    """Tells the real folders below a root from links, each looked up once."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self._known: dict[bytes, bool] = {b"": True}

    def has_folders(self, path: bytes) -> bool:
        """Return True if each folder of *path* is a real folder."""
        return self.is_folder(path.rpartition(b"/")[0])

    def is_folder(self, path: bytes) -> bool:
        """Return True if *path*, with each folder above it, is a real folder."""
        known = self._known.get(path)
        if known is None:
            known = self.is_folder(path.rpartition(b"/")[0])
            if known:
                try:
                    known = stat.S_ISDIR(os.lstat(self.root + b"/" + path).st_mode)
                except OSError:
                    known = False
            self._known[path] = known
        return known


def _walk(root: str, skipped: Set[bytes], found: Scan) -> None:
    """Add what git does not list: empty folders, and what is neither a file nor a link.

    Raises:
        TreeError: A file that git reads is a FIFO.
    """
    ahead: list[bytes] = [b""]
    start = os.fsencode(root) + b"/"
    while ahead:
        folder = ahead.pop()
        is_empty = True
        try:
            with os.scandir(start + folder) as entries:
                for entry in entries:
                    name = entry.name
                    is_empty = False
                    if entry.is_dir(follow_symlinks=False):
                        path = folder + name + b"/"
                        if name.lower() == b".git":
                            if name != b".git":
                                found.left_out.append(LeftOut(os.fsdecode(path), "reserved name"))
                        elif path not in skipped:
                            ahead.append(path)
                    elif (
                        not (entry.is_file(follow_symlinks=False) or entry.is_symlink())
                        and (path := folder + name) not in skipped
                    ):
                        if name in _BLOCKING:
                            raise TreeError(f"{os.fsdecode(path)} is not a regular file")
                        found.left_out.append(LeftOut(os.fsdecode(path), "not a regular file"))
        except OSError as error:
            found.left_out.append(LeftOut(os.fsdecode(folder), error.strerror or "unreadable"))
            continue
        if is_empty and folder and is_plain(folder[:-1]):
            found.folders.append(folder[:-1])
