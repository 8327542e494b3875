"""Define the arguments that codex_run and codex_resume share."""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from codex_tools.codex.questions import Approvals
from codex_tools.codex.record import Folder, Record
from codex_tools.codex.sandbox import Isolation, Sandbox
from codex_tools.codex.workers import on_cpu
from codex_tools.schemas.output_schema import Output

PROMPT_LIMIT = 1_000_000
"""Maximum characters of a prompt; Codex since 0.120 takes 1,048,576."""


def _plain(pattern: str) -> Any:
    """Return a validator for names that cannot be mistaken for an option or a path."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError("must be a plain name")
        return value

    return AfterValidator(check)


Model = Annotated[str, _plain(r"[A-Za-z0-9][!#-&(-\[\]-~]{0,199}")]


Effort = Annotated[str, _plain(r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}")]


Profile = Annotated[str, _plain(r"[A-Za-z0-9](\.?[A-Za-z0-9_-]){0,99}")]


Names = Annotated[list[str], Field(max_length=64)]


Paths = Annotated[list[str], Field(max_length=64)]


class TurnOptions(Record):
    """The options that codex_run and codex_resume share."""

    prompt: str = Field(min_length=1, max_length=PROMPT_LIMIT)
    """The task, self-contained: Codex cannot see this conversation"""
    cwd: Folder | None = None
    """Absolute path of the folder to work in"""
    sandbox: Sandbox | None = None
    """What Codex may change"""
    isolation: Isolation | None = None
    """copy: work in a copy of the project, which changes only by codex_apply"""
    place: Annotated[str, _plain(r"[a-z0-9][a-z0-9_-]{0,39}")] | None = None
    """Machine or label that the operator named, or any"""
    model: Model | None = None
    """Leave out for the user's default"""
    reasoning_effort: Effort | None = None
    """Such as low, medium, high"""
    profile: Profile | None = None
    """Profile of the user's configuration"""
    output_schema: dict[str, Any] | None = None
    """JSON Schema of the answer, returned parsed and validated in structured_output"""
    repair_attempts: int = Field(1, ge=0, le=3)
    """Extra turns to correct an answer that violates output_schema"""
    images: Paths | None = None
    """Image files to show"""
    add_dirs: Paths | None = None
    """Extra folders to write to"""
    web_search: bool | None = None
    mcp_servers: Literal["all", "none"] | Names = "all"
    """Which of Codex's own MCP servers to start"""
    config: dict[str, Any] | None = None
    """Codex settings by dotted key; few are allowed"""
    skip_git_repo_check: bool = False
    """Allow cwd outside a git repository"""
    approvals: Approvals | None = None
    """ask: Codex may ask before it leaves the sandbox; auto: Codex's own reviewer decides"""
    ask_caller: bool = False
    """Let Codex ask you; answer with codex_answer"""
    timeout_s: float | None = Field(None, gt=0)
    """Stop the run after this many seconds"""
    max_tokens: int | None = Field(None, ge=1)
    """Stop the run when it has used so many"""
    max_cost_usd: float | None = Field(None, gt=0)
    """The same for its estimated cost"""
    wait_s: float | None = Field(None, ge=0)
    """Seconds to wait for the result; 0: at once, then use codex_wait"""

    idempotency_key: str | None = Field(None, max_length=200)
    """The same key returns the same run for a day"""
    dry_run: bool = False
    """Start nothing; return the command line"""

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("must not be blank")
        return prompt


async def make_output(options: TurnOptions) -> Output | None:
    """Return the schema that the answer must satisfy, or None if the caller gave none.

    Raises:
        InvalidOutputSchema: `output_schema` is not a JSON Schema, or no provider can follow it.
    """
    if options.output_schema is None:
        return None
    make = functools.partial(Output.of, options.output_schema, options.repair_attempts)
    return await on_cpu(make)  # A large schema takes seconds to prepare.
