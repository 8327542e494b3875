"""What became of a work tree, told against real repos, friendly and hostile."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import orjson
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codex_tools.codex.turn_result import ChangeKind
from codex_tools.worktree import changes as worktree
from codex_tools.worktree import files as tree
from codex_tools.worktree import git as git_runner
from codex_tools.worktree.changes import (
    Changes,
    changes_since,
    explain_unseen,
    merge,
    take_snapshot,
)
from codex_tools.worktree.git import find_git

OLD = 1_600_000_000
"""A time long past: files so old are in no doubt."""


class Repo:
    """A real repo to work in."""

    def __init__(self, root: Path, *init: str) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.git("init", "-q", "-b", "main", *init)
        self.git("config", "user.name", "a")
        self.git("config", "user.email", "a@b.c")

    def git(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            ["git", *words], cwd=self.root, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def write(self, **files: str) -> None:
        for name, text in files.items():
            self.write_at(name.replace("__", "/"), text)

    def write_at(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def commit(self, **files: str) -> None:
        self.write(**files)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "x")

    @property
    def state(self) -> dict[str, tuple[int, bytes]]:
        """All that is in .git, but for access times."""
        paths = sorted((self.root / ".git").rglob("*"))
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes())
            for path in paths
            if path.is_file()
        }


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no setting of the user's and no load of the machine play a part."""
    monkeypatch.setattr(worktree, "FIRST_SCAN_S", 60.0)
    monkeypatch.setattr(worktree, "SECOND_SCAN_S", 60.0)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """A repo with three files, old and committed, and a rule what to ignore."""
    made = Repo(tmp_path / "repo")
    made.write_at(".gitignore", "*.log\nbuild/\n")
    made.commit(a="one\n", b="two\n", d__c="three\n")
    return made


async def look_twice(cwd: Path, change: Callable[[], object]) -> Changes:
    before = await take_snapshot(cwd)
    assert before is not None
    change()
    after = await changes_since(before)
    assert after is not None
    return after


async def kinds(cwd: Path, change: Callable[[], object]) -> dict[str, ChangeKind]:
    return dict((await look_twice(cwd, change)).kinds)


# --- what counts -------------------------------------------------------------------------------


async def test_what_commands_added_changed_and_deleted_is_told(repo: Repo) -> None:
    def change() -> None:
        repo.write(a="ONE!\n", new__deep__file="x")
        (repo.root / "b").unlink()

    assert await kinds(repo.root, change) == {"a": "update", "b": "delete", "new/deep/file": "add"}


async def test_what_the_sandbox_leaves_behind_is_no_change(repo: Repo) -> None:
    (repo.root / "part").mkdir()

    def change() -> None:
        for path in (".codex", ".agents", "part/.aws"):  # As 0.120.0 does.
            (repo.root / path).touch()
        repo.write_at("part/.codex", "model = 'x'\n")  # Not empty: somebody wrote it.
        repo.write_at(".agents.md", "")

    assert await kinds(repo.root, change) == {"part/.codex": "add", ".agents.md": "add"}


async def test_nothing_done_is_nothing_told(repo: Repo) -> None:
    repo.write(a="dirty\n", untracked="u")
    (repo.root / "b").unlink()
    repo.git("add", "b")
    assert await kinds(repo.root, lambda: None) == {}


async def test_what_the_user_had_not_committed_is_not_taken_for_codexs(repo: Repo) -> None:
    repo.write(a="the user's\n", untracked="the user's\n", other="the user's\n")
    (repo.root / "b").unlink()

    def change() -> None:
        repo.write(d__c="Codex's\n", other="Codex's too\n")

    assert await kinds(repo.root, change) == {"d/c": "update", "other": "update"}


async def test_a_lost_change_of_the_users_is_told(repo: Repo) -> None:
    repo.write(a="1ne\n", untracked="u\n")
    (repo.root / "b").unlink()

    def change() -> None:
        repo.git("reset", "-q", "--hard")
        repo.git("clean", "-qfd")

    assert await kinds(repo.root, change) == {"a": "update", "b": "add", "untracked": "delete"}


@pytest.mark.parametrize("state", ["clean", "dirty", "untracked", "racy"])
async def test_a_file_rewritten_as_it_was_has_not_changed(repo: Repo, state: str) -> None:
    path = make(repo, state)

    def change() -> None:
        text = path.read_text()
        path.unlink()
        path.write_text("something else, and longer")
        path.write_text(text)

    assert await kinds(repo.root, change) == {}


@pytest.mark.parametrize("state", ["clean", "dirty", "untracked", "racy"])
async def test_a_file_changed_with_its_size_and_mtime_kept_has_changed(
    repo: Repo, state: str
) -> None:
    path = make(repo, state)
    kept = path.stat()
    before = await take_snapshot(repo.root)
    assert before is not None
    path.write_text(path.read_text().upper())
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    for age_ns in (0, 10**10):
        told = await changes_since(replace(before, taken_ns=before.taken_ns + age_ns))
        assert told is not None
        assert told.kinds == {path.name: "update"}


def make(repo: Repo, state: str) -> Path:
    path = repo.root / "file"
    if state != "untracked":
        path.write_text("some words\n")
        repo.git("add", "file")
    if state == "clean":
        os.utime(path, (OLD, OLD))
        repo.git("update-index", "--refresh", "-q")
    elif state != "racy":
        path.write_text("same words\n")
    return path


@pytest.mark.parametrize("sign", ["its index is as young", "its size is 0 in the index"])
async def test_what_the_user_wrote_in_the_instant_of_a_git_add_is_known(
    repo: Repo, sign: str
) -> None:
    path = make(repo, "clean")
    index = repo.root / ".git" / "index"
    old = times(path)
    path.write_text("same words\n")
    # The clock had stood still: all that the index says of the file fits, but its content.
    forge(index, old, times(path))
    if sign == "its index is as young":
        os.utime(index, ns=(0, path.stat().st_mtime_ns))
    else:  # Which git writes when it writes the index again later.
        entry = index.read_bytes().partition(times(path))[2]
        forge(index, entry[:24], entry[:20] + bytes(4))
        os.utime(index, ns=(0, path.stat().st_mtime_ns + 10**9))
    assert repo.git("ls-files", "-m") == "file"  # As git knows, too.
    assert await kinds(repo.root, lambda: path.write_text("some words\n")) == {"file": "update"}


def times(path: Path) -> bytes:
    """Return the times of *path* as they stand in an index."""
    seen = path.stat()
    return struct.pack(">4I", *divmod(seen.st_ctime_ns, 10**9), *divmod(seen.st_mtime_ns, 10**9))


def forge(index: Path, old: bytes, new: bytes) -> None:
    """Replace *old* by *new* in *index*."""
    body = index.read_bytes()[:-20]
    assert old in body
    body = body.replace(old, new)
    index.write_bytes(body + hashlib.sha1(body).digest())


async def test_a_file_that_changed_within_one_tick_of_the_clock_has_changed(repo: Repo) -> None:
    repo.write(b="2wo\n")
    before = await take_snapshot(repo.root)
    assert before is not None
    repo.write(a="ONE\n", b="TWO\n")
    after = await take_snapshot(repo.root)
    assert after is not None
    as_if = {  # The clock had stood still: same times, other content.
        path: replace(after.files[path], blob=file.blob) for path, file in before.files.items()
    }
    told = await changes_since(replace(before, files=as_if))
    assert told is not None
    assert told.kinds == {"a": "update", "b": "update"}


@pytest.mark.parametrize("limit", ["READ_LIMIT", "READ_TOTAL"])
async def test_a_file_too_large_to_read_has_changed_when_its_size_or_mtime_has(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(tree, limit, 10)
    repo.write(u="untracked, " * 9, v="untracked, " * 9, w="untracked, " * 9, x="untracked, " * 9)

    def change() -> None:
        for name, text in {"u": "UNTRACKED, " * 9, "w": "shorter"}.items():
            kept = (repo.root / name).stat()
            (repo.root / name).write_text(text)
            os.utime(repo.root / name, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        (repo.root / "v").touch()
        (repo.root / "x").chmod(0o600)

    assert await kinds(repo.root, change) == {"v": "update", "w": "update"}


async def test_what_is_executable_now_has_changed_but_not_what_is_private_now(repo: Repo) -> None:
    (repo.root / "a").chmod(0o644)

    def change() -> None:
        (repo.root / "a").chmod(0o755)
        (repo.root / "b").chmod(0o600)

    assert await kinds(repo.root, change) == {"a": "update"}


async def test_links_are_files_of_their_own(repo: Repo) -> None:
    (repo.root / "kept").symlink_to("a")
    (repo.root / "turned").symlink_to("a")
    (repo.root / "dead").symlink_to("nowhere")

    def change() -> None:
        repo.write(a="through a link, nothing else\n")
        (repo.root / "turned").unlink()
        (repo.root / "turned").symlink_to("b")
        (repo.root / "b").unlink()
        (repo.root / "b").symlink_to("d/c")
        (repo.root / "dead").unlink()

    assert await kinds(repo.root, change) == {
        "a": "update",
        "turned": "update",
        "b": "update",
        "dead": "delete",
    }


async def test_a_folder_replaced_by_a_link_takes_its_files_along(repo: Repo) -> None:
    def change() -> None:
        (repo.root / "d").rename(repo.root / "moved")
        (repo.root / "d").symlink_to("moved")

    assert await kinds(repo.root, change) == {"d": "add", "d/c": "delete", "moved/c": "add"}


async def test_a_file_and_a_folder_may_change_places(repo: Repo) -> None:
    def change() -> None:
        (repo.root / "a").unlink()
        repo.write(a__x="x")
        shutil.rmtree(repo.root / "d")
        repo.write(d="d")

    assert await kinds(repo.root, change) == {
        "a": "delete",
        "a/x": "add",
        "d/c": "delete",
        "d": "add",
    }


async def test_a_pipe_is_no_file_and_is_not_waited_for(repo: Repo) -> None:
    def change() -> None:
        (repo.root / "a").unlink()
        os.mkfifo(repo.root / "a")
        os.mkfifo(repo.root / "pipe")

    with anyio.fail_after(60):
        assert await kinds(repo.root, change) == {"a": "delete"}


async def test_empty_folders_are_no_files(repo: Repo) -> None:
    def change() -> None:
        for name in (".agents", ".codex", "d/.git"):
            (repo.root / name).mkdir()

    assert await kinds(repo.root, change) == {}


# --- what git did ------------------------------------------------------------------------------


async def test_a_commit_of_the_users_work_changes_no_file(repo: Repo) -> None:
    repo.write(a="the user's\n", untracked="u\n")
    (repo.root / "b").unlink()
    assert await kinds(repo.root, repo.commit) == {}


async def test_what_codex_committed_is_told(repo: Repo) -> None:
    repo.write(a="the user's\n")
    assert await kinds(repo.root, lambda: repo.commit(b="Codex's\n", new="n")) == {
        "b": "update",
        "new": "add",
    }


async def test_a_stash_takes_the_users_work_out_of_the_tree(repo: Repo) -> None:
    repo.write(a="the user's\n", untracked="u\n")
    repo.git("rm", "-q", "b")
    change = {"a": "update", "b": "add", "untracked": "delete"}
    assert await kinds(repo.root, lambda: repo.git("stash", "-qu")) == change


async def test_a_stash_that_is_popped_again_changes_nothing(repo: Repo) -> None:
    repo.write(a="the user's\n", untracked="u\n")

    def change() -> None:
        repo.git("stash", "-qu")
        repo.git("stash", "pop", "-q")

    assert await kinds(repo.root, change) == {}


async def test_another_branch_is_what_it_changes_in_the_tree(repo: Repo) -> None:
    repo.git("checkout", "-qb", "other")
    repo.commit(a="other\n", more="m")
    (repo.root / "b").unlink()
    repo.commit()
    repo.git("checkout", "-q", "main")

    def there_and_back() -> None:
        repo.git("checkout", "-q", "other")
        repo.git("checkout", "-q", "main")

    assert await kinds(repo.root, there_and_back) == {}
    assert await kinds(repo.root, lambda: repo.git("checkout", "-q", "other")) == {
        "a": "update",
        "b": "delete",
        "more": "add",
    }


async def test_a_file_that_a_filter_changes_is_the_same_when_git_writes_it_anew(
    repo: Repo,
) -> None:
    repo.write_at(".gitattributes", "a text eol=crlf\n")
    repo.commit(a="one\r\n")
    os.utime(repo.root / "a", (OLD, OLD))
    repo.git("update-index", "--refresh", "-q")

    def change() -> None:
        (repo.root / "a").unlink()
        repo.git("checkout", "a")
        assert (repo.root / "a").read_bytes() == b"one\r\n"
        os.utime(repo.root / "a", (OLD + 1, OLD + 1))
        repo.git("update-index", "--refresh", "-q")

    assert await kinds(repo.root, change) == {}


async def test_a_renamed_file_is_gone_here_and_new_there(repo: Repo) -> None:
    def change() -> None:
        repo.git("mv", "a", "z")
        repo.git("mv", "d", "e")

    assert await kinds(repo.root, change) == {
        "a": "delete",
        "z": "add",
        "d/c": "delete",
        "e/c": "add",
    }


async def test_add_remove_from_index_and_marks_change_no_file(repo: Repo) -> None:
    repo.write(untracked="u\n", a="dirty\n", later="l\n")

    def change() -> None:
        repo.git("add", "untracked", "a")
        repo.git("add", "-N", "later")
        repo.git("rm", "-q", "--cached", "b")
        repo.git("update-index", "--assume-unchanged", "d/c")

    assert await kinds(repo.root, change) == {}


async def test_a_file_that_git_was_told_not_to_look_at_is_looked_at(repo: Repo) -> None:
    repo.git("update-index", "--assume-unchanged", "a")
    repo.git("update-index", "--skip-worktree", "b")
    change = {"a": "update", "b": "update"}
    assert await kinds(repo.root, lambda: repo.write(a="ONE\n", b="TWO\n")) == change


async def test_a_conflict_shows_as_the_file_with_its_marks(repo: Repo) -> None:
    repo.git("checkout", "-qb", "other")
    repo.commit(a="theirs\n")
    repo.git("checkout", "-q", "main")
    repo.commit(a="ours\n")

    def change() -> None:
        repo.git("merge", "-q", "other", check=False)
        assert "<<<<" in (repo.root / "a").read_text()

    assert await kinds(repo.root, change) == {"a": "update"}
    assert await kinds(repo.root, lambda: repo.write(a="theirs\n")) == {"a": "update"}
    assert await kinds(repo.root, lambda: repo.git("add", "a")) == {}


# --- what is ignored, and what is a repo inside ------------------------------------------------


async def test_ignored_files_do_not_count(repo: Repo) -> None:
    home = Path(os.environ["HOME"])
    (home / "ignore").write_text("*.mine\n")
    (home / ".gitconfig").write_text("[core]\n\texcludesFile = ~/ignore\n")
    repo.write_at(".git/info/exclude", "*.ours\n")
    repo.write_at("x.log", "before")

    def change() -> None:
        for name in ("x.log", "y.log", "build/out/z", "x.mine", "x.ours"):
            repo.write_at(name, "after")

    assert await kinds(repo.root, change) == {}


async def test_a_file_that_is_ignored_from_now_on_is_not_deleted(repo: Repo) -> None:
    repo.write(kept="k", changed="c", gone="g")

    def change() -> None:
        repo.write_at(".gitignore", "*.log\nbuild/\nkept\nchanged\ngone\n")
        repo.write(changed="C")
        (repo.root / "gone").unlink()

    assert await kinds(repo.root, change) == {
        ".gitignore": "update",
        "changed": "update",
        "gone": "delete",
    }


async def test_a_file_that_is_no_longer_ignored_is_not_added(repo: Repo) -> None:
    repo.write_at("build/x", "x")
    repo.write_at("forced.log", "x")
    age(repo.root / "build" / "x", repo.root / "forced.log", repo.root / "d" / "c")
    assert await kinds(repo.root, lambda: repo.git("add", "-f", "forced.log")) == {}

    def change() -> None:
        repo.write_at(".gitignore", "*.log\n")
        repo.write_at("build/new", "n")
        (repo.root / "d").rename(repo.root / "moved")

    assert await kinds(repo.root, change) == {
        ".gitignore": "update",
        "build/new": "add",
        "d/c": "delete",
        "moved/c": "add",
    }


async def test_a_folder_moved_in_is_added_with_all_its_old_files(
    repo: Repo, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_text("x")
    age(tmp_path / "outside" / "x")
    change = {"inside/x": "add"}
    assert await kinds(repo.root, lambda: (tmp_path / "outside").rename(repo.root / "inside")) == (
        change
    )


def age(*paths: Path) -> None:
    """Wait until no file of *paths* is so young that it may be in doubt."""
    newest = max(path.stat().st_ctime for path in paths)
    time.sleep(max(0.0, newest + 2.1 - time.time()))


async def test_a_repo_inside_is_one_path_whatever_goes_on_in_it(repo: Repo, tmp_path: Path) -> None:
    other = Repo(tmp_path / "other")
    other.commit(x="x", y="y")
    clone = ("-c", "protocol.file.allow=always")
    repo.git(*clone, "submodule", "--quiet", "add", str(other.root), "sub")
    repo.git(*clone, "clone", "-q", str(other.root), "old")
    repo.git(*clone, "clone", "-q", str(other.root), "lost")

    def change() -> None:
        repo.write_at("sub/x", "changed")
        repo.write_at("old/z", "new")
        repo.git(*clone, "clone", "-q", str(other.root), "d/new")
        shutil.rmtree(repo.root / "lost")

    assert await kinds(repo.root, change) == {"d/new": "add", "lost": "delete"}


async def test_a_folder_that_becomes_a_repo_keeps_its_files_and_so_when_it_ceases(
    repo: Repo,
) -> None:
    repo.write(inner__x="x", inner__y="y")
    inner = repo.root / "inner"

    def begin() -> None:
        Repo(inner)
        (inner / "y").unlink()

    assert await kinds(repo.root, begin) == {"inner/y": "delete"}
    age(inner / "x")

    def cease() -> None:
        shutil.rmtree(inner / ".git")
        (inner / "z").write_text("z")

    assert await kinds(repo.root, cease) == {"inner/z": "add"}


# --- repos of all kinds ------------------------------------------------------------------------


async def test_a_repo_without_a_commit_is_looked_at(tmp_path: Path) -> None:
    repo = Repo(tmp_path / "fresh")
    assert await kinds(repo.root, lambda: repo.write(a="1", b="1")) == {"a": "add", "b": "add"}
    repo.git("add", "a")
    assert await kinds(repo.root, lambda: repo.commit(b="2")) == {"b": "update"}


async def test_from_a_subfolder_the_whole_repo_is_looked_at(repo: Repo) -> None:
    change = {"a": "update", "d/c": "update"}
    told = await look_twice(repo.root / "d", lambda: repo.write(a="1", d__c="1"))
    assert (told.kinds, told.root) == (change, repo.root)


async def test_a_linked_work_tree_is_a_tree_of_its_own(repo: Repo, tmp_path: Path) -> None:
    repo.git("worktree", "add", "-q", str(tmp_path / "linked"))

    def change() -> None:
        (tmp_path / "linked" / "a").write_text("1")
        repo.write(b="1")

    assert await kinds(tmp_path / "linked", change) == {"a": "update"}


@pytest.mark.parametrize(
    "setting",
    [
        ("config", "core.splitIndex", "true"),
        ("config", "index.version", "4"),
        ("config", "core.untrackedCache", "true"),
        ("config", "core.trustctime", "false"),
        ("config", "core.checkStat", "minimal"),
        ("config", "core.autocrlf", "input"),
        ("config", "core.quotePath", "true"),
        ("config", "status.showUntrackedFiles", "no"),
        ("config", "core.ignoreCase", "true"),
        ("sparse-checkout", "set", "--cone", "--sparse-index", "d"),
    ],
    ids=" ".join,
)
async def test_whatever_the_settings_the_same_is_told(repo: Repo, setting: tuple[str, ...]) -> None:
    repo.commit(e__f="far\n")
    repo.git(*setting)
    repo.git("update-index", "--refresh", "-q")
    repo.git("status")
    repo.write(a="dirty\n")

    def change() -> None:
        repo.write(a="more\n", d__c="3\n", n="n")
        (repo.root / "b").unlink()

    assert await kinds(repo.root, change) == {
        "a": "update",
        "b": "delete",
        "d/c": "update",
        "n": "add",
    }


async def test_a_repo_that_hashes_by_sha_256_is_looked_at(tmp_path: Path) -> None:
    repo = Repo(tmp_path / "new", "--object-format=sha256")
    repo.commit(a="one\n", b="two\n", c="three\n")
    repo.write(b="dirty\n")

    def change() -> None:
        for name in ("a", "b"):
            (repo.root / name).write_text((repo.root / name).read_text())
        repo.write(c="THREE\n")

    assert await kinds(repo.root, change) == {"c": "update"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"new\nline", "new\nline"),
        (b"? 100644 \t\"'\\", "? 100644 \t\"'\\"),
        (b"\xff\xfe.txt", "\ufffd\ufffd.txt"),
        ("näme ☃".encode(), "näme ☃"),
        (b"-z", "-z"),
        (b"  ctime: 1:1", "  ctime: 1:1"),
    ],
)
async def test_names_of_any_bytes_are_told_as_valid_text(
    repo: Repo, name: bytes, shown: str
) -> None:
    path = os.path.join(os.fsencode(repo.root), name)  # noqa: PTH118 - in bytes

    def write(text: str) -> None:
        with open(path, "w") as file:  # noqa: PTH123 - in bytes
            file.write(text)

    told = await look_twice(repo.root, lambda: write("1"))
    assert told.kinds == {shown: "add"}
    repo.git("add", "-A")
    told = await look_twice(repo.root, lambda: write("22"))
    [(path_told, kind, by)] = merge([], told)
    assert (path_told, kind, by) == (f"{repo.root}/{shown}", "update", "git")
    assert merge([(path_told, "add")], told) == ((path_told, "update", "both"),)
    assert orjson.loads(orjson.dumps(path_told)) == path_told


async def test_a_deep_tree_is_looked_at(repo: Repo) -> None:
    deep = "/".join("x" * 3 for _ in range(300))
    assert await kinds(repo.root, lambda: repo.write_at(f"{deep}/f", "x")) == {f"{deep}/f": "add"}


# --- where there is no look --------------------------------------------------------------------


async def test_no_repo_is_no_look(tmp_path: Path, repo: Repo) -> None:
    assert await take_snapshot(tmp_path) is None
    assert await take_snapshot(tmp_path / "nowhere") is None
    assert await take_snapshot(repo.root / ".git") is None
    repo.git("config", "core.bare", "true")
    assert await take_snapshot(repo.root) is None
    (repo.root / ".git" / "HEAD").write_text("nonsense")
    assert await take_snapshot(repo.root) is None


async def test_no_git_is_no_look(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repo.root))
    assert await take_snapshot(repo.root) is None


async def test_a_repo_that_is_gone_or_broken_at_the_second_look_is_no_look(repo: Repo) -> None:
    before = await take_snapshot(repo.root)
    assert before is not None
    (repo.root / ".git" / "index").write_bytes(b"nonsense")
    assert await changes_since(before) is None
    shutil.rmtree(repo.root / ".git")
    assert await changes_since(before) is None
    shutil.rmtree(repo.root)
    assert await changes_since(before) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
async def test_a_repo_of_another_user_is_no_look(repo: Repo) -> None:
    for path in (repo.root, repo.root / ".git"):
        os.chown(path, 65534, 65534)
    assert await take_snapshot(repo.root) is None


async def test_a_tree_too_large_is_looked_at_in_the_working_folder_only(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worktree, "FILES_LIMIT", 2)
    told = await look_twice(repo.root / "d", lambda: repo.write(a="1", d__c="1", d__n="1"))
    assert (told.kinds, told.root) == ({"c": "update", "n": "add"}, repo.root / "d")
    assert await take_snapshot(repo.root) is None
    before = await take_snapshot(repo.root / "d")
    assert before is not None
    repo.write(d__more="1")
    assert await changes_since(before) is None


async def test_git_is_not_listened_to_for_ever(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_runner, "LISTING_LIMIT", 200)
    assert await take_snapshot(repo.root) is None


FAKES = {
    "hangs": "import time; time.sleep(600)",
    "never ends": "while True: print('? x' * 9999, end='\\0')",
    "talks nonsense": "print('nonsense')",
    "fails": "raise SystemExit(1)",
}


@pytest.mark.parametrize("code", FAKES.values(), ids=FAKES)
async def test_a_git_that_misbehaves_is_no_look_and_is_left_by_nobody(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    before = await take_snapshot(repo.root)
    assert before is not None
    earlier = children()
    fake_git(tmp_path, monkeypatch, code)
    monkeypatch.setattr(worktree, "FIRST_SCAN_S", 0.5)
    monkeypatch.setattr(worktree, "SECOND_SCAN_S", 0.5)
    with anyio.fail_after(60):
        assert await take_snapshot(repo.root) is None
        assert await changes_since(replace(before, git=tmp_path / "bin" / "git")) is None
    assert children() <= earlier


async def test_a_cancelled_look_leaves_no_git(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = children()
    fake_git(tmp_path, monkeypatch, FAKES["hangs"])
    with anyio.move_on_after(0.5) as limit:
        await take_snapshot(repo.root)
    assert limit.cancelled_caught
    assert children() <= earlier


def children() -> set[psutil.Process]:
    """Return the children of this process, with the orphans that an earlier test's runs left it."""
    return set(psutil.Process().children())


def fake_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a git on PATH that answers rev-parse, and does *code* for the rest."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "git"
    program.write_text(
        f"#!{sys.executable} -IS\nimport sys\n"
        f"if 'rev-parse' in sys.argv: print({str(tmp_path / 'repo')!r}, '.git/index', sep='\\n')\n"
        f"else:\n    {code}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


# --- hostile repos -----------------------------------------------------------------------------

Trap = Callable[[Repo, str], None]
"""Arms a repo so that git runs a command."""


def set_fsmonitor(repo: Repo, command: str) -> None:
    repo.git("config", "core.fsmonitor", command)


def set_filter(place: str, key: str) -> Trap:
    def arm(repo: Repo, command: str) -> None:
        repo.git("config", f"filter.trap.{key}", command)
        if place == "core.attributesFile":
            repo.git("config", place, str(repo.root / "attributes"))
            place_ = "attributes"
        else:
            place_ = place
        repo.write_at(place_, "* filter=trap\n")

    return arm


def set_filter_by_include(repo: Repo, command: str) -> None:
    repo.write_at("conf", f'[filter "trap"]\n\tclean = "{command}"\n')
    repo.git("config", "include.path", "../conf")
    repo.write_at(".gitattributes", "* filter=trap\n")


def set_hooks(repo: Repo, command: str) -> None:
    for name in ("post-index-change", "fsmonitor-watchman", "pre-auto-gc", "reference-transaction"):
        repo.write_at(f"hooks/{name}", f"#!/bin/sh\n{command}\n").chmod(0o755)
    repo.git("config", "core.hooksPath", "hooks")


def set_diff(key: str) -> Trap:
    def arm(repo: Repo, command: str) -> None:
        repo.git("config", key, command)
        repo.write_at(".git/info/attributes", "* diff=trap\n")

    return arm


def set_pager(repo: Repo, command: str) -> None:
    for key in ("core.pager", "pager.ls-files", "pager.rev-parse", "core.editor", "core.askPass"):
        repo.git("config", key, command)
    for name in ("ls-files", "rev-parse"):
        repo.git("config", f"alias.{name}", f"!{command}")


def set_lazy_fetch(repo: Repo, command: str) -> None:
    repo.git("sparse-checkout", "set", "--cone", "--sparse-index", "d")
    tree = repo.git("rev-parse", "HEAD:far")
    (repo.root / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    for key, value in {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": "ssh://nowhere.invalid/x",
        "core.sshCommand": f"{command};",
        "protocol.allow": "always",
    }.items():
        repo.git("config", key, value)


STATUS, LIST, ADD = ("status",), ("ls-files",), ("add", "a")
DIFF = ("--paginate", "diff", "--ext-diff")

TRAPS: dict[str, tuple[Trap, tuple[str, ...] | None]] = {
    "core.fsmonitor": (set_fsmonitor, STATUS),
    ".gitattributes": (set_filter(".gitattributes", "clean"), STATUS),
    "filter.process": (set_filter(".gitattributes", "process"), STATUS),
    "info/attributes": (set_filter(".git/info/attributes", "clean"), STATUS),
    "core.attributesFile": (set_filter("core.attributesFile", "clean"), STATUS),
    "include": (set_filter_by_include, STATUS),
    "hooks": (set_hooks, ADD),
    "textconv": (set_diff("diff.trap.textconv"), DIFF),
    "external diff": (set_diff("diff.trap.command"), DIFF),
    "lazy fetch": (set_lazy_fetch, LIST),
    "pager and aliases": (set_pager, None),
}
"""How each is armed, and the ordinary command of git that springs it."""


@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.parametrize("when", ["before", "between"])
async def test_no_program_that_a_repo_names_is_run(
    repo: Repo, tmp_path: Path, name: str, when: str
) -> None:
    repo.commit(far__away="x")
    arm, springs = TRAPS[name]
    sprung = tmp_path / "sprung"
    before = await take_snapshot(repo.root)
    arm(repo, f"touch {sprung}")
    doubt(repo)
    sprung.unlink(missing_ok=True)
    if when == "before":
        before = await take_snapshot(repo.root)
    assert before is not None
    doubt(repo)
    told = await changes_since(before)
    assert told is not None
    assert not sprung.exists()
    if springs is not None:  # The trap is one: git's ordinary commands spring it.
        doubt(repo)
        repo.git(*springs, check=False)
        assert sprung.exists()


def doubt(repo: Repo) -> None:
    """Make git want to read a file, to know whether it has changed."""
    path = repo.root / "a"
    path.write_text("one\n" if path.read_text() == "One\n" else "One\n")
    path.touch()


async def test_no_file_is_looked_at_through_a_work_tree_that_lies_elsewhere(
    repo: Repo, tmp_path: Path
) -> None:
    other = Repo(tmp_path / "other")
    other.write(a="x", secret="s")
    before = await take_snapshot(repo.root)
    assert before is not None
    repo.git("config", "core.worktree", str(other.root))
    other.write(secret="changed")
    told = await changes_since(before)
    assert told is None or told.kinds == {}


async def test_a_forged_index_leads_nowhere(repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("v")
    blob = repo.git("hash-object", "-w", "a")
    index = repo.root / ".git" / "index"
    before = await take_snapshot(repo.root)
    assert before is not None
    for name in ("../victim", f"{tmp_path}/victim"):
        stand_in = "x" * len(name)
        repo.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{stand_in}")
        forge(index, stand_in.encode(), name.encode())
    told = await changes_since(before)
    assert told is None or told.kinds == {}


async def test_git_variables_of_our_own_do_not_lead_elsewhere(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Repo(tmp_path / "other")
    other.write(x="x")
    monkeypatch.setenv("GIT_DIR", str(other.root / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.root))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other.root / "index"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(repo.root))
    told = await look_twice(repo.root / "d", lambda: (repo.root / "a").write_text("1"))
    assert (told.root, told.kinds) == (repo.root, {"a": "update"})


async def test_looking_writes_nothing_into_the_repo(repo: Repo) -> None:
    repo.git("config", "core.untrackedCache", "true")
    repo.write(a="dirty\n", untracked="u")
    (repo.root / "b").touch()
    state = repo.state
    await look_twice(repo.root, lambda: (repo.root / "d" / "c").touch())
    assert repo.state == state
    repo.git("status")
    assert repo.state != state  # Which status would have done.


@pytest.mark.parametrize("cwd", ["repo", "repo/d", "linked"])
async def test_a_git_that_lies_in_the_project_is_not_run(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cwd: str
) -> None:
    real = shutil.which("git")
    assert real is not None
    program = repo.write_at(
        ".venv/bin/git", f"#!/bin/sh\ntouch {tmp_path}/sprung\nexec {real} $*\n"
    )
    program.chmod(0o755)
    (tmp_path / "linked").symlink_to(repo.root / "d")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(program, tmp_path / "elsewhere" / "git")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("PATH", f".:{program.parent}:{os.environ['PATH']}")
    repo.git("version")
    assert (tmp_path / "sprung").exists()  # It would be the first.
    (tmp_path / "sprung").unlink()
    change = {"a": "update"}
    assert await kinds(tmp_path / cwd, lambda: repo.write(a="1")) == change
    assert not (tmp_path / "sprung").exists()
    assert find_git(repo.root) == Path(real)


# --- merge -------------------------------------------------------------------------------------


async def test_each_change_says_by_which_means_it_was_seen(repo: Repo, tmp_path: Path) -> None:
    def change() -> None:
        repo.write(a="1", d__c="2", deep__in__it="3", y="4")
        repo.write_at("x.log", "5")

    told = await look_twice(repo.root, change)
    patched: list[tuple[str, ChangeKind]] = [
        (str(tmp_path / "outside"), "update"),
        (f"{repo.root}/x.log", "add"),
        ("a", "update"),
        (f"{repo.root}/d/c", "add"),
    ]
    assert merge(patched, told) == (
        (str(tmp_path / "outside"), "update", "patch"),
        (f"{repo.root}/x.log", "add", "patch"),
        ("a", "update", "both"),
        (f"{repo.root}/d/c", "update", "both"),
        (f"{repo.root}/y", "add", "git"),
        (f"{repo.root}/deep/in/it", "add", "git"),
    )


def test_without_a_look_the_patches_are_told_as_they_are() -> None:
    assert merge([("/a", "add"), ("b", "delete")], None) == (
        ("/a", "add", "patch"),
        ("b", "delete", "patch"),
    )


async def test_what_a_command_made_undone_of_a_patch_is_no_change(repo: Repo) -> None:
    repo.write_at("old.log", "o")
    told = await look_twice(repo.root, lambda: (repo.root / "old.log").unlink())
    patched: list[tuple[str, ChangeKind]] = [
        (f"{repo.root}/a", "update"),  # Checked out again.
        (f"{repo.root}/made", "add"),  # Removed again.
        (f"{repo.root}/made.log", "add"),  # Removed again.
        (f"{repo.root}/old.log", "update"),  # And then removed.
    ]
    assert merge(patched, told) == ((f"{repo.root}/old.log", "delete", "patch"),)


async def test_paths_meet_though_they_are_spelled_otherwise(repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repo.root)
    told = await look_twice(tmp_path / "link" / "d", lambda: repo.write(a="1", d__c="1", d__n="1"))
    patched: list[tuple[str, ChangeKind]] = [
        (f"{tmp_path}/link/a", "update"),
        ("c", "update"),
        (f"{repo.root}/d/../d/n", "add"),
    ]
    assert [by for _, _, by in merge(patched, told)] == ["both"] * 3


@pytest.mark.parametrize(
    "path", ["", "/", "\0", "\0/x", "\ud800/x", "x" * 5000, "..", ".", "\ud800", "a/"]
)
async def test_a_patch_of_any_path_does_no_harm(repo: Repo, path: str) -> None:
    told = await look_twice(repo.root, lambda: None)
    assert len(merge([(path, "update")], told)) <= 1


# --- against a naive comparison ----------------------------------------------------------------

NAMES = ["a", "b", "d/a", "d/e/b", "x.ign", "d/x.ign", "new\nline"]
TEXTS = ["one\n", "two\n", "three\n", ""]


def files(root: Path) -> dict[str, tuple[object, ...]]:
    """Return all that is in *root* and not ignored, with its content."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, names in os.walk(root):
        if ".git" in folders:
            folders.remove(".git")
        for name in [*names, *folders]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if name.endswith(".ign") or (stat.S_ISDIR(mode)):
                continue
            content = str(path.readlink()) if stat.S_ISLNK(mode) else path.read_bytes()
            found[str(path.relative_to(root))] = (stat.S_IFMT(mode), mode & 0o100, content)
    return found


def act(repo: Repo, action: str, name: str, text: str) -> None:
    """Do what a user or Codex may do; where it cannot be done, nothing."""
    path = repo.root / name
    try:
        match action:
            case "write":
                repo.write_at(name, text)
            case "keep times":
                kept = path.stat()
                path.write_text(text)
                os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
            case "replace":
                (repo.root / "tmp").write_text(text)
                (repo.root / "tmp").rename(path)
            case "remove":
                path.unlink()
            case "remove folder":
                shutil.rmtree(path.parent if path.parent != repo.root else repo.root / "d")
            case "move":
                path.rename(repo.root / ("moved" + text.strip()))
            case "move folder":
                (repo.root / "d").rename(repo.root / ("d" + text.strip()))
            case "link":
                path.unlink(missing_ok=True)
                path.symlink_to("d" if text else "a")
            case "mode":
                path.chmod(0o755 if text else 0o644)
            case "age":
                os.utime(path, (OLD, OLD), follow_symlinks=False)
            case _:
                repo.git(*action.split(), check=False)
    except OSError:
        pass


ACTIONS = st.tuples(
    st.one_of(
        st.sampled_from(["write", "keep times", "replace", "remove", "remove folder", "move"]),
        st.sampled_from(["move folder", "link", "mode", "age"]),
        st.sampled_from(
            ["add -A", "commit -qm x", "commit -qam x", "stash -u", "stash pop", "reset --hard"]
        ),
        st.sampled_from(["checkout -q -", "checkout -qb other", "clean -fdq", "checkout -q ."]),
        st.sampled_from(["status", "rm -rq --cached d", "add -N .", "reset -q"]),
    ),
    st.sampled_from(NAMES),
    st.sampled_from(TEXTS),
)


@contextmanager
def fresh_repo() -> Generator[Repo]:
    with tempfile.TemporaryDirectory() as folder:
        repo = Repo(Path(folder).resolve())
        repo.write_at(".git/info/exclude", "*.ign\n")
        repo.commit(a="one\n", b="two\n", d__a="three\n")
        yield repo


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(ACTIONS, max_size=8), st.lists(ACTIONS, max_size=8))
def test_a_look_tells_what_a_full_comparison_would(
    by_user: list[tuple[str, str, str]], by_codex: list[tuple[str, str, str]]
) -> None:
    with fresh_repo() as repo:
        for action in by_user:
            act(repo, *action)
        old = files(repo.root)

        def change() -> None:
            for action in by_codex:
                act(repo, *action)

        told = anyio.run(look_twice, repo.root, change)
        new = files(repo.root)
        expected: dict[str, ChangeKind] = {
            name: "add" if name not in old else "delete" if name not in new else "update"
            for name in old.keys() | new.keys()
            if old.get(name) != new.get(name)
        }
        assert told.kinds == expected


# --- a repository that names another's work tree ------------------------------------------------


async def test_a_gitfile_shows_no_files_of_another_project(tmp_path: Path, repo: Repo) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / ".git").write_text(f"gitdir: {repo.root}/.git\n")
    repo.git("config", "core.worktree", str(repo.root))
    assert await take_snapshot(project) is None
    assert await explain_unseen(project) == (
        f"the repository's work tree is elsewhere, in {repo.root}"
    )


async def test_a_work_tree_above_the_repository_is_not_looked_at(
    tmp_path: Path, repo: Repo
) -> None:
    (tmp_path / "other.txt").write_text("one\n")
    for root in (tmp_path, Path("/")):
        repo.git("config", "core.worktree", str(root))

        def change() -> None:
            (tmp_path / "other.txt").write_text("two, longer\n")
            repo.write_at("made", "x")

        told = await look_twice(repo.root, change)
        assert {str(told.root), *told.kinds} == {str(repo.root), "made"}
        (repo.root / "made").unlink()


async def test_a_work_tree_beyond_the_roots_is_looked_at_inside_cwd_only(repo: Repo) -> None:
    for roots, root in (((repo.root / "d",), repo.root / "d"), ((repo.root,), repo.root)):
        snapshot = await take_snapshot(repo.root / "d", roots)
        assert snapshot is not None
        assert snapshot.root == root
