"""codex_stop: end a run."""

from __future__ import annotations

from codex_tools.codex.errors import CodexError
from codex_tools.codex.record import Record
from codex_tools.runs.result import RunResult, Words, error_text, refused
from codex_tools.tool import Context, Tool


class StopRequest(Record):
    """The arguments of codex_stop."""

    run_id: str


class StopResult(Record):
    """What the run has come to."""

    run: RunResult


async def stop(request: StopRequest, context: Context) -> StopResult:
    """End a run and return what it has come to; one that has ended stays as it is."""
    return StopResult(run=await context.runs.stop(request.run_id))


def refuse(error: CodexError) -> StopResult:
    """Return the result of a request that was refused."""
    return StopResult(run=refused(error))


def words(result: StopResult) -> Words:
    """Return a result as text. That a run had failed before is no failure of codex_stop."""
    run = result.run
    if run.run_id is None:
        return Words(error_text(run), is_error=True)
    return Words(f"{run.status}. {run.next}")


STOP = Tool(
    name="codex_stop",
    title="Stop a Codex run",
    description=(
        "End a run and every process it has started. What it has done by then stands, and its"
        " thread can be resumed."
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
