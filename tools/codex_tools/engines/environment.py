"""Select the environment variables that Codex and its commands get from this server.

An MCP client starts this server with the client's own secrets in the environment. Codex passes
its whole environment to the commands that its model runs (0.98.0 to 0.169.0; 0.60.1 withholds
names with KEY or TOKEN). Variables that neither needs are therefore removed here. Variables that
only Codex needs are passed to Codex with the setting that keeps them from commands.
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
"""Variable that holds the number of nested runs around a process, where it was passed down."""

WITHHELD = (
    *("ANTHROPIC_*", "CLAUDE_*", "CLAUDECODE", "AI_AGENT", "MCP_SERVER_CODEX_*"),
    *("CURSOR_*", "WINDSURF_*", "COPILOT_*", "GITHUB_COPILOT_*", "AMP_*", "GOOSE_*", "CLINE_*"),
    *("GEMINI_*", "GOOGLE_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY", "XAI_*", "GROQ_API_KEY"),
    *("MISTRAL_*", "DEEPSEEK_*", "OPENROUTER_*", "COHERE_*", "TOGETHER_*", "FIREWORKS_*"),
    *("PERPLEXITY_*", "AWS_BEARER_TOKEN_BEDROCK", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    "OTEL_EXPORTER_*HEADERS",
)
"""Names, as upper-case globs, that Codex does not get: those of the client and other agents."""

CODEX_ONLY = ("CODEX_API_KEY", "CODEX_ACCESS_TOKEN", "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY")
"""Names that Codex may need, but its commands do not."""

_NAMING_KEYS = ("env_key", "bearer_token_env_var", "env_vars", "env_http_headers")
"""Keys of Codex's configuration whose values are names of variables that Codex reads."""


@dataclass(frozen=True, slots=True)
class EnvironmentRules:
    """The operator's own rules, as globs of names."""

    passed: tuple[str, ...] = ()
    """Variables passed to Codex and its commands although the default rules withhold them."""
    denied: tuple[str, ...] = ()
    """Variables passed to neither, whatever other rules say."""


@dataclass(frozen=True, slots=True)
class CodexConfig:
    """The parts of Codex's own configuration that concern the environment."""

    named: frozenset[str] = frozenset()
    """Variables that the configuration names: provider keys, headers, tokens of MCP servers."""
    excluded: tuple[str, ...] = ()
    """Globs that the configuration already keeps from commands."""


def read_config(home: Path, profile: str | None = None) -> CodexConfig:
    """Read the environment settings from `config.toml` in *home* and from the profile's file.

    An unreadable file counts as empty, because Codex itself will report what is wrong with it.
    """
    named: set[str] = set()
    excluded: list[str] = []
    files = ["config.toml", *([f"{profile}.config.toml"] if profile else [])]
    for file in files:
        try:
            if not (home / file).is_file():
                continue  # Opening a named pipe, for example, would block for ever.
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
            # {header = NAME}, and since 0.120 {name = NAME, source = "..."} of MCP servers.
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
        environ: The environment of this server.
        rules: The operator's rules.
        config: Codex's configuration. Variables that it names are passed unless *rules* deny them.
        depth: Number of nested runs, the new one included.
        search_path: Folder to put first on PATH.
    """
    env = {name: value for name, value in environ.items() if _is_passed(name, rules, config)}
    # Configuration snippets for clients set these two to protect this server. Codex's commands
    # must not inherit them, because scripts would no longer find their own modules.
    env.pop("PYTHONSAFEPATH", None)
    if not env.get("PYTHONPATH"):
        env.pop("PYTHONPATH", None)
    _remove_tool_environment(env)
    if search_path is not None:
        env["PATH"] = os.pathsep.join(filter(None, (search_path, env.get("PATH"))))
    env[DEPTH_VARIABLE] = str(depth)
    return env


def _is_passed(name: str, rules: EnvironmentRules, config: CodexConfig) -> bool:
    if _matches(name, rules.denied):
        return False
    if _matches(name, ("MCP_SERVER_CODEX_*",)):
        return False  # Neither Codex nor its model may see this server's limits.
    return _matches(name, rules.passed) or name in config.named or not _matches(name, WITHHELD)


def kept_from_commands(
    environ: Iterable[str], rules: EnvironmentRules, config: CodexConfig
) -> list[str]:
    """Return the globs of variables that Codex must keep from its commands; [] for none.

    The result replaces Codex's own setting, so it includes the globs of that setting.
    """
    names = sorted(
        name
        for name in environ
        if (name in CODEX_ONLY or name in config.named) and not _matches(name, rules.passed)
    )
    return [*dict.fromkeys((*config.excluded, *names))] if names else []


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name.upper(), glob.upper()) for glob in globs)


def _remove_tool_environment(env: dict[str, str]) -> None:
    """Remove from *env* what a tool runner (uvx, pipx) set for this server alone.

    Otherwise `python` and `pip` in Codex's commands would be this server's own. A virtual
    environment that a person has activated is kept.
    """
    if not {"uv", "pipx"} & set(Path(sys.prefix).parts):
        return
    if env.get("VIRTUAL_ENV") == sys.prefix:
        del env["VIRTUAL_ENV"]
    own = str(Path(sys.prefix) / "bin")
    places = env.get("PATH", "").split(os.pathsep)
    if own in places:
        env["PATH"] = os.pathsep.join(place for place in places if place != own)
