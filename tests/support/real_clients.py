"""Real MCP clients, without an account: how each is fetched, set up and started on a talk.

They are fetched once, into the cache. Their versions are fixed here, for the table to name them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.codex_versions import CACHE, from_npm, from_pypi, real_codex
from support.lab import Json, Lab, environment, server_program

NODE = "24.9.0"
DRIVERS = Path(__file__).parents[1] / "data" / "clients"
"""Programs that use a client which is a library."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a client works: a lab, its own model, and the server with its Codex."""

    lab: Lab
    url: str
    """The base URL of the client's model."""
    codex: Path

    @property
    def options(self) -> list[str]:
        return ["--codex-bin", str(self.codex), "--state-dir", str(self.lab.state)]

    @property
    def server(self) -> list[str]:
        return [server_program(), *self.options]

    def install(self, client: str) -> None:
        """Write the client's configuration as a user would."""
        command = [server_program(), "install", client, "--", *self.options]
        subprocess.run(command, env=environment(self.lab), check=True, capture_output=True)

    def merge(self, file: str, more: Json) -> None:
        """Add *more* to a JSON file below the home folder."""
        path = self.lab.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        known: Json = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | more, indent=2))


@dataclass(frozen=True, slots=True)
class RealClient:
    """A client and how it is started; `start` sets it up and returns its command line."""

    title: str
    version: str
    start: Callable[[Desk], Sequence[str]]
    env: Callable[[Desk], dict[str, str]] = field(default=lambda _: {})
    speaks: str = "talk"
    """Which scripted model it uses: talk, messages (Anthropic's) or codex."""


def _npm(package: str, version: str, program: str) -> str:
    name = package.rpartition("/")[2].removesuffix("-ai")
    folder = from_npm(f"npm/{_SHORT.get(package, name)}-{version}", f"{package}@{version}")
    return str(folder / "node_modules" / ".bin" / program)


_SHORT = {"@continuedev/cli": "continue"}


def node_path() -> str:
    """Return a PATH that begins with a Node that is new enough for all clients."""
    folder = from_npm(f"npm/node-{NODE}", f"node@{NODE}") / "node_modules" / ".bin"
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def _claude_code(desk: Desk) -> Sequence[str]:
    program = _npm("@anthropic-ai/claude-code", "2.1.332", "claude")
    servers = desk.lab.root / "mcp.json"
    entry = {"type": "stdio", "command": desk.server[0], "args": desk.options}
    servers.write_text(json.dumps({"mcpServers": {"codex": entry}}))
    return [
        *(program, "-p", "Go.", "--mcp-config", str(servers), "--strict-mcp-config"),
        *("--allowedTools", "mcp__codex", "--tools", ""),
    ]


def _claude_env(desk: Desk) -> dict[str, str]:
    quiet = ("DISABLE_TELEMETRY", "DISABLE_AUTOUPDATER", "DISABLE_ERROR_REPORTING")
    return {
        **dict.fromkeys((*quiet, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"), "1"),
        **dict.fromkeys(("MCP_TIMEOUT", "CLAUDE_CODE_MCP_STARTUP_WAIT_MS"), "120000"),
        "ANTHROPIC_BASE_URL": desk.url,
        "ANTHROPIC_API_KEY": "scripted",
        "CLAUDE_CODE_TMPDIR": str(desk.lab.root),
    }


def _codex(desk: Desk) -> Sequence[str]:
    home = desk.lab.root / "client-home"
    home.mkdir(exist_ok=True)
    env = environment(desk.lab)
    lines = (
        'model = "gpt-5.5"',
        'model_provider = "scripted"',
        "[model_providers.scripted]",
        'name = "scripted"',
        f'base_url = "{desk.url}/v1"',
        'wire_api = "responses"',
        "[mcp_servers.codex]",
        f"command = {json.dumps(desk.server[0])}",
        f"args = {json.dumps(desk.options)}",
        "required = true",
        "startup_timeout_sec = 60",
        "tool_timeout_sec = 7200",
        "[mcp_servers.codex.env]",
        *(f"{key} = {json.dumps(value)}" for key, value in env.items()),
    )
    (home / "config.toml").write_text("\n".join(lines) + "\n")
    return [str(real_codex("0.171.0")), "exec", "-s", "danger-full-access", "Go."]


def _gemini(desk: Desk) -> Sequence[str]:
    desk.install("gemini-cli")
    quiet = {"usageStatisticsEnabled": False}
    auth = {"auth": {"selectedType": "gemini-api-key"}, "folderTrust": {"enabled": False}}
    off = {"enableAutoUpdate": False, "enableAutoUpdateNotification": False}
    desk.merge(".gemini/settings.json", {"security": auth, "privacy": quiet, "general": off})
    program = _npm("@google/gemini-cli", "0.61.0", "gemini")
    return [program, "--yolo", "--skip-trust", "-m", "gemini-2.5-flash", "-p", "Go."]


def _gemini_env(desk: Desk) -> dict[str, str]:
    return {"GEMINI_API_KEY": "scripted", "GOOGLE_GEMINI_BASE_URL": desk.url}


def _qwen(desk: Desk) -> Sequence[str]:
    desk.install("qwen-code")
    auth = {"auth": {"selectedType": "openai"}, "folderTrust": {"enabled": False}}
    desk.merge(".qwen/settings.json", {"security": auth})
    return [_npm("@qwen-code/qwen-code", "0.24.4", "qwen"), "--yolo", "-m", "scripted", "Go."]


def _openai_env(desk: Desk) -> dict[str, str]:
    url = f"{desk.url}/v1"
    return {"OPENAI_API_KEY": "scripted", "OPENAI_BASE_URL": url, "OPENAI_MODEL": "scripted"}


def _opencode(desk: Desk) -> Sequence[str]:
    desk.install("opencode")
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "scripted",
        "options": {"baseURL": f"{desk.url}/v1", "apiKey": "scripted"},
        "models": {"scripted": {"name": "scripted"}},
    }
    more: Json = {"provider": {"scripted": provider}, "autoupdate": False, "share": "disabled"}
    desk.merge(".config/opencode/opencode.json", more)
    program = _npm("opencode-ai", "1.18.33", "opencode")
    return [program, "run", "--auto", "-m", "scripted/scripted", "Go."]


def _copilot(desk: Desk) -> Sequence[str]:
    desk.install("copilot-cli")
    program = _npm("@github/copilot", "1.0.102", "copilot")
    return [program, "-p", "Go.", "--allow-all-tools"]


def _copilot_env(desk: Desk) -> dict[str, str]:
    return {
        "COPILOT_PROVIDER_BASE_URL": f"{desk.url}/v1",
        "COPILOT_PROVIDER_API_KEY": "scripted",
        "COPILOT_MODEL": "scripted",
        "COPILOT_OFFLINE": "true",
        "COPILOT_AUTO_UPDATE": "false",
    }


def _continue(desk: Desk) -> Sequence[str]:
    env = environment(desk.lab)
    config = {
        "name": "lab",
        "version": "1.0.0",
        "schema": "v1",
        "models": [
            {
                "name": "scripted",
                "provider": "openai",
                "model": "gpt-4o",
                "apiBase": f"{desk.url}/v1",
                "apiKey": "scripted",
                "roles": ["chat"],
                "capabilities": ["tool_use"],
            }
        ],
        "mcpServers": [
            {"name": "codex", "command": desk.server[0], "args": desk.options, "env": env}
        ],
    }
    path = desk.lab.root / "continue.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML.
    return [_npm("@continuedev/cli", "1.5.47", "cn"), "--config", str(path), "--auto", "-p", "Go."]


def _cline(desk: Desk) -> Sequence[str]:
    desk.install("cline")
    program = _npm("cline", "3.0.65", "cline")
    told = ["-k", "scripted", "-m", "gpt-4o", "-b", f"{desk.url}/v1"]
    env = environment(desk.lab) | {"PATH": node_path()}
    subprocess.run(
        [program, "auth", "-p", "openai", *told], env=env, check=True, capture_output=True
    )
    return [program, "--auto-approve", "true", "-P", "openai", "-m", "gpt-4o", "Go on now."]


def _driver(name: str, *packages: str) -> Callable[[Desk], Sequence[str]]:
    def start(desk: Desk) -> Sequence[str]:
        version = packages[0].rpartition("==")[2]
        python = from_pypi(f"pypi/{name.removesuffix('_client')}-{version}", *packages)
        return [str(python), str(DRIVERS / f"{name}.py"), *_arguments(desk)]

    return start


def _agents(desk: Desk) -> Sequence[str]:
    python = from_pypi("pypi/schema-converters-1", "google-genai==3.6.1", "openai-agents==0.24.0")
    return [str(python), str(DRIVERS / "openai_agents_client.py"), *_arguments(desk)]


def _own_sdk(desk: Desk) -> Sequence[str]:
    python = str(Path(server_program()).with_name("python"))
    return [python, str(DRIVERS / "mcp_client.py"), *_arguments(desk)]


def _typescript(generation: str) -> Callable[[Desk], Sequence[str]]:
    def start(desk: Desk) -> Sequence[str]:
        sdk, client = "@modelcontextprotocol/sdk@1.32.2", "@modelcontextprotocol/client@2.4.0"
        folder = from_npm("npm/schema-validators-1", "ajv@8.20.0", sdk, client)
        # Modules are looked for beside the script.
        for name in ("agent_loop.mjs", f"typescript_{generation}.mjs"):
            (folder / name).write_bytes((DRIVERS / name).read_bytes())
        return ["node", str(folder / f"typescript_{generation}.mjs"), *_arguments(desk)]

    return start


def _arguments(desk: Desk) -> list[str]:
    return [desk.url, json.dumps(desk.server), json.dumps(environment(desk.lab))]


CLIENTS = (
    RealClient("Claude Code", "2.1.332", _claude_code, _claude_env, "messages"),
    RealClient(
        *("Codex", "0.171.0", _codex),
        env=lambda desk: {"CODEX_HOME": str(desk.lab.root / "client-home")},
        speaks="codex",
    ),
    RealClient("Gemini CLI", "0.61.0", _gemini, _gemini_env),
    RealClient("Qwen Code", "0.24.4", _qwen, _openai_env),
    RealClient("opencode", "1.18.33", _opencode),
    RealClient("Copilot CLI", "1.0.102", _copilot, _copilot_env),
    RealClient("Continue CLI", "1.5.47", _continue),
    RealClient("OpenAI Agents SDK", "0.24.0", _agents),
    RealClient(
        *("LangChain MCP adapters", "0.3.2"),
        _driver("langchain_client", "langchain-mcp-adapters==0.3.2"),
    ),
    RealClient(
        *("Pydantic AI", "2.68.0"),
        _driver("pydantic_ai_client", "pydantic-ai-slim[mcp,openai]==2.68.0"),
    ),
    RealClient(
        *("Google ADK", "2.13.0"),
        _driver("google_adk_client", "google-adk[mcp]==2.13.0"),
        _gemini_env,
    ),
    RealClient("FastMCP", "4.2.3", _driver("fastmcp_client", "fastmcp==4.2.3")),
    RealClient("TypeScript SDK", "1.32.2", _typescript("1")),
    RealClient("TypeScript SDK", "2.4.0", _typescript("2")),
    RealClient("Python SDK", "2.3.0", _own_sdk),
)
"""In the order of the table."""

IF_NAMED = (RealClient("Cline CLI", "3.0.65", _cline),)
"""Played only if named: on a busy machine, Cline begins without the server and does not say so."""

CLIENT_FOLDERS = (str(CACHE / "npm"), str(CACHE / "pypi"))
"""What the programs of the clients have in their command lines, and those of a run do not."""
