"""Codex's sandbox modes, from the narrowest to the widest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from codex_tools.codex.paths import holds

Sandbox = Literal["read-only", "workspace-write", "danger-full-access"]

Isolation = Literal["none", "copy"]
"""Where a run works: `none` for the person's folder, `copy` for a copy of the project."""

WIDTH: dict[Sandbox, int] = {"read-only": 0, "workspace-write": 1, "danger-full-access": 2}
"""The order of the modes: a larger number allows more."""

DANGERS: dict[Sandbox, str] = {
    "read-only": "Codex could read your files",
    "workspace-write": "Codex could change and delete files in that folder and run programs there",
    "danger-full-access": (
        "Codex could change or delete any of your files, run any program and use the network,"
        " with nothing to hold it back"
    ),
}
"""The risk of each mode, for the person who is asked to allow it."""


def is_open_to_commands(folder: Path) -> bool:
    """Return True if commands of each run with workspace-write can write in *folder*.

    The sandbox of workspace-write leaves the system's temporary folders open (seen with 0.60.1,
    0.163.0 and 0.171.0). This accesses the disk.
    """
    places = ("/tmp", os.environ.get("TMPDIR", ""))
    return any(each and holds(Path(each), folder) for each in places)


def sandbox_of(recorded: str | None) -> Sandbox | None:
    """Return the mode that Codex recorded by this name; None for a name that is no mode."""
    return recorded if recorded in WIDTH else None
