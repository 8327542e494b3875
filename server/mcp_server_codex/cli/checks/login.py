"""Check Codex's own folder: its permissions, its configuration and its login.

Secrets are not read. Of auth.json only the permissions are checked; Codex itself
is asked whether there is a login.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import tomli

from codex_tools.codex.failures import last_words
from codex_tools.codex.foreign_file import read_foreign
from codex_tools.codex.masking import quote
from codex_tools.codex.program import Version
from codex_tools.engines.config_layers import SIZE_LIMIT
from mcp_server_codex.cli.checks.check import Check, Json, ok, problem, warning
from mcp_server_codex.cli.checks.context import WITHIN_LIMITS, CheckContext, ask

KNOWS_DOCTOR: Version = (0, 163, 0)
"""The oldest version in which `codex doctor --json` was seen. 0.120.0 does not have it."""

_WANTED = ("auth.credentials", "network.provider_reachability")
"""The findings of `codex doctor` that are used here."""

_REFUSED = re.compile(r"Error loading config(?:uration|\.toml): (.*)", re.DOTALL)
_PLACE = re.compile(r"(/\S*\.toml):(\d+):\d+: (.*)", re.DOTALL)
_LINE = re.compile(r"at line (\d+), column \d+")
_KEY = re.compile(r"in `([^`]+)`")
_EXCERPT = re.compile(r"^\s*\d*\s*\|.*$", re.MULTILINE)
_QUOTED = re.compile(r'string "(?:[^"\\]|\\.)*"')


def check_home(context: CheckContext) -> list[Check]:
    """Check that CODEX_HOME is a folder that this user can read and write."""
    home, named = context.home, bool(context.environ.get("CODEX_HOME"))
    what = f"CODEX_HOME ({home})" if named else f"{home}"
    shown = shlex.quote(str(home))
    if home.is_dir():
        return [_usable(context, what, shown)]
    above = next(each for each in (home, *home.parents) if each.exists())
    if above.is_file():
        old = shlex.quote(f"{above}.old")
        return [
            problem(
                "codex_home",
                f"{what} cannot be used as a folder: {above} is a file.",
                f"mv {shlex.quote(str(above))} {old}, or set CODEX_HOME to a folder",
            )
        ]
    if not named:
        context.home_is_usable = os.access(above, os.W_OK | os.X_OK)
        return [
            ok("codex_home", f"{what} does not exist yet. Codex creates it at the first login.")
        ]
    return [
        problem(
            "codex_home", f"{what} does not exist. Codex does not create it.", f"mkdir -p {shown}"
        )
    ]


def _usable(context: CheckContext, what: str, shown: str) -> Check:
    home = context.home
    barred = [
        path
        for path, right in (
            (home, os.R_OK | os.W_OK | os.X_OK),
            (home / "sessions", os.R_OK | os.W_OK | os.X_OK),
            (home / "config.toml", os.R_OK),
            (home / "auth.json", os.R_OK | os.W_OK),
        )
        if path.exists() and not os.access(path, right)
    ]
    if barred:
        return problem(
            "codex_home",
            f"This user lacks permissions that Codex needs on {', '.join(map(str, barred))}.",
            f'sudo chown -R "$(id -un)" {shown} && chmod -R u+rwX {shown}',
            barred=[str(path) for path in barred],
        )
    context.home_is_usable = True
    auth = home / "auth.json"
    if auth.exists() and auth.stat().st_mode & 0o077:
        cure = f"chmod 600 {shlex.quote(str(auth))}"
        return warning(
            "codex_home", f"Other users can read {auth}, which holds Codex's login.", cure
        )
    return ok("codex_home", f"{what} can be read and written.", path=str(home))


async def check_config(context: CheckContext) -> list[Check]:
    """Let Codex read its configuration; without Codex, check only that the file is valid TOML."""
    file = context.home / "config.toml"
    if file.exists() and not file.is_file():
        # A named pipe, for example, would block every reader for ever.
        cure = f"mv {shlex.quote(str(file))} {shlex.quote(f'{file}.old')}"
        return [problem("config", f"{file} is not a regular file.", cure)]
    if context.codex is None:
        return [_parsed(file)]
    answer = await ask(
        context.codex.program.path,
        *("login", "status"),
        env=context.codex_environment,
        cwd=context.cwd,
    )
    if answer.returncode is None:
        return [
            problem(
                "config",
                f"Codex did not answer `login status` {WITHIN_LIMITS} and was stopped. That command"
                " only reads the configuration.",
                context.codex.update,
            )
        ]
    output = last_words(answer.stderr)
    refused = _REFUSED.search(output)
    if refused is not None:
        return [_refusal(refused[1].strip(), file)]
    login = await _login(context, answer.returncode, output)
    if answer.returncode != 0 and "not logged in" not in output.lower():
        return [_parsed(file), *login]  # Codex may have failed before it read the file.
    exists = file.is_file()
    found = f"Codex accepts {file}." if exists else f"No {file}: Codex uses its defaults."
    return [ok("config", found, path=str(file)), *login]


def _parsed(file: Path) -> Check:
    try:
        if file.is_file():
            tomli.loads(read_foreign(file, SIZE_LIMIT, follow=True).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"{file}:{line[1]}" if line else str(file)
        return problem("config", f"{where}: {error}", f"Correct {where}.", path=str(file))
    message = f"{file} is valid TOML." if file.is_file() else f"{file} does not exist."
    return ok("config", message)


def _refusal(output: str, file: Path) -> Check:
    """Return the finding for Codex's error about its configuration, without quoted values."""
    where, reason = str(file), output
    place, line, key = _PLACE.search(output), _LINE.search(output), _KEY.search(output)
    if place is not None:
        where, reason = f"{place[1]}:{place[2]}", place[3]
    elif line is not None:
        where, reason = f"{file}:{line[1]}", output.partition("\n")[2]
    elif number := _line_of(file, key[1] if key else "model_provider"):
        where = f"{file}:{number}"
    # Codex up to 0.98 quotes the line. All versions quote a value of the wrong type.
    reason = _QUOTED.sub("a string", _EXCERPT.sub("", reason))
    reason = quote(" ".join(reason.split()).rstrip("."), 400)
    return problem(
        "config",
        f"Codex rejects its configuration: {where}: {reason}.",
        f"Correct {where}. To test it, run: codex login status",
        place=where,
    )


def _line_of(file: Path, key: str) -> int | None:
    """Return the number of the only line that sets the last part of *key*, or None."""
    setting = re.compile(rf"""\s*(?:[\w."'-]+\.)?["']?{re.escape(key.split(".")[-1])}["']?\s*=""")
    try:
        lines = read_foreign(file, SIZE_LIMIT, follow=True).decode().splitlines()
    except (OSError, ValueError):
        return None
    found = [number for number, line in enumerate(lines, 1) if setting.match(line)]
    return found[0] if len(found) == 1 else None


async def _login(context: CheckContext, code: int, output: str) -> list[Check]:
    reports = await _doctor(context)
    network = [*_network(reports)]
    if code == 0:
        how = next((f" with {way}" for way in ("an API key", "ChatGPT") if way[-7:] in output), "")
        return [ok("login", f"Codex is logged in{how}."), *network]
    if "not logged in" not in output.lower():
        return [
            warning(
                "login",
                f"`codex login status` failed with exit code {code}: {quote(output, 400)}",
                f"{_command(context)} logout; {_command(context)} login",
            ),
            *network,
        ]
    return [_without_login(context, reports), *network]


def _without_login(context: CheckContext, reports: Mapping[str, Json]) -> Check:
    for name in ("CODEX_API_KEY", "CODEX_ACCESS_TOKEN"):
        if name in context.codex_environment:
            return ok("login", f"Codex has no stored login and uses {name}.")
    name = str(context.config.get("model_provider") or "openai")
    match context.config.get("model_providers"):
        case {**providers} if isinstance(providers.get(name), dict):
            provider = cast("Mapping[str, Any]", providers[name])
        case _:
            provider = cast("Mapping[str, Any]", {})
    key = provider.get("env_key")
    if isinstance(key, str):
        if key in context.codex_environment:
            return ok(
                "login", f"The provider {name} reads its key from the variable {key}, which is set."
            )
        return warning(
            "login",
            f"The provider {name} reads its key from the variable {key}, which is not set here.",
            f'Set the key in the client\'s entry for this server: "env": {{"{key}": "..."}}',
        )
    if provider and provider.get("requires_openai_auth") is not True:
        return ok("login", f"The provider {name} needs no OpenAI login.")
    if reports.get("auth.credentials", {}).get("status") == "ok":
        return ok("login", "`codex doctor` reports that Codex can authenticate.")
    return problem("login", "Codex is not logged in.", f"{_command(context)} login")


async def _doctor(context: CheckContext) -> Mapping[str, Json]:
    """Return the findings of `codex doctor`; empty if this Codex has no such command."""
    assert context.codex is not None
    program = context.codex.program
    if program.version is not None and program.version < KNOWS_DOCTOR:
        return {}
    answer = await ask(
        program.path,
        *("doctor", "--json"),
        env=context.codex_environment,
        cwd=context.cwd,
    )
    try:
        found = cast("dict[str, Json]", json.loads(answer.stdout)["checks"])
        return {name: dict(found[name]) for name in _WANTED if name in found}
    except (ValueError, KeyError, TypeError):
        return {}


def _network(reports: Mapping[str, Json]) -> Iterator[Check]:
    """Yield the finding of `codex doctor` on reaching the provider; HTTP alone is enough."""
    report = reports.get("network.provider_reachability", {})
    if report.get("status") == "fail":
        yield warning(
            "network",
            f"`codex doctor` reports: {quote(str(report.get('summary')), 200)}.",
            quote(
                str(
                    report.get("remediation")
                    or "Check the network connection and the proxy settings."
                ),
                300,
            ),
        )


def _command(context: CheckContext) -> str:
    """Return the command by which a person starts this Codex."""
    assert context.codex is not None
    place = context.codex.place
    found = shutil.which("codex")
    return "codex" if found and Path(found).absolute() == place else shlex.quote(str(place))
