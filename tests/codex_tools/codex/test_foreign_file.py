"""Files of others: never waited for, only regular ones, and no more of them than is needed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from codex_tools.codex.foreign_file import (
    HOLE_LIMIT,
    bounded_lines,
    open_foreign_file,
    read_foreign,
)


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    assert read_foreign(file, 7, owned=True) == b"content"
    with pytest.raises(OSError, match="more than 6 bytes"):
        read_foreign(file, 6)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "link-to-pipe").symlink_to("pipe")
    for name in ("pipe", "zero", "link-to-pipe"):
        with pytest.raises(OSError, match="not a regular file"):
            read_foreign(tmp_path / name, 10, follow=True)
    with pytest.raises(OSError, match="not a regular file"):
        read_foreign(tmp_path, 10)


def test_a_link_is_followed_only_where_a_person_may_have_made_it(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"content")
    (tmp_path / "link").symlink_to("target")
    assert read_foreign(tmp_path / "link", 10, follow=True) == b"content"
    with pytest.raises(OSError, match="link"):
        read_foreign(tmp_path / "link", 10)
    folder = tmp_path / "linked"
    folder.symlink_to(tmp_path)
    assert read_foreign(folder / "target", 10) == b"content"


def test_a_large_file_with_a_hole_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as opened:
        opened.write(b"{}\n")
        opened.truncate(3 * 1024**3)
    with pytest.raises(OSError, match="sparse"):
        open_foreign_file(file)
    with file.open("wb") as opened:
        opened.truncate(HOLE_LIMIT)  # As after a power failure.
    open_foreign_file(file).close()


# The test needs a file of another user, which chown(2) makes for root only.
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_refused_where_only_ours_counts(tmp_path: Path) -> None:
    file = tmp_path / "planted"
    file.write_bytes(b"planted")
    os.chown(file, 12345, 12345)
    assert read_foreign(file, 10) == b"planted"
    with pytest.raises(PermissionError, match="another user"):
        read_foreign(file, 10, owned=True)


def test_lines_that_are_too_long_are_left_out() -> None:
    text = b"one\n" + b"x" * 5000 + b"\ntwo\n" + b"y" * 5000
    assert list(bounded_lines(io.BytesIO(text), 100)) == [b"one\n", b"two\n"]
    assert list(bounded_lines(io.BytesIO(b"a\nb"), 2)) == [b"a\n", b"b"]
