"""`mcp-server-codex show RUN`: print the result of a run, its diff and its newest events."""

from __future__ import annotations

import json
from typing import cast

from rich.text import Text

from codex_tools.codex.clean_text import clean
from codex_tools.codex.errors import CodexError
from codex_tools.codex.events import (
    AgentMessageItem,
    CommandExecutionItem,
    ErrorEvent,
    ErrorItem,
    Event,
    FileChangeItem,
    ItemCompletedEvent,
    ItemStartedEvent,
    ReasoningItem,
    TodoListItem,
    ToolCallItem,
    TurnFailedEvent,
    UnreadableEvent,
    WebSearchItem,
    parse_event,
)
from codex_tools.codex.json_object import Json, object_of, text_of
from codex_tools.codex.turn_result import bare_command
from codex_tools.runs.store import StoredRuns
from mcp_server_codex.cli.command import Argument, Form, read_command_line
from mcp_server_codex.cli.run_lines import PlainConsole, cleaned_block, home, lines_of, local
from mcp_server_codex.cli.run_list import RunList

SHOW = Form(
    name="show",
    about="The result of a run, what it changed, and its newest events.",
    arguments=(
        Argument("run", "id of the run, or its beginning", "word"),
        Argument("events", "number of events to show, the newest ones; default: 20", "number"),
    ),
)

EVENTS = 20
"""Default number of events."""

_TAIL = 256 * 1024
"""Bytes from the end of the log that are read first for the newest events."""


def run_show(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    line = read_command_line(SHOW, arguments)
    try:
        runs = RunList(line.settings)
        run = runs.find(line.values["run"])
        events, has_more = _newest(
            runs.store, run.result.run_id or "", line.values.get("events", EVENTS)
        )
        result = runs.whole(run).model_dump(mode="json")
        found = {
            "run": runs.about(run),
            "result": result,
            "events": [_value(each) for each in events],
            "has_earlier_events": has_more,
        }
    except CodexError as error:
        return line.complain(error)
    except KeyboardInterrupt:
        return 130
    line.put(found, show)
    return 0


def _newest(store: StoredRuns, run_id: str, count: int) -> tuple[list[str], bool]:
    """Return the newest *count* events of a run, secrets masked, and True if there are more."""
    tail = _TAIL
    while True:
        page = store.read_events(run_id, 0, 0)
        size = 0 if page is None else page.size
        # Twice the room, because a masked event may be longer than the event.
        page = store.read_events(run_id, max(0, size - tail), 2 * tail)
        lines = [] if page is None else [*page.lines]
        if tail >= size or len(lines) >= count:
            shown = lines[len(lines) - min(count, len(lines)) :]
            return shown, tail < size or len(shown) < len(lines)
        tail *= 8


def _value(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return line


def show(found: Json) -> None:
    """Print the data that `show --json` prints."""
    console = PlainConsole()
    run, result = found["run"], found["result"]
    first = lines_of(run, console.limit)
    for line in first[:-1] if run["doing"] is not None else first[:-2]:
        console.row(line)
    _show_facts(console, run, result)
    if result["error"] is not None:
        error = result["error"]
        _show_part(console, "Error", cleaned_block(f"{error['kind']}: {error['message']}", "red"))
        console.block(cleaned_block(error["hint"], "dim"))
    if result["warnings"]:
        _show_part(console, "Warnings", _list(result["warnings"], "yellow"))
    if result["plan"]:
        steps = [f"{'x' if step['completed'] else ' '} {step['text']}" for step in result["plan"]]
        _show_part(console, "Plan", _list(steps))
    answer = result["final_response"]
    if result["structured_output"] is not None:
        answer = json.dumps(result["structured_output"], indent=2, ensure_ascii=False)
    if answer is not None:
        _show_part(console, "Answer", cleaned_block(answer))
    if result["files_changed"]:
        files = [f"{file['kind']} {file['path']}" for file in result["files_changed"]]
        _show_part(console, "Files changed", _list(files))
    if diff := text_of(object_of(result, "changes"), "text"):
        _show_part(console, "Diff", coloured(diff))
    if found["events"]:
        lines = [line for each in found["events"] if (line := _outline(each)) is not None]
        _show_part(console, "Newest events", _list(lines))
    if found["has_earlier_events"]:
        console.row(Text("There are earlier events: --events N shows the newest N.", "dim"))


def _show_facts(console: PlainConsole, run: Json, result: Json) -> None:
    usage = object_of(result, "usage")
    facts = {
        "thread": result["thread_id"],
        "folder": home(result["cwd"]) if result["cwd"] is not None else None,
        "sandbox": result["sandbox"],
        "model": result["model"],
        "effort": result["reasoning_effort"],
        "Codex": result["codex_version"],
        "created": local(run["created_at"]),
        "ended": local(run["ended_at"]) if run["ended_at"] is not None else None,
        "tokens": f"{usage['input_tokens']:,} in, {usage['output_tokens']:,} out"
        if usage
        else None,
        "commands": result["command_count"] or None,
        "attempts": result["attempts"] if result["attempts"] > 1 else None,
    }
    for name, value in facts.items():
        if value is not None:
            console.row(Text.assemble((f"  {name:9}", "dim"), clean(str(value))))


def _show_part(console: PlainConsole, title: str, text: Text) -> None:
    console.print(Text(f"{title}:", "bold"))
    console.block(text)


def _list(lines: list[str], style: str = "") -> Text:
    return Text("\n".join(clean(line) for line in lines), style)


def coloured(diff: str) -> Text:
    """Return a unified diff, cleaned, with the colours of git."""
    text = Text()
    for line in cleaned_block(diff).split("\n", allow_blank=True):
        match line.plain[:1]:
            case "+" if not line.plain.startswith("+++ "):
                style = "green"
            case "-" if not line.plain.startswith("--- "):
                style = "red"
            case "@":
                style = "cyan"
            case " " | "":
                style = ""
            case _:
                style = "bold"
        text.append(f"{line.plain}\n", style)
    text.rstrip()
    return text


def _outline(event: object) -> str | None:
    """Return an event in a few words; None if a person does not miss it."""
    data = event if isinstance(event, str) else json.dumps(event)
    if isinstance(event, dict) and "bytes_left_out" in event:
        left = cast(Json, event)
        return f"{left.get('type')} ({left['bytes_left_out']:,} bytes)"
    return _words(parse_event(data.encode("utf-8", "replace")))


def _words(event: Event) -> str | None:
    match event:
        case ItemStartedEvent(CommandExecutionItem(_, command)):
            return f"runs {bare_command(command)}"
        case ItemCompletedEvent(CommandExecutionItem(_, command, exit_code)):
            code = "?" if exit_code is None else exit_code
            return f"ran {bare_command(command)} (exit code {code})"
        case ItemCompletedEvent(FileChangeItem(_, changes, status)):
            files = ", ".join(f"{change.kind} {change.path}" for change in changes)
            return f"{'patched' if status == 'completed' else 'could not patch'}: {files}"
        case ItemCompletedEvent(AgentMessageItem(_, text)):
            return f"says: {text}"
        case ItemCompletedEvent(ReasoningItem(_, text)):
            return f"thinks: {text}"
        case ItemCompletedEvent(ToolCallItem(_, server, tool, status)):
            return f"called {f'{server}.{tool}' if server else tool} ({status})"
        case ItemCompletedEvent(WebSearchItem(_, query)):
            return f"searched {query}"
        case ItemCompletedEvent(TodoListItem(_, items)):
            return f"plan: {sum(done for _, done in items)} of {len(items)} steps done"
        case ItemCompletedEvent(ErrorItem(_, message)) | ErrorEvent(message):
            return f"error: {message}"
        case TurnFailedEvent(message):
            return f"failed: {message}"
        case UnreadableEvent(start):
            return f"printed: {start}"
        case _:
            return None
