"""What surrounds the server does not change what a run does: real Codex."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from codex_tools.engines.environment import SURROUNDINGS
from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import cannot_have, number
from support.lab import Lab, call, connect


def make_repository(folder: Path) -> None:
    subprocess.run(["git", "init", "-q", str(folder)], check=True)


async def test_codex_s_git_works_on_its_own_folder_in_a_hook_of_another_repository(
    codex: Path, mode: str, lab: Lab
) -> None:
    outer = lab.root / "outer"
    make_repository(outer)
    find = "git rev-parse --absolute-git-dir; env; echo end-of-env"
    prompt = lab.script("git", do(Shell(find), delay_s=1.0), say("ok"))
    env = {
        "GIT_DIR": str(outer / ".git"),
        "GIT_WORK_TREE": str(outer),
        "GIT_INDEX_FILE": str(outer / ".git" / "index"),
        "GIT_AUTHOR_NAME": "a person",
    }
    async with connect(mode, codex, lab, env=env) as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert result["status"] == "completed", result
    seen = json.dumps(lab.model.requests[-1].body["input"])
    assert "end-of-env" in seen
    assert f"{lab.project}/.git" in seen
    assert str(outer) not in seen
    assert "GIT_AUTHOR_NAME=a person" in seen


def test_git_s_own_list_of_location_variables_is_covered() -> None:
    listed = subprocess.run(
        ["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=True
    )
    assert {*listed.stdout.split()} - {*SURROUNDINGS} <= {"GIT_CONFIG_COUNT"}


async def test_all_tools_work_when_the_server_s_folder_was_deleted(
    codex: Path, mode: str, lab: Lab
) -> None:
    folder = lab.root / "gone"
    folder.mkdir()
    async with connect(mode, codex, lab, cwd=folder) as client:
        first = await call(client, "codex_run", prompt="a", cwd=str(lab.project))
        folder.rmdir()
        run = await call(client, "codex_run", prompt="b", cwd=str(lab.project))
        nowhere = await call(client, "codex_run", prompt="c")
        resumed = await call(client, "codex_resume", prompt="d", thread_id=run["thread_id"])
        last = await call(client, "codex_resume", prompt="e", last=True, cwd=str(lab.project))
        waited = await client.call_tool("codex_wait", {"run_ids": [first["run_id"]]})
        stopped = await client.call_tool("codex_stop", {"run_id": first["run_id"]})
        sessions = await client.call_tool("codex_sessions", {})
        usage = await client.call_tool("codex_usage", {})
    for result in (first, run, resumed, last):
        assert result["status"] == "completed", result
    assert nowhere["error"]["kind"] == "invalid_arguments"
    assert "cwd: give a folder" in nowhere["error"]["message"]
    for other in (waited, stopped, sessions, usage):
        assert not other.is_error


async def test_a_server_that_starts_in_a_deleted_folder_works(
    codex: Path, mode: str, lab: Lab
) -> None:
    launcher = lab.root / "codex"
    # As a launcher in node: it ends with "uv_cwd" if its folder does not exist.
    launcher.write_text(f'#!/bin/sh\n/bin/pwd -P > /dev/null || exit 7\nexec {codex} "$@"\n')
    launcher.chmod(0o700)
    folder = lab.root / "gone"
    folder.mkdir()
    starter = lab.root / "start"
    starter.write_text('#!/bin/sh\nrmdir "$PWD"\nexec "$@"\n')
    starter.chmod(0o700)
    async with connect(mode, launcher, lab, cwd=folder, prefix=[str(starter)]) as client:
        assert not folder.exists()
        result = await call(client, "codex_run", prompt="a", cwd=str(lab.project))
        nowhere = await call(client, "codex_run", prompt="b")
    assert result["status"] == "completed", result
    assert nowhere["error"]["kind"] == "invalid_arguments"


@pytest.fixture(scope="session")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with locales whose encoding is not UTF-8."""
    folder = tmp_path_factory.mktemp("locales")
    if shutil.which("localedef") is None:
        cannot_have("localedef")
    for source, encoding in (("zh_CN", "GBK"), ("de_DE", "ISO-8859-1")):
        command = ["localedef", "-i", source, "-f", encoding, str(folder / f"{source}.{encoding}")]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode not in (0, 1):  # 1 with warnings only.
            cannot_have(f"the locale {source}.{encoding}: {made.stderr.strip()}")
    return folder


@pytest.mark.parametrize("locale", ["zh_CN.GBK", "de_DE.ISO-8859-1", "C", None])
async def test_a_path_beyond_ascii_works_in_any_locale(
    codex: Path, mode: str, lab: Lab, locales: Path, locale: str | None
) -> None:
    cwd = lab.project / "Übung 你好 €"
    cwd.mkdir()
    prompt = lab.script("x", do(Shell("env; echo end-of-env > made"), delay_s=1.0), say("ok"))
    variables = {"LC_ALL": locale} if locale is not None else {}
    env = {"LOCPATH": str(locales), "LANG": "", **variables}
    async with connect(mode, codex, lab, env=env) as client:
        result = await call(
            client, "codex_run", prompt=prompt, cwd=str(cwd), sandbox="workspace-write"
        )
    assert result["status"] == "completed", result
    assert result["cwd"] == str(cwd)
    assert (cwd / "made").read_text() == "end-of-env\n"
    assert "PYTHONUTF8" not in json.dumps(lab.model.requests[-1].body["input"])


@pytest.mark.parametrize("locale", ["zh_CN.GBK", "de_DE.ISO-8859-1"])
async def test_codex_gets_the_locale_of_the_person(
    codex: Path, version: str, mode: str, lab: Lab, locales: Path, locale: str
) -> None:
    show = do(Shell("env; echo end-of-env"), delay_s=1.0)
    prompt = lab.script("x", show, say("ok"))
    env = {"LOCPATH": str(locales), "LANG": locale}
    async with connect(mode, codex, lab, env=env) as client:
        await call(client, "codex_run", prompt=prompt)
    seen = json.dumps(lab.model.requests[-1].body["input"])
    assert "end-of-env" in seen
    assert "PYTHON" not in seen
    is_set_by_codex = (0, 98, 0) <= number(version) < (0, 120, 0)
    assert f"LANG={'C.UTF-8' if is_set_by_codex else locale}" in seen
