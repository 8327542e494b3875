"""Codex's sandbox modes, from the narrowest to the widest."""

from __future__ import annotations

from typing import Literal

Sandbox = Literal["read-only", "workspace-write", "danger-full-access"]

WIDTH: dict[Sandbox, int] = {"read-only": 0, "workspace-write": 1, "danger-full-access": 2}
"""The order of the modes: a larger number allows more."""


def sandbox_of(recorded: str | None) -> Sandbox | None:
    """Return the mode that Codex recorded by this name; None for a name that is no mode."""
    return recorded if recorded in WIDTH else None
