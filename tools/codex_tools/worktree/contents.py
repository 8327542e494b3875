"""Keep what a work tree held before a turn, and compare the contents of the files that changed.

Files that were committed before the turn are in the person's repository, which only lends its
objects. Files with other contents are written to the shadow repository before the turn, up to
limits. Neither the person's `.git` nor its index is written to, and nothing is converted.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from codex_tools.codex.paths import project_root
from codex_tools.worktree import changes as scanned
from codex_tools.worktree import tree_changes
from codex_tools.worktree.files import READ_LIMIT, File, folders_of
from codex_tools.worktree.scan import LeftOut, is_plain
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import Part, Snapshot
from codex_tools.worktree.tree_error import GitFailed, TreeError

KEPT_FILES = 1000
"""Maximum number of uncommitted files whose contents are kept before a turn.

1,000 small files took 0.46 s the first time and 0.07 s later, 20 took 0.06 s. The turn waits for
it. A snapshot of the whole tree took 1.5 s for 50,000 files, and 0.7 s later, against 0.06 s here.
"""

KEPT_BYTES = 32 * 1024 * 1024
"""Maximum bytes of those files, for which the turn waits as well."""

COMPARED_FILES = 2000
"""Maximum number of changed files whose lines are compared after a turn."""

COMPARED_BYTES = 64 * 1024 * 1024
"""Maximum bytes of the changed files whose lines are compared."""

KEPT_WITHIN_S = 3.0
"""Seconds that git may take to keep the files before a turn."""

_NOT_KEPT = "only its name is known: it was not committed, and too large or one of too many to keep"
_CONVERTED = "only its name is known: git stores it with other bytes than those on disk"
_TOO_LARGE = "only its name is known: it is too large or one of too many to compare"
_REPOSITORY = "only its name is known: it is a repository of its own"
_CHANGING = "only its name is known: it could not be read"


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of files before a turn, as far as the person's repository does not have them."""

    before: scanned.Snapshot
    kept: Mapping[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    """The mode and the id in the shadow repository of each kept file, as `MODE ID`."""


def keep_contents(state_dir: Path, before: scanned.Snapshot) -> Contents:
    """Keep the uncommitted contents of a work tree, the smallest files first, up to the limits.

    Without any, nothing is written. It does not raise: a file that is not kept is compared by name.
    """
    own = [path for path, file in before.files.items() if file.is_read and file.blob is not None]
    chosen: list[bytes] = []
    room = KEPT_BYTES
    for path in sorted(own, key=lambda path: before.files[path].size):
        room -= before.files[path].size
        if room < 0 or len(chosen) >= KEPT_FILES:
            break
        if is_plain(path):
            chosen.append(path)
    if not chosen:
        return Contents(before)
    try:
        shadow = Shadow.open(state_dir, project_root(before.cwd))
        with _index(shadow) as index:
            return Contents(before, _write(shadow, before.root, index, chosen, KEPT_WITHIN_S))
    except (TreeError, OSError):
        return Contents(before)


def compare_contents(
    state_dir: Path, contents: Contents, changed: Iterable[bytes]
) -> tuple[Shadow, tree_changes.Changes]:
    """Compare the *changed* files with what they held before; return the project's shadow, too.

    Files whose contents cannot be compared are in `left_out` of the changes, and not in `files`.

    Raises:
        TreeError: git failed.
        OSError: The state folder cannot be written to.
    """
    before = contents.before
    root = project_root(before.cwd)
    shadow = Shadow.open(state_dir, root)
    repository = shadow.repository(os.fspath(root))
    if repository is None:
        raise TreeError("the repository cannot be read")
    objects = (repository.objects,)
    reasons: dict[bytes, str] = {}
    old = _old_entries(shadow, contents, changed, objects, reasons)
    present = list(_present(before.root, old, reasons))
    with _index(shadow) as index:
        new = _write(shadow, before.root, index, present)
        reasons |= dict.fromkeys(set(present) - new.keys(), _CHANGING)
        tree = _tree(shadow, {path: each for path, each in new.items() if path not in reasons})
    kept = {path: each for path, each in old.items() if each and path not in reasons}
    name = f"{int(time.time()):x}-{secrets.token_hex(6)}"
    part = Part("", _tree(shadow, kept), True, objects=repository.objects)
    snapshot = Snapshot(name, before.root, before.taken_ns / 1e9, (part,))
    left_out = [LeftOut(os.fsdecode(path), reason) for path, reason in sorted(reasons.items())]
    return shadow, tree_changes.compare(shadow, snapshot, {"": tree}, left_out, name)


def _old_entries(
    shadow: Shadow,
    contents: Contents,
    changed: Iterable[bytes],
    objects: Sequence[str],
    reasons: dict[bytes, str],
) -> dict[bytes, bytes]:
    """Return `MODE ID` of each changed file before the turn; empty for one that did not exist.

    *reasons* gets the files whose old content is not known.
    """
    entries: dict[bytes, bytes] = {}
    committed: dict[bytes, File] = {}
    for path in changed:
        file = contents.before.files.get(path)
        if not is_plain(path):
            reasons[path] = _CHANGING
        elif len(entries) >= COMPARED_FILES:
            reasons[path] = _TOO_LARGE
        elif file is None:
            entries[path] = b""
        elif file.is_folder:
            reasons[path] = _REPOSITORY
        elif path in contents.kept:
            entries[path] = contents.kept[path]
        elif file.blob is None or file.is_read:
            reasons[path] = _NOT_KEPT
        else:
            committed[path] = file
            entries[path] = _mode_of(file) + b" " + file.blob
    if not committed:
        return entries
    # Of a file that a filter or a setting of line ends converts, git has another size.
    listing = b"".join((file.blob or b"") + b"\n" for file in committed.values())
    git = shadow.git(objects=objects)
    answer = git.run("cat-file", "--batch-check=%(objectsize)", "--buffer", stdin=listing)
    for (path, file), size in zip(committed.items(), answer.split(b"\n"), strict=False):
        if size != b"%d" % file.size:
            reasons[path] = _CONVERTED if size.isdigit() else _NOT_KEPT
    return entries


def _present(root: Path, paths: Iterable[bytes], reasons: dict[bytes, str]) -> Iterator[bytes]:
    """Yield the *paths* that exist and can be compared; *reasons* gets the others that exist."""
    top = os.fsencode(root) + b"/"
    room = COMPARED_BYTES
    for path in paths:
        if path in reasons:
            continue
        try:
            if not all(stat.S_ISDIR(os.lstat(top + each).st_mode) for each in folders_of(path)):
                continue
            found = os.lstat(top + path)
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode):
            if os.path.lexists(top + path + b"/.git"):
                reasons[path] = _REPOSITORY
        elif stat.S_ISLNK(found.st_mode) or found.st_size <= min(READ_LIMIT, room):
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
                continue
            room -= found.st_size
            yield path
        else:
            reasons[path] = _TOO_LARGE


def _mode_of(file: File) -> bytes:
    if stat.S_ISLNK(file.mode):
        return b"120000"
    return b"100755" if file.mode & stat.S_IXUSR else b"100644"


@contextmanager
def _index(shadow: Shadow) -> Generator[Path]:
    """Yield the path of an index that no other process uses, and delete it afterwards."""
    index = shadow.index(f"contents-{secrets.token_hex(8)}")
    try:
        yield index
    finally:
        index.unlink(missing_ok=True)
        index.with_name(f"{index.name}.lock").unlink(missing_ok=True)


def _write(
    shadow: Shadow, root: Path, index: Path, paths: Sequence[bytes], within_s: float | None = None
) -> dict[bytes, bytes]:
    """Write files to the shadow repository; return `MODE ID` of each that exists and is readable.

    git reads them with the attributes of the shadow repository, and follows no symbolic link.
    """
    if not paths:
        return {}
    git = shadow.git(os.fspath(root), index)
    add = ("update-index", "--add", "--remove", "-z", "--stdin")
    try:
        git.run(*add, stdin=b"".join(path + b"\0" for path in paths), within_s=within_s)
    except GitFailed:  # One of them cannot be read, or changed meanwhile: each by itself.
        index.with_name(f"{index.name}.lock").unlink(missing_ok=True)
        until = time.monotonic() + (KEPT_WITHIN_S if within_s is None else within_s)
        for path in paths:
            if (left_s := until - time.monotonic()) <= 0:
                break
            git.run(*add, stdin=path + b"\0", within_s=left_s, allowed=range(256))
    listed = git.run("ls-files", "-s", "-z").split(b"\0")[:-1]
    entries = (line.partition(b"\t") for line in listed)
    return {path: entry.rpartition(b" ")[0] for entry, _, path in entries}


def _tree(shadow: Shadow, entries: Mapping[bytes, bytes]) -> str:
    """Write a tree with *entries* and return its id; the contents may be the person's."""
    with _index(shadow) as index:
        git = shadow.git(index=index)
        lines = b"".join(b"%b\t%b\0" % (entry, path) for path, entry in entries.items())
        git.run("update-index", "-z", "--index-info", stdin=lines)
        return git.run("write-tree", "--missing-ok").decode().strip()
