"""Locks between processes that a process without the right to write cannot hold."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from pathlib import Path

import pytest

from codex_tools.codex.file_lock import (
    MODE,
    is_locked,
    lock,
    lock_for_removal,
    open_lock,
    show_lock,
)

# The locks under test are those of open files (F_OFD_SETLK), which only Linux has.
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="macOS has only flock(2)"
)


def test_a_lock_is_held_by_one_open_file_and_seen_by_all_others(tmp_path: Path) -> None:
    first, second = (open_lock(tmp_path / "it.lock") for _ in range(2))
    try:
        assert not is_locked(second)
        assert lock(first)
        assert not lock(second)
        assert is_locked(second)
        assert not is_locked(first)
        os.close(first)
        assert not is_locked(second)
        assert lock(second)
    finally:
        os.close(second)


def test_a_reader_cannot_hold_a_lock_with_flock(tmp_path: Path) -> None:
    path = tmp_path / "it.lock"
    ours = open_lock(path)
    path.chmod(0o600)  # As root, who can open the file for reading in any case.
    with path.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_EX)
        again = open_lock(path)
        assert stat.S_IMODE(os.fstat(again).st_mode) == MODE
        assert not is_locked(again)
        assert lock(again)
        assert is_locked(ours)
        show_lock(again)  # Does not wait for the reader either.
        os.close(again)
    os.close(ours)


def test_a_lock_for_removal_keeps_others_from_locking_but_is_no_lock(tmp_path: Path) -> None:
    remover, other = (open_lock(tmp_path / "it.lock") for _ in range(2))
    assert lock_for_removal(remover)
    assert not is_locked(other)
    assert not lock(other)
    os.close(remover)
    assert lock(other)
    remover = open_lock(tmp_path / "it.lock")
    assert not lock_for_removal(remover)
    os.close(remover)
    os.close(other)


def test_an_earlier_build_is_seen_by_its_flock(tmp_path: Path) -> None:
    path = tmp_path / "old.lock"
    with path.open("w") as old:
        os.fchmod(old.fileno(), 0o600)
        fd = os.open(path, os.O_WRONLY)
        assert not is_locked(fd)
        fcntl.flock(old, fcntl.LOCK_EX)
        assert is_locked(fd)
        os.close(fd)


def test_an_earlier_build_sees_a_lock_that_is_shown(tmp_path: Path) -> None:
    fd = open_lock(tmp_path / "it.lock")
    assert lock(fd)
    show_lock(fd)
    old = os.open(tmp_path / "it.lock", os.O_WRONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(old, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(old)
    os.close(fd)


def test_a_pipe_or_a_link_in_place_of_a_lock_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.lock")
    (tmp_path / "link.lock").symlink_to("elsewhere")
    for name in ("pipe.lock", "link.lock"):
        with pytest.raises(OSError, match=name):
            open_lock(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()
