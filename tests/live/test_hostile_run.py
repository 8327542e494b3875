"""Attacks by the model inside Codex's sandbox on this server's own files, with the real Codex."""

from __future__ import annotations

import os
import signal
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.lab import PNG, Json, Lab, by_app_server, call, connect, marked, marked_child, until

SCHEMA: Json = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture
def documents(lab: Lab) -> Path:
    """A folder of the person, which no sandbox lets a command write to."""
    folder = lab.root / "documents"
    folder.mkdir()
    for name in ("thesis.md", "output_schema.json", "0.png"):
        (folder / name).write_text("precious")
    return folder


def temp(lab: Lab) -> dict[str, str]:
    """Return the variables of a server with its own temp folder, which the sandbox may write."""
    folder = lab.root / "tmp"
    folder.mkdir(exist_ok=True)
    return {"TMPDIR": str(folder)}


def contents(folder: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in folder.iterdir()}


def swap(lab: Lab, documents: Path) -> str:
    """Return a command that swaps each folder with files of a turn for a link."""
    return (
        f"for d in {lab.root}/tmp/mcp-server-codex-* {lab.state}/scratch/*; do"
        f" test -d $d || continue; echo $d >> found;"
        f" mv $d $d.moved; ln -s {documents} $d; done; true"
    )


@pytest.mark.parametrize("end", ["by itself", "server killed", "no state folder"])
async def test_a_command_that_swaps_the_files_of_its_turn_for_a_link_has_nothing_deleted(
    codex: Path, mode: str, lab: Lab, documents: Path, end: str
) -> None:
    tag = str(uuid.uuid4())
    env = temp(lab) | {"FAR_END": tag}
    (lab.project / "a,b.png").write_bytes(PNG)
    wait = "; touch swapped; sleep 600" if end == "server killed" else ""
    prompt = lab.script("swap", do(Shell(swap(lab, documents) + wait)), say('{"a": 1}'))
    options: tuple[str, ...] = ()
    if end == "no state folder":
        (lab.root / "file").touch()
        (lab.root / "run").mkdir()
        env["XDG_RUNTIME_DIR"] = str(lab.root / "run")
        options = ("--state-dir", str(lab.root / "file"))
    arguments: Json = {"prompt": prompt, "sandbox": "workspace-write", "output_schema": SCHEMA}
    async with connect(mode, codex, lab, *options, env=env) as client:
        if end == "server killed":
            run = await call(client, "codex_run", **arguments, images=["a,b.png"], wait_s=0)
            await until((lab.project / "swapped").exists)
            server = marked_child(tag)
            os.kill(server, signal.SIGKILL)
            del run
        else:
            result = await call(client, "codex_run", **arguments, images=["a,b.png"])
            assert result["structured_output"] == {"a": 1}, result
    await until(lambda: not marked(tag))
    assert contents(documents) == dict.fromkeys(contents(documents), "precious")
    assert sorted(contents(documents)) == ["0.png", "output_schema.json", "thesis.md"]
    if end != "no state folder":
        assert list((lab.state / "scratch").iterdir()) == []


def holds_locks(lab: Lab) -> bool:
    commands = map(cmdline, Path("/proc").glob("[0-9]*"))
    return any(each.startswith(b"flock\0") and str(lab.root).encode() in each for each in commands)


def cmdline(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""


async def test_one_run_cannot_rewrite_the_schema_of_another(
    codex: Path, mode: str, lab: Lab
) -> None:
    rewrite = (
        f"n=0; while test $n -lt 400; do for f in {lab.root}/tmp/mcp-server-codex-*/*.json"
        f" {lab.state}/scratch/*/*.json; do test -f $f && touch seen &&"
        " { echo '{}' > $f; } 2>/dev/null && touch rewritten; done;"
        " test -f seen && exit 0; n=$((n+1)); sleep 0.1; done; true"
    )
    attack = lab.script("attack", do(Shell(rewrite, yield_ms=60_000)), say("done"))
    victim = lab.script("victim", replace(say('{"a": 1}'), delay_s=3.0))
    async with connect(mode, codex, lab, env=temp(lab)) as client:
        attacker = await call(
            client, "codex_run", prompt=attack, sandbox="workspace-write", wait_s=0
        )
        result: Json = {}
        for _ in range(2):
            result = await call(client, "codex_run", prompt=victim, output_schema=SCHEMA)
            assert result["structured_output"] == {"a": 1}
        ids = [attacker["run_id"]]
        await client.call_tool("codex_wait", {"run_ids": ids, "wait_s": 100})
    # An app-server gets the schema in its input: there is no file to rewrite.
    assert (lab.project / "seen").exists() is not by_app_server(result)
    assert not (lab.project / "rewritten").exists()


async def test_locks_taken_from_a_read_only_sandbox_stop_no_server(
    codex: Path, mode: str, lab: Lab
) -> None:
    hold = (
        f"for f in {lab.state}/*.jsonl {lab.state}/*.lock {lab.state}/*/*.lock"
        f" {lab.home}/mcp-server-codex/*.lock; do test -f $f && flock -x -n $f sleep 600 & done;"
        " sleep 600"
    )
    attack = lab.script("hold", do(Shell(hold, yield_ms=60_000)), say("done"))
    lab.script("x", say("ok"))
    async with connect(mode, codex, lab) as client:
        await client.call_tool("codex_usage", {})
        attacker = await call(client, "codex_run", prompt=attack, wait_s=0)
        await until(lambda: holds_locks(lab))
        async with connect(mode, codex, lab) as other:
            with anyio.fail_after(100):
                for each in (client, other):
                    assert (await call(each, "codex_run", prompt="x"))["status"] == "completed"
                    found = cast("Any", await each.call_tool("codex_sessions", {}))
                    assert "temporary index" not in str(found.structured_content)
        with anyio.fail_after(100):
            stopped = await client.call_tool("codex_stop", {"run_id": attacker["run_id"]})
    assert stopped.structured_content["run"]["status"] == "cancelled"
