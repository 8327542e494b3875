"""The real Codex at another place: a dirty project goes there, what comes of it comes home."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mcp_server_codex.cli.scripted_model import Patch, Shell, do, model_name, say
from support.codex_versions import number
from support.far_machine import far_machine
from support.isolated import apply
from support.lab import Lab, call, connect, environment, server_program
from support.sshd import path_with_ssh, real_sshd
from support.work_trees import run_git


@pytest.mark.parametrize("road", ["command", "ssh"])
async def test_work_at_a_place_comes_home_and_is_continued_there(
    codex: Path, version: str, mode: str, lab: Lab, road: str
) -> None:
    (lab.project / "a.txt").write_text("one\ntwo\n")
    run_git(lab.project, "add", "-A")
    run_git(lab.project, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "first")
    (lab.project / "mine.txt").write_text("not committed\n")
    far_home = lab.root / "far-home"
    lab.model.write_config(far_home, model=model_name(number(version)))
    patch = Patch("*** Add File: patched.txt\n+one")
    prompt = lab.script("work", do(patch), do(Shell("cat mine.txt >> a.txt")), say("done"))
    onward = lab.script("more", do(Shell("cp patched.txt second.txt")), say("done again"))
    command = [server_program(), "worker", "--codex-bin", str(codex)]
    command += ["--state-dir", str(lab.root / "far-state")]
    env = environment(lab) | {"CODEX_HOME": str(far_home)}
    places = lab.root / "places.toml"
    options = ("--places", str(places), "--root", str(lab.project))
    with ExitStack() as stack:
        if road == "ssh":
            config = stack.enter_context(real_sshd(lab.root))
            path = path_with_ssh(lab.root, config)
            whole = ["env", "-i", *(f"{name}={value}" for name, value in env.items()), *command]
            places.write_text(f"[box]\nssh = 'box'\nworker = '''{shlex.join(whole)}'''\n")
        else:
            far = stack.enter_context(far_machine(command, env))
            path = env["PATH"]
            places.write_text(f"[box]\nargv = {json.dumps([*far.argv])}\nworker = 'x'\n")
        async with connect(mode, codex, lab, *options, env={"PATH": path}) as client:
            first = await call(
                client, "codex_run", prompt=prompt, sandbox="workspace-write", place="box"
            )
            second = await call(client, "codex_resume", prompt=onward, thread_id=first["thread_id"])
            assert not (lab.project / "patched.txt").exists()
            applied = await apply(client, second["run_id"], "apply")
            listed: Any = await client.call_tool("codex_sessions", {"cwd": str(lab.project)})
            usage: Any = await client.call_tool("codex_usage", {"group_by": "cwd"})
            local = await call(client, "codex_run", prompt=lab.script("here", say("here")))
            both: Any = await client.call_tool("codex_usage", {"group_by": "place"})
    assert first["status"] == second["status"] == "completed", (first, second)
    assert (first["place"], second["place"]) == ("box", "box")
    assert first["thread_id"] == second["thread_id"]
    assert first["copy"] == second["copy"]
    assert {each["path"] for each in first["files_changed"]} == {"a.txt", "patched.txt"}
    assert {each["path"] for each in second["files_changed"]} == {"second.txt"}
    assert first["sandbox"] == "workspace-write"
    assert applied["applied"], applied
    assert (lab.project / "a.txt").read_text() == "one\ntwo\nnot committed\n"
    assert (lab.project / "second.txt").read_text() == "one\n"
    (thread,) = listed.structured_content["sessions"]
    assert (thread["place"], thread["cwd"]) == ("box", str(lab.project))
    assert thread["turn_count"] == 2
    # Nothing of Codex was started here, and the mirror is what is there.
    assert len(lab.rollouts()) == 1  # That of the run here.
    there = sorted((far_home / "sessions").rglob("rollout-*.jsonl"))
    here = sorted((lab.state / "places" / "box" / "sessions").rglob("rollout-*.jsonl"))
    assert [each.read_bytes() for each in here] == [each.read_bytes() for each in there]
    # The usage of both runs is exact: it is what the model was asked for.
    (group,) = usage.structured_content["groups"]
    assert group["key"] == str(lab.project)
    total = first["usage"]["total_tokens"] + second["usage"]["total_tokens"]
    assert group["total_tokens"] == total
    of_place = {each["key"]: each["total_tokens"] for each in both.structured_content["groups"]}
    assert of_place == {"box": total, "here": local["usage"]["total_tokens"]}
