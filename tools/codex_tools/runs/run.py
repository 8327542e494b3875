"""Define a run, and make its result from the turn and the rollout."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import anyio

from codex_tools.codex.errors import CodexError, RequestError
from codex_tools.codex.masking import mask
from codex_tools.codex.questions import Question
from codex_tools.codex.record import Usage
from codex_tools.codex.turn_result import ChangeKind, TurnProgress, TurnResult
from codex_tools.engines.engine import TurnRequest
from codex_tools.rollouts.threads import ThreadState
from codex_tools.rollouts.turn_record import TurnMark
from codex_tools.rollouts.usage_follower import Spent
from codex_tools.runs.open_question import shown_question
from codex_tools.runs.result import EffectiveSettings, RunResult, RunStatus, make_result
from codex_tools.runs.store import Recorded
from codex_tools.schemas.output_schema import Output
from codex_tools.worktree.changes import Changes, SeenBy, merge
from codex_tools.worktree.tree_changes import Changes as Diff

Files = tuple[tuple[str, ChangeKind, SeenBy], ...]
"""Changed files: the path, the kind of the change, and its source."""


class WorkCopy(Protocol):
    """The copy of a project that a run works in, here or at another place; see `RunCopy`."""

    folder: Path
    changes: Diff | None
    seen: Changes | None
    problem: str

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """Paths that are not in the copy, each with the reason."""
        ...

    def at_home(self, error: RequestError) -> RequestError:
        """Let *error* name the person's folder instead of the copy, and return it."""
        ...

    def finish(self) -> None:
        """Find what was changed, as far as that waits for this machine only."""
        ...


@dataclass(slots=True)
class Run:
    """One run; other modules may read its fields, and only the runs package sets them."""

    run_id: str
    request: TurnRequest
    before: ThreadState | None
    """The thread's state before the run; None if the run begins a new thread."""
    created_at: str
    output: Output | None = None
    """The schema that the answer must satisfy."""
    caller: str = ""
    warnings: tuple[str, ...] = ()
    started_at: float | None = None
    """None while the run is queued."""
    waiting_until: datetime | None = None
    """When the usage limit resets that the run waits for in the queue; None if it does not."""
    ended_at: float | None = None
    ended: str = ""
    """Time of the end, as ISO 8601 in UTC."""
    progress: TurnProgress = field(default_factory=TurnProgress)
    attempts: int = 0
    """Number of turns started."""
    copy: WorkCopy | None = None
    """The copy of the project that it works in; None if it is not isolated, or still queued."""
    seen: Changes | None = None
    """Changes of the work tree since the run began; None until they are known."""
    unseen: str | None = None
    """The reason why they could not be found; None if they could."""
    diff: Diff | None = None
    """The lines that those changes touched; None if only names are known, or in a copy."""
    undiffed: str = "the state folder of this server cannot be used"
    """The reason why the lines are not known."""
    look: Callable[[], Awaitable[None]] | None = None
    """Finds what it changed in the person's folder; None if it cannot change anything there."""
    answer: str | None = None
    """The answer in full if the result contains a shortened one; set when the run has ended."""
    used: Usage | None = None
    """Usage of its turns so far, as far as Codex reported it."""
    spent: Spent = field(default_factory=Spent)
    """What its turns used so far, as far as the rollout recorded it while they ran."""
    counted: int = 0
    """Number of turns whose usage is in `used`."""
    start: TurnMark = field(default_factory=TurnMark)
    """Where the rollout's records of this run begin."""
    mark: TurnMark = field(default_factory=TurnMark)
    """Where the rollout's records of its latest turn begin."""
    ending: tuple[TurnResult, Any] | CodexError | None = None
    """What its turns came to, while the files that they changed are looked at: the result and the
    answer as data, or the error."""
    _asked: tuple[Question, ...] = ()
    left_to_caller: set[str] = field(default_factory=set[str])
    """Ids of questions for which no person could be asked."""
    handed_back: set[str] = field(default_factory=set[str])
    """Ids of questions that were returned as the result of a call, which the client repeats."""
    on_wake: Callable[[], None] = lambda: None
    done: anyio.Event = field(default_factory=anyio.Event)
    changed: anyio.Event = field(default_factory=anyio.Event)
    """Set and replaced when the run's questions have changed, and when it has ended."""
    outcome: RunResult | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    stopped: bool = False
    """True if the run was asked to stop, by codex_stop or by cancelling its call."""
    stopped_by: str | None = None
    """The process that asked for it; None if that was a client of this server."""

    def stop(self, by: str | None = None) -> None:
        """Stop the run and all that Codex has started for it; `done` is set at its end.

        *by* names another process that asks for it.
        """
        # A run that the server's end has interrupted already does not become a stopped one.
        if not self.scope.cancel_called:
            self.stopped, self.stopped_by = True, by
        self.scope.cancel()

    def interrupt(self) -> None:
        """End the run because the server ends."""
        self.scope.cancel()

    def result(self) -> RunResult:
        """Return the run's result, final or so far."""
        if self.outcome is not None:
            return self.outcome
        turn = self.progress.result()
        result = make_result(
            self.status,
            run_id=self.run_id,
            turn=turn,
            usage=self.spent.usage,
            cost_usd=self.spent.cost_usd,
            setting=requested(self),
            files=self.in_project(merge(turn.files_changed, None)),
            copy=self.copy_folder,
            duration_s=self.duration_s,
            attempts=self.attempts,
            warnings=self.warnings,
            questions=tuple(map(shown_question, self.questions)),
        )
        if self.questions:
            return result.model_copy(update={"next": self._next_answer(self.questions[0])})
        if self.waiting_until is None:
            return result
        doing = self.doing
        return result.model_copy(update={"next": f"{doing[0].upper()}{doing[1:]}. {result.next}"})

    @property
    def status(self) -> RunStatus:
        """The status of a run that has not ended."""
        if self.started_at is None or self.waiting_until is not None:
            return "queued"
        return "needs_answer" if self.questions else "running"

    @property
    def questions(self) -> tuple[Question, ...]:
        """What Codex waits for at the moment, the oldest question first."""
        return () if self.outcome is not None else self.progress.questions

    def needs_caller(self, *, attended: bool) -> bool:
        """Return True if Codex waits for the agent that delegated the task.

        *attended* is True if a person is being asked what a person may answer.
        """
        return any(
            each.for_caller or not attended or each.id in self.left_to_caller | self.handed_back
            for each in self.questions
        )

    def has_new_questions(self) -> bool:
        """Return True, and wake waiting calls, if its questions have changed since last time."""
        if self.questions == self._asked:
            return False
        self._asked = self.questions
        self.wake()
        return True

    def wake(self) -> None:
        """Wake those that wait for a change of the run's questions, or for its end."""
        self.changed.set()
        self.changed = anyio.Event()
        self.on_wake()

    def _next_answer(self, question: Question) -> str:
        within_s = round(max(question.until - anyio.current_time(), 0))
        unanswered = f"Unanswered, it is declined in {within_s} s, and the run goes on."
        if self.request.answered_by == "person" and not question.for_caller:
            return (
                "Only a person may answer: call codex_wait with run_ids"
                f' ["{self.run_id}"], and the client asks them. {unanswered}'
            )
        content = " With accept, give content that matches its schema." if question.schema else ""
        return (
            f'Answer with codex_answer, run_id "{self.run_id}", question_id "{question.id}" and'
            f" decision accept or decline.{content} {unanswered}"
        )

    @property
    def copy_folder(self) -> str | None:
        """The folder of the run's copy."""
        return None if self.copy is None else str(self.copy.folder)

    def in_project(self, files: Files) -> Files:
        """Return changed files with those in the run's copy relative to the project.

        They are not in the person's folder, so a path there would be wrong.
        """
        if self.copy is None:
            return files
        prefix = f"{self.copy.folder}/"
        return tuple((path.removeprefix(prefix), kind, by) for path, kind, by in files)

    @property
    def duration_s(self) -> float:
        """Seconds from the start of Codex to the end of the run, or until now."""
        if self.started_at is None:
            return 0.0
        return (self.ended_at or anyio.current_time()) - self.started_at

    @property
    def recorded(self) -> Recorded:
        """Where the rollout holds the result, for another server if this one dies."""
        start, is_kept = self.start, not self.request.ephemeral
        has_schema = self.output is not None
        return Recorded(start.offset, start.since_ms, has_schema, is_kept, start.segment)

    @property
    def headline(self) -> str:
        """Current activity as text for people: "running pytest -q · 3 files changed"."""
        return " · ".join((self.doing, *self.counts))

    @property
    def doing(self) -> str:
        """Current activity, or the status, as text for people."""
        if self.outcome is not None:
            return self.outcome.status.replace("_", " ")
        if self.waiting_until is not None:
            return f"waiting until {_clock(self.waiting_until)}: the usage limit is reached"
        if self.started_at is None:
            return "waiting in the queue: the limit --max-runs is reached"
        return mask(self.progress.doing)

    @property
    def counts(self) -> tuple[str, ...]:
        """What the run at work has done so far: "3 files changed", "45k tokens"."""
        if self.outcome is not None:
            return ()
        files, tokens = self.progress.files_changed, self.spent.tokens
        changed = (f"{files} file{'s' if files > 1 else ''} changed",) if files else ()
        return (*changed, f"{short_count(tokens)} tokens") if tokens else changed


def _clock(at: datetime) -> str:
    """Return a time as text, with its date unless it is today: 14:05, Jan 1 2030 14:05."""
    if at.date() == datetime.now().astimezone().date():
        return f"{at:%H:%M}"
    return f"{at:%b} {at.day} {at:%Y %H:%M}"


def short_count(number: int) -> str:
    """Return *number* in at most four characters: 950, 1.2k, 45k, 3.4M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 1000)):
        if number >= size:
            tenths = number * 10 // size
            return f"{tenths // 10}{unit}" if tenths >= 100 else f"{tenths / 10:g}{unit}"
    return str(number)


def requested(run: Run) -> EffectiveSettings:
    """Return the settings that *run* was started with."""
    request = run.request
    return EffectiveSettings(
        model=request.model,
        reasoning_effort=request.reasoning_effort,
        sandbox=request.sandbox,
        cwd=str(request.cwd),
        codex_version=request.program.version_text,
        can_resume=not request.ephemeral,
        place=request.place,
    )


async def wait_while_called(run: Run, wait_s: float, *, attended: bool = False) -> RunResult:
    """Wait for *run*, at most *wait_s* seconds, and return its result, final or so far.

    A caller that cancels the call while it waits ends the run. The run continues if the call
    returns before the run has ended: after *wait_s*, or when the caller must answer a question.
    *attended* is True if a person is being asked what a person may answer.
    """
    try:
        with anyio.move_on_after(wait_s):
            while not run.done.is_set() and not run.needs_caller(attended=attended):
                await run.changed.wait()
    except anyio.get_cancelled_exc_class():
        run.stop()
        with anyio.CancelScope(shield=True):
            await run.done.wait()
        raise
    return run.result()
