"""Remove old files of the state folder, now and then."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from codex_tools.codex.workers import on_disk
from codex_tools.runs.isolation import KEEP_COPIES_S, remove_old_copies
from codex_tools.runs.register import Runs
from codex_tools.runs.store import RunStore

if TYPE_CHECKING:
    from codex_tools.places.places import Places

logger = logging.getLogger(__name__)

PRUNE_AFTER_S = 5.0
"""Seconds from the start to the first removal of old files, which must not delay the start."""

PRUNE_EVERY_S = 3600.0
"""Interval in seconds for removing old files."""


async def prune(runs: Runs, store: RunStore, state_dir: Path, places: Places | None) -> None:
    """Remove old files every PRUNE_EVERY_S seconds, until cancelled."""
    pause_s = PRUNE_AFTER_S
    # What a copy at a place is compared with is kept here as long as the copy is there.
    keep_s = max(KEEP_COPIES_S, places.keep_s if places is not None else 0)
    while True:
        await anyio.sleep(pause_s)
        pause_s = PRUNE_EVERY_S
        try:
            await on_disk(store.prune, runs.alive(), abandon=True)
            await on_disk(runs.ledger.prune, abandon=True)
            await on_disk(runs.keys.prune, abandon=True)
            await on_disk(remove_old_copies, state_dir, keep_s, abandon=True)
            if places is not None:
                await on_disk(places.prune, abandon=True)
        except OSError as error:
            logger.warning("cannot remove old files: %s", error)
