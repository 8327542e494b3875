"""Read the turns of one thread from its rollout: prompts, answers, commands and changed files.

Each Codex version records something else. 0.60.1 keeps only the model's calls and their
outputs, and nothing of a failed turn. Newer versions keep items and the end of each turn with
its error (seen on 0.60.1, 0.163.0 and 0.169.0).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from codex_tools.codex.json_object import Json, object_of, text_of
from codex_tools.rollouts.files import parts_of
from codex_tools.rollouts.line import COMPACTED, lines_of, ms_of, user_text
from codex_tools.rollouts.thread_reader import Mark, ThreadReader
from codex_tools.rollouts.token_counter import REQUEST_FIELDS

COMMANDS_KEPT = 50
"""Commands kept of a turn, the newest ones."""
FILES_KEPT = 200
"""Changed files kept of a turn, the first ones."""

_EXIT_CODE = re.compile(r"(?:\A|\n)(?:Exit code: |Process exited with code )(-?\d+)")
_CHANGED = re.compile(r"^([AMD]) (.+)$", re.MULTILINE)
_KINDS = {"A": "add", "M": "update", "D": "delete"}


@dataclass(slots=True)
class Turn:
    """One turn as its rollout records it; None for a fact that is not recorded."""

    turn_id: str | None = None
    started_ms: int = 0
    duration_s: float | None = None
    prompt: str | None = None
    final_response: str | None = None
    model: str | None = None
    sandbox: str | None = None
    usage: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Input, cached, output and reasoning tokens."""
    commands: list[tuple[str, int | None, str]] = field(
        default_factory=list[tuple[str, int | None, str]]
    )
    """Command, exit code, status; the newest COMMANDS_KEPT."""
    files: dict[str, str] = field(default_factory=dict[str, str])
    """How each path was changed: add, update or delete."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """The turns of one rollout that belong to its thread's history."""

    path: Path
    marks: Sequence[Mark]
    end: int
    """Offset of the end of the history in this rollout."""
    requests: Sequence[int]
    """All requests of the rollout, REQUEST_FIELDS numbers each."""


def segment_of(path: Path, reader: ThreadReader) -> Segment:
    """Return the turns that *reader* has found in the rollout *path*, which it has read whole."""
    return Segment(path, reader.marks, reader.offset, reader.requests)


def read_turns(
    segments: Sequence[Segment], before: int | None, count: int
) -> tuple[list[Turn], int]:
    """Return up to *count* turns of a thread, newest first, and the number of turns before them.

    Only the lines of these turns are read, one by one.

    Args:
        segments: The thread's history, the oldest segment first.
        before: Return only turns before this one, counted from 0; None for the newest turns.
        count: The largest number of turns to return.

    Raises:
        OSError: A rollout cannot be read.
    """
    places = [(segment, number) for segment in segments for number in range(len(segment.marks))]
    last = len(places) if before is None else min(before, len(places))
    first = max(0, last - count)
    turns = [_read_turn(segment, number) for segment, number in places[first:last]]
    turns.reverse()
    return turns, first


def _read_turn(segment: Segment, number: int) -> Turn:
    marks, mark = segment.marks, segment.marks[number]
    is_last = number + 1 == len(marks)
    end = mark.end or (segment.end if is_last else marks[number + 1].offset)
    total = len(segment.requests) // REQUEST_FIELDS
    used = mark.requests_end or (total if is_last else marks[number + 1].requests)
    parts = parts_of(segment.path, mark.offset, min(end, segment.end))
    turn = TurnBuilder(mark.ms).read(lines_of(parts))
    rows = segment.requests[mark.requests * REQUEST_FIELDS : used * REQUEST_FIELDS]
    input_, cached, output, reasoning = (
        sum(rows[column::REQUEST_FIELDS]) for column in (2, 3, 5, 6)
    )
    turn.usage = (input_, cached, output, reasoning)
    return turn


class TurnBuilder:
    """Build one turn from its lines."""

    def __init__(self, started_ms: int) -> None:
        self._turn = Turn(started_ms=started_ms)
        self._cwd = ""
        self._calls: dict[str, int] = {}
        self._patches: set[str] = set()
        self._last_stamp: object = None

    def read(self, lines: Iterable[bytes]) -> Turn:
        """Read all lines of the turn, in their order, and return the turn."""
        for line in lines:
            try:
                entry: Any = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # Torn or blank. The index counts the torn lines that matter.
            if not isinstance(entry, dict):
                continue
            kind, payload = cast(Json, entry).get("type"), object_of(cast(Json, entry), "payload")
            match kind:
                case "turn_context":
                    self._take_context(payload)
                case "event_msg":
                    self._take_event(payload)
                    self._last_stamp = cast(Json, entry).get("timestamp")
                case "response_item":
                    self._take_call(payload)
                case _:
                    pass
        turn = self._turn
        if turn.duration_s is None and (ended := ms_of(self._last_stamp)) is not None:
            turn.duration_s = max(0, ended - turn.started_ms) / 1000
        del turn.commands[:-COMMANDS_KEPT]
        return turn

    def _take_context(self, payload: Json) -> None:
        turn = self._turn
        turn.turn_id = turn.turn_id or text_of(payload, "turn_id")
        turn.model = text_of(payload, "model") or turn.model
        turn.sandbox = text_of(object_of(payload, "sandbox_policy"), "type") or turn.sandbox
        self._cwd = text_of(payload, "cwd") or self._cwd

    def _take_event(self, payload: Json) -> None:
        turn = self._turn
        match payload.get("type"):
            case "task_started":
                turn.turn_id = text_of(payload, "turn_id")
            case "user_message":
                self._add_prompt(text_of(payload, "message"))
            case "agent_message" if (said := text_of(payload, "message")) != COMPACTED:
                turn.final_response = said or turn.final_response
            case "task_complete":
                turn.final_response = text_of(payload, "last_agent_message") or turn.final_response
                error = object_of(payload, "error")
                turn.error = text_of(error, "message") or (str(error) if error else None)
                self._take_duration(payload)
            case "turn_aborted":
                turn.error = f"interrupted ({text_of(payload, 'reason') or 'no reason recorded'})"
                self._take_duration(payload)
            case "patch_apply_end":
                if payload.get("success") is not False:
                    self._take_changes(str(payload.get("call_id")), object_of(payload, "changes"))
            case "item_completed":
                self._take_item(object_of(payload, "item"))
            case _:
                pass

    def _add_prompt(self, text: str | None) -> None:
        if text:
            # A person may add a prompt while the turn is running.
            before = self._turn.prompt
            self._turn.prompt = text if before is None else f"{before}\n\n{text}"

    def _take_duration(self, payload: Json) -> None:
        duration = payload.get("duration_ms")
        if isinstance(duration, int | float):
            self._turn.duration_s = duration / 1000

    def _take_item(self, item: Json) -> None:
        match item.get("type"):
            case "UserMessage":
                self._add_prompt(user_text(item))
            case "AgentMessage":
                self._turn.final_response = user_text(item) or self._turn.final_response
            case "CommandExecution":
                command = _script(item.get("command"))
                code = item.get("exit_code")
                status = "completed" if item.get("status") == "completed" else "failed"
                self._put_command(
                    str(item.get("id")), command, code if isinstance(code, int) else None, status
                )
            case "FileChange" if item.get("status") == "completed":
                self._take_changes(str(item.get("id")), object_of(item, "changes"))
            case _:
                pass

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
        call_id = text_of(payload, "call_id") or ""
        match payload.get("type"):
            case "function_call":
                try:
                    arguments: Any = orjson.loads(text_of(payload, "arguments") or "{}")
                except orjson.JSONDecodeError:
                    return
                if isinstance(arguments, dict) and payload.get("name") in _SHELLS:
                    given = cast(Json, arguments)
                    command = _script(given.get("cmd", given.get("command")))
                    self._put_command(call_id, command, None, "in_progress")
            case "function_call_output" if call_id in self._calls:
                found = _EXIT_CODE.search(_output(payload)[:4000])
                if found is not None:
                    code = int(found[1])
                    self._put_command(call_id, None, code, "failed" if code else "completed")
            case "custom_tool_call_output" if call_id not in self._patches:
                _, updated, files = _output(payload).partition("Updated the following files:\n")
                for letter, path in _CHANGED.findall(files if updated else ""):
                    self._change(os.path.normpath(Path(self._cwd) / path), _KINDS[letter])
            case _:
                pass

    def _put_command(self, id_: str, command: str | None, code: int | None, status: str) -> None:
        commands = self._turn.commands
        at = self._calls.get(id_)
        if at is None:
            self._calls[id_] = len(commands)
            commands.append((command or "", code, status))
        else:
            commands[at] = (command or commands[at][0], code, status)


_SHELLS = frozenset(("shell", "shell_command", "exec_command", "local_shell", "unified_exec"))


def _script(command: object) -> str:
    """Return a command as text, without the shell that runs it."""
    if isinstance(command, list):
        words = [str(word) for word in cast("list[object]", command)]
        return words[2] if len(words) == 3 and words[1] in ("-lc", "-c") else " ".join(words)
    return command if isinstance(command, str) else ""


def _output(payload: Json) -> str:
    output: object = payload.get("output")
    if not isinstance(output, str):
        return ""
    if output.startswith("{"):
        # Codex 0.60.1 writes JSON here: {"output": "...", "metadata": {...}}.
        try:
            inner: Any = orjson.loads(output)
        except orjson.JSONDecodeError:
            return output
        return str(cast(Json, inner).get("output", "")) if isinstance(inner, dict) else output
    return output
