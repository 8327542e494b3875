"""What a run changed, by patches and by commands: real Codex in a real repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mcp_server_codex.cli.scripted_model import Patch, Shell, do, say
from support.lab import Lab, call, connect

COMMAND = "echo new > made.txt; rm old.txt; echo more >> patched.txt; echo x > ignored.log"


def git(lab: Lab, *words: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.com")
    subprocess.run(["git", *identity, *words], cwd=lab.project, check=True, capture_output=True)


@pytest.mark.usefixtures("each_engine")
async def test_what_commands_did_is_told_and_what_the_person_did_is_not(
    codex: Path, mode: str, lab: Lab
) -> None:
    for name in ("old.txt", "mine.txt", "patched.txt", "still.txt"):
        (lab.project / name).write_text("one\n")
    (lab.project / ".gitignore").write_text("*.log\n")
    git(lab, "add", ".")
    git(lab, "commit", "-qm", "first")
    (lab.project / "mine.txt").write_text("the person's own\n")
    (lab.project / "untracked.txt").write_text("as well\n")
    patch = Patch("*** Add File: added.txt\n+one\n*** Add File: gone.txt\n+one")
    prompt = lab.script("work", do(patch), do(Shell(f"rm gone.txt; {COMMAND}")), say("done"))
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt, sandbox="workspace-write")
        idle = await call(
            client, "codex_resume", thread_id=result["thread_id"], prompt=lab.script("b", say("-"))
        )
    seen = {
        Path(file["path"]).name: (file["kind"], file["seen_by"]) for file in result["files_changed"]
    }
    assert seen == {
        "added.txt": ("add", "both"),
        "made.txt": ("add", "git"),
        "old.txt": ("delete", "git"),
        "patched.txt": ("update", "git"),
    }
    assert all(Path(file["path"]).is_relative_to(lab.project) for file in result["files_changed"])
    assert idle["files_changed"] == []


async def test_outside_a_repository_patches_alone_are_told(
    codex: Path, mode: str, lab: Lab
) -> None:
    plain = lab.root / "plain"
    plain.mkdir()
    patch = Patch("*** Add File: added.txt\n+one")
    prompt = lab.script("work", do(patch), do(Shell("echo x > made.txt")), say("done"))
    async with connect(mode, codex, lab, cwd=plain) as client:
        result = await call(
            client,
            "codex_run",
            prompt=prompt,
            sandbox="workspace-write",
            skip_git_repo_check=True,
        )
    assert (plain / "made.txt").exists()
    (file,) = result["files_changed"]
    assert (Path(file["path"]).name, file["kind"], file["seen_by"]) == ("added.txt", "add", "patch")
