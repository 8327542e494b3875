"""Codex itself as the client: its model calls the real Codex through this server; both scripted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import anyio.to_thread
import pytest

from mcp_server_codex.app import INSTRUCTIONS
from mcp_server_codex.calls import TOOLS
from mcp_server_codex.cli.scripted_model import Call, Reply, Shell, api_error, do, model_name, say
from mcp_server_codex.wire import to_tool
from support.codex_versions import number, real_codex
from support.lab import Json, Lab, commands, environment, marked, server_program, until

CLIENTS = ("0.163.0", "0.169.0")
"""The versions of Codex that are the client; what it runs is each of the tests' versions."""

FULL = "danger-full-access"
"""In a narrower one, Codex lets its model call read-only tools only."""

SLEEP, SLEEPERS = "(setsid sleep 602 &); sleep 600", {"sleep 600", "sleep 602"}


@dataclass(frozen=True, slots=True)
class Client:
    """The outer Codex, its home and how it is started."""

    lab: Lab
    codex: Path
    mark: str
    """A tag in the environment of all that is started; nothing may carry it in the end."""

    @property
    def home(self) -> Path:
        return self.lab.root / "client-home"

    def add_server(self, version: str, codex: Path) -> None:
        """Put this server, which runs *codex*, among the client's own."""
        self.lab.model.write_config(self.home, model=model_name(number(version)))
        args = ["--codex-bin", str(codex), "--state-dir", str(self.lab.state)]
        env = environment(self.lab) | {"FAR_END": self.mark}  # It hands on nothing of its own.
        lines = (
            "[mcp_servers.codex]",
            f"command = {json.dumps(server_program())}",
            f"args = {json.dumps(args)}",
            "required = true",  # Or the model may be asked before the server is there.
            "startup_timeout_sec = 60",
            "tool_timeout_sec = 300",
            "[mcp_servers.codex.env]",
            *(f"{key} = {json.dumps(value)}" for key, value in env.items()),
        )
        with (self.home / "config.toml").open("a") as file:
            file.write("\n" + "\n".join(lines) + "\n")

    def start(self, prompt: str, sandbox: str = FULL) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self.codex), "exec", "--json", "-s", sandbox, prompt],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.lab.project,
            env=environment(self.lab) | {"CODEX_HOME": str(self.home), "FAR_END": self.mark},
        )

    def ask(self, *steps: Reply, sandbox: str = FULL) -> list[str]:
        """Let its model take *steps*; return what it was told that its calls came to."""
        prompt = self.lab.script("outer", *steps)
        with self.start(prompt, sandbox) as process:
            try:
                out, err = process.communicate(timeout=300)
            finally:
                process.kill()
        assert process.returncode == 0, (out, err)
        return outputs(self.request["input"])

    @property
    def request(self) -> Json:
        """The newest request of the client's model."""
        return [seen.body for seen in self.lab.model.requests if seen.prompt == "outer"][-1]


def outputs(items: Sequence[Json]) -> list[str]:
    return [str(i["output"]) for i in items if i.get("type", "").endswith("_call_output")]


def use(tool: str, **arguments: str | int | bool) -> Reply:
    return do(Call(tool, arguments, "mcp__codex"))


@pytest.fixture(params=CLIENTS)
def client(
    request: pytest.FixtureRequest, lab: Lab, version: str, codex: Path
) -> Generator[Client]:
    mark = f"client-{uuid.uuid4()}"
    outer = Client(lab, real_codex(request.param), mark)
    outer.add_server(request.param, codex)
    yield outer
    for _ in range(100):  # The guard of a spare takes a moment to end.
        if not commands(mark):
            break
        time.sleep(0.05)
    left = commands(mark)
    for pid in marked(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == []


def result_of(output: str) -> Json:
    """Return the structured result in what Codex tells its model of a call."""
    return cast("Json", json.loads(output.partition("\nOutput:\n")[2]))


def test_the_model_gets_the_structured_result_and_goes_on_in_the_thread(
    client: Client, lab: Lab, version: str
) -> None:
    lab.script("first", say("Made it."))
    lab.script("second", say("Still here."))
    told = client.ask(
        use("codex_run", prompt="first", sandbox="workspace-write"),
        use("codex_resume", last=True, prompt="second"),
        say("All done."),
    )
    first, second = map(result_of, told)
    assert (first["status"], second["status"]) == ("completed", "completed")
    assert (first["final_response"], second["final_response"]) == ("Made it.", "Still here.")
    assert (first["sandbox"], second["sandbox"]) == ("workspace-write", "workspace-write")
    assert first["codex_version"] == version
    assert first["cwd"] == str(lab.project)
    (rollout,) = lab.rollouts()
    assert rollout.stem.endswith(first["thread_id"])
    assert second["thread_id"] == first["thread_id"]
    # The client is no run of ours: what it starts is the first, not one within another.
    started = [line for line in audited(lab) if line["event"] == "started"]
    assert [line["depth"] for line in started] == [1, 1]
    assert all("codex" in line["caller"] for line in started)


def test_the_model_is_told_why_a_run_failed_and_what_to_do(client: Client, lab: Lab) -> None:
    message = "Unsupported value: 'turbo' is not supported with this model."
    lab.script("bad", api_error(400, message, "invalid_request_error"))
    failed, refused = client.ask(
        use("codex_run", prompt="bad"),
        use("codex_run", prompt="x", sandbox=FULL),
        say("I see."),
    )
    # Unlike Claude Code, it hands its model the structured result of a failure, and no text.
    failure, refusal = (result_of(text)["error"] for text in (failed, refused))
    assert failure["kind"] == "invalid_request"
    assert message in failure["message"]
    assert failure["hint"]
    (rollout,) = lab.rollouts()
    assert result_of(failed)["thread_id"] == rollout.stem[-36:]
    # Codex says that it can ask a person, and with nobody there accepts: it is not asked.
    assert refusal["kind"] == "not_allowed"
    assert "--max-sandbox" in refusal["hint"]
    assert "granted" not in [line["event"] for line in audited(lab)]


@pytest.mark.parametrize("model", ["gpt-5.4", "gpt-5.5"])
def test_the_model_is_shown_the_tools_or_what_they_are_for(client: Client, model: str) -> None:
    config = client.home / "config.toml"
    config.write_text(f'model = "{model}"\n' + config.read_text().partition("\n")[2])
    client.ask(say("Nothing to do."))
    assert json.dumps(INSTRUCTIONS.splitlines()[0])[1:-1] in json.dumps(client.request)
    spaces = [tool for tool in client.request["tools"] if tool.get("name") == "mcp__codex"]
    if model == "gpt-5.5":  # Its tools are all to be searched for, and found by these words.
        assert spaces == []
        return
    shown = {tool["name"]: tool for tool in spaces[0]["tools"]}
    assert shown.keys() == {tool.name for tool in TOOLS}
    for tool in map(to_tool, TOOLS):
        assert shown[tool.name]["description"] == tool.description
        parameters = shown[tool.name]["parameters"]
        assert parameters["properties"].keys() == tool.input_schema["properties"].keys()


def test_a_client_in_a_narrow_sandbox_may_look_but_not_run(client: Client, lab: Lab) -> None:
    """It is Codex that keeps its model from it, by the hints of the tools."""
    looked, ran = client.ask(
        use("codex_sessions", limit=1),
        use("codex_run", prompt="x"),
        say("I see."),
        sandbox="workspace-write",
    )
    assert result_of(looked)["sessions"] == []
    assert "approval" in ran
    assert [line["event"] for line in audited(lab)] == ["called"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_nothing_outlives_a_client_that_is_ended(
    client: Client, lab: Lab, number: signal.Signals
) -> None:
    prompt = lab.script("sleep", do(Shell(SLEEP)), say("never said"))
    outer = lab.script("outer", use("codex_run", prompt=prompt), say("never said"))
    with client.start(outer) as process:
        try:
            await until(lambda: {*commands(client.mark)} >= SLEEPERS)
            process.send_signal(number)
            await anyio.to_thread.run_sync(process.communicate)
        finally:
            process.kill()
    await until(lambda: commands(client.mark) == [])


def audited(lab: Lab) -> list[Json]:
    lines = (lab.state / "audit.jsonl").read_text().splitlines()
    return [cast("Json", json.loads(line)) for line in lines]
