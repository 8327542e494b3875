"""What goes to PyPI: built from the sources, from each other, and started far away from both."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

from mcp_server_codex.settings import OPTIONS
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.installed_package import TOP, build, clean_environment, connect_by, run_uv, unfriendly
from support.lab import Lab, call


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    (folder / "unpacked").mkdir()
    # Not by tarfile, whose filters Python 3.11 has only since 3.11.4.
    unpack = ["tar", "-xf", str(build("sdist", folder)), "-C", str(folder / "unpacked")]
    subprocess.run(unpack, check=True)
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of a new environment that holds the wheel and what it needs."""
    venv = tmp_path_factory.mktemp("venv")
    run_uv("venv", "--clear", str(venv))
    run_uv("pip", "install", "--python", str(venv), str(wheel))
    return venv / "bin" / "mcp-server-codex"


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    held = {n: data for n, data in contents(wheel).items() if ".dist-info/" not in n}
    sources = {
        str(path.relative_to(root)): path.read_bytes()
        for root in (TOP / "server", TOP / "tools")
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == sources


def test_the_source_distribution_builds_the_same_wheel(
    wheel: Path, sdist: Path, tmp_path: Path
) -> None:
    assert contents(build("wheel", tmp_path, sdist)) == contents(wheel)
    for name in (
        *("README.md", "LICENSE", "CHANGELOG.md", "Makefile", "icon.png", "manifest.json"),
        *("server.json", "plugin/.mcp.json", ".claude-plugin/marketplace.json", ".ci/run"),
    ):
        assert (sdist / name).read_bytes() == (TOP / name).read_bytes()
    assert (sdist / "tests" / "test_distribution.py").is_file()


async def test_what_the_wheel_installs_starts_and_answers_anywhere(
    program: Path, mode: str, lab: Lab, fake: FakeCodex, tmp_path: Path
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    cwd, log = unfriendly(tmp_path / "project"), tmp_path / "log"
    env = clean_environment(tmp_path / "home") | {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
    options = ("--codex-bin", str(fake.build()))
    async with connect_by(str(program), options, env, mode, cwd=cwd, log=log) as client:
        done = await call(client, "codex_run", prompt="x", cwd=str(lab.project))
    assert done["final_response"] == "hello"
    assert log.read_text() == ""


def test_what_the_wheel_installs_tells_of_itself(program: Path, tmp_path: Path) -> None:
    def said(option: str) -> str:
        env = clean_environment(tmp_path / "home")
        command = [str(program), option]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout

    assert said("--version") == f"mcp-server-codex {version('mcp-server-codex')}\n"
    assert all(option.flag in said("--help") for option in OPTIONS)
    assert "-- ROOT" in said("--help")
