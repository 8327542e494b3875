"""Folders of copies stand for folders of the project, and no other path does."""

from __future__ import annotations

from pathlib import Path

import pytest

from codex_tools.codex.copy_paths import find_copy, project_folder

KEY, COPY = "0123456789abcdef01234567", "6b0b8d23-81d6178b0614"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state" / "trees" / KEY
    folder.mkdir(parents=True)
    (folder / "root").write_text("/home/dev/my project")
    return tmp_path / "state"


def test_a_folder_of_a_copy_is_that_of_the_project_also_when_the_copy_is_gone(state: Path) -> None:
    copy = f"{state}/trees/{KEY}/copies/{COPY}/my project"
    assert project_folder(state, copy) == "/home/dev/my project"
    assert project_folder(state, f"{copy}/src/deep") == "/home/dev/my project/src/deep"
    found = find_copy(state, f"{copy}/src")
    assert found is not None
    assert (str(found.root), found.copy, str(found.cwd)) == (
        *("/home/dev/my project", COPY, "/home/dev/my project/src"),
    )


def test_a_state_folder_behind_a_link_is_the_same(state: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(state)
    copy = f"{state}/trees/{KEY}/copies/{COPY}/my project"
    assert project_folder(tmp_path / "link", copy) == "/home/dev/my project"


@pytest.mark.parametrize(
    "path",
    [
        "/home/dev/my project",
        "{state}/trees",
        "{state}/trees/{key}",
        "{state}/trees/{key}/copies/{copy}",
        "{state}/trees/{key}/shadow.git",
        "{state}/trees/{key}/copies/{copy}/my project/../../../../../../etc",
        "{state}/trees/ffffffffffffffffffffffff/copies/{copy}/my project",
        "{state}/trees/../trees/{key}/copies/{copy}/my project",
        "/elsewhere/trees/{key}/copies/{copy}/my project",
        "{state}2/trees/{key}/copies/{copy}/my project",
        "",
    ],
)
def test_any_other_path_stays_as_it_is(state: Path, path: str) -> None:
    path = path.format(state=state, key=KEY, copy=COPY)
    assert find_copy(state, path) is None
    assert project_folder(state, path) == path


@pytest.mark.parametrize("content", [b"", b"relative", b"\0"])
def test_a_damaged_file_names_no_project(state: Path, content: bytes) -> None:
    (state / "trees" / KEY / "root").write_bytes(content)
    copy = f"{state}/trees/{KEY}/copies/{COPY}/my project"
    assert project_folder(state, copy) == copy


def test_without_a_state_folder_there_are_no_copies() -> None:
    assert find_copy(None, "/a") is None
    assert project_folder(None, None) is None
