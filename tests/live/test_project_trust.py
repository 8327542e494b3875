"""What a repository may make Codex run outside the sandbox: real Codex."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import number
from support.lab import Json, Lab, by_app_server, call, connect
from support.stub_server import commit, extend, started, stub, trust

LATE = replace(say("ok"), delay_s=1.0)
"""An answer after the MCP servers have started; 0.60.1 does not wait for them."""


def plant(folder: Path, text: str) -> None:
    """Write *text* to the configuration of a project's *folder*."""
    (folder / ".codex").mkdir(parents=True, exist_ok=True)
    (folder / ".codex" / "config.toml").write_text(text)


def link_tree(lab: Lab, tree: Path) -> None:
    """Make a linked work tree of the project."""
    subprocess.run(["git", "worktree", "add", "-q", str(tree)], cwd=lab.project, check=True)


def seen_by_the_model(lab: Lab) -> str:
    return json.dumps(lab.model.requests[-1].body)


@pytest.mark.parametrize("place", ["root", "sub"])
@pytest.mark.parametrize("sandbox", ["workspace-write", "danger-full-access"])
async def test_a_run_makes_codex_trust_no_repository(
    codex: Path, version: str, mode: str, lab: Lab, place: str, sandbox: str
) -> None:
    """Seen before: 0.120.0 to 0.163.0 added an entry and started the repository's server."""
    plant(lab.project, stub(lab, "hostile"))
    (lab.project / "AGENTS.md").write_text("instructions of the root")
    sub = lab.project / "sub"
    sub.mkdir()
    (sub / "AGENTS.md").write_text("instructions of the folder")
    before = (lab.home / "config.toml").read_bytes()
    cwd = lab.project if place == "root" else sub
    options = ("--max-sandbox", "danger-full-access")
    lab.script("x", LATE)
    async with connect(mode, codex, lab, *options) as client:
        first = await call(client, "codex_run", prompt="x", sandbox=sandbox, cwd=str(cwd))
        thread = first["thread_id"]
        if thread is not None:
            await call(client, "codex_resume", prompt="x", thread_id=thread, sandbox=sandbox)
    assert (lab.home / "config.toml").read_bytes() == before
    assert started(lab) == set()
    asks_trust = (0, 148, 0) <= number(version) < (0, 169, 0)
    if place == "root" and (0, 99, 0) <= number(version) < (0, 147, 0):
        assert first["error"]["kind"] == "codex_unsupported", first
        return
    assert first["status"] == "completed", first
    unread = any("has not read AGENTS.md" in warning for warning in first["warnings"])
    # An app-server is started read-only, so Codex has no reason to ask for trust.
    asks_trust = asks_trust and not by_app_server(first)
    assert unread is (place == "root" and asks_trust)
    assert ("instructions of the root" in seen_by_the_model(lab)) is not unread
    assert ("instructions of the folder" in seen_by_the_model(lab)) is (place == "sub")


async def test_a_project_that_the_person_trusts_stays_trusted(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    plant(lab.project, stub(lab, "mine"))
    (lab.project / "AGENTS.md").write_text("instructions of the root")
    commit(lab)
    trust(lab)
    tree = lab.root / "tree"
    link_tree(lab, tree)
    before = (lab.home / "config.toml").read_bytes()
    lab.script("x", LATE)
    async with connect(mode, codex, lab) as client:
        for cwd in (lab.project, tree):
            run = await call(
                client, "codex_run", prompt="x", sandbox="workspace-write", cwd=str(cwd)
            )
            assert run["status"] == "completed", run
            assert started(lab) == ({"mine"} if number(version) >= (0, 98, 0) else set())
            assert "instructions of the root" in seen_by_the_model(lab)
    assert (lab.home / "config.toml").read_bytes() == before


@pytest.mark.parametrize("form", ["invented", "of another tree", "link"])
async def test_a_git_file_borrows_no_trust(
    codex: Path, version: str, mode: str, lab: Lab, form: str
) -> None:
    """Seen before: 0.98.0 to 0.147.0 started the server, read-only too."""
    (lab.project / "file").touch()
    commit(lab)
    trust(lab)
    tree, hostile = lab.root / "tree", lab.root / "hostile"
    link_tree(lab, tree)
    plant(hostile, stub(lab, "hostile"))
    plant(hostile / "sub", stub(lab, "below"))
    if form == "link":
        (hostile / ".git").symlink_to(tree / ".git")
    else:
        name = "invented" if form == "invented" else "tree"
        (hostile / ".git").write_text(f"gitdir: {lab.project}/.git/worktrees/{name}\n")
    before = (lab.home / "config.toml").read_bytes()
    lab.script("x", LATE)
    async with connect(mode, codex, lab) as client:
        for sandbox in ("read-only", "workspace-write"):
            await call(
                client,
                "codex_run",
                prompt="x",
                sandbox=sandbox,
                cwd=str(hostile / "sub"),
                skip_git_repo_check=True,
            )
            assert started(lab) == set()
    assert (lab.home / "config.toml").read_bytes() == before


@pytest.mark.parametrize("file", ["config.toml", "rules/x.rules", "hooks.json"])
async def test_a_run_cannot_arm_the_next_one(
    codex: Path, version: str, mode: str, lab: Lab, file: str
) -> None:
    """Seen before: 0.98.0 to 0.171.0 ran what the first run had written, outside the sandbox."""
    (lab.project / "sub").mkdir()
    plant(lab.project, "")
    (lab.project / "sub" / "README").touch()
    commit(lab)
    trust(lab)
    armed = lab.project / "sub" / ".codex" / file
    outside = lab.root / "started" / "outside"
    texts = {
        "config.toml": stub(lab, "armed"),
        "rules/x.rules": 'prefix_rule(pattern=["touch"], decision="allow")',
        "hooks.json": json.dumps(
            {"hooks": {"SessionStart": [{"hooks": [{"type": "command", "command": "true"}]}]}}
        ),
    }
    (lab.root / "payload").write_text(texts[file])
    arm = f"mkdir -p {armed.parent} && cp {lab.root}/payload {armed}"
    lab.script("arm", do(Shell(arm)), say("ok"))
    lab.script("strike", do(Shell(f"touch {outside}")), LATE)
    async with connect(mode, codex, lab) as client:
        first = await call(client, "codex_run", prompt="arm", sandbox="workspace-write")
        assert first["status"] == "completed", first
        assert armed.exists(), first
        second = await call(client, "codex_run", prompt="strike", cwd=str(armed.parents[0]))
        sub, thread = str(lab.project / "sub"), first["thread_id"]
        third = await call(client, "codex_resume", prompt="strike", thread_id=thread, cwd=sub)
        fourth = await call(client, "codex_run", prompt="strike", cwd=str(lab.project))
    assert any(str(armed) in w and "look at them" in w for w in first["warnings"]), first
    for refused in (second, third):
        error: Json = refused["error"]
        assert error["kind"] == "not_allowed", refused
        assert file in error["message"]
        assert "--project-config" in error["hint"]
    assert fourth["status"] == "completed", fourth  # The folder above loads nothing of it.
    assert started(lab) == set()


async def test_what_a_person_has_committed_or_allowed_is_loaded(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    plant(lab.project, stub(lab, "mine"))
    commit(lab)
    trust(lab)
    lab.script("x", LATE)
    loads = number(version) >= (0, 98, 0)
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt="x")
        assert result["status"] == "completed", result
        assert started(lab) == ({"mine"} if loads else set())
        extend(lab.project / ".codex" / "config.toml", "\n# changed\n")
        (lab.project / ".codex" / "skills").mkdir()
        (lab.project / ".codex" / "skills" / "SKILL.md").write_text("text only")
        changed = await call(client, "codex_run", prompt="x")
        assert changed["error"]["kind"] == "not_allowed"
        assert "SKILL" not in changed["error"]["message"]
    async with connect(mode, codex, lab, "--project-config", "any") as client:
        result = await call(client, "codex_run", prompt="x")
        assert result["status"] == "completed", result
        assert started(lab) == ({"mine"} if loads else set())
