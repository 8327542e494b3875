"""Check Claude Code's plugins: this server's own, and others with the same command names.

The two files are as Claude Code 2.1.332 writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from codex_tools.codex.foreign_file import read_foreign
from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.checks.check import Check, ok, warning
from mcp_server_codex.cli.checks.context import CheckContext
from mcp_server_codex.cli.clients.known import ConfigError, client_named

OWN = "mcp-server-codex"
"""The name of this server's plugin."""

_SIZE_LIMIT = 4_000_000
"""Maximum bytes of one of Claude Code's files that is read."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """An enabled plugin of Claude Code."""

    name: str
    """As Claude Code has it: PLUGIN@MARKETPLACE."""
    commands: frozenset[str]

    @property
    def is_own(self) -> bool:
        """True if this is the plugin of this server."""
        return self.name.partition("@")[0] == OWN


def enabled_plugins(home: Path, environ: Mapping[str, str]) -> list[Plugin]:
    """Return Claude Code's enabled plugins; none if its files cannot be read."""
    folder = Path(environ.get("CLAUDE_CONFIG_DIR") or home / ".claude")
    installed = _table(_read(folder / "plugins" / "installed_plugins.json"), "plugins")
    enabled = _table(_read(folder / "settings.json"), "enabledPlugins")
    return [
        Plugin(name, frozenset(_commands(places)))
        for name, places in installed.items()
        if enabled.get(name) is True
    ]


def check_plugins(context: CheckContext) -> list[Check]:
    """Check that the commands of this server's plugin are not another plugin's as well."""
    home = Path.home()
    plugins = enabled_plugins(home, context.environ)
    own = [plugin for plugin in plugins if plugin.is_own]
    if not own:
        return []
    findings: list[Check] = []
    names = {name for plugin in own for name in plugin.commands}
    for other in plugins:
        if not other.is_own and (both := sorted(other.commands & names)):
            message = (
                f"Claude Code's plugin {other.name} has commands of the same names as this"
                f" server's plugin: {', '.join(both)}."
            )
            cure = f"Type /{OWN}:{both[0]} for this server's command."
            findings.append(warning("plugins", message, cure, plugin=other.name, commands=both))
    if _is_installed_too(home, context):
        message = (
            "Claude Code has this server twice, by its plugin and by an entry: its tools are"
            " listed twice."
        )
        cure = "mcp-server-codex uninstall claude-code"
        findings.append(warning("plugins", message, cure))
    return findings or [ok("plugins", f"Claude Code has this server's plugin, {own[0].name}.")]


def _is_installed_too(home: Path, context: CheckContext) -> bool:
    client = client_named("claude-code")
    for scope, file in client.config_paths(home, context.cwd, context.environ).items():
        try:
            text = read_foreign(file, _SIZE_LIMIT, follow=True).decode("utf-8", "replace")
            if client.find_named(text, scope, context.cwd) is not None:
                return True
        except (OSError, ConfigError):
            continue
    return False


def _commands(places: object) -> Iterator[str]:
    """Yield the names of the commands of a plugin that is installed at *places*."""
    for place in cast("list[object]", places) if isinstance(places, list) else []:
        path = cast("Json", place).get("installPath") if isinstance(place, dict) else None
        if isinstance(path, str):
            yield from (file.stem for file in (Path(path) / "commands").glob("*.md"))


def _read(file: Path) -> object:
    try:
        return json.loads(read_foreign(file, _SIZE_LIMIT, follow=True))
    except (OSError, ValueError, RecursionError):
        return None


def _table(value: object, name: str) -> Json:
    found = cast("Json", value).get(name) if isinstance(value, dict) else None
    return cast("Json", found) if isinstance(found, dict) else {}
