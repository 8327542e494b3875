"""Select the environment variables that Codex and its commands get from this server.

An MCP client starts this server with the client's own secrets in the environment. Codex passes
its whole environment to the commands that its model runs (0.98.0 to 0.169.0; 0.60.1 withholds
names with KEY or TOKEN). Variables that neither needs are therefore removed here. Variables that
only Codex needs are passed to Codex with the setting that keeps them from commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codex_tools.engines.config_layers import CodexConfig

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

CODEX_ONLY = ("CODEX_*_KEY", "CODEX_*_TOKEN", "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY")
"""Names, as globs, that Codex may need, but its commands do not.

Codex 0.171.0 reads CODEX_API_KEY, CODEX_ACCESS_TOKEN, CODEX_CONNECTORS_TOKEN,
CODEX_GITHUB_PERSONAL_ACCESS_TOKEN, CODEX_GUARDIAN_DECISIONS_API_KEY and
CODEX_EXEC_SERVER_NOISE_AUTH_TOKEN.
"""

SURROUNDINGS = (
    *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_CONFIG", "GIT_CONFIG_PARAMETERS"),
    *("GIT_DIR", "GIT_GRAFT_FILE", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_NAMESPACE"),
    *("GIT_INTERNAL_SUPER_PREFIX", "GIT_NO_REPLACE_OBJECTS", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"),
    *("GIT_QUARANTINE_PATH", "GIT_REPLACE_REF_BASE", "GIT_SHALLOW_FILE", "GIT_WORK_TREE"),
    *("ELECTRON_RUN_AS_NODE", "NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE"),
)
"""Names that a program around this server set for its own child, and that are wrong in Codex.

Git sets its variables for hooks and aliases; with them, git in Codex's commands would work on the
repository of the hook, not on that of cwd. They are those of `git rev-parse --local-env-vars`
(2.39.5) except GIT_CONFIG_COUNT, with which people set `safe.directory` for example, and those of
namespaces and receive hooks. The others belong to the Node process or editor around this server:
Node stops at its start if NODE_CHANNEL_FD names a descriptor that is no channel.
"""


@dataclass(frozen=True, slots=True)
class EnvironmentRules:
    """The operator's own rules, as globs of names."""

    passed: tuple[str, ...] = ()
    """Variables passed to Codex and its commands although the default rules withhold them."""
    denied: tuple[str, ...] = ()
    """Variables passed to neither, whatever other rules say."""


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
    if _matches(name, rules.passed) or name in config.named:
        return True
    return name not in SURROUNDINGS and not _matches(name, WITHHELD)


def kept_from_commands(
    environ: Iterable[str], rules: EnvironmentRules, config: CodexConfig
) -> list[str]:
    """Return the globs of variables that Codex must keep from its commands; [] for none.

    The result replaces Codex's own setting, so it includes the globs of that setting.
    """
    names = _secrets(environ, rules, config)
    return [*dict.fromkeys((*config.excluded, *names))] if names else []


def set_empty_in_commands(
    environ: Iterable[str], rules: EnvironmentRules, config: CodexConfig
) -> list[str]:
    """Return the variables that commands must see as empty, because Codex cannot be told otherwise.

    `managed_config.toml` is stronger than the command line (0.60.1, 0.171.0): with an
    `exclude` of its own, the globs of `kept_from_commands` have no effect.
    """
    return _secrets(environ, rules, config) if config.exclusion_is_managed else []


def _secrets(environ: Iterable[str], rules: EnvironmentRules, config: CodexConfig) -> list[str]:
    return sorted(
        name
        for name in environ
        if (_matches(name, CODEX_ONLY) or name in config.named) and not _matches(name, rules.passed)
    )


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
