"""`mcp-server-codex apply RUN` and `discard RUN`: take or drop the changes of an isolated run.

A person does this in the own folder, so no limit of the server applies but its roots.
"""

from __future__ import annotations

import sys

from codex_tools.apply import ApplyRequest, act, result_of, words
from codex_tools.arguments import read_arguments
from codex_tools.codex.clean_text import clean_lines
from codex_tools.codex.errors import CodexError, InvalidArguments
from codex_tools.codex.json_object import Json
from codex_tools.runs.applying import Applied, ApplyConflict, RunChangesKept
from mcp_server_codex.cli.command import Argument, CommandLine, Form, read_command_line
from mcp_server_codex.cli.run_list import LIVE, RunList

_RUN = Argument("run", "id of the run, or its beginning", "word")

APPLY = Form(
    name="apply",
    about="Write the changes of an isolated run into its folder: all of them or none. Files that"
    " you have changed meanwhile are merged by lines. Nothing is staged.",
    arguments=(
        _RUN,
        Argument("check", "only show what would be done", "flag"),
        Argument("paths", "only these files or folders", "many"),
        Argument("branch", "commit to this new branch instead, without a checkout"),
    ),
)

DISCARD = Form(
    name="discard",
    about="Delete the copy of an isolated run and the changes in it.",
    arguments=(_RUN,),
)


def run_apply(arguments: list[str]) -> int:
    """Run the command `apply`; return the exit code: 1 with a conflict."""
    line = read_command_line(APPLY, arguments)
    values = line.values
    if "check" in values and "branch" in values:
        return line.complain(InvalidArguments(["--check and --branch cannot be combined"]))
    action = "check" if "check" in values else "branch" if "branch" in values else "apply"
    return _run(line, action)


def run_discard(arguments: list[str]) -> int:
    """Run the command `discard`; return the exit code."""
    return _run(read_command_line(DISCARD, arguments), "discard")


def _run(line: CommandLine, action: str) -> int:
    try:
        found, code = _do(line, action)
    except CodexError as error:
        return line.complain(error)
    except KeyboardInterrupt:
        return 130
    line.put(found, lambda found: _say(str(found.pop("text"))))
    return code


def _do(line: CommandLine, action: str) -> tuple[Json, int]:
    """Do *action*; return the tool's result, with its text unless it is printed as JSON.

    Raises:
        CodexError: There is no such run, it is running, or its changes are gone.
    """
    run = RunList(line.settings).find(line.values["run"])
    run_id = run.result.run_id or ""
    if run.result.status in LIVE and not run.died:
        raise InvalidArguments([f"{run_id} is {run.result.status}; stop it or wait"])
    given = {key: line.values[key] for key in ("paths", "branch") if key in line.values}
    request = read_arguments(ApplyRequest, {"run_id": run_id, "action": action} | given).request
    kept = RunChangesKept(line.settings.state_dir, run_id)
    paths = kept.paths_of(request.paths)
    try:
        done = act(kept, request.action, paths, request.branch, run.result)
        result = result_of(request, done)
    except ApplyConflict as error:
        result = result_of(request, Applied(error.files), error=error)
    found = result.model_dump(mode="json")
    if not line.as_json:
        found["text"] = words(result).text
    return found, 0 if result.error is None else 1


def _say(text: str) -> None:
    sys.stdout.write(f"{clean_lines(text)}\n")
