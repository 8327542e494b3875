"""Read a copy of the person's index: which files git tracks, and how."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from codex_tools.worktree.repository import Repository, read_file
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.tree_error import GitFailed

INDEX_LIMIT = 1024 * 1024 * 1024
"""Bytes of the largest index that is read; a million files take 100 MB."""

_DEBUG = re.compile(
    rb"([A-Za-z]) (\d{6}) ([0-9a-f]{40,64}) (\d)\t([^\0]+)\0"
    rb"  ctime: .*\n  mtime: .*\n  dev: .*\n  uid: .*\n  size: (\d+)\tflags: ([0-9a-f]+)\n"
)
_SPARSE = ("core.sparseCheckout", "core.sparseCheckoutCone", "index.sparse")
"""Settings without which git adds all files to a sparse index when it reads one."""

_INTENT_TO_ADD = 1 << 29


@dataclass(slots=True)
class HomeIndex:
    """The entries of the person's index, as far as a snapshot needs them."""

    files: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    """Tracked files and links, each with mode and id as in `100644 ID`; unmerged ones, too."""
    submodules: set[bytes] = field(default_factory=set[bytes])
    unmerged: list[str] = field(default_factory=list[str])
    """Lines for `update-index --index-info`."""
    intended: list[str] = field(default_factory=list[str])
    """Paths of `git add --intent-to-add`."""
    skipped: list[str] = field(default_factory=list[str])
    """Paths with the bit skip-worktree, as in a sparse checkout."""
    assumed: list[str] = field(default_factory=list[str])
    """Paths with the bit assume-unchanged."""
    sizes: dict[bytes, int] = field(default_factory=dict[bytes, int])
    """The sizes of the files on disk; only if they were asked for."""


def copy_index(shadow: Shadow, repository: Repository, to: Path) -> bool:
    """Copy the person's index, with its mtime and its shared part; return False if it has none.

    With a later mtime, git would take files as unchanged that changed with the old index.

    Raises:
        GitFailed: The index is too large.
    """
    to.unlink(missing_ok=True)
    source = repository.index
    try:
        state = os.stat(source)  # noqa: PTH116
        if state.st_size > INDEX_LIMIT or not os.path.isfile(source):  # noqa: PTH113
            raise GitFailed("ls-files", "the index is too large or no file")
        content = Path(source).read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise GitFailed("ls-files", f"the index cannot be read: {error.strerror}") from error
    to.write_bytes(content)
    os.utime(to, ns=(state.st_mtime_ns, state.st_mtime_ns))
    link = content.rfind(b"link\0\0")
    if link >= 0:
        size = 32 if shadow.object_format == "sha256" else 20
        name = f"sharedindex.{content[link + 8 : link + 8 + size].hex()}"
        shared = Path(repository.git_dir, name)
        if shared.is_file() and shared.stat().st_size <= INDEX_LIMIT:
            shutil.copyfile(shared, shadow.git_dir / name)
    if b"sdir\0\0\0" in content[-4096:]:
        _expand(shadow, repository, to)
    return True


def _expand(shadow: Shadow, repository: Repository, index: Path) -> None:
    """Replace a sparse index by one with all files, without stat data.

    git must not do that: it would write the trees anew, and so set the mtime of the person's own
    (seen with git 2.39.5). `ls-files --sparse` needs git 2.36.
    """
    reader = shadow.git(repository.root, index, (repository.objects,))
    rules = read_file(os.path.join(repository.git_dir, "info", "sparse-checkout"), 1 << 24)  # noqa: PTH118
    (shadow.git_dir / "info" / "sparse-checkout").write_bytes(rules or b"")
    env = {"GIT_CONFIG_COUNT": str(len(_SPARSE))}
    for number, key in enumerate(_SPARSE):
        env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": "true"}
    entries: list[bytes] = []
    skipped: list[bytes] = []
    listing = reader.run("ls-files", "--sparse", "-z", "-s", "-t", env=env)
    for line in listing.split(b"\0")[:-1]:
        tag, entry = line[:1], line[2:]
        fields, _, path = entry.partition(b"\t")
        if not fields.startswith(b"040000 "):
            entries.append(entry)
            skipped += [path] if tag == b"S" else []
            continue
        tree = fields.split(b" ")[1].decode()
        for inner in reader.run("ls-tree", "-r", "-z", "--full-tree", tree).split(b"\0")[:-1]:
            fields, _, name = inner.partition(b"\t")
            mode, _, blob = fields.split(b" ")
            entries.append(b"%b %b 0\t%b%b" % (mode, blob, path, name))
            skipped.append(path + name)
    index.unlink()
    writer = shadow.git(repository.root, index)
    lines = b"".join(entry + b"\0" for entry in entries)
    writer.run("update-index", "-z", "--index-info", stdin=lines)
    lines = b"".join(path + b"\0" for path in skipped)
    writer.run("update-index", "--skip-worktree", "-z", "--stdin", stdin=lines)


def read_index(
    shadow: Shadow, index: Path, root: str, objects: Sequence[str], *, sizes: bool
) -> HomeIndex:
    """Return the entries of *index*.

    Args:
        shadow: The repository in whose folder the index is.
        index: A copy of the person's index.
        root: The work tree.
        objects: The folders of objects to borrow.
        sizes: True to read the sizes as well; 50,000 files take 0.1 s more.

    Raises:
        GitFailed: git cannot read the index.
    """
    found = HomeIndex()
    with index.open("rb") as opened:
        version = int.from_bytes(opened.read(8)[4:8])
    git = shadow.git(root, index, objects)
    # Only from version 3 on, an index can hold the bit of `git add --intent-to-add`.
    if sizes or version > 2:
        listing = git.run("ls-files", "-z", "-s", "-v", "--debug")
        end = 0
        for match in _DEBUG.finditer(listing):
            if match.start() != end:
                break
            end = match.end()
            tag, mode, blob, stage, path, size, flags = match.groups()
            _add(found, tag, mode, blob, stage, path)
            found.sizes[path] = int(size)
            if int(flags, 16) & _INTENT_TO_ADD:
                found.intended.append(os.fsdecode(path))
        if end != len(listing):
            raise GitFailed("ls-files", "the listing of the index has an unknown form")
    else:
        for line in git.run("ls-files", "-z", "-s", "-v").split(b"\0")[:-1]:
            head, _, path = line.partition(b"\t")
            if line.startswith(b"H 100") and head.endswith(b" 0"):
                found.files[path] = head[2:-2]
            else:
                tag, mode, blob, stage = head.split(b" ")
                _add(found, tag, mode, blob, stage, path)
    return found


def _add(found: HomeIndex, tag: bytes, mode: bytes, blob: bytes, stage: bytes, path: bytes) -> None:
    if mode == b"160000":
        found.submodules.add(path)
        return
    found.files[path] = mode + b" " + blob
    if stage != b"0":
        line = b"%s %s %s\t%s" % (mode, blob, stage, path)
        found.unmerged.append(os.fsdecode(line))
    if tag in (b"S", b"s"):
        found.skipped.append(os.fsdecode(path))
    if tag.islower():
        found.assumed.append(os.fsdecode(path))
