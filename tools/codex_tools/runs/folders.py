"""Keep a run out of the folders whose paths another run can change.

Codex's sandbox is set up by path, for each command anew in some versions. A run that may write to a
folder can replace a folder inside it by a link to any other place. Another run that works in
there would then write to that place, outside the roots (seen with 0.171.0, and with 0.60.1 for
one's own add_dirs).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from codex_tools.codex.errors import CodexError, FolderReplaced
from codex_tools.codex.run_errors import FolderBusy
from codex_tools.engines.engine import TurnRequest
from codex_tools.runs.run import Run

Identities = dict[Path, tuple[int, int]]
"""Device and inode of each folder that a run may write to."""


def check_free(request: TurnRequest, runs: Iterable[Run]) -> None:
    """Check that no other run can replace a folder that *request* may write to, or the reverse.

    Two runs may share the very same folder: neither can replace that.

    Raises:
        FolderBusy: One of *runs* is not over yet and could.
    """
    if request.sandbox == "read-only":
        return
    for run in runs:
        if run.outcome is not None or run.request.sandbox == "read-only":
            continue
        for mine, theirs in _pairs(request, run.request):
            if (theirs in mine.parents and run.request.sandbox == "workspace-write") or (
                mine in theirs.parents and request.sandbox == "workspace-write"
            ):
                raise FolderBusy(str(mine), str(theirs), run.run_id)


def identify(request: TurnRequest) -> Identities:
    """Return the identities of the folders that the sandbox of *request* lets it write to."""
    if request.sandbox != "workspace-write":
        return {}
    return {folder: found for folder in _written(request) if (found := _identity(folder))}


def ending_in(run: Run, before: Identities) -> None:
    """Let *run* fail if one of its folders is another one than before its turns.

    A folder that no longer exists counts as the same.
    """
    for folder, identity in before.items():
        if _identity(folder) in (identity, None):
            continue
        if run.ending is not None and not isinstance(run.ending, CodexError):
            run.ending = FolderReplaced(str(folder), run.ending[0])
        else:
            run.warnings = (*run.warnings, f"{folder} was replaced by another folder or a link.")
        return


def _pairs(one: TurnRequest, other: TurnRequest) -> Iterator[tuple[Path, Path]]:
    return ((mine, theirs) for mine in _shared(one) for theirs in _shared(other))


def _written(request: TurnRequest) -> tuple[Path, ...]:
    return request.cwd, *request.add_dirs


def _shared(request: TurnRequest) -> tuple[Path, ...]:
    """Return the folders that *request* writes to and that other runs may have too."""
    return request.add_dirs if request.isolation == "copy" else _written(request)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)  # noqa: PTH116 - a link must count as where it leads
    except OSError:
        return None
    return found.st_dev, found.st_ino
