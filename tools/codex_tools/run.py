"""Define codex_run: delegate a task to Codex in a new thread."""

from __future__ import annotations

from collections.abc import Callable

from codex_tools.engines.engine import TurnRequest
from codex_tools.runs.result import RunResult, refused
from codex_tools.runs.result_text import words_of
from codex_tools.runs.run import Run
from codex_tools.tool import Context, Tool
from codex_tools.turn_options import TurnOptions, make_output


class RunRequest(TurnOptions):
    """The arguments of codex_run."""

    ephemeral: bool = False
    """Keep no record; the thread cannot be resumed"""


async def start(
    request: RunRequest, context: Context, adapt: Callable[[TurnRequest], TurnRequest] | None = None
) -> Run:
    """Start a task in a new thread and return its run.

    *adapt* may add settings to the turn that the arguments of codex_run cannot express.
    """
    context.policy.check_depth(context.depth)
    turn = await context.check(request, ephemeral=request.ephemeral)
    output = await make_output(request)
    warnings = await context.permit(turn)
    ready = await context.prepare(turn)
    if request.ephemeral:
        ready.program.need("--ephemeral")
    if adapt is not None:
        ready = adapt(ready)
    return context.runs.start(ready, output, caller=context.caller, warnings=warnings)


async def run(request: RunRequest, context: Context) -> RunResult:
    """Run a task in a new thread and return its result."""
    return await context.follow(await start(request, context), request.wait_s)


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
        " once with all run_ids."
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
