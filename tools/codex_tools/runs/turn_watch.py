"""Run a turn together with a task that watches it and may end it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio

from codex_tools.codex.turn_result import TurnResult


async def run_watched(
    turn: Callable[[], Awaitable[TurnResult]],
    watch: Callable[[anyio.CancelScope], Coroutine[Any, Any, None]],
) -> TurnResult | Exception | None:
    """Run *turn* and *watch* side by side until the turn has ended.

    Args:
        turn: Runs the turn.
        watch: Watches it. To end the turn, it cancels the scope that it gets.

    Returns:
        The turn's result, or the error that it raised, or None if *watch* has ended it. The error
        is returned because the task group would wrap it.
    """
    ending: TurnResult | Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, tasks.cancel_scope)
        try:
            ending = await turn()
        except Exception as error:
            ending = error
        tasks.cancel_scope.cancel()
    return ending
