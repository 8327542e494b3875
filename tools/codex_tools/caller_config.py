"""Decide which of a caller's `config` keys are free: harmless ones, and those that narrow a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from codex_tools.codex.errors import InvalidArguments, NotAllowed
from codex_tools.codex.sandbox import Sandbox
from codex_tools.codex.toml import to_toml

CONFIG_LIMIT = 32_000
"""Maximum characters of all `config` values; Linux takes 131,071 bytes for an argument."""

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

SAFE_CONFIG = (
    "model_reasoning_effort",
    "model_reasoning_summary",
    "model_verbosity",
    "hide_agent_reasoning",
    "show_raw_agent_reasoning",
    "web_search",
    "tools.web_search",
)
"""The `config` keys that cannot extend the rights of a run, whatever their values are.

Those of web search have the limit of `exceeds_search_limit`.
"""

_TOOLS = (
    *("apps", "artifact", "browser_use", "browser_use_external", "browser_use_full_cdp_access"),
    *("code_mode", "collab", "computer_use", "exec_permission_approvals", "goals"),
    *("image_generation", "js_repl", "memories", "multi_agent", "multi_agent_v2", "remote_control"),
    *("request_permissions_tool", "rmcp_client", "search_tool", "shell_tool", "skill_search"),
    *("skill_mcp_dependency_install", "standalone_web_search", "tool_suggest", "view_image"),
    *("view_image_tool", "web_search_cached", "web_search_request", "worktrees"),
)
"""Features of Codex 0.60.1 to 0.171.0 that only add tools or rights.

Not `hooks` and `plugins`: a hook may be what forbids a command.
"""

_NARROWING: tuple[tuple[str, tuple[object, ...]], ...] = (
    *((f"features.{name}", (False,)) for name in _TOOLS),
    ("tools.view_image", (False,)),
    ("apps.*.enabled", (False,)),
    ("approval_policy", ("never",)),
    ("sandbox_workspace_write.network_access", (False,)),
    ("sandbox_workspace_write.exclude_tmpdir_env_var", (True,)),
    ("sandbox_workspace_write.exclude_slash_tmp", (True,)),
    ("sandbox_workspace_write.writable_roots", ([],)),
    ("shell_environment_policy.inherit", ("core", "none")),
    ("shell_environment_policy.ignore_default_excludes", (False,)),
    ("allow_login_shell", (False,)),
    ("notify", ([],)),
)
"""Globs of `config` keys, each with the values that can only reduce the rights of a run."""

_SERVER_OFF = re.compile(r"mcp_servers\.([A-Za-z0-9_-]+)\.enabled")


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What a caller's `config` takes away, and the rest of it."""

    others: dict[str, Any]
    """The keys that are still to be checked."""
    sandbox: Sandbox | None = None
    servers_off: frozenset[str] = frozenset()
    """Names of MCP servers."""
    all_servers_off: bool = False


def split_config(config: Mapping[str, Any]) -> Narrowing:
    """Return what *config* takes away in a form that has no effect in Codex.

    Codex merges `mcp_servers={}` (0.77.0 and later), needs more than `enabled=false` to
    disable a server that it does not know, and prefers -s to `sandbox_mode`.
    """
    off: set[str] = set()
    others: dict[str, Any] = {}
    sandbox: Sandbox | None = None
    everything = False
    for key, value in config.items():
        server = _SERVER_OFF.fullmatch(key)
        if server is not None and value is False:
            off.add(server[1])
        elif key == "mcp_servers" and value == {}:
            everything = True
        elif key == "sandbox_mode" and value == "read-only":
            sandbox = "read-only"
        else:
            others[key] = value
    return Narrowing(others, sandbox, frozenset(off), everything)


def only_narrows(key: str, value: object) -> bool:
    """Return True if *value* of *key* can only reduce the rights of a run."""
    return any(
        fnmatchcase(key, glob)
        and any(type(value) is type(narrow) and value == narrow for narrow in values)
        for glob, values in _NARROWING
    )


def exceeds_search_limit(
    asked: bool | None, settings: Mapping[str, Any], limit: str, allowed: Sequence[str]
) -> str | None:
    """Return the argument that asks for more web search than *limit*, or None.

    Args:
        asked: The caller's web_search.
        settings: The caller's config.
        limit: What Codex's configuration allows: `disabled` or `cached`.
        allowed: Globs of config keys that the operator allows whatever their value is.
    """
    for key, off in (("web_search", "disabled"), ("tools.web_search", False)):
        value = settings.get(key, off)
        if any(fnmatchcase(key, glob) for glob in allowed) or (
            value == off and type(value) is type(off)
        ):
            continue
        if limit == "disabled" or (key == "web_search" and value != "cached"):
            return f"config key {key}"
    return "web_search true" if asked and limit == "disabled" else None


def checked_config(
    config: Mapping[str, Any], allowed: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """Return *config* as pairs of key and TOML value.

    Args:
        config: The settings.
        allowed: Globs of keys that the operator allows in addition to SAFE_CONFIG.

    Raises:
        NotAllowed: A key is neither safe nor allowed by the operator, and its value does
            not only narrow. No person is asked, because a person cannot judge a key's effects.
        InvalidArguments: TOML cannot express a key or a value.
    """
    pairs: list[tuple[str, str]] = []
    for key, value in config.items():
        if _KEY.fullmatch(key) is None:
            raise InvalidArguments([f"config: {key[:100]!r} is not a dotted key"])
        if not (
            key in SAFE_CONFIG
            or only_narrows(key, value)
            or any(fnmatchcase(key, glob) for glob in allowed)
        ):
            safe = ", ".join(SAFE_CONFIG)
            raise NotAllowed(
                f"config key {key[:100]}",
                f"callers may set only {safe}, and what reduces the rights of a run",
                "--allow-config",
            )
        try:
            pairs.append((key, to_toml(value)))
        except (ValueError, TypeError) as error:
            raise InvalidArguments([f"config.{key[:100]}: {error}"]) from None
    if sum(len(value) for _, value in pairs) > CONFIG_LIMIT:
        raise InvalidArguments([f"config: its values have more than {CONFIG_LIMIT:,} characters"])
    return tuple(pairs)
