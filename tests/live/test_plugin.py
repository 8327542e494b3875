"""The plugin for Claude Code: valid, true to the server, and at work in the real client."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Generator
from pathlib import Path
from typing import cast, get_args

import pytest

from codex_tools.codex.errors import Kind
from codex_tools.codex.sandbox import WIDTH
from mcp_server_codex.app import INSTRUCTIONS
from mcp_server_codex.calls import TOOLS
from mcp_server_codex.cli.clients.known import client_named
from mcp_server_codex.cli.scripted_model import say
from support.claude_code import ClaudeCode, claude_code
from support.codex_versions import PINNED, from_npm, real_codex
from support.installed_package import TOP, build, clean_environment, uv
from support.lab import Json, Lab
from support.real_clients import node_path
from support.scripted_messages import ScriptedMessages, Use

PLUGIN = TOP / "plugin"
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
COMMANDS = ("run", "review", "status")
NAME = "mcp-server-codex"
NAMED = f"mcp__plugin_{NAME}_codex__"
"""What Claude Code puts before the name of a tool that comes with a plugin."""

OPTIONS = ("--plugin-dir", str(PLUGIN), "--allowedTools", NAMED.removesuffix("__"))


def read(path: str) -> Json:
    return cast("Json", json.loads((TOP / path).read_text()))


def claude(home: Path, *arguments: str) -> str:
    """Run a command of Claude Code that needs no model; return what it says."""
    done = subprocess.run(
        [str(claude_code()), "plugin", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=home,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "DISABLE_AUTOUPDATER": "1"},
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def test_the_real_validator_finds_nothing_wrong(tmp_path: Path) -> None:
    said = claude(tmp_path, "validate", "--strict", "--profile", "directory", str(PLUGIN))
    assert "mcpServers: codex" in said
    for part in (f"skills: {NAME}:delegate-to-codex", *(f"commands: {NAME}:{n}" for n in COMMANDS)):
        assert part in said
    claude(tmp_path, "validate", "--strict", str(TOP))


def test_it_can_be_installed_from_the_repository_as_a_marketplace(tmp_path: Path) -> None:
    claude(tmp_path, "marketplace", "add", str(TOP))
    claude(tmp_path, "install", f"{NAME}@mcp-server-codex")
    assert f"{NAME} {PROJECT['version']}" in claude(tmp_path, "details", NAME)


def test_an_upgrade_from_its_former_name_takes_two_commands(tmp_path: Path) -> None:
    market, home = tmp_path / "market", tmp_path / "home"
    home.mkdir()
    for part in ("plugin", ".claude-plugin"):
        shutil.copytree(TOP / part, market / part)
    for file in ("plugin/.claude-plugin/plugin.json", ".claude-plugin/marketplace.json"):
        data = read(file)
        data.pop("renames", None)
        (data["plugins"][0] if "plugins" in data else data)["name"] = "codex"
        (market / file).write_text(json.dumps(data))
    claude(home, "marketplace", "add", str(market))
    claude(home, "install", "codex@mcp-server-codex")
    for file in ("plugin/.claude-plugin/plugin.json", ".claude-plugin/marketplace.json"):
        shutil.copy(TOP / file, market / file)
    claude(home, "marketplace", "update", "mcp-server-codex")
    claude(home, "install", f"{NAME}@mcp-server-codex")
    listed = claude(home, "list")
    assert f"{NAME}@mcp-server-codex" in listed
    assert " codex@mcp-server-codex" not in listed
    settings = json.loads((home / ".claude" / "settings.json").read_text())
    assert settings["enabledPlugins"] == {f"{NAME}@mcp-server-codex": True}


def test_what_it_says_of_itself_is_what_the_project_says() -> None:
    plugin, market = (
        read("plugin/.claude-plugin/plugin.json"),
        read(".claude-plugin/marketplace.json"),
    )
    (entry,) = market["plugins"]
    assert plugin["version"] == entry["version"] == PROJECT["version"]
    assert plugin["license"] == entry["license"] == PROJECT["license"]
    assert plugin["description"] == entry["description"] == read("manifest.json")["description"]
    assert plugin["author"] == market["owner"] == PROJECT["authors"][0]
    assert plugin["name"] == entry["name"] == NAME == PROJECT["name"]
    assert market["renames"] == {"codex": NAME}
    assert all(len(NAMED + tool.name) < 64 for tool in TOOLS)
    assert (TOP / entry["source"]).resolve() == PLUGIN
    (server,) = read("plugin/.mcp.json")["mcpServers"].values()
    package = f"{PROJECT['name']}=={PROJECT['version']}"
    assert server["args"] == ["--from", package, *PROJECT["scripts"]]
    for copied, original in (("LICENSE", "LICENSE"), (".claude-plugin/icon.png", "icon.png")):
        assert (PLUGIN / copied).read_bytes() == (TOP / original).read_bytes()


def test_codex_starts_the_server_of_its_plugin_with_long_limits(tmp_path: Path) -> None:
    codex, home = real_codex(PINNED[1]), tmp_path / "codex-home"
    home.mkdir()
    env = {"HOME": str(tmp_path), "CODEX_HOME": str(home), "PATH": "/usr/bin:/bin"}

    def said(*words: str) -> str:
        command = [str(codex), *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout

    said("plugin", "marketplace", "add", str(TOP))
    said("plugin", "add", f"{NAME}@{NAME}")
    assert "installed, enabled" in said("plugin", "list")
    (server,) = cast("list[Json]", json.loads(said("mcp", "list", "--json")))
    assert server["name"] == "codex"
    entry = read("plugin/.mcp.json")["mcpServers"]["codex"]
    for key in ("command", "args", "env"):
        assert server["transport"][key] == entry[key], key
    assert server["transport"]["env_vars"][:2] == ["CODEX_HOME", "CODEX_RUN_DEPTH"]
    assert server["tool_timeout_sec"] == 7200
    # The hooks are Claude Code's.
    assert read("plugin/.codex-plugin/hooks.json") == {"hooks": {}}


def test_gemini_cli_takes_the_repository_for_an_extension(tmp_path: Path) -> None:
    folder = from_npm("npm/gemini-cli-0.61.0", "@google/gemini-cli@0.61.0")
    program = folder / "node_modules" / ".bin" / "gemini"
    env = {"HOME": str(tmp_path), "PATH": node_path(), "GEMINI_API_KEY": "none"}

    def said(*words: str) -> str:
        command = [str(program), "extensions", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout + done.stderr

    assert "successfully validated" in said("validate", str(TOP))
    said("link", str(TOP), "--consent")
    listed = said("list")
    assert f"{NAME} ({PROJECT['version']})" in listed
    extension = read("gemini-extension.json")
    (server,) = extension["mcpServers"].values()
    client = client_named("gemini-cli")
    assert server == client.entry("uvx", read("plugin/.mcp.json")["mcpServers"]["codex"]["args"])
    assert extension["description"] == read("manifest.json")["description"]


def test_skill_and_commands_name_nothing_that_is_not_there() -> None:
    skill = PLUGIN / "skills" / "delegate-to-codex" / "SKILL.md"
    known = (
        {tool.name for tool in TOOLS}
        | set(WIDTH)
        | {"running", "needs_answer"}
        | set(get_args(Kind))
    )
    for tool in TOOLS:
        known |= {*tool.request.model_fields, *tool.result.model_fields}
    quoted = re.findall(r"`([a-z][\w-]*)(?:: [^`]*)?`", skill.read_text())
    assert set(quoted) - known == set()
    assert {*quoted} >= {tool.name for tool in TOOLS} - {"codex_usage"}
    for name in COMMANDS:
        text = (PLUGIN / "commands" / f"{name}.md").read_text().replace(NAMED, "")
        assert {*re.findall(r"codex_[a-z]+", text)} <= {tool.name for tool in TOOLS}
    assert {path.stem for path in (PLUGIN / "commands").iterdir()} == {*COMMANDS}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables with which uv finds the package, as if it were published.

    What the plugin starts is started as it stands there; only the package comes
    from a wheel of these sources.
    """
    folder = tmp_path_factory.mktemp("published")
    build("wheel", folder)
    env = clean_environment(folder / "home") | {"UV_FIND_LINKS": str(folder)}
    (server,) = read("plugin/.mcp.json")["mcpServers"].values()
    # Once before, so that no client has to wait for what it needs, nor gets an older wheel.
    fresh = [str(uv().parent / "uvx"), "--refresh-package", PROJECT["name"], *server["args"]]
    done = subprocess.run([*fresh, "--version"], capture_output=True, text=True, env=env)
    assert done.stdout == f"mcp-server-codex {PROJECT['version']}\n", done.stderr
    return {name: env[name] for name in env.keys() - {"HOME", "LANG"}}


@pytest.fixture
def client(lab: Lab, mode: str) -> Generator[ClaudeCode]:
    with ScriptedMessages() as messages:
        yield ClaudeCode(lab, messages, mode)


def variables(client: ClaudeCode, published: dict[str, str], codex: Path) -> dict[str, str]:
    """Return what tells the plugin's server of the lab."""
    state = {"MCP_SERVER_CODEX_STATE_DIR": str(client.lab.state)}
    return published | state | {"CODEX_BIN": str(codex)}


def test_its_command_hands_a_task_to_the_real_codex(
    client: ClaudeCode, lab: Lab, codex: Path, published: dict[str, str], version: str
) -> None:
    lab.script("say hello", say("Hello from inside."))
    client.model.steps = (Use(NAMED + "codex_run", {"prompt": "say hello"}), "It said hello.")
    client.ask(
        "/mcp-server-codex:run say hello to me", *OPTIONS, **variables(client, published, codex)
    )
    assert client.spoke_as_asked
    assert "Hand this task to Codex" in client.model.told
    assert "say hello to me" in client.model.told
    assert INSTRUCTIONS in client.model.told
    assert client.model.offered.keys() >= {NAMED + tool.name for tool in TOOLS}
    (result,) = client.model.tool_results
    assert not result.is_error
    assert json.loads(result.text)["final_response"] == "Hello from inside."
    assert json.loads(result.text)["codex_version"] == version


def test_its_status_needs_no_permission_and_starts_no_run(
    client: ClaudeCode, lab: Lab, published: dict[str, str]
) -> None:
    client.model.steps = (
        Use(NAMED + "codex_sessions", {"cwd": str(lab.project), "limit": 10}),
        Use(NAMED + "codex_usage", {"since": "7d"}),
        "Nothing yet.",
    )
    env = variables(client, published, real_codex("0.163.0"))
    client.ask(f"/{NAME}:status", "--plugin-dir", str(PLUGIN), **env)
    threads, usage = client.model.tool_results
    assert json.loads(threads.text)["sessions"] == []
    assert json.loads(usage.text)["sessions_read"] == 0
    assert lab.model.requests == []


def test_its_hooks_tell_the_model_of_a_run_that_ended_in_the_background(
    client: ClaudeCode, lab: Lab, published: dict[str, str]
) -> None:
    run_id, caller = "run_0123456789abcdef", "claude-code 2.1.332"
    facts: Json = {"run_id": run_id, "caller": caller, "server_pid": 1, "cwd": str(lab.project)}
    lines = [facts | {"event": event} for event in ("started", "handed_back")]
    lines.append(facts | {"event": "ended", "status": "completed"})
    lab.state.mkdir(mode=0o700)
    (lab.state / "audit.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    client.model.steps = ("Done.",)
    client.ask("Go.", *OPTIONS, **variables(client, published, real_codex("0.163.0")))
    told = json.dumps(client.model.requests)
    assert told.count(f"Codex runs ended in the background: {run_id} (completed)") == 1


def test_a_plugin_named_codex_beside_it_hides_nothing(
    client: ClaudeCode, lab: Lab, published: dict[str, str]
) -> None:
    """OpenAI's own plugin for Claude Code has that name."""
    other = lab.root / "other"
    (other / ".claude-plugin").mkdir(parents=True)
    about = {"name": "codex", "version": "1.0.0", "description": "d", "author": {"name": "x"}}
    (other / ".claude-plugin" / "plugin.json").write_text(json.dumps(about))
    (other / "commands").mkdir()
    for name in COMMANDS:
        (other / "commands" / f"{name}.md").write_text("---\ndescription: d\n---\nThe other one.\n")
    env = variables(client, published, real_codex("0.163.0"))
    both = ("--plugin-dir", str(other), "--plugin-dir", str(PLUGIN))
    for command, text in ((f"/{NAME}:run x", "Hand this task"), ("/codex:run x", "The other one")):
        client.model.steps = ("Done.",)
        lines = client.ask(command, *both, **env)
        assert text in client.model.told
        (init,) = (line for line in lines if line.get("subtype") == "init")
        for plugin in (NAME, "codex"):
            assert {f"{plugin}:{name}" for name in COMMANDS} <= {*init["slash_commands"]}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_nothing_outlives_claude_code_though_uvx_stands_between(
    client: ClaudeCode, codex: Path, published: dict[str, str], number: signal.Signals
) -> None:
    env = variables(client, published, codex)
    await client.end_in_mid_run(NAMED + "codex_run", number, *OPTIONS, **env)
