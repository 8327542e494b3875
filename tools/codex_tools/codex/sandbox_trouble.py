"""Recognise commands that failed because of Codex's sandbox; Codex reports them like any other."""

from __future__ import annotations

import re
from pathlib import PurePath

_READ = 4000
"""Characters of a longer output that are searched, at each end."""

_NOT_STARTED = re.compile(
    r"(?:\A|\nOutput:\n)((?:bwrap: |[^\n]{0,100}LandlockRestrict)[^\n]{0,200})"
)
"""0.98 to 0.171 print what bubblewrap says, before the command could run (seen with 0.147 to
0.171); Codex before that uses Landlock."""

_GIT_READ_ONLY = re.compile(
    r"'?(/[^'\n]{0,500}/\.git(?:/[^'\n]{0,300})?|\.git/[^'\n]{0,300})'?: Read-only file system"
)
"""What git prints (seen with 2.39.5) where Codex mounts .git read-only (0.147 to 0.171)."""


def find_trouble(output: str) -> str | None:
    """Return a warning if a command with this *output* failed because of Codex's sandbox."""
    if len(output) > 2 * _READ:
        output = output[:_READ] + "\n" + output[-_READ:]
    found = _NOT_STARTED.search(output)
    if found is not None:
        return (
            "Codex's sandbox cannot start on this machine, so its commands did not run:"
            f" {found[1]}. Allow unprivileged user namespaces for Codex: a kernel setting, an"
            " AppArmor profile or the container's options forbid them."
        )
    found = _GIT_READ_ONLY.search(output)
    if found is None:
        return None
    folders = ", ".join(f'"{folder}"' for folder in _git_folders(PurePath(found[1])))
    return (
        "git could not write to .git, which this Codex keeps read-only with sandbox"
        " workspace-write. Commit yourself, or let Codex commit by calling with"
        f" add_dirs: [{folders}] (Codex 0.147 or later). That also lets it write git hooks; see"
        " docs/commits.md."
    )


def _git_folders(path: PurePath) -> list[PurePath]:
    """Return the folders that Codex must be able to write to, if git cannot write to *path*."""
    parts = path.parts
    at = len(parts) - 1 - parts[::-1].index(".git")
    git = PurePath(*parts[: at + 1])
    # The private folder of a linked work tree; git also writes to the common one.
    if len(parts) > at + 3 and parts[at + 1] == "worktrees":
        return [git, PurePath(*parts[: at + 3])]
    return [git]
