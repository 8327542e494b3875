"""Options and environment -> one frozen Settings.

Every option has an environment twin: `--max-runs` is MCP_SERVER_CODEX_MAX_RUNS.
The option wins. What follows a `--` are roots: bundles give them so, as Claude
Desktop lists the folders that somebody chose as arguments, and no other way.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args

from codex_tools.codex.paths import expand_home
from codex_tools.codex.sandbox import WIDTH, Sandbox
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.policy import Policy
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.files import local_home

PREFIX = "MCP_SERVER_CODEX_"

_LEFT_BLANK = re.compile(r"\$\{user_config\.\w+\}")
"""What Claude Desktop passes for a setting of its window that was left blank and has no
default: its own placeholder (modelcontextprotocol/mcpb, issue 250)."""

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """How this server was told to behave."""

    codex_bin: str | None
    policy: Policy
    wait_s: float | Literal["auto"]
    max_runs: int
    state_dir: Path
    prices: Path | None
    """The operator's own prices."""
    ask: Literal["auto", "never"]
    """Whether a person may be asked to allow what is over the limits."""
    compat: Literal["none", "codex-mcp-server"]
    """Whose old tools are offered besides."""
    log_level: str


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its flag, how its text is read, its default, its help."""

    flag: str
    read: Callable[[str], Any]
    default: Any
    help: str
    metavar: str
    many: bool = False
    also: tuple[str, ...] = ()
    """Further names in the environment."""

    @property
    def name(self) -> str:
        """The option's name in code."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def variables(self) -> tuple[str, ...]:
        """Its names in the environment."""
        return (PREFIX + self.name.upper(), *self.also)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 10**9:
        raise ValueError("must be a number of seconds above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("must be at least 1")
    return value


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
    read_prices(path)  # A file that says nothing usable is an error of the start.
    return path


_SANDBOX = _one_of(*get_args(Sandbox))

OPTIONS = (
    Option(
        "--codex-bin",
        str,
        None,
        "the Codex to use; default: on PATH, then openai-codex-cli-bin",
        "PATH",
        also=("CODEX_BIN",),
    ),
    Option(
        "--root",
        _root,
        (),
        "cwd, add_dirs and images must lie inside one; default: anywhere",
        "DIR",
        many=True,
    ),
    Option("--default-sandbox", _SANDBOX, "read-only", "used when the caller names none", "MODE"),
    Option("--max-sandbox", _SANDBOX, "workspace-write", "ceiling that no caller can lift", "MODE"),
    Option(
        "--allow-config", str, (), "further config keys that callers may set", "GLOB", many=True
    ),
    Option("--timeout-s", _seconds, 3600.0, "a run's time when the caller names none", "N"),
    Option("--max-timeout-s", _seconds, 14400.0, "the longest that callers may ask for", "N"),
    Option(
        "--stall-s",
        _seconds,
        600.0,
        "end a run after N s without an event, while no command or tool is at work",
        "N",
    ),
    Option("--wait-s", _wait, "auto", "how long a call waits for its run", "N"),
    Option("--max-runs", _count, 4, "Codex runs at once; further runs are queued", "N"),
    Option(
        "--max-depth", _count, 1, "runs inside each other; 1: a run may start no further one", "N"
    ),
    Option(
        "--ask",
        _one_of("auto", "never"),
        "auto",
        "whether the person may be asked to allow, once, what is over the limits",
        "WHEN",
    ),
    Option(
        "--pass-env",
        str,
        (),
        "variables to hand on to Codex and its commands that are held back otherwise",
        "GLOB",
        many=True,
    ),
    Option("--deny-env", str, (), "further variables to hold back", "GLOB", many=True),
    Option("--state-dir", _path, None, "where the server keeps its files", "DIR"),
    Option("--prices", _prices, None, "own prices of models, as TOML", "FILE"),
    Option(
        "--compat",
        _one_of("none", "codex-mcp-server"),
        "none",
        "codex-mcp-server: offer the tools of the removed `codex mcp-server` besides",
        "NAME",
    ),
    Option("--log-level", _one_of(*LOG_LEVELS), "warning", "what is logged, to stderr", "LEVEL"),
)


def read_settings(
    arguments: Sequence[str], environ: Mapping[str, str], fail: Callable[[str], NoReturn]
) -> Settings:
    """Return the settings that *arguments* and *environ* make.

    Args:
        arguments: The command line, without the program's name.
        environ: The environment.
        fail: Called with a sentence when they make no sense.
    """
    if "--" in arguments:
        end = arguments.index("--")
        folders = (text for text in arguments[end + 1 :] if not _LEFT_BLANK.fullmatch(text))
        arguments = [*arguments[:end], *(f"--root={folder}" for folder in folders)]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in OPTIONS:
        parser.add_argument(option.flag, action="append" if option.many else "store")
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
        policy=Policy(
            default_sandbox=values["default_sandbox"],
            max_sandbox=values["max_sandbox"],
            roots=values["root"],
            allow_config=values["allow_config"],
            timeout_s=values["timeout_s"],
            max_timeout_s=values["max_timeout_s"],
            stall_s=values["stall_s"],
            max_depth=values["max_depth"],
            environment=EnvironmentRules(values["pass_env"], values["deny_env"]),
            home=Path(expand_home("~")),
            codex_home=local_home(),
            state_dir=state_dir,
        ),
        wait_s=values["wait_s"],
        max_runs=values["max_runs"],
        state_dir=state_dir,
        prices=values["prices"],
        ask=values["ask"],
        compat=values["compat"],
        log_level=values["log_level"],
    )


def default_state_dir() -> Path:
    """Return the folder of this user where the system keeps such files."""
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
