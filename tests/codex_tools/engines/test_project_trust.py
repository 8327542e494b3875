"""How far Codex may trust a project, and which of its files Codex loads."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from codex_tools.codex.errors import CodexUnsupported, NotAllowed
from codex_tools.codex.program import Program, Version
from codex_tools.codex.sandbox import Sandbox
from codex_tools.engines.project_trust import (
    FILES_LIMIT,
    Project,
    decide_trust,
    files_in,
    find_project,
)


def codex(version: Version | None) -> Program:
    return Program(Path("/bin/codex"), version, str(version), None, frozenset())


def levels(settings: list[str]) -> dict[str, str]:
    """Return the trust level of each folder that *settings* name."""
    projects = tomllib.loads("\n".join(settings)).get("projects", {})
    return {path: entry["trust_level"] for path, entry in projects.items()}


VERSIONS: list[Version | None] = [
    *((0, 60, 1), (0, 77, 0), (0, 98, 0), (0, 120, 0)),
    *((0, 147, 0), (0, 163, 0), (0, 169, 0), (0, 171, 0), None),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sandbox", ["read-only", "workspace-write", "danger-full-access"])
@pytest.mark.parametrize("is_armed", [True, False])
@pytest.mark.parametrize("has_documents", [True, False])
def test_no_version_trusts_more_than_the_person(
    tmp_path: Path, version: Version | None, sandbox: Sandbox, is_armed: bool, has_documents: bool
) -> None:
    (tmp_path / ".codex").mkdir()  # An empty one holds nothing that Codex could load.
    if is_armed:
        (tmp_path / ".codex" / "config.toml").touch()
    if has_documents:
        (tmp_path / "AGENTS.md").touch()
    project = Project(((tmp_path, False),))
    trusts = version in ((0, 120, 0), (0, 147, 0), (0, 163, 0)) and sandbox != "read-only"
    if trusts and is_armed and version == (0, 120, 0):
        with pytest.raises(CodexUnsupported, match=r"\.codex for ever"):
            decide_trust(project, sandbox, codex(version), tmp_path / "home")
        return
    settings, warning = decide_trust(project, sandbox, codex(version), tmp_path / "home")
    if not trusts:
        assert (settings, warning) == ([], None)
        return
    reads = not is_armed and (version == (0, 120, 0) or (version == (0, 163, 0) and has_documents))
    assert levels(settings) == {str(tmp_path): "trusted" if reads else "untrusted"}
    assert (warning is not None) is (is_armed and has_documents and version == (0, 163, 0))


@pytest.mark.parametrize("content", ["", "x", None])
def test_an_empty_file_that_a_sandbox_has_left_holds_nothing(
    tmp_path: Path, content: str | None
) -> None:
    """The sandbox of 0.120.0 leaves a file `.codex` in each project that it writes to."""
    if content is None:
        (tmp_path / ".codex").symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / ".codex").write_text(content)
    project = Project(((tmp_path, False),))
    if content == "":
        old = codex((0, 120, 0))
        settings, _ = decide_trust(project, "workspace-write", old, tmp_path / "home")
        assert levels(settings) == {str(tmp_path): "trusted"}
        return
    with pytest.raises(CodexUnsupported):
        decide_trust(project, "workspace-write", codex((0, 120, 0)), tmp_path / "home")


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_person_has_decided_stays(tmp_path: Path, version: Version | None) -> None:
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "config.toml").touch()
    project = Project(((tmp_path, True),), is_decided=True)
    assert decide_trust(project, "workspace-write", codex(version), tmp_path / "home") == ([], None)


def test_codex_home_is_no_folder_of_a_project(tmp_path: Path) -> None:
    home = tmp_path / ".codex"
    home.mkdir()
    (home / "config.toml").touch()
    project = Project(((tmp_path, True),))
    settings, _ = decide_trust(project, "workspace-write", codex((0, 120, 0)), home)
    assert levels(settings) == {str(tmp_path): "trusted"}
    assert files_in(project, home) == {}


@pytest.mark.parametrize("level", ["trusted", "untrusted", "odd"])
@pytest.mark.parametrize("named", ["cwd", "root", "link", "above"])
def test_only_an_entry_of_the_folder_or_of_its_repository_decides(
    tmp_path: Path, named: str, level: str
) -> None:
    root = tmp_path / "root"
    cwd = root / "sub"
    cwd.mkdir(parents=True)
    (root / ".git").mkdir()
    (tmp_path / "link").symlink_to(root)
    path = {"cwd": cwd, "root": root, "link": tmp_path / "link", "above": tmp_path}[named]
    project = find_project(
        cwd, [{"projects": {str(path): {"trust_level": level}}}, {"projects": 1}]
    )
    is_decided = level != "odd" and named != "above"
    assert project.is_decided is is_decided
    assert (cwd in project.trusted) is (is_decided and level == "trusted")


def test_the_files_of_a_project_have_the_ids_that_git_gives_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = root / ".codex"
    (folder / "rules").mkdir(parents=True)
    (folder / "skills").mkdir()
    (folder / "skills" / "text.md").touch()
    (folder / "config.toml").write_text("x\n")
    (folder / "rules" / "a").touch()
    (folder / "link").symlink_to("config.toml")
    os.mkfifo(folder / "pipe")
    (tmp_path / "below").mkdir()
    (root / "linked").mkdir()
    (root / "linked" / ".codex").symlink_to(tmp_path / "below")
    project = Project(((root, True), (root / "other", False), (root / "linked", True)))
    assert files_in(project, tmp_path) == {
        f"{folder}/config.toml": "587be6b4c3f93f93c489c0111bba5596147a26cb",
        f"{folder}/rules/a": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
        f"{folder}/link": "link",
        f"{folder}/pipe": "no file",
        f"{root}/linked/.codex": "link",
    }
    assert files_in(Project(((root, False),)), tmp_path) == {}


def test_more_files_than_can_be_compared_are_refused(tmp_path: Path) -> None:
    (tmp_path / ".codex").mkdir()
    for number in range(FILES_LIMIT + 1):
        (tmp_path / ".codex" / str(number)).touch()
    with pytest.raises(NotAllowed, match="more than 1000 files"):
        files_in(Project(((tmp_path, True),)), tmp_path / "home")
