"""Read the operator's settings from the command line and the environment.

Each option also has an environment variable: `--max-runs` is MCP_SERVER_CODEX_MAX_RUNS. The option
wins. Arguments after `--` are roots: Claude Desktop passes the folders that a person chose for a
bundle only as a list of arguments.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args

from codex_tools.approval_check import Answerer
from codex_tools.codex.budget import Budgets
from codex_tools.codex.paths import expand_home
from codex_tools.codex.sandbox import WIDTH, Isolation, Sandbox
from codex_tools.engines.choose import DEFAULT_ENGINE, EngineChoice
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.policy import Policy
from codex_tools.pricing.catalog import cache_folder
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.files import local_home

PREFIX = "MCP_SERVER_CODEX_"

_LEFT_BLANK = re.compile(r"\$\{user_config\.\w+\}")
"""Placeholder that Claude Desktop passes for a setting that was left blank and has no default
(modelcontextprotocol/mcpb, issue 250)."""

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's settings of this server."""

    codex_bin: str | None
    engine: EngineChoice
    spares: int
    """Number of app-servers that wait for a run."""
    policy: Policy
    wait_s: float | Literal["auto"]
    max_runs: int
    max_queue: int
    wait_for_limits: bool
    """True if runs wait in the queue until a usage limit resets."""
    state_dir: Path
    prices: Path | None
    """File with the operator's own prices of models; None for the built-in prices alone."""
    ask: Literal["auto", "never"]
    """`auto` if a person may be asked to allow a turn that is beyond the limits."""
    compat: Literal["none", "codex-mcp-server"]
    """The removed server whose tools are offered in addition."""
    notify: str | None
    """The command that is started for each run that has ended."""
    log_level: str
    places: Path | None = None
    """File with other places to run at."""
    default_place: str = "here"


@dataclass(frozen=True, slots=True)
class Option:
    """A command line option and its environment variables."""

    flag: str
    read: Callable[[str], Any]
    """Convert the text to a value; raise ValueError if the text is invalid."""
    default: Any
    help: str
    metavar: str
    many: bool = False
    """True if the option may be repeated."""
    is_flag: bool = False
    """True if the option alone, without a value, means yes."""
    also: tuple[str, ...] = ()
    """Further environment variables for the option."""

    @property
    def name(self) -> str:
        """The name of the option's field in `Settings` or `Policy`."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables of the option, in the order of precedence."""
        return (PREFIX + self.name.upper(), *self.also)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 10**9:
        raise ValueError("must be a number of seconds above 0 and below 1,000,000,000")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def _usd(text: str) -> float:
    value = float(text)
    if not 0 < value < 10**9:
        raise ValueError("must be a number of US dollars above 0 and below 1,000,000,000")
    return value


def _count_or_none(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("must be at least 0")
    return value


def _yes_or_no(text: str) -> bool:
    known = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if text.lower() not in known:
        raise ValueError("must be yes or no")
    return known[text.lower()]


def _command(text: str) -> str:
    import shlex

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"must be a command: {error}") from None
    if not words:
        raise ValueError("must be a command")
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text

    return read


def _wait(text: str) -> float | str:
    return text if text == "auto" else 0.0 if text == "0" else _seconds(text)


def _path(text: str) -> Path:
    path = expand_home(text)
    if not path or path.startswith("~"):
        raise ValueError(f"{text!r} is not a path")
    return Path(path).resolve()


def _root(text: str) -> Path:
    path = _path(text)
    if not path.is_dir():
        raise ValueError(f"{text} is not a folder")
    return path


def _prices(text: str) -> Path:
    path = _path(text)
    read_prices(path)  # An unusable file is an error at start, not at the first run.
    return path


_SANDBOX = _one_of(*get_args(Sandbox))

OPTIONS = (
    Option(
        "--codex-bin",
        str,
        None,
        "path of the Codex to use; default: codex on PATH, then openai-codex-cli-bin",
        "PATH",
        also=("CODEX_BIN",),
    ),
    Option(
        "--engine",
        _one_of(*get_args(EngineChoice)),
        DEFAULT_ENGINE,
        "program that runs turns; auto: codex app-server where it can, else codex exec",
        "NAME",
    ),
    Option(
        "--spares",
        _count_or_none,
        1,
        "app-servers kept ready for the next runs, after a first",
        "N",
    ),
    Option(
        "--root",
        _root,
        (),
        "cwd, add_dirs, images and earlier threads must be inside one of these; default: anywhere",
        "DIR",
        many=True,
    ),
    Option(
        "--default-sandbox",
        _SANDBOX,
        "read-only",
        "sandbox of a run whose caller names none",
        "MODE",
    ),
    Option(
        "--max-sandbox", _SANDBOX, "workspace-write", "widest sandbox that a caller may use", "MODE"
    ),
    Option(
        "--isolation",
        _one_of(*get_args(Isolation)),
        "none",
        "copy: a run whose caller names none works in a copy of the project",
        "MODE",
    ),
    Option("--allow-config", str, (), "more config keys that callers may set", "GLOB", many=True),
    Option(
        "--approvals",
        _one_of(*get_args(Answerer)),
        "never",
        "who may allow what leaves the sandbox when Codex asks; caller: codex_answer too",
        "WHO",
    ),
    Option(
        "--approve-outside-sandbox",
        _yes_or_no,
        False,
        "--approvals counts although --max-sandbox is read-only",
        "[yes|no]",
        is_flag=True,
    ),
    Option(
        "--rules",
        _one_of("ignore", "keep"),
        "ignore",
        "keep: Codex's rules count; a command that they allow runs outside the sandbox",
        "HOW",
    ),
    Option(
        "--project-config",
        _one_of("committed", "any"),
        "committed",
        "any: load .codex of a project you trust even if it differs from the last commit",
        "WHICH",
    ),
    Option("--timeout-s", _seconds, 3600.0, "time limit of a run whose caller names none", "N"),
    Option("--max-timeout-s", _seconds, 14400.0, "largest timeout_s that a caller may set", "N"),
    Option(
        "--stall-s",
        _seconds,
        600.0,
        "end a run after N s without an event, unless a command or tool is running",
        "N",
    ),
    Option(
        "--wait-s", _wait, "auto", "seconds that a call waits for its run; auto: by client", "N"
    ),
    Option("--max-run-tokens", _count, None, "tokens that a run may use; then it is ended", "N"),
    Option("--max-run-usd", _usd, None, "USD that a run may cost; then it is ended", "N"),
    Option(
        "--budget-tokens-day",
        _count,
        None,
        "tokens that all runs of the state folder may use in a day",
        "N",
    ),
    Option(
        "--budget-usd-day",
        _usd,
        None,
        "USD that all runs of the state folder may cost in a day",
        "N",
    ),
    Option(
        "--max-runs", _count, 4, "number of runs at the same time; further runs are queued", "N"
    ),
    Option(
        "--max-queue",
        _count_or_none,
        64,
        "number of queued runs; further runs are refused with queue_full",
        "N",
    ),
    Option(
        "--wait-for-limits",
        _yes_or_no,
        False,
        "a run that meets a usage limit waits in the queue until the limit resets",
        "[yes|no]",
        is_flag=True,
    ),
    Option(
        "--max-depth", _count, 1, "number of nested runs; 1: a run cannot start another run", "N"
    ),
    Option(
        "--ask",
        _one_of("auto", "never"),
        "auto",
        "auto: ask the person to allow a run beyond the limits, once; never: refuse it",
        "WHEN",
    ),
    Option(
        "--pass-env",
        str,
        (),
        "environment variables to pass to Codex and its commands although withheld by default",
        "GLOB",
        many=True,
    ),
    Option("--deny-env", str, (), "more environment variables to withhold", "GLOB", many=True),
    Option("--state-dir", _path, None, "folder for the server's files", "DIR"),
    Option("--prices", _prices, None, "TOML file with your own prices of models", "FILE"),
    Option("--places", _path, None, "TOML file with other places to run at", "FILE"),
    Option("--default-place", str, "here", "place of a run whose caller names none", "NAME"),
    Option(
        "--compat",
        _one_of("none", "codex-mcp-server"),
        "none",
        "codex-mcp-server: also offer the tools of the removed `codex mcp-server`",
        "NAME",
    ),
    Option(
        "--notify",
        _command,
        None,
        "command to start for each run that has ended, with one JSON line as its input",
        "COMMAND",
    ),
    Option(
        "--log-level",
        _one_of(*LOG_LEVELS),
        "warning",
        "lowest level that is logged to stderr",
        "LEVEL",
    ),
)


def read_settings(
    arguments: Sequence[str], environ: Mapping[str, str], fail: Callable[[str], NoReturn]
) -> Settings:
    """Return the settings that *arguments* and *environ* give.

    Args:
        arguments: The command line, without the program's name.
        environ: The environment.
        fail: Called with an error text if an argument or a variable is invalid.
    """
    if "--" in arguments:
        end = arguments.index("--")
        folders = (text for text in arguments[end + 1 :] if not _LEFT_BLANK.fullmatch(text))
        arguments = [*arguments[:end], *(f"--root={folder}" for folder in folders)]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in OPTIONS:
        action = "append" if option.many else "store"
        optional: dict[str, Any] = {"nargs": "?", "const": "yes"} if option.is_flag else {}
        parser.add_argument(option.flag, action=action, **optional)
    try:
        given, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        fail(str(error))
    if unknown:
        fail(f"unknown argument: {unknown[0]}")
    values: dict[str, Any] = {}
    for option in OPTIONS:
        source, texts = _texts(option, getattr(given, option.name), environ)
        try:
            read = [option.read(text) for text in texts]
        except ValueError as error:
            fail(f"{source}: {error}")
        values[option.name] = (tuple(read) if option.many else read[0]) if read else option.default
    if WIDTH[cast(Sandbox, values["default_sandbox"])] > WIDTH[values["max_sandbox"]]:
        fail("--default-sandbox is wider than --max-sandbox")
    state_dir = values["state_dir"] or default_state_dir()
    return Settings(
        codex_bin=values["codex_bin"],
        engine=values["engine"],
        spares=values["spares"],
        policy=Policy(
            default_sandbox=values["default_sandbox"],
            max_sandbox=values["max_sandbox"],
            isolation=values["isolation"],
            roots=values["root"],
            allow_config=values["allow_config"],
            timeout_s=values["timeout_s"],
            max_timeout_s=values["max_timeout_s"],
            stall_s=values["stall_s"],
            budgets=Budgets(**{name: values[name] for name in Budgets.__slots__}),
            max_depth=values["max_depth"],
            approvals=values["approvals"],
            approve_outside_sandbox=values["approve_outside_sandbox"],
            rules=values["rules"],
            project_config=values["project_config"],
            environment=EnvironmentRules(values["pass_env"], values["deny_env"]),
            home=Path(expand_home("~")),
            codex_home=local_home(),
            state_dir=state_dir,
            cache_dir=cache_folder(),
        ),
        wait_s=values["wait_s"],
        max_runs=values["max_runs"],
        max_queue=values["max_queue"],
        wait_for_limits=values["wait_for_limits"],
        state_dir=state_dir,
        prices=values["prices"],
        ask=values["ask"],
        compat=values["compat"],
        notify=values["notify"],
        log_level=values["log_level"],
        places=values["places"],
        default_place=values["default_place"],
    )


def check_places(settings: Settings, fail: Callable[[str], NoReturn]) -> None:
    """Read the file of places once, so that an error in it is one at the start."""
    names = {"here", "any"}
    if settings.places is not None:
        from codex_tools.places.place import read_places

        try:
            known = read_places(settings.places)
            names |= {*known, *(label for each in known.values() for label in each.labels)}
        except ValueError as error:
            fail(f"--places: {error}")
    if settings.default_place not in names:
        there = ", ".join(sorted(names))
        fail(f"--default-place: there is no place {settings.default_place!r}; there are {there}")


def default_state_dir() -> Path:
    """Return the default state folder of this user on this system."""
    from platformdirs import user_state_path

    return user_state_path("mcp-server-codex", appauthor=False)


def _texts(
    option: Option, given: str | list[str] | None, environ: Mapping[str, str]
) -> tuple[str, list[str]]:
    if given is not None:
        return option.flag, given if isinstance(given, list) else [given]
    for variable in option.variables:
        if (text := environ.get(variable)) and not _LEFT_BLANK.fullmatch(text):
            return variable, list(filter(None, text.split(os.pathsep))) if option.many else [text]
    return option.flag, []
