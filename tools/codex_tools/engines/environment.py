"""What Codex, and the commands it runs, get of this server's environment.

An MCP client starts this server with its own secrets in the environment. Codex
hands all of what it gets on to the commands that its model runs (0.98.0 to
0.169.0; 0.60.1 holds back names with KEY or TOKEN), so what neither needs goes
no further than here, and what Codex alone needs is held back by Codex itself.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

DEPTH_VARIABLE = "CODEX_RUN_DEPTH"
"""How many runs of this server a process lives inside, as far as it was handed down."""

WITHHELD = (
    *("ANTHROPIC_*", "CLAUDE_*", "CLAUDECODE", "AI_AGENT", "MCP_SERVER_CODEX_*"),
    *("CURSOR_*", "WINDSURF_*", "COPILOT_*", "GITHUB_COPILOT_*", "AMP_*", "GOOSE_*", "CLINE_*"),
    *("GEMINI_*", "GOOGLE_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY", "XAI_*", "GROQ_API_KEY"),
    *("MISTRAL_*", "DEEPSEEK_*", "OPENROUTER_*", "COHERE_*", "TOGETHER_*", "FIREWORKS_*"),
    *("PERPLEXITY_*", "AWS_BEARER_TOKEN_BEDROCK", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    "OTEL_EXPORTER_*HEADERS",
)
"""Names, as globs in capitals, that Codex does not get: the client's and other agents' own."""

CODEX_ONLY = ("CODEX_API_KEY", "CODEX_ACCESS_TOKEN", "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY")
"""Names that Codex may need, but no command that it runs."""

_NAMING_KEYS = ("env_key", "bearer_token_env_var", "env_vars", "env_http_headers")
"""Keys of Codex's configuration whose values are names of variables that it will read."""


@dataclass(frozen=True, slots=True)
class EnvironmentRules:
    """What the operator says besides, as globs of names."""

    passed: tuple[str, ...] = ()
    """Handed on to Codex and its commands, although held back otherwise."""
    denied: tuple[str, ...] = ()
    """Handed on to neither, whatever else is said."""


@dataclass(frozen=True, slots=True)
class CodexConfig:
    """What Codex's own configuration says of the environment."""

    named: frozenset[str] = frozenset()
    """Variables that it names: keys of providers, headers, tokens of MCP servers."""
    excluded: tuple[str, ...] = ()
    """Globs that the person already keeps from commands."""


def read_config(home: Path, profile: str | None = None) -> CodexConfig:
    """Return what `config.toml` in *home*, and the profile's file, say of the environment.

    Unreadable is as good as empty: Codex itself will say what is wrong with it.
    """
    named: set[str] = set()
    excluded: list[str] = []
    files = ["config.toml", *([f"{profile}.config.toml"] if profile else [])]
    for file in files:
        try:
            if not (home / file).is_file():
                continue  # A named pipe, for one, would be waited on for ever.
            config = tomllib.loads((home / file).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        named.update(_named(config))
        match config.get("shell_environment_policy"):
            case {"exclude": said}:
                excluded += _strings(said)
            case _:
                pass
    return CodexConfig(frozenset(named), tuple(excluded))


def _named(node: object) -> Iterator[str]:
    if isinstance(node, list):
        for each in cast(list[object], node):
            yield from _named(each)
    if not isinstance(node, dict):
        return
    for key, value in cast(dict[str, object], node).items():
        if key in _NAMING_KEYS:
            yield from _strings(value)
        yield from _named(value)


def _strings(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for each in cast(list[object], value):
                yield from _strings(each)
        case dict():
            # {header = NAME}, and {name = NAME, source = "..."} of MCP servers since 0.120.
            for each in cast(dict[str, object], value).values():
                yield from _strings(each)
        case _:
            pass


def environment_for_codex(
    environ: Mapping[str, str],
    rules: EnvironmentRules,
    config: CodexConfig,
    *,
    depth: int,
    search_path: str | None = None,
) -> dict[str, str]:
    """Return the environment for Codex, made from this server's *environ*.

    Args:
        environ: What this server was started with.
        rules: The operator's.
        config: What Codex's configuration names it needs, unless the operator denies it.
        depth: How many runs the new one will be inside, itself counted.
        search_path: A folder that goes first on PATH.
    """
    env = {name: value for name, value in environ.items() if _goes_on(name, rules, config)}
    # Client snippets set these two to protect the server. The commands that Codex
    # runs must not inherit them: scripts would no longer find their own modules.
    env.pop("PYTHONSAFEPATH", None)
    if not env.get("PYTHONPATH"):
        env.pop("PYTHONPATH", None)
    _leave_own_place(env)
    if search_path is not None:
        env["PATH"] = os.pathsep.join(filter(None, (search_path, env.get("PATH"))))
    env[DEPTH_VARIABLE] = str(depth)
    return env


def _goes_on(name: str, rules: EnvironmentRules, config: CodexConfig) -> bool:
    if _matches(name, rules.denied):
        return False
    if _matches(name, ("MCP_SERVER_CODEX_*",)):
        return False  # This server's limits are none of Codex's business, nor of its model's.
    return _matches(name, rules.passed) or name in config.named or not _matches(name, WITHHELD)


def kept_from_commands(
    environ: Iterable[str], rules: EnvironmentRules, config: CodexConfig
) -> list[str]:
    """Return what to tell Codex to keep from commands, as globs; [] if nothing.

    Its own setting is replaced by this, so it holds what the person says there too.
    """
    names = sorted(
        name
        for name in environ
        if (name in CODEX_ONLY or name in config.named) and not _matches(name, rules.passed)
    )
    return [*dict.fromkeys((*config.excluded, *names))] if names else []


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name.upper(), glob.upper()) for glob in globs)


def _leave_own_place(env: dict[str, str]) -> None:
    """Take out what a tool runner (uvx, pipx) put in for the server alone.

    Otherwise `python` and `pip` in Codex's commands would be this server's own.
    A virtual environment that the person has activated is left as it is.
    """
    if not {"uv", "pipx"} & set(Path(sys.prefix).parts):
        return
    if env.get("VIRTUAL_ENV") == sys.prefix:
        del env["VIRTUAL_ENV"]
    own = str(Path(sys.prefix) / "bin")
    places = env.get("PATH", "").split(os.pathsep)
    if own in places:
        env["PATH"] = os.pathsep.join(place for place in places if place != own)
