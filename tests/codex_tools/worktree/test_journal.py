"""Applications that are killed, or fail, leave all of it or nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from codex_tools.runs.isolation import remove_old_copies
from codex_tools.worktree.apply_plan import make_plan
from codex_tools.worktree.copies import clean_up, lay_out
from codex_tools.worktree.journal import apply_plan, needs_recovery, recover
from codex_tools.worktree.snapshot import take_snapshot
from codex_tools.worktree.tree_error import RolledBack
from support.killed_apply import change
from support.work_trees import Project, files_in, run_git, state_of, write

KILLS = int(os.environ.get("TREE_KILLS", "12"))
"""Processes killed; TREE_KILLS=100 for more."""


pytestmark = pytest.mark.usefixtures("private_home")


def _make(base: Path) -> Project:
    project = Project(base)
    for number in range(12):
        project.write(f"f{number}", f"home {number}\n")
    project.write("gone/only", "x\n")
    (project.root / "link").symlink_to("f1")
    project.commit()
    project.write("f11", "not committed\n")
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return _make(tmp_path)


def _start(project: Project, step: str, last: int) -> subprocess.CompletedProcess[str]:
    arguments = [str(project.state_dir), str(project.root), step, str(last)]
    return subprocess.run(
        [sys.executable, "-m", "support.killed_apply", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


STEPS = ("snapshot", "lay_out", "changes", "apply", "apply", "apply")
"""The steps in which processes are killed; the application most often."""


def test_a_process_killed_at_any_moment_leaves_all_or_nothing(tmp_path: Path) -> None:
    totals: dict[str, int] = {}
    for step in dict.fromkeys(STEPS):
        done = _start(_make(tmp_path / f"whole-{step}"), step, 0)
        assert done.returncode == 0, done.stderr
        totals[step] = int(done.stdout)
    assert totals["apply"] > 60
    for number in range(KILLS):
        step = STEPS[number % len(STEPS)]
        last = random.Random(number).randint(1, totals[step])
        project = _make(tmp_path / f"killed-{number}")
        old, git_state = files_in(project.root), state_of(project.root / ".git")
        change(shutil.copytree(project.root, tmp_path / f"expected-{number}", symlinks=True))
        new = files_in(tmp_path / f"expected-{number}")
        ended = _start(project, step, last)
        assert ended.returncode == -signal.SIGKILL, (step, last, ended.stderr)
        recover(project.shadow)
        assert files_in(project.root) in (old, new), (step, last)
        if step != "apply":
            assert files_in(project.root) == old
        assert state_of(project.root / ".git") == git_state
        assert not needs_recovery(project.shadow)
        # All of it works again.
        snapshot = take_snapshot(project.shadow)
        with lay_out(project.shadow, snapshot) as copy:
            assert files_in(copy.folder) == files_in(project.root)
        clean_up(project.state_dir, -1)
        assert list(project.state_dir.glob("trees/*/copies/*")) == []
        assert list(project.state_dir.glob("trees/*/snapshots/*")) == []


def test_each_moment_of_an_application_is_undone_or_completed(tmp_path: Path) -> None:
    """Kill at moments around the beginning of the visible changes, where both ends occur."""
    seen: set[str] = set()
    total = int(_start(_make(tmp_path / "whole"), "apply", 0).stdout)
    for last in sorted({*range(total - 60, total, max(1, 60 // KILLS)), total // 2}):
        project = _make(tmp_path / f"at-{last}")
        old = files_in(project.root)
        assert _start(project, "apply", last).returncode == -signal.SIGKILL
        before = files_in(project.root)
        done = recover(project.shadow)
        after = files_in(project.root)
        seen.add("undone" if after == old else "completed")
        if after == old:
            assert not any(each.completed for each in done)
        elif before != after:
            assert [each.completed for each in done] == [True]
            assert done[0].untouched == ()
        assert recover(project.shadow) == ()
    assert seen == {"undone", "completed"}


def test_a_file_changed_after_the_crash_is_left_alone_and_named(tmp_path: Path) -> None:
    total = int(_start(_make(tmp_path / "whole"), "apply", 0).stdout)
    for last in range(total - 20, 0, -3):
        project = _make(tmp_path / f"at-{last}")
        assert _start(project, "apply", last).returncode == -signal.SIGKILL
        if (project.root / "f10").read_text() != "home 10\n" or not needs_recovery(project.shadow):
            continue
        (project.root / "f10").write_text("since the crash\n")
        done = recover(project.shadow)
        assert (project.root / "f10").read_text() == "since the crash\n"
        if done and done[0].completed:
            assert done[0].untouched == ("f10",)
            assert (project.root / "f0").read_text() == "run 0\n"
            return
    pytest.fail("no kill fell between the first and the last rename")


def test_a_journal_where_commands_of_runs_can_write_is_not_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "open"))
    for last in range(int(_start(_make(tmp_path / "whole"), "apply", 0).stdout) - 20, 0, -3):
        project = _make(tmp_path / "open" / f"at-{last}")
        _start(project, "apply", last)
        if not needs_recovery(project.shadow):
            continue
        before = files_in(project.root)
        remove_old_copies(project.state_dir)
        assert files_in(project.root) == before
        assert needs_recovery(project.shadow)
        return
    pytest.fail("no kill left a journal")


def test_a_failure_in_the_middle_restores_the_files_with_their_mtimes(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = project.run(change)
    plan = make_plan(project.shadow, changes)
    before = state_of(project.root)
    rename, count = os.rename, 0

    def fail(*arguments: object, **named: object) -> None:
        nonlocal count
        count += 1
        if count == 6:
            raise OSError(28, "No space left on device")
        rename(*arguments, **named)  # pyright: ignore[reportArgumentType, reportCallIssue]

    # A full disk; there is none to be had without root.
    monkeypatch.setattr("os.rename", fail)
    with pytest.raises(RolledBack, match="No space left"):
        apply_plan(project.shadow, plan)
    monkeypatch.undo()
    after = state_of(project.root)
    changed = {path for path in before if before[path] != after.get(path)} | (after.keys() - before)
    assert changed <= {str(project.root / "gone"), str(project.root)}  # Folders' own mtimes.
    assert not needs_recovery(project.shadow)
    apply_plan(project.shadow, make_plan(project.shadow, changes))
    assert (project.root / "gone").read_text() == "a file now\n"


def test_a_folder_that_cannot_be_written_to_changes_nothing(project: Project) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    project.write("closed/file", "x\n")
    changes = project.run(lambda root: (change(root), write(root, "closed/new", "y")))
    (project.root / "closed").chmod(0o500)
    before = files_in(project.root)
    with pytest.raises(RolledBack, match="Permission"):
        apply_plan(project.shadow, make_plan(project.shadow, changes))
    (project.root / "closed").chmod(0o700)
    assert files_in(project.root) == before


def test_the_index_is_not_touched(project: Project) -> None:
    project.write("f0", "staged\n")
    project.git("add", "f0")
    project.write("f0", "home 0\n")
    changes = project.run(change)
    before = state_of(project.root / ".git")
    apply_plan(project.shadow, make_plan(project.shadow, changes))
    assert state_of(project.root / ".git") == before
    assert run_git(project.root, "show", ":f0") == "staged\n"
