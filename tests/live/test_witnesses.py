"""Stdout and the rollout are two witnesses of a turn, and a result says what happened.

Around the real Codex, a wrapper loses output, as a broken pipe or a crash does.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import anyio
import pytest

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.scripted_model import Reply, Shell, Usage, do, say
from support.codex_versions import number
from support.fake_codex import wrapped_codex
from support.lab import BY_ANY, Lab, call, connect, until

USED = Usage(5000, 100, 70, 30)
LOSE_THE_END = """
for line in lines():
    if ended(line):
        sys.exit(finish())
    put(line)
"""
STOP_PRINTING = """
for line in lines():
    if b'"thread.started"' in line or line.startswith(b'{"id":'):  # Or an answer to a request.
        put(line)
    if ended(line):
        break
time.sleep(600)
"""
LOSE_THE_ANSWER = """
for line in lines():
    if ended(line) or not (b'"agent_message"' in line or b'agentMessage' in line):
        put(line)
sys.exit(codex.wait())
"""
SIGNAL_AFTER_THE_END = """
for line in lines():
    if ended(line):
        finish()
        os.kill(os.getpid(), 9)
    put(line)
"""


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (LOSE_THE_END, ()),
        (STOP_PRINTING, ("--stall-s", "4")),
        (STOP_PRINTING, ("--timeout-s", "6")),
        (LOSE_THE_ANSWER, ()),
        (SIGNAL_AFTER_THE_END, ()),
    ],
    ids=["last event lost", "stream stops", "timed out", "answer lost", "killed at its end"],
)
async def test_a_turn_that_is_complete_by_its_rollout_is_completed(
    body: str, options: tuple[str, ...], codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("do it", Reply((Shell("true"),), USED), say("It is done.", USED))
    program = wrapped_codex(lab.root / "wrapper", codex, body)
    async with connect(mode, program, lab, *options) as client:
        result = await call(client, "codex_run", prompt=prompt)
        assert (result["status"], result["final_response"]) == ("completed", "It is done."), result
        assert result["error"] is None
        assert (result["usage"]["input_tokens"], result["usage"]["output_tokens"]) == (10_000, 140)
        assert any("rollout says that the turn was completed" in w for w in result["warnings"])
        # The answer is read before an output schema is checked, and nothing is tried again.
        assert result["attempts"] == 1
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        prompt = lab.script("as data", say('{"n": 7}', USED))
        data = await call(client, "codex_run", prompt=prompt, output_schema=schema)
        assert (data["status"], data["structured_output"]) == ("completed", {"n": 7}), data
        again = await call(
            client, "codex_resume", prompt=prompt, thread_id=data["thread_id"], output_schema=schema
        )
    assert (again["status"], again["structured_output"]) == ("completed", {"n": 7}), again
    assert again["usage"]["input_tokens"] == 5000  # Of this turn, not of the thread.


async def test_a_turn_that_was_at_work_is_not_completed_by_an_earlier_one(
    codex: Path, mode: str, lab: Lab
) -> None:
    first = lab.script("first", say("The first answer.", USED))
    second = lab.script("second", say("Never.", delay_s=60))
    async with connect(mode, codex, lab, "--stall-s", "5") as client:
        done = await call(client, "codex_run", prompt=first)
        late = await call(client, "codex_resume", prompt=second, thread_id=done["thread_id"])
    assert (late["status"], late["error"]["kind"]) == ("timed_out", "stalled")
    assert late["final_response"] is None
    assert late["usage"] is None  # No request has ended.


@pytest.mark.parametrize("end", ["codex_stop", "timeout", "stall"])
async def test_a_run_that_was_ended_says_what_it_used(
    end: str, codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("work", Reply((Shell("echo hi"),), USED), say("late", delay_s=120))
    options = {"timeout": ("--timeout-s", "10"), "stall": ("--stall-s", "6")}.get(end, ())
    async with connect(mode, codex, lab, *options) as client:
        run = await call(client, "codex_run", prompt=prompt, wait_s=0, model="gpt-5.4")
        if end == "codex_stop":
            await until(lambda: len(lab.model.requests) == 2)
            stopped = await client.call_tool("codex_stop", {"run_id": run["run_id"]})
            assert stopped.structured_content is not None
            result: Json = stopped.structured_content["run"]
        else:
            waited = await client.call_tool("codex_wait", {"run_ids": [run["run_id"]]})
            assert waited.structured_content is not None
            result = waited.structured_content["runs"][0]
    assert result["status"] == ("cancelled" if end == "codex_stop" else "timed_out")
    assert result["usage"] is not None, result
    assert (result["usage"]["input_tokens"], result["usage"]["output_tokens"]) == (5000, 70)
    assert result["cost_usd"] is not None
    assert result["model"] == "gpt-5.4"


def requirements(folder: Path, codex: Path, text: str) -> Path:
    """Return *codex* in a mount namespace of its own with *text* as machine requirements."""
    folder.mkdir()
    (folder / "requirements.toml").write_text(text)
    program = folder / "codex"
    inner = (
        "mkdir -p /etc/codex && mount -t tmpfs none /etc/codex &&"
        f' cp {shlex.quote(str(folder / "requirements.toml"))} /etc/codex/ && exec "$@"'
    )
    program.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && exec {shlex.quote(str(codex))} --version\n'
        f'exec unshare -m sh -c {shlex.quote(inner)} sh {shlex.quote(str(codex))} "$@"\n'
    )
    program.chmod(0o755)
    return program


ONLY_FULL_ACCESS = """\
default_permissions = ":danger-full-access"

[allowed_permission_profiles]
":danger-full-access" = true
":workspace" = true
"""
FULL_ACCESS_BY_DEFAULT = ONLY_FULL_ACCESS + '":read-only" = true\n'

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="a private mount needs root")


@only_root
@pytest.mark.parametrize("sandbox", ["read-only", "workspace-write"])
async def test_the_sandbox_that_was_asked_for_runs_under_machine_requirements(
    sandbox: str, codex: Path, mode: str, lab: Lab
) -> None:
    program = requirements(lab.root / "managed", codex, FULL_ACCESS_BY_DEFAULT)
    outside = lab.root / "outside"
    prompt = lab.script("write", do(Shell(f"touch {outside}; touch inside; true")), say("ok"))
    more = lab.script("more", do(Shell(f"touch {outside}; touch inside; true")), say("ok"))
    async with connect(mode, program, lab, *BY_ANY) as client:
        result = await call(client, "codex_run", prompt=prompt, sandbox=sandbox)
        assert (result["status"], result["sandbox"]) == ("completed", sandbox), result
        resumed = await call(client, "codex_resume", prompt=more, thread_id=result["thread_id"])
    assert (resumed["status"], resumed["sandbox"]) == ("completed", sandbox), resumed
    assert not outside.exists()
    assert (lab.project / "inside").exists() is (sandbox == "workspace-write")


@only_root
async def test_a_run_that_codex_gives_more_rights_than_asked_ends_before_it_can_use_them(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    if number(version) < (0, 147, 0):
        pytest.skip("this Codex knows no machine requirements")
    program = requirements(lab.root / "managed", codex, ONLY_FULL_ACCESS)
    outside = lab.root / "outside"
    act = (do(Shell(f"touch {outside}"), delay_s=3), say("ok"))
    for prompt in ("write", "more"):
        lab.script(prompt, *act)
    async with connect(mode, program, lab, *BY_ANY) as client:
        result = await call(client, "codex_run", prompt="write", sandbox="read-only")
        assert result["error"]["kind"] == "not_allowed", result
        assert "danger-full-access" in result["error"]["message"]
        assert result["sandbox"] == "danger-full-access"  # What really ran.
        assert "codex_resume" not in result["next"]
        thread = result["thread_id"]
        resumed = await call(
            client, "codex_resume", prompt="more", thread_id=thread, sandbox="read-only"
        )
        assert resumed["error"]["kind"] == "not_allowed", resumed
        await anyio.sleep(3)
    assert not outside.exists()


async def test_codex_must_open_the_thread_that_was_asked_for(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    first = lab.script("first", say("one"))
    elsewhere = lab.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.toml").write_bytes((lab.home / "config.toml").read_bytes())
    program, moved = lab.root / "codex", lab.root / "moved"
    body = f"test -e {moved} && export CODEX_HOME={elsewhere}"
    program.write_text(f'#!/bin/sh\n{body}\nexec {codex} "$@"\n')
    program.chmod(0o755)
    async with connect(mode, program, lab, "--spares", "0") as client:
        done = await call(client, "codex_run", prompt=first)
        moved.touch()
        second = lab.script("second", say("two", delay_s=5))
        lost = await call(client, "codex_resume", prompt=second, thread_id=done["thread_id"])
    assert lost["status"] == "failed"
    if number(version) < (0, 120, 0):  # It begins a new thread without a word.
        assert lost["error"]["kind"] == "wrong_thread", lost
        assert lost["thread_id"] != done["thread_id"]
        assert "codex_resume" not in lost["next"]
    else:
        assert lost["error"]["kind"] == "thread_not_found", lost
