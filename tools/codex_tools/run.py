"""Define codex_run: delegate a task to Codex in a new thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator, model_validator

from codex_tools.engines.engine import TurnRequest
from codex_tools.runs.result import RunResult, refused
from codex_tools.runs.result_text import words_of
from codex_tools.runs.review import REVIEWER, check_target, own_review, read_target
from codex_tools.runs.run import Run
from codex_tools.schemas.output_schema import Output
from codex_tools.tool import Context, Tool
from codex_tools.turn_options import PROMPT_LIMIT, TurnOptions, make_output


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


class RunRequest(TurnOptions):
    """The arguments of codex_run."""

    prompt: str = Field("", max_length=PROMPT_LIMIT, json_schema_extra=_without_default)
    """The task, self-contained: Codex cannot see this conversation. Required, except with review"""
    ephemeral: bool = False
    """Keep no record; the thread cannot be resumed"""
    review: dict[str, Any] | None = None
    """Codex's own reviewer, read-only: {"uncommitted": true}, {"base": BRANCH} or {"commit": SHA}
    without prompt, {"custom": true} with one"""

    @field_validator("review")
    @classmethod
    def _target(cls, review: dict[str, Any] | None) -> dict[str, Any] | None:
        if review is None or not any(review.values()):
            return None
        read_target(review)
        return review

    @model_validator(mode="after")
    def _goes_together(self) -> RunRequest:
        needs_prompt = self.review is None or bool(self.review.get("custom"))
        if needs_prompt and not self.prompt:
            raise ValueError("prompt: field required: give the task as a string")
        if self.review is None:
            return self
        if self.prompt and not needs_prompt:
            raise ValueError('prompt: only review {"custom": true} takes a prompt')
        for name in _NOT_IN_REVIEWS:
            if getattr(self, name) not in (None, False, [], "never"):
                raise ValueError(f"{name}: cannot be combined with review")
        return self


_NOT_IN_REVIEWS = (
    *("output_schema", "images", "add_dirs", "web_search", "ephemeral"),
    *("approvals", "ask_caller"),
)
"""Codex's reviewer ignores the schema, gets no images and no web search, and writes nothing (all
seen). Without a record, neither its findings nor its usage could be read."""


async def start(
    request: RunRequest,
    context: Context,
    adapt: Callable[[TurnRequest], TurnRequest] | None = None,
    run_id: str | None = None,
) -> Run:
    """Start a task in a new thread and return its run.

    *adapt* may add settings to the turn that the arguments of codex_run cannot express. *run_id*
    is an id that was promised for the run.
    """
    ready, output, warnings = await _prepare(request, context)
    if adapt is not None:
        ready = adapt(ready)
    return context.runs.start(
        ready, output, caller=context.caller, warnings=warnings, run_id=run_id
    )


async def _prepare(
    request: RunRequest, context: Context
) -> tuple[TurnRequest, Output | None, tuple[str, ...]]:
    """Return the turn that *request* asks for, the form of its answer, and warnings."""
    context.policy.check_depth(context.depth)
    target = read_target(request.review) if request.review is not None else None
    asked, isolation = request.sandbox, request.isolation
    if target is not None:
        # In a copy, the findings would name the copy's files.
        narrowed = {"sandbox": "read-only", "isolation": "none"}
        request = request.model_copy(update=narrowed)
    turn = await context.check(request, ephemeral=request.ephemeral)
    output = await make_output(request)
    warnings = await context.permit(turn, dry_run=request.dry_run)
    if target is not None:
        target = await check_target(target, turn.request.cwd)
        if asked not in (None, "read-only"):
            warnings += (f"A review runs with sandbox read-only, not {asked}.",)
        if isolation == "copy":
            warnings += ("A review changes no file, so it runs in the folder itself: no copy.",)
    ready = await context.prepare(turn)
    if request.ephemeral:
        ready.program.need("--ephemeral")
    if target is None:
        return ready, output, warnings
    if REVIEWER not in ready.program.flags:
        ready, output, more = await own_review(ready, target)
        return ready, output, (*warnings, *more)
    # Codex reports no event between the start and the end of a review (seen with 0.98 to 0.171).
    ready = replace(ready, review=target, stall_s=ready.timeout_s)
    return ready, output, warnings


async def run(request: RunRequest, context: Context) -> RunResult:
    """Run a task in a new thread and return its result."""
    if request.dry_run:
        return await context.plan(*await _prepare(request, context))

    def begin(run_id: str | None) -> Awaitable[Run]:
        return start(request, context, run_id=run_id)

    return await context.run_once("codex_run", request, begin)


RUN = Tool(
    name="codex_run",
    title="Run Codex",
    description=(
        "Delegate a coding task to OpenAI's Codex, an autonomous agent with its own shell and"
        " editor in cwd. Returns its final answer, the files it changed and the commands it ran."
        " Good for self-contained work: implementing, fixing, reviewing, a second opinion."
        " The default sandbox is read-only; to let Codex edit files, set sandbox: workspace-write."
        " Continue the thread with codex_resume and the thread_id of the result."
        " Cancelling a waiting call stops its run. With wait_s: 0 the call returns at once and the"
        " run continues. To run several in parallel, start each that way, then call codex_wait"
        " once with all run_ids. With isolation: copy, each works in its own copy of the project,"
        " and codex_apply takes its changes."
    ),
    request=RunRequest,
    result=RunResult,
    call=run,
    start=start,
    refuse=refused,
    words=words_of,
    search_hint="delegate coding task to Codex agent, implement, fix, review, second opinion",
    may_be_large=True,
)
