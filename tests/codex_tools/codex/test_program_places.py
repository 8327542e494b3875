"""Attacks on the programs that run outside the sandbox: this server's own, and Codex."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from codex_tools.codex.program import Program
from codex_tools.codex.program_places import codex_reasons, own_reasons
from mcp_server_codex.cli.scripted_model import say
from support.codex_versions import real_codex
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Lab, call, connect

WRITE = {"prompt": "x", "sandbox": "workspace-write", "skip_git_repo_check": True}


@pytest.mark.parametrize("folder", ["", "bin", "lib", ".."])
def test_no_run_may_write_to_the_environment_of_this_server(folder: str) -> None:
    assert [*own_reasons((Path(sys.prefix) / folder).resolve())]


def test_the_source_the_library_and_the_interpreter_are_guarded_too(tmp_path: Path) -> None:
    import anyio

    for file in (anyio.__file__, shutil.__file__, own_reasons.__code__.co_filename):
        assert [*own_reasons(Path(file).parent)], file
    assert [*own_reasons(Path(sys.executable).resolve().parent)]
    assert not [*own_reasons(tmp_path)]


def test_codex_is_guarded_where_it_is_found_and_where_it_is(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "vendor" / "x86_64"
    native = package / "bin" / "codex"
    native.parent.mkdir(parents=True)
    native.touch()
    link = tmp_path / "project" / "node_modules" / ".bin" / "codex"
    link.parent.mkdir(parents=True)
    link.symlink_to(native)
    found = Program(native, (0, 171, 0), "0.171.0", str(package / "path"), frozenset(), link)
    for folder in (
        "lib",
        "lib/vendor",
        "lib/vendor/x86_64/path",
        "project",
        "project/node_modules",
    ):
        assert [*codex_reasons(tmp_path / folder, found)], folder
    assert not [*codex_reasons(tmp_path / "project" / "src", found)]
    assert not [
        *codex_reasons(
            tmp_path / "lib", replace(found, path=Path("/x/y"), search_path=None, found=None)
        )
    ]


async def test_a_run_cannot_edit_the_codex_of_the_next_run(mode: str, lab: Lab) -> None:
    fake = FakeCodex(
        lab.project / "node_modules" / ".bin", stdout=events(thread_line(), *answer_lines("ok"))
    )
    codex = fake.build()
    async with connect(mode, codex, lab) as client:
        refused = await call(client, "codex_run", **WRITE)
        more = await call(
            client, "codex_run", **WRITE | {"cwd": "/usr/share"}, add_dirs=[str(lab.project)]
        )
        assert not fake.was_started
        reading = await call(client, "codex_run", prompt="x")
    async with connect(mode, codex, lab, "--root", str(lab.project)) as client:
        allowed = await call(client, "codex_run", **WRITE)
    for result in (refused, more):
        assert result["error"]["kind"] == "not_allowed"
        assert "Codex's own program" in result["error"]["message"]
        assert "--root" in result["error"]["hint"]
    assert (reading["status"], allowed["status"]) == ("completed", "completed")


async def test_a_run_cannot_edit_this_server(mode: str, lab: Lab, fake: FakeCodex) -> None:
    around = Path(sys.prefix).parent
    async with connect(mode, fake.build(), lab) as client:
        refused = await call(client, "codex_run", **WRITE, cwd=str(around))
        more = await call(client, "codex_run", **WRITE, add_dirs=[sys.prefix])
    assert not fake.was_started
    for result in (refused, more):
        assert result["error"]["kind"] == "not_allowed"
        assert "this server's own program" in result["error"]["message"]
        assert "install that program elsewhere" in result["error"]["hint"]


async def test_a_codex_that_a_run_has_planted_does_not_run(mode: str, lab: Lab) -> None:
    planted = lab.project / "bin" / "codex"
    planted.parent.mkdir()
    planted.write_text(f"#!/bin/sh\ntouch {lab.root}/ran\n")
    planted.chmod(0o755)
    installed = lab.root / "installed"
    installed.mkdir()
    (installed / "codex").symlink_to(real_codex("0.163.0"))
    prompt = lab.script("hello", say("Hello."))
    path = {"PATH": f"{planted.parent}:bin:{installed}:/usr/bin:/bin"}
    async with connect(mode, None, lab, env=path) as client:
        for cwd in (lab.project, lab.root / "installed"):
            result = await call(
                client, "codex_run", prompt=prompt, cwd=str(cwd), skip_git_repo_check=True
            )
            assert (result["status"], result["codex_version"]) == ("completed", "0.163.0")
    assert not (lab.root / "ran").exists()
