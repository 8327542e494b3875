"""What the operator allows; no caller can lift it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import orjson

from codex_tools.codex.errors import InvalidArguments, NotAllowed
from codex_tools.codex.sandbox import WIDTH, Sandbox

SAFE_CONFIG = (
    "model_reasoning_effort",
    "model_reasoning_summary",
    "model_verbosity",
    "hide_agent_reasoning",
    "show_raw_agent_reasoning",
    "web_search",
    "tools.web_search",
)
"""The `config` keys that cannot widen what a run may do."""

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's limits; made once from the settings."""

    default_sandbox: Sandbox = "read-only"
    max_sandbox: Sandbox = "workspace-write"
    roots: tuple[Path, ...] = ()
    """Where cwd, add_dirs and images may lie; none means anywhere."""
    allow_config: tuple[str, ...] = ()
    """Globs of `config` keys that callers may set besides SAFE_CONFIG."""
    timeout_s: float = 3600.0
    max_timeout_s: float = 14400.0
    stall_s: float = 600.0

    def sandbox_for(self, asked: Sandbox | None) -> Sandbox:
        """Return the sandbox for a new thread.

        Raises:
            NotAllowed: It is wider than the ceiling.
        """
        if asked is None:
            return self.narrowed(self.default_sandbox)
        if WIDTH[asked] > WIDTH[self.max_sandbox]:
            raise NotAllowed(
                f"sandbox {asked}",
                f"the widest allowed here is {self.max_sandbox}",
                "--max-sandbox",
            )
        return asked

    def narrowed(self, sandbox: Sandbox) -> Sandbox:
        """Return *sandbox*, or the ceiling where that is narrower."""
        return min(sandbox, self.max_sandbox, key=WIDTH.__getitem__)

    def timeout_for(self, asked: float | None) -> float:
        """Return a run's wall clock in seconds.

        Raises:
            NotAllowed: More was asked for than callers may have.
        """
        if asked is None:
            return min(self.timeout_s, self.max_timeout_s)
        if asked > self.max_timeout_s:
            raise NotAllowed(
                f"timeout_s {asked:g}", f"the most is {self.max_timeout_s:g}", "--max-timeout-s"
            )
        return asked

    def check_inside(self, name: str, path: Path) -> None:
        """Insist that *path*, links resolved, lies inside a root.

        Raises:
            NotAllowed: It lies outside all of them.
        """
        real = os.path.realpath(path)
        if self.roots and not any(Path(real).is_relative_to(root) for root in self.roots):
            roots = ", ".join(map(str, self.roots))
            raise NotAllowed(f"{name} {path}", f"it lies outside the roots {roots}", "--root")

    def config_for(self, config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Return *config* as pairs of key and TOML value.

        Raises:
            NotAllowed: A key is neither safe nor allowed by the operator.
            InvalidArguments: A key or value has no form in TOML.
        """
        pairs: list[tuple[str, str]] = []
        for key, value in config.items():
            if _KEY.fullmatch(key) is None:
                raise InvalidArguments([f"config: {key!r} is not a dotted key"])
            if key not in SAFE_CONFIG and not any(fnmatchcase(key, g) for g in self.allow_config):
                safe = ", ".join(SAFE_CONFIG)
                raise NotAllowed(
                    f"config key {key}", f"callers may set only {safe}", "--allow-config"
                )
            pairs.append((key, _toml(key, value)))
        return tuple(pairs)


def _toml(key: str, value: object) -> str:
    """Return *value* in TOML, closed in itself, so that it cannot reach past its key."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            # A TOML basic string is a JSON string, but for DEL.
            return orjson.dumps(value).decode().replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(_toml(key, v) for v in cast(list[object], value))}]"
        case dict():
            pairs = cast(dict[str, object], value).items()
            return f"{{{', '.join(f'{_toml(key, k)} = {_toml(key, v)}' for k, v in pairs)}}}"
        case _:
            raise InvalidArguments([f"config.{key}: null has no form in Codex's configuration"])
