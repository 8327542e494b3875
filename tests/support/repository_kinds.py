"""The kinds of repositories that a project may be."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from support.work_trees import Project, run_git


def no_commit(project: Project) -> None:
    project.write("a", "a\n")
    project.git("add", "a")
    project.write("b", "b\n")


def detached(project: Project) -> None:
    one_commit(project)
    project.git("checkout", "-q", "--detach")


def one_commit(project: Project) -> None:
    project.write("a", "a\n")
    project.write("sub/b", "b\n")
    project.commit()
    project.write("a", "A\n")
    project.write("new", "n\n")


def split_index(project: Project) -> None:
    one_commit(project)
    project.git("update-index", "--split-index")
    project.write("c", "c\n")
    project.git("add", "c")


def mid_merge(project: Project) -> None:
    project.write("a", "a\n")
    project.commit()
    project.git("checkout", "-q", "-b", "other")
    project.write("a", "other\n")
    project.commit()
    project.git("checkout", "-q", "main")
    project.write("a", "main\n")
    project.commit()
    project.git("merge", "-q", "other", check=False)


def sparse(project: Project) -> None:
    one_commit(project)
    project.write("far/away", "x\n")
    project.commit()
    project.git("sparse-checkout", "set", "--cone", "sub")
    project.write("sub/b", "B\n")


def sparse_index(project: Project) -> None:
    sparse(project)
    project.git("sparse-checkout", "set", "--cone", "--sparse-index", "sub")


def intent_to_add(project: Project) -> None:
    one_commit(project)
    project.git("add", "-N", "new")


def assume_unchanged(project: Project) -> None:
    one_commit(project)
    project.git("update-index", "--assume-unchanged", "sub/b")
    project.write("sub/b", "hidden change\n")


def ignored_by_the_person(project: Project) -> None:
    one_commit(project)
    place = project.root.parent / "home" / ".config" / "git" / "ignore"
    place.parent.mkdir(parents=True)
    place.write_text("*.mine\n")
    project.write(".git/info/exclude", "*.theirs\n")


def index_version_4(project: Project) -> None:
    one_commit(project)
    project.git("update-index", "--index-version", "4")


def with_nested(project: Project) -> None:
    inner = Project(project.root.parent, name="library")
    inner.write("lib.c", "int x;\n")
    inner.commit()
    one_commit(project)
    allow = ("-c", "protocol.file.allow=always")
    project.git(*allow, "submodule", "add", "-q", str(inner.root), "vendor/lib")
    project.commit()
    (project.root / "vendor/lib/lib.c").write_text("int dirty;\n")
    nested = Project(project.root / "vendor" / "lib", name="deep")
    nested.write("deep", "deep\n")
    nested.commit()
    nested.write("more", "untracked\n")
    Project(project.root, name="tools").write("t", "no commit\n")
    run_git(project.root, "init", "-q", "bare-folder")


def shallow(project: Project) -> None:
    _clone(project, "--depth", "1", as_url=True)


def sharing(project: Project) -> None:
    _clone(project, "--shared")


def without_blobs(project: Project) -> None:
    _clone(project, "--filter=blob:none", as_url=True)


def _clone(project: Project, *options: str, as_url: bool = False) -> None:
    """Make *project* a clone of a repository beside it, with a change."""
    origin = Project(project.root.parent, name=f"origin-of-{project.root.name}")
    one_commit(origin)
    origin.commit("second")
    origin.git("config", "uploadpack.allowFilter", "true")
    shutil.rmtree(project.root)
    source = f"file://{origin.root}" if as_url else str(origin.root)
    run_git(project.root.parent, "clone", "-q", *options, source, str(project.root))
    project.write("a", "dirty\n")


def linked(project: Project) -> None:
    """Make *project* a linked work tree of a repository beside it."""
    main = Project(project.root.parent, name=f"main-of-{project.root.name}")
    one_commit(main)
    shutil.rmtree(project.root)
    main.git("worktree", "add", "-q", "-b", "side", str(project.root))
    project.write("a", "side\n")


def without_git(project: Project) -> None:
    shutil.rmtree(project.root / ".git")
    project.write("a", b"\r\n\0")
    project.write("sub/b", "b\n")


def sha256(project: Project) -> None:
    shutil.rmtree(project.root / ".git")
    project.git("init", "-q", "-b", "main", "--object-format=sha256")
    project.git("config", "user.name", "Ann")
    project.git("config", "user.email", "ann@example.com")
    one_commit(project)


KINDS: list[Callable[[Project], None]] = [
    *(no_commit, detached, one_commit, split_index, mid_merge, sparse, sparse_index),
    *(intent_to_add, assume_unchanged, ignored_by_the_person, index_version_4),
]
"""Kinds of a repository of its own, on the branch main unless it is detached."""

OTHER_KINDS: list[Callable[[Project], None]] = [
    *(shallow, sharing, without_blobs, linked, without_git, sha256, with_nested),
]
