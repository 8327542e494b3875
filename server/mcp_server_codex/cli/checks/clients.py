"""Check the MCP clients on this machine: which are installed and how they start this server."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from codex_tools.codex.json_object import Json
from codex_tools.codex.paths import expand_home
from mcp_server_codex.cli.checks.check import Check, ok, problem, warning
from mcp_server_codex.cli.checks.context import CheckContext
from mcp_server_codex.cli.checks.plugins import enabled_plugins
from mcp_server_codex.cli.clients.known import (
    CLIENTS,
    Client,
    ConfigError,
    command_of,
    environment_of,
)
from mcp_server_codex.settings import read_settings

_TIMEOUT_KEYS = ("timeout", "tool_timeout_sec")
"""Keys of an entry that limit the time of a call."""


@dataclass(frozen=True, slots=True)
class Entry:
    """This server's entry in a client's configuration."""

    client: Client
    scope: str
    file: Path
    name: str
    data: Json

    @property
    def command(self) -> str:
        """The program that the client starts."""
        return (command_of(self.data) or [""])[0]

    @property
    def reinstall(self) -> str:
        """The command that writes the entry again."""
        scope = "" if self.scope == "user" else f" --scope {self.scope}"
        return f"mcp-server-codex install {self.client.name}{scope}"


def check_clients(context: CheckContext) -> list[Check]:
    """Check how each client starts this server, and find the clients without it."""
    home, env = Path.home(), context.environ
    findings: list[Check] = []
    without: list[Client] = []
    entries: list[Entry] = []
    for client in CLIENTS:
        try:
            found = [*_entries(client, home, context)]
        except ConfigError as error:
            if client.name != "codex":
                findings.append(_broken(client, home, context, error))
            else:  # check_config reports errors in Codex's own file.
                without.append(client)
            continue
        findings += [_finding(entry, env) for entry in found]
        entries += found
        if not found and client.is_present(home, env):
            without.append(client)
    if any(plugin.is_own for plugin in enabled_plugins(home, env)):
        without = [client for client in without if client.name != "claude-code"]
        return [*findings, *_without(without, any_entry=True)]
    return [*findings, *_without(without, any_entry=bool(entries))]


def _entries(client: Client, home: Path, context: CheckContext) -> Iterator[Entry]:
    paths = client.config_paths(home, context.cwd, context.environ)
    for scope, file in paths.items():
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        found = client.find_named(text, scope, context.cwd)
        if found is not None:
            yield Entry(client, scope, file, *found)


def _broken(client: Client, home: Path, context: CheckContext, error: ConfigError) -> Check:
    files = client.config_paths(home, context.cwd, context.environ).values()
    shown = " or ".join(dict.fromkeys(str(file) for file in files if file.is_file()))
    message = f"{client.title}'s configuration, {shown}, cannot be read: {error}."
    return warning("clients", message, f"Correct {shown}.", client=client.name)


def _finding(entry: Entry, environ: Mapping[str, str]) -> Check:
    start = f"{entry.client.title} has this server as {entry.name} in {entry.file}"
    start += f" (scope {entry.scope})"
    about = {
        "client": entry.client.name,
        "scope": entry.scope,
        "file": str(entry.file),
        "server": entry.name,
        "command": entry.command,
    }
    if entry.data.get("enabled") is False or entry.data.get("disabled") is True:
        cure = f"Enable the entry in {entry.client.title} or in {entry.file}"
        return warning("clients", f"{start}, but the entry is disabled.", cure, **about)
    if _is_missing(entry.command, environ):
        message = f"{start}, but its program {entry.command} was not found."
        return problem("clients", message, entry.reinstall, **about)
    if fault := _option_error(entry):
        message = f"{start}, but with its options the server does not start: {fault.rstrip('.')}."
        cure = f"Correct {entry.file}, or write the entry again: {entry.reinstall}"
        return problem("clients", message, cure, **about)
    times = [f"{name} = {entry.data[name]}" for name in _TIMEOUT_KEYS if name in entry.data]
    limits = f"{entry.client.limits.rstrip('.')}{f' (here: {times[0]})' if times else ''}."
    return ok("clients", f"{start}. {limits}", **about)


def _is_missing(command: str, environ: Mapping[str, str]) -> bool:
    if "$" in command:
        return False  # The path contains a variable that only the client knows.
    return shutil.which(expand_home(command), path=environ.get("PATH", "")) is None


def _option_error(entry: Entry) -> str | None:
    """Return the server's error for the options of *entry*, or None if they are valid."""
    program, *arguments = command_of(entry.data) or [""]
    if Path(program).name != "mcp-server-codex":
        return None
    given = environment_of(entry.data)
    variables = {name: value for name, value in given.items() if isinstance(value, str)}
    if "$" in "".join([*arguments, *variables.values()]):
        return None

    def fail(text: str) -> NoReturn:
        raise ValueError(text)

    try:
        read_settings(arguments, variables, fail)
    except ValueError as error:
        return str(error)
    return None


def _without(clients: list[Client], *, any_entry: bool) -> list[Check]:
    if not clients:
        return (
            [] if any_entry else [ok("clients", "No known MCP client was found on this machine.")]
        )
    titles = ", ".join(client.title for client in clients)
    names = [client.name for client in clients]
    # Codex receives the work; few people need it as a client too, so that is no warning.
    others = [name for name in names if name != "codex"]
    if any_entry or not others:
        more = shlex.join(["mcp-server-codex", "install", names[0]])
        message = f"Clients without this server: {titles}. To add it: {more}"
        return [ok("clients", message, without=names)]
    cure = f"mcp-server-codex install {others[0]}"
    message = f"No client has this server. Clients on this machine: {titles}."
    return [warning("clients", message, cure, without=names)]
