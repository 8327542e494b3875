"""Read what Codex's shell tools return to the model: exit code, session, text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from codex_tools.codex.json_object import Json, object_of, objects_of, text_of

_HEAD_LINES = 12
"""Lines before the text of an output that are read; Codex writes at most six."""
_HEAD = ("Exit code: ", "Wall time: ", "Chunk ID: ", "Process ")
"""How the first of these lines begins."""
_CODE = re.compile(r"(?:Exit code: |Process exited with code )(-?\d{1,10})\s*")
_SESSION = re.compile(r"Process running with session ID (\d{1,20})\s*")
_REFUSALS = (
    "aborted by user",
    "apply_patch verification failed",
    "exec command rejected",
    "exec_command failed",
    "execution error",
    "failed in sandbox",
    "failed to execute",
    "unsupported call",
)
"""Begins of outputs of commands that did not run to their end; seen on 0.60.1 and 0.171.0."""
_OWN_COMMAND = "<user_shell_command>\n<command>\n"
_PATCHED = "Success. Updated the following files:\n"
_CHANGED = re.compile(r"([AMD]) (.+)")
_APPLIES = re.compile(
    r"\s*(?:cd\s+(\"[^\"]+\"|'[^']+'|[^\s;&|]+)\s*&&\s*)?(?:apply_patch|applypatch)\s"
)
"""A command that Codex takes for a patch: it may change the folder before, and do no more."""


@dataclass(frozen=True, slots=True)
class ShellOutput:
    """The output of a shell tool."""

    text: str = ""
    """What the command printed, as far as Codex keeps it."""
    exit_code: int | None = None
    session: str | None = None
    """The session in which the command still runs, if Codex says so."""
    is_refused: bool = False
    """True if Codex says that the command was refused, failed to start or was aborted."""


def read_output(output: object) -> ShellOutput:
    """Return the output of a shell tool in any form that Codex writes.

    * JSON with `output` and `metadata.exit_code`: the tool `shell` of 0.60.1, and a patch that a
      shell command of 0.98.0 or 0.120.0 applies.
    * Lines such as `Exit code: 0` before a line `Output:`: 0.60.1 to 0.171.0.
    * A list of parts, each with a text.
    """
    if isinstance(output, list):
        parts = objects_of({"parts": output}, "parts")
        output = "\n".join(text for part in parts if (text := text_of(part, "text")))
    if not isinstance(output, str):
        return ShellOutput()
    return _read_json(output) or _read_text(output, is_outer=True)


def _read_json(text: str) -> ShellOutput | None:
    if not text.startswith('{"'):
        return None
    try:
        value: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict):
        return None
    entry = cast(Json, value)
    if not isinstance(entry.get("output"), str):
        return None
    code = object_of(entry, "metadata").get("exit_code")
    if isinstance(code, int):
        return ShellOutput(entry["output"], code)
    return _read_text(entry["output"], is_outer=False)


def _read_text(text: str, *, is_outer: bool) -> ShellOutput:
    """Read the lines before `Output:`; the command's own lines follow and may look alike."""
    if not text.startswith(_HEAD):
        return ShellOutput(text, is_refused=text.startswith(_REFUSALS))
    code: int | None = None
    session: str | None = None
    at = 0
    for _ in range(_HEAD_LINES):
        end = text.find("\n", at)
        line = text[at : end if end >= 0 else len(text)]
        if line == "Output:":
            break
        if found := _CODE.fullmatch(line):
            code = int(found[1])
        elif found := _SESSION.fullmatch(line):
            session = found[1]
        if end < 0:
            return ShellOutput(text, code, session)
        at = end + 1
    else:
        return ShellOutput(text, code, session)
    body = text[end + 1 :] if end >= 0 else ""
    if is_outer and code is None and session is None:
        # 0.120.0 and 0.171.0 put the output of a patch that a command applies inside.
        inner = _read_json(body) or _read_text(body, is_outer=False)
        if inner.exit_code is not None and _PATCHED in inner.text:
            return inner
    return ShellOutput(body, code, session, code is None and body.startswith(_REFUSALS))


def patched_paths(text: str) -> Iterator[tuple[str, str]]:
    """Yield letter (A, M or D) and path of each file that apply_patch says it has changed."""
    _, _, files = text.partition(_PATCHED)
    for line in files.split("\n"):
        found = _CHANGED.fullmatch(line)
        if found is None:
            return
        yield found[1], found[2]


def own_command(text: str) -> tuple[str, int] | None:
    """Return command and exit code of a message about a command that the person ran, else None.

    0.120.0 to 0.171.0 write such a message; up to 0.147.0, nothing else records the command.
    """
    if not text.startswith(_OWN_COMMAND):
        return None
    command, _, result = text[len(_OWN_COMMAND) :].partition("\n</command>\n<result>\n")
    code = _CODE.match(result)
    return None if code is None else (command, int(code[1]))


def is_patch(command: str, output: ShellOutput) -> bool:
    """Return True if *command* has applied a patch and done no more."""
    before, changed, files = output.text.partition(_PATCHED)
    if before or not changed or _APPLIES.match(command) is None:
        return False
    return all(_CHANGED.fullmatch(line) for line in files.split("\n") if line)


def patched_folder(command: str, folder: str) -> str:
    """Return the folder in which a *command* that runs in *folder* applies its patch."""
    found = _APPLIES.match(command)
    if found is None or found[1] is None:
        return folder
    return str(Path(folder) / found[1].strip("\"'"))
