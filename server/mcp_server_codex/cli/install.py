"""`mcp-server-codex install` and `uninstall`: change the server's entry in a client's file."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, cast

from codex_tools.codex.clean_text import clean_lines
from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.clients.claude_code import (
    add_command,
    find_claude,
    remove_command,
    run_claude,
)
from mcp_server_codex.cli.clients.config_error import ConfigError
from mcp_server_codex.cli.clients.config_file import ConfigFile
from mcp_server_codex.cli.clients.formats import at_path
from mcp_server_codex.cli.clients.known import (
    CLIENTS,
    NAME,
    Client,
    client_named,
    command_of,
)
from mcp_server_codex.cli.clients.launch import find_command, read_options
from mcp_server_codex.cli.command import Argument, add_arguments
from mcp_server_codex.cli.other_clients import BY_HAND, print_entry, print_present

SHARED = (
    Argument("client", "the MCP client", "word", tuple(each.name for each in CLIENTS)),
    Argument(
        "scope",
        "user: all your projects (default); project: the current folder, for everyone who works"
        " in it; local (Claude Code only): the current folder, for you alone",
        choices=("user", "project", "local"),
    ),
    Argument("print", "show what would be written and where; change nothing", "flag"),
)

FORCE = Argument("force", f"replace another server that has the name {NAME}", "flag")

_ROOM = 300
"""Characters shown of another server's entry."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of this server's entry: a client, a scope, and the file with its text."""

    client: Client
    scope: str
    file: ConfigFile
    home: Path
    cwd: Path
    text: str | None
    """The text of the file; None if the file does not exist."""
    name: str
    """The name of the server's entry, existing or new."""
    entry: Json | None
    """The existing entry, or None."""

    @property
    def at(self) -> tuple[str, ...]:
        """Path in the file to the server's entry, existing or new."""
        return (*self.client.servers_at(self.scope, self.cwd), self.name)

    @property
    def is_written_by_claude(self) -> bool:
        """True if only Claude Code's own program may write the file."""
        return self.client.name == "claude-code" and self.scope != "project"


def run_install(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    words, options = _split(arguments)
    if not arguments:
        return print_present()
    if len(named := [word for word in words if word != "--print"]) == 1 and named[0] in BY_HAND:
        return print_entry(named[0], [*read_options(options, _refuse)])
    about = (
        "Add this server to a client's configuration. Put the server's own options after --, for"
        " example: install cursor -- --max-sandbox read-only. Without a client, list who is on this"
        " machine. For other clients: install --print json; for Continue: install continue."
    )
    return _run("install", about, (*SHARED, FORCE), words, options, _install)


def run_uninstall(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    about = (
        "Remove this server from a client's configuration. If nothing else in the file has changed"
        " since the install, the file is again byte for byte as it was before. With --state instead"
        " of a client, delete what this server keeps on disk; see uninstall --state --help."
    )
    if "--state" in arguments:
        from mcp_server_codex.cli.remove_state import remove_state

        return remove_state([word for word in arguments if word != "--state"])
    return _run("uninstall", about, SHARED, arguments, [], _uninstall)


def _refuse(problem: str) -> NoReturn:
    sys.stderr.write(f"mcp-server-codex install: {problem}\n")
    sys.exit(2)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def _run(
    name: str,
    about: str,
    takes: tuple[Argument, ...],
    words: list[str],
    options: list[str],
    act: Callable[[_Place, list[str], argparse.Namespace], int],
) -> int:
    program = f"mcp-server-codex {name}"

    def fail(problem: str) -> NoReturn:
        sys.stderr.write(f"{program}: {problem}\nTry '{program} --help'.\n")
        sys.exit(2)

    parser = argparse.ArgumentParser(prog=program, description=about, allow_abbrev=False)
    add_arguments(parser, takes)
    given = parser.parse_args(words)
    client, home, cwd = client_named(given.client), Path.home(), Path.cwd()
    paths = client.config_paths(home, cwd)
    scope: str = given.scope or "user"
    if scope not in paths:
        fail(f"{client.title} has no scope {scope!r}; its scopes: {', '.join(paths)}")
    started = read_options(options, fail)
    file = ConfigFile(paths[scope])
    try:
        text = file.read()
        found = client.find_named(text or "", scope, cwd)
        server, entry = found or (NAME, None)
        place = _Place(client, scope, file, home, cwd, text, server, entry)
        return act(place, started, given)
    except (ConfigError, OSError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        sys.stderr.write(clean_lines(f"{program}: {file.path}: {reason}\n"))
        return 1


def _install(place: _Place, options: list[str], given: argparse.Namespace) -> int:
    command = find_command(os.environ)
    wanted = place.client.entry(command[0], [*command[1:], *options])
    entry = _merged(place.entry, wanted)
    other = None if place.entry else at_path(place.client.format.parse(place.text or ""), place.at)
    if other is not None and not given.force:
        raise ConfigError(
            f"another server has the name {place.name!r}: {_shown(other)}."
            " Rename that server, or replace it with --force"
        )
    if entry == place.entry:
        _say(f"{place.client.title}: {place.name} is already in {place.file.path}; nothing to do.")
        return 0
    if place.is_written_by_claude:
        return _install_by_claude(place, entry, replaces=other is not None, dry=given.print)
    changed = _put(place.client, place.text or "", place.at, entry, replaced=place.entry)
    if given.print:
        return _print(place, entry)
    place.file.check_writable()
    # Asked before the write, which may create the client's folder.
    known = place.client.is_present(place.home, os.environ)
    first = place.entry is None or place.file.backup.read() is None
    if first:
        place.file.back_up(place.text)
    try:
        place.file.write(changed, instead_of=place.text)
    except BaseException:
        # KeyboardInterrupt too: a backup must mean that there is a change to undo.
        if first:
            place.file.backup.path.unlink(missing_ok=True)
        raise
    kept = f" (backup: {place.file.backup.path.name})" if place.text is not None else ""
    done = f"updated {place.name} in" if place.entry else f"added {place.name} to"
    _say(f"{place.client.title}: {done} {place.file.path}{kept}")
    _print_notes(place, entry, known=known)
    return 0


def _install_by_claude(place: _Place, entry: Json, *, replaces: bool, dry: bool) -> int:
    claude = find_claude(place.home, os.environ)
    add = add_command(claude or "claude", place.scope, place.name, entry)
    remove = remove_command(claude or "claude", place.scope, place.name)
    commands = [remove, add] if place.entry or replaces else [add]
    if dry or claude is None:
        return _print_commands(place, commands, missing=claude is None and not dry)
    for command in commands:
        run_claude(command, place.cwd)
    if place.client.find_entry(place.file.read() or "", place.scope, place.cwd) is None:
        raise ConfigError(
            "`claude mcp add-json` reported success, but the server is not in the file"
        )
    done = f"updated {place.name} in" if place.entry else f"added {place.name} to"
    _say(f"{place.client.title}: {done} {place.file.path}, scope {place.scope}")
    _print_notes(place, entry, known=True)
    return 0


def _uninstall(place: _Place, options: list[str], given: argparse.Namespace) -> int:
    client, file, text = place.client, place.file, place.text
    if place.entry is None or text is None:
        _say(f"{client.title}: this server is not in {file.path}; nothing to do.")
        return 0
    if place.is_written_by_claude:
        return _uninstall_by_claude(place, dry=given.print)
    if given.print:
        _say(f"{client.title}: {place.name} would be removed from {file.path}")
        return 0
    original = file.backup.read()
    after = original if _is_as_installed(place, original) else _without(place, original)
    if after is None:
        file.delete(up_to=place.home if place.scope == "user" else place.cwd)
    else:
        file.write(after, instead_of=text)
    if after == original:
        file.backup.path.unlink(missing_ok=True)
    deleted = " and deleted the file, which held nothing else" if after is None else ""
    _say(f"{client.title}: removed {place.name} from {file.path}{deleted}")
    return 0


def _uninstall_by_claude(place: _Place, *, dry: bool) -> int:
    claude = find_claude(place.home, os.environ)
    command = remove_command(claude or "claude", place.scope, place.name)
    if dry or claude is None:
        return _print_commands(place, [command], missing=claude is None and not dry)
    run_claude(command, place.cwd)
    _say(f"{place.client.title}: removed {place.name} from {place.file.path}")
    return 0


def _is_as_installed(place: _Place, original: str | None) -> bool:
    """Return True if the file is exactly what an install into *original* writes."""
    try:
        if place.client.find_entry(original or "", place.scope, place.cwd) is not None:
            # *original* holds the server already, so restoring it would not remove it.
            return False
        made = _put(place.client, original or "", place.at, place.entry or {}, replaced=None)
    except ConfigError:
        return False
    return made == place.text


def _without(place: _Place, original: str | None) -> str | None:
    """Return the file's text without this server, or None if the file can be deleted."""
    client, text = place.client, place.text or ""
    while found := client.find_named(text, place.scope, place.cwd):
        text = client.format.remove(text, (*place.at[:-1], found[0]))
    if at_path(client.format.parse(text), place.at[:-1]) == {}:
        before = client.format.parse(original or "")
        if at_path(before, place.at[:-1]) is None:
            text = client.format.remove(text, place.at[:-1])
    is_empty = text.strip("\ufeff \t\r\n") in ("", "{}")
    return None if is_empty and original is None else text


def _put(
    client: Client, text: str, at: tuple[str, ...], entry: Json, *, replaced: Json | None
) -> str:
    """Return *text* with *entry*; in the entry *replaced*, change only the values that differ."""
    if replaced is None:
        if at_path(client.format.parse(text), at) is not None:
            text = client.format.remove(text, at)
        return client.format.put(text, at, entry)
    for name, value in entry.items():
        old = replaced.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            for key, each in cast("Json", value).items():
                if cast("Json", old).get(key) != each:
                    text = client.format.put(text, (*at, name, key), each)
        elif old != value:
            text = client.format.put(text, (*at, name), value)
    return text


def _merged(entry: Json | None, wanted: Json) -> Json:
    """Return *wanted* with the keys and values that a person has added to *entry*."""
    merged = (entry or {}) | wanted
    value: object
    for name, value in wanted.items():
        old: object = (entry or {}).get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            merged[name] = _merged(cast("Json", old), cast("Json", value))
        elif name == "env_vars" and isinstance(old, list):
            kept, more = cast("list[Any]", old), cast("list[Any]", value)
            merged[name] = [*kept, *(each for each in more if each not in kept)]
    return merged


def _print(place: _Place, entry: Json) -> int:
    done = "be updated in" if place.entry else "be added to"
    _say(f"{place.client.title}: {place.name} would {done} {place.file.path}\n")
    path = (*place.client.key_path, place.name)
    sys.stdout.write(place.client.format.put("", path, entry))
    return 0


def _print_commands(place: _Place, commands: list[list[str]], *, missing: bool) -> int:
    shown = "\n".join(shlex.join(command) for command in commands)
    if missing:
        sys.stderr.write(
            f"{place.client.title}'s program `claude` was not found. Nothing was changed: only"
            f" `claude` may write {place.file.path}. Run this where `claude` is installed:\n"
        )
    else:
        _say(f"{place.client.title}: {place.file.path} would be changed by running:\n")
    _say(shown)
    return 1 if missing else 0


def _print_notes(place: _Place, entry: Json, *, known: bool) -> None:
    """Print the start command, the time limit and what a person must still do."""
    client = place.client
    _say(f"  starts: {shlex.join(command_of(entry) or [])}")
    _say(f"  calls:  {client.limits}")
    notes = [client.note] if client.note else []
    if entry.get("enabled") is False or entry.get("disabled") is True:
        notes.append("The entry is disabled in this file.")
    if place.scope == "project":
        notes.append("The path is valid on this machine only; run install on each other machine.")
    if not known:
        notes.append(f"{client.title} was not found on this machine.")
    if hint := _codex_hint(client, entry):
        notes.append(hint)
    for note in notes:
        _say(f"  note:   {note}")


def _codex_hint(client: Client, entry: Json) -> str | None:
    """Return a note if this shell finds a Codex that an application may not find."""
    codex = shutil.which("codex")
    if codex is None or client.shell_path or find_spec("codex_cli_bin"):
        return None
    if any(each.startswith("--codex-bin") for each in command_of(entry) or []):
        return None
    return (
        f"{client.title} may not have this shell's PATH. If the server does not find codex, run:"
        f" mcp-server-codex install {client.name} -- --codex-bin {shlex.quote(codex)}"
    )


def _shown(entry: Any) -> str:
    """Return the command or URL of *entry*, but not its environment: that may hold secrets."""
    if not isinstance(entry, dict):
        return repr(entry)[:_ROOM]
    table = cast("Json", entry)
    shown = {name: table[name] for name in ("command", "args", "url") if name in table}
    return repr(shown)[:_ROOM]


def _say(text: str) -> None:
    sys.stdout.write(clean_lines(text) + "\n")
