"""The real Codex with this server among its own MCP servers: agents must not start agents for ever.

The scripted model would: each turn of it calls codex_run. What counts is who
asked the model: a refused run never does, nor has it a rollout.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from mcp_server_codex.cli.scripted_model import Call, Reply, Shell, do, model_name, say
from support.codex_versions import number
from support.lab import Json, Lab, call, connect, environment, marked, server_program

FULL = "danger-full-access"
"""In a narrower one, Codex since 0.120 wants approval for tools that are not read-only."""


@pytest.fixture
def mark() -> Generator[str]:
    """A tag for the environment of all that a test starts; nothing may carry it afterwards."""
    tag = f"recursion-{uuid.uuid4()}"
    yield tag
    assert marked(tag) == []


def add_server(
    lab: Lab, codex: Path, mark: str, *options: str, home: Path, name: str, of: Path | None = None
) -> None:
    """Put this server, as *name*, among the MCP servers of the Codex whose folder is *home*.

    That server gives the Codex that it runs the folder *of*, by default the same.
    """
    of = of or home
    env = environment(lab) | {"CODEX_HOME": str(of), "FAR_END": mark}
    args = ["--codex-bin", str(codex), "--state-dir", str(of / "state"), "--max-sandbox", FULL]
    lines = [
        f"[mcp_servers.{name}]",
        f"command = {json.dumps(server_program())}",
        f"args = {json.dumps([*args, *options])}",
        "startup_timeout_sec = 60",
        "tool_timeout_sec = 120",
        "required = true",  # Or the model may be asked before the server is there.
        f"[mcp_servers.{name}.env]",
        *(f"{key} = {json.dumps(value)}" for key, value in env.items()),
    ]
    with (home / "config.toml").open("a") as file:
        file.write("\n" + "\n".join(lines) + "\n")


def add_home(lab: Lab, version: str, folder: Path) -> Path:
    """Make another Codex folder with the same model."""
    lab.model.write_config(folder, model=model_name(number(version)))
    return folder


def use(version: str, server: str, tool: str, prompt: str, **arguments: str) -> Reply:
    """Return a reply that calls *tool* of *server*, as Codex of *version* names it."""
    arguments = {"prompt": prompt, "sandbox": FULL, **arguments}
    if number(version) < (0, 147, 0):
        return do(Call(f"mcp__{server}__{tool}", arguments))
    return do(Call(tool, arguments, f"mcp__{server}"))


def outputs(lab: Lab, prompt: str) -> list[str]:
    """Return what the calls in the turn of *prompt* gave, as its model was told at last."""
    asked = [seen.body["input"] for seen in lab.model.requests if seen.prompt == prompt]
    items: list[Json] = asked[-1]
    return [str(i["output"]) for i in items if i.get("type", "").endswith("_call_output")]


def turns(lab: Lab) -> list[str]:
    """Return the prompts that a model was asked with, in the order of the first requests."""
    return list(dict.fromkeys(seen.prompt for seen in lab.model.requests))


def rollouts(*homes: Path) -> int:
    return sum(len(list((home / "sessions").rglob("rollout-*.jsonl"))) for home in homes)


async def test_a_run_can_start_and_resume_no_further_one(
    codex: Path, version: str, mode: str, lab: Lab, mark: str
) -> None:
    add_server(lab, codex, mark, home=lab.home, name="codex")
    lab.script("inner", say("I must not be asked."))
    outer = lab.script(
        "outer",
        use(version, "codex", "codex_run", "inner"),
        use(version, "codex", "codex_resume", "inner", thread_id=str(uuid.uuid4())),
        say("I do it myself."),
    )
    async with connect(mode, codex, lab, "--max-sandbox", FULL, env={"FAR_END": mark}) as client:
        result = await call(client, "codex_run", prompt=outer, sandbox=FULL)
    assert result["status"] == "completed"
    assert result["final_response"] == "I do it myself."
    told = outputs(lab, outer)
    assert len(told) == 2
    for each in told:
        assert "too_deep" in each
        assert "--max-depth" in each
    assert turns(lab) == ["outer"]
    assert rollouts(lab.home) == 1


async def test_a_greater_depth_ends_one_run_further_in(
    codex: Path, version: str, lab: Lab, mark: str
) -> None:
    add_server(lab, codex, mark, "--max-depth", "2", home=lab.home, name="codex")
    outer = lab.script("outer", use(version, "codex", "codex_run", "inner"), say("outer done"))
    inner = lab.script("inner", use(version, "codex", "codex_run", "innermost"), say("inner done"))
    lab.script("innermost", say("I must not be asked."))
    async with connect(
        "auto", codex, lab, "--max-sandbox", FULL, "--max-depth", "2", env={"FAR_END": mark}
    ) as client:
        result = await call(client, "codex_run", prompt=outer, sandbox=FULL)
    assert result["final_response"] == "outer done"
    assert "inner done" in outputs(lab, outer)[0]
    assert "too_deep" in outputs(lab, inner)[0]
    assert turns(lab) == ["outer", "inner"]
    assert rollouts(lab.home) == 2


async def test_servers_of_two_names_and_two_homes_make_no_endless_ring(
    codex: Path, version: str, lab: Lab, mark: str
) -> None:
    other = add_home(lab, version, lab.root / "other-home")
    add_server(lab, codex, mark, "--max-depth", "2", home=lab.home, name="left", of=other)
    add_server(lab, codex, mark, "--max-depth", "2", home=other, name="right", of=lab.home)
    outer = lab.script("outer", use(version, "left", "codex_run", "inner"), say("outer done"))
    inner = lab.script("inner", use(version, "right", "codex_run", "outer"), say("inner done"))
    async with connect("auto", codex, lab, "--max-sandbox", FULL, env={"FAR_END": mark}) as client:
        result = await call(client, "codex_run", prompt=outer, sandbox=FULL)
    assert result["final_response"] == "outer done"
    assert "inner done" in outputs(lab, outer)[0]
    assert "too_deep" in outputs(lab, inner)[0]
    assert (rollouts(lab.home), rollouts(other)) == (1, 1)


WAYS = {
    "plainly": "CODEX_HOME={home} {codex}; echo ended",
    "in place of the shell, with a lower number": (
        "CODEX_RUN_DEPTH=0 CODEX_HOME={home} exec {codex}"
    ),
    "as an orphan, without the variable": (
        "(env -u CODEX_RUN_DEPTH CODEX_HOME={home} setsid nohup {codex} &)"
    ),
}


def shell(version: str, command: str) -> Reply:
    """Return a reply that runs *command* for as long as Codex of *version* lets it."""
    if number(version) < (0, 98, 0):
        return do(Call("shell_command", {"command": command, "timeout_ms": 90_000}))
    return do(Shell(command))  # Looked at for 30 s; it goes on after them.


@pytest.mark.parametrize("sandbox", ["workspace-write", FULL])
@pytest.mark.parametrize("way", WAYS)
async def test_a_codex_that_a_command_starts_is_inside_the_run_too(
    codex: Path, version: str, lab: Lab, mark: str, sandbox: str, way: str
) -> None:
    home = add_home(lab, version, lab.project / "nested-home")
    add_server(lab, codex, mark, home=home, name="codex")
    with (lab.home / "config.toml").open("a") as file:
        file.write("\n[sandbox_workspace_write]\nnetwork_access = true\n")
    # Not sandboxed again by itself, so that it may call tools; within the outer sandbox still.
    script = home / "nested"
    script.write_text(
        f"#!/bin/sh\n{codex} exec --json -s {FULL} nested </dev/null >{home}/events 2>&1\n"
        f"touch {home}/ended\n"
    )
    script.chmod(0o755)
    lab.script("inner", say("I must not be asked."))
    nested = lab.script("nested", use(version, "codex", "codex_run", "inner"), say("nested done"))
    start = WAYS[way].format(home=home, codex=script)
    wait = f"while [ ! -e {home}/ended ]; do sleep 0.1; done"
    outer = lab.script(
        "outer",
        # In one command: an orphan does not outlive the sandbox of newer versions.
        shell(version, f"{start}; {wait}"),
        shell(version, wait),
        shell(version, wait),
        say("outer done"),
    )
    async with connect("auto", codex, lab, "--max-sandbox", FULL, env={"FAR_END": mark}) as client:
        result = await call(client, "codex_run", prompt=outer, sandbox=sandbox)
    assert result["final_response"] == "outer done"
    assert "nested" in turns(lab), outputs(lab, outer)
    assert "too_deep" in outputs(lab, nested)[0]
    assert turns(lab) == ["outer", "nested"]
    assert (rollouts(lab.home), rollouts(home)) == (1, 1)
