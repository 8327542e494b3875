"""The lines that changed in a work tree: what is compared, what is named only, what is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from codex_tools.worktree import contents as module
from codex_tools.worktree.changes import changes_since, take_snapshot
from codex_tools.worktree.contents import compare_contents, keep_contents
from codex_tools.worktree.tree_changes import Changes
from support.work_trees import Project, run_git, state_of, write

pytestmark = pytest.mark.usefixtures("private_home")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    for name in ("committed", "dirty", "gone"):
        write(made.root, name, f"{name}\nsame\n")
    write(made.root, ".gitignore", "*.log\n")
    made.git("add", ".")
    made.git("commit", "-qm", "first")
    for name in ("committed", "dirty", "gone"):  # So git's index has a valid id of each.
        os.utime(made.root / name, (1_000_000_000, 1_000_000_000))
    made.git("update-index", "--refresh")
    write(made.root, "dirty", "dirty\nof the person\n")
    write(made.root, "untracked", "one\n")
    return made


async def compare(project: Project, change: Callable[[Path], object]) -> Changes:
    """Return what *change* did to the lines of the project; its `.git` must stay as it is."""
    project.state_dir.mkdir(exist_ok=True, mode=0o700)
    before = await take_snapshot(project.root)
    assert before is not None
    contents = keep_contents(project.state_dir, before)
    change(project.root)
    git = state_of(project.root / ".git")
    seen = await changes_since(before)
    assert seen is not None
    _, found = compare_contents(project.state_dir, contents, seen.changed)
    assert state_of(project.root / ".git") == git
    return found


def lines_of(changes: Changes) -> dict[str, tuple[str, int | None, int | None]]:
    return {each.path: (each.kind, each.insertions, each.deletions) for each in changes.files}


async def test_committed_uncommitted_and_untracked_files_are_compared(project: Project) -> None:
    def change(root: Path) -> None:
        write(root, "committed", "committed\nother\nmore\n")
        write(root, "dirty", "dirty\nof the run\n")
        write(root, "untracked", "one\ntwo\n")
        (root / "gone").unlink()
        write(root, "sub/new", "new\n")
        (root / "link").symlink_to("committed")
        write(root, "binary", b"\0\1\2")
        write(root, "ignored.log", "x")

    found = await compare(project, change)
    assert lines_of(found) == {
        "committed": ("update", 2, 1),
        "dirty": ("update", 1, 1),
        "untracked": ("update", 1, 0),
        "gone": ("delete", 0, 2),
        "sub/new": ("add", 1, 0),
        "link": ("add", 1, 0),
        "binary": ("add", None, None),
    }
    assert (found.insertions, found.deletions, found.left_out) == (6, 4, ())
    # The person's own change is no change of the run.
    assert "-of the person\n+of the run\n" in found.text
    assert "-same\n" not in found.text.partition("b/dirty")[2].partition("diff --git")[0]


async def test_the_patch_turns_what_was_there_into_what_is_there(project: Project) -> None:
    old = {path.name: path.read_bytes() for path in project.root.iterdir() if path.is_file()}

    def change(root: Path) -> None:
        write(root, "committed", b"crlf\r\nlatin \xe9\r\n", 0o755)
        write(root, "untracked", b"\0binary")
        (root / "dirty").unlink()

    found = await compare(project, change)
    assert found.patch is not None
    there = project.root.parent / "there"
    there.mkdir()
    for name, content in old.items():
        (there / name).write_bytes(content)
    run_git(there, "apply", "--binary", str(found.patch))
    assert (there / "committed").read_bytes() == b"crlf\r\nlatin \xe9\r\n"
    assert (there / "committed").stat().st_mode & 0o100
    assert (there / "untracked").read_bytes() == b"\0binary"
    assert not (there / "dirty").exists()


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("KEPT_FILES", 1, "too large or one of too many to keep"),
        ("KEPT_BYTES", 4, "too large or one of too many to keep"),
        ("COMPARED_BYTES", 5, "too large or one of too many to compare"),
        ("COMPARED_FILES", 1, "too large or one of too many to compare"),
    ],
)
async def test_what_is_beyond_a_limit_is_named_with_the_reason(
    project: Project, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, reason: str
) -> None:
    monkeypatch.setattr(module, limit, value)

    def change(root: Path) -> None:
        write(root, "dirty", "longer than the limit of bytes\n")
        write(root, "untracked", "two\n")

    found = await compare(project, change)
    (left,) = found.left_out
    assert (left.path in ("dirty", "untracked"), reason in left.reason) == (True, True)
    assert lines_of(found).keys() == {"dirty", "untracked"} - {left.path}


async def test_a_file_that_git_stores_converted_is_named_only(project: Project) -> None:
    write(project.root, ".gitattributes", "committed eol=crlf\n")
    write(project.root, "committed", "committed\r\nsame\r\n")
    project.git("add", ".")
    project.git("commit", "-qm", "second")
    os.utime(project.root / "committed", (1_000_000_000, 1_000_000_000))
    project.git("update-index", "--refresh")
    found = await compare(project, lambda root: write(root, "committed", "committed\r\nnew\r\n"))
    ((path, reason),) = [(each.path, each.reason) for each in found.left_out]
    assert (path, found.files) == ("committed", ())
    assert "with other bytes than those on disk" in reason


async def test_no_filter_hook_or_monitor_of_the_project_runs(project: Project) -> None:
    mark = project.root.parent / "ran"
    write(project.root, ".gitattributes", "* filter=bad diff=bad\n")
    for key in ("filter.bad.clean", "filter.bad.smudge", "diff.bad.textconv", "core.fsmonitor"):
        project.git("config", key, f"touch {mark}; cat")
    write(project.root, ".git/hooks/post-index-change", f"#!/bin/sh\ntouch {mark}\n", 0o755)
    found = await compare(project, lambda root: write(root, "dirty", "two\n"))
    assert "dirty" in lines_of(found)
    assert not mark.exists()


async def test_a_path_through_a_link_or_to_a_pipe_is_not_read(
    project: Project, tmp_path: Path
) -> None:
    write(tmp_path / "outside", "secret", "secret\n")
    write(project.root, "sub/secret", "mine\n")

    def change(root: Path) -> None:
        (root / "sub" / "secret").unlink()
        (root / "sub").rmdir()
        (root / "sub").symlink_to(tmp_path / "outside")
        (root / "gone").unlink()
        os.mkfifo(root / "gone")

    found = await compare(project, change)
    assert lines_of(found) == {
        "sub/secret": ("delete", 0, 1),
        "sub": ("add", 1, 0),
        "gone": ("delete", 0, 2),
    }
    assert "+secret" not in found.text


async def test_a_nested_repository_and_a_file_that_cannot_be_read_are_named_only(
    project: Project,
) -> None:
    def change(root: Path) -> None:
        (root / "inner").mkdir()
        project.git("init", "-q", "inner")
        write(root, "inner/file", "x")
        write(root, "closed", "x", 0o000)
        write(root, "untracked", "two\n")

    found = await compare(project, change)
    assert lines_of(found).keys() >= {"untracked"}
    named = {each.path: each.reason for each in found.left_out}
    assert "a repository of its own" in named["inner"]
    if os.geteuid() != 0:  # root reads everything
        assert "could not be read" in named["closed"]


async def test_names_of_any_bytes_are_compared(project: Project) -> None:
    names = ["line\nbreak", '"quoted"', "tab\there", os.fsdecode(b"latin-\xe9"), " blank "]
    for name in names[:2]:
        write(project.root, name, "old\n")

    def change(root: Path) -> None:
        for name in names:
            write(root, name, "new\n")

    found = await compare(project, change)
    kinds = {each.path: (each.insertions, each.deletions) for each in found.files}
    assert kinds == {name: (1, int(name in names[:2])) for name in names}


@pytest.mark.parametrize("init", [("--object-format=sha256",), ()])
async def test_a_repository_of_either_object_format_or_without_a_commit(
    tmp_path: Path, init: tuple[str, ...]
) -> None:
    project = Project(tmp_path, *init)
    write(project.root, "untracked", "one\n")
    found = await compare(project, lambda root: write(root, "untracked", "two\n"))
    assert lines_of(found) == {"untracked": ("update", 1, 1)}


async def test_a_clean_project_costs_nothing_before_the_turn(project: Project) -> None:
    project.git("add", ".")
    project.git("commit", "-qm", "second")
    for name in ("dirty", "untracked"):
        os.utime(project.root / name, (1_000_000_000, 1_000_000_000))
    os.utime(project.root / ".gitignore", (1_000_000_000, 1_000_000_000))
    project.git("update-index", "--refresh")
    before = await take_snapshot(project.root)
    assert before is not None
    assert keep_contents(project.state_dir, before).kept == {}
    assert not project.state_dir.exists()
