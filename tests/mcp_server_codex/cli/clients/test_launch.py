"""The command that is written into a client's file stays valid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from support.lab import server_program
from support.user_home import Desk, make_desk

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# The requirement that installs the package again, by the source of this installation.
ORIGINS: dict[str, tuple[Any, str | None]] = {
    "index": (None, None),
    "folder": (
        {"url": "file:///src/repo", "dir_info": {}},
        "mcp-server-codex@ @ file:///src/repo",
    ),
    "git": (
        {"url": "https://x/y.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
        f"mcp-server-codex@ @ git+https://x/y.git@{COMMIT}",
    ),
}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return make_desk(tmp_path)


def make_environment(folder: Path, origin: object = None) -> Path:
    """Make an environment with the same packages as this one; return its Python."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    own = [each for each in sys.path if each.endswith("site-packages")]
    sources = [str(Path(__file__).parents[4] / name) for name in ("server", "tools")]
    (packages / "all.pth").write_text("\n".join([*sources, *own]) + "\n")
    facts = packages / "mcp_server_codex-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mcp-server-codex\nVersion: 0\n")
    if origin:
        (facts / "direct_url.json").write_text(json.dumps(origin))
    return folder / "bin" / "python"


def written(desk: Desk, python: Path, **env: str) -> list[str]:
    """Return the command and arguments that `install` writes when run by *python*."""
    whole = {"PATH": os.defpath, "HOME": str(desk.home), **env}
    command = [python, "-m", "mcp_server_codex", "install", "cursor", "--", "--max-runs", "2"]
    subprocess.run(command, cwd=desk.project, env=whole, check=True, capture_output=True)
    entry = json.loads(desk.config("cursor").read_text())["mcpServers"]["codex"]
    assert entry["args"][-2:] == ["--max-runs", "2"]
    return [entry["command"], *entry["args"][:-2]]


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("has_uvx", [True, False], ids=["uvx", "uv"])
def test_from_uvx_s_environment_uvx_is_started_again(
    origin: str, has_uvx: bool, desk: Desk, tmp_path: Path
) -> None:
    facts, wanted = ORIGINS[origin]
    python = make_environment(tmp_path / "cache" / "archive-v0" / "x1", facts)
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.touch()
    if has_uvx:
        uv.with_name("uvx").touch()
    run = [str(uv.with_name("uvx"))] if has_uvx else [str(uv), "tool", "run"]
    extra = has_codex_package(python)
    name = f"mcp-server-codex{extra}"
    spec = wanted.replace("mcp-server-codex@", name, 1) if wanted else name
    source = [] if spec == "mcp-server-codex" else ["--from", spec]
    assert written(desk, python, UV=str(uv)) == [*run, *source, "mcp-server-codex"]


def has_codex_package(python: Path) -> str:
    code = "from importlib.util import find_spec; print(bool(find_spec('codex_cli_bin')))"
    said = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    return "[codex]" if said.strip() == "True" else ""


def test_from_pipx_run_s_environment_pipx_is_started_again(desk: Desk, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "pipx" / ".cache" / "5f2e")
    found = written(desk, python)
    assert Path(found[0]).name == "pipx"
    assert found[1] == "run"
    assert found[-1] == "mcp-server-codex"
    assert str(tmp_path) not in " ".join(found)


def test_from_an_environment_that_stays_its_own_script_is_started(
    desk: Desk, tmp_path: Path
) -> None:
    python = make_environment(tmp_path / "venv")
    assert written(desk, python) == [str(python), "-m", "mcp_server_codex"]
    script = python.with_name("mcp-server-codex")
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert written(desk, python) == [str(script)]


def test_a_link_on_path_is_written_as_it_is(desk: Desk) -> None:
    link = desk.home / ".local" / "bin" / "mcp-server-codex"
    link.parent.mkdir(parents=True)
    link.symlink_to(server_program())
    environ = {"PATH": f"{link.parent}:{os.defpath}", "HOME": str(desk.home)}
    command = "exec mcp-server-codex install cursor"
    subprocess.run(["/bin/sh", "-c", command], cwd=desk.project, env=environ, check=True)
    entry = json.loads(desk.config("cursor").read_text())["mcpServers"]["codex"]
    assert entry["command"] == str(link)
