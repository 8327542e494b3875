"""The engines behind a server: which one runs a turn, and what is the same by either."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import cast

import pytest
from mcp import Client

from codex_tools.engines.app_server_preparation import OLDEST
from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import VERSIONS, number, real_codex
from support.engine_turns import untouched
from support.lab import Json, Lab, app_servers, call, connect, marked, open_lab, until


@pytest.fixture(params=[v for v in VERSIONS if number(v) >= OLDEST], scope="module")
def version(request: pytest.FixtureRequest) -> str:
    """A Codex version that the app-server engine runs."""
    return str(request.param)


async def test_auto_runs_turns_by_the_app_server_and_leaves_nothing(
    codex: Path, mode: str, lab: Lab
) -> None:
    before = untouched(lab.home)
    first = lab.script("make", do(Shell("echo made > made.txt")), say("Made."))
    second = lab.script("look", do(Shell("cat made.txt")), say("Looked."))
    mark = f"CODEX_HOME={lab.home}"
    async with connect(mode, codex, lab, "--engine", "auto") as client:
        made = await call(client, "codex_run", prompt=first, sandbox="workspace-write")
        await until(lambda: app_servers(mark))  # The spare.
        looked = await call(client, "codex_resume", prompt=second, thread_id=made["thread_id"])
        found = await sessions(client, thread_id=made["thread_id"])
    assert [(r["engine"], r["status"], r["warnings"]) for r in (made, looked)] == [
        ("app-server", "completed", [])
    ] * 2
    assert (made["sandbox"], looked["sandbox"]) == ("workspace-write", "workspace-write")
    assert [Path(each["path"]).name for each in made["files_changed"]] == ["made.txt"]
    assert [each["command"] for each in looked["commands"]] == ["cat made.txt"]
    assert found["session"]["source"] == "mcp-server-codex"
    await until(lambda: not marked(mark))
    assert untouched(lab.home) == before
    async with connect(mode, codex, lab, "--engine", "exec") as client:
        again = await call(client, "codex_resume", prompt=second, thread_id=made["thread_id"])
        listed = await sessions(client, source="mcp-server-codex")
    assert (again["engine"], again["status"]) == ("exec", "completed")
    assert [each["thread_id"] for each in listed["sessions"]] == [made["thread_id"]]


LARGE: Json = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 10**30}},
    "required": ["n"],
}
ONLY_EXEC: dict[str, tuple[Json, str]] = {
    "profile": ({"profile": "careful"}, "profiles"),
    "large integer": ({"output_schema": LARGE}, "64 bits"),
    "rules": ({}, "rules about commands"),
    "forced login": ({}, "forced_login_method"),
}


async def test_what_exec_alone_can_do_is_run_by_it_without_a_warning_or_refused(
    codex: Path, mode: str, lab: Lab
) -> None:
    (lab.home / "careful.config.toml").write_text('model_reasoning_effort = "low"\n')
    config, rules = lab.home / "config.toml", lab.home / "rules" / "own.rules"
    rules.parent.mkdir()
    plain = config.read_text()
    prompt = lab.script("hello", say('{"n": 7}'))

    async def run(engine: str, **env: str) -> dict[str, Json]:
        results: dict[str, Json] = {}
        async with connect(mode, codex, lab, "--engine", engine, env=env) as client:
            for name, (arguments, _) in ONLY_EXEC.items():
                if name == "rules":
                    rules.write_text('prefix_rule(pattern=["ls"], decision="allow")\n')
                if name == "forced login":
                    config.write_text(f'forced_login_method = "api"\n{plain}')
                results[name] = await call(client, "codex_run", prompt=prompt, **arguments)
                rules.unlink(missing_ok=True)
                config.write_text(plain)
        return results

    by_auto = await run("auto")
    ends = {name: (each["engine"], each["status"]) for name, each in by_auto.items()}
    assert ends == dict.fromkeys(ONLY_EXEC, ("exec", "completed"))
    assert {str(each["warnings"]) for each in by_auto.values()} == {"[]"}
    assert by_auto["large integer"]["structured_output"] == {"n": 7}
    lab.model.requests.clear()
    for name, each in (await run("app-server")).items():
        assert each["error"]["kind"] == "codex_unsupported", name
        assert ONLY_EXEC[name][1] in each["error"]["message"]
        assert "--engine auto" in each["text"]
    assert lab.model.requests == []


async def test_a_login_that_only_exec_reads_and_an_old_codex_are_left_to_it(mode: str) -> None:
    for version, env in (("0.163.0", {"CODEX_ACCESS_TOKEN": "planted"}), ("0.60.1", {})):
        with open_lab(version) as lab:
            codex, token = real_codex(version), lab.script("hello", say("Hello."))
            async with connect(mode, codex, lab, "--engine", "app-server", env=env) as client:
                refused = await call(client, "codex_run", prompt=token)
            assert refused["error"]["kind"] == "codex_unsupported"
            assert "--engine auto" in refused["text"]
            assert lab.model.requests == []
            async with connect(mode, codex, lab, "--engine", "auto", env=env) as client:
                result = await call(client, "codex_run", prompt=token)
            assert (result["engine"], result["warnings"]) == ("exec", []), result


@pytest.mark.parametrize("fault", ["exit 3", "exec sleep 600", "echo nonsense; exec cat"])
async def test_exec_runs_the_turn_with_a_warning_if_the_app_server_does_not_start(
    codex: Path, lab: Lab, fault: str
) -> None:
    broken = lab.root / "broken"
    broken.mkdir()
    program = broken / "codex"
    real = shlex.quote(str(codex))
    program.write_text(
        f'#!/bin/sh\ncase " $* " in *" app-server "*) {fault};; esac\nexec {real} "$@"\n'
    )
    program.chmod(0o755)
    prompt = lab.script("hello", say("Hello."))
    async with connect("auto", program, lab, "--engine", "auto") as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert (result["engine"], result["final_response"]) == ("exec", "Hello.")
    assert [each for each in result["warnings"] if "The engine exec ran this turn" in each]
    assert len(lab.model.requests) == 1


async def sessions(client: Client, **arguments: str) -> Json:
    """Call codex_sessions and return its structured result."""
    return cast("Json", (await client.call_tool("codex_sessions", arguments)).structured_content)
