"""What `sessions` and `usage` share: arguments, the index, its progress, errors.

Imports neither pydantic nor rich nor anyio: they take longer than a report.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NoReturn, cast

from codex_tools.codex.errors import CodexError
from codex_tools.codex.json_object import Json
from codex_tools.codex.paths import make_absolute
from codex_tools.history.index import Progress, ThreadIndex
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.threads import local_threads
from mcp_server_codex.settings import OPTIONS, Settings, read_settings

Find = Callable[[Json, ThreadIndex, Settings, Progress], Json]
"""Finds the tool's structured result by its arguments."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of the tool, as a person gives it."""

    name: str
    help: str = ""
    kind: Literal["text", "number", "flag", "word", "words"] = "text"
    """Words come without an option before them."""
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """What does for a person what a tool does for a model."""

    name: str
    about: str
    arguments: tuple[Argument, ...]
    """Each is an option, and so are the server's own options."""
    find: Find
    show: Callable[[Json], None]
    """Prints what was found."""


def run_command(command: Command, arguments: list[str]) -> int:
    """Run *command* with the command line after its name; return the exit code."""
    name = f"mcp-server-codex {command.name}"

    def fail(problem: str) -> NoReturn:
        sys.stderr.write(f"{name}: {problem}\nTry '{name} --help'.\n")
        sys.exit(2)

    parser = _parser(name, command)
    values = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    as_json = values.pop("json")
    settings = read_settings(_of_server(values), os.environ, fail)
    history = ThreadIndex(local_threads().home, settings.state_dir, read_prices(settings.prices))
    try:
        with _bar() as progress:
            found = command.find(_typed(command, values, fail), history, settings, progress)
    except CodexError as error:
        sys.stderr.write(f"{name}: {error.message}\n{error.hint}\n")
        return 2 if error.kind == "invalid_arguments" else 1
    except KeyboardInterrupt:
        return 130
    finally:
        history.close()
    try:
        if as_json:
            sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        else:
            command.show(found)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` say, has enough; Python must not complain at its end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser(name: str, command: Command) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        description=command.about,
        epilog="The server's options, such as --state-dir and --prices, are taken as well.",
        allow_abbrev=False,
    )
    for option in OPTIONS:
        parser.add_argument(option.flag, action="append", help=argparse.SUPPRESS)
    add_arguments(parser, command.arguments)
    parser.add_argument("--json", action="store_true", help="the tool's structured result")
    return parser


def add_arguments(parser: argparse.ArgumentParser, arguments: Sequence[Argument]) -> None:
    """Let *parser* take *arguments*."""
    for argument in arguments:
        flag, about = _flag(argument.name), argument.help
        if argument.kind == "words":
            parser.add_argument(argument.name, nargs="*", default=None, help=about)
        elif argument.kind == "word":
            parser.add_argument(argument.name, choices=argument.choices, help=about)
        elif argument.kind == "flag":
            parser.add_argument(flag, action="store_true", default=None, help=about)
        else:
            metavar = None if argument.choices else "X"
            parser.add_argument(flag, metavar=metavar, choices=argument.choices, help=about)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _of_server(values: Json) -> list[str]:
    """Take the server's own options out of *values*; return them as a command line."""
    given = {option.flag: values.pop(option.name, []) for option in OPTIONS}
    return [word for flag, texts in given.items() for text in texts for word in (flag, text)]


def _typed(command: Command, values: Json, fail: Callable[[str], NoReturn]) -> Json:
    """Return the arguments of the tool: words joined, numbers read, folders made absolute."""
    kinds = {argument.name: argument.kind for argument in command.arguments}
    typed: Json = {}
    for key, value in values.items():
        if isinstance(value, list):
            if words := cast("list[str]", value):
                typed[key] = " ".join(_quoted(words))
        elif kinds[key] == "number":
            if not str(value).isdecimal():
                fail(f"{_flag(key)}: must be a whole number")
            typed[key] = int(value)
        else:
            typed[key] = make_absolute(value) if key == "cwd" else value
    return typed


def _quoted(words: Sequence[str]) -> list[str]:
    return [f'"{word}"' if " " in word and '"' not in word else word for word in words]


@contextmanager
def _bar() -> Generator[Progress]:
    """Show on a terminal how far it has come, once there is something to wait for."""
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
    """Return a count in four digits or less: 987, 12.3K, 4.56M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size * 0.9995:
            return f"{count / size:.3g}{unit}" if count < size * 999.5 else f"{count // size}{unit}"
    return str(count)
