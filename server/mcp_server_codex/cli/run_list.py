"""Read the runs of a state folder for the commands `runs`, `watch`, `show` and `stop`.

Runs of all server processes are there. A run is live if its server process is; what it does now is
read from its events. Nothing is written here, except what an isolated run has changed whose server
died.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from codex_tools.codex.errors import CodexError
from codex_tools.codex.json_object import Json
from codex_tools.codex.masking import is_cut_of, quote
from codex_tools.codex.paths import in_roots
from codex_tools.codex.run_errors import UnknownRun
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.threads import Threads, local_threads
from codex_tools.runs.activity import Activity
from codex_tools.runs.ending import revise
from codex_tools.runs.kept_result import refreshed
from codex_tools.runs.result import RunResult
from codex_tools.runs.sites import HERE
from codex_tools.runs.store import StoredRun, StoredRuns
from mcp_server_codex.settings import Settings

LIVE = ("running", "queued")
"""The statuses of a run that has not ended."""

SHORT_LIMIT = 300
"""Maximum characters of an answer or a message in a list."""

_CANDIDATES = 5
"""Maximum number of ids that are named if several begin as the one that was asked for."""


class StateUnusable(CodexError):
    """The state folder cannot be read, or others could have written into it."""

    kind = "internal"

    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(
            f"The state folder {folder} cannot be used ({error.strerror or error}).",
            "Name the folder of your servers with --state-dir, or correct its owner and mode.",
        )


class UnclearRun(CodexError):
    """No run, or more than one, has an id that begins like the one that was asked for."""

    kind = "unknown_run"

    def __init__(self, problem: str) -> None:
        super().__init__(problem, "`mcp-server-codex runs` lists the runs with their ids.")


class RunList:
    """The runs of a state folder that are inside the roots."""

    def __init__(self, settings: Settings) -> None:
        """Open the state folder.

        Raises:
            StateUnusable: It cannot be used.
        """
        self.folder = settings.state_dir
        self._settings = settings
        try:
            self.store = StoredRuns.open(settings.state_dir)
            self.store.ids()
        except OSError as error:
            raise StateUnusable(settings.state_dir, error) from None
        self._threads: dict[str, Threads] = {}
        self._known: dict[str, tuple[tuple[int, int], StoredRun | None]] = {}
        """Records that no longer change, by id, each with the time and size of its file."""
        self._activities: dict[str, Activity] = {}

    def read(self, limit: int) -> Json:
        """Return the newest *limit* runs, the newest first, and all live runs; and their number.

        A live run is in the list however old it is.
        """
        found = [(run_id, run) for run_id in self.store.ids() if (run := self._run(run_id))]
        found.sort(key=lambda each: (each[1].created_at, each[0]), reverse=True)
        shown = [
            self.about(run)
            for place, (_, run) in enumerate(found)
            if place < limit or run.result.status in LIVE
        ]
        live = {run["run_id"] for run in shown if run["status"] in LIVE}
        self._activities = {key: each for key, each in self._activities.items() if key in live}
        return {"runs": shown, "total": len(found), "state_dir": str(self.folder)}

    def find(self, prefix: str) -> StoredRun:
        """Return the run whose id begins with *prefix*, which may lack the `run_`.

        Raises:
            UnclearRun: There is no such run, or more than one.
            UnknownRun: Its record cannot be read.
        """
        whole = prefix if prefix.startswith("run_") else f"run_{prefix}"
        ids = sorted(self.store.ids(whole)) if prefix else []
        if self._settings.policy.roots:
            ids = [run_id for run_id in ids if self._run(run_id) is not None]
        if not ids:
            raise UnclearRun(f"There is no run {quote(prefix, 100)!r} in {self.folder}.")
        if len(ids) > 1:
            more = ", …" if len(ids) > _CANDIDATES else ""
            names = ", ".join(ids[:_CANDIDATES])
            raise UnclearRun(f"{len(ids)} runs begin with {quote(prefix, 100)!r}: {names}{more}.")
        found = self._run(ids[0])
        if found is None:
            raise UnknownRun(ids[0])
        return found

    def whole(self, run: StoredRun) -> RunResult:
        """Return the result of a run with its answer in full, and the state of its changes."""
        result = refreshed(self._settings.state_dir, run.result)
        answer = self.store.read_answer(result.run_id or "")
        if answer is None or not is_cut_of(result.final_response or "", answer):
            return result
        return result.model_copy(update={"final_response": answer})

    def about(self, run: StoredRun) -> Json:
        """Return what a list says about a run, secrets masked; docs/runs.md describes the fields.

        What a live run does is read from its events.
        """
        result = run.result
        is_live = result.status in LIVE
        doing, files = None, len(result.files_changed)
        if result.status == "running":
            activity = self._activity(result.run_id or "")
            doing, files = activity.doing, activity.files_changed
        elif is_live:
            sentence = result.next.partition(": ")[0]
            is_limited = sentence.startswith("Waiting until")
            doing = sentence.replace("W", "w", 1) if is_limited else "waiting in the queue"
        return {
            "run_id": result.run_id,
            "status": result.status,
            "created_at": run.created_at,
            "age_s": _seconds_since(run.created_at),
            "ended_at": None if is_live else run.updated_at,
            "duration_s": None if is_live else result.duration_s,
            "doing": doing,
            "files_changed": files,
            "usage": result.usage.model_dump() if result.usage is not None else None,
            "cost_usd": result.cost_usd,
            "thread_id": result.thread_id,
            "cwd": result.cwd,
            "place": result.place,
            "sandbox": result.sandbox,
            "model": result.model,
            "reasoning_effort": result.reasoning_effort,
            "error": None
            if result.error is None
            else {"kind": result.error.kind, "message": quote(result.error.message, SHORT_LIMIT)},
            "answer": None
            if result.final_response is None
            else quote(result.final_response, SHORT_LIMIT),
        }

    def _activity(self, run_id: str) -> Activity:
        activity = self._activities.get(run_id)
        if activity is None:
            activity = self._activities[run_id] = Activity(self.store.log_path(run_id))
        activity.look()
        return activity

    def _run(self, run_id: str) -> StoredRun | None:
        """Return a run inside the roots; None if there is no such run, or it cannot be read."""
        try:
            state = (self.store.folder(run_id) / "run.json").lstat()
        except OSError:
            return None
        key = (state.st_mtime_ns, state.st_size)
        known = self._known.get(run_id)
        if known is not None and known[0] == key:
            return known[1]
        run = self.store.load(run_id)
        if run is not None and not in_roots(run.result.cwd, self._settings.policy.roots):
            run = None
        if run is not None and run.recorded is not None:
            run = revise(run, self._threads_at(run.result.place))
        if run is None or run.result.status not in LIVE:
            self._known[run_id] = (key, run)
        return run

    def _threads_at(self, place: str) -> Threads:
        found = self._threads.get(place)
        if found is None:
            settings = self._settings
            prices = read_prices(settings.prices)
            if place == HERE:
                found = local_threads(prices, settings.state_dir)
            else:
                from codex_tools.places.mirror import Mirror, MirrorThreads

                found = MirrorThreads(Mirror(settings.state_dir, place), prices)
            self._threads[place] = found
        return found


def _seconds_since(stamp: str) -> float | None:
    try:
        then = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    then = then if then.tzinfo is not None else then.replace(tzinfo=UTC)
    return round(max(0.0, (datetime.now(UTC) - then).total_seconds()), 1)
