"""Attacks of a repository, of a run and of a caller on snapshots, copies and applications.

Each attack builds a project, and then the whole way is gone: snapshot, copy, a run, changes,
application. It must be refused with an error of ours, or be harmless: no program of the repository
runs, nothing outside the project, the copy and the state folder is written, and the person's git
folder stays as it is.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from codex_tools.worktree import git_call, scan
from codex_tools.worktree.apply_plan import make_plan
from codex_tools.worktree.copies import discard, lay_out
from codex_tools.worktree.journal import apply_plan, recover
from codex_tools.worktree.scan import is_plain
from codex_tools.worktree.snapshot import take_snapshot
from codex_tools.worktree.tree_changes import Changes, FileChange, changes_of
from codex_tools.worktree.tree_error import NotAppliable, TreeError
from support.work_trees import Project, run_git, state_of, write

EVIL = "touch ../ran; touch $HOME/ran; cat"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    write(folder, "file", "not ours\n")
    write(folder, "hooks/x", "x\n")
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("a", "a\n")
    made.write("d/b", "b\n")
    made.commit()
    return made


def _program(project: Project) -> str:
    script = project.write("../evil.sh", f"#!/bin/sh\ntouch {project.root}/../ran\ncat\n", 0o755)
    return str(script.resolve())


def _filter(project: Project) -> None:
    for name in ("clean", "smudge", "process"):
        project.git("config", f"filter.x.{name}", _program(project))
    project.git("config", "filter.x.required", "true")
    project.write(".gitattributes", "* filter=x\n")


def _filter_in_info(project: Project) -> None:
    _filter(project)
    project.write(".git/info/attributes", "* filter=x diff=x text eol=crlf ident\n")


def _macro(project: Project) -> None:
    _filter(project)
    project.write(".gitattributes", "[attr]all filter=x text eol=crlf ident\n* all\n")


def _hooks(project: Project) -> None:
    for name in ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc"):
        shutil.copy(_program(project), project.root / ".git" / "hooks" / name)


def _hooks_path(project: Project) -> None:
    program = _program(project)
    for name in ("post-index-change", "post-checkout", "reference-transaction"):
        write(project.root, f"hooks/{name}", Path(program).read_text(), 0o755)
    project.git("config", "core.hooksPath", "hooks")


def _setting(*keys: str) -> Callable[[Project], None]:
    def make(project: Project) -> None:
        for key in keys:
            project.git("config", key, _program(project))

    return make


def _include(project: Project) -> None:
    project.write("evil.inc", f"[core]\n\tfsmonitor = {_program(project)}\n")
    project.git("config", "include.path", "../evil.inc")


def _include_fifo(project: Project) -> None:
    os.mkfifo(project.root / "pipe")
    project.git("config", "include.path", "../pipe")


def _fifo(name: str) -> Callable[[Project], None]:
    def make(project: Project) -> None:
        place = project.root / name
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(place)

    return make


def _socket(project: Project) -> None:
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as opened:
        os.chdir(project.root)
        try:
            opened.bind("sock")
        finally:
            os.chdir(here)


def _huge(project: Project) -> None:
    with (project.root / "huge").open("wb") as file:
        file.truncate(scan.FILE_LIMIT + 1)


def _long_names(project: Project) -> None:
    project.write("n" * 255, "x\n")
    fd = os.open(project.root, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("y" * 250, dir_fd=fd)
        inner = os.open("y" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def _cases(project: Project) -> None:
    for name in ("README", "readme", "Readme", ".GIT/hooks/x", "D/B", ".Git"):
        if not (project.root / name).is_dir():
            project.write(name, name)


def _git_like_names(project: Project) -> None:
    for name in (
        "git~1",
        ".git ",
        ".git.",
        ".g\u200cit",
        "back\\slash",
        ".git::$DATA",
        "-rf",
        ":(top)x",
    ):
        project.write(f"odd/{name}", "x\n")


def _control_names(project: Project) -> None:
    for name in ("a\nb", "a\tb", 'q"q', "\x1b[31m", "\x7f", "*", "?", "[a]", "#x", "!x", " "):
        project.write(f"odd/{name}", "x\n")


def _link_folder(project: Project) -> None:
    shutil.rmtree(project.root / "d")
    (project.root / "d").symlink_to("../outside")


def _links(project: Project) -> None:
    for name, target in (
        *(("up", "../outside/file"), ("loop", "loop"), ("etc", "/etc/passwd")),
        *(("git", ".git/config"), ("self", ".")),
    ):
        (project.root / name).symlink_to(target)


def _gitignore_link(project: Project) -> None:
    (project.root / ".gitignore").symlink_to("../outside/file")
    (project.root / ".worktreeinclude").symlink_to("../outside/file")


def _include_all(project: Project) -> None:
    project.write(".gitignore", "*\n")
    project.write(".worktreeinclude", "*\n/\n../\n../../**\n.git/\n")
    project.write("secret", "x\n")


def _gitfile(text: str) -> Callable[[Project], None]:
    def make(project: Project) -> None:
        shutil.move(project.root / ".git", project.root.parent / "gitdir")
        project.write(".git", text)

    return make


def _git_link(project: Project) -> None:
    shutil.move(project.root / ".git", project.root.parent / "gitdir")
    (project.root / ".git").symlink_to("../gitdir")


def _commondir(project: Project) -> None:
    project.write(".git/commondir", "../../outside\n")


def _alternates(text: str) -> Callable[[Project], None]:
    def make(project: Project) -> None:
        project.write(".git/objects/info/alternates", text)

    return make


def _alternates_fifo(project: Project) -> None:
    os.mkfifo(project.root / ".git/objects/info/alternates")


def _submodule(project: Project) -> None:
    project.write(
        ".gitmodules",
        '[submodule "x"]\n\tpath = sub\n\turl = ext::sh -c "touch ../ran"\n'
        "\tupdate = !touch ../ran\n"
        '[submodule "../../evil"]\n\tpath = -u./x\n\turl = -u./x\n',
    )
    project.git("update-index", "--add", "--cacheinfo", "160000", "1" * 40, "sub")
    (project.root / "sub").mkdir()


def _hostile_nested(project: Project) -> None:
    nested = Project(project.root, name="inner")
    nested.write("x", "x\n")
    nested.commit()
    nested.git("config", "core.fsmonitor", _program(project))
    nested.git("config", "filter.x.clean", _program(project))
    nested.write(".gitattributes", "* filter=x\n")
    nested.write("x", "y\n")


def _nested_gitfile(project: Project) -> None:
    project.write("inner/.git", "gitdir: ../../outside\n")
    project.write("inner/x", "x\n")
    project.write("other/.git", "gitdir: ../.git\n")
    project.write("other/x", "x\n")
    os.mkfifo(project.write("third/x", "x").parent / ".git")


def _nested_many(project: Project) -> None:
    folder = project.root
    for _ in range(6):
        folder = folder / "n"
        folder.mkdir()
        run_git(folder, "init", "-q")
        write(folder, "x", "x\n")


def _forged_index(path: bytes, mode: int = 0o100644) -> Callable[[Project], None]:
    """Write an index with one entry that git would never make."""

    def make(project: Project) -> None:
        import hashlib

        blob = bytes.fromhex(project.git("hash-object", "-w", "a").strip())
        entry = struct.pack(">10I20sH", 0, 0, 0, 0, 0, 0, mode, 0, 0, 2, blob, min(len(path), 4095))
        entry += path
        entry += b"\0" * (8 - len(entry) % 8)
        content = b"DIRC" + struct.pack(">II", 2, 1) + entry
        content += hashlib.sha1(content, usedforsecurity=False).digest()
        (project.root / ".git" / "index").write_bytes(content)

    return make


def _broken_index(content: bytes) -> Callable[[Project], None]:
    def make(project: Project) -> None:
        (project.root / ".git" / "index").write_bytes(content)

    return make


def _index_fifo(project: Project) -> None:
    (project.root / ".git" / "index").unlink()
    os.mkfifo(project.root / ".git" / "index")


def _forged_head(text: str) -> Callable[[Project], None]:
    def make(project: Project) -> None:
        (project.root / ".git" / "HEAD").write_text(text)

    return make


def _worktree_elsewhere(project: Project) -> None:
    project.git("config", "core.worktree", str(project.root.parent / "outside"))


def _evil_config_values(project: Project) -> None:
    project.git("config", 'branch.x"]\n[core]\n\tfsmonitor = touch.merge', "y", check=False)
    project.git("config", 'branch.a"b\\c.remote', 'x"\n[core]\n\tfsmonitor = touch ../ran\n#')
    project.git("config", "remote.origin.fetch", 'x"\n[core]\n\tsshCommand = touch ../ran')


def _object_format_lie(project: Project) -> None:
    project.git("config", "core.repositoryformatversion", "1")
    project.git("config", "extensions.objectformat", "sha256")


def _unknown_extension(project: Project) -> None:
    project.git("config", "core.repositoryformatversion", "1")
    project.git("config", "extensions.evil", "true")


def _promisor(project: Project) -> None:
    project.git("config", "extensions.partialclone", "evil")
    project.git("config", "remote.evil.url", "ext::sh -c 'touch ../ran'")
    project.git("config", "remote.evil.promisor", "true")
    project.git("config", "protocol.ext.allow", "always")
    project.git("update-index", "--add", "--cacheinfo", "100644", "1" * 40, "missing")


ATTACKS: dict[str, Callable[[Project], None]] = {
    "filter": _filter,
    "filter in info/attributes": _filter_in_info,
    "attribute macro": _macro,
    "hooks": _hooks,
    "hooksPath": _hooks_path,
    "fsmonitor": _setting("core.fsmonitor"),
    "pager, editor, askpass, ssh": _setting(
        *("core.pager", "core.editor", "core.askpass", "core.sshCommand", "core.gitProxy"),
        *("sequence.editor", "credential.helper", "diff.external", "gpg.program", "pager.log"),
        *("core.alternateRefsCommand", "uploadpack.packObjectsHook", "alias.ls-files"),
        *("alias.update-index", "interactive.diffFilter", "diff.x.textconv", "merge.x.driver"),
    ),
    "include.path": _include,
    "include of a fifo": _include_fifo,
    "fifo": _fifo("pipe"),
    "fifo in place of a tracked file": _fifo("a"),
    "fifo .gitignore": _fifo(".gitignore"),
    "fifo .gitattributes": _fifo("d/.gitattributes"),
    "fifo .worktreeinclude": _fifo(".worktreeinclude"),
    "fifo info/exclude": _fifo(".git/info/exclude"),
    "fifo .gitmodules": _fifo(".gitmodules"),
    "socket": _socket,
    "huge sparse file": _huge,
    "long names": _long_names,
    "names that differ in case": _cases,
    "names like .git": _git_like_names,
    "control characters": _control_names,
    "tracked folder is a link out": _link_folder,
    "links out": _links,
    ".gitignore is a link out": _gitignore_link,
    ".worktreeinclude asks for all": _include_all,
    "gitfile to nothing": _gitfile("gitdir: ../none\n"),
    "gitfile to a device": _gitfile("gitdir: /dev/zero\n"),
    "gitfile with a null byte": _gitfile("gitdir: ../git\0dir\n"),
    "gitfile is garbage": _gitfile("\xff" * 100000),
    ".git is a link": _git_link,
    "commondir elsewhere": _commondir,
    "alternates to root": _alternates("/\n"),
    "alternates in a circle": _alternates("../objects\n.\n"),
    "alternates are garbage": _alternates("\0\1\2\n" * 1000),
    "alternates are a fifo": _alternates_fifo,
    "submodule url and update": _submodule,
    "hostile nested repository": _hostile_nested,
    "nested gitfiles": _nested_gitfile,
    "repositories in repositories": _nested_many,
    "index names a path outside": _forged_index(b"../outside/file"),
    "index names an absolute path": _forged_index(b"/etc/passwd"),
    "index names .git": _forged_index(b".git/hooks/post-checkout"),
    "index names .GIT": _forged_index(b"d/.GIT/config"),
    "index with a long path": _forged_index(b"z/" * 2048 + b"z"),
    "index with an unknown mode": _forged_index(b"a", 0o160777),
    "index is empty": _broken_index(b""),
    "index is garbage": _broken_index(b"DIRC\0\0\0\2\xff\xff\xff\xff" + b"x" * 100),
    "index of version 99": _broken_index(b"DIRC\0\0\0\x63" + b"\0" * 40),
    "index is a fifo": _index_fifo,
    "HEAD is garbage": _forged_head("\0\0\n"),
    "HEAD names a ref outside": _forged_head("ref: refs/../../../outside/file\n"),
    "HEAD names a missing commit": _forged_head("1" * 40 + "\n"),
    "core.worktree elsewhere": _worktree_elsewhere,
    "settings that break out of their quotes": _evil_config_values,
    "false object format": _object_format_lie,
    "unknown extension": _unknown_extension,
    "partial clone with a program": _promisor,
}


def _git_state(project: Project) -> dict[str, tuple[int, int, bytes]]:
    places = [project.root / ".git", project.root.parent / "gitdir"]
    return {path: state for place in places for path, state in state_of(place).items()}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_repository_is_refused_or_harmless(
    project: Project, outside: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    monkeypatch.setattr(git_call, "WORK_WITHIN_S", 6.0)
    monkeypatch.setattr(git_call, "ANSWER_WITHIN_S", 3.0)
    ATTACKS[attack](project)
    before, git_before = state_of(outside), _git_state(project)
    assert "ran" not in {path.name for path in project.root.parent.iterdir()}
    try:
        snapshot, copy = project.lay_out()
        assert not any(
            os.path.lexists(copy.folder / part.path / ".git" / "hooks") for part in snapshot.parts
        )
        with copy:
            write(copy.folder, "by-the-run", "x\n")
            changes = changes_of(project.shadow, snapshot, copy)
            if attack == ".worktreeinclude asks for all":  # All that the run made is ignored.
                assert [each.path for each in changes.left_out] == ["by-the-run"]
                return
            assert [each.path for each in changes.files] == ["by-the-run"]
            assert _git_state(project) == git_before
            apply_plan(project.shadow, make_plan(project.shadow, changes))
            assert (project.root / "by-the-run").read_text() == "x\n"
            if (copy.folder / ".git").exists():  # Codex's own git, when a turn begins.
                run_git(copy.folder, "status", check=False)
        discard(project.shadow, copy)
        lay_out(project.shadow, take_snapshot(project.shadow)).close()
    except TreeError:
        pass  # Refused.
    assert state_of(outside) == before
    assert _git_state(project) == git_before
    for folder in (project.root.parent, project.root, project.state_dir, Path.home()):
        assert not (folder / "ran").exists()


# --- the run attacks -----------------------------------------------------------------------------


def _run_links(copy: Path) -> None:
    shutil.rmtree(copy / "d")
    (copy / "d").symlink_to("../outside")


def _run_hides_git(copy: Path) -> None:
    write(copy, ".GIT/hooks/post-checkout", "x", 0o755)
    write(copy, "d/.git/config", "[core]\n\tfsmonitor = touch ../ran\n")


def _run_fifo(copy: Path) -> None:
    (copy / "a").unlink()
    os.mkfifo(copy / "a")


def _run_alternates(copy: Path) -> None:
    write(copy, ".git/objects/info/alternates", "/\n")
    write(copy, ".git/config", "[core]\n\tfsmonitor = touch ../ran\n\tworktree = /\n")


def _run_excludes(copy: Path) -> None:
    write(copy, ".git/info/exclude", "*\n")
    write(copy, ".git/info/attributes", "* filter=x\n")
    write(copy, "a", "changed\n")


def _run_nests(copy: Path) -> None:
    run_git(copy, "init", "-q", "d/inner")
    write(copy, "d/inner/.git/hooks/x", "x")
    write(copy, "d/inner/file", "x\n")


RUNS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "a folder becomes a link out": (_run_links, {"d", "d/b"}),
    "git folders under other names": (_run_hides_git, set()),
    "a file becomes a fifo": (_run_fifo, set()),
    "its own git folder lies": (_run_alternates, set()),
    "its own excludes hide changes": (_run_excludes, {"a"}),
    "a repository of its own": (_run_nests, {"d/inner/file"}),
    "a link to its git folder": (lambda copy: (copy / "g").symlink_to(".git"), {"g"}),
}


@pytest.mark.parametrize("attack", RUNS)
def test_a_hostile_run_changes_nothing_but_files_of_the_project(
    project: Project, outside: Path, attack: str
) -> None:
    work, expected = RUNS[attack]
    before, git_before = state_of(outside), _git_state(project)
    changes = project.run(work)
    assert {each.path for each in changes.files} == expected
    apply_plan(project.shadow, make_plan(project.shadow, changes))
    assert state_of(outside) == before
    assert _git_state(project) == git_before
    assert not (project.root / "d/inner/.git").exists()


# --- forged changes, as another machine could send them ------------------------------------------

FORGED = (
    *("../outside/file", "/etc/cron.d/x", ".git/hooks/post-checkout", "d/.git/config", ".GIT/x"),
    *("d/../../outside/file", "./a", "d//b", "", ".", "..", "a/", "link/file", "x" * 256),
    *("/".join(["x" * 250] * 20), "a/b"),
)


@pytest.mark.parametrize("path", FORGED)
def test_forged_changes_are_conflicts_and_write_nothing(
    project: Project, outside: Path, path: str
) -> None:
    (project.root / "link").symlink_to(outside)
    changes = project.run(lambda root: write(root, "new", "x\n"))
    forged = replace(changes, id="0", files=(replace(changes.files[0], path=path),))
    before = state_of(project.root.parent / "project"), state_of(outside)
    try:
        plan = make_plan(project.shadow, Changes.load(forged.dump()))
        assert [each.action for each in plan.files] == ["conflict"]
        with pytest.raises(NotAppliable):
            apply_plan(project.shadow, plan)
    except TreeError:
        pass
    assert (state_of(project.root), state_of(outside)) == before


@pytest.mark.parametrize("mode", ["160000", "040000", "104755", "777"])
def test_forged_modes_are_conflicts(project: Project, mode: str) -> None:
    changes = project.run(lambda root: write(root, "new", "x\n"))
    file: FileChange = replace(changes.files[0], new_mode=mode)
    plan = make_plan(project.shadow, replace(changes, files=(file,)))
    assert [each.action for each in plan.files] == ["conflict"]


def test_a_folder_that_becomes_a_link_between_plan_and_application_is_refused(
    project: Project, outside: Path
) -> None:
    changes = project.run(lambda root: write(root, "d/file", "by the run\n"))
    plan = make_plan(project.shadow, changes)
    shutil.rmtree(project.root / "d")
    (project.root / "d").symlink_to(outside)
    before = state_of(outside)
    with pytest.raises(TreeError):
        apply_plan(project.shadow, plan)
    assert state_of(outside) == before
    assert recover(project.shadow) == ()


def test_plain_paths_are_told_from_others() -> None:
    for path in (b"a", b"a/b", b".gitignore", b"a/.gitx", b"-x", b"\xff", b"a b"):
        assert is_plain(path)
    for path in (b"", b"/a", b"a/", b"a//b", b".", b"..", b"a/../b", b".git", b"A/.Git/b"):
        assert not is_plain(path)
