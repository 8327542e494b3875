"""The real Codex at another place: a dirty project goes there, what comes of it comes home."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mcp_server_codex.cli.scripted_model import Patch, Reply, Shell, do, model_name, say
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
    far_home, other_home = lab.root / "far-home", lab.root / "other-home"
    for home in (far_home, other_home):
        lab.model.write_config(home, model=model_name(number(version)))
    patch = Patch("*** Add File: patched.txt\n+one")
    prompt = lab.script("work", do(patch), do(Shell("cat mine.txt >> a.txt")), say("done"))
    onward = lab.script("more", do(Shell("cp patched.txt second.txt")), say("done again"))
    command = [server_program(), "worker", "--codex-bin", str(codex)]
    command += ["--state-dir", str(lab.root / "far-state")]
    env = environment(lab) | {"CODEX_HOME": str(far_home)}
    third = ["env", f"CODEX_HOME={other_home}", *command[:-1], str(lab.root / "other-state")]
    other = f"[other]\nworker = '''{shlex.join(third)}'''\n"
    places = lab.root / "places.toml"
    options = ("--places", str(places), "--root", str(lab.project))
    with ExitStack() as stack:
        if road == "ssh":
            config = stack.enter_context(real_sshd(lab.root))
            path = path_with_ssh(lab.root, config)
            whole = ["env", "-i", *(f"{name}={value}" for name, value in env.items()), *command]
            box = f"[box]\nssh = 'box'\nworker = '''{shlex.join(whole)}'''\n"
        else:
            far = stack.enter_context(far_machine(command, env))
            path = env["PATH"]
            box = f"[box]\nargv = {json.dumps([*far.argv])}\nworker = 'x'\n"
        places.write_text(box + other)
        async with connect(mode, codex, lab, *options, env={"PATH": path}) as client:
            first = await call(
                client, "codex_run", prompt=prompt, sandbox="workspace-write", place="box"
            )
            second = await call(client, "codex_resume", prompt=onward, thread_id=first["thread_id"])
            assert not (lab.project / "patched.txt").exists()
            applied = await apply(client, second["run_id"], "apply")
            listed: Any = await client.call_tool("codex_sessions", {"cwd": str(lab.project)})
            usage: Any = await client.call_tool("codex_usage", {"group_by": "cwd"})
            hello = {
                "here": lab.script("at home", say("hi")),
                "other": lab.script("away", say("hi")),
            }
            for place, words in hello.items():
                await call(client, "codex_run", prompt=words, place=place)
            by_place: Any = await client.call_tool("codex_usage", {"group_by": "place"})
    assert first["status"] == second["status"] == "completed", (first["error"], second["error"])
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
    # The usage of each place is exact: it is what the model was asked for.
    (group,) = usage.structured_content["groups"]
    of_box = tokens(lab, prompt, onward)
    assert (group["key"], group["total_tokens"]) == (str(lab.project), of_box)
    assert first["usage"]["total_tokens"] + second["usage"]["total_tokens"] == of_box
    groups = by_place.structured_content["groups"]
    expected = {place: tokens(lab, words) for place, words in hello.items()} | {"box": of_box}
    assert {each["key"]: each["total_tokens"] for each in groups} == expected


def tokens(lab: Lab, *prompts: str) -> int:
    """Return the tokens of all responses of the scripted model to *prompts*."""
    replies = [s.step for s in lab.model.requests if s.prompt in prompts]
    used = [each.usage for each in replies if isinstance(each, Reply)]
    assert len(used) == len(replies) > 0
    return sum(each.input_tokens + each.output_tokens for each in used)
