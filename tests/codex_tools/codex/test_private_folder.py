"""Folders of this user alone, out of reach of sandboxed commands."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from codex_tools.codex.private_folder import (
    StandIn,
    check_folder,
    claim_folder,
    make_private_folder,
)

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


def mode_of(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o770, 0o777])
def test_a_folder_of_ours_is_closed_to_others(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "a" / "b"
    claim_folder(folder)
    assert mode_of(folder) == 0o700
    folder.chmod(mode)
    claim_folder(folder)
    assert mode_of(folder) == 0o700


@root
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o777)
    os.chown(folder, 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        claim_folder(folder)


def test_a_folder_that_users_share_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)  # Like /tmp.
    with pytest.raises(PermissionError, match="shared"):
        claim_folder(folder)
    assert mode_of(folder) == 0o1777


def test_a_link_in_place_of_an_inner_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    claim_folder(tmp_path / "link")
    with pytest.raises(OSError, match="link"):
        claim_folder(tmp_path / "link", follow=False)


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_folder_that_only_this_user_can_write_to_passes_the_check(
    tmp_path: Path, mode: int
) -> None:
    (folder := tmp_path / "ours").mkdir()
    folder.chmod(mode)
    check_folder(folder)
    assert mode_of(folder) == mode


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
def test_a_folder_that_others_can_write_to_fails_the_check_and_is_left_as_it_is(
    tmp_path: Path, mode: int
) -> None:
    (folder := tmp_path / "shared").mkdir()
    folder.chmod(mode)
    with pytest.raises(PermissionError, match=r"may write to it|shared"):
        check_folder(folder)
    assert mode_of(folder) == mode


@root
def test_a_folder_of_another_user_fails_the_check(tmp_path: Path) -> None:
    (folder := tmp_path / "theirs").mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        check_folder(folder)


def test_a_missing_folder_and_a_link_fail_the_check(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_folder(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="link"):
        check_folder(tmp_path / "link", follow=False)


def test_a_private_folder_is_not_where_sandboxed_commands_can_write() -> None:
    folder, is_exposed = make_private_folder()
    try:
        assert mode_of(folder) == 0o700
        assert not is_exposed
        for place in ("/tmp", tempfile.gettempdir()):
            assert not folder.is_relative_to(Path(place).resolve())
    finally:
        folder.rmdir()


def test_without_any_such_place_the_temp_folder_is_used_and_said_to_be_exposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codex_tools.codex.private_folder._places", lambda: [tmp_path / "none"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stand_in = StandIn()
    assert (stand_in.path.parent, stand_in.is_exposed) == (tmp_path, True)
    (stand_in.path / "file").touch()
    stand_in.remove()
    assert not stand_in.path.exists()
