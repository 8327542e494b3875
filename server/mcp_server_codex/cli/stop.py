"""`mcp-server-codex stop RUN`: stop a run, also one of another process on this machine.

The server process of the run does it, because only that process can end all that the run started.
"""

from __future__ import annotations

import os
import sys

import anyio

from codex_tools.codex.clean_text import clean
from codex_tools.codex.errors import CodexError
from codex_tools.codex.json_object import Json
from codex_tools.runs.stop_file import stop_elsewhere
from mcp_server_codex.cli.command import Argument, Form, read_command_line
from mcp_server_codex.cli.run_list import LIVE, RunList

STOP = Form(
    name="stop",
    about="Stop a run and every process it has started, whatever server process it belongs to."
    " Work done so far is kept, and the thread can be resumed.",
    arguments=(Argument("run", "id of the run, or its beginning", "word"),),
)


def run_stop(arguments: list[str]) -> int:
    """Run the command; return the exit code: 0 if the run is over."""
    line = read_command_line(STOP, arguments)
    try:
        found = _stop(RunList(line.settings), line.values["run"])
    except CodexError as error:
        return line.complain(error)
    except KeyboardInterrupt:
        return 130
    line.put(found, lambda found: _say(found["message"]))
    return 1 if found["outcome"] == "stopping" else 0


def _stop(runs: RunList, prefix: str) -> Json:
    """Stop the run whose id begins with *prefix*, and return what became of it.

    Raises:
        CodexError: There is no such run, or its server does not stop it.
    """
    found = runs.find(prefix)
    run_id = found.result.run_id or ""
    if found.died:
        outcome, message = "server_died", "its server process has died, and the run with it"
    elif found.result.status not in LIVE:
        outcome, message = "over", "it is over"
    else:
        by = f"mcp-server-codex stop (process {os.getpid()})"
        anyio.run(stop_elsewhere, runs.store, found, by)
        found = runs.find(run_id)
        if found.result.status in LIVE:
            outcome, message = "stopping", "its server process has begun to stop it"
        elif found.result.status == "cancelled":
            outcome, message = "stopped", "it was stopped"
        else:
            outcome, message = "over", "it has ended by itself"
    status = found.result.status
    return {
        "run_id": run_id,
        "outcome": outcome,
        "status": status,
        "thread_id": found.result.thread_id,
        "message": f"Run {run_id}: {message}. Status: {status.replace('_', ' ')}.",
    }


def _say(message: str) -> None:
    sys.stdout.write(f"{clean(message)}\n")
