"""Define codex_steer: give a run that is at work more words."""

from __future__ import annotations

from pydantic import Field

from codex_tools.codex.errors import CodexError, CodexUnsupported, InvalidArguments
from codex_tools.codex.questions import NotSteered
from codex_tools.codex.record import Record
from codex_tools.runs.result import refused
from codex_tools.stop import StopResult, words
from codex_tools.tool import Context, Tool
from codex_tools.turn_options import PROMPT_LIMIT


class SteerRequest(Record):
    """The arguments of codex_steer."""

    run_id: str
    prompt: str = Field(min_length=1, max_length=PROMPT_LIMIT)
    """What Codex should know or do differently"""


async def steer(request: SteerRequest, context: Context) -> StopResult:
    """Add words to the running turn of a run, and return the run's result so far."""
    if not request.prompt.strip():
        raise InvalidArguments(["prompt: must not be blank"])
    run = await context.find_live(request.run_id, "steer")
    handle = run.progress.handle
    if handle is None and run.progress.engine is not None:
        raise CodexUnsupported(
            f"a way to add words to a running turn with the engine {run.progress.engine}",
            run.request.program.version_text,
            "Wait for it with codex_wait, or stop it; then continue its thread with the words.",
        )
    if handle is None:
        raise InvalidArguments([f"run_id: {run.run_id} has not begun; its status is {run.status}"])
    try:
        await handle.steer(request.prompt)
    except NotSteered as error:
        problem = f"run_id: Codex does not take words for {run.run_id} now: {error}"
        raise InvalidArguments([problem]) from None
    facts = {"caller": context.caller, "run_id": run.run_id, "characters": len(request.prompt)}
    context.runs.audit.write("steered", facts)
    return StopResult(run=run.result())


def refuse(error: CodexError) -> StopResult:
    """Return the result of a request that was refused."""
    return StopResult(run=refused(error))


STEER = Tool(
    name="codex_steer",
    title="Steer a Codex run",
    description=(
        "Add words to a run that is at work, as if a person typed meanwhile. The model sees them"
        " after its current step."
    ),
    request=SteerRequest,
    result=StopResult,
    call=steer,
    refuse=refuse,
    words=words,
    search_hint="correct or redirect a running Codex task",
    destructive=False,
    open_world=False,
)
