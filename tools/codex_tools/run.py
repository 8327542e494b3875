"""codex_run: delegate a task to Codex in a new thread."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from codex_tools.codex.errors import CodexError, InvalidArguments
from codex_tools.codex.exec import TurnRequest
from codex_tools.codex.program import find_codex
from codex_tools.codex.record import Record
from codex_tools.codex.sandbox import Sandbox
from codex_tools.outcome import Run
from codex_tools.output_schema import check_schema
from codex_tools.result import RunResult, make_result
from codex_tools.runs import wait_while_called
from codex_tools.tool import Context, Folder, Tool

PROMPT_LIMIT = 1_000_000
"""Characters; Codex since 0.120 takes 1,048,576."""


def _word(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][^\s\x00-\x1f\x7f\"'\\]{0,199}", value) is None:
        raise ValueError("must be a plain name")
    return value


Word = Annotated[str, AfterValidator(_word)]
"""A name that cannot be taken for an option, nor break out of a TOML string."""


class TurnOptions(Record):
    """The options that codex_run and codex_resume share."""

    prompt: str = Field(min_length=1, max_length=PROMPT_LIMIT)
    """The task; self-contained, Codex sees nothing of this conversation"""
    cwd: Folder | None = None
    """Absolute path of the folder to work in"""
    sandbox: Sandbox | None = None
    """What Codex may change"""
    model: Word | None = None
    """Leave out for the user's default"""
    reasoning_effort: Word | None = None
    """Such as low, medium, high"""
    profile: Word | None = None
    """Profile of the user's Codex configuration"""
    output_schema: dict[str, Any] | None = None
    """JSON Schema for the answer, which then comes parsed and validated in structured_output"""
    images: list[str] | None = None
    """Image files to show to the model"""
    add_dirs: list[str] | None = None
    """Further folders that Codex may write to"""
    web_search: bool | None = None
    config: dict[str, Any] | None = None
    """Codex settings as dotted key and value; few are allowed"""
    skip_git_repo_check: bool = False
    """Work outside a git repository too"""
    timeout_s: float | None = Field(None, gt=0)
    """End the run after so many seconds"""
    wait_s: float | None = Field(None, ge=0)
    """Seconds to wait for the result; 0 returns at once, then use codex_wait"""

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("must not be blank")
        return prompt


class RunRequest(TurnOptions):
    """The arguments of codex_run."""

    ephemeral: bool = False
    """Keep no record; the thread cannot be resumed"""


async def start(request: RunRequest, context: Context) -> Run:
    """Start a task in a new thread."""
    folder = existing_folder("cwd", request.cwd or str(context.default_cwd), context)
    sandbox = context.policy.sandbox_for(request.sandbox)
    turn = make_turn(request, context, cwd=folder, sandbox=sandbox, ephemeral=request.ephemeral)
    program = await find_codex(context.codex_bin)
    if request.ephemeral:
        program.need("--ephemeral")
    return context.runs.start(program, turn)


async def run(request: RunRequest, context: Context) -> RunResult:
    """Run a task in a new thread and return what came of it."""
    return await follow(await start(request, context), request, context)


async def follow(started: Run, request: TurnOptions, context: Context) -> RunResult:
    """Tell of a run while the call waits for it; return how it stands then."""
    context.watch(started)
    wait_s = context.wait_s if request.wait_s is None else request.wait_s
    return await wait_while_called(started, wait_s)


def make_turn(
    options: TurnOptions,
    context: Context,
    *,
    cwd: Path,
    sandbox: Sandbox,
    thread_id: str | None = None,
    model: str | None = None,
    reasoning_effort: str | None = None,
    ephemeral: bool = False,
) -> TurnRequest:
    """Return the turn that *options* ask for, checked against policy and disk.

    *model* and *reasoning_effort* hold where the options name none.

    Raises:
        InvalidArguments: A file or folder is not there.
        NotAllowed: The policy forbids something.
        InvalidOutputSchema: `output_schema` is no JSON Schema.
    """
    if options.output_schema is not None:
        check_schema(options.output_schema)
    return TurnRequest(
        prompt=options.prompt,
        cwd=cwd,
        sandbox=sandbox,
        timeout_s=context.policy.timeout_for(options.timeout_s),
        stall_s=context.policy.stall_s,
        thread_id=thread_id,
        model=options.model or model,
        reasoning_effort=options.reasoning_effort or reasoning_effort,
        profile=options.profile,
        output_schema=options.output_schema,
        images=tuple(_existing_file(image, cwd, context) for image in options.images or ()),
        add_dirs=tuple(
            existing_folder("add_dirs", str(cwd / folder), context)
            for folder in options.add_dirs or ()
        ),
        web_search=options.web_search,
        config=context.policy.config_for(options.config or {}),
        skip_git_repo_check=options.skip_git_repo_check,
        ephemeral=ephemeral,
    )


def existing_folder(name: str, path: str, context: Context) -> Path:
    """Return *path* as a folder that is there and allowed; several versions of Codex check neither.

    Raises:
        InvalidArguments: It is no folder.
        NotAllowed: It lies outside the roots.
    """
    folder = _real(name, path, context)
    if not folder.is_dir():
        raise InvalidArguments([f"{name}: {path} is not a folder"])
    return folder


def _existing_file(image: str, cwd: Path, context: Context) -> Path:
    file = _real("images", str(cwd / image), context)
    if not file.is_file():
        raise InvalidArguments([f"images: {image} is not a file"])
    return file


def _real(name: str, path: str, context: Context) -> Path:
    if re.search(r"[\x00-\x1f\x7f]", path):
        raise InvalidArguments([f"{name}: control characters are not taken in a path"])
    real = Path(path).resolve()
    context.policy.check_inside(name, real)
    return real


def refuse(error: CodexError) -> RunResult:
    """Return the result of a request that was refused."""
    return make_result("failed", error=error)


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
)
