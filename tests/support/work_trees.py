"""Real repositories to take snapshots of, and a record of all that is in a folder."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from codex_tools.worktree.copies import Copy, lay_out
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import Snapshot, take_snapshot
from codex_tools.worktree.tree_changes import Changes, changes_of

Files = dict[str, tuple[str, bytes]]
"""The kind (file, exec, link) and the content of each path."""


def run_git(cwd: Path, *words: str, check: bool = True, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        ["git", *words],
        cwd=cwd,
        capture_output=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    assert not check or done.returncode == 0, done.stderr
    return os.fsdecode(done.stdout)


def files_in(folder: Path) -> Files:
    """Return the files and links below *folder*, but for git folders."""
    found: Files = {}
    for top, folders, names in os.walk(os.fsencode(folder)):
        if b".git" in folders:
            folders.remove(b".git")
        for name in [*names, *folders]:
            path = os.path.join(top, name)  # noqa: PTH118
            key = os.fsdecode(os.path.relpath(path, os.fsencode(folder)))
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                found[key] = ("link", os.readlink(path))  # noqa: PTH115
            elif stat.S_ISREG(mode) and name != b".git":
                kind = "exec" if mode & 0o100 else "file"
                with open(path, "rb") as opened:  # noqa: PTH123
                    found[key] = (kind, opened.read())
    return found


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return mode, mtime and content of all that is below *folder*, git folders included."""
    found: dict[str, tuple[int, int, bytes]] = {}
    for top, folders, names in os.walk(os.fsencode(folder)):
        for name in [*names, *folders]:
            path = os.path.join(top, name)  # noqa: PTH118
            state = os.lstat(path)
            content = b""
            if stat.S_ISREG(state.st_mode):
                with open(path, "rb") as opened:  # noqa: PTH123
                    content = opened.read()
            elif stat.S_ISLNK(state.st_mode):
                content = os.readlink(path)  # noqa: PTH115
            found[os.fsdecode(path)] = (state.st_mode, state.st_mtime_ns, content)
    return found


class Project:
    """A folder with a real repository, and its shadow repository."""

    def __init__(self, base: Path, *init: str, name: str = "project", git: bool = True) -> None:
        self.root = base / name
        self.state_dir = base / "state"
        self.root.mkdir(parents=True, exist_ok=True)
        if git:
            self.git("init", "-q", "-b", "main", *init)
            self.git("config", "user.name", "Ann")
            self.git("config", "user.email", "ann@example.com")

    def git(self, *words: str, check: bool = True) -> str:
        return run_git(self.root, *words, check=check)

    def write(self, path: str, content: bytes | str, mode: int | None = None) -> Path:
        return write(self.root, path, content, mode)

    def commit(self, message: str = "x") -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)

    @property
    def shadow(self) -> Shadow:
        return Shadow.open(self.state_dir, self.root)

    def lay_out(self) -> tuple[Snapshot, Copy]:
        shadow = self.shadow
        snapshot = take_snapshot(shadow)
        return snapshot, lay_out(shadow, snapshot)

    def run(self, work: Callable[[Path], object]) -> Changes:
        """Let *work* change a copy, and return the changes."""
        snapshot, copy = self.lay_out()
        with copy:
            work(copy.folder)
            return changes_of(self.shadow, snapshot, copy)


def write(root: Path, path: str, content: bytes | str, mode: int | None = None) -> Path:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    if mode is not None:
        place.chmod(mode)
    return place


LATIN = os.fsdecode(b"caf\xe9")
"""A name that is not UTF-8."""


def make_torture_tree(project: Project) -> None:
    """Fill *project* with each kind of file and of state."""
    root = project.root
    project.write(
        ".gitattributes", "*.crlf text eol=crlf\n*.id ident\n*.u16 working-tree-encoding=UTF-16\n"
    )
    project.write(".gitignore", "*.log\nbuild/\n.env\n")
    for name in ("clean", "staged", "both", "dirty", "gone", "staged-gone", "old-name", "empty2"):
        project.write(f"d/{name}", f"{name}\nsecond\n")
    project.write("win.crlf", b"one\r\ntwo\r\n")
    project.write("bare-crlf", b"one\r\ntwo\r\n")
    project.write("mixed", b"one\r\ntwo\nthree\r\n")
    project.write("x.id", b"$Id$\nbody\n")
    project.write("text.u16", "wide\n".encode("utf-16"))
    project.write("script", "#!/bin/sh\n", 0o755)
    project.write("plain", "x\n", 0o644)
    project.write("binary", bytes(range(256)) * 4)
    project.write("empty", "")
    project.write("kept.log", "tracked, though ignored\n")
    (root / "to-folder").symlink_to("d")
    (root / "dangling").symlink_to("no/such/file")
    (root / "retargeted").symlink_to("plain")
    project.write(f"with blank/{LATIN}", "latin\n")
    project.write("line\nfeed", "lf\n")
    project.git("add", "-A")
    project.git("add", "-f", "kept.log")
    project.git("commit", "-q", "-m", "first")
    for name in ("win.crlf", "x.id", "text.u16"):  # As a checkout writes them.
        (root / name).unlink()
    project.git("checkout", "--", ".")
    project.write("d/staged", "staged\nSECOND\n")
    project.write("d/both", "BOTH\nsecond\n")
    project.git("add", "d/staged", "d/both")
    project.write("d/both", "BOTH\nSECOND\n")
    project.write("d/dirty", "dirty\nSECOND\n")
    (root / "d/gone").unlink()
    project.git("rm", "-q", "d/staged-gone")
    project.git("mv", "d/old-name", "d/new-name")
    (root / "script").chmod(0o644)
    (root / "plain").chmod(0o755)
    (root / "retargeted").unlink()
    (root / "retargeted").symlink_to("script")
    project.write("binary", bytes(reversed(range(256))))
    project.write("untracked/deep/file", "new\n")
    project.write("untracked/run", "#!/bin/sh\n", 0o755)
    project.write("win.crlf", b"one\r\nTWO\r\n")
    project.write(".worktreeinclude", ".env\n")
    project.write(".env", "KEY=value\n")
    project.write("other.log", "ignored\n")
    project.write("build/out", "ignored\n")
    (root / "hollow").mkdir()


IGNORED = ("other.log", "build/out")
"""The files of the torture tree that no snapshot holds."""
