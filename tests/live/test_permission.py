"""The limits, the person who may lift them once, and what the model's shell sees: real Codex."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mcp_types as types
import pytest

from mcp_server_codex.cli.scripted_model import Shell, api_error, do, say
from support.codex_versions import real_codex
from support.lab import Json, Lab, call, connect

Answer = Callable[[Any, types.ElicitRequestParams], Any]


SHOW_ENVIRONMENT = do(Shell("env; echo end-of-env"), delay_s=1.0)
"""Late enough for Codex to have its snapshot of the environment, which commands then begin with."""


def audited(lab: Lab) -> list[Json]:
    lines = (lab.state / "audit.jsonl").read_text().splitlines()
    return [cast("Json", json.loads(line)) for line in lines]


class Person:
    """Who sits behind the client, and answers each question in the same way."""

    def __init__(self, action: str) -> None:
        self.action = action
        self.asked: list[str] = []

    async def __call__(
        self, context: object, params: types.ElicitRequestParams
    ) -> types.ElicitResult:
        self.asked.append(params.message)
        return types.ElicitResult(action=cast("Any", self.action))


async def test_a_read_only_thread_is_widened_by_nobody_but_the_person(
    codex: Path, mode: str, lab: Lab
) -> None:
    first = lab.script("look", say("seen"))
    make = do(Shell(f"echo x > {lab.project}/made; ls made"))
    write, narrowly = lab.script("write", make, say("done")), lab.script("try", make, say("done"))
    options = ("--max-sandbox", "read-only")
    async with connect(mode, codex, lab, *options) as client:
        thread_id = (await call(client, "codex_run", prompt=first))["thread_id"]
    asked: Json = {"thread_id": thread_id, "prompt": write}

    async with connect(mode, codex, lab, *options) as client:  # With nobody to ask.
        refused = await call(client, "codex_resume", **asked, sandbox="workspace-write")
        narrow = await call(client, "codex_resume", thread_id=thread_id, prompt=narrowly)
    assert refused["error"]["kind"] == "not_allowed"
    assert "--max-sandbox" in refused["error"]["hint"]
    assert narrow["sandbox"] == "read-only"
    for action in ("decline", "cancel"):
        person = Person(action)
        async with connect(mode, codex, lab, *options, elicitation_callback=person) as client:
            result = await call(client, "codex_resume", **asked, sandbox="workspace-write")
        assert result["error"]["kind"] == "not_allowed"
        assert "did not accept" in result["error"]["message"]
        assert len(person.asked) == 1
    assert not (lab.project / "made").exists()
    requests = len(lab.model.requests)

    person = Person("accept")
    async with connect(mode, codex, lab, *options, elicitation_callback=person) as client:
        widened = await call(client, "codex_resume", **asked, sandbox="workspace-write")
        after = await call(client, "codex_resume", thread_id=thread_id, prompt="look")
    assert widened["status"] == "completed"
    assert widened["sandbox"] == "workspace-write"
    assert any("The person allowed this once" in w for w in widened["warnings"])
    assert (lab.project / "made").exists()
    (question,) = person.asked
    assert "sandbox workspace-write" in question
    assert str(lab.project) in question
    assert '"write"' in question
    assert len(lab.model.requests) > requests
    # The exception was for once: the next turn is as narrow as the ceiling again.
    assert after["sandbox"] == "read-only"
    events = [entry["event"] for entry in audited(lab)]
    assert (events.count("declined"), events.count("granted")) == (2, 1)


async def test_ask_never_means_never(codex: Path, mode: str, lab: Lab) -> None:
    person = Person("accept")
    options = ("--ask", "never", "--max-sandbox", "read-only")
    async with connect(mode, codex, lab, *options, elicitation_callback=person) as client:
        result = await call(client, "codex_run", prompt="x", sandbox="workspace-write")
    assert result["error"]["kind"] == "not_allowed"
    assert person.asked == []
    assert lab.model.requests == []


async def test_no_configuration_brings_back_approvals_or_another_sandbox(
    codex: Path, mode: str, lab: Lab
) -> None:
    config = lab.home / "config.toml"
    config.write_text('approval_policy = "on-request"\n' + config.read_text())
    wide = {"approval_policy": "on-failure", "sandbox_mode": "danger-full-access"}
    async with connect(mode, codex, lab, "--allow-config", "*") as client:
        await call(client, "codex_run", prompt="a", config=wide)
    (rollout,) = lab.rollouts()
    lines = map(json.loads, rollout.read_text().splitlines())
    (turn,) = (line["payload"] for line in lines if line["type"] == "turn_context")
    assert turn["approval_policy"] == "never"
    assert turn["sandbox_policy"]["type"] == "read-only"


SECRETS = {
    "ANTHROPIC_API_KEY": "planted-anthropic",
    "CLAUDE_CODE_MESSAGING_TOKEN": "planted-claude",
    "CLAUDECODE": "planted-1",
    "GEMINI_API_KEY": "planted-gemini",
    "MCP_SERVER_CODEX_MAX_RUNS": "2",
    "CODEX_API_KEY": "planted-codex",
    "OPENAI_API_KEY": "planted-openai",
    "DENIED_THING": "planted-denied",
}


@pytest.mark.parametrize("sandbox", ["read-only", "danger-full-access"])
async def test_the_model_s_shell_sees_none_of_the_secrets(
    codex: Path, mode: str, lab: Lab, sandbox: str
) -> None:
    prompt = lab.script("env", SHOW_ENVIRONMENT, say("ok"))
    options = ("--max-sandbox", "danger-full-access", "--deny-env", "DENIED_*")
    env = SECRETS | {"MY_OWN": "kept"}
    async with connect(mode, codex, lab, *options, env=env) as client:
        result = await call(client, "codex_run", prompt=prompt, sandbox=sandbox)
    assert result["status"] == "completed"
    seen = json.dumps(lab.model.requests[-1].body["input"])
    assert "end-of-env" in seen
    assert "MY_OWN=kept" in seen
    for name in SECRETS:
        assert f"{name}=" not in seen, name
    assert "planted" not in seen


async def test_a_provider_s_key_goes_to_codex_and_not_to_its_shell(
    codex: Path, mode: str, lab: Lab
) -> None:
    with (lab.home / "config.toml").open("a") as config:
        config.write('env_key = "OPENROUTER_API_KEY"\n')
    prompt = lab.script("env", SHOW_ENVIRONMENT, say("ok"))
    env = {"OPENROUTER_API_KEY": "planted-router"}
    async with connect(mode, codex, lab, env=env) as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert result["status"] == "completed"
    request = lab.model.requests[-1]
    assert request.authorization == "Bearer planted-router"
    assert "end-of-env" in json.dumps(request.body["input"])
    assert "planted" not in json.dumps(request.body["input"])


async def test_a_secret_in_the_provider_s_error_is_masked_wherever_it_could_come_out(
    codex: Path, mode: str, lab: Lab
) -> None:
    secret, token = "sk-proj-Planted0123456789abcdef", "Bearer planted.abcdef-0123456789"
    message = f"Bad key {secret}, sent as {token} to https://me:hunter2@host/v1; see own-planted-1"
    prompt = lab.script("leak", api_error(400, message, "invalid_request_error"))
    told: list[str] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    env = {"MY_SECRET_KEY": "own-planted-1"}
    async with connect(mode, codex, lab, "--log-level", "debug", env=env) as client:
        result = await client.call_tool("codex_run", {"prompt": prompt}, progress_callback=tell)
        data = cast("Json", result.structured_content)
        later = await client.call_tool("codex_wait", {"run_ids": [data["run_id"]]})
    assert data["error"]["kind"] == "invalid_request"
    assert "[secret]" in data["error"]["message"]
    run = lab.state / "runs" / data["run_id"]
    kept = {file.name: file.read_text() for file in (run / "run.json", lab.state / "audit.jsonl")}
    outlets = {
        "result": result.model_dump_json(),
        "wait": later.model_dump_json(),
        "progress": "\n".join(told),
        "log": lab.log.read_text(),
        **kept,
    }
    for name, text in outlets.items():
        for planted in (secret, "planted.abcdef", "hunter2", "own-planted-1"):
            assert planted not in text, (name, planted)
    # The copy of Codex's own events is as Codex wrote it, and for this user only.
    events = run / "events.jsonl"
    assert secret in events.read_text()
    assert events.stat().st_mode & 0o777 == 0o600
    assert lab.state.stat().st_mode & 0o777 == 0o700


async def test_every_request_is_audited_without_its_words(mode: str, lab: Lab) -> None:
    codex = real_codex("0.163.0")
    prompt = lab.script("confidential prompt", say("confidential answer"))
    async with connect(mode, codex, lab) as client:
        done = await call(client, "codex_run", prompt=prompt, config={"web_search": "disabled"})
        await call(client, "codex_run", prompt=prompt, sandbox="danger-full-access")
        await client.call_tool("codex_usage", {})
    started, ended, refused, called = audited(lab)
    assert [e["event"] for e in (started, ended, refused, called)] == [
        *("started", "ended", "refused", "called")
    ]
    assert started["run_id"] == ended["run_id"] == done["run_id"]
    assert started["sandbox"] == "read-only"
    assert started["cwd"] == str(lab.project)
    assert started["config"] == ["web_search"]
    assert "mcp" in started["caller"]
    assert (ended["status"], ended["thread_id"]) == ("completed", done["thread_id"])
    assert refused["kind"] == "not_allowed"
    assert "danger-full-access" in refused["message"]
    assert (called["tool"], called["caller"]) == ("codex_usage", started["caller"])
    assert "confidential" not in (lab.state / "audit.jsonl").read_text()
