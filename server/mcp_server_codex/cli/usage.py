"""`mcp-server-codex usage`: print the tokens and the cost of Codex.

Arguments and result are those of the tool codex_usage. Its module imports
pydantic, so this module repeats the arguments; a test compares both.
"""

from __future__ import annotations

from typing import get_args

from codex_tools.codex.json_object import Json
from codex_tools.history.index import Progress, ThreadIndex
from codex_tools.history.usage_report import GroupBy, find_usage
from mcp_server_codex.cli.command import Argument, Command, run_command
from mcp_server_codex.settings import Settings


def run_usage(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    return run_command(USAGE, arguments)


def _find(values: Json, history: ThreadIndex, settings: Settings, progress: Progress) -> Json:
    return find_usage(history, progress, roots=settings.policy.roots, **values)


def _show(found: Json) -> None:
    from mcp_server_codex.cli.usage_table import show

    show(found)


USAGE = Command(
    name="usage",
    about=(
        "Tokens and estimated cost of all of Codex's threads on this machine, exact as Codex"
        " recorded them, grouped by day, week, month, model, folder or thread; and the account's"
        " newest rate limits."
    ),
    arguments=(
        Argument("since", "ISO 8601 date or time, or 24h, 7d"),
        Argument("until"),
        Argument("group_by", choices=get_args(GroupBy)),
        Argument("timezone", "IANA name; default: this machine's"),
        Argument("cwd", "That folder and below"),
        Argument("model"),
        Argument("thread_id"),
    ),
    find=_find,
    show=_show,
    rows="groups",
)
