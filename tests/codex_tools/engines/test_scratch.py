"""The files of a turn: private, and removed without following what a command put there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from codex_tools.engines import guard
from codex_tools.engines.scratch import Scratch


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name in ("thesis.md", "output_schema.json"):
        (folder / name).write_text("precious")
    return folder


def swap(scratch: Path, documents: Path) -> None:
    """Do what a command of the run could do in a folder that it may write to."""
    scratch.rename(scratch.with_name("moved"))
    scratch.symlink_to(documents)


def test_the_files_are_private_and_gone_afterwards(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch" / "server")
    file = scratch.write("output_schema.json", b"{}")
    link = scratch.link("0.png", tmp_path / "a,b.png")
    assert file.read_bytes() == b"{}"
    assert link.readlink() == tmp_path / "a,b.png"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(scratch.path.stat().st_mode) == 0o700
    scratch.remove()
    assert list((tmp_path / "scratch").iterdir()) == []
    scratch.remove()  # After the guard, which has removed them already.


def test_the_server_removes_nothing_behind_a_link(tmp_path: Path, documents: Path) -> None:
    scratch = Scratch(tmp_path / "scratch" / "server")
    scratch.write("output_schema.json", b"{}")
    swap(scratch.path, documents)
    scratch.remove()
    assert sorted(each.name for each in documents.iterdir()) == ["output_schema.json", "thesis.md"]
    assert list((tmp_path / "scratch" / "moved").iterdir()) == []


def test_the_server_removes_only_what_it_wrote(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch" / "server")
    scratch.write("output_schema.json", b"{}")
    (scratch.path / "other").write_text("of somebody else")
    scratch.remove()
    assert [each.name for each in scratch.path.iterdir()] == ["other"]


@pytest.mark.parametrize("trick", ["swap", "link", "folder", "add"])
def test_the_guard_removes_nothing_behind_a_link(
    tmp_path: Path, documents: Path, trick: str
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "output_schema.json").write_text("{}")
    tricks = {
        "swap": f"mv {scratch} {tmp_path}/moved && ln -s {documents} {scratch}",
        "link": f"ln -sf {documents}/thesis.md {scratch}/output_schema.json",
        "folder": f"cd {scratch} && rm * && ln -s {documents} output_schema.json",
        "add": f"ln {documents}/thesis.md {scratch}/",
    }
    control, other = os.pipe()
    command = [sys.executable, "-I", "-S", guard.__file__, str(control), str(scratch), "200", "/"]
    subprocess.run(
        [*command, "/bin/sh", "-c", tricks[trick]], pass_fds=[control], check=True, timeout=60
    )
    os.close(control)
    os.close(other)
    left = {each.name: each.read_text() for each in documents.iterdir()}
    assert left == {"thesis.md": "precious", "output_schema.json": "precious"}
    if trick == "add":  # Not one of ours.
        assert [each.name for each in scratch.iterdir()] == ["thesis.md"]
