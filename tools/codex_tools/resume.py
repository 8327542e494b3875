"""codex_resume: go on in a thread, as it was left."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

from pydantic import field_validator, model_validator

from codex_tools.codex.errors import CodexUnsupported, InvalidArguments, ThreadNotFound
from codex_tools.codex.paths import codex_home
from codex_tools.codex.program import Program, find_codex
from codex_tools.codex.sandbox import Sandbox
from codex_tools.policy import Review
from codex_tools.rollouts.files import PACKED, find_archived, find_rollout
from codex_tools.rollouts.threads import ThreadState, newest_thread, read_state
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


class ResumeRequest(TurnOptions):
    """The arguments of codex_resume."""

    thread_id: str | None = None
    """From the result of an earlier run"""
    last: bool = False
    """Instead of thread_id: the newest thread of cwd"""
    all_dirs: bool = False
    """With last: of any folder"""

    @field_validator("thread_id")
    @classmethod
    def _uuid(cls, thread_id: str | None) -> str | None:
        # Codex takes anything else for a name, finds none, and begins a new thread.
        try:
            return None if thread_id is None else str(UUID(thread_id))
        except ValueError:
            raise ValueError("must be a UUID, as in the thread_id of a result") from None

    @model_validator(mode="after")
    def _one_of(self) -> ResumeRequest:
        if (self.thread_id is None) != self.last:
            raise ValueError("give either thread_id or last: true")
        if self.all_dirs and not self.last:
            raise ValueError("all_dirs goes with last: true")
        return self


async def resume(request: ResumeRequest, context: Context) -> RunResult:
    """Run a prompt in a thread that exists and return what came of it."""
    return await follow(await start(request, context), request, context)


async def start(request: ResumeRequest, context: Context) -> Run:
    """Start a turn in a thread that exists.

    Codex itself keeps nothing but the conversation: folder, sandbox, model and
    effort of a resumed turn come from its command line. Those that the request
    does not name are taken from the thread's last turn, never wider than the
    operator allows.
    """
    check_depth(context)
    review = Review(context.policy)
    output = await make_output(request)
    thread_id = request.thread_id or _newest(request, context)
    with ExitStack() as unless_started:
        # Locked before it is read: another run may be about to change it.
        lock = await context.runs.lock_thread(thread_id)
        unless_started.callback(lock.release)
        state = _state_of(thread_id)
        program = await find_codex(context.codex_bin)
        _check_resumable(state, program)
        _check_packed(state, program)
        sandbox, warnings = _sandbox(request, state, review)
        folder = _folder(request, state, context, review)
        turn = make_turn(
            request,
            context,
            review,
            cwd=folder,
            sandbox=sandbox,
            thread_id=thread_id,
            model=state.model,
            reasoning_effort=state.reasoning_effort,
        )
        warnings += await context.permit(review, folder, request.prompt)
        unless_started.pop_all()
    return context.runs.start(
        program,
        turn,
        output,
        before=state,
        lock=lock,
        caller=context.caller,
        warnings=warnings,
    )


def _newest(request: ResumeRequest, context: Context) -> str:
    folder = None
    if not request.all_dirs:
        cwd = request.cwd or str(context.default_cwd)
        folder = existing_folder("cwd", cwd, Review(context.policy))
    state = newest_thread(codex_home(), folder)
    if state is None:
        where = f" of {folder}" if folder is not None else ""
        raise ThreadNotFound(f"There is no thread{where} to resume in {codex_home()}.")
    return state.thread_id


def _state_of(thread_id: str) -> ThreadState:
    home = codex_home()
    path = find_rollout(home, thread_id)
    state = read_state(path) if path is not None else None
    if state is not None and state.thread_id == thread_id:
        return state
    if find_archived(home, thread_id) is not None:
        raise ThreadNotFound(
            f"Thread {thread_id} is archived.",
            f"Take it out with `codex unarchive {thread_id}`, then call again.",
        )
    raise ThreadNotFound(f"There is no thread {thread_id} in {home}.")


def _sandbox(
    request: ResumeRequest, state: ThreadState, review: Review
) -> tuple[Sandbox, tuple[str, ...]]:
    if request.sandbox is not None or state.sandbox is None:
        return review.sandbox(request.sandbox), ()
    sandbox = review.narrowed(state.sandbox)
    if sandbox == state.sandbox:
        return sandbox, ()
    return sandbox, (f"The thread ran with {state.sandbox}; the most allowed is {sandbox}.",)


def _check_resumable(state: ThreadState, program: Program) -> None:
    if state.is_paginated and not program.knows_paginated_threads:
        raise CodexUnsupported(
            f"paginated history, in which thread {state.thread_id} is kept, and would damage"
            " it for good by resuming it",
            program.version_text,
            "Update Codex to 0.147.0 or later, or begin a new thread with codex_run.",
        )


def _check_packed(state: ThreadState, program: Program) -> None:
    if state.path.name.endswith(PACKED) and not program.knows_packed_threads:
        raise CodexUnsupported(
            f"compressed rollouts, as that of thread {state.thread_id} is",
            program.version_text,
            "Update Codex, or begin a new thread with codex_run.",
        )


def _folder(request: ResumeRequest, state: ThreadState, context: Context, review: Review) -> Path:
    cwd = request.cwd or state.cwd or str(context.default_cwd)
    if request.cwd is None and not Path(cwd).is_dir():
        raise InvalidArguments(
            [f"cwd: the thread's folder {cwd} is not there any more; name another one"]
        )
    return existing_folder("cwd", cwd, review)


RESUME = Tool(
    name="codex_resume",
    title="Resume a Codex thread",
    description=(
        "Go on in an earlier Codex thread: Codex remembers all of it, so send only what is new."
        " Name it by thread_id, or take the newest one of cwd with last: true."
        " Folder, sandbox, model and effort stay as in the thread's last turn unless given."
        " One run at a time in a thread (thread_busy). Result as of codex_run."
    ),
    request=ResumeRequest,
    result=RunResult,
    call=resume,
    start=start,
    refuse=refuse,
    search_hint="continue earlier Codex thread, follow up",
    may_be_large=True,
)
