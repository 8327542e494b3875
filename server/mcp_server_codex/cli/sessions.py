"""`mcp-server-codex sessions`: print a table of Codex's threads, or one thread with its turns."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import anyio
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from codex_tools.codex.clean_text import clean, clean_lines
from codex_tools.codex.errors import CodexError
from codex_tools.codex.json_object import Json
from codex_tools.engines.choose import choose_engine
from codex_tools.history.index import Progress, ThreadIndex
from codex_tools.sessions import SESSIONS, Session, SessionsResult, Turn, find_sessions
from codex_tools.tool import Tool
from mcp_server_codex.cli.command import Argument, Command, run_command, short
from mcp_server_codex.cli.run_lines import PlainConsole
from mcp_server_codex.cli.table import Column, print_table
from mcp_server_codex.settings import Settings

_COLOURS = {"completed": "green", "failed": "red", "interrupted": "yellow", "running": "cyan"}


def run_sessions(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    command = Command(
        name="sessions",
        about=SESSIONS.description,
        arguments=arguments_of(SESSIONS, words="query"),
        find=_find,
        show=_show,
        rows="sessions",
    )
    return run_command(command, arguments)


def arguments_of(tool: Tool[Any, Any], words: str | None = None) -> tuple[Argument, ...]:
    """Return the arguments of *tool* for the command line; the one named *words* is positional."""
    kinds: dict[str, Literal["number", "flag"]] = {"integer": "number", "boolean": "flag"}
    return tuple(
        Argument(
            name,
            about.get("description", ""),
            "words" if name == words else kinds.get(about.get("type"), "text"),
            tuple(about["enum"]) if "enum" in about else None,
        )
        for name, about in tool.request.model_json_schema()["properties"].items()
    )


def _find(values: Json, history: ThreadIndex, settings: Settings, progress: Progress) -> Json:
    request = SESSIONS.read(values)
    try:
        engine = choose_engine(settings.codex_bin)
        program = anyio.run(engine.prepare, Path("/"), settings.policy.environment)
    except CodexError:
        program = None
    found = find_sessions(
        request, history, settings.state_dir, program, progress, settings.policy.roots
    )
    return SessionsResult.model_validate(found).model_dump(mode="json")


def _show(found: Json) -> None:
    """Print a list of threads, or one thread.

    Prompts, titles and paths are foreign text: `clean` removes control characters, and rich's
    markup is off.
    """
    console = PlainConsole()
    result = SessionsResult.model_validate(found)
    if result.session is not None:
        _show_one(console, result.session, result.turns or [])
    else:
        _show_list(console, result.sessions or [], result.total)
    for note in result.notes:
        console.say(Text.assemble(("Note:", "yellow"), f" {clean(note)}"))
    if result.next_cursor is not None:
        console.print(f"For the next page: --cursor {result.next_cursor}", style="dim")


def _show_list(console: PlainConsole, sessions: list[Session], total: int | None) -> None:
    if not sessions:
        console.print("No threads found.")
        return

    def column(heading: str, cells: Iterable[str], rank: int) -> Column:
        return Column(heading, [Text(cell) for cell in cells], rank=rank)

    columns = (
        Column("last active", [_when(each) for each in sessions], is_figure=False, least=16),
        Column("thread", [_what(each) for each in sessions], is_figure=False, least=36),
        column("turns", (str(each.turn_count) for each in sessions), 3),
        column("tokens", (short(each.usage.total_tokens) for each in sessions), 2),
        column("cost", (_dollars(each.cost_usd) for each in sessions), 1),
    )
    print_table(console, columns, advice="--csv and --json have all columns.")
    count = f"{len(sessions)} of {total}" if total is not None else f"The newest {len(sessions)}"
    console.print(f"{count} threads. To show one with its turns: --thread-id ID", style="dim")


def _when(session: Session) -> Text:
    status = (session.status, _COLOURS.get(session.status, "dim"))
    return Text.assemble(f"{_local(session.last_active_at)}\n", status)


def _what(session: Session) -> Text:
    """Return a thread's title, its id and where it worked."""
    title = clean(session.name or session.title or "(no prompt)")
    branch = f" ({clean(session.git_branch)})" if session.git_branch else ""
    where = f"{clean(session.thread_id)}\n{_home(session.cwd)}{branch}"
    return Text.assemble(f"{title}\n", (where, "dim"))


def _show_one(console: PlainConsole, session: Session, turns: list[Turn]) -> None:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    for name, value in session.model_dump(mode="json").items():
        if name == "usage":
            value = f"{value['input_tokens']:,} in, {value['output_tokens']:,} out"
        if value is not None:
            facts.add_row(name, Text(clean(str(value))))
    console.print(facts)
    for turn in reversed(turns):
        colour = "red" if turn.error else "cyan"
        console.print(Rule(Text(_local(turn.started_at), colour), align="left", style=colour))
        # Indented, so that no line of a prompt or an answer passes for one of this command.
        console.print(
            Padding(Text(clean_lines(turn.prompt or "(no prompt)"), "bold"), (0, 0, 0, 2))
        )
        for command in turn.commands:
            console.print(f"  $ {clean(command.command)} → {command.exit_code}", style="dim")
        for file in turn.files_changed:
            console.print(f"  {file.kind} {clean(file.path)}", style="dim")
        if turn.error is not None:
            console.print(Padding(Text(clean_lines(turn.error), "red"), (0, 0, 0, 2)))
        if turn.final_response is not None:
            console.print(Padding(Text(clean_lines(turn.final_response)), (0, 0, 1, 2)))


def _local(stamp: str | None) -> str:
    if stamp is None:
        return "?"
    return f"{datetime.fromisoformat(stamp).astimezone():%Y-%m-%d %H:%M}"


def _home(cwd: str | None) -> str:
    if cwd is None:
        return "?"
    home = str(Path.home())
    return clean(cwd.replace(home, "~", 1) if cwd.startswith(home) else cwd)


def _dollars(cost: float | None) -> str:
    return "?" if cost is None else f"${cost:,.2f}"
