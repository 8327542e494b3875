"""The MCP clients that `install` and `doctor` know: their files, formats and limits.

Facts that were not seen on the client itself have their source in a comment.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.clients.config_error import ConfigError
from mcp_server_codex.cli.clients.formats import JSON, JSONC, TOML, Format, at_path

__all__ = ["CLIENTS", "NAME", "Client", "ConfigError", "client_named", "starts_this_server"]

NAME = "codex"
"""The server's name in a client's configuration, unless a person has chosen another one."""

ENVIRONMENT = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
"""Variables that keep Python from loading a project's own package `mcp` as the MCP SDK."""

_PROGRAM = re.compile(r"mcp-server-codex(?:[\[=<>~!@ ].*)?")
"""Matches the program, or a requirement for its package as uvx and pipx accept one."""

Paths = Callable[[Path, Path, Mapping[str, str]], dict[str, Path]]


@dataclass(frozen=True, slots=True)
class Client:
    """An MCP client and how its configuration lists servers."""

    name: str
    title: str
    format: Format
    key_path: tuple[str, ...]
    """Path in the file to the object that holds the servers by name."""
    limits: str
    """The client's time limit for a call, as far as it is known."""
    paths: Paths
    """Maps home, project and environment to the file of each scope, the default first."""
    programs: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    """Paths of the application on macOS."""
    kind: str = ""
    """The `type` that an entry must contain, if any."""
    shape: Literal["flat", "list", "nested"] = "flat"
    """How an entry holds the command: as command, args and env; as one list; in `transport`."""
    settings: Json = field(default_factory=dict[str, Any])
    """Further keys of an entry, after command, arguments and environment."""
    note: str = ""
    """A note on what a person must know or do after the install."""
    shell_path: bool = False
    """True if the client is started from a shell and so has the shell's PATH."""
    refused_variables: frozenset[str] = frozenset()
    """Environment variables that the client does not let an entry set, and warns of."""

    def config_paths(
        self, home: Path, cwd: Path, environ: Mapping[str, str] | None = None
    ) -> dict[str, Path]:
        """Return the configuration file of each scope, even if the file does not exist."""
        return self.paths(home, cwd, os.environ if environ is None else environ)

    def is_present(self, home: Path, environ: Mapping[str, str]) -> bool:
        """Return True if the client seems to be installed: its program or its folder exists."""
        user = next(iter(self.paths(home, home, environ).values()))
        folder = user if user.parent == home else user.parent
        return (
            any(shutil.which(name, path=environ.get("PATH", "")) for name in self.programs)
            or folder.exists()
            or any(Path(place).exists() for place in self.places)
        )

    def servers_at(self, scope: str, cwd: Path) -> tuple[str, ...]:
        """Return the path to the servers in the file of *scope*."""
        # Only Claude Code has the scope "local": one file for all projects.
        where = ("projects", str(_repository(cwd))) if scope == "local" else ()
        return (*where, *self.key_path)

    def find_named(
        self, text: str, scope: str = "user", cwd: Path | None = None
    ) -> tuple[str, Json] | None:
        """Return the name and the entry that start this server, or None.

        Raises:
            ConfigError: *text* is invalid. The error names the line.
        """
        data = self.format.parse(text)
        servers = at_path(data, self.servers_at(scope, cwd or Path.cwd()))
        if not isinstance(servers, dict):
            return None
        entries = cast("Json", servers)
        names = sorted(entries, key=lambda name: name != NAME)
        ours = (name for name in names if starts_this_server(entries[name]))
        return next(((name, entries[name]) for name in ours), None)

    def find_entry(self, text: str, scope: str = "user", cwd: Path | None = None) -> Json | None:
        """Return the entry that starts this server under any name, or None.

        Raises:
            ConfigError: *text* is invalid. The error names the line.
        """
        found = self.find_named(text, scope, cwd)
        return found[1] if found else None

    def entry(self, command: str, arguments: list[str]) -> Json:
        """Return the entry with which this client starts *command*."""
        kind: Json = {"type": self.kind} if self.kind else {}
        env = {k: v for k, v in ENVIRONMENT.items() if k not in self.refused_variables}
        if self.shape == "list":
            return kind | {"command": [command, *arguments], "environment": env} | self.settings
        started = kind | {"command": command, "args": arguments, "env": env}
        return ({"transport": started} if self.shape == "nested" else started) | self.settings


def starts_this_server(entry: Any) -> bool:
    """Return True if *entry* starts this server, directly or through uvx or a similar program."""
    words = command_of(entry)
    if words is None:
        return False
    if Path(words[0]).name == "mcp-server-codex":
        return True
    return any(
        _PROGRAM.fullmatch(word)
        or word == "mcp_server_codex"
        or word.endswith("/bin/mcp-server-codex")
        for word in words[1:]
    )


def command_of(entry: Any) -> list[str] | None:
    """Return the program and the arguments of an entry of any client; None if it has none."""
    table = _unfolded(entry)
    command, arguments = table.get("command"), table.get("args")
    if isinstance(command, dict):  # Zed used a table here until 2025.
        older = cast("Json", command)
        command, arguments = older.get("path"), older.get("args")
    if not isinstance(command, str):
        return None
    words = cast("list[Any]", arguments) if isinstance(arguments, list) else []
    return [command, *map(str, words)]


def environment_of(entry: Any) -> Json:
    """Return the environment variables that an entry of any client sets."""
    found = _unfolded(entry).get("env")
    return cast("Json", found) if isinstance(found, dict) else {}


def _unfolded(entry: Any) -> Json:
    """Return *entry* with the keys command, args and env, whatever its shape is."""
    if not isinstance(entry, dict):
        return {}
    table = cast("Json", entry)
    if isinstance(table.get("transport"), dict):
        return cast("Json", table["transport"])
    command: object = table.get("command")
    if table.get("type") == "local" and isinstance(command, list) and command:
        words = [str(word) for word in cast("list[Any]", command)]
        return table | {"command": words[0], "args": words[1:], "env": table.get("environment")}
    return table


def client_named(name: str) -> Client:
    """Return the client called *name*, which must be one of CLIENTS."""
    return next(each for each in CLIENTS if each.name == name)


def _repository(folder: Path) -> Path:
    """Return the folder that Claude Code uses as the project of *folder*.

    This is the top of the git repository; in a worktree, that of the main
    repository; without git, *folder* itself (seen on 2.1.332).
    """
    folder = folder.resolve()
    for each in (folder, *folder.parents):
        mark = each / ".git"
        if mark.is_file():
            main, found, _ = mark.read_text().removeprefix("gitdir: ").partition("/.git/worktrees/")
            return Path(main) if found else each
        if mark.exists():
            return each
    return folder


def _is_mac() -> bool:
    return sys.platform == "darwin"


def _config_home(home: Path, environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CONFIG_HOME") or home / ".config")


def _application(home: Path, environ: Mapping[str, str], name: str) -> Path:
    """Return the configuration folder of the Electron application *name*."""
    if _is_mac():
        return home / "Library" / "Application Support" / name
    return _config_home(home, environ) / name


def _claude_code(home: Path, cwd: Path, environ: Mapping[str, str]) -> dict[str, Path]:
    state = Path(environ.get("CLAUDE_CONFIG_DIR") or home) / ".claude.json"
    return {"user": state, "project": cwd / ".mcp.json", "local": state}


def _claude_desktop(home: Path, cwd: Path, environ: Mapping[str, str]) -> dict[str, Path]:
    return {"user": _application(home, environ, "Claude") / "claude_desktop_config.json"}


def _cursor(home: Path, cwd: Path, environ: Mapping[str, str]) -> dict[str, Path]:
    return {"user": home / ".cursor" / "mcp.json", "project": cwd / ".cursor" / "mcp.json"}


def _vscode(home: Path, cwd: Path, environ: Mapping[str, str]) -> dict[str, Path]:
    user = _application(home, environ, "Code") / "User" / "mcp.json"
    return {"user": user, "project": cwd / ".vscode" / "mcp.json"}


def _codex(home: Path, cwd: Path, environ: Mapping[str, str]) -> dict[str, Path]:
    folder = Path(environ.get("CODEX_HOME") or home / ".codex")
    return {"user": folder / "config.toml", "project": cwd / ".codex" / "config.toml"}


def _windsurf(home: Path, cwd: Path, environ: Mapping[str, str]) -> dict[str, Path]:
    # Windsurf is called Devin Desktop since June 2026 and keeps its files in a new folder
    # since then (docs of vaadin.com and sevalla.com; docs.devin.ai still named the old one).
    newer = _config_home(home, environ) / "devin"
    folder = newer if newer.is_dir() else home / ".codeium" / "windsurf"
    return {"user": folder / "mcp_config.json"}


def _in_folder(folder: str, name: str, *, project: bool = True) -> Paths:
    """Return the paths of a client whose file has the same place in home and in a project."""

    def paths(home: Path, cwd: Path, environ: Mapping[str, str]) -> dict[str, Path]:
        user = {"user": home / folder / name}
        return user | ({"project": cwd / folder / name} if project else {})

    return paths


def _opencode(home: Path, cwd: Path, environ: Mapping[str, str]) -> dict[str, Path]:
    folder = _config_home(home, environ) / "opencode"
    return {"user": folder / "opencode.json", "project": cwd / "opencode.json"}


def _zed(home: Path, cwd: Path, environ: Mapping[str, str]) -> dict[str, Path]:
    folder = home / ".config" if _is_mac() else _config_home(home, environ)
    return {"user": folder / "zed" / "settings.json", "project": cwd / ".zed" / "settings.json"}


CLIENTS = (
    Client(
        "claude-code",
        "Claude Code",
        JSON,
        ("mcpServers",),
        "Limits a call to `timeout` milliseconds, about 28 hours if not set. Also aborts a call"
        " that is silent for 30 minutes; this server's progress messages prevent that.",
        _claude_code,
        programs=("claude",),
        kind="stdio",
        settings={"timeout": 7_200_000},
        shell_path=True,
    ),
    Client(
        "claude-desktop",
        "Claude Desktop",
        JSON,
        ("mcpServers",),
        # anthropics/claude-code issues 22542, 43791 and 65643.
        "Aborts a call after one to four minutes, depending on its version, and has no setting for"
        " this limit; leave --wait-s at auto, so that each call returns earlier.",
        _claude_desktop,
        places=("/Applications/Claude.app",),
        note="Quit Claude Desktop and start it again.",
    ),
    Client(
        "cursor",
        "Cursor",
        JSONC,
        ("mcpServers",),
        # cursor/cursor issue 3510, of version 1.4.
        "Aborts a call after five minutes (version 1.4) and has no setting for this limit;"
        " leave --wait-s at auto, so that each call returns earlier.",
        _cursor,
        programs=("cursor", "cursor-agent"),
        places=("/Applications/Cursor.app",),
        note="In Cursor's settings, under MCP, check that the server is enabled.",
    ),
    Client(
        "vscode",
        "VS Code",
        JSONC,
        ("servers",),
        # microsoft/vscode issue 311595 asks for such a limit.
        "Has no time limit for a call.",
        _vscode,
        programs=("code",),
        places=("/Applications/Visual Studio Code.app",),
        kind="stdio",
        note="VS Code asks once, at the first start, whether you trust the server.",
    ),
    Client(
        "codex",
        "Codex",
        TOML,
        ("mcp_servers",),
        "Limits a call to `tool_timeout_sec` seconds, 60 if not set; progress messages do not"
        " extend this time.",
        _codex,
        programs=("codex",),
        # Codex passes hardly any variable to a server unless `env_vars` lists it. Both are needed:
        # CODEX_HOME to find the same threads, CODEX_RUN_DEPTH to know how deep agents are nested
        # (seen on 0.60.1 and 0.163.0).
        settings={
            "env_vars": ["CODEX_HOME", "CODEX_RUN_DEPTH"],
            "startup_timeout_sec": 30,
            "tool_timeout_sec": 7200,
        },
        note=(
            "Codex asks the person before it calls codex_run. With approval_policy ="
            ' "never", as in `codex exec`, it refuses the call instead. To allow the call without'
            ' asking, set default_tools_approval_mode = "approve" in the entry (Codex 0.147 and'
            " later)."
        ),
        shell_path=True,
    ),
    Client(
        "windsurf",
        "Windsurf (Devin Desktop)",
        JSONC,
        ("mcpServers",),
        "Documents no time limit for a call and no setting for one; leave --wait-s at auto.",
        _windsurf,
        programs=("windsurf", "devin-desktop"),
        places=("/Applications/Windsurf.app", "/Applications/Devin.app"),
        note="Press the refresh button in its list of MCP servers.",
    ),
    Client(
        "zed",
        "Zed",
        JSONC,
        ("context_servers",),
        # ContextServerCommand in zed's crates/settings_content/src/project.rs.
        "Limits a call to `timeout` seconds, 60 if not set.",
        _zed,
        programs=("zed", "zeditor"),
        places=("/Applications/Zed.app",),
        settings={"timeout": 7200},
    ),
    Client(
        "gemini-cli",
        "Gemini CLI",
        JSONC,
        ("mcpServers",),
        # Measured on 0.61.0: a call of 331 s that sends progress is not aborted.
        "Limits a call to `timeout` milliseconds, ten minutes if not set; progress messages extend"
        " this time.",
        _in_folder(".gemini", "settings.json"),
        programs=("gemini",),
        settings={"timeout": 7_200_000},
        note="Gemini CLI asks before each call; its command /mcp shows the server's state.",
        shell_path=True,
        # At each start, 0.61.0 says "Blocked dangerous environment variable override".
        refused_variables=frozenset({"PYTHONPATH"}),
    ),
    Client(
        "qwen-code",
        "Qwen Code",
        JSONC,
        ("mcpServers",),
        "Limits a call to `timeout` milliseconds; a call of 331 s was not aborted (0.24.4).",
        _in_folder(".qwen", "settings.json"),
        programs=("qwen",),
        settings={"timeout": 7_200_000},
        shell_path=True,
    ),
    Client(
        "opencode",
        "opencode",
        JSONC,
        ("mcp",),
        "Does not abort a call of 331 s that sends progress (1.18.33).",
        _opencode,
        programs=("opencode",),
        kind="local",
        shape="list",
        settings={"enabled": True},
        shell_path=True,
    ),
    Client(
        "copilot-cli",
        "GitHub Copilot CLI",
        JSON,
        ("mcpServers",),
        "Does not abort a call of 331 s that sends progress (1.0.102).",
        _in_folder(".copilot", "mcp-config.json", project=False),
        programs=("copilot",),
        kind="local",
        settings={"tools": ["*"]},
        shell_path=True,
    ),
    Client(
        "cline",
        "Cline CLI",
        JSON,
        ("mcpServers",),
        "Was not seen to abort a call within 45 s (3.0.65); leave --wait-s at auto.",
        _in_folder(".cline/data/settings", "cline_mcp_settings.json", project=False),
        programs=("cline",),
        kind="stdio",
        shape="nested",
        note=(
            "Cline starts servers from a background process, which keeps them and their runs alive"
            " when Cline itself is killed."
        ),
        shell_path=True,
    ),
    Client(
        "kiro",
        "Kiro",
        JSON,
        ("mcpServers",),
        # The place of the file is from kiro.dev/docs/mcp; not seen on the client.
        "Documents no time limit for a call; leave --wait-s at auto.",
        _in_folder(".kiro/settings", "mcp.json"),
        programs=("kiro", "kiro-cli"),
        places=("/Applications/Kiro.app",),
    ),
)
"""All known clients; a person types the name."""
