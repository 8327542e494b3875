"""Print runs for a person: each as a few lines, which a narrow terminal cuts and a pipe does not.

Commands, paths, answers and messages are foreign text: `clean` removes control characters, and
rich's markup is off.
"""

from __future__ import annotations

import sys
import textwrap
from datetime import datetime
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from codex_tools.codex.clean_text import clean, clean_lines
from codex_tools.codex.json_object import Json
from codex_tools.runs.sites import HERE
from mcp_server_codex.cli.command import short

COLOURS = {
    "completed": "green",
    "failed": "red",
    "timed_out": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "queued": "magenta",
}
"""Without blue, which cannot be read on black."""


WIDE = 80
"""Columns that the id and the state of a run need together."""


class PlainConsole(Console):
    """A console that prints foreign text as it is, and leaves a closed pipe to the caller."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Raise the error again; rich itself would end the process with exit code 1."""
        raise  # rich calls this while it handles the error

    @property
    def limit(self) -> int:
        """Columns that a line can have."""
        return self.width if self.is_terminal else sys.maxsize

    def row(self, text: Text) -> None:
        """Print *text* on one line: on a terminal cut at its width, else whole."""
        if self.is_terminal:
            text.truncate(self.width, overflow="ellipsis")
        self.print(text, soft_wrap=True)

    def say(self, text: Text) -> None:
        """Print a paragraph: on a terminal in lines of its width, else on one line."""
        self.print(text, soft_wrap=not self.is_terminal)

    def block(self, text: Text, indent: int = 2) -> None:
        """Print lines indented, so that none of them can pass for a line of the command."""
        if self.is_terminal:
            self.print(Padding(text, (0, 0, 0, indent)))
        else:
            for each in text.split("\n", allow_blank=True):
                self.print(Text.assemble(" " * indent, each), soft_wrap=True)


def lines_of(run: Json, width: int = sys.maxsize) -> list[Text]:
    """Return the lines about a run in a list: its state, what it does or said, its place.

    The state has as many lines of *width* columns as its figures need. On a narrow terminal, or
    where they would not fit behind it, the id has a line of its own. An error has up to three
    lines, and of a long folder the end is shown.
    """
    said, style = _said(run, width - 2)
    model = " ".join(clean(each) for each in (run["model"], run["reasoning_effort"]) if each)
    where = "" if run["place"] == HERE else f"at {clean(run['place'])}"
    place = " · ".join(filter(None, (where, run["sandbox"], model or "default model")))
    folder = _end_of(home(run["cwd"]), width - cell_len(place) - 5)
    name, parts = Text(run["run_id"], "bold"), [Text(*part) for part in state_of(run)]
    first = Text.assemble(name, "  ", *parts)
    if width < WIDE or first.cell_len > width:
        first = Text.assemble(name, *_behind_each_other(parts, width))
    return [
        *first.split("\n"),
        *(Text(f"  {line}", style) for line in said),
        Text(f"  {folder} · {place}", "dim"),
    ]


def _end_of(text: str, room: int) -> str:
    """Return the end of *text* that takes at most *room* columns, or a few more."""
    if cell_len(text) <= room:
        return text
    while len(text) > 8 and cell_len(text) >= room:
        text = text[1:]
    return f"…{text}"


def _behind_each_other(parts: list[Text], width: int) -> list[Text]:
    """Return *parts*, each behind the other or, where it does not fit, on a new line."""
    placed: list[Text] = []
    used = width
    for part in parts:
        used += part.cell_len
        if used > width:
            first = Text(part.plain.lstrip(), part.style)
            used = 2 + first.cell_len
            placed += [Text("\n  "), first]
        else:
            placed.append(part)
    return placed


def state_of(run: Json) -> list[tuple[str, str]]:
    """Return a run's status, times, tokens, cost and changed files as parts of a line."""
    status, age = str(run["status"]), span(run["age_s"])
    ended = "" if run["ended_at"] is None else f" ago, took {span(run['duration_s'])}"
    parts = [f"{age}{ended}"]
    if run["usage"] is not None:
        parts.append(f"{short(run['usage']['total_tokens'])} tokens")
    if run["cost_usd"] is not None:
        parts.append(f"${run['cost_usd']:,.2f}")
    if files := run["files_changed"]:
        parts.append(f"{files} file{'' if files == 1 else 's'} changed")
    return [
        (status.replace("_", " "), COLOURS.get(status, "")),
        *((f"  {part}", "") for part in parts),
    ]


def _said(run: Json, width: int) -> tuple[list[str], str]:
    if run["doing"] is not None:
        return [clean(run["doing"])], ""
    if run["error"] is not None:
        text = f"{clean(run['error']['kind'])}: {clean(run['error']['message'])}"
        is_long = cell_len(text) > width
        lines = textwrap.wrap(text, width, max_lines=3, placeholder=" …") if is_long else [text]
        return lines, "red"
    return [clean(run["answer"] or "(no answer)")], ""


def span(seconds: float | None) -> str:
    """Return a number of seconds as 8s, 2m10s, 3h05m or 2d4h."""
    if seconds is None:
        return "?"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"


def local(stamp: str) -> str:
    """Return a time, ISO 8601, as the time of this machine."""
    try:
        return f"{datetime.fromisoformat(stamp).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return "?"


def home(path: str | None) -> str:
    """Return *path* cleaned, with ~ in place of the home folder."""
    if path is None:
        return "?"
    own = str(Path.home())
    return clean(f"~{path[len(own) :]}" if f"{path}/".startswith(f"{own}/") else path)


def cleaned_block(text: str, style: str = "") -> Text:
    """Return several lines of foreign text, cleaned."""
    return Text(clean_lines(text), style)
