"""Copies: spares, locks and cleaning up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from codex_tools.worktree.copies import SPARES, clean_up, discard, lay_out, open_copy
from codex_tools.worktree.snapshot import take_snapshot
from codex_tools.worktree.tree_changes import changes_of
from codex_tools.worktree.tree_error import CopyBusy, TreeError
from support.work_trees import Project, files_in, run_git, state_of, write


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("a", "a\n")
    made.write("d/b", "b\n")
    made.commit()
    return made


def test_a_spare_copy_is_brought_to_the_new_state_whatever_a_run_left_there(
    project: Project, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    write(outside, "b", "not ours\n")
    _, copy = project.lay_out()
    root = copy.folder
    (root / "d/b").unlink()
    (root / "d").rmdir()
    (root / "d").symlink_to(outside)
    (root / "a").unlink()
    write(root, "a/deep/er", "x")
    write(root, ".git/hooks/post-checkout", f"#!/bin/sh\ntouch {tmp_path}/ran\n", 0o755)
    write(root, ".git/config", f"[core]\n\tfsmonitor = touch {tmp_path}/ran\n")
    write(root, ".gitattributes", "* filter=evil\n")
    write(root, "left/over", "x")
    (root / "left").chmod(0)
    (root / "loop").symlink_to(".")
    os.mkfifo(root / "pipe")
    discard(project.shadow, copy)
    project.write("a", "dirty\n")
    before = state_of(outside)
    _, again = project.lay_out()
    assert again.id == copy.id
    assert files_in(again.folder) == files_in(project.root)
    assert run_git(again.folder, "status") == project.git("status")
    assert state_of(outside) == before
    assert not (tmp_path / "ran").exists()


def test_a_spare_whose_file_changed_with_the_same_size_and_mtime_is_restored(
    project: Project,
) -> None:
    _, copy = project.lay_out()
    state = (copy.folder / "a").stat()
    with (copy.folder / "a").open("r+") as file:
        file.write("X")
    os.utime(copy.folder / "a", ns=(state.st_atime_ns, state.st_mtime_ns))
    discard(project.shadow, copy)
    _, again = project.lay_out()
    assert (again.folder / "a").read_text() == "a\n"


def test_only_some_spares_are_kept(project: Project) -> None:
    copies = [project.lay_out()[1] for _ in range(SPARES + 2)]
    assert len({copy.id for copy in copies}) == SPARES + 2
    for copy in copies:
        discard(project.shadow, copy)
    assert len(list((project.shadow.folder / "copies").iterdir())) == SPARES


def test_a_copy_in_use_is_locked_for_other_processes_and_stays(project: Project) -> None:
    snapshot, copy = project.lay_out()
    with pytest.raises(CopyBusy):
        open_copy(project.shadow, copy.id)
    clean_up(project.state_dir, -1)
    assert changes_of(project.shadow, snapshot, copy).files == ()
    # A child that inherits the lock keeps it.
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(copy.lock_fd,)
    )
    copy.close()
    with pytest.raises(CopyBusy):
        open_copy(project.shadow, copy.id)
    child.communicate(b"\n")
    open_copy(project.shadow, copy.id).close()
    clean_up(project.state_dir, 3600)
    open_copy(project.shadow, copy.id).close()
    clean_up(project.state_dir, -1)
    with pytest.raises(TreeError, match="no longer kept"):
        open_copy(project.shadow, copy.id)


def test_cleaning_up_leaves_only_the_name_of_an_old_project(project: Project) -> None:
    _, copy = project.lay_out()
    copy.close()
    assert any(project.state_dir.glob("trees/*"))
    for _ in range(2):
        clean_up(project.state_dir, -1)
    assert [each.name for each in project.state_dir.glob("trees/*/*")] == ["root"]


def test_cleaning_up_knows_a_project_that_is_gone(project: Project, tmp_path: Path) -> None:
    _, copy = project.lay_out()
    copy.close()
    project.root.rename(tmp_path / "moved")
    for _ in range(2):
        clean_up(project.state_dir, -1)
    assert [each.name for each in project.state_dir.glob("trees/*/*")] == ["root"]


def test_cleaning_up_keeps_the_objects_of_a_snapshot_in_use(project: Project) -> None:
    project.write("new", "content that only the snapshot has\n")
    snapshot, copy = project.lay_out()
    shadow = project.shadow
    other = take_snapshot(shadow)
    clean_up(project.state_dir, -1)
    assert not (shadow.folder / "snapshots" / other.id).exists()
    (project.root / "new").unlink()
    write(copy.folder, "new", "changed\n")
    assert "-content that only" in changes_of(shadow, snapshot, copy).text


def test_a_path_that_is_too_long_as_an_absolute_one_is_laid_out(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.state_dir = tmp_path / ("s" * 200) / ("t" * 200)
    deep = "/".join(["x" * 200] * 18)
    fd = os.open(project.root, os.O_RDONLY)
    for part in deep.split("/"):
        os.mkdir(part, dir_fd=fd)
        inner = os.open(part, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    with open(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "w") as file:  # noqa: PTH123
        file.write("deep\n")
    os.close(fd)
    shadow = project.shadow
    snapshot = take_snapshot(shadow)
    assert snapshot.left_out == ()
    with lay_out(shadow, snapshot) as copy:  # git uses paths relative to the copy.
        assert changes_of(shadow, snapshot, copy).files == ()
