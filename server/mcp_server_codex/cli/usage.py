"""`mcp-server-codex usage`: print the tokens and the cost of Codex.

Arguments and result are those of the tool codex_usage. Its module imports
pydantic, so this module repeats the arguments; a test compares both.
"""

from __future__ import annotations

import functools
from typing import Any, get_args

from codex_tools.codex.json_object import Json
from codex_tools.history.index import Progress, ThreadIndex
from codex_tools.history.usage_report import GroupBy, find_usage
from mcp_server_codex.cli.command import Argument, Command, run_command
from mcp_server_codex.settings import Settings

MODELS = Argument("models", "Show the models of each group below it", "flag")
"""The only argument that codex_usage does not have."""


def run_usage(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    return run_command(USAGE, arguments)


def _find(values: Json, history: ThreadIndex, settings: Settings, progress: Progress) -> Json:
    by_model = values.pop("models", False)
    find = functools.partial(find_usage, history, progress, roots=settings.policy.roots)
    found = find(**values)
    if by_model:
        parts: dict[str, list[Json]] = {}
        for each in find(**_with(values, "group_by", "model"))["groups"]:
            parts[each["key"]] = find(**_with(values, "model", each["key"]))["groups"]
        for group in found["groups"]:
            group["models"] = [
                part | {"key": model}
                for model, rows in parts.items()
                for part in rows
                if part["key"] == group["key"]
            ]
    return found


def _with(values: Json, name: str, value: Any) -> Json:
    return {**values, name: value}


def _show(found: Json) -> None:
    from mcp_server_codex.cli.usage_table import show

    show(found)


USAGE = Command(
    name="usage",
    about=(
        "Tokens and estimated cost of all of Codex's threads on this machine, exact as Codex"
        " recorded them, grouped by day, week, month, model, folder, thread or place; and the"
        " account's newest rate limits."
    ),
    arguments=(
        Argument("since", "ISO 8601 date or time, or 24h, 7d"),
        Argument("until"),
        Argument("group_by", choices=get_args(GroupBy)),
        Argument("timezone", "IANA name; default: this machine's"),
        Argument("cwd", "That folder and below"),
        Argument("model"),
        Argument("thread_id"),
        MODELS,
    ),
    find=_find,
    show=_show,
    rows="groups",
)
