"""The MCP clients of this machine: which are there, and how they start this server."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from codex_tools.codex.json_object import Json
from codex_tools.codex.paths import expand_home
from mcp_server_codex.cli.checks.check import Check, ok, problem, warning
from mcp_server_codex.cli.checks.context import CheckContext
from mcp_server_codex.cli.clients.known import CLIENTS, Client, ConfigError
from mcp_server_codex.settings import read_settings

_TIMES = ("timeout", "tool_timeout_sec")
"""What entries call the time that a call may take."""


@dataclass(frozen=True, slots=True)
class Entry:
    """This server in a client's configuration."""

    client: Client
    scope: str
    file: Path
    name: str
    data: Json

    @property
    def command(self) -> str:
        """The program that the client starts."""
        command = self.data.get("command")
        # Zed had a table there until 2025.
        return str(cast("Json", command).get("path") if isinstance(command, dict) else command)

    @property
    def anew(self) -> str:
        """The command that writes it anew."""
        scope = "" if self.scope == "user" else f" --scope {self.scope}"
        return f"mcp-server-codex install {self.client.name}{scope}"


def check_clients(examination: CheckContext) -> list[Check]:
    """See how each client starts this server, and which one does not."""
    home, env = Path.home(), examination.environ
    findings: list[Check] = []
    without: list[Client] = []
    entries: list[Entry] = []
    for client in CLIENTS:
        try:
            found = [*_entries(client, home, examination)]
        except ConfigError as error:
            if client.name != "codex":  # Codex itself has told what is wrong with its own.
                findings.append(_broken(client, home, examination, error))
            continue
        findings += [_finding(entry, env) for entry in found]
        entries += found
        if not found and client.is_present(home, env):
            without.append(client)
    return [*findings, *_without(without, any_entry=bool(entries))]


def _entries(client: Client, home: Path, examination: CheckContext) -> Iterator[Entry]:
    paths = client.config_paths(home, examination.cwd, examination.environ)
    for scope, file in paths.items():
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        found = client.find_named(text, scope, examination.cwd)
        if found is not None:
            yield Entry(client, scope, file, *found)


def _broken(client: Client, home: Path, examination: CheckContext, error: ConfigError) -> Check:
    files = client.config_paths(home, examination.cwd, examination.environ).values()
    shown = " or ".join(dict.fromkeys(str(file) for file in files if file.is_file()))
    said = f"{client.title}'s configuration, {shown}, cannot be read: {error}."
    return warning("clients", said, f"Correct {shown}.", client=client.name)


def _finding(entry: Entry, environ: Mapping[str, str]) -> Check:
    said = f"{entry.client.title} has this server as {entry.name} in {entry.file} ({entry.scope})"
    about = {
        "client": entry.client.name,
        "scope": entry.scope,
        "file": str(entry.file),
        "server": entry.name,
        "command": entry.command,
    }
    if entry.data.get("enabled") is False or entry.data.get("disabled") is True:
        cure = f"Switch it on in {entry.client.title}, or in {entry.file}"
        return warning("clients", f"{said}, but it is switched off.", cure, **about)
    if _is_gone(entry.command, environ):
        message = f"{said}, but {entry.command}, which it starts, is not there any more."
        return problem("clients", message, entry.anew, **about)
    if fault := _refused(entry):
        message = f"{said}, but the server would refuse to start: {fault.rstrip('.')}."
        return problem("clients", message, f"Correct {entry.file}; or: {entry.anew}", **about)
    times = [f"{name} = {entry.data[name]}" for name in _TIMES if name in entry.data]
    limits = f"{entry.client.limits.rstrip('.')}{f' (here: {times[0]})' if times else ''}."
    return ok("clients", f"{said}. {limits}", **about)


def _is_gone(command: str, environ: Mapping[str, str]) -> bool:
    if "$" in command:
        return False  # It depends on what only the client knows.
    return shutil.which(expand_home(command), path=environ.get("PATH", "")) is None


def _refused(entry: Entry) -> str | None:
    """Return what the server has against the options of *entry*; None if it takes them."""
    words = entry.data.get("args", [])
    if Path(entry.command).name != "mcp-server-codex" or not isinstance(words, list):
        return None
    env = entry.data.get("env")
    given = cast("Json", env) if isinstance(env, dict) else {}
    arguments = [str(word) for word in cast("list[Any]", words)]
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
        return [] if any_entry else [ok("clients", "No MCP client that it knows was found.")]
    titles = ", ".join(client.title for client in clients)
    names = [client.name for client in clients]
    said = f"{titles} {'is' if len(clients) == 1 else 'are'} there without this server."
    # Codex is where the work goes; that it can ask for it as well is nothing to be missed.
    others = [name for name in names if name != "codex"]
    if any_entry or not others:
        more = shlex.join(["mcp-server-codex", "install", names[0]])
        return [ok("clients", f"{said} To add it: {more}", without=names)]
    cure = f"mcp-server-codex install {others[0]}"
    return [warning("clients", f"No client has this server. {said}", cure, without=names)]
