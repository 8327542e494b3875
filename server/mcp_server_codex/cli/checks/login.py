"""Codex's own folder: can it be used, is its configuration taken, is there a login.

Secrets are not read: auth.json is looked at from outside only, and whether
there is a login is for Codex to say.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from codex_tools.codex.failures import last_words
from codex_tools.codex.masking import quote
from codex_tools.codex.program import Version
from mcp_server_codex.cli.checks.check import Check, Json, ok, problem, warning
from mcp_server_codex.cli.checks.context import CheckContext, ask

KNOWS_DOCTOR: Version = (0, 163, 0)
"""Since here, or some version before, there is `codex doctor --json`. Not in 0.120.0."""

_WANTED = ("auth.credentials", "network.provider_reachability")
"""What of its findings is of use here."""

_REFUSED = re.compile(r"Error loading config(?:uration|\.toml): (.*)", re.DOTALL)
_PLACE = re.compile(r"(/\S*\.toml):(\d+):\d+: (.*)", re.DOTALL)
_LINE = re.compile(r"at line (\d+), column \d+")
_KEY = re.compile(r"in `([^`]+)`")
_EXCERPT = re.compile(r"^\s*\d*\s*\|.*$", re.MULTILINE)
_QUOTED = re.compile(r'string "(?:[^"\\]|\\.)*"')


def check_home(examination: CheckContext) -> list[Check]:
    """See whether CODEX_HOME is a folder in which this user can work."""
    home, named = examination.home, bool(examination.environ.get("CODEX_HOME"))
    what = f"CODEX_HOME, {home}," if named else f"{home}"
    shown = shlex.quote(str(home))
    if home.is_dir():
        return [_usable(examination, what, shown)]
    above = next(each for each in (home, *home.parents) if each.exists())
    if above.is_file():
        old = shlex.quote(f"{above}.old")
        return [
            problem(
                "codex_home",
                f"{what} cannot be a folder: {above} is a file.",
                f"mv {shlex.quote(str(above))} {old}, or name a folder in CODEX_HOME",
            )
        ]
    if not named:
        examination.home_is_usable = os.access(above, os.W_OK | os.X_OK)
        return [ok("codex_home", f"{what} is not there yet; Codex makes it at the first login.")]
    return [
        problem("codex_home", f"{what} does not exist; Codex insists on it.", f"mkdir -p {shown}")
    ]


def _usable(examination: CheckContext, what: str, shown: str) -> Check:
    home = examination.home
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
            f"This user may not use {', '.join(map(str, barred))}.",
            f'sudo chown -R "$(id -un)" {shown} && chmod -R u+rwX {shown}',
            barred=[str(path) for path in barred],
        )
    examination.home_is_usable = True
    auth = home / "auth.json"
    if auth.exists() and auth.stat().st_mode & 0o077:
        cure = f"chmod 600 {shlex.quote(str(auth))}"
        return warning("codex_home", f"Other users may read {auth}, Codex's login.", cure)
    return ok("codex_home", f"{what} can be read and written.", path=str(home))


async def check_config(examination: CheckContext) -> list[Check]:
    """Let Codex read its configuration; without a Codex, see at least whether it is TOML."""
    file = examination.home / "config.toml"
    if file.exists() and not file.is_file():
        # A pipe, say, at which whoever reads it would wait for ever.
        cure = f"mv {shlex.quote(str(file))} {shlex.quote(f'{file}.old')}"
        return [problem("config", f"{file} is not a file.", cure)]
    if examination.codex is None:
        return [_parsed(file)]
    answer = await ask(
        examination.codex.program.path,
        *("login", "status"),
        env=examination.codex_environment,
        cwd=examination.cwd,
    )
    if answer.returncode is None:
        return [
            problem(
                "config",
                "Codex does not answer `login status`, which only reads its configuration.",
                examination.codex.update,
            )
        ]
    said = last_words(answer.stderr)
    refused = _REFUSED.search(said)
    if refused is not None:
        return [_refusal(refused[1].strip(), file)]
    login = await _login(examination, answer.returncode, said)
    if answer.returncode != 0 and "not logged in" not in said.lower():
        return [_parsed(file), *login]  # It may not have come so far as to read it.
    exists = file.is_file()
    found = f"Codex takes {file}." if exists else f"There is no {file}: Codex uses its defaults."
    return [ok("config", found, path=str(file)), *login]


def _parsed(file: Path) -> Check:
    try:
        if file.is_file():
            tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"{file}:{line[1]}" if line else str(file)
        return problem("config", f"{where}: {error}", f"Correct {where}.", path=str(file))
    return ok("config", f"{file} is TOML." if file.is_file() else f"There is no {file}.")


def _refusal(said: str, file: Path) -> Check:
    """Return what Codex has against its configuration, without what stands there."""
    where, reason = str(file), said
    place, line, key = _PLACE.search(said), _LINE.search(said), _KEY.search(said)
    if place is not None:
        where, reason = f"{place[1]}:{place[2]}", place[3]
    elif line is not None:
        where, reason = f"{file}:{line[1]}", said.partition("\n")[2]
    elif number := _line_of(file, key[1] if key else "model_provider"):
        where = f"{file}:{number}"
    # Codex up to 0.98 quotes the line, and all quote a value of the wrong type.
    reason = _QUOTED.sub("a string", _EXCERPT.sub("", reason))
    reason = quote(" ".join(reason.split()).rstrip("."), 400)
    return problem(
        "config",
        f"Codex refuses its configuration: {where}: {reason}.",
        f"Correct {where}; `codex login status` says at once whether Codex takes it.",
        place=where,
    )


def _line_of(file: Path, key: str) -> int | None:
    """Return the line that sets *key*, by its last part, where there is just one."""
    setting = re.compile(rf"""\s*(?:[\w."'-]+\.)?["']?{re.escape(key.split(".")[-1])}["']?\s*=""")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    found = [number for number, line in enumerate(lines, 1) if setting.match(line)]
    return found[0] if len(found) == 1 else None


async def _login(examination: CheckContext, code: int, said: str) -> list[Check]:
    reports = await _doctor(examination)
    network = [*_network(reports)]
    if code == 0:
        how = next((f" with {way}" for way in ("an API key", "ChatGPT") if way[-7:] in said), "")
        return [ok("login", f"Codex is logged in{how}."), *network]
    if "not logged in" not in said.lower():
        return [
            warning(
                "login",
                f"Codex cannot say whether it is logged in (exit code {code}): {quote(said, 400)}",
                f"{_word(examination)} logout; {_word(examination)} login",
            ),
            *network,
        ]
    return [_without_login(examination, reports), *network]


def _without_login(examination: CheckContext, reports: Mapping[str, Json]) -> Check:
    for name in ("CODEX_API_KEY", "CODEX_ACCESS_TOKEN"):
        if name in examination.codex_environment:
            return ok("login", f"Codex has no login of its own and uses {name}.")
    name = str(examination.config.get("model_provider") or "openai")
    match examination.config.get("model_providers"):
        case {**providers} if isinstance(providers.get(name), dict):
            provider = cast("Mapping[str, Any]", providers[name])
        case _:
            provider = cast("Mapping[str, Any]", {})
    key = provider.get("env_key")
    if isinstance(key, str):
        if key in examination.codex_environment:
            return ok("login", f"The provider {name} takes its key from {key}, which is set.")
        return warning(
            "login",
            f"The provider {name} takes its key from {key}, which is not set here.",
            f'Set it in the client\'s entry for this server: "env": {{"{key}": "..."}}',
        )
    if provider and provider.get("requires_openai_auth") is not True:
        return ok("login", f"The provider {name} needs no login with OpenAI.")
    if reports.get("auth.credentials", {}).get("status") == "ok":
        return ok("login", "Codex has what it needs to authenticate, says `codex doctor`.")
    return warning("login", "Codex is not logged in.", f"{_word(examination)} login")


async def _doctor(examination: CheckContext) -> Mapping[str, Json]:
    """Return the findings of `codex doctor`, where there is one."""
    assert examination.codex is not None
    program = examination.codex.program
    if program.version is not None and program.version < KNOWS_DOCTOR:
        return {}
    answer = await ask(
        program.path,
        *("doctor", "--json"),
        env=examination.codex_environment,
        cwd=examination.cwd,
    )
    try:
        found = cast("dict[str, Json]", json.loads(answer.stdout)["checks"])
        return {name: dict(found[name]) for name in _WANTED if name in found}
    except (ValueError, KeyError, TypeError):
        return {}


def _network(reports: Mapping[str, Json]) -> Iterator[Check]:
    """Yield what Codex's doctor says of the way to its provider; HTTP is enough."""
    report = reports.get("network.provider_reachability", {})
    if report.get("status") == "fail":
        yield warning(
            "network",
            f"From here, says `codex doctor`: {quote(str(report.get('summary')), 200)}.",
            quote(str(report.get("remediation") or "Check network and proxy."), 300),
        )


def _word(examination: CheckContext) -> str:
    """Return how a person calls this Codex."""
    assert examination.codex is not None
    place = examination.codex.place
    found = shutil.which("codex")
    return "codex" if found and Path(found).absolute() == place else shlex.quote(str(place))
