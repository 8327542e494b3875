"""Collect the events of a turn, one by one, into a TurnResult."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Literal, TypeVar

from codex_tools.codex.events import (
    AgentMessageItem,
    CommandExecutionItem,
    EngineEvent,
    ErrorEvent,
    ErrorItem,
    Event,
    ExitedEvent,
    FileChangeItem,
    Item,
    ItemCompletedEvent,
    ItemStartedEvent,
    ItemUpdatedEvent,
    NoticeEvent,
    QuestionsEvent,
    ReasoningItem,
    Status,
    ThreadStartedEvent,
    TodoListItem,
    ToolCallItem,
    TurnCompletedEvent,
    TurnFailedEvent,
    TurnStartedEvent,
    UnknownEvent,
    UnreadableEvent,
    WebSearchItem,
    WritingEvent,
)
from codex_tools.codex.masking import mask, quote
from codex_tools.codex.questions import Handle, Question
from codex_tools.codex.record import Usage

COMMANDS_KEPT = 50
TOOL_CALLS_KEPT = 50
SEARCHES_KEPT = 50
WARNINGS_KEPT = 20
WARNING_LIMIT = 500
COMMAND_LIMIT = 4000
OPEN_ITEMS_KEPT = 1000
PRINTED_KEPT = 12

ChangeKind = Literal["add", "update", "delete"]


@dataclass(frozen=True, slots=True)
class Command:
    """A shell command of the turn, without the `bash -lc` around it."""

    command: str
    exit_code: int | None
    status: Status


@dataclass(frozen=True, slots=True)
class TurnResult:
    """The result of a turn, complete or so far."""

    thread_id: str | None = None
    engine: str | None = None
    """The engine that ran the latest turn; None before it has started."""
    final_response: str | None = None
    usage: Usage | None = None
    """Token counts as Codex reported them; see TurnCompletedEvent."""
    files_changed: tuple[tuple[str, ChangeKind], ...] = ()
    """Net changes by path, in the order of their first change."""
    commands: tuple[Command, ...] = ()
    """The newest COMMANDS_KEPT commands."""
    command_count: int = 0
    tool_calls: tuple[ToolCallItem, ...] = ()
    searches: tuple[str, ...] = ()
    plan: tuple[tuple[str, bool], ...] = ()
    warnings: tuple[str, ...] = ()
    touched: bool = False
    """True if the turn had effects that a retry would repeat."""
    unfinished: tuple[str, ...] = ()
    """The commands of a completed turn whose end Codex did not report."""

    def with_ends(self, recorded: Sequence[tuple[str, int | None, str]]) -> TurnResult:
        """Return the result with the ends of commands that only the rollout has.

        0.120.0 on a busy machine leaves out the end of a turn's last command (seen).

        Args:
            recorded: The turn's commands in the rollout: command, exit code, status.
        """
        commands, left = list(self.commands), list[str]()
        ends = [(mask(text[:COMMAND_LIMIT]), code) for text, code, _ in recorded]
        for name in self.unfinished:
            reported = sum(c.command == name and c.exit_code is not None for c in commands)
            codes = [code for text, code in ends if text == name and code is not None]
            open_ones = [
                at
                for at, c in enumerate(commands)
                if c.command == name and c.exit_code is None and c.status != "failed"
            ]
            if len(codes) <= reported or not open_ones:
                left.append(name)
                continue
            code = codes[-1]
            commands[open_ones[-1]] = Command(name, code, "failed" if code else "completed")
        return replace(self, commands=tuple(commands), unfinished=tuple(left))


_HARMLESS = (AgentMessageItem, ReasoningItem, TodoListItem, ErrorItem)
"""Items without effects outside the thread; an unknown item may have effects."""

T = TypeVar("T")


@dataclass(slots=True)
class TurnProgress:
    """Progress of a turn, or of several turns of one run; accepts events in any order."""

    thread_id: str | None = None
    """The thread to resume, else the one that Codex opened."""
    opened: str | None = None
    """The thread that Codex says it has opened; None before it says so, "" for no valid id."""
    engine: str | None = None
    """The engine that runs the latest turn; None before it has started."""
    handle: Handle | None = None
    """With which the latest turn can be spoken to; None if it cannot."""
    paused_s: float = 0.0
    """Seconds in which the run waited for answers; its time limit is later by these."""
    final_response: str | None = None
    usage: Usage | None = None
    completed: bool = False
    failure: str | None = None
    failure_code: str | None = None
    """Codex's own code for the reason of the failure; see `TurnFailedEvent`."""
    exited: tuple[int, str] | None = None
    started: bool = False
    """True if Codex sent an event in this turn."""
    printed: list[str] = field(default_factory=list[str])
    """The first PRINTED_KEPT lines of this turn that are no events."""
    last_error: str | None = None
    doing: str = "starting Codex"
    """The current activity in a few words, for people."""
    command_count: int = 0
    open_items: set[str] = field(default_factory=set[str])
    """Ids of commands and tool calls that have started and not ended."""
    alive: bool = False
    """True if the latest event counts as progress and resets the stall timer."""
    alive_at: float | None = None
    """Time of the latest progress on the event loop's clock; the driver sets it."""
    _files: dict[str, tuple[ChangeKind, ChangeKind]] = field(
        default_factory=dict[str, tuple[ChangeKind, ChangeKind]]
    )
    _running: set[str] = field(default_factory=set[str])
    """Ids of commands that have started and not ended, however old."""
    _commands: dict[str, Command] = field(default_factory=dict[str, Command])
    _tool_calls: dict[str, ToolCallItem] = field(default_factory=dict[str, ToolCallItem])
    _searches: dict[str, str] = field(default_factory=dict[str, str])
    _plan: tuple[tuple[str, bool], ...] = ()
    _warnings: dict[str, str] = field(default_factory=dict[str, str])
    _unread: int = 0
    _turn: int = 0
    """Number of the turn, part of an item's key: Codex counts items from 0 in each turn."""
    _touched: bool = False

    def begin_turn(self, thread_id: str | None) -> None:
        """Prepare for one more turn, in thread *thread_id* or, if None, in a new thread.

        Commands, changes and other items of earlier turns are kept. The outcome of the earlier
        turn (answer, usage, failure, exit) is reset.
        """
        self.thread_id, self.opened = thread_id, None
        self.final_response = self.usage = self.failure = self.exited = self.last_error = None
        self.completed = self._touched = self.alive = self.started = False
        self.handle = None
        self.printed.clear()
        self.alive_at = None
        self.open_items.clear()
        self._running.clear()
        self.doing = "starting Codex"
        self._turn += 1

    def note(self, warning: str) -> None:
        """Add a warning for the caller."""
        self._warn(warning, warning)

    @property
    def ended(self) -> bool:
        """True if Codex reported that the turn completed or failed."""
        return self.completed or self.failure is not None

    @property
    def questions(self) -> tuple[Question, ...]:
        """What Codex waits for at the moment."""
        return () if self.handle is None or self.ended else self.handle.questions

    @property
    def said_last(self) -> bool:
        """True if the latest event was a message of the model."""
        return self.doing == "writing"

    @property
    def files_changed(self) -> int:
        """Number of paths with a net change, counted from Codex's patches."""
        return sum(1 for _ in self._changes())

    def add(self, event: Event) -> None:
        """Add the next event."""
        if isinstance(event, NoticeEvent):
            self.note(event.message)
            return  # It says nothing of Codex.
        if isinstance(event, EngineEvent):
            self.engine, self.handle = event.name, event.handle
            return
        self.alive = True
        self.started |= not isinstance(event, (UnknownEvent, UnreadableEvent, ExitedEvent))
        match event:
            case ItemCompletedEvent(item):
                self._take(item, done=True)
                self.open_items.discard(item.id)
            case ItemStartedEvent(item):
                self._take(item, done=False)
            case ItemUpdatedEvent(item):
                self._take(item, done=False)
            case ThreadStartedEvent(thread_id):
                self.opened = thread_id if self.opened is None else self.opened
                self.thread_id = self.thread_id or thread_id or None
                self.doing = "thinking"
            case TurnStartedEvent():
                # 0.98 repeats this event for each sub-agent; the last terminal event counts.
                self.doing = "thinking"
            case TurnCompletedEvent(usage):
                self.completed, self.failure = True, None
                self.usage = usage or self.usage
                self.doing = "finishing"
            case TurnFailedEvent(message, code):
                self.completed, self.failure, self.failure_code = False, message, code
                self.doing = "failing"
            case ErrorEvent(message):
                self._take_error(message)
            case QuestionsEvent():
                asked = self.questions
                self.doing = f"waiting for an answer: {_asked(asked[0])}" if asked else "thinking"
            case WritingEvent(text):
                self.doing = f"writing: {text}"
            case UnknownEvent():
                pass
            case UnreadableEvent(start):
                self._unread += 1
                if len(self.printed) < PRINTED_KEPT:
                    self.printed.append(start)
            case ExitedEvent(returncode, stderr):
                self.exited = (returncode, stderr)

    def result(self) -> TurnResult:
        """Return the result of the turn so far."""
        failure = quote(self.failure, WARNING_LIMIT) if self.failure and self._warnings else None
        warnings = [each for each in self._warnings.values() if each != failure]
        if self._unread:
            warnings.append(f"{self._unread} lines of Codex's output could not be read.")
        return TurnResult(
            thread_id=self.thread_id,
            engine=self.engine,
            final_response=self.final_response,
            usage=self.usage,
            files_changed=tuple(self._changes()),
            commands=tuple(self._commands.values()),
            command_count=self.command_count,
            tool_calls=tuple(self._tool_calls.values()),
            searches=tuple(self._searches.values()),
            plan=self._plan,
            warnings=tuple(warnings),
            touched=self._touched,
            unfinished=tuple(self._unfinished()) if self.completed else (),
        )

    def _unfinished(self) -> list[str]:
        """Return the commands of this turn without an end: Codex kills them when the turn ends.

        0.98 reports such a command as completed, without an exit code (seen); later ones do not
        report it again.
        """
        return [
            command.command
            for key, command in self._commands.items()
            if key.startswith(f"{self._turn}:")
            and command.exit_code is None
            and command.status != "failed"
        ]

    def _changes(self) -> Iterator[tuple[str, ChangeKind]]:
        for path, (first, last) in self._files.items():
            if (net := _net(first, last)) is not None:
                yield path, net

    def _take(self, item: Item, *, done: bool) -> None:
        key = f"{self._turn}:{item.id}"
        self._touched |= not isinstance(item, _HARMLESS)
        match item:
            case AgentMessageItem(_, text):
                self.final_response = text
                self.doing = "writing"
            case ReasoningItem(_, text):
                self.doing = _title(text) or "thinking"
            case CommandExecutionItem(_, command, exit_code, status, trouble):
                script = mask(bare_command(command[:COMMAND_LIMIT]))
                if key not in self._commands and item.id not in self._running:
                    self.command_count += 1
                if done:
                    self._running.discard(item.id)
                elif len(self._running) < OPEN_ITEMS_KEPT:
                    self._running.add(item.id)
                _keep(self._commands, key, Command(script, exit_code, status), COMMANDS_KEPT)
                self._open(item.id, done)
                self.doing = f"{'ran' if done else 'running'} {script}"
                if trouble is not None:
                    self.note(trouble)
            case FileChangeItem(_, changes, status):
                if done and status == "completed":
                    for change in changes:
                        first, _ = self._files.get(change.path, (change.kind, change.kind))
                        self._files[change.path] = (first, change.kind)
                if changes:
                    self.doing = f"editing {PurePath(changes[-1].path).name}"
            case ToolCallItem(_, server, tool, _):
                _keep(self._tool_calls, key, item, TOOL_CALLS_KEPT)
                self._open(item.id, done)
                name = f"{server}.{tool}" if server else tool
                self.doing = f"{'called' if done else 'calling'} {name}"
            case WebSearchItem(_, query):
                _keep(self._searches, key, query, SEARCHES_KEPT)
                self.doing = f"searching {query}"
            case TodoListItem(_, items):
                self._plan = items
            case ErrorItem(_, message):
                self._warn(message, message)
            case _:
                pass

    def _open(self, id_: str, done: bool) -> None:
        if not done and len(self.open_items) < OPEN_ITEMS_KEPT:
            self.open_items.add(id_)

    def _take_error(self, message: str) -> None:
        # 0.169 repeats this error for ever while the network is down: it is no progress.
        reconnecting = message.startswith("Reconnecting")
        self.alive = not reconnecting
        self.last_error = quote(message, WARNING_LIMIT)
        self._warn("Reconnecting" if reconnecting else message, message)
        if reconnecting:
            self.doing = self.last_error[:1].lower() + self.last_error[1:]

    def _warn(self, key: str, message: str) -> None:
        self._warnings.pop(key, None)
        _keep(self._warnings, key, quote(message, WARNING_LIMIT), WARNINGS_KEPT)


def _keep(kept: dict[str, T], key: str, value: T, most: int) -> None:
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]


def _net(first: ChangeKind, last: ChangeKind) -> ChangeKind | None:
    """Return the net change of a path from its first and last change; None if there is none."""
    if first == "add":
        return None if last == "delete" else "add"
    if last == "delete":
        return "delete"
    return "update"


def _asked(question: Question) -> str:
    """Return in a few words what is asked, for people."""
    if question.command is not None:
        return f"run {mask(bare_command(question.command[:COMMAND_LIMIT]))}"
    if question.files:
        return f"edit {PurePath(question.files[0]).name}"
    return mask(question.text[:WARNING_LIMIT]) or question.kind.replace("_", " ")


def _title(text: str) -> str:
    """Return the bold title at the start of a reasoning summary, or ''."""
    return text.split("**")[1].strip() if text.startswith("**") and text.count("**") > 1 else ""


def bare_command(command: str) -> str:
    """Return *command* without the `bash -lc` that Codex puts around it."""
    head, found, _ = command.partition(" -lc ")
    if not found or " " in head:
        return command
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    return words[2] if len(words) == 3 else command
