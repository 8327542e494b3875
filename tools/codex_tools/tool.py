"""Define a tool, and the context that each call of a tool gets."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from codex_tools.arguments import read_arguments
from codex_tools.codex.clean_text import clean
from codex_tools.codex.errors import CodexError, InvalidArguments, NotAllowed
from codex_tools.codex.json_object import Json, write_exactly
from codex_tools.codex.program import NOT_ASKED
from codex_tools.codex.record import Record
from codex_tools.codex.turn_result import TurnResult
from codex_tools.codex.workers import on_disk, on_index
from codex_tools.engines.engine import Engine, TurnRequest
from codex_tools.history.index import Progress, ThreadIndex
from codex_tools.place_options import first_usable, places_for
from codex_tools.policy import CheckedTurn, Policy
from codex_tools.rollouts.threads import Threads, ThreadState
from codex_tools.runs.attend import AskPerson, attending
from codex_tools.runs.project_config import find_uncommitted
from codex_tools.runs.register import Runs
from codex_tools.runs.result import EffectiveSettings, PlannedTurn, RunResult, make_result
from codex_tools.runs.result_text import Words
from codex_tools.runs.run import Run, wait_while_called
from codex_tools.runs.sites import HERE
from codex_tools.runs.stop_file import RunElsewhere
from codex_tools.schemas.output_schema import Output
from codex_tools.turn_options import TurnOptions

if TYPE_CHECKING:
    from codex_tools.places.places import Places

ASKED_PROMPT = 300
"""Characters of a prompt, from its start, that a question to a person shows."""

T = TypeVar("T")
RequestT = TypeVar("RequestT", bound=Record)
ResultT = TypeVar("ResultT", bound=Record)


class AskTimeout(Exception):
    """The person gave no answer within *within_s* seconds."""

    def __init__(self, within_s: float) -> None:
        super().__init__(f"no answer within {within_s:g} s")
        self.within_s = within_s


@dataclass(frozen=True, slots=True)
class Context:
    """The objects that a tool works with, in addition to its arguments."""

    policy: Policy
    runs: Runs
    engine: Engine
    """Runs the turns."""
    threads: Threads
    """The threads on disk that the engine can resume."""
    history: ThreadIndex
    """The index over those threads."""
    default_cwd: Path
    """The caller's working folder, used where neither the arguments nor the thread name one."""
    watch: Callable[[Run], None]
    """Start to report this run's progress to the caller."""
    wait_s: float
    """Seconds that a call waits for its run if the caller gives no wait_s."""
    state_dir: Path
    report: Callable[[Callable[[], str]], None]
    """Start to report the texts that the function returns to the caller as progress."""
    caller: str
    """The client's name and version, for the audit log."""
    depth: int
    """Number of runs that this server is nested in."""
    ask: Callable[[str, object], Awaitable[bool]] | None
    """Ask the person a question about a matter, such as a turn, and return True if accepted; None
    if no person can be asked.

    The answer is good for exactly this matter. Raises `AskTimeout` if there is no answer in time.
    """
    warnings: tuple[str, ...] = ()
    """What the caller must know of its arguments."""
    places: Places | None = None
    """Other machines to run at; None if the operator has named none."""
    default_place: str = HERE
    ask_person: AskPerson | None = None
    """Ask the person a question of a run; None if no person can be asked while the call waits."""
    reaches_person: bool = False
    """True if a person can be asked about runs, by this call or by its task."""

    def threads_at(self, place: str) -> Threads:
        """Return the threads of a place."""
        if place == HERE or self.places is None:
            return self.threads
        return self.places.of(place).threads

    async def check(
        self,
        options: TurnOptions,
        *,
        thread: ThreadState | None = None,
        place: str | None = None,
        ephemeral: bool = False,
    ) -> CheckedTurn:
        """Check *options* against the policy in a worker thread; see `Policy.check`.

        *place* is that of *thread*; a new one is where the caller or the operator says.
        """
        if place is None:
            names = places_for(options, self.places, self.default_place)
            place = names[0]
            if self.places is not None and len(names) > 1:
                order = await self.runs.order(names, options.model)
                place = await first_usable(order, self.places, self.policy.environment)
        if place != HERE:
            options = options.model_copy(update={"isolation": "copy"})
        check = functools.partial(
            self.policy.check,
            options,
            NOT_ASKED,
            default_cwd=self.default_cwd,
            depth=self.depth,
            thread=thread,
            ephemeral=ephemeral,
        )
        turn = await on_disk(check)
        request = replace(turn.request, place=place)
        by_person = request.approvals == "ask" and request.answered_by == "person"
        note = ""
        if place != HERE and request.approvals != "never":
            note = f"approvals: nobody can be asked at {place}, so Codex must not ask."
        elif by_person and not self.reaches_person:
            note = "approvals: no person can be asked here, so Codex must not ask either."
        if note:
            request = replace(request, approvals="never")
            turn = replace(turn, warnings=(*turn.warnings, note))
        turn = replace(turn, request=request)
        excess = await find_uncommitted(turn.request.project_files or {}, turn.request.cwd)
        return turn if excess is None else replace(turn, excesses=(*turn.excesses, excess))

    async def permit(self, turn: CheckedTurn, *, dry_run: bool = False) -> tuple[str, ...]:
        """Permit a turn that is within the limits, or that a person allows this once.

        For a *dry_run* no person is asked; a warning says what a person would be asked for.

        Returns:
            Warnings for the caller.

        Raises:
            DayBudgetExhausted: Nothing is left of today's budget.
            NotAllowed: The turn exceeds the limits, and no person has allowed it.
        """
        await self.runs.ledger.check()
        excesses = turn.excesses
        warnings = (*self.warnings, *turn.warnings)
        if not excesses:
            return warnings
        if self.ask is None:
            raise excesses[0]
        if dry_run:
            more = (f"A person would be asked to allow this: {each.what}." for each in excesses)
            return (*warnings, *more)
        return (*warnings, *await self.grant(excesses, ask_for(turn), turn))

    async def grant(
        self, excesses: Sequence[NotAllowed], question: str, matter: object
    ) -> tuple[str, ...]:
        """Let a person allow *excesses* this once, and return warnings that say so.

        Args:
            excesses: What exceeds the limits, at least one thing.
            question: The question to the person.
            matter: A frozen value that names all that the answer is good for.

        Raises:
            NotAllowed: No person has allowed it.
        """
        if self.ask is None:
            raise excesses[0]
        facts = {"caller": self.caller, "asked_for": [excess.what for excess in excesses]}
        try:
            allowed = await self.ask(question, matter)
        except AskTimeout as error:
            self.runs.audit.write("unanswered", facts)
            raise excesses[0].unanswered(error.within_s) from None
        self.runs.audit.write("granted" if allowed else "declined", facts)
        if not allowed:
            raise excesses[0].declined()
        return tuple(f"The person allowed this once: {excess.what}." for excess in excesses)

    async def prepare(self, turn: CheckedTurn) -> TurnRequest:
        """Return the turn with the Codex that runs in its folder.

        To find that Codex, a program may run in the folder: call `permit` first.

        Raises:
            CodexNotFound: No Codex was found, or it does not answer.
            CodexUnsupported: Codex is older than the oldest supported version.
            InvalidArguments: This Codex would ignore the profile.
            NotAllowed: The turn could write to this Codex.
        """
        cwd, place = turn.request.cwd, turn.request.place
        if place != HERE and self.places is not None:  # It checks the turn by its own policy.
            found = await self.places.of(place).prepare(cwd, self.policy.environment)
            return replace(turn.request, program=found)
        program = await self.engine.prepare(cwd, self.policy.environment)
        request = replace(turn.request, program=program)
        await on_disk(self.policy.check_program, request)
        if request.profile is not None and program.reads_profile_files:
            await on_disk(_check_profile, request.profile, self.threads.home)
        return request

    async def follow(self, run: Run, wait_s: float | None) -> RunResult:
        """Wait for a run, reporting its progress; return its result, final or so far."""
        self.watch(run)
        async with self.attending([run]):
            result = await wait_while_called(
                run, self.wait_s if wait_s is None else wait_s, attended=self.attends
            )
        if not result.has_ended:
            await self.runs.stored()
        return await self.runs.refreshed(result)

    @property
    def attends(self) -> bool:
        """True if a person is asked the questions of runs while the call waits for them."""
        return self.ask_person is not None

    def attending(self, runs: Sequence[Run]) -> AbstractAsyncContextManager[None]:
        """Ask the person the questions of *runs* while the block runs."""
        return attending(runs, self.ask_person, self.runs.audit)

    async def find_live(self, run_id: str, doing: str) -> Run:
        """Return a run of this server that has not ended.

        *doing* is what the caller wants, as a verb.

        Raises:
            UnknownRun: There is no such run, or it belongs to another server process.
            InvalidArguments: It has ended.
        """
        found = await self.runs.find(run_id)
        has_ended = (
            found.outcome is not None if isinstance(found, Run) else (found.result.has_ended)
        )
        if has_ended:
            problem = f"run_id: {run_id} has ended; to go on with its thread, call codex_resume"
            raise InvalidArguments([problem])
        if not isinstance(found, Run):
            raise RunElsewhere(
                run_id,
                f"only the client of that process can {doing} it",
                "Wait for its end with codex_wait, or stop it with codex_stop.",
            )
        return found

    async def plan(
        self, request: TurnRequest, output: Output | None, warnings: tuple[str, ...]
    ) -> RunResult:
        """Return the result of a dry run: what would be started for *request*."""
        if output is not None:
            request = replace(request, output_schema=output.strict.schema)
        if request.isolation == "copy":
            warnings += ("isolation: the run would work in a copy, with the copy's path as -C.",)
        engine = self.engine
        if request.place != HERE and self.places is not None:
            engine = self.places.of(request.place)
        plan = await engine.plan_turn(request)
        return make_result(
            "planned",
            turn=TurnResult(thread_id=request.resumed),
            setting=EffectiveSettings(
                model=request.model,
                reasoning_effort=request.reasoning_effort,
                sandbox=request.sandbox,
                cwd=str(request.cwd),
                codex_version=request.program.version_text,
                place=request.place,
            ),
            warnings=(*warnings, *plan.warnings),
            planned=PlannedTurn(
                argv=list(plan.argv),
                environment=list(plan.environment),
                timeout_s=request.timeout_s,
                stall_s=request.stall_s,
            ),
        )

    async def run_once(
        self, tool: str, options: TurnOptions, start: Callable[[str | None], Awaitable[Run]]
    ) -> RunResult:
        """Start a run and wait for it; with an idempotency key, return the run that has the key.

        Args:
            tool: The name of the tool.
            options: The arguments.
            start: Function that starts the run, under the id that it gets if that is not None.
        """
        key = options.idempotency_key
        if key is None:
            return await self.follow(await start(None), options.wait_s)
        asked = options.model_dump(mode="json", exclude={"idempotency_key", "wait_s"})
        asked |= {"tool": tool, "cwd": options.cwd or str(self.default_cwd)}
        digest = hashlib.sha256(write_exactly(dict(sorted(asked.items())))).hexdigest()
        run_id, run = await self.runs.keys.once(key, digest, start, self.runs.is_own)
        if run is not None:
            return await self.follow(run, options.wait_s)
        found = await self.runs.find(run_id)
        if isinstance(found, Run):
            self.watch(found)
        wait_s = self.wait_s if options.wait_s is None else options.wait_s
        async with self.attending([found] if isinstance(found, Run) else []):
            (result,) = await self.runs.wait([run_id], wait_s, "all", attended=self.attends)
        note = f"idempotency_key: an earlier call started {run_id}, which is returned again."
        return result.model_copy(update={"warnings": [*result.warnings, note]})

    async def read_history(self, work: Callable[[ThreadIndex, Progress], T]) -> T:
        """Run *work* on the index in a worker thread, and report how many rollouts are read."""
        at = (0, 0)

        def progress(done: int, total: int) -> None:
            nonlocal at
            at = (done, total)

        def doing() -> str:
            done, total = at
            return f"reading rollouts, {done} of {total}" if total else "looking for new rollouts"

        self.report(doing)
        try:
            return await on_index(work, self.history, progress)
        except UnicodeEncodeError:
            raise InvalidArguments(
                ["a text contains half a character (a lone surrogate)"]
            ) from None


def ask_for(turn: CheckedTurn) -> str:
    """Return the question that asks a person to grant the excesses of *turn* this once.

    All that a caller chooses is kept on its line. The prompt comes last and quoted, so that no
    text in it passes for a line of the question.
    """
    request = turn.request
    lines = lines_of(turn.excesses)
    lines += [f"Folder: {_shown(str(request.cwd))}", f"Sandbox: {request.sandbox}"]
    if request.add_dirs:
        lines.append(f"Extra folders: {_shown(', '.join(map(str, request.add_dirs)))}")
    if request.thread_id is not None:
        what = "Continues" if request.resumed else "Begins with the history of"
        lines.append(f"{what} thread: {request.thread_id}")
    start = json.dumps(clean(request.prompt[:ASKED_PROMPT]), ensure_ascii=False)
    left = len(request.prompt) - ASKED_PROMPT
    task = f"The task: {start}" if left <= 0 else f"The task, without its last {left:,} characters"
    lines += [
        "Accept to allow this once. Any other answer refuses it.",
        task if left <= 0 else f"{task}: {start}",
    ]
    return "\n".join(lines)


def lines_of(excesses: Sequence[NotAllowed]) -> list[str]:
    """Return the first lines of a question to a person: what is asked for, and its risks."""
    lines = ["Another agent asks for more than this server may allow without you:"]
    for excess in excesses:
        lines.append(f"- {_shown(excess.what)} ({_shown(excess.limit)}).")
        lines.append(f"  Risk: {_shown(excess.danger)}.")
    return lines


def _shown(text: str) -> str:
    """Return *text* cleaned, on one line, its middle left out if it is long."""
    text = clean(text)
    return text if len(text) <= 500 else f"{text[:250]} … {text[-250:]}"


@dataclass(frozen=True, slots=True)
class Tool(Generic[RequestT, ResultT]):
    """A tool, with all that the server needs to advertise and call it."""

    name: str
    title: str | None
    description: str
    request: type[RequestT]
    result: type[ResultT]
    call: Callable[[RequestT, Context], Awaitable[ResultT]]
    refuse: Callable[[CodexError], ResultT]
    """Return the result for an error raised before the tool had a result."""
    words: Callable[[ResultT], Words]
    """Return a result as text, for clients that show their model only text."""
    start: Callable[[RequestT, Context], Awaitable[Run]] | None = None
    """Start the run and return at once; None for a tool that does not run Codex."""
    search_hint: str | None = None
    """Search words for clients that load tools on demand."""
    may_be_large: bool = False
    """True if a result may contain structured output, which is never cut."""
    read_only: bool = False
    destructive: bool = True
    idempotent: bool = False
    open_world: bool = True

    def read(self, arguments: Json) -> RequestT:
        """Return *arguments* as the tool's request.

        Raises:
            InvalidArguments: An argument is unknown, missing or of the wrong type.
            PromptTooLarge: The prompt is longer than Codex accepts.
        """
        return read_arguments(self.request, arguments).request


def input_schema(model: type[Record]) -> Json:
    """Return the JSON Schema of a request, as short as possible.

    A client sends the schema to its model, and pays for each character, with every request.
    """
    return _compact(model.model_json_schema())


@functools.cache
def output_schema(model: type[Record]) -> Json:
    """Return the JSON Schema of a result."""
    return _compact(model.model_json_schema(mode="serialization"), optional=False)


def _compact(schema: Json, *, optional: bool = True) -> Json:
    """Return *schema* without titles and the docstrings of classes.

    Args:
        schema: The schema; its class descriptions are removed in place.
        optional: True for a request: null is accepted for an absent argument, but not advertised.
            False for a result: inner objects keep only the names and types of their fields,
            without `required` and descriptions.
    """
    for owner in (schema, *cast(dict[str, Json], schema.get("$defs", {})).values()):
        owner.pop("description", None)
        if owner is not schema and not optional:
            owner.pop("required", None)
            for inner in cast(dict[str, Json], owner.get("properties", {})).values():
                inner.pop("description", None)
    return cast(Json, _plain(schema, optional))


def _plain(node: object, optional: bool) -> object:
    if isinstance(node, list):
        return [_plain(each, optional) for each in cast(list[object], node)]
    if not isinstance(node, dict):
        return node
    plain: Json = {}
    for key, value in cast(Json, node).items():
        if key == "title" and isinstance(value, str):
            continue
        if key == "default" and (value is None or not optional):
            continue
        if key == "additionalProperties" and isinstance(value, bool):
            # google-genai 3.6.1 fails for false; reading the arguments refuses unknown ones.
            continue
        if key == "exclusiveMinimum":
            # Gemini's API refuses a whole list of tools for it; reading the arguments checks it.
            continue
        if key == "properties":
            plain[key] = {k: _plain(v, optional) for k, v in cast(Json, value).items()}
        else:
            plain[key] = _plain(value, optional)
    choices: list[Json] = plain.get("anyOf", [])
    if optional and {"type": "null"} in choices and len(choices) == 2:
        del plain["anyOf"]
        plain = {**next(c for c in choices if c != {"type": "null"}), **plain}
    elif not optional and [set(c) for c in choices] == [{"type"}, {"type"}]:
        del plain["anyOf"]
        plain = {"type": [c["type"] for c in choices], **plain}
    elif not optional and [set(c) for c in choices] == [{"enum", "type"}, {"type"}]:
        del plain["anyOf"]
        types = [c["type"] for c in choices]
        plain = {"enum": [*choices[0]["enum"], None], "type": types, **plain}
    return plain


def _check_profile(name: str, home: Path) -> None:
    """Check that Codex, which ignores the name of a missing profile, has this one.

    Raises:
        InvalidArguments: It has not.
    """
    file = home / f"{name}.config.toml"
    if not file.is_file():
        raise InvalidArguments(
            [f"profile: there is no profile {name!r}; Codex would read it from {file}"]
        )
