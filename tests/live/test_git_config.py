"""Attacks by a repository through Codex's own git, which runs outside the sandbox."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import number
from support.lab import Lab, call, connect

PROGRAM = """\
#!/bin/sh
echo "$1" >> {ran}
cat
"""


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.com")
    command = ["git", *identity, "-c", "protocol.file.allow=always", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def plant(lab: Lab) -> Path:
    """Name a program in the project in every way that `git status` obeys; return its record."""
    ran, program, project = lab.root / "ran", lab.root / "program", lab.project
    program.write_text(PROGRAM.format(ran=ran))
    program.chmod(0o755)
    inner = lab.root / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    for folder in (inner, project):
        for name in ("local", "included", "worktree", "attributes", "process", "required", "sub"):
            (folder / f"a.{name}").write_text("one\n")
        (folder / ".gitattributes").write_text(
            "".join(f"*.{n} filter={n}\n" for n in ("local", "included", "worktree", "required"))
            + "*.process filter=process\n*.sub filter=sub\n"
        )
        git(folder, "add", ".")
        git(folder, "commit", "-qm", "first")
    git(project, "submodule", "add", "-q", str(inner), "sub")
    git(project, "commit", "-qm", "second")
    git(project, "config", "filter.local.clean", f"{program} local")
    git(project, "config", "filter.required.clean", f"{program} required")
    git(project, "config", "filter.required.required", "true")
    git(project, "config", "filter.process.process", f"{program} process")
    git(project, "config", "core.fsmonitor", f"{program} fsmonitor")
    git(project, "config", "include.path", "../settings")
    (project / "settings").write_text(f'[filter "included"]\n\tclean = {program} included\n')
    git(project, "config", "extensions.worktreeConfig", "true")
    git(project, "config", "--worktree", "filter.worktree.clean", f"{program} worktree")
    (project / ".git" / "info" / "attributes").write_text("*.attributes filter=info\n")
    git(project, "config", "filter.info.clean", f"{program} info")
    git(project / "sub", "config", "filter.sub.clean", f"{program} sub")
    hook = project / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\necho hook >> {ran}\n")
    hook.chmod(0o755)
    for file in (*project.glob("a.*"), *(project / "sub").glob("a.*")):
        file.write_text("two\n")
        os.utime(file, (1, 1))
    ran.unlink(missing_ok=True)
    return ran


@pytest.mark.parametrize("sandbox", ["read-only", "workspace-write"])
async def test_codex_runs_no_program_that_the_repository_names(
    sandbox: str, codex: Path, mode: str, lab: Lab
) -> None:
    ran = plant(lab)
    prompt = lab.script("hello", do(Shell("true")), say("done"))
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt, sandbox=sandbox)
    assert result["status"] == "completed"
    assert not ran.exists(), ran.read_text()


async def test_a_filter_of_the_person_works_for_codex_and_its_commands(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    ran = plant(lab)
    own = lab.root / "own"
    own.write_text(PROGRAM.format(ran=lab.root / "own-ran"))
    own.chmod(0o755)
    (lab.root / ".gitconfig").write_text(f'[filter "local"]\n\tclean = {own} own\n')
    surroundings = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "user.name",
        "GIT_CONFIG_VALUE_0": "Surroundings",
    }
    command = "git config user.name > name; git config filter.local.clean >> name"
    prompt = lab.script("hello", do(Shell(command)), say("done"))
    async with connect(mode, codex, lab, env=surroundings) as client:
        await call(client, "codex_run", prompt=prompt, sandbox="workspace-write")
    assert not ran.exists(), ran.read_text()
    # 0.60.1 and 0.77.0 run `git status` only for the snapshots of their undo, which is off.
    assert (lab.root / "own-ran").exists() is (number(version) >= (0, 120, 0))
    assert (lab.project / "name").read_text().split("\n") == ["Surroundings", f"{own} own", ""]


async def test_codex_runs_no_git_that_a_run_has_planted(codex: Path, mode: str, lab: Lab) -> None:
    planted = lab.project / ".venv" / "bin" / "git"
    planted.parent.mkdir(parents=True)
    for file in (planted, lab.project / "git"):
        file.write_text(f"#!/bin/sh\necho $0 >> {lab.root}/ran\nexec /usr/bin/git $*\n")
        file.chmod(0o755)
    path = {"PATH": f".:{planted.parent}:{os.environ['PATH']}"}
    prompt = lab.script("hello", do(Shell("echo $PATH > path")), say("done"))
    async with connect(mode, codex, lab, env=path) as client:
        result = await call(client, "codex_run", prompt=prompt, sandbox="workspace-write")
    assert result["status"] == "completed", result
    assert not (lab.root / "ran").exists(), (lab.root / "ran").read_text()
    # A login shell may read it anew from /etc/profile; else commands keep it whole.
    shown = (lab.project / "path").read_text()
    assert str(planted.parent) in shown or str(Path(os.environ["PATH"].split(":")[0])) not in shown
