"""Define codex_resume: continue a thread with the settings of its last turn."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from uuid import UUID

from pydantic import Field, field_validator, model_validator

from codex_tools.codex.errors import CodexUnsupported, ThreadNotFound
from codex_tools.codex.program import Program
from codex_tools.codex.workers import on_disk
from codex_tools.engines.engine import TurnRequest
from codex_tools.history.thread_list import newest_thread
from codex_tools.place_options import place_of_thread
from codex_tools.rollouts.files import PACKED
from codex_tools.rollouts.threads import ThreadState
from codex_tools.runs.result import RunResult, refused
from codex_tools.runs.result_text import words_of
from codex_tools.runs.run import Run
from codex_tools.runs.sites import HERE
from codex_tools.tool import Context, Tool
from codex_tools.turn_options import PROMPT_LIMIT, TurnOptions, make_output


class ResumeRequest(TurnOptions):
    """The arguments of codex_resume."""

    prompt: str = Field(min_length=1, max_length=PROMPT_LIMIT)
    """The next task; Codex remembers the thread, so send only what is new"""
    thread_id: str | None = None
    """From the result of an earlier run"""
    last: bool = False
    """Resume the newest thread of cwd, without thread_id"""
    all_dirs: bool = False
    """With last: newest of any folder"""
    fork: bool = False
    """Begin a new thread with its history; the old one stays as it is"""

    @field_validator("thread_id")
    @classmethod
    def _uuid(cls, thread_id: str | None) -> str | None:
        # Codex takes any other text as a thread's name, finds no such thread and begins a new one.
        try:
            return None if thread_id is None else str(UUID(thread_id))
        except ValueError:
            raise ValueError("must be a UUID, as in the thread_id of a result") from None

    @model_validator(mode="after")
    def _one_of(self) -> ResumeRequest:
        if (self.thread_id is None) != self.last:
            raise ValueError("give either thread_id or last: true")
        if self.all_dirs and not self.last:
            raise ValueError("all_dirs requires last: true")
        return self


async def start(request: ResumeRequest, context: Context, run_id: str | None = None) -> Run:
    """Start a turn in an existing thread and return its run.

    *run_id* is an id that was promised for the run.

    Codex itself keeps only the conversation. The folder, sandbox, model and effort of a resumed
    turn come from its command line. `Policy.check` takes those that the request does not name from
    the thread's last turn.
    """
    context.policy.check_depth(context.depth)
    output = await make_output(request)
    thread_id = request.thread_id or await _newest(request, context)
    # A person has allowed what this server did outside its roots, and is asked again for more.
    roots = () if context.runs.in_thread(thread_id) else context.policy.roots
    place = await _place(request, context, thread_id)
    threads = context.threads_at(place)
    if roots:  # The lock of a thread outside of them would say whether the thread is in use.
        await on_disk(threads.state, thread_id, roots)
    # Lock the thread before reading it: another run may be about to change it. A fork changes
    # nothing, and takes what is there (0.163.0 forks a thread while a turn is running in it).
    lock = None if request.fork else await context.runs.lock_thread(thread_id, place)
    try:
        thread = await on_disk(threads.state, thread_id, roots)
        ready, warnings = await _prepare(request, context, thread, place)
        return context.runs.start(
            ready,
            output,
            before=thread,
            lock=lock,
            caller=context.caller,
            warnings=warnings,
            run_id=run_id,
        )
    except BaseException:
        if lock is not None:
            await context.runs.unlock_thread(lock)
        raise


async def _prepare(
    request: ResumeRequest, context: Context, thread: ThreadState, place: str
) -> tuple[TurnRequest, tuple[str, ...]]:
    """Return the turn that *request* asks for in *thread*, and warnings."""
    turn = await context.check(request, thread=thread, place=place)
    warnings = await context.permit(turn, dry_run=request.dry_run)
    ready = await context.prepare(turn)
    _check_resumable(thread, ready.program)
    if request.fork:
        ready.program.need("exec fork")
        ready = replace(ready, fork=True)
    return ready, warnings


async def _plan(request: ResumeRequest, context: Context) -> RunResult:
    context.policy.check_depth(context.depth)
    output = await make_output(request)
    thread_id = request.thread_id or await _newest(request, context)
    place = await _place(request, context, thread_id)
    thread = await on_disk(context.threads_at(place).state, thread_id, context.policy.roots)
    ready, warnings = await _prepare(request, context, thread, place)
    return await context.plan(ready, output, warnings)


async def resume(request: ResumeRequest, context: Context) -> RunResult:
    """Run a prompt in an existing thread and return its result."""
    if request.dry_run:
        return await _plan(request, context)

    def begin(run_id: str | None) -> Awaitable[Run]:
        return start(request, context, run_id)

    return await context.run_once("codex_resume", request, begin)


async def _place(request: ResumeRequest, context: Context, thread_id: str) -> str:
    """Return the place where the thread is."""
    if context.places is None and request.place is None:
        return HERE
    is_here = await on_disk(context.threads.is_kept, thread_id)
    return await place_of_thread(request, context.places, thread_id, is_here=is_here)


async def _newest(request: ResumeRequest, context: Context) -> str:
    """Return the id of the most recently active thread in the caller's folder, or in any folder."""
    folder = None
    if not request.all_dirs:
        asked = request.cwd or str(context.default_cwd)
        folder = await on_disk(context.policy.folder, "cwd", asked)
    found = await context.read_history(
        lambda index, progress: newest_thread(index, folder, progress, context.policy.roots)
    )
    if found is None:
        where = f" of {folder}" if folder is not None else ""
        if context.policy.roots:
            raise ThreadNotFound(
                f"There is no thread{where} to resume in the folders of this server.",
                "Begin a new thread with codex_run. Threads outside the roots are not used; the"
                " operator of this server can add their folder with --root.",
            )
        raise ThreadNotFound(f"There is no thread{where} to resume in {context.threads.home}.")
    return found


def _check_resumable(state: ThreadState, program: Program) -> None:
    """Check that this Codex can resume the thread without damage.

    Raises:
        CodexUnsupported: This Codex cannot read the thread's rollout, or would damage it.
    """
    if state.is_paginated and not program.knows_paginated_threads:
        raise CodexUnsupported(
            f"support for the paginated history of thread {state.thread_id}; resuming the thread"
            " would damage it permanently",
            program.version_text,
            "Update Codex to 0.147.0 or later, or begin a new thread with codex_run.",
        )
    if state.path.name.endswith(PACKED) and not program.knows_packed_threads:
        raise CodexUnsupported(
            f"support for the compressed rollout of thread {state.thread_id}",
            program.version_text,
            "Update Codex, or begin a new thread with codex_run.",
        )


RESUME = Tool(
    name="codex_resume",
    title="Resume a Codex thread",
    description=(
        "Continue an earlier Codex thread. Codex remembers all of it, so send only what is new."
        " Give thread_id, or last: true for the newest thread of cwd."
        " Folder, sandbox, model and effort stay as in the thread's last turn unless given."
        " A thread allows one run at a time (else thread_busy); fork: true begins a new thread from"
        " it. Returns the same as codex_run."
    ),
    request=ResumeRequest,
    result=RunResult,
    call=resume,
    start=start,
    refuse=refused,
    words=words_of,
    search_hint="continue earlier Codex thread, follow up",
    may_be_large=True,
)
