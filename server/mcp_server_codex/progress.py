"""Send the progress of a call to the client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
from mcp.server.session import ServerSession

from codex_tools.codex.clean_text import clean
from codex_tools.runs.run import Run

MESSAGE_LIMIT = 200
"""Characters of a progress message; Claude Code cuts longer ones."""


POLL_EVERY_S = 0.1
"""Polling interval in seconds for the runs of a call."""

REPORT_EVERY_S = 0.5
"""Minimum time in seconds between two messages."""

FIRST_WITHIN_S = 0.3
"""Maximum time in seconds until the first message of a call that has no run yet."""

REPEAT_EVERY_S = 9.0
"""Seconds after which an unchanged message is sent again."""


class ProgressReporter:
    """Sends the progress of one call's runs as messages.

    The reporter polls the runs instead of being called by them. So a client that does not read
    delays only these messages.
    """

    def __init__(self, session: ServerSession) -> None:
        self._session = session
        self._runs: list[Run] = []
        self._doing: Callable[[], str] | None = None
        self._start = anyio.current_time()
        self._reported: set[str] = set()

    def watch(self, run: Run) -> None:
        """Include *run* in the messages from now on."""
        self._runs.append(run)

    def report(self, doing: Callable[[], str]) -> None:
        """Send the text that *doing* returns while the call has no run."""
        self._doing = doing

    @asynccontextmanager
    async def reporting(self) -> AsyncGenerator[None]:
        """Send messages while the block runs."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._report)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def _report(self) -> None:
        count, last, last_at = 0, "", -REPORT_EVERY_S
        while True:
            now = anyio.current_time()
            headline, new = self._headline(), self._unreported()
            if count == 0:
                due = bool(self._runs) or now - self._start >= FIRST_WITHIN_S
            else:
                changed = (headline != last or new) and now - last_at >= REPORT_EVERY_S
                due = changed or now - last_at >= REPEAT_EVERY_S
            if due:
                count += 1
                message = " · ".join([_duration(now - self._start), headline, *new])
                await self._session.report_progress(count, None, message[:MESSAGE_LIMIT])
                self._reported.update(each for each in new if each in message[:MESSAGE_LIMIT])
                last, last_at = headline, now
            await anyio.sleep(POLL_EVERY_S)

    def _headline(self) -> str:
        if not self._runs:
            return "working" if self._doing is None else self._doing()
        room = (MESSAGE_LIMIT - 110 - 3 * (len(self._runs) - 1)) // len(self._runs)
        return " | ".join(_headline_of(run, room) for run in self._runs)[: MESSAGE_LIMIT - 110]

    def _unreported(self) -> list[str]:
        ids: list[str] = []
        for run in self._runs:
            ids += [f"run_id {run.run_id}"]
            if run.progress.thread_id is not None:
                ids += [f"thread_id {run.progress.thread_id}"]
        return [each for each in ids if each not in self._reported]


def _headline_of(run: Run, room: int) -> str:
    """Return a run's headline in *room* characters; its counts are cut last."""
    counts = "".join(f" · {count}" for count in run.counts)
    return _cut(_cut(clean(run.doing), max(room - len(counts), room // 2)) + counts, room)


def _cut(text: str, limit: int) -> str:
    """Return *text* cut at the end to at most *limit* characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"
