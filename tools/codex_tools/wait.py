"""Define codex_wait: wait for runs in the background."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from codex_tools.codex.errors import CodexError, InvalidArguments
from codex_tools.codex.record import Record
from codex_tools.runs.result import RESULT_LIMIT, RunError, RunResult, fit, tell_error
from codex_tools.runs.result_text import Words, text_of, words_of_error
from codex_tools.runs.run import Run
from codex_tools.tool import Context, Tool

RUNS_AT_ONCE = 32
"""Maximum number of runs in one call."""


class WaitRequest(Record):
    """The arguments of codex_wait."""

    run_ids: list[str] = Field(min_length=1, max_length=RUNS_AT_ONCE)
    wait_s: float = Field(50.0, ge=0)
    """Maximum seconds to wait"""
    until: Literal["all", "any"] = "all"


class WaitResult(Record):
    """The status and result of each run, in the order of the ids."""

    runs: list[RunResult]
    error: RunError | None


async def wait(request: WaitRequest, context: Context) -> WaitResult:
    """Wait for runs and return the result of each; stop none of them."""
    if len(set(request.run_ids)) < len(request.run_ids):
        raise InvalidArguments(["run_ids: give each run id only once"])
    found = [await context.runs.find(run_id) for run_id in request.run_ids]
    own = [run for run in found if isinstance(run, Run)]
    for run in own:
        context.watch(run)
    async with context.attending(own):
        results = await context.runs.wait(
            request.run_ids, request.wait_s, request.until, attended=context.attends
        )
    each = RESULT_LIMIT // len(results)
    return WaitResult(runs=[fit(result, each) for result in results], error=None)


def refuse(error: CodexError) -> WaitResult:
    """Return the result of a request that was refused."""
    return WaitResult(runs=[], error=tell_error(error))


def words(result: WaitResult) -> Words:
    """Return a result as text: each run's id and status, its answer or error, and its next step."""
    if result.error is not None:
        return words_of_error(result.error)
    room = RESULT_LIMIT // len(result.runs) - 60
    parts = (f"=== {run.run_id}: {run.status} ===\n{text_of(run, room)}" for run in result.runs)
    return Words("\n\n".join(parts))


WAIT = Tool(
    name="codex_wait",
    title="Wait for Codex runs",
    description=(
        "Wait until all (or any) of the given runs have ended, or wait_s has passed. Returns each"
        " run's status, and its result if it has ended. Does not stop runs. Call again while any is"
        " still running. Earlier runs' results are kept for two weeks."
    ),
    request=WaitRequest,
    result=WaitResult,
    call=wait,
    refuse=refuse,
    words=words,
    search_hint="result of Codex run in background, poll",
    may_be_large=True,
    read_only=True,
    idempotent=True,
    open_world=False,
)
