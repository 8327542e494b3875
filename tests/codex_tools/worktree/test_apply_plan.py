"""What applying a run's changes means, per path, and the faults of other programs by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codex_tools.worktree.apply_plan import make_plan
from codex_tools.worktree.copies import discard
from codex_tools.worktree.journal import apply_plan
from codex_tools.worktree.tree_changes import changes_of
from codex_tools.worktree.tree_error import NotAppliable, TreeError
from support.work_trees import LATIN, Files, Project, files_in, run_git, state_of, write

EXAMPLES = int(os.environ.get("TREE_EXAMPLES", "25"))
"""Random trees of the property test; TREE_EXAMPLES=200 for more."""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write(".gitignore", "*.log\n")
    made.write("text", "".join(f"{n}\n" for n in range(20)))
    made.write("crlf", b"".join(b"%d\r\n" % n for n in range(30)))
    made.write("binary", bytes(range(256)))
    made.write("script", "#!/bin/sh\na\nb\nc\nd\ne\n", 0o644)
    made.write("folder/one", "1\n")
    made.write("folder/two", "2\n")
    (made.root / "link").symlink_to("text")
    made.commit()
    return made


def _edit(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


Work = Callable[[Path], object]


def _delete(name: str) -> Work:
    return lambda root: (root / name).unlink()


def _put(name: str, content: bytes | str, mode: int | None = None) -> Work:
    return lambda root: write(root, name, content, mode)


def _nothing(root: Path) -> None:
    del root


def _top(root: Path) -> None:
    _edit(root / "text", b"1\n", b"ONE\n")


def _bottom(root: Path) -> None:
    _edit(root / "text", b"18\n", b"EIGHTEEN\n")


def _to_link(root: Path) -> None:
    shutil.rmtree(root / "folder")
    (root / "folder").symlink_to("/tmp")


def _rename(root: Path) -> None:
    (root / "text").rename(root / "renamed")


def _retarget(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("script")


def _mode_and_line(root: Path) -> None:
    (root / "script").chmod(0o755)


TABLE: dict[str, tuple[Work, Work, dict[str, tuple[str, str]]]] = {
    "only the run": (_top, _nothing, {"text": ("write", "only the run")}),
    "other lines": (_top, _bottom, {"text": ("merge", "other lines")}),
    "the same change": (_top, _top, {"text": ("same", "same content")}),
    "the same lines": (
        _put("text", "x\n"),
        _put("text", "y\n"),
        {"text": ("conflict", "same lines")},
    ),
    "crlf": (
        lambda root: _edit(root / "crlf", b"\n2\r\n", b"\ntwo\r\n"),
        lambda root: _edit(root / "crlf", b"\n28\r\n", b"\n28!\r\n"),
        {"crlf": ("merge", "other lines")},
    ),
    "mode and content": (
        _mode_and_line,
        lambda root: _edit(root / "script", b"\ne\n", b"\nE\n"),
        {"script": ("merge", "mode")},
    ),
    "content and mode": (
        lambda root: _edit(root / "script", b"\ne\n", b"\nE\n"),
        _mode_and_line,
        {"script": ("merge", "mode")},
    ),
    "gone in both": (_delete("text"), _delete("text"), {"text": ("same", "same")}),
    "deleted by the run": (_delete("text"), _nothing, {"text": ("delete", "only the run")}),
    "deleted, and changed": (_delete("text"), _top, {"text": ("conflict", "deleted by the run")}),
    "changed, and deleted": (_top, _delete("text"), {"text": ("conflict", "deleted by now")}),
    "binary twice": (
        _put("binary", b"\0run"),
        _put("binary", b"\0home"),
        {"binary": ("conflict", "binary")},
    ),
    "binary once": (_put("binary", b"\0run"), _nothing, {"binary": ("write", "")}),
    "added with other content": (
        _put("new", "run\n"),
        _put("new", "home\n"),
        {"new": ("conflict", "other content")},
    ),
    "added with the same content": (_put("new", "x\n"), _put("new", "x\n"), {"new": ("same", "")}),
    "a folder is a link now": (
        _put("folder/one", "run\n"),
        _to_link,
        {"folder/one": ("conflict", "folder is a link")},
    ),
    "a folder is a file now": (
        _put("folder/three", "run\n"),
        lambda root: (shutil.rmtree(root / "folder"), write(root, "folder", "x")),
        {"folder/three": ("conflict", "folder is a link or a file")},
    ),
    "a folder is in the way": (
        _put("new", "run\n"),
        _put("new/inside", "home\n"),
        {"new": ("conflict", "folder is in the way")},
    ),
    "an ignored file is in the way": (
        lambda root: (write(root, ".gitignore", ""), write(root, "x.log", "run\n")),
        _put("x.log", "home\n"),
        {"x.log": ("conflict", "other content"), ".gitignore": ("write", "")},
    ),
    "renamed, and edited": (
        _rename,
        _top,
        {"text": ("conflict", "deleted by the run"), "renamed": ("write", "")},
    ),
    "retargeted": (_retarget, _nothing, {"link": ("write", "")}),
    "link and file": (
        _retarget,
        lambda root: ((root / "link").unlink(), write(root, "link", "f")),
        {"link": ("conflict", "symbolic link")},
    ),
    "a fifo in the way": (
        _put("new", "run\n"),
        lambda root: os.mkfifo(root / "new"),
        {"new": ("conflict", "not a regular file")},
    ),
    "file to folder": (
        lambda root: ((root / "text").unlink(), write(root, "text/in", "x\n")),
        _nothing,
        {"text": ("delete", ""), "text/in": ("write", "")},
    ),
    "folder to file": (
        lambda root: (shutil.rmtree(root / "folder"), write(root, "folder", "x\n")),
        _nothing,
        {"folder": ("write", ""), "folder/one": ("delete", ""), "folder/two": ("delete", "")},
    ),
    "folder to file, with more at home": (
        lambda root: (shutil.rmtree(root / "folder"), write(root, "folder", "x\n")),
        _put("folder/mine.log", "ignored, but mine\n"),
        {
            "folder": ("conflict", "folder is in the way"),
            "folder/one": ("delete", ""),
            "folder/two": ("delete", ""),
        },
    ),
    "another repository now": (
        _put("folder/three", "run\n"),
        lambda root: run_git(root / "folder", "init", "-q"),
        {"folder/three": ("conflict", "another repository")},
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_each_case_of_the_table_is_planned_and_applied_or_changes_nothing(
    project: Project, case: str
) -> None:
    run, home, expected = TABLE[case]
    changes = project.run(run)
    home(project.root)
    before, git_before = files_in(project.root), state_of(project.root / ".git")
    plan = make_plan(project.shadow, changes)
    assert {each.path: each.action for each in plan.files} == {
        path: action for path, (action, _) in expected.items()
    }
    for each in plan.files:
        assert expected[each.path][1] in each.reason
    assert files_in(project.root) == before
    if plan.conflicts:
        state = state_of(project.root)
        with pytest.raises(NotAppliable):
            apply_plan(project.shadow, plan)
        assert state_of(project.root) == state
    else:
        apply_plan(project.shadow, plan)
        after = files_in(project.root)
        for each in changes.files:
            if expected[each.path][0] in ("write", "delete"):
                mode = {"100644": "file", "100755": "exec", "120000": "link", "000000": None}
                found = after.get(each.path)
                assert (found and found[0]) == mode[each.new_mode]
        assert {p: f for p, f in after.items() if p not in expected} == {
            p: f for p, f in before.items() if p not in expected
        }
    assert state_of(project.root / ".git") == git_before
    assert [p.name for p in project.root.rglob(".apply-*")] == []


def test_a_merge_holds_both_changes_and_keeps_line_ends(project: Project) -> None:
    changes = project.run(TABLE["crlf"][0])
    TABLE["crlf"][1](project.root)
    apply_plan(project.shadow, make_plan(project.shadow, changes))
    content = (project.root / "crlf").read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n") == 30
    assert b"\ntwo\r\n" in content
    assert b"\n28!\r\n" in content


def test_only_some_paths_are_applied_where_a_caller_names_them(project: Project) -> None:
    changes = project.run(
        lambda root: (_top(root), write(root, "a/x", "x\n"), write(root, "a/y", "y\n"))
    )
    write(project.root, "a/y", "mine\n")
    plan = make_plan(project.shadow, changes, ["a/x", "text"])
    assert [each.path for each in plan.files] == ["text", "a/x"]
    apply_plan(project.shadow, plan)
    assert (project.root / "a/y").read_text() == "mine\n"
    assert [each.path for each in make_plan(project.shadow, changes, ["a"]).files] == ["a/x", "a/y"]
    with pytest.raises(TreeError, match="did not change b"):
        make_plan(project.shadow, changes, ["b"])


def test_what_was_applied_is_said_and_not_done_again(project: Project) -> None:
    changes = project.run(_top)
    apply_plan(project.shadow, make_plan(project.shadow, changes))
    project.git("checkout", "--", ".")  # The person takes it back.
    again = make_plan(project.shadow, changes)
    assert [(each.action, each.reason) for each in again.files] == [("same", "applied before")]
    apply_plan(project.shadow, again)
    assert b"ONE" not in (project.root / "text").read_bytes()


def test_a_change_after_the_plan_is_found(project: Project) -> None:
    changes = project.run(_top)
    plan = make_plan(project.shadow, changes)
    _bottom(project.root)
    state = state_of(project.root)
    with pytest.raises(NotAppliable, match="since the plan"):
        apply_plan(project.shadow, plan)
    assert {k: v for k, v in state_of(project.root).items() if k != str(project.root)} == {
        k: v for k, v in state.items() if k != str(project.root)
    }


def test_permissions_beyond_git_s_are_kept(project: Project) -> None:
    (project.root / "text").chmod(0o600)
    changes = project.run(lambda root: (_top(root), (root / "script").chmod(0o755)))
    apply_plan(project.shadow, make_plan(project.shadow, changes))
    assert (project.root / "text").stat().st_mode & 0o777 == 0o600
    assert (project.root / "script").stat().st_mode & 0o111 == 0o111


def test_eight_runs_see_nothing_of_each_other_and_are_applied_in_turn(project: Project) -> None:
    laid = [project.lay_out() for _ in range(8)]
    for number, (_, copy) in enumerate(laid):
        _edit(copy.folder / "crlf", b"\n%d\r\n" % (number * 3 + 2), b"\nrun %d\r\n" % number)
        write(copy.folder, f"own{number}", "x\n")
    found = [changes_of(project.shadow, snapshot, copy) for snapshot, copy in laid]
    assert all(len(each.files) == 2 for each in found)
    for each in found:
        apply_plan(project.shadow, make_plan(project.shadow, each))
    content = (project.root / "crlf").read_bytes()
    assert all(b"\nrun %d\r\n" % number in content for number in range(8))
    for _, copy in laid:
        discard(project.shadow, copy)


# --- faults of other programs, by name (amicus 0.11.1, agenthub 1.2.4) --------------------------


def test_peers_untracked_files_are_missing(project: Project) -> None:
    project.write("untracked", "x")
    _, copy = project.lay_out()
    assert (copy.folder / "untracked").exists()


def test_peers_hooks_and_filters_run(project: Project, tmp_path: Path) -> None:
    for name in ("post-checkout", "post-index-change", "reference-transaction", "pre-commit"):
        project.write(f".git/hooks/{name}", f"#!/bin/sh\ntouch {tmp_path}/ran-{name}\n", 0o755)
    project.git("config", "filter.evil.clean", f"touch {tmp_path}/ran-clean; cat")
    project.git("config", "filter.evil.smudge", f"touch {tmp_path}/ran-smudge; cat")
    project.git("config", "core.fsmonitor", f"touch {tmp_path}/ran-fsmonitor; false")
    project.write(".gitattributes", "* filter=evil diff=evil merge=evil\n")
    project.git("config", "diff.evil.textconv", f"touch {tmp_path}/ran-textconv; cat")
    project.git("config", "diff.external", f"touch {tmp_path}/ran-diff")
    project.git("config", "merge.evil.driver", f"touch {tmp_path}/ran-merge")
    changes = project.run(_top)
    _bottom(project.root)
    apply_plan(project.shadow, make_plan(project.shadow, changes))
    assert [p.name for p in tmp_path.glob("ran-*")] == []


def test_peers_a_patch_with_a_binary_cannot_be_applied(project: Project, tmp_path: Path) -> None:
    changes = project.run(_put("binary", bytes(reversed(range(256)))))
    assert changes.patch is not None
    clone = tmp_path / "clone"
    run_git(tmp_path, "clone", "-q", str(project.root), str(clone))
    run_git(clone, "apply", str(changes.patch))
    assert (clone / "binary").read_bytes() == bytes(reversed(range(256)))


def test_peers_uncommitted_binary_and_crlf_changes_are_not_seen(project: Project) -> None:
    project.write("binary", b"\0mine")
    project.write("crlf", b"mine\r\n")
    _, copy = project.lay_out()
    assert (copy.folder / "binary").read_bytes() == b"\0mine"
    assert (copy.folder / "crlf").read_bytes() == b"mine\r\n"


def test_peers_one_latin_1_byte_loses_the_run(project: Project) -> None:
    changes = project.run(lambda root: (write(root, "t", b"caf\xe9\n"), write(root, LATIN, "x\n")))
    assert "caf\ufffd" in changes.text
    apply_plan(project.shadow, make_plan(project.shadow, changes))
    assert (project.root / "t").read_bytes() == b"caf\xe9\n"
    assert (project.root / LATIN).read_text() == "x\n"


def test_peers_an_edit_of_a_crlf_file_does_not_apply(project: Project, tmp_path: Path) -> None:
    changes = project.run(TABLE["crlf"][0])
    clone = tmp_path / "clone"
    run_git(tmp_path, "clone", "-q", str(project.root), str(clone))
    run_git(clone, "apply", str(changes.patch))
    apply_plan(project.shadow, make_plan(project.shadow, changes))
    assert (clone / "crlf").read_bytes() == (project.root / "crlf").read_bytes()


def test_peers_an_edit_of_another_line_of_the_same_file_is_refused(project: Project) -> None:
    changes = project.run(_top)
    _bottom(project.root)
    apply_plan(project.shadow, make_plan(project.shadow, changes))
    content = (project.root / "text").read_bytes()
    assert b"ONE" in content
    assert b"EIGHTEEN" in content


def test_peers_ignored_files_of_the_run_are_left_behind_in_silence(project: Project) -> None:
    changes = project.run(_put("made.log", "x\n"))
    assert [(each.path, each.reason) for each in changes.left_out] == [("made.log", "ignored")]


def test_peers_only_commits_count(project: Project) -> None:
    def work(root: Path) -> None:
        _top(root)
        run_git(root, "-c", "user.name=x", "-c", "user.email=x@y.z", "commit", "-qam", "by the run")

    assert [each.path for each in project.run(work).files] == ["text"]


# --- property ------------------------------------------------------------------------------------

NAMES = ("a", "b", "d/a", "d/b", "d/e/f", "x", "n\n", LATIN)
LINES = st.lists(st.sampled_from([b"1\n", b"2\r\n", b"3\n", b"four\n", b"5\n"]), max_size=8)
CONTENT = st.one_of(LINES.map(b"".join), st.just(b"\0bin"), st.just(b"no end"))
ENTRY = st.one_of(
    st.none(),
    st.tuples(st.just("file"), CONTENT),
    st.tuples(st.just("exec"), CONTENT),
    st.tuples(st.just("link"), st.sampled_from([b"a", b"../out", b"d"])),
)
TREE = st.dictionaries(st.sampled_from(NAMES), ENTRY, max_size=6)


def _clean(tree: dict[str, tuple[str, bytes] | None]) -> Files:
    """Leave out what lies below a file of the tree."""
    found = {name: entry for name, entry in tree.items() if entry is not None}
    return {
        name: entry
        for name, entry in found.items()
        if not any(other != name and name.startswith(f"{other}/") for other in found)
    }


def _set(root: Path, old: Files, new: Files) -> None:
    for name in old.keys() - new.keys():
        (root / name).unlink()
        for folder in (root / name).parents:
            if folder == root or any(folder.iterdir()):
                break
            folder.rmdir()
    for name, (kind, content) in new.items():
        if old.get(name) == (kind, content):
            continue
        place = root / name
        if os.path.lexists(place):
            place.unlink()
        if kind == "link":
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.fsdecode(content))
        else:
            write(root, name, content, 0o755 if kind == "exec" else 0o644)


def _mixed(draw: st.DrawFn, base: Files) -> Files:
    """Draw an edit of *base*."""
    edits = draw(TREE)
    return _clean({**base, **edits})


@st.composite
def _three(draw: st.DrawFn) -> tuple[Files, Files, Files]:
    base = _clean(draw(TREE))
    return base, _mixed(draw, base), _mixed(draw, base)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(trees=_three())
def test_applying_gives_the_merge_of_both_or_changes_nothing(
    tmp_path: Path, trees: tuple[Files, Files, Files]
) -> None:
    base, run, home = trees
    place = tmp_path / os.urandom(6).hex()
    project = Project(place)
    _set(project.root, {}, base)
    project.git("add", "-A")
    changes = project.run(lambda root: _set(root, base, run))
    assert {each.path for each in changes.files} == {
        name for name in {*base, *run} if base.get(name) != run.get(name)
    }
    _set(project.root, base, home)
    before = state_of(project.root)
    plan = make_plan(project.shadow, changes)
    assert state_of(project.root) == before
    if plan.conflicts:
        with pytest.raises(NotAppliable):
            apply_plan(project.shadow, plan)
        assert state_of(project.root) == before
        for each in plan.conflicts:  # Never for a path that only the run touched.
            same = base.get(each.path) == home.get(each.path)
            crossed = any(
                other.startswith(f"{each.path}/") or each.path.startswith(f"{other}/")
                for other in {*home, *base}
            )
            assert not same or crossed, each
    else:
        apply_plan(project.shadow, plan)
        after = files_in(project.root)
        for name in {*base, *run, *home}:
            was, ours, theirs = base.get(name), run.get(name), home.get(name)
            if ours == was:
                assert after.get(name) == theirs, name
            elif theirs in (was, ours):
                assert after.get(name) == ours, name
            else:  # Merged: each line stems from one of both.
                assert after[name][0] in {x[0] for x in (ours, theirs) if x is not None}
                assert ours is not None
                assert theirs is not None
                lines = {*ours[1].splitlines(True), *theirs[1].splitlines(True)}
                assert set(after[name][1].splitlines(True)) <= lines, name
        assert state_of(project.root / ".git") == {
            path: state for path, state in before.items() if "/project/.git/" in path
        }
    shutil.rmtree(place)
