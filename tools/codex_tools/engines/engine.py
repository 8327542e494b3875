"""What an engine is: a turn's request in, its events out, and nothing left alive afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codex_tools.codex.sandbox import Sandbox
from codex_tools.engines.environment import (
    EnvironmentRules,
)


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One turn, as it shall really run: everything is decided, nothing is checked again."""

    prompt: str
    cwd: Path
    sandbox: Sandbox
    timeout_s: float
    stall_s: float
    thread_id: str | None = None
    """The thread to resume, as a UUID; None begins a new one."""
    model: str | None = None
    reasoning_effort: str | None = None
    profile: str | None = None
    output_schema: dict[str, Any] | None = None
    images: tuple[Path, ...] = ()
    add_dirs: tuple[Path, ...] = ()
    web_search: bool | None = None
    config: tuple[tuple[str, str], ...] = ()
    """Pairs of a dotted key and its value in TOML."""
    skip_git_repo_check: bool = False
    ephemeral: bool = False
    base_instructions: str | None = None
    """What takes the place of Codex's own instructions to the model."""
    environment: EnvironmentRules = field(default_factory=EnvironmentRules)
    depth: int = 1
    """How many runs it is inside, itself counted."""
    held: Sequence[int] = field(default=())
    """File descriptors to hold until nothing of the turn is alive (its lock)."""
