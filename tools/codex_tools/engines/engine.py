"""Define an engine: a way to run one turn of Codex.

Tools and runs import only this file; `choose.py` alone names the existing engines. To add an
engine, add a file to this folder and a line to `choose.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from codex_tools.codex.budget import Limit
from codex_tools.codex.errors import CodexUnsupported
from codex_tools.codex.events import Event
from codex_tools.codex.json_object import Json
from codex_tools.codex.program import Program
from codex_tools.codex.questions import Approvals
from codex_tools.codex.sandbox import Isolation, Sandbox
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.engines.guard_lease import GuardLease
from codex_tools.engines.model_list import ModelList

Keep = Callable[[bytes], None]
"""Function that gets each line as Codex wrote it, before parsing; it must return at once."""


@dataclass(frozen=True, slots=True)
class ReviewTarget:
    """What Codex's own reviewer looks at."""

    kind: Literal["uncommitted", "base", "commit", "custom"]
    """`custom` takes the prompt of the turn; the others have no prompt."""
    name: str = ""
    """The branch to compare with, or the full id of the commit; already checked."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """Describe one turn completely: all values are checked, and the engine decides nothing."""

    program: Program
    """The Codex to run, as `Engine.prepare` returned it."""
    prompt: str
    cwd: Path
    sandbox: Sandbox
    timeout_s: float
    stall_s: float
    thread_id: str | None = None
    """The thread to resume or to fork, as a UUID; None begins a new one."""
    fork: bool = False
    """True to begin a new thread with the history of `thread_id`, which stays as it is."""
    review: ReviewTarget | None = None
    """What to review in a new thread; None for a turn that is no review."""
    model: str | None = None
    reasoning_effort: str | None = None
    profile: str | None = None
    output_schema: Json | None = None
    images: tuple[Path, ...] = ()
    add_dirs: tuple[Path, ...] = ()
    web_search: bool | None = None
    config: tuple[tuple[str, str], ...] = ()
    """Pairs of a dotted key and its value in TOML."""
    limits: tuple[Limit, ...] = ()
    """Tokens and money that the run may use; not the engine's business, but that of `runs`."""
    approvals: Approvals = "never"
    """Whether Codex may ask before it leaves the sandbox; only a live engine can ask."""
    answered_by: Literal["person", "caller"] = "caller"
    """Who may allow what the sandbox does not; not the engine's business, but that of `runs`."""
    ask_caller: bool = False
    """True to give the model a tool with which it asks the agent that delegated the task."""
    isolation: Isolation = "none"
    """Whether `runs` runs the turn in a copy of the project; `cwd` is the copy's by then."""
    place: str = "here"
    """Where `runs` runs the turn: the name of a place."""
    skip_git_repo_check: bool = False
    ephemeral: bool = False
    base_instructions: str | None = None
    """Text that replaces Codex's own instructions to the model."""
    environment: EnvironmentRules = field(default_factory=EnvironmentRules)
    keep_rules: bool = False
    """True to let Codex load its rules, which can let commands run outside the sandbox."""
    project_files: Mapping[str, str] | None = None
    """The files that Codex may load from the project, with the ids of their contents; None for
    whatever is there. The turn must not start if others are there by then."""
    depth: int = 1
    """Number of nested runs, this one included."""
    scratch: Path | None = None
    """Beginning of the path of a folder for files that Codex reads a part of the turn from.

    It must be where no command of a run can write. None for a folder of the engine's choice.
    """
    held: Sequence[int] = field(default=())
    """File descriptors to keep open until no process of the turn is left (the thread's lock)."""
    lease: GuardLease | None = None
    """What a worker renews for its server; None on the server's own machine."""

    @property
    def asks(self) -> bool:
        """True if the turn may ask, which only an engine with a `Handle` can do."""
        return self.approvals == "ask" or self.ask_caller

    @property
    def resumed(self) -> str | None:
        """The thread that the turn continues; None if the turn begins a new one."""
        return None if self.fork else self.thread_id


@dataclass(frozen=True, slots=True)
class Plan:
    """What an engine would start for a turn."""

    argv: tuple[str, ...]
    environment: tuple[str, ...]
    """The names of the variables in Codex's environment."""
    warnings: tuple[str, ...] = ()


class EngineUnfit(CodexUnsupported):
    """The engine cannot run this turn. Nothing was sent to a model: another engine may run it."""


class EngineFailed(EngineUnfit):
    """The engine should have been able to run this turn, and did not begin it."""


class EngineAbsent(EngineFailed):
    """The engine's program does not start with this Codex; other turns would not begin either."""


class Engine(Protocol):
    """A way to run turns of Codex."""

    @property
    def name(self) -> str:
        """Name of the engine, as the operator chooses it: `exec`, `app-server`, `auto`."""
        ...

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Let the engine keep processes ready for later turns until the context manager exits.

        Nothing is started before the first turn; turns also run without it.
        """
        ...

    async def prepare(self, cwd: Path, rules: EnvironmentRules) -> Program:
        """Find Codex and return its path, version and abilities.

        Args:
            cwd: The folder of the turn, after its check: a program that starts Codex may run
                there to say which version it starts.
            rules: The operator's rules for the environment of that program.

        Raises:
            CodexNotFound: No Codex was found, or it does not answer.
            CodexUnsupported: Codex is older than the oldest supported version.
        """
        ...

    async def plan_turn(self, request: TurnRequest) -> Plan:
        """Return what `open_turn` would start; start nothing and write nothing.

        Raises:
            CodexUnsupported: This version of Codex lacks an option that the turn needs.
            NotAllowed: A path resolves to another place than when it was checked.
        """
        ...

    async def list_models(self, program: Program, rules: EnvironmentRules) -> ModelList | None:
        """Return the models that *program* offers; None if it does not say so in a few seconds.

        Args:
            program: The Codex to ask, as `prepare` returned it.
            rules: The operator's rules for its environment.
        """
        ...

    def open_turn(
        self, request: TurnRequest, keep: Keep
    ) -> AbstractAsyncContextManager[AsyncGenerator[Event]]:
        """Start a turn; the context manager yields its events, the last one an ExitedEvent.

        When the context manager exits, for any reason, no process started by the turn is alive,
        except the user's `notify` program, which may take a few seconds more.

        Raises:
            CodexUnsupported: This version of Codex lacks an option that the turn needs.
            NotAllowed: A path resolves to another place than when it was checked.
        """
        ...
