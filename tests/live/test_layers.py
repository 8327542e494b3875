"""Each layer of Codex's configuration counts: real Codex."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import number
from support.lab import ENGINE, Json, Lab, call, connect
from support.stub_server import commit, extend, started, stub, trust

SHOW_ENVIRONMENT = do(Shell("env; echo end-of-env"), delay_s=1.0)
"""Late enough for Codex to have its snapshot of the environment, which commands then begin with."""


def seen_by_commands(lab: Lab) -> str:
    seen = json.dumps(lab.model.requests[-1].body["input"])
    assert "end-of-env" in seen
    return seen


@pytest.mark.parametrize("layer", ["config.toml", "managed_config.toml"])
async def test_a_key_that_the_machine_names_goes_to_codex_and_no_further(
    codex: Path, version: str, mode: str, lab: Lab, layer: str
) -> None:
    prompt = lab.script("env", SHOW_ENVIRONMENT, say("ok"))
    excluding = '[shell_environment_policy]\nexclude = ["OTHER"]\n'
    machine = {layer: f'{excluding}[model_providers.scripted]\nenv_key = "GEMINI_ROUTER"\n'}
    env = {"GEMINI_ROUTER": "planted-machine", "OTHER": "planted-other"}
    async with connect(mode, codex, lab, env=env, machine=machine) as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert result["status"] == "completed", result
    assert "planted-machine" not in seen_by_commands(lab)
    if layer != "config.toml" or number(version) >= (0, 98, 0):  # 0.77.0 does not read that file.
        assert lab.model.requests[-1].authorization == "Bearer planted-machine"
        assert "planted" not in seen_by_commands(lab)


@pytest.mark.parametrize("form", ["bom", "toml-1.1"])
async def test_a_key_is_found_in_whatever_toml_codex_accepts(
    codex: Path, version: str, mode: str, lab: Lab, form: str
) -> None:
    file = lab.home / "config.toml"
    extend(file, 'env_key = "GEMINI_ROUTER"\n')
    if form == "bom":
        file.write_text("\ufeff" + file.read_text())
    else:
        extend(file, 'query_params = {\n  x = "1", # one\n}\n')
    prompt = lab.script("env", SHOW_ENVIRONMENT, say("ok"))
    env = {"GEMINI_ROUTER": "planted-router"}
    async with connect(mode, codex, lab, env=env) as client:
        result = await call(client, "codex_run", prompt=prompt)
    if form == "toml-1.1" and result["status"] == "failed":
        assert number(version) < (0, 171, 0), result
        return  # An older Codex accepts TOML 1.0 only.
    assert result["status"] == "completed", result
    assert lab.model.requests[-1].authorization == "Bearer planted-router"
    assert "planted" not in seen_by_commands(lab)


async def test_a_broken_configuration_is_named_in_a_warning_and_gives_no_secret_away(
    mode: str, lab: Lab
) -> None:
    machine = {"config.toml": 'x = = 1\n[model_providers.scripted]\nenv_key = "PLAIN"\n'}
    env = {"PLAIN": "planted-plain"}
    async with connect(mode, None, lab, env=env, machine=machine) as client:
        result = await call(client, "codex_run", prompt="x")
    assert any("/etc/codex/config.toml was not read as TOML" in w for w in result["warnings"])


async def test_the_variables_of_a_trusted_project_s_servers_arrive(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    folder = lab.project / ".codex"
    folder.mkdir()
    (folder / "config.toml").write_text(stub(lab, "project"))
    prompt = lab.script("env", SHOW_ENVIRONMENT, say("ok"))
    env = {"GEMINI_TOKEN": "planted-token"}
    commit(lab)
    trust(lab)
    async with connect(mode, codex, lab, env=env) as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert result["status"] == "completed", result
    assert "planted" not in seen_by_commands(lab)
    if number(version) >= (0, 147, 0):  # 0.60.1 reads no file of a project.
        assert (lab.root / "started" / "project").read_text() == "planted-token"


async def test_only_the_wanted_mcp_servers_of_codex_are_started(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    new = number(version) >= (0, 147, 0)
    has_layers = number(version) >= (0, 98, 0)
    folder = lab.project / ".codex"
    folder.mkdir()
    (folder / "config.toml").write_text(stub(lab, "project"))
    extend(lab.home / "config.toml", stub(lab, "one") + stub(lab, "two"))
    extend(lab.home / "config.toml", stub(lab, "dotted.name"))
    commit(lab)
    trust(lab)
    (lab.home / "fast.config.toml").write_text(stub(lab, "profile"))
    plugin = lab.home / "plugins" / "cache" / "local" / "plug" / "1.0.0"
    (plugin / ".codex-plugin").mkdir(parents=True)
    (plugin / ".codex-plugin" / "plugin.json").write_text(
        '{"name": "plug", "version": "1.0.0", "mcpServers": "./.mcp.json"}'
    )
    servers = tomllib.loads(stub(lab, "plugged"))["mcp_servers"]
    (plugin / ".mcp.json").write_text(json.dumps({"mcpServers": servers}))
    extend(lab.home / "config.toml", '[plugins."plug@local"]\nenabled = true\n')
    has_profile = new and ENGINE != "app-server"
    profile: Json = {"profile": "fast"} if has_profile else {}
    every = {"one", "two", "managed"}
    if has_layers:
        every |= {"project", "machine"}
    if number(version) >= (0, 120, 0):
        every.add("plugged")
    if has_profile:
        every.add("profile")
    if number(version) >= (0, 163, 0):  # Older ones start no server whose name has a dot.
        every.add("dotted.name")
    machine = {
        "config.toml": stub(lab, "machine"),
        "managed_config.toml": stub(lab, "managed"),
    }
    # 0.60.1 does not wait for its servers; a run that ends at once kills them as they start.
    lab.script("x", replace(say("ok"), delay_s=1.0))
    async with connect(mode, codex, lab, machine=machine) as client:

        async def run(tool: str = "codex_run", **options: object) -> tuple[str, set[str]]:
            result = await call(client, tool, prompt="x", **profile, **options)
            assert result["status"] == "completed", result
            return result["thread_id"], started(lab)

        thread_id, found = await run()
        assert found == every
        assert (await run(mcp_servers="none"))[1] == set()
        assert (await run(mcp_servers=[]))[1] == set()
        assert (await run(mcp_servers=["two"]))[1] == {"two"}
        assert (await run(config={"mcp_servers": {}}))[1] == set()
        assert (await run(config={"mcp_servers.one.enabled": False}))[1] == every - {"one"}
        resumed = await run("codex_resume", thread_id=thread_id, mcp_servers=["managed"])
        assert resumed == (thread_id, {"managed"})
        result = await call(client, "codex_run", prompt="x", mcp_servers=["three"], **profile)
    assert result["error"]["kind"] == "invalid_arguments"
    assert "no server 'three'" in result["error"]["message"]
    assert "machine, managed, one, " in result["error"]["message"]


async def test_what_can_only_narrow_a_run_is_never_refused(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    less: Json = {
        "sandbox_mode": "read-only",
        "approval_policy": "never",
        "sandbox_workspace_write.network_access": False,
        "sandbox_workspace_write.writable_roots": [],
        "features.apps": False,
        "features.view_image_tool": False,
        "features.web_search_request": False,
        "shell_environment_policy.inherit": "core",
        "notify": [],
    }
    prompt = lab.script("env", SHOW_ENVIRONMENT, say("ok"))
    async with connect(mode, codex, lab, env={"MINE": "planted-mine"}) as client:
        result = await call(
            client, "codex_run", prompt=prompt, config=less, sandbox="workspace-write"
        )
        wide = await call(
            client, "codex_run", prompt="x", config={"shell_environment_policy.inherit": "all"}
        )
    assert result["status"] == "completed", result
    assert result["sandbox"] == "read-only"
    assert wide["error"]["kind"] == "not_allowed"
    seen = seen_by_commands(lab)
    if version not in ("0.120.0", "0.147.0"):  # `inherit` has no effect there.
        assert "planted" not in seen


async def test_what_a_caller_may_exclude_does_not_replace_what_keeps_secrets(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("env", SHOW_ENVIRONMENT, say("ok"))
    env = {"CODEX_API_KEY": "planted-codex", "MINE": "planted-mine"}
    config = {"shell_environment_policy.exclude": ["MINE"]}
    options = ("--allow-config", "shell_environment_policy.exclude")
    async with connect(mode, codex, lab, *options, env=env) as client:
        result = await call(client, "codex_run", prompt=prompt, config=config)
    assert result["status"] == "completed", result
    assert "planted" not in seen_by_commands(lab)


@pytest.mark.parametrize("layer", ["config.toml", "managed_config.toml", "requirements.toml"])
async def test_no_caller_lifts_a_person_s_disabled_web_search(
    codex: Path, version: str, mode: str, lab: Lab, layer: str
) -> None:
    """0.171.0 lets `-c web_search` lift config.toml, 0.60.1 older keys lift each of the three."""
    off = 'web_search = "disabled"\n'
    machine: dict[str, str] = {}
    if layer == "requirements.toml":
        machine[layer] = 'allowed_web_search_modes = ["disabled"]\n'
    elif layer == "managed_config.toml":
        machine[layer] = off
    else:
        config = lab.home / "config.toml"
        config.write_text(off + config.read_text())
    prompts = {
        lab.script(f"ask {number}", say("ok")): options
        for number, options in enumerate(
            (
                {"web_search": True},
                {"config": {"web_search": "live"}},
                {"config": {"web_search": "cached"}},
                {"config": {"tools.web_search": True}},
                {"web_search": False},
                {"config": {"web_search": "disabled"}},
                {},
            )
        )
    }
    kinds: list[str | None] = []
    result: Json = {}
    async with connect(mode, codex, lab, machine=machine or None) as client:
        for prompt, options in prompts.items():
            result = await call(client, "codex_run", prompt=prompt, **options)
            kinds.append(None if result["error"] is None else result["error"]["kind"])
    assert result["warnings"] == []
    assert kinds == [*["not_allowed"] * 4, None, None, None]
    assert len(lab.model.requests) >= 3
    for request in lab.model.requests:
        tools = request.body.get("tools", [])
        assert not any("web_search" in str(tool.get("type")) for tool in tools)
