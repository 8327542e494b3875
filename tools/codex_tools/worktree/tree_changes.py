"""Compare a copy, or the project itself, with a snapshot of it.

The git folder of a copy plays no part: Codex may have changed it. Only the files count, so commits
made inside a copy are included by their content.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from codex_tools.codex.private_folder import claim_folder
from codex_tools.worktree.copies import Copy
from codex_tools.worktree.scan import Folder, LeftOut, scan
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import (
    Snapshot,
    bounded,
    forget_snapshot,
    key_of,
    take_snapshot,
)
from codex_tools.worktree.tree_error import GitFailed, TreeError

FORMAT = 1
"""The version of the JSON of changes."""

TEXT_LIMIT = 40_000
"""Characters of the diff that is part of a result."""

PATCH_LIMIT = 256 * 1024 * 1024
"""Bytes of the largest patch that is written to a file."""

Kind = Literal["add", "update", "delete"]

_DIFF = ("diff-tree", "-r", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color")

_ACTS: tuple[tuple[str, str], ...] = (
    (r"(.*/)?\.(envrc|env)", "direnv or a shell reads it"),
    (r"(.*/)?\.(vscode|idea|zed|cursor|fleet)/.*", "an editor reads it and may run tasks"),
    (r"(.*/)?\.(claude|codex|gemini|agents|cursor|aider[^/]*)(/.*)?", "a coding agent reads it"),
    (r"(.*/)?(CLAUDE|AGENTS|GEMINI)(\.[a-z]+)?\.md", "a coding agent reads it"),
    (r"(.*/)?\.mcp\.json", "a coding agent starts the programs that it names"),
    (r"(.*/)?\.(husky|githooks|git-hooks|hooks|lefthook)(/.*)?", "git may run it as a hook"),
    (r"(.*/)?(\.?lefthook\.ya?ml|\.pre-commit-config\.yaml|\.lintstagedrc.*)", "hooks run it"),
    (r"(.*/)?\.(gitattributes|gitmodules|gitconfig|lfsconfig)", "git obeys it"),
    (r"\.(github|gitlab|circleci|buildkite)/.*", "a CI service runs it"),
    (r"(\.gitlab-ci\.yml|\.travis\.yml|Jenkinsfile|azure-pipelines\.yml)", "a CI service runs it"),
    (r"(.*/)?\.devcontainer(/.*|\.json)?", "an editor starts a container from it"),
    (r"(.*/)?(conftest|sitecustomize|usercustomize)\.py", "Python runs it without being asked"),
    (r"(.*/)?[^/]+\.pth", "Python runs it without being asked"),
    (r"(.*/)?\.(npmrc|yarnrc|yarnrc\.yml|pypirc|netrc|bazelrc)", "a package manager obeys it"),
    (
        r"(.*/)?\.(bashrc|zshrc|profile|bash_profile|zshenv|autoenv|tool-versions|mise\.toml)",
        "shell",
    ),
)
_ACTS_BY_ITSELF = tuple((re.compile(pattern, re.IGNORECASE), why) for pattern, why in _ACTS)


@dataclass(frozen=True, slots=True)
class FileChange:
    """How one file differs from the snapshot."""

    path: str
    """Relative to the root; bytes that are not UTF-8 are lone surrogates (`os.fsdecode`)."""
    kind: Kind
    insertions: int | None
    """Lines; None for a binary file."""
    deletions: int | None
    old_mode: str
    """As git writes it, for example 100644; 000000 if there was no file."""
    new_mode: str
    old_blob: str
    """The id of the content in the shadow repository; zeros if there was no file."""
    new_blob: str
    part: str = ""
    """The nested repository that holds the file; "" for the root."""
    warning: str | None = None
    """Why the file acts by itself once it is applied; None if it does not."""

    @property
    def is_binary(self) -> bool:
        """True if the lines were not counted, because the content is no text."""
        return self.insertions is None


@dataclass(frozen=True, slots=True)
class Changes:
    """All that was changed since a snapshot."""

    id: str
    snapshot: str
    """The id of the snapshot."""
    files: tuple[FileChange, ...]
    insertions: int
    deletions: int
    text: str
    """The diff, at most TEXT_LIMIT characters; binary files are only named."""
    patch: Path | None
    """A file with the whole diff, which `git apply` takes; None without changes or if too large."""
    left_out: tuple[LeftOut, ...]
    """What exists now, but is not compared."""
    objects: tuple[str, ...]
    """The folders of objects that reading the contents needs."""

    def dump(self) -> str:
        """Return the changes as JSON."""
        patch = None if self.patch is None else os.fspath(self.patch)
        return json.dumps({"format": FORMAT, **asdict(self), "patch": patch})

    @classmethod
    def load(cls, text: str) -> Changes:
        """Return the changes that `dump` wrote.

        Raises:
            TreeError: The text is none, or a later build wrote it.
        """
        try:
            read = cast(dict[str, Any], json.loads(text))
            if read.pop("format") != FORMAT:
                raise TreeError("the changes have an unknown format")
            read["files"] = tuple(FileChange(**each) for each in read["files"])
            read["left_out"] = tuple(LeftOut(**each) for each in read["left_out"])
            read["objects"] = tuple(read["objects"])
            read["patch"] = None if read["patch"] is None else Path(read["patch"])
            return cls(**read)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TreeError(f"the changes cannot be read: {error}") from error


def changes_of(shadow: Shadow, before: Snapshot, copy: Copy | None = None) -> Changes:
    """Compare *copy*, or the project itself, with the snapshot *before*.

    Raises:
        TreeError: git failed, or the tree is too large.
        OSError: The state folder cannot be written to.
    """
    left_out: list[LeftOut] = []
    if copy is None:
        after = take_snapshot(shadow)
        trees = {part.path: part.tree for part in after.parts}
        trees = _with_known(shadow, before, trees, after)
        left_out += after.left_out
    else:
        trees = scan_copy(shadow, before, copy, left_out)
        after = None
    name = f"{int(time.time()):x}-{secrets.token_hex(6)}"
    shadow.keep(f"{before.id}/{name}", trees.values())
    if after is not None:
        forget_snapshot(shadow, after.id)
    return compare(shadow, before, trees, left_out, name)


def compare(
    shadow: Shadow,
    before: Snapshot,
    trees: Mapping[str, str],
    left_out: Sequence[LeftOut],
    name: str,
) -> Changes:
    """Compare a snapshot with trees, which may come from another machine.

    Args:
        shadow: The repository that holds the trees.
        before: The snapshot.
        trees: The tree of each part, by the part's path.
        left_out: What exists, but is not in the trees.
        name: The id that the changes get.
    """
    old = {part.path: part.tree for part in before.parts}
    empty = shadow.empty_tree()
    pairs = [
        (path, old.get(path, empty), trees.get(path, empty)) for path in sorted({*old, *trees})
    ]
    pairs = [pair for pair in pairs if pair[1] != pair[2]]
    hidden = {each.path for each in left_out if each.reason != "ignored"}
    folders = tuple(each for each in hidden if each.endswith("/"))
    files = [
        change
        for path, one, other in pairs
        for change in _diff(shadow, before.objects, path, one, other)
        if change.path not in hidden and not (folders and change.path.startswith(folders))
    ]
    return Changes(
        id=name,
        snapshot=before.id,
        files=tuple(sorted(files, key=lambda each: (each.path.count("/"), each.path))),
        insertions=sum(each.insertions or 0 for each in files),
        deletions=sum(each.deletions or 0 for each in files),
        text=_text(shadow, before.objects, pairs),
        patch=_patch(shadow, before, pairs, name) if files else None,
        left_out=bounded(left_out),
        objects=before.objects,
    )


def forget_changes(shadow: Shadow, changes: Changes) -> None:
    """Stop keeping the contents of changes, and delete their patch."""
    shadow.forget(f"{changes.snapshot}/{changes.id}")
    if changes.patch is not None:
        changes.patch.unlink(missing_ok=True)


def overlap(one: Changes, other: Changes) -> tuple[str, ...]:
    """Return the paths that both change, or of which one is a folder of the other."""
    mine = {each.path for each in one.files}
    theirs = {each.path for each in other.files}
    return tuple(sorted((mine & theirs) | _above(mine, theirs) | _above(theirs, mine)))


def _above(some: set[str], others: set[str]) -> set[str]:
    """Return those of *some* that are folders of *others*."""
    found: set[str] = set()
    for path in others:
        outer = path.rpartition("/")[0]
        while outer:
            if outer in some:
                found.add(outer)
            outer = outer.rpartition("/")[0]
    return found


def acts_by_itself(path: str) -> str | None:
    """Return why a file of that path acts once it is in the project; None if it does not."""
    return next((why for pattern, why in _ACTS_BY_ITSELF if pattern.fullmatch(path)), None)


def scan_copy(
    shadow: Shadow, before: Snapshot, copy: Copy, left_out: list[LeftOut]
) -> dict[str, str]:
    """Return the trees of the copy as it is now, also those of repositories made there.

    Raises:
        TreeError: git failed, or the tree is too large.
    """
    trees: dict[str, str] = {}
    indexes = copy.place / "indexes"
    for left in indexes.glob("*.lock"):
        left.unlink(missing_ok=True)
    known = {part.path: part for part in before.parts}
    ahead = [""]
    while ahead:
        path = ahead.pop()
        folder = os.path.join(copy.folder, path) if path else os.fspath(copy.folder)  # noqa: PTH118
        index = indexes / key_of(path)
        excludes = shadow.git_dir / "excludes" / key_of(path)
        if not excludes.exists():
            excludes.write_bytes(b"")
        prefix = f"{path}/" if path else ""
        inner = {
            os.fsencode(each[len(prefix) :])
            for each in known
            if each.startswith(prefix) and each != path
        }
        at = Folder(folder, index, excludes, index, None, inner)
        found = scan(shadow, at, copy.lock_fd)
        trees[path] = found.tree
        left_out += [replace(each, path=prefix + each.path) for each in found.left_out]
        for each in map(os.fsdecode, found.repositories):
            if prefix + each not in trees and prefix + each not in ahead:
                ahead.append(prefix + each)
            if prefix + each not in known and os.path.lexists(Path(folder, each, ".git")):
                reason = "only the files of a repository made in the copy are taken"
                left_out.append(LeftOut(f"{prefix}{each}/.git", reason))
    return trees


def _with_known(
    shadow: Shadow, before: Snapshot, trees: Mapping[str, str], after: Snapshot
) -> dict[str, str]:
    """Return *trees* with the files that are ignored only since the snapshot *before*.

    A later rule in .gitignore does not delete a file.
    """
    found = dict(trees)
    ignored = tuple(each.path for each in after.left_out if each.reason == "ignored")
    if not ignored:
        return found
    folders = tuple(each for each in ignored if each.endswith("/"))
    for part in before.parts:
        if part.path not in trees:
            continue
        prefix = f"{part.path}/" if part.path else ""
        git = shadow.git(objects=before.objects)
        gone = git.run(
            *_DIFF[:3], "-z", "--name-only", "--diff-filter=D", part.tree, found[part.path]
        )
        hidden = [
            path
            for path in gone.split(b"\0")[:-1]
            if (full := prefix + os.fsdecode(path)) in ignored
            or (folders and full.startswith(folders))
        ]
        if hidden:
            found[part.path] = _add_back(shadow, part.path, found[part.path], hidden)
    return found


def _add_back(shadow: Shadow, path: str, tree: str, hidden: Sequence[bytes]) -> str:
    """Return *tree* with the *hidden* files of the project added."""
    index = shadow.index(f"{key_of(path)}.more-{secrets.token_hex(4)}")
    folder = os.fspath(shadow.root / path)
    try:
        shadow.git(index=index).run("read-tree", tree)
        git = shadow.git(folder, index)
        plain = [each for each in hidden if Path(os.fsdecode(shadow.root), path).is_dir()]
        listing = b"".join(each + b"\0" for each in plain)
        git.run("update-index", "--add", "--remove", "--replace", "-z", "--stdin", stdin=listing)
        return git.run("write-tree", "--missing-ok").decode().strip()
    finally:
        index.unlink(missing_ok=True)


def _diff(
    shadow: Shadow, objects: Sequence[str], part: str, one: str, other: str
) -> Iterator[FileChange]:
    """Yield how the files of two trees differ."""
    git = shadow.git(objects=objects)
    raw = git.run(*_DIFF, "--raw", "--numstat", "--no-abbrev", "-z", one, other)
    fields = raw.split(b"\0")[:-1]
    changed: list[tuple[bytes, list[bytes]]] = []
    position = 0
    while position < len(fields) and fields[position].startswith(b":"):
        changed.append((fields[position + 1], fields[position][1:].split(b" ")))
        position += 2
    counts: dict[bytes, tuple[bytes, bytes]] = {}
    for line in fields[position:]:
        added, deleted, path = line.split(b"\t", 2)
        counts[path] = (added, deleted)
    for path, (old_mode, new_mode, old_blob, new_blob, letter) in changed:
        added, deleted = counts.get(path, (b"0", b"0"))
        name = f"{part}/{os.fsdecode(path)}" if part else os.fsdecode(path)
        kind: Kind = "add" if letter == b"A" else "delete" if letter == b"D" else "update"
        warning = acts_by_itself(name)
        if warning is None and new_mode == b"120000":
            warning = _leads_out(shadow, objects, name, new_blob.decode())
        yield FileChange(
            *(name, kind, None if added == b"-" else int(added)),
            None if deleted == b"-" else int(deleted),
            *(old_mode.decode(), new_mode.decode(), old_blob.decode(), new_blob.decode()),
            part,
            warning if kind != "delete" else None,
        )


def _leads_out(shadow: Shadow, objects: Sequence[str], path: str, blob: str) -> str | None:
    """Return a warning if the symbolic link *path* leads out of the project."""
    target = os.fsdecode(shadow.contents((blob,), objects)[blob] or b"/")
    joined = os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118, PTH120
    if target.startswith("/") or joined == ".." or joined.startswith("../"):
        return "the symbolic link leads out of the project"
    return None


def _prefixes(part: str) -> tuple[str, str]:
    inner = f"{part}/" if part else ""
    return f"--src-prefix=a/{inner}", f"--dst-prefix=b/{inner}"


def _text(shadow: Shadow, objects: Sequence[str], pairs: Iterable[tuple[str, str, str]]) -> str:
    """Return the diff, cut at TEXT_LIMIT characters with a note."""
    git = shadow.git(objects=objects)
    parts: list[bytes] = []
    size = 0
    for part, one, other in pairs:
        if size > TEXT_LIMIT * 4:
            break
        limit = TEXT_LIMIT * 4 + 4
        found = git.run(*_DIFF, "-p", *_prefixes(part), one, other, limit=limit, cut=True)
        parts.append(found)
        size += len(found)
    text = b"".join(parts).decode("utf-8", "replace")
    if len(text) <= TEXT_LIMIT:
        return text
    return text[:TEXT_LIMIT].rpartition("\n")[0] + "\n[the diff is longer: see the patch]\n"


def _patch(
    shadow: Shadow, before: Snapshot, pairs: Iterable[tuple[str, str, str]], name: str
) -> Path | None:
    """Write the whole diff to a file and return its path; None if it is too large."""
    folder = shadow.folder / "patches"
    claim_folder(folder)
    path = folder / f"{name}.patch"
    git = shadow.git(objects=before.objects)
    try:
        with path.open("wb") as file:
            for part, one, other in pairs:
                options = ("-p", "--binary", "--full-index", *_prefixes(part))
                git.run(*_DIFF, *options, one, other, limit=PATCH_LIMIT, into=file)
    except GitFailed:
        path.unlink(missing_ok=True)
        return None
    return path
