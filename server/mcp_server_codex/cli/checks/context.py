"""What all checks are given, and how one of them asks another program something."""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Generator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import anyio

from codex_tools.codex.masking import MASK, mask
from codex_tools.codex.program import Program
from codex_tools.engines.environment import environment_for_codex, read_config
from codex_tools.engines.process import open_child
from mcp_server_codex.cli.checks.check import Check, ok, problem
from mcp_server_codex.settings import OPTIONS, Settings, read_settings

_SECRET = re.compile(r"key|token|secret|passw|credential|header|^env$|^set$", re.IGNORECASE)
_SHORTEST = 6
"""Characters of a value of config.toml that is masked wherever it shows up."""

_LINES_KEPT = 2000


@dataclass(frozen=True, slots=True)
class Codex:
    """The Codex that the server would use."""

    program: Program
    place: Path
    """Where it was found; the program itself may be the native binary behind it."""

    @property
    def update(self) -> str:
        """The command that updates it."""
        return update_of(self.place)


@dataclass(slots=True)
class CheckContext:
    """The set-up that is looked at, and what the checks so far have found out."""

    arguments: list[str]
    """The server's own options, as far as they make sense."""
    environ: dict[str, str]
    """The environment for a server, as far as it makes sense."""
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
        """What the server would give Codex of its environment."""
        return environment_for_codex(
            self.environ,
            self.settings.policy.environment,
            read_config(self.home),
            depth=1,
            search_path=self.codex.program.search_path if self.codex is not None else None,
        )

    def mask(self, text: str) -> str:
        """Return *text* without secrets, those of config.toml among them."""
        for value in sorted(_secrets(self.config), key=len, reverse=True):
            text = text.replace(value, MASK)
        return mask(text)


@contextmanager
def room() -> Generator[Path]:
    """Yield an empty folder, named without links, for as long as it is needed."""
    # Codex's sandbox, where it is broken, may leave what only another user can remove.
    with tempfile.TemporaryDirectory(prefix="codex-doctor-", ignore_cleanup_errors=True) as place:
        yield Path(place).resolve()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program printed, and how it ended."""

    returncode: int | None
    """None if it had to be ended."""
    stdout: str
    stderr: str


def begin(
    arguments: list[str], environ: dict[str, str], home: Path
) -> tuple[CheckContext, list[Check]]:
    """Read the settings; leave out those that make no sense, and say so."""
    left, env, problems = [*arguments], dict(environ), list[str]()

    def fail(text: str) -> NoReturn:
        raise _Refused(text)

    while True:
        try:
            settings = read_settings(left, env, fail)
            break
        except _Refused as refused:
            problems.append(str(refused))
            _leave_out(str(refused), left, env)
    examination = CheckContext(left, env, settings, Path.cwd(), home, _config(home))
    given = [name for option in OPTIONS for name in option.variables if env.get(name)]
    given += [word.partition("=")[0] for word in left if word.startswith("--")]
    if not problems:
        said = f"Set: {', '.join(given)}." if given else "All at their defaults."
        return examination, [ok("settings", f"The settings make sense. {said}", given=given)]
    return examination, [
        problem("settings", f"{text.rstrip('.')}.", _cure(text), setting=_source(text) or text)
        for text in problems
    ]


class _Refused(Exception):
    """A setting makes no sense."""


def _source(text: str) -> str | None:
    """Return the option or the variable that *text*, a complaint, begins with."""
    names = [name for option in OPTIONS for name in (option.flag, *option.variables)]
    start = text.partition(":")[0]
    return start if start in names else None


def _cure(text: str) -> str:
    source = _source(text)
    if source is None:
        return "Correct the command line: mcp-server-codex --help lists the options."
    option = next(o for o in OPTIONS if source in (o.flag, *o.variables))
    given = f"{source} {option.metavar}" if source.startswith("--") else f"unset {source}"
    return f"Correct it in the client's entry, or leave it out ({given}: {option.help})."


def _leave_out(text: str, arguments: list[str], environ: dict[str, str]) -> None:
    """Take out of both what *text* complains about; all of ours if that cannot be told."""
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
            rest.pop(0)  # Its value.
    if (len(arguments), len(environ)) == before:
        # Two limits that contradict each other.
        arguments.clear()
        for name in (name for option in OPTIONS for name in option.variables):
            environ.pop(name, None)


def _config(home: Path) -> Mapping[str, Any]:
    file = home / "config.toml"
    try:
        return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
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
                # The name of a variable, unlike its value, is what a person must be told.
                if key not in ("env_key", "env_vars", "bearer_token_env_var", "env_http_headers"):
                    yield from _secrets(value, inside or _SECRET.search(key) is not None)
        case _:
            pass


async def ask(
    *argv: str | Path, env: Mapping[str, str], cwd: Path, within_s: float = 20.0
) -> Answer:
    """Run a program without input; end it, and all that it started, after *within_s*.

    Raises:
        OSError: It could not be started.
    """
    lines: list[bytes] = []
    returncode, stderr = None, ""
    with anyio.move_on_after(within_s):
        async with open_child([*map(str, argv)], stdin=b"", cwd=cwd, env=env) as child:
            try:
                async with aclosing(child.lines()) as printed:
                    async for line in printed:
                        lines.append(line)
                        if len(lines) > _LINES_KEPT:
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
