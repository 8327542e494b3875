"""What codex_run and codex_resume share: their arguments, checked and made into a turn."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from pydantic import AfterValidator, Field, field_validator

from codex_tools.codex.errors import CodexError, InvalidArguments, TooDeep
from codex_tools.codex.masking import shorten
from codex_tools.codex.record import Record
from codex_tools.codex.sandbox import Sandbox
from codex_tools.engines.engine import TurnRequest
from codex_tools.policy import Review
from codex_tools.runs.register import wait_while_called
from codex_tools.runs.result import RunResult, make_result
from codex_tools.runs.run import Run
from codex_tools.schemas.output_schema import Output
from codex_tools.tool import Context, Folder

PROMPT_LIMIT = 1_000_000
"""Characters; Codex since 0.120 takes 1,048,576."""


PATH_LIMIT = 4096
"""Characters of a path, as Linux has it."""


def _plain(pattern: str) -> Any:
    """Return a name that can be taken for no option, no path and nothing but itself."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError("must be a plain name")
        return value

    return AfterValidator(check)


Model = Annotated[str, _plain(r"[A-Za-z0-9][!#-&(-\[\]-~]{0,199}")]


Effort = Annotated[str, _plain(r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}")]


Profile = Annotated[str, _plain(r"[A-Za-z0-9](\.?[A-Za-z0-9_-]){0,99}")]


Paths = Annotated[list[str], Field(max_length=64)]


class TurnOptions(Record):
    """The options that codex_run and codex_resume share."""

    prompt: str = Field(min_length=1, max_length=PROMPT_LIMIT)
    """The task; self-contained, Codex sees nothing of this conversation"""
    cwd: Folder | None = None
    """Absolute path of the folder to work in"""
    sandbox: Sandbox | None = None
    """What Codex may change"""
    model: Model | None = None
    """Leave out for the user's default"""
    reasoning_effort: Effort | None = None
    """Such as low, medium, high"""
    profile: Profile | None = None
    """Profile of the user's Codex configuration"""
    output_schema: dict[str, Any] | None = None
    """JSON Schema for the answer, which then comes parsed and validated in structured_output"""
    repair_attempts: int = Field(1, ge=0, le=3)
    """Further turns to mend an answer that breaks output_schema"""
    images: Paths | None = None
    """Image files to show to the model"""
    add_dirs: Paths | None = None
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


async def follow(started: Run, request: TurnOptions, context: Context) -> RunResult:
    """Tell of a run while the call waits for it; return how it stands then."""
    context.watch(started)
    wait_s = context.wait_s if request.wait_s is None else request.wait_s
    return await wait_while_called(started, wait_s)


def check_depth(context: Context) -> None:
    """Insist that one more run may be inside those that this server lives in.

    Raises:
        TooDeep: It may not.
    """
    if context.depth >= context.policy.max_depth:
        raise TooDeep(context.depth, context.policy.max_depth)


async def make_output(options: TurnOptions) -> Output | None:
    """Return the shape that the answer shall have, if one was asked for.

    Raises:
        InvalidOutputSchema: It is no JSON Schema, or none that a provider can keep to.
    """
    if options.output_schema is None:
        return None
    make = functools.partial(Output.of, options.output_schema, options.repair_attempts)
    return await anyio.to_thread.run_sync(make)  # A large one takes seconds.


def make_turn(
    options: TurnOptions,
    context: Context,
    review: Review,
    *,
    cwd: Path,
    sandbox: Sandbox,
    thread_id: str | None = None,
    model: str | None = None,
    reasoning_effort: str | None = None,
    ephemeral: bool = False,
) -> TurnRequest:
    """Return the turn that *options* ask for, checked against the disk, under *review*.

    *model* and *reasoning_effort* hold where the options name none.

    Raises:
        InvalidArguments: A file or folder is not there.
        NotAllowed: The policy forbids something that no person can be asked about.
    """
    add_dirs = tuple(
        existing_folder("add_dirs", str(cwd / folder), review) for folder in options.add_dirs or ()
    )
    for name, folder in (("cwd", cwd), *(("add_dirs", each) for each in add_dirs)):
        review.writable(name, folder, sandbox)
    return TurnRequest(
        prompt=options.prompt,
        cwd=cwd,
        sandbox=sandbox,
        timeout_s=review.timeout(options.timeout_s),
        stall_s=context.policy.stall_s,
        thread_id=thread_id,
        model=options.model or model,
        reasoning_effort=options.reasoning_effort or reasoning_effort,
        profile=options.profile,
        images=tuple(_existing_file(image, cwd, review) for image in options.images or ()),
        add_dirs=add_dirs,
        web_search=options.web_search,
        config=review.config(options.config or {}),
        skip_git_repo_check=options.skip_git_repo_check,
        ephemeral=ephemeral,
        environment=context.policy.environment,
        depth=context.depth + 1,
    )


def existing_folder(name: str, path: str, review: Review) -> Path:
    """Return *path* as a folder that is there, links resolved; it goes under *review*.

    Several versions of Codex do not look whether it is there.

    Raises:
        InvalidArguments: It is no folder.
    """
    return _existing(name, path, Path.is_dir, "a folder", review)


def _existing_file(image: str, cwd: Path, review: Review) -> Path:
    return _existing("images", str(cwd / image), Path.is_file, "a file", review)


def _existing(
    name: str, path: str, exists: Callable[[Path], bool], kind: str, review: Review
) -> Path:
    """Return the real place behind *path*: links that change later change nothing then."""
    if re.search(r"[\x00-\x1f\x7f]", path):
        raise InvalidArguments([f"{name}: control characters are not taken in a path"])
    if len(path) > PATH_LIMIT:
        raise InvalidArguments([f"{name}: a path has {PATH_LIMIT} characters at most"])
    try:
        path.encode()
        real = Path(path).resolve()
    except (OSError, UnicodeEncodeError, RuntimeError):  # The last for links in a ring.
        raise InvalidArguments([f"{name}: {shorten(path, 300)!r} is not {kind}"]) from None
    excess = review.inside(name, real)
    try:
        found = exists(real)
    except OSError:  # A name longer than the file system has.
        found = False
    if found:
        return real
    # Outside the roots, what is not there looks like what is: nobody may feel around.
    raise excess or InvalidArguments([f"{name}: {shorten(path, 300)!r} is not {kind}"])


def refuse(error: CodexError) -> RunResult:
    """Return the result of a request that was refused."""
    return make_result("failed", error=error)
