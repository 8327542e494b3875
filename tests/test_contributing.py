"""The pages for contributors name files, make targets and names in code that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
PAGES = [
    *("CONTRIBUTING.md", "AGENTS.md", "SECURITY.md", "README.md"),
    ".github/workflows/ci.yml",
    ".github/ISSUE_TEMPLATE/bug.yml",
    ".github/ISSUE_TEMPLATE/config.yml",
    ".github/pull_request_template.md",
]
TARGETS = set(re.findall(r"^([a-z]+):", (TOP / "Makefile").read_text(), re.MULTILINE))

PACKAGES = (TOP, TOP / "server" / "mcp_server_codex", TOP / "tools" / "codex_tools")
"""Where a path may begin: `runs/` is short for `tools/codex_tools/runs/`."""

PATH = re.compile(r"(?:`|\]\()([\w./-]+/[\w./-]*|[\w-]+\.(?:md|json)|pyproject\.toml)(?=[`)#])")
"""A path in backticks or in a link."""

PLACEHOLDER = re.compile("NAME|VERSION|SCENARIO|CASE")

each_page = pytest.mark.parametrize("page", PAGES)


def paths_in(text: str) -> list[str]:
    return [path for path in PATH.findall(text) if not path.startswith("/")]


def is_there(path: str) -> bool:
    """Return True if *path* exists; of one with a placeholder, the folders before that count."""
    found = PLACEHOLDER.search(path)
    known = path[: found.start()].rpartition("/")[0] if found else path
    return any((package / known).exists() for package in PACKAGES)


@each_page
def test_paths_exist(page: str) -> None:
    assert [path for path in paths_in((TOP / page).read_text()) if not is_there(path)] == []


@each_page
def test_make_targets_exist(page: str) -> None:
    text = (TOP / page).read_text()
    assert {*re.findall(r"(?:`|run: |\$ )make ([a-z]+)", text)} <= TARGETS
    assert {*re.findall(r"\btarget: ([a-z]+)", text)} <= TARGETS


@each_page
def test_names_in_code_exist(page: str) -> None:
    text = (TOP / page).read_text()
    for name, path in re.findall(r"`(\w+)` (?:in|of) `([\w./-]+)`", text):
        assert re.search(rf"\b{name}\b", (TOP / path).read_text()), (name, path)


def test_the_pages_are_not_empty_of_what_is_checked() -> None:
    text = (TOP / "CONTRIBUTING.md").read_text()
    assert len(paths_in(text)) > 40
    assert len(re.findall(r"`(\w+)` (?:in|of) `([\w./-]+)`", text)) > 8
    assert {"demo", "test", "check", "live", "compat", "quick"} <= TARGETS


def test_the_source_distribution_holds_the_pages_and_the_examples() -> None:
    build = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    held = {*build["targets"]["sdist"]["only-include"], "README.md"}  # hatchling adds the readme.
    assert {*(page for page in PAGES if "/" not in page), "examples"} <= held


def test_contributing_is_one_screen_and_agents_eight_lines() -> None:
    assert len((TOP / "CONTRIBUTING.md").read_text().splitlines()) <= 80
    assert len((TOP / "AGENTS.md").read_text().splitlines()) == 8
