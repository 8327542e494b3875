"""What `sessions` and `usage` share: arguments, the index, its progress, errors."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from codex_tools.codex.errors import CodexError
from codex_tools.codex.history import History
from codex_tools.codex.pricing import read_prices
from codex_tools.codex.rollout import codex_home
from codex_tools.tool import Tool
from mcp_server_codex.settings import OPTIONS, Settings, read_settings

Json = dict[str, Any]
T = TypeVar("T")

Find = Callable[[Any, History, Settings, Callable[[int, int], None]], Json]


def run_command(
    tool: Tool[Any, Any],
    arguments: list[str],
    find: Find,
    show: Callable[[Console, Any], None],
    positional: str | None = None,
) -> int:
    """Do for a person what *tool* does for a model; return the exit code.

    Each argument of the tool is an option, and so are the server's own options.

    Args:
        tool: The tool.
        arguments: The command line after the command's name.
        find: Finds the data of the tool's result.
        show: Prints the result.
        positional: The argument that is given without an option, if any.
    """
    name = f"mcp-server-codex {tool.name.removeprefix('codex_')}"

    def fail(problem: str) -> NoReturn:
        sys.stderr.write(f"{name}: {problem}\nTry '{name} --help'.\n")
        sys.exit(2)

    parser = _parser(name, tool, positional)
    values = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    as_json = values.pop("json")
    settings = read_settings(_of_server(values), os.environ, fail)
    history = History(codex_home(), settings.state_dir, read_prices(settings.prices))
    try:
        request = tool.read(_typed(tool, values, fail))
        with _bar() as progress:
            found = find(request, history, settings, progress)
        result = tool.result.model_validate(found)
    except CodexError as error:
        sys.stderr.write(f"{name}: {error.message}\n{error.hint}\n")
        return 2 if error.kind == "invalid_arguments" else 1
    except KeyboardInterrupt:
        return 130
    finally:
        history.close()
    try:
        if as_json:
            print(json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False))  # noqa: T201 - the command's output
        else:
            show(Console(highlight=False), result)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` say, has enough; Python must not complain at its end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser(name: str, tool: Tool[Any, Any], positional: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        description=tool.description,
        epilog="The server's options, such as --state-dir and --prices, are taken as well.",
        allow_abbrev=False,
    )
    for option in OPTIONS:
        parser.add_argument(option.flag, action="append", help=argparse.SUPPRESS)
    schema = tool.request.model_json_schema()["properties"]
    for key in tool.request.model_fields:
        about = schema[key].get("description", "")
        if key == positional:
            parser.add_argument(key, nargs="*", default=None, help=about)
        elif schema[key].get("type") == "boolean":
            flag = f"--{key.replace('_', '-')}"
            parser.add_argument(flag, action="store_true", default=None, help=about)
        else:
            parser.add_argument(f"--{key.replace('_', '-')}", metavar="X", help=about)
    parser.add_argument("--json", action="store_true", help="the tool's structured result")
    return parser


def _of_server(values: Json) -> list[str]:
    """Take the server's own options out of *values*; return them as a command line."""
    given = {option.flag: values.pop(option.name, []) for option in OPTIONS}
    return [word for flag, texts in given.items() for text in texts for word in (flag, text)]


def _typed(tool: Tool[Any, Any], values: Json, fail: Callable[[str], NoReturn]) -> Json:
    """Return the arguments of the tool: words joined, numbers read, folders made absolute."""
    schema = tool.request.model_json_schema()["properties"]
    typed: Json = {}
    for key, value in values.items():
        if isinstance(value, list):
            if words := cast("list[str]", value):
                typed[key] = " ".join(_quoted(words))
        elif schema[key].get("type") == "integer":
            if not str(value).isdecimal():
                fail(f"--{key.replace('_', '-')}: must be a whole number")
            typed[key] = int(value)
        else:
            typed[key] = os.path.abspath(value) if key == "cwd" else value  # noqa: PTH100 - follows no link, as a path that was typed
    return typed


def _quoted(words: Sequence[str]) -> list[str]:
    return [f'"{word}"' if " " in word and '"' not in word else word for word in words]


class _Bar:
    """A progress bar on stderr that appears when there is something to wait for."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("Reading rollouts"),
            BarColumn(),
            MofNCompleteColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._started = False
        self._task = self._bar.add_task("", total=None)

    def __call__(self, done: int, total: int) -> None:
        """Show how far it has come."""
        if total and sys.stderr.isatty():
            self._bar.start()
            self._started = True
        self._bar.update(self._task, completed=done, total=total or None)

    def __enter__(self) -> _Bar:
        """Return the bar itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        if self._started:
            self._bar.stop()


def _bar() -> _Bar:
    return _Bar()


def short(count: int) -> str:
    """Return a count in four digits or less: 987, 12.3K, 4.56M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size * 0.9995:
            return f"{count / size:.3g}{unit}" if count < size * 999.5 else f"{count // size}{unit}"
    return str(count)
