"""Run the commands that report something: arguments, index, progress bar, output, errors.

This module imports neither pydantic nor rich nor anyio: importing them takes
longer than making a report.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

from codex_tools.codex.clean_text import clean, clean_json, clean_lines
from codex_tools.codex.errors import CodexError
from codex_tools.codex.json_object import Json
from codex_tools.codex.paths import make_absolute
from codex_tools.history.index import Progress, ThreadIndex
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.files import local_home
from mcp_server_codex.cli.shell_words import for_shell
from mcp_server_codex.settings import OPTIONS, Settings, read_settings

_METAVARS = {"since": "TIME", "until": "TIME", "timezone": "ZONE", "cwd": "DIR"}
"""What the value of an option is, where its name does not say it."""

Find = Callable[[Json, ThreadIndex, Settings, Progress], Json]
"""Function that returns the tool's structured result for the given arguments."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a command, with the name of the tool's argument."""

    name: str
    help: str = ""
    kind: Literal["text", "number", "flag", "many", "word", "words"] = "text"
    """"word" and "words" are positional; the others are options. "many" takes several values."""
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """The name of a command and its arguments."""

    name: str
    about: str
    arguments: tuple[Argument, ...]
    """The command's own arguments; it also accepts the server's options and --json."""


@dataclass(frozen=True, slots=True)
class Command(Form):
    """A command that gives a person the result of a tool."""

    find: Find
    show: Callable[[Json], None]
    """Prints the result as a table."""
    rows: str
    """The list in the result of which --csv prints each member as a line."""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command line that was read."""

    name: str
    """The program and the command, for messages."""
    values: Json
    """The command's own arguments; those that were left out are missing."""
    as_json: bool
    as_csv: bool
    settings: Settings

    def complain(self, error: CodexError) -> int:
        """Print an error to stderr; return the exit code."""
        message, hint = for_shell(clean_lines(error.message)), for_shell(clean(error.hint))
        sys.stderr.write(f"{self.name}: {message}\n{hint}\n")
        return 2 if error.kind == "invalid_arguments" else 1

    def put(self, found: Json, show: Callable[[Json], None]) -> None:
        """Print a result, as JSON or with *show*."""
        with quiet_at_closed_pipe():
            if self.as_json:
                text = json.dumps(found, indent=2, ensure_ascii=False)
                sys.stdout.write(clean_json(text) + "\n")
            else:
                show(found)
            sys.stdout.flush()


def run_command(command: Command, arguments: list[str]) -> int:
    """Run *command* with *arguments*, the command line after its name; return the exit code."""
    line = read_command_line(command, arguments)
    settings = line.settings
    history = ThreadIndex(local_home(), settings.state_dir, read_prices(settings.prices))
    try:
        with _progress_bar() as progress:
            found = command.find(line.values, history, settings, progress)
    except CodexError as error:
        return line.complain(error)
    except KeyboardInterrupt:
        return 130
    finally:
        history.close()
    if line.as_csv:
        with quiet_at_closed_pipe():
            _write_csv(found.get(command.rows) or [])
            sys.stdout.flush()
    else:
        line.put(found, command.show)
    return 0


def read_command_line(form: Form, arguments: list[str]) -> CommandLine:
    """Return what *arguments*, the command line after the command's name, say; else exit with 2."""
    name = f"mcp-server-codex {form.name}"

    def fail(problem: str) -> NoReturn:
        sys.stderr.write(f"{name}: {problem}\nTry '{name} --help'.\n")
        sys.exit(2)

    parser = _parser(name, form)
    values = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    as_json, as_csv = values.pop("json"), values.pop("csv", False)
    settings = read_settings(_server_options(values), os.environ, fail)
    return CommandLine(name, _typed(form, values, fail), as_json, as_csv, settings)


@contextmanager
def quiet_at_closed_pipe() -> Generator[None]:
    """Leave the block quietly once the reader of stdout, for example `head`, has closed it."""
    try:
        yield
    except BrokenPipeError:
        # With /dev/null in its place, Python does not report an error at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(name: str, command: Form) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        description=for_shell(command.about),
        epilog="Accepts the server's own options too, such as --state-dir and --prices.",
        allow_abbrev=False,
    )
    for option in OPTIONS:
        optional: dict[str, Any] = {"nargs": "?", "const": "yes"} if option.is_flag else {}
        parser.add_argument(option.flag, action="append", help=argparse.SUPPRESS, **optional)
    add_arguments(parser, command.arguments)
    parser.add_argument("--json", action="store_true", help="print the structured result as JSON")
    if isinstance(command, Command):
        parser.add_argument("--csv", action="store_true", help=f"print the {command.rows} as CSV")
    return parser


def add_arguments(parser: argparse.ArgumentParser, arguments: Sequence[Argument]) -> None:
    """Add *arguments* to *parser*."""
    for argument in arguments:
        flag, about = _flag(argument.name), for_shell(argument.help)
        if argument.kind == "words":
            parser.add_argument(argument.name, nargs="*", default=None, help=about)
        elif argument.kind == "word":
            parser.add_argument(argument.name, choices=argument.choices, help=about)
        elif argument.kind == "many":
            parser.add_argument(flag, nargs="+", metavar="X", help=about)
        elif argument.kind == "flag":
            parser.add_argument(flag, action="store_true", default=None, help=about)
        else:
            number = "N" if argument.kind == "number" else argument.name.split("_")[-1].upper()
            metavar = None if argument.choices else _METAVARS.get(argument.name, number)
            parser.add_argument(flag, metavar=metavar, choices=argument.choices, help=about)


def _write_csv(rows: Sequence[Json]) -> None:
    """Write *rows* with one column for each value, also of objects in them, and a heading."""
    if not rows:
        return
    if "models" in rows[0]:
        rows = [
            {"key": row["key"], "model": part["key"]}
            | {k: v for k, v in part.items() if k != "key"}
            for row in rows
            for part in row["models"]
        ]
    flat = [dict(_values_of(row)) for row in rows]
    names = sorted(flat[0], key=lambda name: name != "key")  # What is summed comes first.
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)


def _values_of(row: Json, before: str = "") -> Iterator[tuple[str, object]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _values_of(cast(Json, value), f"{before}{name}.")
        elif isinstance(value, str):
            text = clean(value)
            # A spreadsheet would compute a text that begins like a formula.
            yield before + name, f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
        else:
            yield before + name, value


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _server_options(values: Json) -> list[str]:
    """Remove the server's own options from *values* and return them as a command line."""
    given = {option.flag: values.pop(option.name, []) for option in OPTIONS}
    return [word for flag, texts in given.items() for text in texts for word in (flag, text)]


def _typed(command: Form, values: Json, fail: Callable[[str], NoReturn]) -> Json:
    """Return the tool's arguments: words joined, numbers parsed, folders made absolute."""
    kinds = {argument.name: argument.kind for argument in command.arguments}
    typed: Json = {}
    for key, value in values.items():
        if kinds[key] == "many":
            typed[key] = value
        elif isinstance(value, list):
            if words := cast("list[str]", value):
                typed[key] = " ".join(_quoted(words))
        elif kinds[key] == "number":
            if not str(value).isdecimal():
                fail(f"{_flag(key)}: must be a whole number, not {value!r}")
            typed[key] = int(value)
        else:
            typed[key] = make_absolute(value) if key == "cwd" else value
    return typed


def _quoted(words: Sequence[str]) -> list[str]:
    return [f'"{word}"' if " " in word and '"' not in word else word for word in words]


@contextmanager
def _progress_bar() -> Generator[Progress]:
    """Show a progress bar on a terminal, as soon as there are rollouts to read."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress as rich
    from rich.console import Console

    bar = rich.Progress(
        rich.TextColumn("Reading rollouts"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("", total=None)
    started = False

    def show(done: int, total: int) -> None:
        nonlocal started
        if total and not started:
            bar.start()
            started = True
        bar.update(task, completed=done, total=total or None)

    try:
        yield show
    finally:
        if started:
            bar.stop()


def short(count: int) -> str:
    """Return *count* in three digits and a unit: 987, 12.3K, 32.0M, so that columns line up."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size * 0.9995:
            digits = f"{count / size:#.3g}".removesuffix(".")
            return f"{digits}{unit}" if count < size * 999.5 else f"{count // size}{unit}"
    return str(count)
