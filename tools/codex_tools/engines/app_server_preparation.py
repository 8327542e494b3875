"""Decide whether an app-server can run a turn, and read from the disk what it needs for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import orjson
import tomli

from codex_tools.codex.json_object import Json
from codex_tools.codex.program import Version
from codex_tools.engines.app_server_start import IN_MEMORY, KEY_VARIABLE
from codex_tools.engines.engine import EngineAbsent, EngineFailed, EngineUnfit, TurnRequest
from codex_tools.engines.preparation import check_unmoved, prepare_turn, settings_of

OLDEST: Version = (0, 163, 0)
"""The oldest Codex whose app-server is chosen without being named.

0.147.0 does not say with which settings a turn runs, and asks although the policy is `never`.
"""

OLDEST_BY_NAME: Version = (0, 147, 0)
"""The oldest Codex whose app-server runs turns if the operator names this engine."""

_OTHER_LOGIN = "CODEX_ACCESS_TOKEN"
SANDBOX_SETTING = "sandbox_workspace_write"
"""Settings given on the command line, so that `config/read` returns what they change."""


@dataclass(frozen=True, slots=True)
class TurnStart:
    """What is needed to start a turn, read from the disk before."""

    request: TurnRequest
    argv: list[str]
    settings: Json
    """Settings of the thread, as nested tables."""
    env: dict[str, str]
    notices: list[str]
    is_refused: bool
    """True if the folder is in no repository, and must be."""


def prepare(request: TurnRequest, oldest: Version = OLDEST) -> TurnStart:
    """Return what is needed to start a turn; accesses the disk.

    Args:
        request: The turn.
        oldest: The oldest Codex that may run it.

    Raises:
        EngineUnfit: Only `codex exec` can run the turn.
        NotAllowed: A path leads elsewhere than when it was checked.
    """
    check_unmoved(request)
    # The thread starts read-only, so that Codex has no reason to trust the project.
    prepared = prepare_turn(request, starts_as="read-only")
    reason = _unfitness(request, oldest, has_rules=bool(prepared.rules), env=prepared.env)
    if reason is not None:
        raise unfit(request, reason)
    request = prepared.request
    settings = [*settings_of(request, prepared.kept), *prepared.further]
    argv = [str(request.program.path), "app-server"]
    if prepared.env.get(KEY_VARIABLE):
        argv += ["-c", IN_MEMORY]
    values: Json = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key.startswith(SANDBOX_SETTING):
            argv += ["-c", setting]
        else:
            _set(values, key, _from_toml(request, key, value))
    is_refused = not request.skip_git_repo_check and not _is_in_repository(request.cwd)
    return TurnStart(request, argv, values, prepared.env, prepared.notices, is_refused)


def _unfitness(
    request: TurnRequest, oldest: Version, *, has_rules: bool, env: dict[str, str]
) -> str | None:
    """Return what the app-server of this Codex lacks for the turn; None if nothing."""
    version = request.program.version
    if version is None or version < oldest:
        return f"a stable app-server, as {'.'.join(map(str, oldest))} and later have it"
    if request.profile is not None:
        return "an app-server with profiles"
    if has_rules and not request.keep_rules:
        return "an app-server that can ignore the rules about commands"
    if request.output_schema is not None and not _has_plain_integers(request.output_schema):
        return "an app-server that takes integers of more than 64 bits"
    if env.get(_OTHER_LOGIN):
        return f"an app-server that reads {_OTHER_LOGIN}"
    if request.review is not None and request.sandbox != "read-only":
        return f"reviews with sandbox {request.sandbox} in its app-server"
    if request.review is not None and request.output_schema is not None:
        return "reviews with an output schema in its app-server"
    return None


def unfit(request: TurnRequest, what: str) -> EngineUnfit:
    """Return the error for a turn that needs *what*, which the app-server lacks."""
    return EngineUnfit(what, request.program.version_text, _hint(request))


def broken(request: TurnRequest, what: str) -> EngineFailed:
    """Return the error for a turn that did not begin, for lack of *what*."""
    return EngineFailed(what, request.program.version_text, _hint(request))


def absent(request: TurnRequest, what: str) -> EngineAbsent:
    """Return the error for a turn that did not begin, for lack of *what*, like any other turn."""
    return EngineAbsent(what, request.program.version_text, _hint(request))


def _hint(request: TurnRequest) -> str:
    if request.asks:
        return "codex exec cannot ask: leave out approvals and ask_caller, or what is named here."
    return "The operator can set --engine auto, which then uses codex exec."


def _from_toml(request: TurnRequest, key: str, value: str) -> object:
    """Return a value in TOML as JSON.

    Raises:
        EngineUnfit: JSON cannot express it.
    """
    try:
        found = tomli.loads(f"value = {value}")["value"]
        orjson.dumps(found, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except (tomli.TOMLDecodeError, TypeError) as error:
        raise unfit(request, f"an app-server that takes the setting {key}") from error
    return found


def _set(settings: Json, key: str, value: object) -> None:
    """Give the dotted *key* a value, as `codex exec -c` does: a later key extends a table.

    An app-server would apply dotted keys in any order, so that a table replaces the keys below it
    (0.163.0).
    """
    *tables, last = key.split(".")
    for name in tables:
        table = settings.get(name)
        if not isinstance(table, dict):
            table = settings[name] = {}
        settings = cast("Json", table)
    settings[last] = value


def _has_plain_integers(schema: Json) -> bool:
    try:
        orjson.dumps(schema)
    except TypeError:  # An app-server of 0.163.0 refuses the whole turn.
        return False
    return True


def _is_in_repository(cwd: Path) -> bool:
    return any(os.path.lexists(folder / ".git") for folder in (cwd, *cwd.parents))
