"""Find out from its event log what a run does now: also for a run of another server process."""

from __future__ import annotations

import os
from pathlib import Path

from codex_tools.codex.events import parse_event
from codex_tools.codex.foreign_file import open_foreign_file
from codex_tools.codex.masking import mask
from codex_tools.codex.turn_result import TurnProgress

READ_LIMIT = 4 * 1024 * 1024
"""Maximum bytes of events that are read at a time; of a longer log, only the end is read."""


class Activity:
    """What one run does, read from the events that were added to its log since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._progress = TurnProgress()
        self._at = 0
        self._is_whole = True

    @property
    def doing(self) -> str:
        """The current activity in a few words, secrets masked: "running pytest -q"."""
        return mask(self._progress.doing)

    @property
    def files_changed(self) -> int | None:
        """Number of paths that Codex's patches changed; None if not all events were read."""
        return self._progress.files_changed if self._is_whole else None

    def look(self) -> None:
        """Read the new events. There may be no log yet, or no longer."""
        try:
            with open_foreign_file(self._path, owned=True) as file:
                end = file.seek(0, os.SEEK_END)
                skipped = end - self._at > READ_LIMIT
                start = file.seek(end - READ_LIMIT if skipped else self._at)
                data = file.read(READ_LIMIT)
        except OSError:
            return
        if skipped:
            self._is_whole = False
        lines = data.split(b"\n")
        rest = lines.pop()  # A line that Codex, or this server, has not yet ended.
        self._at = start + len(data) - len(rest)
        for line in lines:  # The first one may be the end of a line, which counts as no event.
            self._progress.add(parse_event(line))
