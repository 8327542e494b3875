"""Snapshots and copies of real repositories of every kind, byte for byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from codex_tools.worktree.copies import discard, lay_out
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import (
    Snapshot,
    forget_snapshot,
    load_snapshot,
    take_snapshot,
)
from codex_tools.worktree.tree_changes import changes_of
from codex_tools.worktree.tree_error import TreeError
from support.repository_kinds import (
    KINDS,
    detached,
    one_commit,
    shallow,
    sharing,
    sparse_index,
    with_nested,
    without_blobs,
)
from support.work_trees import (
    IGNORED,
    Project,
    files_in,
    make_torture_tree,
    run_git,
    state_of,
)

pytestmark = pytest.mark.usefixtures("private_home")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_torture_tree_is_laid_out_byte_for_byte_and_home_stays_as_it_is(
    project: Project,
) -> None:
    make_torture_tree(project)
    before, files = state_of(project.root), files_in(project.root)
    for name in IGNORED:
        del files[name]
    snapshot, copy = project.lay_out()
    assert files_in(copy.folder) == files
    assert (copy.folder / "hollow").is_dir()
    assert changes_of(project.shadow, snapshot, copy).files == ()
    assert state_of(project.root) == before
    assert snapshot.carried == (".env",)
    assert {each.path for each in snapshot.left_out} == {"other.log", "build/"}
    assert Snapshot.load(snapshot.dump()) == snapshot
    assert load_snapshot(project.shadow, snapshot.id) == snapshot
    assert copy.folder.name == "project"


def test_git_says_in_the_copy_what_it_says_at_home(project: Project) -> None:
    make_torture_tree(project)
    project.git("tag", "v1")
    project.git("branch", "other")
    project.git("update-ref", "refs/remotes/origin/main", "HEAD")
    project.git("config", "remote.origin.url", "https://secret@example.com/x")
    project.git("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    project.git("config", "branch.main.remote", "origin")
    project.git("config", "branch.main.merge", "refs/heads/main")
    _, copy = project.lay_out()
    for words in (
        ("status", "--porcelain=v2", "--branch"),
        ("status",),
        ("log", "--all", "--decorate"),
        ("diff",),
        ("diff", "--cached"),
        ("branch", "-a"),
        ("tag",),
    ):
        assert run_git(copy.folder, *words) == project.git(*words), words
    assert "secret" not in (copy.folder / ".git" / "config").read_text()


def test_a_second_snapshot_of_a_changed_tree_is_exact_too(project: Project) -> None:
    make_torture_tree(project)
    take_snapshot(project.shadow)
    project.write("d/clean", "changed\n")
    project.write(".gitignore", "*.log\nbuild/\n.env\nuntracked/\n")
    (project.root / "binary").unlink()
    (project.root / "binary").mkdir()
    project.write("binary/inside", "now a folder\n")
    shutil.rmtree(project.root / "with blank")
    (project.root / "with blank").symlink_to("d")
    project.git("add", "-f", "other.log")
    _, copy = project.lay_out()
    files = files_in(project.root)
    for name in ("build/out", "untracked/deep/file", "untracked/run"):
        del files[name]
    assert files_in(copy.folder) == files


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_each_kind_of_repository_is_laid_out_as_at_home(
    project: Project, make: Callable[[Project], None]
) -> None:
    make(project)
    before = state_of(project.root)
    snapshot, copy = project.lay_out()
    assert state_of(project.root) == before
    assert files_in(copy.folder) == files_in(project.root)
    # With a sparse index, `git status` leaves out a percentage that it gives else.
    status = ("status",) if make is not sparse_index else ("status", "--porcelain=v2", "--branch")
    assert run_git(copy.folder, *status) == project.git(*status)
    assert run_git(copy.folder, "diff") == project.git("diff")
    assert snapshot.branch == (None if make is detached else "refs/heads/main")
    # A spare copy becomes the same.
    (copy.folder / "junk").write_text("x")
    discard(project.shadow, copy)
    _, again = project.lay_out()
    assert again.id == copy.id
    assert files_in(again.folder) == files_in(project.root)
    assert run_git(again.folder, *status) == project.git(*status)


@pytest.mark.parametrize("make", [shallow, sharing, without_blobs], ids=lambda make: make.__name__)
def test_clones_of_every_kind_are_laid_out_as_at_home(
    project: Project, make: Callable[[Project], None]
) -> None:
    make(project)
    before = state_of(project.root)
    _, copy = project.lay_out()
    assert state_of(project.root) == before
    assert files_in(copy.folder) == files_in(project.root)
    for command in ("status", "log"):
        assert run_git(copy.folder, command) == project.git(command)


def test_a_linked_worktree_is_laid_out_as_at_home(project: Project, tmp_path: Path) -> None:
    one_commit(project)
    linked = tmp_path / "linked"
    project.git("worktree", "add", "-q", "-b", "side", str(linked))
    (linked / "a").write_text("side\n")
    before = state_of(project.root)
    shadow = Shadow.open(tmp_path / "state", linked)
    snapshot = take_snapshot(shadow)
    copy = lay_out(shadow, snapshot)
    assert snapshot.branch == "refs/heads/side"
    assert files_in(copy.folder) == files_in(linked)
    assert state_of(project.root) == before
    assert run_git(copy.folder, "status") == run_git(linked, "status")


def test_a_folder_without_git_is_copied_without_what_its_gitignore_names(tmp_path: Path) -> None:
    project = Project(tmp_path, git=False)
    project.write("a", b"\r\n\0")
    project.write(".gitignore", "x\n")
    project.write("sub/x", "ignored\n")
    snapshot, copy = project.lay_out()
    assert files_in(copy.folder).keys() == {"a", ".gitignore"}
    assert not (copy.folder / ".git").exists()
    assert (snapshot.head, snapshot.branch) == (None, None)
    assert [each.path for each in snapshot.left_out] == ["sub/"]


def test_a_repository_with_sha256_is_laid_out_as_at_home(tmp_path: Path) -> None:
    project = Project(tmp_path, "--object-format=sha256")
    one_commit(project)
    snapshot, copy = project.lay_out()
    assert len(snapshot.tree) == 64
    assert run_git(copy.folder, "status") == project.git("status")
    (copy.folder / "a").write_text("by the run\n")
    assert [each.path for each in changes_of(project.shadow, snapshot, copy).files] == ["a"]


def test_submodules_and_nested_repositories_are_each_their_own(project: Project) -> None:
    with_nested(project)
    before = state_of(project.root)
    snapshot, copy = project.lay_out()
    assert state_of(project.root) == before
    assert [part.path for part in snapshot.parts] == [
        *("", "bare-folder", "tools", "vendor/lib", "vendor/lib/deep"),
    ]
    assert files_in(copy.folder) == files_in(project.root)
    for folder in ("", "tools", "vendor/lib", "vendor/lib/deep"):
        here, there = project.root / folder, copy.folder / folder
        assert run_git(there, "status") == run_git(here, "status"), folder
    (copy.folder / "vendor/lib/deep/deep").write_text("changed\n")
    (copy.folder / "vendor/lib/lib.c").unlink()
    run_git(copy.folder, "init", "-q", "made")
    (copy.folder / "made/file").write_text("in a repository of the run\n")
    changes = changes_of(project.shadow, snapshot, copy)
    assert {(each.path, each.kind) for each in changes.files} == {
        ("made/file", "add"),
        ("vendor/lib/deep/deep", "update"),
        ("vendor/lib/lib.c", "delete"),
    }
    discard(project.shadow, copy)
    again = lay_out(project.shadow, take_snapshot(project.shadow))
    assert again.id == copy.id
    assert files_in(again.folder) == files_in(project.root)


def test_an_absent_submodule_is_an_empty_folder_in_the_copy(project: Project) -> None:
    with_nested(project)
    project.git("submodule", "deinit", "-q", "-f", "vendor/lib", check=False)
    shutil.rmtree(project.root / "vendor/lib")
    (project.root / "vendor/lib").mkdir()
    _, copy = project.lay_out()
    assert list((copy.folder / "vendor/lib").iterdir()) == []
    assert run_git(copy.folder, "status") == project.git("status")


def test_cwd_below_the_root_keeps_its_place(project: Project) -> None:
    one_commit(project)
    project.write(".gitignore", "out/\n")
    project.write("out/x", "x")
    _, copy = project.lay_out()
    assert copy.at(project.root / "sub") == copy.folder / "sub"
    assert copy.at(project.root) == copy.folder
    with pytest.raises(TreeError, match="ignores it"):
        copy.at(project.root / "out")
    with pytest.raises(TreeError, match="not inside"):
        copy.at(project.root.parent)


def test_a_file_of_the_same_size_behind_a_filter_is_read(project: Project) -> None:
    # The blob has other bytes of the same number, so only the attribute tells.
    project.git("config", "filter.rot.clean", "tr a-z n-za-m")
    project.git("config", "filter.rot.smudge", "tr a-z n-za-m")
    project.write(".gitattributes", "secret filter=rot\n")
    project.write("secret", "hello\n")
    project.commit()
    assert project.git("cat-file", "blob", "HEAD:secret") == "uryyb\n"
    _, copy = project.lay_out()
    assert (copy.folder / "secret").read_text() == "hello\n"


def test_what_is_neither_file_nor_link_is_named(project: Project) -> None:
    one_commit(project)
    os.mkfifo(project.root / "pipe")
    (project.root / ".GIT").mkdir()
    (project.root / ".GIT" / "config").write_text("x")
    snapshot, copy = project.lay_out()
    assert {(each.path, each.reason) for each in snapshot.left_out} == {
        ("pipe", "not a regular file"),
        (".GIT/", "reserved name"),
        (".GIT/config", "its name is reserved or not valid"),
    }
    assert not (copy.folder / "pipe").exists()


def test_a_forgotten_snapshot_cannot_be_loaded(project: Project) -> None:
    one_commit(project)
    snapshot = take_snapshot(project.shadow)
    forget_snapshot(project.shadow, snapshot.id)
    with pytest.raises(TreeError, match="no longer kept"):
        load_snapshot(project.shadow, snapshot.id)
    for name in ("../x", "", "x/y"):
        with pytest.raises(TreeError, match="no such"):
            load_snapshot(project.shadow, name)
    refs = run_git(project.shadow.git_dir, "--git-dir=.", "for-each-ref")
    assert refs == ""
