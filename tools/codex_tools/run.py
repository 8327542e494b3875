"""codex_run: delegate a task to Codex in a new thread."""

from __future__ import annotations

from collections.abc import Callable

from codex_tools.codex.program import find_codex
from codex_tools.engines.engine import TurnRequest
from codex_tools.policy import Review
from codex_tools.runs.result import RunResult
from codex_tools.runs.run import Run
from codex_tools.tool import Context, Tool
from codex_tools.turn_options import (
    TurnOptions,
    check_depth,
    existing_folder,
    follow,
    make_output,
    make_turn,
    refuse,
)


class RunRequest(TurnOptions):
    """The arguments of codex_run."""

    ephemeral: bool = False
    """Keep no record; the thread cannot be resumed"""


async def start(
    request: RunRequest, context: Context, adapt: Callable[[TurnRequest], TurnRequest] | None = None
) -> Run:
    """Start a task in a new thread.

    *adapt* may add to the turn what codex_run's arguments cannot say.
    """
    check_depth(context)
    review = Review(context.policy)
    folder = existing_folder("cwd", request.cwd or str(context.default_cwd), review)
    turn = make_turn(
        request,
        context,
        review,
        cwd=folder,
        sandbox=review.sandbox(request.sandbox),
        ephemeral=request.ephemeral,
    )
    turn = turn if adapt is None else adapt(turn)
    output = await make_output(request)
    program = await find_codex(context.codex_bin)
    if request.ephemeral:
        program.need("--ephemeral")
    warnings = await context.permit(review, folder, request.prompt)
    return context.runs.start(program, turn, output, caller=context.caller, warnings=warnings)


async def run(request: RunRequest, context: Context) -> RunResult:
    """Run a task in a new thread and return what came of it."""
    return await follow(await start(request, context), request, context)


RUN = Tool(
    name="codex_run",
    title="Run Codex",
    description=(
        "Delegate a coding task to OpenAI's Codex, an autonomous agent with its own shell and"
        " editor in cwd, and get its final answer, the files it changed and the commands it ran."
        " Good for work that stands on its own: implementing, fixing, reviewing, a second opinion."
        " The default sandbox is read-only: to let it edit, say sandbox: workspace-write."
        " Continue the thread with codex_resume and the thread_id of the result."
        " A call that waits ends its run when it is cancelled. With wait_s: 0 it returns at once"
        " and the run goes on; to run several side by side, start each so, then call codex_wait"
        " once with all run_ids."
    ),
    request=RunRequest,
    result=RunResult,
    call=run,
    start=start,
    refuse=refuse,
    search_hint="delegate coding task to Codex agent, implement, fix, review, second opinion",
    may_be_large=True,
)
