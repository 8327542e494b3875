"""Commit changes to a new branch of the person's repository, without a checkout.

The commit has HEAD as its parent and holds HEAD's files with the run's changes, without what the
person had not committed. Only this module writes to the person's repository: objects, and one ref.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codex_tools.worktree import git_call
from codex_tools.worktree.apply_plan import (
    LINK,
    NO_FILE,
    Action,
    Now,
    PathPlan,
    choose,
    merge_contents,
)
from codex_tools.worktree.git_call import Git, clean_env
from codex_tools.worktree.no_links import remove_folder
from codex_tools.worktree.repository import Repository
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.tree_changes import Changes, FileChange
from codex_tools.worktree.tree_error import GitFailed, NotAppliable, TreeError

_CONVERTING = ("filter", "text", "crlf", "eol", "ident", "working-tree-encoding")


@dataclass(frozen=True, slots=True)
class Branch:
    """A new branch with one commit."""

    name: str
    commit: str
    files: tuple[PathPlan, ...]


def make_branch(
    shadow: Shadow,
    changes: Changes,
    name: str,
    message: str,
    paths: Collection[str] | None = None,
) -> Branch:
    """Commit *changes* to the new branch *name*, with the person's identity.

    Args:
        shadow: The project's shadow repository.
        changes: The changes of a run.
        name: The branch, without refs/heads/.
        message: The commit message.
        paths: The changed paths to commit, files or folders of them; None for all.

    Raises:
        NotAppliable: The branch exists, its name is not allowed, git knows no identity, or the
            changes do not fit HEAD. The repository was not changed.
        GitFailed: git failed.
    """
    repository = shadow.repository(os.fspath(shadow.root))
    if repository is None or not repository.owns(shadow.program):
        raise NotAppliable(f"{shadow.root} has no repository of its own")
    home = repository.git(shadow.program)
    ref = _checked_name(home, name)
    identity = _identity(repository, shadow.program)
    chosen = choose(changes, paths)
    nested = next((each for each in chosen if each.part), None)
    if nested is not None:
        raise NotAppliable(f"{nested.path} is in another repository, {nested.part}: apply it")
    head = repository.head
    planned = list(_plan(shadow, repository, changes, chosen))
    conflict = next((each for each in planned if each.action == "conflict"), None)
    if conflict is not None:
        raise NotAppliable(f"{conflict.path}: {conflict.reason}")
    if not any(each.action != "same" for each in planned):
        raise NotAppliable("HEAD holds these changes already")
    tree = _write_tree(shadow, head, changes.objects, planned)
    parent = () if head is None else ("-p", head)
    writer = shadow.git(objects=changes.objects)
    commit = (
        writer.run("commit-tree", *parent, "-F", "-", tree, stdin=message.encode(), env=identity)
        .decode()
        .strip()
    )
    _send(shadow, changes.objects, home, head, commit, tree)
    zeros = "0" * len(commit)
    try:
        home.run("update-ref", "--no-deref", "-m", "branch: Created", ref, commit, zeros)
    except GitFailed as error:
        raise NotAppliable(f"the branch {name} cannot be made: {error.reason}") from error
    return Branch(name, commit, tuple(planned))


def _checked_name(home: Git, name: str) -> str:
    """Return the full name of the branch.

    Raises:
        NotAppliable: It is not allowed, or it exists.
    """
    ref = f"refs/heads/{name}"
    try:
        if name.startswith("-") or name == "HEAD" or "\0" in name:
            raise GitFailed("check-ref-format", "it is not valid")
        home.run("check-ref-format", ref)
    except GitFailed:
        raise NotAppliable(f"{name!r} is no name for a branch") from None
    if home.run("for-each-ref", "--format=%(refname)", ref, within_s=git_call.ANSWER_WITHIN_S):
        raise NotAppliable(f"the branch {name} exists")
    return ref


def _identity(repository: Repository, program: str) -> dict[str, str]:
    """Return the variables of a commit by the person."""
    git = repository.git(program, own_config=True)
    found: list[str] = []
    for key in ("user.name", "user.email"):
        answer = git.run("config", "--get", key, allowed=(0, 1), within_s=git_call.ANSWER_WITHIN_S)
        if not answer.strip():
            raise NotAppliable(f"git's setting {key} is missing: set it with git config")
        found.append(os.fsdecode(answer).strip())
    names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
    return dict(zip(names, found * 2, strict=True))


def _plan(
    shadow: Shadow,
    repository: Repository,
    changes: Changes,
    chosen: Iterable[FileChange],
) -> Iterator[PathPlan]:
    """Yield what each change means for the files of HEAD."""
    wanted = list(chosen)
    at_head = _entries(shadow, repository.head, changes.objects)
    attributes = _attributes(shadow, repository, [each.path for each in wanted])
    with_conversion = _Conversion(shadow, repository)
    try:
        for change in wanted:
            mode, blob = at_head.get(change.path, (NO_FILE, ""))
            made = PathPlan(
                change.path, "same", "", Now(mode, blob), change.new_mode, change.new_blob
            )
            found = attributes.get(change.path, {})
            if "filter" in found and change.kind != "delete":
                reason = f"git's filter {found['filter']} would have to run"
                yield replace(made, action="conflict", reason=reason)
                continue
            is_stored = change.kind != "add" and made.now.is_like(change.old_mode, change.old_blob)
            if found and not is_stored and LINK not in (change.old_mode, change.new_mode):
                change = with_conversion.of(change, changes)
                made = replace(made, blob=change.new_blob)
            if made.now.is_like(change.new_mode, change.new_blob):
                yield replace(made, reason="HEAD has the same content")
            elif made.now.is_like(change.old_mode, change.old_blob):
                action: Action = "delete" if change.kind == "delete" else "write"
                yield replace(made, action=action, reason="only the run changed it")
            else:
                mine = shadow.contents((blob,), changes.objects)[blob] if blob else None
                yield merge_contents(shadow, changes.objects, change, made, mine)
    finally:
        with_conversion.close()


def _entries(
    shadow: Shadow, head: str | None, objects: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Return mode and blob of each file of HEAD."""
    if head is None:
        return {}
    listing = shadow.git(objects=objects).run("ls-tree", "-r", "-z", "--full-tree", head)
    found: dict[str, tuple[str, str]] = {}
    for line in listing.split(b"\0")[:-1]:
        fields, _, path = line.partition(b"\t")
        mode, _, blob = fields.decode().split(" ")
        found[os.fsdecode(path)] = (mode, blob)
    return found


def _attributes(
    shadow: Shadow, repository: Repository, paths: Iterable[str]
) -> dict[str, dict[str, str]]:
    """Return the attributes of each path by which git converts its content; none if none do."""
    git = repository.git(shadow.program, own_config=True)
    env = {**git.env, "GIT_WORK_TREE": repository.root}
    env["GIT_INDEX_FILE"] = os.fspath(shadow.git_dir / "no-index")
    listing = os.fsencode("".join(f"{path}\0" for path in paths))
    answer = Git(shadow.program, env, repository.root).run(
        "check-attr", "-z", "--stdin", *_CONVERTING, stdin=listing
    )
    fields = os.fsdecode(answer).split("\0")[:-1]
    found: dict[str, dict[str, str]] = {}
    for path, name, value in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        if value not in ("unspecified", "unset"):
            found.setdefault(path, {})[name] = value
    if dict(repository.settings).get("core.autocrlf", "false").lower() in ("true", "input"):
        for path in fields[::3]:
            found.setdefault(path, {})
            found[path].setdefault("text", "auto")
    return found


class _Conversion:
    """Converts contents as `git add` would, with git's own conversions and no filter."""

    def __init__(self, shadow: Shadow, repository: Repository) -> None:
        self._shadow = shadow
        self._root = repository.root
        self._folder = shadow.folder / f"new-{secrets.token_hex(8)}"
        for name in ("info", "refs", "objects"):
            (self._folder / name).mkdir(parents=True, mode=0o700)
        (self._folder / "HEAD").write_text("ref: refs/heads/none\n")
        lines = ["[core]\n\tbare = false\n\tsafecrlf = false\n"]
        settings = dict(repository.settings)
        for key in ("autocrlf", "eol"):
            value = settings.get(f"core.{key}", "")
            if value.isalpha():
                lines.append(f"\t{key} = {value}\n")
        version = 1 if shadow.object_format == "sha256" else 0
        lines.append(f"\trepositoryformatversion = {version}\n")
        if version:
            lines.append("[extensions]\n\tobjectformat = sha256\n")
        (self._folder / "config").write_text("".join(lines))
        attributes = Path(repository.common_dir, "info", "attributes")
        if attributes.is_file():
            shutil.copyfile(attributes, self._folder / "info" / "attributes")
        env = clean_env() | {
            "GIT_DIR": os.fspath(self._folder),
            "GIT_WORK_TREE": self._root,
            "GIT_OBJECT_DIRECTORY": os.fspath(shadow.git_dir / "objects"),
        }
        self._git = Git(shadow.program, env, self._root)

    def of(self, change: FileChange, changes: Changes) -> FileChange:
        """Return *change* with the contents as git would store them."""
        old, new = (
            self._stored(change.path, blob, changes) if mode != NO_FILE else blob
            for mode, blob in (
                (change.old_mode, change.old_blob),
                (change.new_mode, change.new_blob),
            )
        )
        return replace(change, old_blob=old, new_blob=new)

    def _stored(self, path: str, blob: str, changes: Changes) -> str:
        content = self._shadow.contents((blob,), changes.objects)[blob]
        if content is None:
            raise NotAppliable(f"{path} is too large to convert")
        return (
            self._git.run("hash-object", "-w", "--stdin", f"--path={path}", stdin=content)
            .decode()
            .strip()
        )

    def close(self) -> None:
        """Delete the settings of the conversion."""
        remove_folder(self._folder)


def _write_tree(
    shadow: Shadow, head: str | None, objects: Sequence[str], planned: Iterable[PathPlan]
) -> str:
    """Write HEAD's tree with the planned changes; return its id."""
    index = shadow.index(f"branch-{secrets.token_hex(8)}")
    try:
        if head is not None:
            shadow.git(index=index, objects=objects).run("read-tree", head)
        zeros = "0" * (64 if shadow.object_format == "sha256" else 40)
        lines = [
            f"0 {zeros}\t{each.path}\0"
            if each.mode == NO_FILE
            else f"{each.mode} {each.blob}\t{each.path}\0"
            for each in sorted(planned, key=lambda each: each.mode != NO_FILE)
            if each.action != "same"
        ]
        git = shadow.git(index=index)
        git.run("update-index", "-z", "--index-info", stdin=os.fsencode("".join(lines)))
        return git.run("write-tree", "--missing-ok").decode().strip()
    finally:
        index.unlink(missing_ok=True)


def _send(
    shadow: Shadow,
    objects: Sequence[str],
    home: Git,
    head: str | None,
    commit: str,
    tree: str,
) -> None:
    """Write the objects of the commit, which the person's repository lacks, to it."""
    git = shadow.git(objects=objects)
    old = f"{head}^{{tree}}" if head is not None else shadow.empty_tree()
    raw = git.run("diff-tree", "-r", "-t", "-z", "--no-renames", "--no-abbrev", old, tree)
    fields = raw.split(b"\0")[:-1]
    wanted = {commit, tree}
    for line in fields[::2]:
        _, mode, _, new = line[1:].split(b" ")[:4]
        if new.strip(b"0") and mode != b"160000":
            wanted.add(new.decode())
    listing = "".join(f"{each}\n" for each in sorted(wanted)).encode()
    checked = home.run("cat-file", "--batch-check", stdin=listing).split(b"\n")
    missing = [line.split(b" ")[0] for line in checked if line.endswith(b" missing")]
    packed = git.run("pack-objects", "--stdout", "-q", stdin=b"".join(m + b"\n" for m in missing))
    try:
        home.run("unpack-objects", "-q", stdin=packed)
    except GitFailed as error:
        raise TreeError(f"the objects cannot be written: {error.reason}") from error
