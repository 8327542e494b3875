"""Read the person's repository: where it keeps its files, HEAD, refs and settings. Write nothing.

git's index is read nowhere here: git sets the mtime of a split index when it reads one.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from codex_tools.worktree import git_call
from codex_tools.worktree.git_call import Git, clean_env
from codex_tools.worktree.tree_error import GitFailed

REFS_LIMIT = 32 * 1024 * 1024
"""Bytes of refs that a copy gets; 100,000 refs take 8 MB."""

PATTERNS_LIMIT = 4 * 1024 * 1024
"""Bytes of the largest file with ignore patterns."""

_GITFILE_LIMIT = 16 * 1024

_COPIED = re.compile(
    r"core\.(autocrlf|eol|safecrlf|filemode|symlinks|ignorecase|precomposeunicode"
    r"|sparsecheckout|sparsecheckoutcone|quotepath|abbrev|whitespace)"
    r"|branch\..+\.(remote|merge|rebase)|remote\..+\.fetch|status\..+|diff\.renames"
)
"""Settings that decide what `git status`, `git diff` and `git log` print, and that run nothing."""


@dataclass(frozen=True, slots=True)
class Repository:
    """What a snapshot needs of a repository."""

    root: str
    git_dir: str
    common_dir: str
    object_format: str = "sha1"
    head: str | None = None
    """The commit of HEAD; None if there is none yet."""
    branch: str | None = None
    """The full name of the ref that HEAD names; None if HEAD is detached."""
    settings: tuple[tuple[str, str], ...] = ()
    """The repository's own settings that a copy gets."""
    excludes: bytes = b""
    """The ignore patterns that are not in the tree: the person's and those of info/exclude."""
    is_partial: bool = False

    @property
    def objects(self) -> str:
        """The folder of the repository's objects."""
        return os.path.join(self.common_dir, "objects")  # noqa: PTH118

    @property
    def index(self) -> str:
        """The path of git's index."""
        return os.path.join(self.git_dir, "index")  # noqa: PTH118

    def git(self, program: str, *, own_config: bool = False) -> Git:
        """Return git on this repository, without a work tree."""
        env = clean_env(own_config=own_config)
        env |= {"GIT_DIR": self.git_dir, "GIT_COMMON_DIR": self.common_dir}
        return Git(program, env, self.git_dir)

    def owns(self, program: str) -> bool:
        """Return True if the repository itself names *root* as its work tree.

        A gitfile may name any repository. One that does not name this folder in turn is read,
        but never written to.
        """
        dot_git = os.path.join(self.root, ".git")  # noqa: PTH118
        if os.path.realpath(dot_git) == self.git_dir and not os.path.isfile(dot_git):  # noqa: PTH113
            return True
        back = read_file(os.path.join(self.git_dir, "gitdir"), _GITFILE_LIMIT)  # noqa: PTH118
        if back is not None:
            named = os.path.join(self.git_dir, os.fsdecode(back).strip())  # noqa: PTH118
            return os.path.realpath(named) == os.path.realpath(dot_git)
        try:
            answer = self.git(program).run("config", "--get", "core.worktree", allowed=(0, 1))
        except GitFailed:
            return False
        named = os.path.join(self.git_dir, os.fsdecode(answer).strip())  # noqa: PTH118
        return bool(answer) and os.path.realpath(named) == os.path.realpath(self.root)

    def refs(self, program: str) -> bytes:
        """Return all refs but stashes, in the format of a packed-refs file."""
        git = self.git(program)
        found = git.run(
            *("for-each-ref", "--format=%(objectname) %(refname)"),
            limit=REFS_LIMIT,
            within_s=git_call.ANSWER_WITHIN_S,
        )
        lines = [line for line in found.split(b"\n") if line and b" refs/stash" not in line]
        return b"".join(line + b"\n" for line in sorted(lines, key=lambda line: line[40:]))


def read_repository(program: str, root: str) -> Repository | None:
    """Return the repository whose work tree is *root*; None if there is none.

    Raises:
        GitFailed: git cannot read it.
    """
    places = _locate(root)
    if places is None:
        return None
    found = Repository(root, *places)
    git = found.git(program, own_config=True)
    listed = git.run("config", "-z", "--show-scope", "--list", within_s=git_call.ANSWER_WITHIN_S)
    fields = os.fsdecode(listed).split("\0")
    settings: list[tuple[str, str]] = []
    excludes_file, object_format, is_partial = "", "sha1", False
    for scope, entry in zip(fields[:-1:2], fields[1::2], strict=True):
        key, line_feed, value = entry.partition("\n")
        value = value if line_feed else "true"
        if key == "core.excludesfile":
            excludes_file = value
        if scope in ("local", "worktree"):
            if key == "extensions.objectformat":
                object_format = value
            is_partial |= key == "extensions.partialclone" or key.endswith(".promisor")
            if _COPIED.fullmatch(key):
                settings.append((key, value))
    git = found.git(program)
    branch = git.run(
        "symbolic-ref", "-q", "HEAD", allowed=(0, 1), limit=8192, within_s=git_call.ANSWER_WITHIN_S
    )
    head = git.run(
        *("rev-parse", "-q", "--verify", "HEAD"),
        allowed=(0, 1),
        limit=8192,
        within_s=git_call.ANSWER_WITHIN_S,
    )
    return replace(
        found,
        object_format="sha256" if object_format == "sha256" else "sha1",
        head=os.fsdecode(head).strip() or None,
        branch=os.fsdecode(branch).strip() or None,
        settings=tuple(settings),
        excludes=b"".join(_excludes(found, excludes_file)),
        is_partial=is_partial,
    )


def _locate(root: str) -> tuple[str, str] | None:
    """Return the git folder and the common folder of the repository at *root*."""
    dot_git = Path(root, ".git")
    if dot_git.is_dir():
        git_dir = os.path.realpath(dot_git)
    else:
        named = re.match(rb"gitdir: *([^\0\n]+)", read_file(str(dot_git), _GITFILE_LIMIT) or b"")
        if named is None:
            return None
        git_dir = os.path.realpath(Path(root, os.fsdecode(named[1]).rstrip("\r")))
    common = read_file(str(Path(git_dir, "commondir")), _GITFILE_LIMIT)
    common_dir = git_dir
    if common:
        common_dir = os.path.realpath(Path(git_dir, os.fsdecode(common.rstrip(b"\n"))))
    is_repository = os.path.lexists(Path(git_dir, "HEAD")) and Path(common_dir, "objects").is_dir()
    return (git_dir, common_dir) if is_repository else None


def _excludes(repository: Repository, excludes_file: str) -> Iterator[bytes]:
    """Yield the patterns of the person's excludes file, then those of the repository."""
    if not excludes_file:
        config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111
        excludes_file = os.path.join(config, "git", "ignore")  # noqa: PTH118
    named = os.path.join(repository.root, os.path.expanduser(excludes_file))  # noqa: PTH111, PTH118
    for path in (named, os.path.join(repository.common_dir, "info", "exclude")):  # noqa: PTH118
        content = read_file(path, PATTERNS_LIMIT)
        if content:
            yield content.rstrip(b"\n") + b"\n"


def read_file(path: str, limit: int, *, follow: bool = True) -> bytes | None:
    """Return the content of a regular file; None if there is none or it is larger than *limit*."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(path, flags if follow else flags | os.O_NOFOLLOW), "rb") as opened:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                return None
            content = opened.read(limit + 1)
    except (OSError, ValueError):
        return None
    return content if len(content) <= limit else None
