"""Open the register of runs in the state folder, or in a stand-in where that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from codex_tools.codex.budget import NO_BUDGETS, Budgets
from codex_tools.codex.private_folder import StandIn
from codex_tools.codex.workers import on_disk
from codex_tools.engines.engine import Engine
from codex_tools.rollouts.threads import Threads
from codex_tools.runs.pruning import prune
from codex_tools.runs.register import MAX_QUEUE, Runs
from codex_tools.runs.sites import Sites
from codex_tools.runs.store import RunStore
from codex_tools.runs.writer import WRITTEN_WITHIN_S, StateWriter

if TYPE_CHECKING:
    from codex_tools.places.places import Places

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_runs(
    state_dir: Path,
    *,
    engine: Engine,
    threads: Threads,
    max_runs: int,
    max_queue: int = MAX_QUEUE,
    roots: Sequence[Path] = (),
    budgets: Budgets = NO_BUDGETS,
    wait_for_limits: bool = False,
    places: Places | None = None,
) -> AsyncGenerator[Runs]:
    """Open a register of runs; leaving it ends all runs and the processes they have started.

    If *state_dir* cannot be used, or belongs to another user, a private temporary folder replaces
    it. Each result then carries a warning, because results are lost when the server ends.
    """
    with ExitStack() as stack:
        notes: tuple[str, ...] = ()
        try:
            store = await on_disk(RunStore, state_dir)
        except OSError as error:
            reason = error.strerror or str(error)
            logger.warning("the state folder %s cannot be used: %s", state_dir, reason)
            notes = (
                f"The state folder {state_dir} cannot be used ({reason}). Results will be lost when"
                " this server ends. The operator can set another folder with --state-dir.",
            )
            stand_in = await on_disk(StandIn)
            stack.callback(stand_in.remove)
            if stand_in.is_exposed:
                notes += (
                    f"This server's files are in {stand_in.path}, where commands of runs with"
                    " sandbox workspace-write can write.",
                )
            state_dir = stand_in.path
            store = await on_disk(RunStore, state_dir)
        stack.callback(store.close)
        writer = StateWriter()
        stack.callback(writer.close, WRITTEN_WITHIN_S)
        async with anyio.create_task_group() as tasks:
            runs = Runs(
                tasks,
                store,
                writer,
                state_dir=state_dir,
                sites=Sites(engine, threads, max_runs, waits=wait_for_limits, places=places),
                max_queue=max_queue,
                roots=roots,
                budgets=budgets,
                notes=notes,
                is_kept=not notes,
            )
            tasks.start_soon(prune, runs, store, state_dir, places)
            try:
                yield runs
            finally:
                tasks.cancel_scope.cancel()
