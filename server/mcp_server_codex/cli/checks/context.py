"""The context that all checks share, and a function that runs a program within limits."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import anyio
import tomli

from codex_tools.codex.foreign_file import read_foreign
from codex_tools.codex.masking import MASK, mask
from codex_tools.codex.program import Program
from codex_tools.engines.config_layers import SIZE_LIMIT, read_config
from codex_tools.engines.environment import environment_for_codex
from codex_tools.engines.process import open_child
from mcp_server_codex.cli.checks.check import Check, ok, problem
from mcp_server_codex.settings import OPTIONS, Settings, read_settings

_SECRET = re.compile(r"key|token|secret|passw|credential|header|^env$|^set$", re.IGNORECASE)
_SHORTEST = 6
"""Minimum length in characters of a secret of config.toml. Shorter values are not masked."""

_MAX_LINES = 2000
_WITHIN_S = 20.0
WITHIN_LIMITS = f"within {_WITHIN_S:g} s and {_MAX_LINES:,} lines"
"""The limits of `ask`, in the words of a message."""


@dataclass(frozen=True, slots=True)
class Codex:
    """The Codex that the server would use."""

    program: Program
    place: Path
    """The path that was found. `program` may be the native binary that a script there starts."""

    @property
    def update(self) -> str:
        """The command that updates this Codex."""
        return update_of(self.place)


@dataclass(slots=True)
class CheckContext:
    """The setup under check, and the results of earlier checks that later ones need."""

    arguments: list[str]
    """The server's own options, without the invalid ones."""
    environ: dict[str, str]
    """The environment for a server, without invalid settings."""
    settings: Settings
    cwd: Path
    home: Path
    config: Mapping[str, Any]
    """Codex's config.toml; empty if it cannot be read."""
    codex: Codex | None = None
    home_is_usable: bool = False
    sandbox_holds: bool = False

    @property
    def codex_environment(self) -> dict[str, str]:
        """The part of the environment that the server would pass to Codex."""
        return environment_for_codex(
            self.environ,
            self.settings.policy.environment,
            read_config(self.home),
            depth=1,
            search_path=self.codex.program.search_path if self.codex is not None else None,
        )

    def mask(self, text: str) -> str:
        """Return *text* with secrets masked, including those in config.toml."""
        for value in sorted(_secrets(self.config), key=len, reverse=True):
            text = text.replace(value, MASK)
        return mask(text)


@contextmanager
def temporary_folder() -> Generator[Path]:
    """Yield an empty temporary folder, as a path without links; delete it afterwards."""
    # A broken sandbox of Codex may leave files there that only another user can delete.
    with tempfile.TemporaryDirectory(prefix="codex-doctor-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


@dataclass(frozen=True, slots=True)
class Answer:
    """The output of a program and its exit code."""

    returncode: int | None
    """None if the program had to be stopped."""
    stdout: str
    stderr: str


def begin(
    arguments: list[str], environ: dict[str, str], home: Path
) -> tuple[CheckContext, list[Check]]:
    """Read the settings, drop the invalid ones, and return a finding about them."""
    left, env, problems = [*arguments], dict(environ), list[str]()

    def fail(text: str) -> NoReturn:
        raise _Refused(text)

    while True:
        try:
            settings = read_settings(left, env, fail)
            break
        except _Refused as refused:
            problems.append(str(refused))
            _drop(str(refused), left, env)
    context = CheckContext(left, env, settings, Path.cwd(), home, _config(home))
    given = [name for option in OPTIONS for name in option.variables if env.get(name)]
    given += [word.partition("=")[0] for word in left if word.startswith("--")]
    if not problems:
        values = f"set here: {', '.join(given)}" if given else "all have their default values"
        return context, [ok("settings", f"The settings are valid; {values}.", given=given)]
    return context, [
        problem("settings", f"{text.rstrip('.')}.", _cure(text), setting=_source(text) or text)
        for text in problems
    ]


class _Refused(Exception):
    """A setting is invalid."""


def _source(text: str) -> str | None:
    """Return the option or the variable that the error *text* begins with, or None."""
    names = [name for option in OPTIONS for name in (option.flag, *option.variables)]
    start = text.partition(":")[0]
    return start if start in names else None


def _cure(text: str) -> str:
    source = _source(text)
    if source is None:
        return "Correct the command line. To list the options: mcp-server-codex --help"
    option = next(o for o in OPTIONS if source in (o.flag, *o.variables))
    remove = "remove it" if source.startswith("--") else f"run: unset {source}"
    return (
        f"Correct {source} in the client's entry, or {remove}"
        f" ({option.flag} {option.metavar}: {option.help})"
    )


def _drop(text: str, arguments: list[str], environ: dict[str, str]) -> None:
    """Remove the setting that the error *text* names; remove all if it names none."""
    before = len(arguments), len(environ)
    named = re.match(r"(?:unknown argument: |argument )(\S+?)(?::|$)", text)
    source = _source(text) or (named[1] if named else "")
    environ.pop(source, None)
    rest, arguments[:] = [*arguments], []
    while rest:
        word = rest.pop(0)
        if word.partition("=")[0] != source.partition("=")[0]:
            arguments.append(word)
        elif "=" not in word and rest and not rest[0].startswith("--"):
            rest.pop(0)  # The value of the option.
    if (len(arguments), len(environ)) == before:
        # The error concerns two limits that contradict each other.
        arguments.clear()
        for name in (name for option in OPTIONS for name in option.variables):
            environ.pop(name, None)


def _config(home: Path) -> Mapping[str, Any]:
    file = home / "config.toml"
    try:
        return tomli.loads(read_foreign(file, SIZE_LIMIT, follow=True).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}


def _secrets(node: object, inside: bool = False) -> Iterator[str]:
    match node:
        case str():
            if inside and len(node) >= _SHORTEST:
                yield node
        case list():
            for each in cast("list[object]", node):
                yield from _secrets(each, inside)
        case dict():
            for key, value in cast("dict[str, object]", node).items():
                # These keys hold names of variables, which a person needs to see, not secrets.
                if key not in ("env_key", "env_vars", "bearer_token_env_var", "env_http_headers"):
                    yield from _secrets(value, inside or _SECRET.search(key) is not None)
        case _:
            pass


async def ask(
    *argv: str | Path, env: Mapping[str, str], cwd: Path, within_s: float = _WITHIN_S
) -> Answer:
    """Run a program without input; kill its process tree after *within_s* seconds.

    The program is also killed after 2,000 lines of output.

    Raises:
        OSError: The program could not be started.
    """
    lines: list[bytes] = []
    returncode, stderr = None, ""
    with anyio.move_on_after(within_s):
        async with open_child([*map(str, argv)], stdin=b"", cwd=cwd, env=env) as child:
            try:
                async with aclosing(child.lines()) as printed:
                    async for line in printed:
                        lines.append(line)
                        if len(lines) > _MAX_LINES:
                            break
                    else:
                        returncode = await child.wait()
            finally:
                stderr = child.stderr_end()
    return Answer(returncode, b"\n".join(lines).decode("utf-8", "replace"), stderr)


def update_of(place: Path) -> str:
    """Return the command that updates the Codex at *place*."""
    parts = place.resolve().parts
    if "codex_cli_bin" in parts:
        return "uv tool upgrade mcp-server-codex, or: pip install --upgrade openai-codex-cli-bin"
    if {"Cellar", "Caskroom", "homebrew"} & {*parts}:
        return "brew upgrade codex"
    return "npm install -g @openai/codex@latest"
