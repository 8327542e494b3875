"""The errors of the core.

* CodexError
  x RequestError: refused before Codex was started
    + InvalidArguments
    + NotAllowed
    + TooDeep
    + PromptTooLarge
    + InvalidOutputSchema
    + CodexNotFound
    + CodexUnsupported
    + ThreadNotFound
    + ThreadBusy
    + UnknownRun
    + IndexUnavailable
  x Interrupted: the server died while Codex was at work
  x InternalFault: a fault of this server
  x TurnError: Codex was started, and `turn` tells what it had done by then
    + TurnFailed: Codex said so, or ended without a terminal event
    + TimedOut
    + Stalled
    + WrongThread
    + NoAnswer
    + OutputMismatch
    + Cancelled

Each error carries its facts and builds its own text: `message` says what
happened and `hint` what to do; `kind` is the contract's word for it. Only the
server turns one into a tool error.
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
    "codex_crashed",
    "too_deep",
    "unknown_run",
    "internal",
]


class CodexError(Exception):
    """What went wrong, in the words that the caller gets."""

    kind: ClassVar[Kind]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RequestError(CodexError):
    """The request was refused before Codex was started."""


class InvalidArguments(RequestError):
    """An argument is unknown, of the wrong type, or names a thing that is not there."""

    kind = "invalid_arguments"

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems), "Correct the arguments and call again.")


class NotAllowed(RequestError):
    """The operator's policy forbids it; no caller can lift that."""

    kind = "not_allowed"

    def __init__(self, what: str, limit: str, option: str, danger: str = "") -> None:
        self.what, self.limit, self.option = what, limit, option
        self.danger = danger
        """What a person should know before allowing it; empty if nobody is to be asked."""
        super().__init__(
            f"{what} is not allowed: {limit}.",
            f"Ask for less, or ask the person who runs this server to change {option}.",
        )

    def declined(self) -> NotAllowed:
        """Return the error for a request that the person was asked about."""
        limit = f"{self.limit}, and the person did not accept an exception"
        return NotAllowed(self.what, limit, self.option)


class TooDeep(RequestError):
    """The server lives inside a run already, and runs may not be nested so deeply."""

    kind = "too_deep"

    def __init__(self, depth: int, limit: int) -> None:
        self.depth, self.limit = depth, limit
        super().__init__(
            f"This server is used from inside {depth} of its own runs; at most {limit} may be"
            " inside each other.",
            "You are that agent: do the work yourself. The person who runs this server can allow"
            " more with --max-depth.",
        )


class PromptTooLarge(RequestError):
    """The prompt has more characters than Codex takes (1,048,576 since 0.120)."""

    kind = "prompt_too_large"

    def __init__(self, characters: int, limit: int) -> None:
        self.characters, self.limit = characters, limit
        super().__init__(
            f"The prompt has {characters:,} characters; at most {limit:,} are taken.",
            "Put the material into files inside cwd and name them in the prompt.",
        )


class InvalidOutputSchema(RequestError):
    """`output_schema` is not a JSON Schema that an answer can be checked against."""

    kind = "invalid_output_schema"

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(
            f"output_schema cannot be used: at {path}: {problem}",
            "Correct the schema at that path. It has to be JSON Schema (2020-12), every $ref inside"
            " it, and within what OpenAI's strict mode can be made to express.",
        )


class CodexNotFound(RequestError):
    """There is no Codex CLI, or what is configured as one is none."""

    kind = "codex_not_found"

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem,
            "Install Codex (npm install -g @openai/codex, or pip install openai-codex-cli-bin"
            " beside this server), or set --codex-bin or CODEX_BIN to its path.",
        )


class CodexUnsupported(RequestError):
    """The Codex that is installed lacks what was asked for."""

    kind = "codex_unsupported"

    def __init__(self, what: str, version: str, hint: str) -> None:
        self.what, self.version = what, version
        super().__init__(f"Codex {version} lacks {what}.", hint)


class ThreadNotFound(RequestError):
    """No rollout of that thread is on this machine, in this CODEX_HOME."""

    kind = "thread_not_found"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(
            message, hint or "Check the thread_id, or begin a new thread with codex_run."
        )


class ThreadBusy(RequestError):
    """Another run is at work in the thread."""

    kind = "thread_busy"
    retryable = True

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        super().__init__(
            f"Thread {thread_id} is busy: another run is at work in it.",
            "Wait until that run has ended, then call again; or begin a new thread.",
        )


class UnknownRun(RequestError):
    """No run of that id was kept, or it is at work in another server."""

    kind = "unknown_run"

    def __init__(self, run_id: str, problem: str = "is not known here") -> None:
        self.run_id = run_id
        super().__init__(
            f"Run {run_id} {problem}.",
            "Check the run_id; results are kept for two weeks. The thread itself can still be"
            " resumed by its thread_id.",
        )


class IndexUnavailable(RequestError):
    """The index over Codex's threads can be kept nowhere."""

    kind = "internal"
    retryable = True

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"The index over Codex's threads cannot be used: {problem}.",
            "Make room on the disk, or start the server with another --state-dir; Codex's own"
            " files are unharmed.",
        )


class Interrupted(CodexError):
    """The server that looked after the run has ended, and the run with it."""

    kind = "interrupted"
    retryable = True

    def __init__(self) -> None:
        super().__init__(
            "The server ended while this run was at work, and the run with it.",
            "What it had done by then is kept: continue with codex_resume.",
        )


class InternalFault(CodexError):
    """A fault of this server; its text stays in the server's own log."""

    kind = "internal"

    def __init__(self) -> None:
        super().__init__(
            "The server met an internal fault; its log on stderr has the details.",
            "Call again; if it happens again, report it with that log.",
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure in the contract's words; *message* is Codex's, secrets masked."""

    kind: Kind
    message: str
    hint: str
    retryable: bool


class TurnError(CodexError):
    """The turn did not end well; *turn* is what Codex had done by then."""

    def __init__(self, message: str, hint: str, turn: TurnResult) -> None:
        super().__init__(message, hint)
        self.turn = turn


class TurnFailed(TurnError):
    """Codex reported a failure, or died; `failure` says which kind."""

    kind = "turn_failed"

    def __init__(self, failure: Failure, turn: TurnResult) -> None:
        super().__init__(failure.message, failure.hint, turn)
        self.failure = failure


class TimedOut(TurnError):
    """The turn took longer than it was allowed to."""

    kind = "timed_out"
    retryable = True

    def __init__(self, timeout_s: float, last_words: str | None, turn: TurnResult) -> None:
        self.timeout_s = timeout_s
        super().__init__(
            f"The turn took longer than {timeout_s:g} s and was ended.{_heard(last_words)}",
            "What it had done by then is kept: continue with codex_resume, and give a"
            " larger timeout_s or a smaller task.",
            turn,
        )


class Stalled(TurnError):
    """Codex was silent for too long, with no command or tool at work."""

    kind = "stalled"
    retryable = True

    def __init__(self, stall_s: float, last_words: str | None, turn: TurnResult) -> None:
        self.stall_s = stall_s
        super().__init__(
            f"Codex made no progress for {stall_s:g} s and was ended.{_heard(last_words)}",
            "Check the network and the provider, then continue with codex_resume.",
            turn,
        )


class WrongThread(TurnError):
    """Codex opened another thread than the one to resume; it was ended at once."""

    kind = "wrong_thread"

    def __init__(self, asked: str, opened: str, turn: TurnResult) -> None:
        self.asked, self.opened = asked, opened
        super().__init__(
            f"Codex opened thread {opened or '(none)'} instead of {asked}, and was ended.",
            "This Codex cannot resume that thread; begin a new one with codex_run.",
            turn,
        )


class NoAnswer(TurnError):
    """The turn was completed without a message from the model."""

    kind = "no_answer"
    retryable = True

    def __init__(self, turn: TurnResult) -> None:
        super().__init__(
            "The turn was completed, but the model gave no answer.",
            "What it did stands (files_changed, commands); ask for the answer with codex_resume.",
            turn,
        )


class OutputMismatch(TurnError):
    """The answer does not satisfy `output_schema`; Codex itself checks nothing."""

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
    """The run was ended on request."""

    kind = "cancelled"

    def __init__(self, turn: TurnResult) -> None:
        super().__init__(
            "The run was cancelled.",
            "What it had done by then is kept: continue with codex_resume.",
            turn,
        )


def _heard(last_words: str | None) -> str:
    return f" Last heard from it: {last_words}" if last_words else ""
