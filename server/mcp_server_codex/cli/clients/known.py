"""The MCP clients that `install` and `doctor` know: their files, formats and limits.

Where something was not seen on the client itself, the source stands beside it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.clients.config_error import ConfigError
from mcp_server_codex.cli.clients.formats import JSON, JSONC, TOML, Format, at_path

__all__ = ["CLIENTS", "NAME", "Client", "ConfigError", "client_named", "starts_this_server"]

NAME = "codex"
"""What this server is called in a client, unless a person has called it otherwise."""

ENVIRONMENT = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
"""Keeps a package named `mcp` in the user's project from being loaded as the SDK."""

_PROGRAM = re.compile(r"mcp-server-codex(?:[\[=<>~!@ ].*)?")
"""The program, or a requirement for its package, as uvx and pipx take one."""

Paths = Callable[[Path, Path, Mapping[str, str]], dict[str, Path]]


@dataclass(frozen=True, slots=True)
class Client:
    """An MCP client and how it is told of servers."""

    name: str
    title: str
    format: Format
    key_path: tuple[str, ...]
    """Where in the file the servers stand, by their names."""
    limits: str
    """What is known about how long it lets a call take."""
    paths: Paths
    """From home, project and environment to the file of each scope, the default first."""
    programs: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    """Applications, on macOS."""
    typed: bool = False
    """Whether an entry says `"type": "stdio"`."""
    settings: Json = field(default_factory=dict[str, Any])
    """What an entry says besides command, arguments and environment."""
    note: str = ""
    """What a person has to know or do once it is installed."""
    shell_path: bool = False
    """Whether it is started from a shell and so has the shell's PATH."""

    def config_paths(
        self, home: Path, cwd: Path, environ: Mapping[str, str] | None = None
    ) -> dict[str, Path]:
        """Return the configuration file of each scope, whether or not it is there."""
        return self.paths(home, cwd, os.environ if environ is None else environ)

    def is_present(self, home: Path, environ: Mapping[str, str]) -> bool:
        """Tell whether the client seems to be installed: its program or its folder is there."""
        user = next(iter(self.paths(home, home, environ).values()))
        folder = user if user.parent == home else user.parent
        return (
            any(shutil.which(name, path=environ.get("PATH", "")) for name in self.programs)
            or folder.exists()
            or any(Path(place).exists() for place in self.places)
        )

    def servers_at(self, scope: str, cwd: Path) -> tuple[str, ...]:
        """Return where in the file of *scope* the servers stand."""
        # Claude Code only: it has one file for all projects.
        where = ("projects", str(_repository(cwd))) if scope == "local" else ()
        return (*where, *self.key_path)

    def find_named(
        self, text: str, scope: str = "user", cwd: Path | None = None
    ) -> tuple[str, Json] | None:
        """Return name and entry of what starts this server; None if nothing does.

        Raises:
            ConfigError: The file is broken; says in which line.
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
        """Return the entry that starts this server, whatever its name.

        Raises:
            ConfigError: The file is broken; says in which line.
        """
        found = self.find_named(text, scope, cwd)
        return found[1] if found else None

    def entry(self, command: str, arguments: list[str]) -> Json:
        """Return the entry by which this client starts *command*."""
        kind: Json = {"type": "stdio"} if self.typed else {}
        started = {"command": command, "args": arguments, "env": dict(ENVIRONMENT)}
        return kind | started | self.settings


def starts_this_server(entry: Any) -> bool:
    """Tell whether a client's entry starts this server, by itself or through uvx and the like."""
    if not isinstance(entry, dict):
        return False
    table = cast("Json", entry)
    command, arguments = table.get("command"), table.get("args")
    if isinstance(command, dict):  # Zed had it so until 2025.
        older = cast("Json", command)
        command, arguments = older.get("path"), older.get("args")
    words = [str(each) for each in cast("list[Any]", arguments)] if _is_list(arguments) else []
    if not isinstance(command, str):
        return False
    if Path(command).name == "mcp-server-codex":
        return True
    return any(
        _PROGRAM.fullmatch(word)
        or word == "mcp_server_codex"
        or word.endswith("/bin/mcp-server-codex")
        for word in words
    )


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def client_named(name: str) -> Client:
    """Return the client of that name, which is one of CLIENTS."""
    return next(each for each in CLIENTS if each.name == name)


def _repository(folder: Path) -> Path:
    """Return the folder that Claude Code takes for the project around *folder*.

    That of the git repository, of a worktree the main one; without git, *folder*
    itself (seen on 2.1.332).
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
    """Return the folder in which an Electron application keeps its files."""
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
    # Called Devin Desktop since June 2026, and keeps its files elsewhere since then
    # (docs of vaadin.com and sevalla.com; docs.devin.ai still named the old place).
    newer = _config_home(home, environ) / "devin"
    folder = newer if newer.is_dir() else home / ".codeium" / "windsurf"
    return {"user": folder / "mcp_config.json"}


def _zed(home: Path, cwd: Path, environ: Mapping[str, str]) -> dict[str, Path]:
    folder = home / ".config" if _is_mac() else _config_home(home, environ)
    return {"user": folder / "zed" / "settings.json", "project": cwd / ".zed" / "settings.json"}


CLIENTS = (
    Client(
        "claude-code",
        "Claude Code",
        JSON,
        ("mcpServers",),
        "Lets a call take `timeout` milliseconds, about 28 hours where that is not set; gives up"
        " one that has been silent for 30 minutes, which this server's progress prevents.",
        _claude_code,
        programs=("claude",),
        typed=True,
        settings={"timeout": 7_200_000},
        shell_path=True,
    ),
    Client(
        "claude-desktop",
        "Claude Desktop",
        JSON,
        ("mcpServers",),
        # anthropics/claude-code issues 22542, 43791 and 65643.
        "Gives up a call after one to four minutes, as versions differ, and has no setting for it;"
        " leave --wait-s at auto, so that calls end before.",
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
        "Has no setting; calls were cancelled after five minutes; leave --wait-s at auto, so that"
        " calls end before.",
        _cursor,
        programs=("cursor", "cursor-agent"),
        places=("/Applications/Cursor.app",),
        note="Check in Cursor's settings, under MCP, that the server is switched on.",
    ),
    Client(
        "vscode",
        "VS Code",
        JSONC,
        ("servers",),
        # microsoft/vscode issue 311595 asks for one.
        "Sets no time limit on a call.",
        _vscode,
        programs=("code",),
        places=("/Applications/Visual Studio Code.app",),
        typed=True,
        note="VS Code asks once whether you trust the server, when it first starts it.",
    ),
    Client(
        "codex",
        "Codex",
        TOML,
        ("mcp_servers",),
        "Lets a call take `tool_timeout_sec` seconds, 60 where that is not set; progress does not"
        " prolong it.",
        _codex,
        programs=("codex",),
        # Codex hands a server no variable besides those, and both are needed: the first to find
        # the same threads, the second to tell how deep agents are nested (seen on 0.60.1, 0.163.0).
        settings={
            "env_vars": ["CODEX_HOME", "CODEX_RUN_DEPTH"],
            "startup_timeout_sec": 30,
            "tool_timeout_sec": 7200,
        },
        note=(
            'Codex asks before it calls codex_run, and with approval_policy = "never", as in'
            ' `codex exec`, refuses it; default_tools_approval_mode = "approve" in the entry'
            " allows it without asking (0.147 and later)."
        ),
        shell_path=True,
    ),
    Client(
        "windsurf",
        "Windsurf (Devin Desktop)",
        JSONC,
        ("mcpServers",),
        "Documents no time limit and no setting; leave --wait-s at auto.",
        _windsurf,
        programs=("windsurf", "devin-desktop"),
        places=("/Applications/Windsurf.app", "/Applications/Devin.app"),
        note="Press the refresh button of its list of MCP servers.",
    ),
    Client(
        "zed",
        "Zed",
        JSONC,
        ("context_servers",),
        # ContextServerCommand in zed's crates/settings_content/src/project.rs.
        "Lets a call take `timeout` seconds, 60 where that is not set.",
        _zed,
        programs=("zed", "zeditor"),
        places=("/Applications/Zed.app",),
        settings={"timeout": 7200},
    ),
)
"""All of them; the names are what a person types."""
