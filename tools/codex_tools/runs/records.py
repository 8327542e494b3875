"""Write the records of runs to the state folder, and retry where the disk fails."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

import anyio

from codex_tools.codex.masking import shorten
from codex_tools.runs.result import RunResult
from codex_tools.runs.run import Run
from codex_tools.runs.store import RunStore, StoredRun
from codex_tools.runs.writer import StateWriter

logger = logging.getLogger(__name__)

RETRY_EVERY_S = 10.0
"""Retry interval in seconds for a record that could not be written, for example to a full disk."""

ANSWER_LIMIT = 1_000_000
"""Maximum characters of an answer that are kept on disk."""


class Records:
    """The records of this server's runs; all are written in the writer's thread."""

    def __init__(self, store: RunStore, writer: StateWriter) -> None:
        """Write nothing yet."""
        self._store, self._writer = store, writer
        self._unsaved: set[str] = set()

    def is_unsaved(self, run_id: str) -> bool:
        """Return True for an ended run whose record could not be written yet."""
        return run_id in self._unsaved

    def save(self, run: Run, answer: str | None = None) -> None:
        """Queue the writing of a run's result, final or so far, and return at once."""
        result = run.result()
        if answer is not None and answer != result.final_response:
            run.answer = shorten(answer, ANSWER_LIMIT)
        self._writer.put(partial(self._write, run, result))

    def save_revised(self, found: StoredRun) -> None:
        """Queue the writing of what a run of a dead server came to."""
        self._writer.put(partial(self._write_revised, found))

    async def save_later(self, run: Run) -> None:
        """Retry writing the record of an ended run until it succeeds."""
        await anyio.sleep(RETRY_EVERY_S)  # A slow disk may still succeed, or fail.
        while run.run_id in self._unsaved:
            self.save(run)
            await anyio.sleep(RETRY_EVERY_S)

    def _write(self, run: Run, result: RunResult) -> None:
        try:
            self._store.save(result, run.created_at, run.answer, run.recorded)
        except (OSError, TypeError) as error:
            logger.warning("cannot write the record of %s: %s", run.run_id, error)
            if result.has_ended:
                self._unsaved.add(run.run_id)
        else:
            run.answer = None
            self._unsaved.discard(run.run_id)

    def _write_revised(self, found: StoredRun) -> None:
        with suppress(OSError):  # The next caller's call revises the record again.
            self._store.save(found.result, found.created_at)
