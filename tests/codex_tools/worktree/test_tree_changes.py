"""What a run has changed, as a list, a text and a patch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from codex_tools.worktree import scan, tree_changes
from codex_tools.worktree.copies import discard, open_copy
from codex_tools.worktree.snapshot import load_snapshot, take_snapshot
from codex_tools.worktree.tree_changes import (
    Changes,
    acts_by_itself,
    changes_of,
    forget_changes,
    overlap,
)
from codex_tools.worktree.tree_error import TreeError
from support.work_trees import Project, make_torture_tree, run_git, write

pytestmark = pytest.mark.usefixtures("private_home")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write(".gitignore", "*.log\n")
    made.write("a", "1\n2\n3\n")
    made.write("b", "b\n")
    made.commit()
    made.write("a", "1\n2\n3\nnot committed\n")
    return made


def test_kinds_and_lines_are_counted_against_the_tree_as_it_was(project: Project) -> None:
    def work(root: Path) -> None:
        write(root, "a", "1\ntwo\n3\nnot committed\n")
        (root / "b").unlink()
        write(root, "c/d", "x\ny\n")
        write(root, "bin", b"\0")

    changes = project.run(work)
    found = [(each.path, each.kind, each.insertions, each.deletions) for each in changes.files]
    assert found == [
        *(("a", "update", 1, 1), ("b", "delete", 0, 1), ("bin", "add", None, None)),
        ("c/d", "add", 2, 0),
    ]
    assert (changes.insertions, changes.deletions) == (3, 2)
    assert "+two" in changes.text
    assert "not committed" in changes.text.replace("+not", "")
    assert Changes.load(changes.dump()) == changes


def test_nothing_changed_is_nothing_listed(project: Project) -> None:
    make_torture_tree(project)
    changes = project.run(lambda root: (root / "plain").touch())
    assert changes.files == ()
    assert (changes.text, changes.patch) == ("", None)


def test_what_codex_s_sandbox_leaves_behind_is_no_change(project: Project) -> None:
    """0.120.0 leaves an empty `.codex`; one with content was written by somebody."""
    project.write(".agents", "")
    project.commit()

    def work(root: Path) -> None:
        for name in (".codex", "c/.codex", "c/.aws"):
            write(root, name, "")
            (root / name).chmod(0o444)
        write(root, "d/.codex", "x")
        (root / ".agents").unlink()

    found = [(each.path, each.kind) for each in project.run(work).files]
    assert found == [(".agents", "delete"), ("d/.codex", "add")]


def test_the_copy_s_own_git_folder_plays_no_part(project: Project) -> None:
    def work(root: Path) -> None:
        write(root, "a", "changed\n")
        run_git(root, "add", "-A")
        run_git(root, "-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "hidden")
        shutil.rmtree(root / ".git")
        write(root, ".git/info/exclude", "*\n")
        write(root, ".git/index", "nonsense")

    assert [each.path for each in project.run(work).files] == ["a"]


def test_a_file_that_the_run_lets_git_ignore_is_compared_or_named(project: Project) -> None:
    def work(root: Path) -> None:
        write(root, ".gitignore", "*\n")
        write(root, "a", "changed\n")
        write(root, "sneaked", "in\n")

    changes = project.run(work)
    assert [each.path for each in changes.files] == [".gitignore", "a"]
    assert [each.path for each in changes.left_out] == ["sneaked"]


def test_the_project_itself_can_be_compared(project: Project) -> None:
    project.write("x.log", "ignored\n")
    project.write("untracked", "u\n")
    shadow = project.shadow
    before = take_snapshot(shadow)
    assert changes_of(shadow, before).files == ()
    project.write("a", "changed\n")
    project.write("new", "n\n")
    project.write(".gitignore", "*.log\nuntracked\n")
    changes = changes_of(shadow, before)
    assert [(each.path, each.kind) for each in changes.files] == [
        *((".gitignore", "update"), ("a", "update"), ("new", "add")),
    ]


def test_files_that_act_by_themselves_are_flagged(project: Project) -> None:
    names = (
        *(".envrc", ".vscode/tasks.json", "sub/.claude/settings.json", ".codex/config.toml"),
        *(".husky/pre-commit", ".gitattributes", ".github/workflows/x.yml", "AGENTS.md"),
        *(".mcp.json", ".devcontainer/devcontainer.json", "conftest.py", "sub/.npmrc"),
    )

    def work(root: Path) -> None:
        for name in (*names, "src/main.py", "vscode/x"):
            write(root, name, "x\n")
        (root / "out").symlink_to("/etc/passwd")
        (root / "up").symlink_to("../../x")
        (root / "in").symlink_to("src/main.py")

    changes = project.run(work)
    flagged = {each.path for each in changes.files if each.warning}
    assert flagged == {*names, "out", "up"}
    assert acts_by_itself("a/b.py") is None


def test_a_long_diff_is_cut_and_the_patch_is_whole(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_changes, "TEXT_LIMIT", 1000)
    changes = project.run(lambda root: write(root, "long", "line of text\n" * 1000))
    assert len(changes.text) < 1100
    assert "see the patch" in changes.text
    assert changes.patch is not None
    assert changes.patch.read_text().count("+line of text") == 1000
    forget_changes(project.shadow, changes)
    assert not changes.patch.exists()
    monkeypatch.setattr(tree_changes, "PATCH_LIMIT", 1000)
    assert project.run(lambda root: write(root, "long", "line of text\n" * 1000)).patch is None


def test_two_runs_that_changed_the_same_file_overlap(project: Project) -> None:
    one = project.run(lambda root: (write(root, "a", "x"), write(root, "p", "x")))
    two = project.run(lambda root: (write(root, "a", "y"), write(root, "p/q", "y")))
    assert overlap(one, two) == ("a", "p")
    assert overlap(one, project.run(lambda root: write(root, "b", "x"))) == ()


def test_a_file_too_large_is_named_and_not_taken_for_deleted(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, copy = project.lay_out()
    monkeypatch.setattr(scan, "FILE_LIMIT", 100)
    write(copy.folder, "a", "x" * 200)
    write(copy.folder, "b", "changed\n")
    changes = changes_of(project.shadow, snapshot, copy)
    assert [each.path for each in changes.files] == ["b"]
    assert [each.path for each in changes.left_out] == ["a"]
    assert "larger than" in changes.left_out[0].reason


def test_a_copy_is_found_again_by_another_process(project: Project) -> None:
    snapshot, copy = project.lay_out()
    write(copy.folder, "a", "first turn\n")
    copy.close()
    shadow = project.shadow
    with open_copy(shadow, copy.id) as again:
        assert again.folder == copy.folder
        known = load_snapshot(shadow, again.snapshot)
        assert known == snapshot
        write(again.folder, "b", "second turn\n")
        assert len(changes_of(shadow, known, again).files) == 2
        discard(shadow, again)
    with pytest.raises(TreeError, match="no longer kept"):
        open_copy(shadow, copy.id)
    for name in ("../x", "", "0"):
        with pytest.raises(TreeError, match="no longer kept"):
            open_copy(shadow, name)


def test_changes_of_a_later_build_are_refused(project: Project) -> None:
    changes = project.run(lambda root: write(root, "a", "x"))
    with pytest.raises(TreeError, match="unknown format"):
        Changes.load(changes.dump().replace('"format": 1', '"format": 2'))
    for text in ("", "[]", "{}", '{"format": 1}'):
        with pytest.raises(TreeError):
            Changes.load(text)


def test_a_name_that_is_not_utf_8_survives_json(project: Project) -> None:
    name = os.fsdecode(b"caf\xe9")
    changes = project.run(lambda root: write(root, name, "x"))
    assert [each.path for each in Changes.load(changes.dump()).files] == [name]
