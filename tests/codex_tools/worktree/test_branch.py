"""Commits on a new branch of the person's repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from codex_tools.worktree.branch import make_branch
from codex_tools.worktree.tree_error import NotAppliable
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
    made.write("text", "".join(f"{n}\n" for n in range(20)))
    made.write("d/gone", "x\n")
    made.write("win", b"1\r\n2\r\n")
    made.write(".gitattributes", "win text eol=crlf\n*.lfs filter=lfs\n*.auto text=auto\n")
    made.commit("first")
    return made


def _work(root: Path) -> None:
    content = (root / "text").read_text().replace("\n5\n", "\nfive\n")
    (root / "text").write_text(content)
    (root / "d/gone").unlink()
    write(root, "new/run", "#!/bin/sh\n", 0o755)
    (root / "new/link").symlink_to("run")


def test_one_commit_by_the_person_holds_the_run_s_changes_and_no_others(project: Project) -> None:
    project.write("text", (project.root / "text").read_text().replace("\n15\n", "\nmine\n"))
    project.write("mine", "untracked\n")
    changes = project.run(_work)
    head, files = project.git("rev-parse", "HEAD").strip(), files_in(project.root)
    made = make_branch(project.shadow, changes, "codex/one", "A message\n\nwith a body")
    assert project.git("rev-parse", "codex/one^").strip() == head
    assert project.git("log", "-1", "--format=%an <%ae>|%cn|%B", "codex/one").strip() == (
        "Ann <ann@example.com>|Ann|A message\n\nwith a body"
    )
    assert project.git("diff", "--name-status", head, "codex/one").split() == [
        *("D", "d/gone", "A", "new/link", "A", "new/run", "M", "text"),
    ]
    assert "five" in project.git("show", "codex/one:text")
    assert "mine" not in project.git("show", "codex/one:text")
    assert project.git("rev-parse", "codex/one").strip() == made.commit
    assert files_in(project.root) == files
    assert project.git("symbolic-ref", "HEAD").strip() == "refs/heads/main"
    project.git("fsck", "--strict", "--connectivity-only")


def test_nothing_but_objects_and_one_ref_is_written(project: Project, tmp_path: Path) -> None:
    for name in ("reference-transaction", "post-commit", "commit-msg", "pre-commit"):
        project.write(f".git/hooks/{name}", f"#!/bin/sh\ntouch {tmp_path}/ran\n", 0o755)
    project.git("config", "commit.gpgsign", "true")
    project.git("config", "gpg.program", f"{tmp_path}/no-such")
    changes = project.run(_work)
    before = state_of(project.root)
    make_branch(project.shadow, changes, "run", "x")
    after = state_of(project.root)
    new = {
        str(Path(path).relative_to(project.root / ".git"))
        for path in after
        if before.get(path) != after[path] and Path(path).is_file()
    }
    others = {path for path in new if not path.startswith("objects/")}
    assert others == {"refs/heads/run", "logs/refs/heads/run"}
    assert not (tmp_path / "ran").exists()


def test_line_ends_are_stored_as_git_would_store_them(project: Project) -> None:
    def work(root: Path) -> None:
        (root / "win").write_bytes(b"1\r\nTWO\r\n")
        write(root, "x.auto", b"a\r\nb\r\n")

    changes = project.run(work)
    make_branch(project.shadow, changes, "run", "x")
    assert run_git(project.root, "cat-file", "blob", "run:win") == "1\nTWO\n"
    assert run_git(project.root, "cat-file", "blob", "run:x.auto") == "a\nb\n"


def test_some_paths_only(project: Project) -> None:
    changes = project.run(_work)
    make_branch(project.shadow, changes, "run", "x", ["new"])
    assert project.git("diff", "--name-only", "main", "run").split() == ["new/link", "new/run"]


def test_a_repository_without_a_commit_gets_its_first(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("a", "a\n")
    changes = project.run(lambda root: write(root, "b", "b\n"))
    make_branch(project.shadow, changes, "run", "x")
    assert project.git("ls-tree", "--name-only", "run").split() == ["b"]


def test_a_shallow_clone_gets_the_branch(project: Project, tmp_path: Path) -> None:
    project.commit("second")
    run_git(tmp_path, "clone", "-q", "--depth", "1", f"file://{project.root}", "deep/project")
    clone = Project(tmp_path / "deep")
    clone.state_dir = tmp_path / "state2"
    changes = clone.run(_work)
    make_branch(clone.shadow, changes, "run", "x")
    assert clone.git("rev-list", "--count", "run").strip() == "2"


REFUSED = {
    "exists": ("main", "exists"),
    "no name": ("", "no name"),
    "an option": ("-d", "no name"),
    "outside": ("../../x", "no name"),
    "two dots": ("a..b", "no name"),
    "head": ("HEAD", "no name"),
    "below a branch": ("main/x", "cannot be made"),
    "line feed": ("a\nb", "no name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_branch_that_cannot_be_made_changes_no_ref(project: Project, case: str) -> None:
    name, reason = REFUSED[case]
    changes = project.run(_work)
    refs = project.git("for-each-ref")
    with pytest.raises(NotAppliable, match=reason):
        make_branch(project.shadow, changes, name, "x")
    assert project.git("for-each-ref") == refs


def test_what_does_not_fit_head_is_refused_and_writes_nothing(project: Project) -> None:
    project.write("text", "all mine\n")
    changes = project.run(lambda root: write(root, "text", "all mine, by the run\n"))
    before = state_of(project.root)
    with pytest.raises(NotAppliable, match="same lines"):
        make_branch(project.shadow, changes, "run", "x")
    changes = project.run(lambda root: write(root, "big.lfs", "x\n"))
    with pytest.raises(NotAppliable, match="filter lfs would have to run"):
        make_branch(project.shadow, changes, "run", "x")
    assert state_of(project.root) == before


def test_without_an_identity_it_says_which_setting_is_missing(project: Project) -> None:
    project.git("config", "--unset", "user.email")
    changes = project.run(_work)
    with pytest.raises(NotAppliable, match=r"user\.email is missing"):
        make_branch(project.shadow, changes, "run", "x")


def test_a_gitfile_to_another_project_gets_no_branch(tmp_path: Path) -> None:
    victim = Project(tmp_path, name="victim")
    victim.write("a", "a\n")
    victim.commit()
    hostile = Project(tmp_path, name="hostile", git=False)
    hostile.write(".git", f"gitdir: {victim.root}/.git\n")
    hostile.write("a", "a\n")
    changes = hostile.run(lambda root: write(root, "a", "b\n"))
    before = state_of(victim.root)
    with pytest.raises(NotAppliable, match="no repository of its own"):
        make_branch(hostile.shadow, changes, "run", "x")
    assert state_of(victim.root) == before


def test_a_linked_worktree_and_a_submodule_get_their_branch(
    project: Project, tmp_path: Path
) -> None:
    project.git("worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    linked = Project(tmp_path, name="linked", git=False)
    make_branch(linked.shadow, linked.run(_work), "run", "x")
    assert project.git("rev-parse", "run^") == project.git("rev-parse", "side")
    outer = Project(tmp_path, name="outer")
    allow = ("-c", "protocol.file.allow=always")
    outer.git(*allow, "submodule", "add", "-q", str(project.root), "sub")
    outer.commit()
    sub = Project(outer.root, name="sub", git=False)
    sub.state_dir = tmp_path / "state"
    run_git(sub.root, "config", "user.name", "Bob")
    run_git(sub.root, "config", "user.email", "b@example.com")
    make_branch(sub.shadow, sub.run(_work), "run2", "x")
    assert run_git(sub.root, "log", "-1", "--format=%an", "run2").strip() == "Bob"
