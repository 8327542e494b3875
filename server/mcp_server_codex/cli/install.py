"""`mcp-server-codex install` and `uninstall`: put this server into a client's configuration."""

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
from mcp_server_codex.cli.clients.known import CLIENTS, NAME, Client, client_named
from mcp_server_codex.cli.clients.launch import find_command, read_options
from mcp_server_codex.cli.command import Argument, add_arguments

SHARED = (
    Argument("client", "the client", "word", tuple(each.name for each in CLIENTS)),
    Argument(
        "scope",
        "user: all of your projects (the default); project: the folder this is run in, for"
        " everybody who works there; local (Claude Code): that folder, for you alone",
        choices=("user", "project", "local"),
    ),
    Argument("print", "show what would be written and where, and change nothing", "flag"),
)

FORCE = Argument("force", f"replace another server that is called {NAME}", "flag")

_ROOM = 300
"""Characters shown of another server."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where this server shall be, or is: a scope of a client, and what its file says."""

    client: Client
    scope: str
    file: ConfigFile
    home: Path
    cwd: Path
    text: str | None
    """What the file holds; None without a file."""
    name: str
    """What this server is called there, or would be."""
    entry: Json | None
    """Its entry, if there is one."""

    @property
    def at(self) -> tuple[str, ...]:
        """Where in the file its entry stands, or would."""
        return (*self.client.servers_at(self.scope, self.cwd), self.name)

    @property
    def is_claude_s_own(self) -> bool:
        """Whether only Claude Code itself may write the file."""
        return self.client.name == "claude-code" and self.scope != "project"


def run_install(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    words, options = _split(arguments)
    about = (
        "Puts this server into a client's own configuration. What follows -- are the server's own"
        " options, as in: install cursor -- --max-sandbox read-only"
    )
    return _run("install", about, (*SHARED, FORCE), words, options, _install)


def run_uninstall(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    about = (
        "Takes this server out of a client's configuration again. If nothing else was changed in"
        " it meanwhile, the file is byte for byte what it was."
    )
    return _run("uninstall", about, SHARED, arguments, [], _uninstall)


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
        fail(f"{client.title} has no scope {scope!r}, only {', '.join(paths)}")
    started = read_options(options, fail)
    file = ConfigFile(paths[scope])
    try:
        text = file.read()
        found = client.find_named(text or "", scope, cwd)
        server, entry = found or (NAME, None)
        place = _Place(client, scope, file, home, cwd, text, server, entry)
        return act(place, started, given)
    except (ConfigError, OSError) as error:
        said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        sys.stderr.write(f"{program}: {file.path}: {said}\n")
        return 1


def _install(place: _Place, options: list[str], given: argparse.Namespace) -> int:
    command = find_command(os.environ)
    wanted = place.client.entry(command[0], [*command[1:], *options])
    entry = _merged(place.entry, wanted)
    other = None if place.entry else at_path(place.client.format.parse(place.text or ""), place.at)
    if other is not None and not given.force:
        raise ConfigError(
            f"there is another server called {place.name!r}, {_shown(other)}."
            " Rename it, or replace it with --force"
        )
    if entry == place.entry:
        _say(f"{place.client.title}: {place.name} is in {place.file.path} already; nothing to do.")
        return 0
    if place.is_claude_s_own:
        return _install_by_claude(place, entry, replaces=other is not None, dry=given.print)
    changed = _put(place.client, place.text or "", place.at, entry, replaced=place.entry)
    if given.print:
        return _print(place, entry)
    place.file.check_writable()
    known = place.client.is_present(place.home, os.environ)  # Its folder may be made now.
    first = place.entry is None or place.file.backup.read() is None
    if first:
        place.file.back_up(place.text)
    try:
        place.file.write(changed, instead_of=place.text)
    except BaseException:  # Interrupted, too: a backup tells that there was something to undo.
        if first:
            place.file.backup.path.unlink(missing_ok=True)
        raise
    kept = f" (as it was: {place.file.backup.path.name})" if place.text is not None else ""
    done = f"updated {place.name} in" if place.entry else f"added {place.name} to"
    _say(f"{place.client.title}: {done} {place.file.path}{kept}")
    _tell(place, entry, known=known)
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
        raise ConfigError("`claude mcp add-json` reported success, but the server is not there")
    done = f"updated {place.name} in" if place.entry else f"added {place.name} to"
    _say(f"{place.client.title}: {done} {place.file.path}, scope {place.scope}")
    _tell(place, entry, known=True)
    return 0


def _uninstall(place: _Place, options: list[str], given: argparse.Namespace) -> int:
    client, file, text = place.client, place.file, place.text
    if place.entry is None or text is None:
        _say(f"{client.title}: this server is not in {file.path}; nothing to do.")
        return 0
    if place.is_claude_s_own:
        return _uninstall_by_claude(place, dry=given.print)
    if given.print:
        _say(f"{client.title}: {place.name} would be taken out of {file.path}")
        return 0
    original = file.backup.read()
    after = original if _is_as_installed(place, original) else _without(place, original)
    if after is None:
        file.delete(up_to=place.home if place.scope == "user" else place.cwd)
    else:
        file.write(after, instead_of=text)
    if after == original:
        file.backup.path.unlink(missing_ok=True)
    gone = ", which is gone, as it held nothing else" if after is None else ""
    _say(f"{client.title}: took {place.name} out of {file.path}{gone}")
    return 0


def _uninstall_by_claude(place: _Place, *, dry: bool) -> int:
    claude = find_claude(place.home, os.environ)
    command = remove_command(claude or "claude", place.scope, place.name)
    if dry or claude is None:
        return _print_commands(place, [command], missing=claude is None and not dry)
    run_claude(command, place.cwd)
    _say(f"{place.client.title}: took {place.name} out of {place.file.path}")
    return 0


def _is_as_installed(place: _Place, original: str | None) -> bool:
    """Tell whether the file is what installing into *original* makes of it."""
    try:
        if place.client.find_entry(original or "", place.scope, place.cwd) is not None:
            return False  # It was there before: going back to that would not take it out.
        made = _put(place.client, original or "", place.at, place.entry or {}, replaced=None)
    except ConfigError:
        return False
    return made == place.text


def _without(place: _Place, original: str | None) -> str | None:
    """Return the file's text without this server; None if nothing is left to keep."""
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
    """Return *text* with *entry*; of an older one, only what differs is written anew."""
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
    """Return *wanted* with what a person has added to the *entry* that there is."""
    merged = (entry or {}) | wanted
    for name, value in wanted.items():
        old = (entry or {}).get(name)
        if name == "env" and isinstance(old, dict):
            merged[name] = cast("Json", old) | value
        elif name == "env_vars" and isinstance(old, list):
            kept = cast("list[Any]", old)
            merged[name] = [*kept, *(each for each in value if each not in kept)]
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
            f"{place.client.title}'s program `claude` was not found, and it alone may write"
            f" {place.file.path}. Nothing was changed. Where there is one, run:\n"
        )
    else:
        _say(f"{place.client.title}: this would be run, which changes {place.file.path}\n")
    _say(shown)
    return 1 if missing else 0


def _tell(place: _Place, entry: Json, *, known: bool) -> None:
    """Say what a person should know now."""
    client = place.client
    _say(f"  starts: {shlex.join([str(entry['command']), *map(str, entry['args'])])}")
    _say(f"  calls:  {client.limits}")
    notes = [client.note] if client.note else []
    if entry.get("enabled") is False or entry.get("disabled") is True:
        notes.append("It is switched off in that file.")
    if place.scope == "project":
        notes.append("The path is that of this machine; others have to run install for theirs.")
    if not known:
        notes.append(f"{client.title} itself was not found on this machine.")
    if hint := _codex_hint(client, entry):
        notes.append(hint)
    for note in notes:
        _say(f"  note:   {note}")


def _codex_hint(client: Client, entry: Json) -> str | None:
    """Say so where this shell finds a Codex that an application may not find."""
    codex = shutil.which("codex")
    if codex is None or client.shell_path or find_spec("codex_cli_bin"):
        return None
    if any(str(each).startswith("--codex-bin") for each in entry["args"]):
        return None
    return (
        "Applications may not have this shell's PATH. If codex is not found:"
        f" install {client.name} -- --codex-bin {shlex.quote(codex)}"
    )


def _shown(entry: Any) -> str:
    """Return what *entry* starts; not its environment, which may hold secrets."""
    if not isinstance(entry, dict):
        return repr(entry)[:_ROOM]
    table = cast("Json", entry)
    shown = {name: table[name] for name in ("command", "args", "url") if name in table}
    return repr(shown)[:_ROOM]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
