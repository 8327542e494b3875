"""The files in `.codex` against the last commit, without running a program of the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from codex_tools.engines.project_trust import Project, files_in
from codex_tools.runs.project_config import describe_config, find_uncommitted

pytestmark = pytest.mark.anyio


def git(folder: Path, *words: str) -> None:
    author = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", *author, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a repository with two committed `.codex` folders."""
    root = tmp_path / "root"
    for folder in (root, root / "sub é"):
        (folder / ".codex" / "rules").mkdir(parents=True)
        (folder / ".codex" / "config.toml").write_text("x = 1\n")
        (folder / ".codex" / "rules" / "a.rules").write_text("a\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "x")
    return root


async def problem(root: Path) -> str | None:
    sub = root / "sub é"
    files = files_in(Project(((root, True), (sub, True))), None)
    excess = await find_uncommitted(files, sub)
    return None if excess is None else excess.limit


async def test_committed_files_are_no_excess(root: Path) -> None:
    assert await problem(root) is None
    (root / ".codex" / "config.toml").unlink()
    assert await problem(root) is None
    assert await find_uncommitted({}, root) is None


@pytest.mark.parametrize("form", ["changed", "new", "staged", "link", "ignored"])
async def test_what_is_not_as_in_the_last_commit_is_an_excess(root: Path, form: str) -> None:
    file = root / "sub é" / ".codex" / "config.toml"
    if form == "link":
        (root / "elsewhere").write_text("x = 1\n")
        file.unlink()
        file.symlink_to(root / "elsewhere")
    elif form in ("changed", "staged"):
        file.write_text("x = 2\n")
    else:
        file = file.parent / "hooks.json"
        file.write_text("{}")
    if form == "staged":
        git(root, "add", "-A")
    if form == "ignored":
        (root / ".gitignore").write_text("hooks.json\n")
    found = await problem(root)
    assert found is not None
    assert str(file) in found


async def test_no_program_of_the_repository_runs(root: Path) -> None:
    mark = root.parent / "ran"
    git(root, "config", "filter.evil.clean", f"touch {mark}")
    git(root, "config", "core.fsmonitor", f"touch {mark}")
    (root / ".gitattributes").write_text("* filter=evil\n")
    assert await problem(root) is None
    (root / ".codex" / "config.toml").write_text("x = 2\n")
    assert await problem(root) is not None
    assert not mark.exists()


async def test_without_a_commit_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "config.toml").touch()
    git(tmp_path, "init", "-q")
    files = files_in(Project(((tmp_path, True),)), None)
    excess = await find_uncommitted(files, tmp_path)
    assert excess is not None
    assert "git cannot say" in excess.limit
    assert excess.option == "--project-config"


def test_changed_files_that_codex_loads_are_named() -> None:
    found = describe_config(["/p/a", "/p/.codex/config.toml", "/p/x/.codex/rules/a.rules"])
    assert found is not None
    assert "/p/.codex/config.toml, /p/x/.codex/rules/a.rules. Codex loads" in found
    assert describe_config(["/p/.codexes/a", "/p/.codex.md"]) is None
    many = describe_config([f"/p/.codex/{number}" for number in range(9)])
    assert many is not None
    assert "and 6 more" in many
