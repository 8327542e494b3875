"""Where each known client lists its servers, and which entry is this server's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcp_server_codex.cli.clients.known import (
    CLIENTS,
    ConfigError,
    client_named,
    starts_this_server,
)
from support.lab import Lab
from support.user_home import PROJECT, USER

AUTHOR = ("-c", "user.name=A", "-c", "user.email=a@b.example")

OURS: list[dict[str, Any]] = [
    {"command": "mcp-server-codex"},
    {"command": "/home/me/.local/bin/mcp-server-codex", "args": ["--max-runs", "2"]},
    {"command": "uvx", "args": ["mcp-server-codex"]},
    {"command": "/opt/bin/uvx", "args": ["--from", "mcp-server-codex[codex]==0.1.0", "x"]},
    {"command": "uv", "args": ["tool", "run", "mcp-server-codex@latest", "--ask", "never"]},
    {"command": "pipx", "args": ["run", "--spec", "mcp-server-codex @ git+https://x", "y"]},
    {"command": "python3", "args": ["-m", "mcp_server_codex"]},
    {"command": "nice", "args": ["/venv/bin/mcp-server-codex"]},
    {"command": {"path": "/venv/bin/mcp-server-codex", "args": []}},
    {"type": "local", "command": ["/venv/bin/mcp-server-codex", "--ask", "never"]},
    {"type": "local", "command": ["uvx", "mcp-server-codex"], "environment": {}},
    {"transport": {"type": "stdio", "command": "uvx", "args": ["mcp-server-codex"]}},
]

OTHERS: list[Any] = [
    {"command": "codex", "args": ["mcp-server"]},
    {"command": "npx", "args": ["-y", "@someone/mcp-server-codex-bridge"]},
    {"command": "npx", "args": ["server-filesystem", "/home/me/mcp-server-codex"]},
    {"command": "mcp-server-codex-like"},
    {"url": "https://example.com/mcp-server-codex"},
    {"command": ["mcp-server-codex"]},
    {"type": "local", "command": []},
    {"transport": {"type": "sse", "url": "https://example.com/mcp-server-codex"}},
    {},
    "mcp-server-codex",
    None,
]


@pytest.mark.parametrize("entry", OURS)
def test_an_entry_of_this_server_is_known(entry: dict[str, Any]) -> None:
    assert starts_this_server(entry)


@pytest.mark.parametrize("entry", OTHERS)
def test_an_entry_of_another_server_is_not_taken_for_it(entry: Any) -> None:
    assert not starts_this_server(entry)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_each_client_finds_the_entry_whatever_its_name(client: Any) -> None:
    data: dict[str, Any] = {"a": OTHERS[0], "my agent": OURS[1]}
    for key in reversed(client.key_path):
        data = {key: data}
    text = json.dumps(data)
    if client.name == "codex":
        text = '[mcp_servers.a]\ncommand = "x"\n[mcp_servers."my agent"]\n'
        text += f'command = "{OURS[1]["command"]}"\nargs = ["--max-runs", "2"]\n'
    assert client.find_named(text) == ("my agent", OURS[1])
    assert client.find_entry(text) == OURS[1]
    assert client.find_entry("") is None
    with pytest.raises(ConfigError) as raised:
        client.find_entry("\n{")
    assert raised.value.line == 2


def test_claude_code_s_local_scope_is_that_of_the_repository(lab: Lab) -> None:
    client = client_named("claude-code")
    # Not below the temp folder, in which a sandboxed Codex may leave an empty .git.
    top = lab.root
    repository, plain = top / "home" / "repository", top / "home"
    (repository / "sub").mkdir(parents=True)
    for words in (("init", "-q"), (*AUTHOR, "commit", "-q", "--allow-empty", "-m", "x")):
        subprocess.run(["git", *words], cwd=repository, check=True)
    tree = top / "tree"
    subprocess.run(["git", "worktree", "add", "-q", tree], cwd=repository, check=True)

    def found(**projects: Any) -> list[bool]:
        text = json.dumps({"mcpServers": {}, "projects": projects})
        assert client.find_entry(text) is None
        folders = (repository, repository / "sub", tree, plain, top)
        return [client.find_entry(text, "local", each) is not None for each in folders]

    ours = {"mcpServers": {"codex": OURS[0]}}
    assert found(**{str(repository): ours}) == [True, True, True, False, False]
    assert found(**{str(plain): ours}) == [False, False, False, True, False]


def test_every_scope_has_its_file(tmp_path: Path) -> None:
    home, cwd = tmp_path / "home", tmp_path / "project"
    found = {client.name: client.config_paths(home, cwd, {}) for client in CLIENTS}
    for name, path in USER.items():
        assert found[name].pop("user") == home / path
    for name, path in PROJECT.items():
        assert found[name].pop("project") == cwd / path
    state = home / ".claude.json"
    assert {name: rest for name, rest in found.items() if rest} == {
        "claude-code": {"user": state, "local": state}
    }


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_is_present_with_its_folder_or_its_program(client: Any, tmp_path: Path) -> None:
    if any(Path(place).exists() for place in client.places):
        pytest.skip(f"{client.title} is on this machine")
    assert not client.is_present(tmp_path, {})
    path = client.config_paths(tmp_path, tmp_path / "project", {})["user"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    assert client.is_present(tmp_path, {})
    for program in client.programs:
        folder = tmp_path / program
        folder.mkdir()
        (folder / program).write_text("#!/bin/sh\n")
        (folder / program).chmod(0o755)
        assert client.is_present(tmp_path / "nobody", {"PATH": str(folder)})


@pytest.mark.skipif(sys.platform == "darwin", reason="the XDG folders are not for macOS")
def test_xdg_folders_are_respected(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": "/x"}
    for name in ("claude-desktop", "vscode", "zed"):
        paths = client_named(name).config_paths(tmp_path, tmp_path, environ)
        assert str(paths["user"]).startswith("/x/")


def test_on_macos_applications_have_their_files_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    found = {each.name: each.config_paths(tmp_path, tmp_path, {})["user"] for each in CLIENTS}
    assert {name: str(path.relative_to(tmp_path)) for name, path in found.items()} == {
        "claude-code": ".claude.json",
        "claude-desktop": "Library/Application Support/Claude/claude_desktop_config.json",
        "cursor": ".cursor/mcp.json",
        "vscode": "Library/Application Support/Code/User/mcp.json",
        "codex": ".codex/config.toml",
        "windsurf": ".codeium/windsurf/mcp_config.json",
        "zed": ".config/zed/settings.json",
        "gemini-cli": ".gemini/settings.json",
        "qwen-code": ".qwen/settings.json",
        "opencode": ".config/opencode/opencode.json",
        "copilot-cli": ".copilot/mcp-config.json",
        "cline": ".cline/data/settings/cline_mcp_settings.json",
        "kiro": ".kiro/settings/mcp.json",
    }


def test_each_client_says_how_long_it_waits() -> None:
    for client in CLIENTS:
        assert client.limits.endswith(".")
        assert len(client.limits) > 20
