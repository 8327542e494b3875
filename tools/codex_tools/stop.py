"""Define codex_stop: stop a run."""

from __future__ import annotations

from codex_tools.codex.errors import CodexError
from codex_tools.codex.record import Record
from codex_tools.runs.result import RESULT_LIMIT, LooseRun, refused
from codex_tools.runs.result_text import Words, error_text, text_of
from codex_tools.tool import Context, Tool


class StopRequest(Record):
    """The arguments of codex_stop."""

    run_id: str


class StopResult(Record):
    """The result of the run."""

    run: LooseRun


async def stop(request: StopRequest, context: Context) -> StopResult:
    """Stop a run and return its result; a run that has ended already stays unchanged.

    A server inside a run stops only its own runs: the model of that run is its caller.
    """
    caller = None if context.depth else context.caller
    return StopResult(run=await context.runs.stop(request.run_id, caller))


def refuse(error: CodexError) -> StopResult:
    """Return the result of a request that was refused."""
    return StopResult(run=refused(error))


def words(result: StopResult) -> Words:
    """Return a result as text; only a refused request is an error, not a run that failed before."""
    run = result.run
    if run.run_id is None:
        return Words(error_text(run), is_error=True)
    return Words(f"{run.run_id}: {run.status}\n{text_of(run, RESULT_LIMIT)}")


STOP = Tool(
    name="codex_stop",
    title="Stop a Codex run",
    description=(
        "Stop a run and every process it has started. Work done so far is kept, and the thread can"
        " be resumed."
    ),
    request=StopRequest,
    result=StopResult,
    call=stop,
    refuse=refuse,
    words=words,
    search_hint="cancel Codex run, abort",
    idempotent=True,
    open_world=False,
)
