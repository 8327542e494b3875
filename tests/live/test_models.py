"""What models Codex offers: in the failure for want of one, as a resource and in completion."""

from __future__ import annotations

import base64
import json
import time
import uuid
from pathlib import Path
from typing import Any, cast

import pytest
from mcp import Client, MCPError
from mcp_types import PromptReference, TextResourceContents

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.loopback import Loopback, QuietHandler
from mcp_server_codex.cli.scripted_model import api_error, say
from support.codex_versions import number
from support.lab import BY_EXEC, Lab, call, commands, connect, until

NO_MODEL = api_error(404, "The model `gpt-x` does not exist.", "not_found", "model_not_found")
OWN_LIST = {"0.60.1": "gpt-5.1-codex", "0.163.0": "gpt-6-sol"}
"""A model of the list that each Codex was built with."""


def logged(codex: Path, lab: Lab, app_server: str = "") -> Path:
    """Return a program that runs *codex* and notes the start of each app-server in `starts`.

    *app_server* is a line of shell that runs before the app-server.
    """
    program = lab.root / "codex"
    note = f"echo >> {lab.root}/starts\n{app_server}"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = app-server ]; then\n{note}\nfi\nexec {codex} "$@"\n'
    )
    program.chmod(0o755)
    return program


@pytest.fixture(autouse=True)
def _codex_itself_tries_once(lab: Lab) -> None:
    with (lab.home / "config.toml").open("a") as config:
        config.write("request_max_retries = 0\nstream_max_retries = 0\n")


def writes_config(version: str) -> bool:
    """Return True for a version that was seen to change the user's configuration."""
    return version in ("0.98.0", "0.120.0")


def starts(lab: Lab) -> int:
    """Return how often an app-server was started."""
    file = lab.root / "starts"
    return len(file.read_text()) if file.exists() else 0


async def read(client: Client, uri: str) -> Json:
    (content,) = (await client.read_resource(uri)).contents
    return cast("Json", json.loads(cast("TextResourceContents", content).text))


async def test_a_model_that_cannot_be_used_is_answered_with_those_that_codex_lists(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    if writes_config(version):
        pytest.skip("it is not asked")
    lab.script("x", NO_MODEL)
    good = lab.script("y", say("ok"))
    config = (lab.home / "config.toml").read_bytes()
    ref = PromptReference(type="ref/prompt", name="delegate")
    async with connect(mode, logged(codex, lab), lab, *BY_EXEC) as client:
        assert (await call(client, "codex_run", prompt=good))["error"] is None
        assert starts(lab) == 0
        results = [await call(client, "codex_run", prompt="x", model=f"gpt-{n}") for n in range(2)]
        listed = await read(client, "codex://models")
        names = [each["model"] for each in listed["models"]]
        known = await call(client, "codex_run", prompt="x", model=names[1])
        done = await client.complete(ref, {"name": "model", "value": names[1][:-1]})
        other = await client.complete(ref, {"name": "model", "value": "no such"})
        assert starts(lab) == 1
        # Another configured provider may come with other models.
        with (lab.home / "config.toml").open("ab") as file:
            file.write(b"\n")
        assert await read(client, "codex://models") == listed
        assert starts(lab) == 2
    for result in results:
        error = result["error"]
        assert (error["kind"], result["attempts"]) == ("model_unavailable", 1)
        assert error["hint"].startswith("Leave model out to use Codex's default")
        assert "Codex itself lists " + ", ".join(names[:8]) in error["hint"]
        assert error["hint"].endswith("; the provider may have others.")
        assert error["hint"] in result["text"]
    assert names[0] in known["error"]["hint"]
    assert f"{names[1]}," not in known["error"]["hint"]
    assert names[1] in done.completion.values
    assert other.completion.values == []
    assert (listed["codex_version"], listed["of_account"]) == (version, False)
    assert [each["default"] for each in listed["models"]].count(True) <= 1
    assert all("high" in each["reasoning_efforts"] for each in listed["models"])
    assert OWN_LIST.get(version, names[0]) in names
    assert (lab.home / "config.toml").read_bytes() == config + b"\n"


async def test_a_codex_whose_app_server_changes_the_configuration_is_not_asked(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    """It does so in a home with threads only; any other version has the test above."""
    if not writes_config(version):
        pytest.skip("its app-server changes no configuration")
    lab.script("x", NO_MODEL)
    good = lab.script("y", say("ok"))
    config = (lab.home / "config.toml").read_bytes()
    async with connect(mode, logged(codex, lab), lab) as client:
        assert (await call(client, "codex_run", prompt=good))["error"] is None
        error = (await call(client, "codex_run", prompt="x"))["error"]
        with pytest.raises(MCPError, match="does not say which models"):
            await read(client, "codex://models")
    assert error["kind"] == "model_unavailable"
    assert error["hint"].endswith("name one that this account can use.")
    assert starts(lab) == 0
    assert (lab.home / "config.toml").read_bytes() == config


async def test_a_codex_that_does_not_say_its_models_costs_seconds_and_can_be_stopped(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    if writes_config(version):
        pytest.skip("it is not asked")
    lab.script("x", NO_MODEL)
    program = logged(codex, lab, "exec sleep 1000")
    tag = str(uuid.uuid4())
    async with connect(mode, program, lab, *BY_EXEC, env={"FAR_END": tag}) as client:
        result = await call(client, "codex_run", prompt="x")
        error = result["error"]
        assert error["kind"] == "model_unavailable"
        assert error["hint"].endswith("name one that this account can use.")
        begun = await call(client, "codex_run", prompt="x", wait_s=0)
        await until(lambda: starts(lab) == 2)
        stopped = await client.call_tool("codex_stop", {"run_id": begun["run_id"]})
        run = cast("Json", stopped.structured_content)["run"]
        assert (run["status"], run["error"]["kind"]) == ("failed", "model_unavailable")
        assert not any("sleep 1000" in each for each in commands(tag))


class _Provider(QuietHandler):
    """Answers as OpenAI does an account with a ChatGPT login that has two models."""

    def do_GET(self) -> None:  # http.server's name
        found = self.path.startswith("/v1/models?")
        models = [_model(name) for name in ("acc-one", "acc-two")]
        self._send(200 if found else 404, {"models": models} if found else {})

    def do_POST(self) -> None:  # http.server's name
        self.rfile.read(int(self.headers.get("content-length") or 0))
        text = "The 'gpt-9' model is not supported when using Codex with a ChatGPT account."
        self._send(400, {"detail": text})

    def _send(self, status: int, data: Json) -> None:
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def _model(name: str) -> Json:
    return {
        "slug": name,
        "display_name": name,
        "description": f"About {name}",
        "default_reasoning_level": "medium",
        "supported_reasoning_levels": [{"effort": "medium", "description": "m"}],
        "shell_type": "shell_command",
        "visibility": "list",
        "minimal_client_version": "0.1.0",
        "supported_in_api": True,
        "priority": 1,
        "availability_nux": None,
        "upgrade": None,
        "base_instructions": "x",
        "supports_reasoning_summaries": True,
        "support_verbosity": False,
        "default_verbosity": None,
        "apply_patch_tool_type": "freeform",
        "truncation_policy": {"mode": "bytes", "limit": 10000},
        "supports_parallel_tool_calls": False,
        "context_window": 100_000,
        "reasoning_summary_format": "none",
        "experimental_supported_tools": [],
        "input_modalities": ["text"],
    }


def _log_in(home: Path, url: str) -> None:
    """Configure the provider at *url* and a ChatGPT login, which no other server ever sees."""
    account = {"chatgpt_plan_type": "plus", "chatgpt_account_id": "a", "chatgpt_user_id": "u"}
    facts = {"email": "a@example.com", "exp": int(time.time()) + 10**5}
    facts |= cast("dict[str, Any]", {"https://api.openai.com/auth": account})
    parts = (base64.urlsafe_b64encode(json.dumps(p).encode()) for p in ({"alg": "none"}, facts))
    token = b".".join(part.rstrip(b"=") for part in (*parts, b"eA")).decode()
    tokens = {"id_token": token, "access_token": token, "refresh_token": "r", "account_id": "a"}
    login = {"OPENAI_API_KEY": None, "auth_mode": "chatgpt", "tokens": tokens}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    (home / "auth.json").write_text(json.dumps(login | {"last_refresh": now}))
    (home / "config.toml").write_text(
        f'model = "gpt-9"\nmodel_provider = "loop"\nchatgpt_base_url = "{url}/backend"\n'
        f'[model_providers.loop]\nname = "loop"\nbase_url = "{url}/v1"\nwire_api = "responses"\n'
        "requires_openai_auth = true\nrequest_max_retries = 0\nstream_max_retries = 0\n"
    )


async def test_the_models_of_an_account_are_named(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    if (0, 60, 1) < number(version) < (0, 147, 0):
        pytest.skip("asks OpenAI itself, or is not asked")
    provider = Loopback(_Provider)
    try:
        _log_in(lab.home, provider.url)
        async with connect(mode, codex, lab) as client:
            result = await call(client, "codex_run", prompt="x")
            listed = await read(client, "codex://models")
    finally:
        provider.close()
    assert result["error"]["kind"] == "model_unavailable", result
    assert listed["of_account"] is True
    if number(version) >= (0, 147, 0):
        assert result["error"]["hint"].endswith("For this account, Codex lists acc-one, acc-two.")
        assert [each["description"] for each in listed["models"]] == [
            "About acc-one",
            "About acc-two",
        ]
    else:
        assert "For this account, Codex lists gpt-5.1-codex" in result["error"]["hint"]
