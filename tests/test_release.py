"""A release: the workflow that makes it, and the version that every file of it names."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

TOP = Path(__file__).parent.parent
VERSION = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
WORKFLOWS = sorted((TOP / ".github" / "workflows").glob("*.yml"))
NAMED = (
    *("manifest.json", "server.json", "gemini-extension.json", ".claude-plugin/marketplace.json"),
    *("plugin/.claude-plugin/plugin.json", "plugin/.codex-plugin/plugin.json"),
    *("plugin/.mcp.json", "plugin/.codex-plugin/mcp.json"),
)
"""The files that name the version of the project."""

TEXTS = [
    *(each for each in TOP.glob("*.md") if each.name != "CHANGELOG.md"),
    *TOP.glob("*.json"),
    *(TOP / "docs").glob("*.md"),
    *(each for each in (TOP / "plugin").rglob("*") if each.suffix in (".md", ".json")),
    *(TOP / "examples").glob("*.py"),
]


def workflow(path: Path) -> dict[str, Any]:
    data = yaml.safe_load(path.read_text())
    # YAML 1.1 reads the key `on` as true.
    return {("on" if key is True else key): value for key, value in data.items()}


@pytest.mark.parametrize("name", NAMED)
def test_each_file_of_a_release_names_the_version_of_the_project(name: str) -> None:
    text = (TOP / name).read_text()
    said = re.findall(r'"version": "([^"]+)"|mcp-server-codex==([\w.]+)', text)
    assert said, name
    assert {first or second for first, second in said} == {VERSION}


def test_no_other_text_pins_a_version_of_this_package() -> None:
    for path in TEXTS:
        pinned = re.findall(r"mcp-server-codex(?:\[codex\])?==([\w.]+)", path.read_text())
        assert {*pinned} <= {VERSION}, path


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_no_secret_and_no_more_rights_than_a_job_needs(path: Path) -> None:
    text, data = path.read_text(), workflow(path)
    assert "secrets." not in text
    assert data["permissions"] == {"contents": "read"}
    for name, job in cast("dict[str, dict[str, Any]]", data["jobs"]).items():
        assert job["timeout-minutes"] <= 45, name
        needed = job.get("needs", [])
        assert {needed} if isinstance(needed, str) else {*needed} <= data["jobs"].keys(), name
        for step in job["steps"]:
            assert ("run" in step) is not ("uses" in step), step
            assert re.search(r"@(v\d+|release/v\d+)$", step.get("uses", "@v1")), step


def test_a_tag_publishes_only_what_was_built_attested_and_is_of_its_version() -> None:
    release = workflow(TOP / ".github" / "workflows" / "release.yml")
    assert release["on"] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}
    jobs = release["jobs"]
    assert [*jobs] == ["build", "pypi", "registry", "release"]
    assert jobs["pypi"]["needs"] == "build"
    assert jobs["registry"]["needs"] == jobs["release"]["needs"] == "pypi"
    said = json.dumps(jobs["build"]["steps"])
    for part in ("GITHUB_REF_NAME", "python -m build", "make bundle", "cyclonedx", "attest-build"):
        assert part in said, part
    # Who may ask for an identity, by which PyPI and the registry trust a job.
    asking = {name for name, job in jobs.items() if "id-token" in job.get("permissions", {})}
    assert asking == {"build", "pypi", "registry"}
    assert jobs["release"]["permissions"] == {"contents": "write"}


def test_contributing_has_the_steps_of_a_release() -> None:
    text = (TOP / "CONTRIBUTING.md").read_text().partition("## Release")[2].partition("## ")[0]
    for name in ("CHANGELOG.md", "pyproject.toml", "tests/test_release.py"):
        assert f"`{name}`" in text, name
    for name in NAMED:
        assert f"`{name}`" in text or f"`{name.partition('/')[0]}/`" in text, name
