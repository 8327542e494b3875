"""Build one turn from its lines: prompt, answer, commands and changed files.

Each Codex version records something else. 0.60.1 keeps only the model's calls and their
outputs, and nothing of a failed turn. Newer versions keep items and the end of each turn; from
0.147.0 on, a turn that failed has its error (seen on 0.60.1 to 0.171.0).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from codex_tools.codex.json_object import Json, object_of, objects_of, text_of
from codex_tools.rollouts.line import COMPACTED, ms_of, records_errors, user_text
from codex_tools.rollouts.shell_output import (
    ShellOutput,
    is_patch,
    own_command,
    patched_folder,
    patched_paths,
    read_output,
)
from codex_tools.rollouts.user_request import request_in

COMMANDS_KEPT = 50
"""Commands kept of a turn, the newest ones."""
FILES_KEPT = 200
"""Changed files kept of a turn, the first ones."""
UNEXPLAINED = "the turn ended without an answer, and Codex recorded no reason"
"""The error of a failed turn of a Codex that records no errors."""

_COMMENTARY = "commentary"
"""The phase of a message that is not the answer; seen on 0.107 to 0.144."""
_SHELLS = frozenset(
    (
        *("shell", "shell_command", "exec_command", "local_shell", "unified_exec"),
        "container.exec",  # Another name of `shell` for 0.60.1 and 0.98.0.
    )
)
_KINDS = {"A": "add", "M": "update", "D": "delete"}


@dataclass(slots=True)
class Turn:
    """One turn as its rollout records it; None for a fact that is not recorded."""

    turn_id: str | None = None
    started_ms: int = 0
    duration_s: float | None = None
    prompt: str | None = None
    """What the person asked, without the context that a client wrote around it."""
    recorded_prompt: str | None = None
    """The prompt with this context; None if there is no context."""
    final_response: str | None = None
    model: str | None = None
    sandbox: str | None = None
    usage: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Input, cached, output and reasoning tokens."""
    commands: list[tuple[str, int | None, str]] = field(
        default_factory=list[tuple[str, int | None, str]]
    )
    """Command, exit code, status; the newest COMMANDS_KEPT."""
    commands_at_end: list[tuple[str, int | None, str]] | None = None
    """The commands as they were when the turn ended; None if no end is recorded.

    0.163.0 and 0.171.0 kill a command that still runs then, and record its end afterwards.
    """
    files: dict[str, str] = field(default_factory=dict[str, str])
    """How each path was changed: add, update or delete."""
    error: str | None = None


@dataclass(slots=True)
class _Call:
    """A call of a shell tool."""

    at: int
    """Its place in the turn's commands."""
    folder: str
    """Where it runs."""
    command: str


class TurnBuilder:
    """Build one turn from its lines."""

    def __init__(self, started_ms: int) -> None:
        self._turn = Turn(started_ms=started_ms)
        self._cwd = ""
        self._calls: dict[str, _Call] = {}
        self._sessions: dict[str, str] = {}
        """The calls whose commands still run, by the session that Codex gave each."""
        self._polls: dict[str, str] = {}
        """The sessions that calls of write_stdin ask, by the id of the call."""
        self._patches: set[str] = set()
        self._not_commands: set[int] = set()
        """Places of commands that only apply a patch."""
        self._requests: list[str] = []
        self._recorded: list[str] = []
        self._has_context = False
        self._plan: str | None = None
        self._review: str | None = None
        self._answer: str | None = None
        """The latest message in the phase of the answer."""
        self._last_stamp: object = None

    def read(self, lines: Iterable[bytes]) -> Turn:
        """Read all lines of the turn, in their order, and return the turn."""
        for line in lines:
            try:
                entry: Any = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # Torn or blank. The index counts the torn lines that matter.
            if isinstance(entry, dict):
                self._take(cast(Json, entry))
        return self._finished()

    def _take(self, entry: Json) -> None:
        payload = object_of(entry, "payload")
        match entry.get("type"):
            case "turn_context":
                self._take_context(payload)
            case "event_msg":
                self._take_event(payload, is_new="ordinal" in entry)
                self._last_stamp = entry.get("timestamp")
            case "response_item" if payload.get("type") != "message":
                self._take_call(payload)
            case "response_item" if "ordinal" not in entry:
                # Paginated history has an item for the command too.
                self._take_own_command(user_text(payload) or "")
            case _ if "payload" not in entry:
                self._take_bare(entry)
            case _:
                pass

    def _finished(self) -> Turn:
        turn = self._turn
        if turn.duration_s is None and (ended := ms_of(self._last_stamp)) is not None:
            turn.duration_s = max(0, ended - turn.started_ms) / 1000
        turn.prompt = "\n\n".join(self._requests) or None
        if self._recorded != self._requests:
            turn.recorded_prompt = "\n\n".join(self._recorded)
        if self._plan and self._plan not in (turn.final_response or ""):
            said = turn.final_response
            turn.final_response = f"{said}\n\n{self._plan}" if said else self._plan
        if self._not_commands:
            commands = enumerate(turn.commands)
            turn.commands = [each for at, each in commands if at not in self._not_commands]
        del turn.commands[:-COMMANDS_KEPT]
        return turn

    def _take_context(self, payload: Json) -> None:
        turn = self._turn
        self._has_context = True
        turn.turn_id = turn.turn_id or text_of(payload, "turn_id")
        turn.model = text_of(payload, "model") or turn.model
        turn.sandbox = text_of(object_of(payload, "sandbox_policy"), "type") or turn.sandbox
        self._cwd = text_of(payload, "cwd") or self._cwd

    def _take_event(self, payload: Json, *, is_new: bool) -> None:
        turn = self._turn
        match payload.get("type"):
            case "task_started":
                turn.turn_id = text_of(payload, "turn_id")
            case "user_message":
                self._add_prompt(text_of(payload, "message"))
            case "agent_message":
                self._add_answer(text_of(payload, "message"), payload.get("phase"))
            case "task_complete":
                self._take_end(payload, is_new=is_new)
            case "turn_aborted":
                turn.error = f"interrupted ({text_of(payload, 'reason') or 'no reason recorded'})"
                self._take_duration(payload)
            case "patch_apply_end":
                if payload.get("success") is not False:
                    self._take_changes(str(payload.get("call_id")), object_of(payload, "changes"))
            case "exec_command_end":
                self._take_command(payload, str(payload.get("call_id")))
            case "exited_review_mode":
                self._review = review_text(payload)
            case "item_completed":
                self._take_item(object_of(payload, "item"), payload.get("turn_id"))
            case _:
                pass

    def _take_end(self, payload: Json, *, is_new: bool) -> None:
        turn = self._turn
        answer: object = payload.get("last_agent_message")
        error: object = payload.get("error")
        # Without an answer, what was said before is not the answer: it belongs to work that did
        # not end. The answers of plan mode and of a review are recorded as items of their own.
        said = answer if isinstance(answer, str) else None
        turn.final_response = said or self._answer or self._review
        is_answered = said is not None or self._plan is not None or self._review is not None
        # A turn that only compacts the history, or runs a command of the person, asks no model.
        asks_model = self._has_context or bool(self._recorded)
        if error:
            turn.error = text_of(object_of(payload, "error"), "message") or str(error)
        elif not is_answered and asks_model and not is_new and not records_errors(payload):
            turn.error = UNEXPLAINED
        turn.commands_at_end = turn.commands[-COMMANDS_KEPT:]
        self._take_duration(payload)

    def _add_prompt(self, text: str | None) -> None:
        """Add a prompt; a person may add more of them while the turn is running."""
        # Codex 0.98.0 to 0.147.0 record the request of a review twice.
        if text and self._recorded[-1:] != [text]:
            self._recorded.append(text)
            request = request_in(text)
            if request is not None:
                self._requests.append(text if request == text.strip() else request)

    def _add_answer(self, text: str | None, phase: object) -> None:
        if not text or text == COMPACTED or phase == _COMMENTARY:
            return
        self._turn.final_response = text
        if phase == "final_answer":
            self._answer = text
        if self._review is not None:
            self._review = text

    def _take_duration(self, payload: Json) -> None:
        duration = payload.get("duration_ms")
        if isinstance(duration, int | float):
            self._turn.duration_s = duration / 1000

    def _take_item(self, item: Json, turn_id: object) -> None:
        match item.get("type"):
            case "UserMessage":
                self._add_prompt(user_text(item))
            case "AgentMessage":
                self._add_answer(user_text(item), item.get("phase"))
            case "Plan":
                self._plan = text_of(item, "text") or self._plan
            case "ExitedReviewMode":
                self._review = review_text(item)
            case "CommandExecution":
                id_ = str(item.get("id"))
                # A command that runs on after its turn ends during a later one (0.171.0).
                is_late = item.get("source") == "unified_exec_startup" and id_ not in self._calls
                if not (is_late and turn_id != self._turn.turn_id):
                    self._take_command(item, id_)
            case "FileChange" if item.get("status") == "completed":
                self._take_changes(str(item.get("id")), object_of(item, "changes"))
            case _:
                pass

    def _take_command(self, item: Json, id_: str) -> None:
        """Take the end of a command, as an item or as an event."""
        code = item.get("exit_code")
        status = "completed" if item.get("status", "completed") == "completed" else "failed"
        if isinstance(code, int) and code:
            status = "failed"
        command = _script(item.get("command"))
        self._put_command(id_, command, code if isinstance(code, int) else None, status)

    def _take_changes(self, call_id: str, changes: Json) -> None:
        self._patches.add(call_id)
        for path, change in changes.items():
            known = cast(Json, change) if isinstance(change, dict) else {}
            kind = known.get("type")
            moved = text_of(known, "move_path")
            if moved is not None:
                self._change(path, "delete")
                self._change(moved, "add")
            elif kind in ("add", "update", "delete"):
                self._change(path, kind)

    def _change(self, path: str, kind: str) -> None:
        files = self._turn.files
        former = files.get(path)
        if former == "add" and kind == "delete":
            del files[path]
        elif former == "add" or (former == "delete" and kind == "add"):
            files[path] = "add" if former == "add" else "update"
        elif former is not None or len(files) < FILES_KEPT:
            files[path] = kind

    def _take_call(self, payload: Json) -> None:
        """Take a call of the model or its output; legacy history keeps nothing else of commands."""
        call_id = text_of(payload, "call_id") or text_of(payload, "id") or ""
        match payload.get("type"):
            case "function_call":
                self._take_function(call_id, payload)
            case "local_shell_call":
                self._begin_command(call_id, object_of(payload, "action"))
            case "function_call_output" | "local_shell_call_output" if call_id in self._calls:
                self._end_command(call_id, read_output(payload.get("output")))
            case "function_call_output" if call_id in self._polls:
                session = self._polls.pop(call_id)
                output = read_output(payload.get("output"))
                if output.exit_code is not None and session in self._sessions:
                    self._end_command(self._sessions.pop(session), output)
            case "custom_tool_call_output" if call_id not in self._patches:
                self._take_patched(read_output(payload.get("output")), self._cwd)
            case _:
                pass

    def _take_function(self, call_id: str, payload: Json) -> None:
        try:
            arguments: Any = orjson.loads(text_of(payload, "arguments") or "{}")
        except orjson.JSONDecodeError:
            return
        if not isinstance(arguments, dict):
            return
        given = cast(Json, arguments)
        if payload.get("name") in _SHELLS:
            self._begin_command(call_id, given)
        elif payload.get("name") == "write_stdin":
            self._polls[call_id] = str(given.get("session_id"))

    def _begin_command(self, call_id: str, given: Json) -> None:
        """Begin a command with the arguments *given*."""
        command = _script(given.get("cmd", given.get("command")))
        self._put_command(call_id, command, None, "in_progress")
        folder = text_of(given, "workdir") or text_of(given, "working_directory") or ""
        self._calls[call_id].folder = str(Path(self._cwd) / folder)

    def _end_command(self, call_id: str, output: ShellOutput) -> None:
        """Take what a shell tool has returned; its command may still run in a session."""
        call = self._calls[call_id]
        if output.session is not None:
            self._sessions[output.session] = call_id
        elif output.exit_code is not None:
            status = "failed" if output.exit_code else "completed"
            self._put_command(call_id, None, output.exit_code, status)
        elif output.is_refused and self._turn.commands[call.at][2] == "in_progress":
            self._put_command(call_id, None, None, "failed")
        if is_patch(call.command, output):
            # For Codex, this is a change of files and no command (0.60.1 to 0.171.0).
            self._not_commands.add(call.at)
        if "apply_patch" in call.command and call_id not in self._patches:
            self._take_patched(output, patched_folder(call.command, call.folder))

    def _take_own_command(self, text: str) -> None:
        """Take a command that the person ran, from the message that tells the model of it."""
        if (found := own_command(text)) is not None:
            command, code = found
            self._turn.commands.append((command, code, "failed" if code else "completed"))

    def _take_patched(self, output: ShellOutput, folder: str) -> None:
        """Take the files that apply_patch lists in its output."""
        for letter, path in patched_paths(output.text):
            self._change(os.path.normpath(Path(folder) / path), _KINDS[letter])

    def _put_command(self, id_: str, command: str | None, code: int | None, status: str) -> None:
        commands = self._turn.commands
        call = self._calls.get(id_)
        if call is None:
            self._calls[id_] = _Call(len(commands), self._cwd, command or "")
            commands.append((command or "", code, status))
        else:
            commands[call.at] = (command or commands[call.at][0], code, status)

    def _take_bare(self, entry: Json) -> None:
        """Take a line of a Codex before September 2025, which wrote items without an envelope."""
        if entry.get("type") != "message":
            self._take_call(entry)
        elif entry.get("role") == "assistant":
            self._add_answer(user_text(entry), None)
        elif entry.get("role") == "user" and request_in(text := user_text(entry)) is not None:
            self._add_prompt(text)


def review_text(payload: Json) -> str | None:
    """Return what a review found, from an `exited_review_mode` event or its item."""
    output = object_of(payload, "review_output")
    parts = [text_of(output, "overall_explanation")]
    for finding in objects_of(output, "findings"):
        parts += [text_of(finding, "title"), text_of(finding, "body")]
    return "\n\n".join(part for part in parts if part) or None


def _script(command: object) -> str:
    """Return a command as text, without the shell that runs it."""
    if isinstance(command, list):
        words = [str(word) for word in cast("list[object]", command)]
        return words[2] if len(words) == 3 and words[1] in ("-lc", "-c") else " ".join(words)
    return command if isinstance(command, str) else ""
