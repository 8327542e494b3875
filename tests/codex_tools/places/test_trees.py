"""A project travels as it is on disk, once; what was changed comes back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from codex_tools.places.trees import (
    changes_from,
    collect,
    describe_project,
    dump_trees,
    known_objects,
    make_parcel,
    open_project,
    pack_snapshot,
    read_trees,
    receive_snapshot,
    unpack,
)
from codex_tools.worktree.copies import Copy, lay_out
from codex_tools.worktree.shadow import PACKS_LIMIT, Shadow, prune
from codex_tools.worktree.snapshot import Snapshot, forget_snapshot, take_snapshot
from codex_tools.worktree.tree_changes import Changes
from codex_tools.worktree.tree_error import TreeError
from support.work_trees import run_git

LIMIT = 10**8

IDENTITY = ("-c", "user.name=A", "-c", "user.email=a@example.com")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    run_git(folder, "init", "-q")
    (folder / "a.txt").write_bytes(b"one\r\ntwo\n" * 2000)
    (folder / ".gitignore").write_text("*.key\n")
    (folder / ".worktreeinclude").write_text("*.key\n")
    (folder / "mine.key").write_text("secret")
    run_git(folder, "add", "-A")
    run_git(folder, *IDENTITY, "commit", "-qm", "first")
    (folder / "untracked.txt").write_bytes(b"\xff\r\n")
    return folder


def send(here: Shadow, there: Shadow, *, carry: bool = False) -> tuple[Snapshot, Snapshot, int]:
    """Return the snapshot here and there, and the bytes of the pack."""
    parcel = make_parcel(here, take_snapshot(here), carry=carry)
    with tempfile.TemporaryFile() as pack:
        has_history = pack_snapshot(here, parcel.snapshot, known_objects(there), pack, LIMIT)
        size = pack.seek(0, 2)
        pack.seek(0)
        unpack(there.git(), pack, LIMIT, strict=False)
    return (
        parcel.snapshot,
        receive_snapshot(there, parcel.description, has_history=has_history),
        size,
    )


def fetch(here: Shadow, there: Shadow, before: Snapshot, laid: Snapshot, copy: Copy) -> Changes:
    with tempfile.TemporaryFile() as pack:
        sent = dump_trees(*collect(there, laid, copy, pack, LIMIT))
        unpack(here.git(objects=before.objects), pack, LIMIT, strict=True)
    return changes_from(here, before, *read_trees(sent))


def test_a_project_is_the_same_there_and_its_changes_come_back(
    tmp_path: Path, project: Path
) -> None:
    here = Shadow.open(tmp_path / "here", project)
    there = open_project(tmp_path / "there", describe_project(here))
    before, laid, _ = send(here, there)
    with lay_out(there, laid) as copy:
        for name in ("a.txt", ".gitignore", "untracked.txt"):
            assert (copy.folder / name).read_bytes() == (project / name).read_bytes()
        assert run_git(copy.folder, "status", "--short") == run_git(project, "status", "--short")
        assert run_git(copy.folder, "log", "--format=%H") == run_git(project, "log", "--format=%H")
        assert not (copy.folder / "mine.key").exists()
        (copy.folder / "a.txt").write_bytes(b"changed\r\n")
        (copy.folder / "new.bin").write_bytes(bytes(range(256)))
        (copy.folder / "untracked.txt").unlink()
        changes = fetch(here, there, before, laid, copy)
    assert {(each.path, each.kind) for each in changes.files} == {
        ("a.txt", "update"),
        ("new.bin", "add"),
        ("untracked.txt", "delete"),
    }


def test_an_ignored_file_travels_only_to_a_place_that_carries(
    tmp_path: Path, project: Path
) -> None:
    here = Shadow.open(tmp_path / "here", project)
    there = open_project(tmp_path / "there", describe_project(here))
    before, laid, _ = send(here, there, carry=True)
    with lay_out(there, laid) as copy:
        assert (copy.folder / "mine.key").read_text() == "secret"
        assert fetch(here, there, before, laid, copy).files == ()


def test_what_the_place_has_does_not_travel_again(tmp_path: Path, project: Path) -> None:
    here = Shadow.open(tmp_path / "here", project)
    there = open_project(tmp_path / "there", describe_project(here))
    *_, first = send(here, there)
    (project / "b.txt").write_text("more\n")
    *_, second = send(here, there)
    assert second < first
    assert second < 400


def test_a_shallow_clone_travels_with_the_history_that_it_has(
    tmp_path: Path, project: Path
) -> None:
    run_git(project, *IDENTITY, "commit", "-qam", "second", "--allow-empty")
    shallow = tmp_path / "shallow"
    run_git(tmp_path, "clone", "-q", "--depth=1", f"file://{project}", str(shallow))
    here = Shadow.open(tmp_path / "here", shallow)
    there = open_project(tmp_path / "there", describe_project(here))
    _, laid, _ = send(here, there)
    with lay_out(there, laid) as copy:
        assert (
            run_git(copy.folder, "log", "--format=%s").split()
            == run_git(shallow, "log", "--format=%s").split()
        )


def test_a_project_that_is_too_large_is_refused(tmp_path: Path, project: Path) -> None:
    here = Shadow.open(tmp_path / "here", project)
    parcel = make_parcel(here, take_snapshot(here), carry=False)
    with tempfile.TemporaryFile() as pack, pytest.raises(TreeError, match="more than"):
        pack_snapshot(here, parcel.snapshot, (), pack, 100)


@pytest.mark.parametrize(
    "field", [("key", "../../up"), ("root", "relative"), ("root", "/"), ("object_format", "md5")]
)
def test_a_description_that_leads_out_of_the_state_folder_is_refused(
    tmp_path: Path, project: Path, field: tuple[str, str]
) -> None:
    here = Shadow.open(tmp_path / "here", project)
    with pytest.raises(TreeError):
        open_project(tmp_path / "there", describe_project(here) | dict([field]))


def test_packs_do_not_pile_up_at_a_place(tmp_path: Path, project: Path) -> None:
    here = Shadow.open(tmp_path / "here", project)
    there = open_project(tmp_path / "there", describe_project(here))
    laid: list[Snapshot] = []
    for number in range(PACKS_LIMIT + 2):
        (project / "untracked.txt").write_bytes(b"%d\n" % number * 100)
        laid.append(send(here, there)[1])
    packs = there.git_dir / "objects" / "pack"
    assert len([*packs.glob("*.pack")]) > PACKS_LIMIT
    first, last = (each.parts[0].tree for each in (laid[0], laid[-1]))
    for each in laid[:-1]:
        forget_snapshot(there, each.id)
    prune(there, 3600)  # What is new stays: another worker may be about to name it.
    assert len([*packs.glob("*.pack")]) == 1
    assert there.git().run("cat-file", "-t", first).strip() == b"tree"
    prune(there, -3600)
    with pytest.raises(TreeError):
        there.git().run("cat-file", "-e", first)
    copy = lay_out(there, laid[-1])
    assert there.git().run("cat-file", "-t", last).strip() == b"tree"
    assert (copy.folder / "untracked.txt").read_bytes() == b"%d\n" % (PACKS_LIMIT + 1) * 100
    assert (copy.folder / "a.txt").read_bytes() == b"one\r\ntwo\n" * 2000
    copy.close()
