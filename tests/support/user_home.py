"""A home and a project of somebody's, and the console script run in them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support.lab import server_program

CASES = sorted((Path(__file__).parents[1] / "data" / "install").glob("*/*"))
"""Configuration files before and after; @COMMAND@ stands for the console script."""

OPTIONS = ("--max-sandbox", "read-only")
"""What they were made with."""

APPLICATIONS = "Library/Application Support" if sys.platform == "darwin" else ".config"

USER = {
    "claude-desktop": f"{APPLICATIONS}/Claude/claude_desktop_config.json",
    "cursor": ".cursor/mcp.json",
    "vscode": f"{APPLICATIONS}/Code/User/mcp.json",
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
"""Where each client has its own file, below the home folder."""

PROJECT = {
    "claude-code": ".mcp.json",
    "cursor": ".cursor/mcp.json",
    "vscode": ".vscode/mcp.json",
    "codex": ".codex/config.toml",
    "zed": ".zed/settings.json",
    "gemini-cli": ".gemini/settings.json",
    "qwen-code": ".qwen/settings.json",
    "opencode": "opencode.json",
    "kiro": ".kiro/settings/mcp.json",
}
"""And where it has the project's."""

PLACES = [*((name, "user") for name in USER), *((name, "project") for name in PROJECT)]


@dataclass(frozen=True)
class Desk:
    """Where somebody works."""

    home: Path

    @property
    def project(self) -> Path:
        return self.home / "work" / "project"

    def config(self, client: str, scope: str = "") -> Path:
        """Return the file of *client*; where it has one, that of the user."""
        if scope == "project" or client not in USER:
            return self.project / PROJECT[client]
        return self.home / USER[client]

    def write(self, client: str, data: bytes | str, scope: str = "") -> Path:
        """Write the file of *client*; return its path."""
        path = self.config(client, scope)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    def run(self, command: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the console script in the project; of environment, it has PATH, HOME and *env*."""
        whole = {"PATH": os.defpath, "HOME": str(self.home), "LANG": "C.UTF-8", **env}
        return subprocess.run(
            [server_program(), command, *words],
            cwd=self.project,
            env=whole,
            capture_output=True,
            text=True,
        )

    def change(self, command: str, client: str, *words: str, **env: str) -> str:
        """Run it for the scope of `config(client)`; return what it said, which is no error."""
        scope = () if client in USER or "--scope" in words else ("--scope", "project")
        done = self.run(command, client, *scope, *words, **env)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def files(self) -> dict[str, tuple[int, int, bytes]]:
        """Return everything there is, with mode, time of change and content."""
        return {
            str(path.relative_to(self.home)): (
                path.lstat().st_mode,
                path.lstat().st_mtime_ns,
                path.read_bytes() if path.is_file() else b"",
            )
            for path in self.home.rglob("*")
        }


def make_desk(folder: Path) -> Desk:
    """Return a desk with nothing on it."""
    desk = Desk(folder / "home")
    desk.project.mkdir(parents=True)
    return desk
