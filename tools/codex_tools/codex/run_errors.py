"""Define the errors of the register of runs: it has no room for a run, or does not know one."""

from __future__ import annotations

from codex_tools.codex.errors import RequestError


class QueueFull(RequestError):
    """As many runs are queued as the operator allows."""

    kind = "queue_full"
    retryable = True

    def __init__(self, queued: int, limit: int) -> None:
        self.queued, self.limit = queued, limit
        super().__init__(
            f"The queue is full: {queued} runs are queued; the limit is {limit}.",
            "Wait with codex_wait until runs have ended, and call again. The operator of this"
            " server can raise the limit with --max-queue.",
        )


class FolderBusy(RequestError):
    """Another run could replace a folder of this run by a link, or this run one of that run's."""

    kind = "not_allowed"
    retryable = True

    def __init__(self, folder: str, other: str, run_id: str) -> None:
        self.folder, self.other, self.run_id = folder, other, run_id
        super().__init__(
            f"Not allowed while {run_id} runs: {folder} or {other} could be replaced by a link.",
            f"Wait for {run_id} with codex_wait, or use the same cwd or sandbox read-only.",
        )


class UnknownRun(RequestError):
    """No run with that id is kept, or it belongs to another server process."""

    kind = "unknown_run"

    def __init__(self, run_id: str, problem: str = "is not known to this server") -> None:
        self.run_id = run_id
        super().__init__(
            f"Run {run_id} {problem}.",
            "Check the run_id; results are kept for two weeks. Codex's thread is kept longer: find"
            " it with codex_sessions, then resume it by its thread_id.",
        )
