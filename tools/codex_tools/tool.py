"""What a tool is: a name, a request, a result, one async function, hints."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar, cast

import anyio.to_thread
from pydantic import AfterValidator, ValidationError
from pydantic_core import ErrorDetails

from codex_tools.codex.errors import CodexError, InvalidArguments, PromptTooLarge
from codex_tools.codex.json_object import Json
from codex_tools.codex.record import Record
from codex_tools.history.index import Progress, ThreadIndex
from codex_tools.policy import Policy, Review, ask_for
from codex_tools.runs.register import Runs
from codex_tools.runs.run import Run

T = TypeVar("T")
RequestT = TypeVar("RequestT", bound=Record)
ResultT = TypeVar("ResultT", bound=Record)


def _absolute(path: str) -> str:
    if not Path(path).is_absolute():
        raise ValueError("must be an absolute path")
    return path


Folder = Annotated[str, AfterValidator(_absolute)]
"""The absolute path of a folder."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a tool works with, besides its arguments."""

    policy: Policy
    runs: Runs
    codex_bin: str | None
    """The configured Codex; None means to look for one."""
    default_cwd: Path
    """The caller's own folder."""
    watch: Callable[[Run], None]
    """Tell the caller of this run's progress from now on."""
    wait_s: float
    """How long a call waits for its run where it does not say."""
    history: ThreadIndex
    state_dir: Path
    tell: Callable[[Callable[[], str]], None]
    """Tell the caller from now on what the function says goes on."""
    caller: str
    """The client's name and version, for the audit log."""
    depth: int
    """How many runs this server lives inside."""
    ask: Callable[[str], Awaitable[bool]] | None
    """Put a question to the person; None where nobody can be asked."""

    async def permit(self, review: Review, cwd: Path, prompt: str) -> tuple[str, ...]:
        """Let a request pass that is within the limits, or that a person allows this once.

        Returns:
            What to tell the caller of it.

        Raises:
            NotAllowed: It is beyond the limits, and nobody has allowed it.
        """
        excesses = review.excesses
        if not excesses:
            return ()
        if self.ask is None:
            raise excesses[0]
        facts = {"caller": self.caller, "asked_for": [excess.what for excess in excesses]}
        allowed = await self.ask(ask_for(excesses, cwd, prompt))
        self.runs.audit.write("granted" if allowed else "declined", facts)
        if not allowed:
            raise excesses[0].declined()
        return tuple(f"The person allowed this once: {excess.what}." for excess in excesses)

    async def read_history(self, work: Callable[[ThreadIndex, Progress], T]) -> T:
        """Do *work* on the index in a thread, telling how far it has come."""
        at = (0, 0)

        def progress(done: int, total: int) -> None:
            nonlocal at
            at = (done, total)

        def doing() -> str:
            done, total = at
            return f"reading rollouts, {done} of {total}" if total else "looking at rollouts"

        self.tell(doing)
        try:
            return await anyio.to_thread.run_sync(work, self.history, progress)
        except UnicodeEncodeError:
            raise InvalidArguments(["half a character (a lone surrogate) in a text"]) from None


@dataclass(frozen=True, slots=True)
class Tool(Generic[RequestT, ResultT]):
    """A tool as the server offers it."""

    name: str
    title: str | None
    description: str
    request: type[RequestT]
    result: type[ResultT]
    call: Callable[[RequestT, Context], Awaitable[ResultT]]
    refuse: Callable[[CodexError], ResultT]
    """Make a result of an error that came before there was one."""
    start: Callable[[RequestT, Context], Awaitable[Run]] | None = None
    """For a tool that runs Codex: start the run and return at once."""
    search_hint: str | None = None
    """Words by which a client finds the tool that does not show it to its model at once."""
    may_be_large: bool = False
    """Whether a result may hold structured output, which is never cut."""
    read_only: bool = False
    destructive: bool = True
    idempotent: bool = False
    open_world: bool = True

    def read(self, arguments: Json) -> RequestT:
        """Return *arguments* as the tool's request.

        Raises:
            InvalidArguments: One is unknown, missing or of the wrong type.
            PromptTooLarge: The prompt is longer than Codex takes.
        """
        try:
            return self.request.model_validate(arguments)
        except ValidationError as error:
            problems: list[str] = []
            for fault in error.errors(include_url=False):
                if fault["type"] == "string_too_long" and fault["loc"] == ("prompt",):
                    raise PromptTooLarge(
                        len(arguments["prompt"]), fault.get("ctx", {}).get("max_length", 0)
                    ) from None
                fields = self.request.model_fields.items()
                problems.append(_problem(fault, [field.alias or name for name, field in fields]))
            raise InvalidArguments(problems) from None


def input_schema(model: type[Record]) -> Json:
    """Return the JSON Schema of a request, as short as it can be.

    A model pays for each character of it with every request.
    """
    return _compact(model.model_json_schema())


@functools.cache
def output_schema(model: type[Record]) -> Json:
    """Return the JSON Schema of a result."""
    return _compact(model.model_json_schema(mode="serialization"), optional=False)


def _problem(fault: ErrorDetails, known: list[str]) -> str:
    where = ".".join(map(str, fault["loc"])) or "arguments"
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, known, n=1, cutoff=0.5)
        return f"unknown argument {where!r}" + (f", did you mean {near[0]!r}?" if near else "")
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {message[:1].lower()}{message[1:]}"


def _compact(schema: Json, *, optional: bool = True) -> Json:
    """Return *schema* without titles and the docstrings of classes.

    With *optional*, null is accepted for an absent argument without being
    advertised. Without it, it is a result's schema: of its inner objects there
    are only names and types, not what they always have, nor what it means.
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
        if key == "additionalProperties" and value is False and not optional:
            continue
        if key == "type" and "enum" in node:
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
    elif not optional and [set(c) for c in choices] == [{"enum"}, {"type"}]:
        del plain["anyOf"]
        plain = {"enum": [*choices[0]["enum"], None], **plain}
    return plain
