"""Attacks by one run on the folder of another, and of a run on its own."""

from __future__ import annotations

from pathlib import Path

from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import number
from support.lab import Lab, call, connect, until

WAIT = "touch started; while [ ! -e stop ]; do sleep 0.05; done"


async def test_a_run_inside_the_folder_of_another_waits_for_its_end(
    codex: Path, mode: str, lab: Lab
) -> None:
    sub = lab.project / "sub"
    sub.mkdir()
    outer = lab.script("outer", do(Shell(WAIT)), say("done"))
    inner = lab.script("inner", do(Shell("echo x > made")), say("done"))
    later = lab.script("later", do(Shell("echo x > made")), say("done"))
    write = {"sandbox": "workspace-write"}
    async with connect(mode, codex, lab, "--root", str(lab.project)) as client:
        first = await call(client, "codex_run", prompt=outer, wait_s=0, **write)
        await until((lab.project / "started").exists)
        refused = await call(client, "codex_run", prompt=inner, cwd=str(sub), **write)
        also = await call(client, "codex_run", prompt=inner, add_dirs=[str(sub)], **write)
        assert not (sub / "made").exists()
        reading = await call(client, "codex_run", prompt=inner, cwd=str(sub))
        (lab.project / "stop").touch()
        await client.call_tool("codex_wait", {"run_ids": [first["run_id"]]})
        again = await call(client, "codex_run", prompt=later, cwd=str(sub), **write)
    assert refused["error"]["kind"] == also["error"]["kind"] == "not_allowed"
    assert refused["error"]["retryable"]
    assert first["run_id"] in refused["error"]["message"]
    assert (reading["status"], again["status"]) == ("completed", "completed")
    assert (sub / "made").exists()


async def test_a_run_fails_whose_folder_was_replaced(codex: Path, mode: str, lab: Lab) -> None:
    sub, outside = lab.project / "sub", lab.root / "outside"
    sub.mkdir()
    outside.mkdir()
    prompt = lab.script("inner", do(Shell(WAIT)), say("done"))
    async with connect(mode, codex, lab, "--root", str(lab.project)) as client:
        run = await call(
            client,
            "codex_run",
            prompt=prompt,
            cwd=str(sub),
            sandbox="workspace-write",
            wait_s=0,
        )
        await until((sub / "started").exists)
        was = sub.rename(lab.project / "was")
        sub.symlink_to(outside)
        (was / "stop").touch()
        answer = await client.call_tool("codex_wait", {"run_ids": [run["run_id"]]})
        (waited,) = answer.structured_content["runs"]
    assert (waited["status"], waited["error"]["kind"]) == ("failed", "not_allowed")
    assert str(sub) in waited["error"]["message"]


async def test_a_command_cannot_turn_its_own_folder_into_a_way_out(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    sub, outside = lab.project / "sub", lab.root / "outside"
    sub.mkdir()
    outside.mkdir()
    swap = Shell(f"mv sub was; ln -s {outside} sub; true")
    prompt = lab.script("swap", do(swap), do(Shell("echo x > sub/evil; true")), say("done"))
    async with connect(mode, codex, lab) as client:
        await call(
            client, "codex_run", prompt=prompt, sandbox="workspace-write", add_dirs=[str(sub)]
        )
        if (lab.project / "was").exists():  # A mount, as from 0.120 on, cannot be renamed.
            (lab.project / "sub").unlink()
            (lab.project / "was").rename(sub)
        around = await call(
            client,
            "codex_run",
            prompt=lab.script("hello", say("done")),
            sandbox="workspace-write",
            cwd=str(sub),
            add_dirs=[str(lab.project)],
        )
    assert list(outside.iterdir()) == []
    assert (around["status"] == "completed") is (number(version) >= (0, 120, 0)), around
