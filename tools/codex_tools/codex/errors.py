"""Define the errors that tools and runs raise.

CodexError
* RequestError: the request was refused before Codex was started
  * InvalidArguments
  * NotAllowed
  * TooDeep
  * PromptTooLarge
  * InvalidOutputSchema
  * CodexNotFound
  * CodexUnsupported
  * ThreadNotFound
  * ThreadBusy
  * QueueFull (in `run_errors`)
  * FolderBusy (in `run_errors`)
  * UnknownRun (in `run_errors`)
  * IndexUnavailable
  * PlaceUnavailable (in `place_errors`)
  * PlaceRefused (in `place_errors`)
  * ThreadElsewhere (in `place_errors`)
  * DayBudgetExhausted (in `budget`)
  * NotIsolated (in `runs.isolation`)
  * ApplyConflict (in `runs.applying`)
* NotApplied (in `runs.applying`)
* Interrupted: the server process ended during the run
* InternalFault: a fault of this server
  * ServerReplaced: the files of this server were replaced or removed while it ran
* TurnError: Codex was started, and `turn` holds its work so far
  * TurnFailed: Codex reported a failure, or ended without a terminal event
  * TimedOut
  * Stalled
  * WrongThread
  * WiderThanAsked
  * FolderReplaced
  * NoAnswer
  * OutputMismatch
  * Cancelled
  * PlaceLost (in `place_errors`)
  * BudgetExhausted (in `budget`)

Each error carries its facts as attributes and builds its own text. `message` says what happened,
`hint` says what to do, and `kind` is the contract's name for the error. Only the server turns an
error into a tool error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from codex_tools.codex.turn_result import TurnResult

Kind = Literal[
    "invalid_arguments",
    "not_allowed",
    "codex_not_found",
    "codex_unsupported",
    "not_authenticated",
    "usage_limit",
    "rate_limited",
    "overloaded",
    "network",
    "context_window_exceeded",
    "model_unavailable",
    "invalid_request",
    "refused",
    "untrusted_directory",
    "bad_config",
    "thread_not_found",
    "thread_busy",
    "queue_full",
    "wrong_thread",
    "invalid_output_schema",
    "output_mismatch",
    "no_answer",
    "prompt_too_large",
    "turn_failed",
    "timed_out",
    "stalled",
    "cancelled",
    "interrupted",
    "budget_exhausted",
    "codex_crashed",
    "not_started",
    "apply_conflict",
    "place_unavailable",
    "place_lost",
    "thread_elsewhere",
    "too_deep",
    "unknown_run",
    "internal",
]


class CodexError(Exception):
    """Base class of all errors whose text the caller gets."""

    kind: ClassVar[Kind]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RequestError(CodexError):
    """The request was refused before Codex was started."""


class InvalidArguments(RequestError):
    """An argument is unknown, has the wrong type, or names something that does not exist."""

    kind = "invalid_arguments"

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems), "Correct the arguments and call again.")


class NotAllowed(RequestError):
    """The operator's policy forbids the request; no caller can lift that limit."""

    kind = "not_allowed"

    def __init__(self, what: str, limit: str, option: str, danger: str = "") -> None:
        self.what, self.limit, self.option = what, limit, option
        self.danger = danger
        """The risk that a person must know before allowing it; empty if no person may be asked."""
        super().__init__(
            f"{what} is not allowed: {limit}.",
            f"Request less, or ask the operator of this server to change {option}.",
        )

    def declined(self) -> NotAllowed:
        """Return the error for a request that the person was asked about and did not accept."""
        limit = f"{self.limit}, and the person did not accept an exception"
        return NotAllowed(self.what, limit, self.option)

    def unanswered(self, within_s: float) -> NotAllowed:
        """Return the error for a request about which the person gave no answer in time."""
        limit = f"{self.limit}, and the person gave no answer within {within_s:g} s"
        return NotAllowed(self.what, limit, self.option)


class TooDeep(RequestError):
    """This server already runs inside a run, and one more would exceed the nesting limit."""

    kind = "too_deep"

    def __init__(self, depth: int, limit: int) -> None:
        self.depth, self.limit = depth, limit
        super().__init__(
            f"This server already runs inside {depth} of its own runs; the limit of nested runs is"
            f" {limit}.",
            "You are the agent of such a run: do the work yourself. The operator of this server"
            " can raise the limit with --max-depth.",
        )


class PromptTooLarge(RequestError):
    """The prompt has more characters than Codex accepts (1,048,576 since 0.120)."""

    kind = "prompt_too_large"

    def __init__(self, characters: int, limit: int) -> None:
        self.characters, self.limit = characters, limit
        super().__init__(
            f"The prompt has {characters:,} characters; the limit is {limit:,}.",
            "Shorten the prompt: put the material into files inside cwd and name the files.",
        )


class InvalidOutputSchema(RequestError):
    """No answer can be validated against this `output_schema`."""

    kind = "invalid_output_schema"

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(
            f"output_schema cannot be used: at {path}: {problem}",
            "Correct the schema at that path. Use JSON Schema (2020-12), keep every $ref inside the"
            " schema, and use only what can be rewritten for OpenAI's strict mode.",
        )


class CodexNotFound(RequestError):
    """No Codex CLI was found, or the configured program is not one."""

    kind = "codex_not_found"

    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(
            problem,
            hint
            or "Install Codex (npm install -g @openai/codex, or pip install openai-codex-cli-bin"
            " beside this server), or set --codex-bin or CODEX_BIN to its path.",
        )


class CodexUnsupported(RequestError):
    """The installed version of Codex lacks what the request needs."""

    kind = "codex_unsupported"

    def __init__(self, what: str, version: str, hint: str) -> None:
        self.what, self.version = what, version
        super().__init__(f"Codex {version} lacks {what}.", hint)


class ThreadNotFound(RequestError):
    """CODEX_HOME on this machine holds no rollout of the thread."""

    kind = "thread_not_found"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(
            message, hint or "Check the thread_id, or begin a new thread with codex_run."
        )


def no_thread(thread_id: str, roots: Sequence[object], where: str = "") -> ThreadNotFound:
    """Return the error for a thread that is not there, or not inside *roots*: the same for both.

    A caller must not find out which threads of other folders exist. *where* names the place that
    was searched, beginning with a space.
    """
    if not roots:
        return ThreadNotFound(
            f"There is no thread {thread_id}{where}.",
            "Find its id with codex_sessions, or begin a new thread with codex_run.",
        )
    return ThreadNotFound(
        f"There is no thread {thread_id} in the folders of this server.",
        "Find its id with codex_sessions. Threads outside the roots are not used; the operator of"
        " this server can add their folder with --root.",
    )


class ThreadBusy(RequestError):
    """Another run is using the thread."""

    kind = "thread_busy"
    retryable = True

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(
            f"Thread {thread_id} is busy: another run is using it.",
            "Wait until that run has ended and call again, or begin a new thread with codex_run.",
        )


class IndexUnavailable(RequestError):
    """The index of Codex's threads cannot be opened or written."""

    kind = "internal"
    retryable = True

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"The index of Codex's threads cannot be used: {problem}.",
            "Free space on the disk, or start the server with another --state-dir. Codex's own"
            " files are unharmed.",
        )


class Interrupted(CodexError):
    """The server process that owned the run has ended, and the run with it."""

    kind = "interrupted"
    retryable = True

    def __init__(self) -> None:
        super().__init__(
            "The server process that owned this run ended, and the run with it.",
            "Work done so far is kept. Continue with codex_resume.",
        )


class InternalFault(CodexError):
    """A fault of this server; the details go only to the server's log."""

    kind = "internal"

    def __init__(
        self,
        message: str = "This server met an internal fault; its log on stderr has the details.",
        hint: str = "Call again. If the fault happens again, report it with that log.",
    ) -> None:
        super().__init__(message, hint)


class ServerReplaced(InternalFault):
    """An upgrade or a cleanup replaced or removed the files of this server while it ran."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"The files of this server were replaced or removed while it ran: {problem}.",
            "Restart this server, or reconnect to it in the client: it was updated. If it does not"
            " start, install it again.",
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that Codex reported, as an error kind of the contract."""

    kind: Kind
    message: str
    """Codex's own message, with secrets masked."""
    hint: str
    retryable: bool
    """True if the same call may succeed later."""


class TurnError(CodexError):
    """The turn was started and failed; *turn* holds what Codex did before that."""

    def __init__(self, message: str, hint: str, turn: TurnResult) -> None:
        super().__init__(message, hint)
        self.turn = turn


class TurnFailed(TurnError):
    """Codex reported a failure, or ended without a result; `failure` holds the kind."""

    kind = "turn_failed"

    def __init__(self, failure: Failure, turn: TurnResult) -> None:
        super().__init__(failure.message, failure.hint, turn)
        self.failure = failure


class TimedOut(TurnError):
    """The turn took longer than `timeout_s`."""

    kind = "timed_out"
    retryable = True

    def __init__(self, timeout_s: float, last_error: str | None, turn: TurnResult) -> None:
        self.timeout_s = timeout_s
        super().__init__(
            f"The turn took longer than {timeout_s:g} s and was stopped.{_last_error(last_error)}",
            "Work done so far is kept. Continue with codex_resume, with a larger timeout_s or a"
            " smaller task.",
            turn,
        )


class Stalled(TurnError):
    """Codex made no progress for `stall_s` while no command or tool call was open."""

    kind = "stalled"
    retryable = True

    def __init__(self, stall_s: float, last_error: str | None, turn: TurnResult) -> None:
        self.stall_s = stall_s
        super().__init__(
            f"Codex made no progress for {stall_s:g} s and was stopped.{_last_error(last_error)}",
            "Check the network and the provider, then continue with codex_resume.",
            turn,
        )


class WrongThread(TurnError):
    """Codex opened another thread than the one to resume, and was stopped at once."""

    kind = "wrong_thread"

    def __init__(self, asked: str, opened: str, turn: TurnResult) -> None:
        self.asked, self.opened = asked, opened
        super().__init__(
            f"Codex opened thread {opened or '(none)'} instead of {asked} and was stopped.",
            "This Codex cannot resume that thread. Begin a new thread with codex_run.",
            turn,
        )


class WiderThanAsked(TurnError):
    """Codex gave the turn more rights than it was asked to, and was stopped at once."""

    kind = "not_allowed"

    def __init__(self, what: str, asked: str, recorded: str, turn: TurnResult) -> None:
        self.what, self.asked, self.recorded = what, asked, recorded
        super().__init__(
            f"Codex was started with {what} {asked} but recorded {recorded} for this turn, and was"
            " stopped.",
            "Something on this machine overrides the settings of this server: requirements"
            " (/etc/codex/requirements.toml), managed settings, or a wrapper around Codex. Its"
            " administrator must allow the settings that were asked for.",
            turn,
        )


class FolderReplaced(TurnError):
    """A folder of the run was replaced during the run, so commands may have worked elsewhere."""

    kind = "not_allowed"

    def __init__(self, folder: str, turn: TurnResult) -> None:
        self.folder = folder
        hint = "Commands may have written elsewhere: check where the path leads before continuing."
        super().__init__(f"{folder} was replaced by another folder or a link.", hint, turn)


class NoAnswer(TurnError):
    """The turn completed without a message from the model."""

    kind = "no_answer"
    retryable = True

    def __init__(self, turn: TurnResult) -> None:
        super().__init__(
            "The turn completed, but the model gave no answer.",
            "Work done so far is kept. Ask for the answer with codex_resume.",
            turn,
        )


class OutputMismatch(TurnError):
    """The answer does not match `output_schema`; Codex itself does not validate it."""

    kind = "output_mismatch"
    retryable = True

    def __init__(self, problems: Sequence[str], turn: TurnResult) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "The answer does not match output_schema: " + "; ".join(problems),
            "Call codex_resume with the same output_schema and name these problems in the prompt.",
            turn,
        )


class Cancelled(TurnError):
    """The run was stopped on request."""

    kind = "cancelled"

    def __init__(self, turn: TurnResult, by: str | None = None) -> None:
        super().__init__(
            f"The run was cancelled on request of {by}." if by else "The run was cancelled.",
            "Work done so far is kept. Continue with codex_resume.",
            turn,
        )


def _last_error(last_error: str | None) -> str:
    return f" Codex's last error: {last_error}" if last_error else ""
