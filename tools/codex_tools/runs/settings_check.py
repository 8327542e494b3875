"""Compare the settings that Codex records for a turn with those that it was started with.

Codex may ignore its command line without a word: with machine requirements, 0.147 to 0.171 drop
`-s` (seen), and a wrapper around Codex can do anything. Codex writes the settings into the rollout
when the turn begins, before the model's first answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from codex_tools.codex.errors import WiderThanAsked
from codex_tools.codex.sandbox import WIDTH, Sandbox, sandbox_of
from codex_tools.codex.turn_result import TurnProgress, TurnResult
from codex_tools.codex.workers import on_disk
from codex_tools.engines.engine import TurnRequest
from codex_tools.rollouts.threads import Threads
from codex_tools.rollouts.turn_record import Settings, SettingsFollower, TurnMark
from codex_tools.runs.turn_watch import run_watched

LOOK_EVERY_S = 0.05
"""Polling interval in seconds until the turn's settings are recorded."""

LOOK_AT_LEAST_EVERY_S = 2.0
"""Longest polling interval in seconds; later settings of the same turn are compared too."""


class SettingsCheck:
    """Watches the settings of one turn."""

    def __init__(
        self, threads: Threads, request: TurnRequest, mark: TurnMark, progress: TurnProgress
    ) -> None:
        self._threads = threads
        self._request = request
        self._mark = mark
        self._progress = progress
        self._follower: SettingsFollower | None = None
        self._seen: Settings | None = None
        self._excess: tuple[str, str, str] | None = None
        """What is wider than asked, what was asked and what Codex recorded."""

    async def run(self, turn: Callable[[], Awaitable[TurnResult]]) -> TurnResult:
        """Run *turn*, and end it as soon as its settings are wider than asked.

        Raises:
            WiderThanAsked: Codex recorded wider settings.
            CodexError: The error that *turn* raised.
        """
        if self._request.ephemeral:
            return await turn()  # Codex keeps no rollout.
        ending = await run_watched(turn, self._watch)
        await self._look()  # A short turn may have ended before the first look.
        if self._excess is not None:
            raise WiderThanAsked(*self._excess, self._progress.result())
        if isinstance(ending, Exception):
            raise ending
        assert ending is not None, "only wider settings end a turn"
        return ending

    async def _watch(self, turn: anyio.CancelScope) -> None:
        pause_s = LOOK_EVERY_S
        while self._excess is None:
            await anyio.sleep(pause_s)
            if self._progress.opened:
                await self._look()
                if self._seen is not None:
                    pause_s = min(pause_s * 2, LOOK_AT_LEAST_EVERY_S)
        turn.cancel()

    async def _look(self) -> None:
        if self._excess is None and self._progress.opened:
            await on_disk(self._compare_new, self._progress.opened, abandon=True)

    def _follow(self, thread_id: str) -> SettingsFollower | None:
        if self._request.review is not None:
            # The reviewer works in a thread of its own, which alone records settings.
            reviewer = self._threads.find_reviewer(thread_id)
            return self._threads.follow_settings(reviewer, TurnMark()) if reviewer else None
        fork = self._request.fork
        return self._threads.follow_settings(thread_id, self._mark, is_fork=fork)

    def _compare_new(self, thread_id: str) -> None:
        """Read and compare the settings recorded since the last call; accesses the disk."""
        try:
            if self._follower is None:
                self._follower = self._follow(thread_id)
            found = self._follower.read() if self._follower is not None else []
        except OSError:
            return
        for settings in found:
            if settings != self._seen:
                self._seen = settings
                self._excess = self._excess or find_excess(self._request, settings)


def find_excess(request: TurnRequest, recorded: Settings) -> tuple[str, str, str] | None:
    """Return what of *recorded* is wider than *request*, what was asked and what was recorded.

    None if nothing is. A sandbox that this server does not know is not compared.
    """
    sandbox = known_sandbox(recorded.sandbox)
    if sandbox is not None and WIDTH[sandbox] > WIDTH[request.sandbox]:
        return "sandbox", request.sandbox, str(recorded.sandbox)
    if recorded.cwd is not None and not _is_same(recorded.cwd, request.cwd):
        return "cwd", str(request.cwd), recorded.cwd
    by_model = recorded.reviewer not in (None, "user")
    if recorded.approval not in (None, "never") and by_model and request.approvals != "auto":
        # A model would then allow commands outside the sandbox.
        asker = f"{recorded.approval}, reviewed by {recorded.reviewer}"
        return "approval policy", "never", asker
    return None


def known_sandbox(recorded: str | None) -> Sandbox | None:
    """Return the sandbox mode that Codex recorded by this name; None for an unknown name."""
    if recorded == "external-sandbox":  # No sandbox by Codex itself.
        return "danger-full-access"
    return sandbox_of(recorded)


def find_differences(request: TurnRequest, recorded: Settings) -> list[str]:
    """Return a warning for each setting that differs from *request* without being wider."""
    warnings: list[str] = []
    if recorded.sandbox not in (None, request.sandbox):
        warnings.append(
            f"The sandbox was set to {request.sandbox}, but Codex recorded {recorded.sandbox}."
        )
    if request.model is not None and recorded.model not in (None, request.model):
        warnings.append(f"The model was set to {request.model}, but Codex used {recorded.model}.")
    return warnings


def _is_same(recorded: str, folder: Path) -> bool:
    try:
        return recorded == str(folder) or folder.samefile(recorded)
    except OSError:
        return False
