"""`mcp-server-codex runs`: list the runs of all servers, the newest first."""

from __future__ import annotations

from codex_tools.codex.errors import CodexError
from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.command import Argument, Form, read_command_line
from mcp_server_codex.cli.run_lines import PlainConsole, home, lines_of
from mcp_server_codex.cli.run_list import RunList

RUNS = Form(
    name="runs",
    about="Runs of all servers that share the state folder, the newest first; live ones with what"
    " they do now.",
    arguments=(
        Argument("limit", "number of runs; live ones are always shown; default: 20", "number"),
    ),
)

LISTED = 20
"""Default number of runs in the list."""


def run_runs(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    line = read_command_line(RUNS, arguments)
    try:
        found = RunList(line.settings).read(line.values.get("limit", LISTED))
    except CodexError as error:
        return line.complain(error)
    except KeyboardInterrupt:
        return 130
    line.put(found, _show)
    return 0


def _show(found: Json) -> None:
    console = PlainConsole()
    for run in found["runs"]:
        for each in lines_of(run, console.limit):
            console.row(each)
    shown, total = len(found["runs"]), found["total"]
    place = home(found["state_dir"])
    if not total:
        console.print(f"No runs in {place}.", soft_wrap=True)
    elif shown < total:
        more = f"{shown} of {total} runs in {place}. For more: --limit {total}"
        console.print(more, style="dim", soft_wrap=True)
