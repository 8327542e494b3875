"""Define codex and codex-reply: the tools of Codex's own `mcp-server`, which Codex 0.154 removed.

Names, arguments and results are those of 0.153.4. Added are those that only 0.60.1 had: the name
conversationId, the argument profile and two more approval policies. Both lists come from the
tools/list of these versions. Users of `codex mcp-server` change one line of their client's
settings.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from codex_tools import resume, run
from codex_tools.codex.errors import CodexError, InvalidArguments
from codex_tools.codex.record import Record
from codex_tools.codex.sandbox import Sandbox
from codex_tools.codex.toml import to_toml
from codex_tools.engines.engine import TurnRequest
from codex_tools.runs.result import RunResult, tell_error
from codex_tools.runs.result_text import Words, error_text
from codex_tools.tool import Context, Tool
from codex_tools.turn_options import PROMPT_LIMIT, Model, Profile

INSTRUCTIONS_LIMIT = 60_000
"""Maximum characters of each kind of instructions."""

ARGUMENT_LIMIT = 120_000
"""Maximum bytes of instructions on the command line; Linux takes 131,072 in one argument."""

_FOREVER = float("inf")
"""Seconds to wait: a result of the old shape cannot report a run as running, so its call waits."""


class CodexRequest(Record):
    """The arguments of codex."""

    prompt: str = Field(min_length=1, max_length=PROMPT_LIMIT)
    approval_policy: Literal["untrusted", "on-failure", "on-request", "never"] | None = Field(
        None, alias="approval-policy"
    )
    """No approvals: what the sandbox forbids fails"""
    base_instructions: str | None = Field(
        None, alias="base-instructions", max_length=INSTRUCTIONS_LIMIT
    )
    """Replaces the default"""
    compact_prompt: str | None = Field(None, alias="compact-prompt", max_length=INSTRUCTIONS_LIMIT)
    config: dict[str, Any] | None = None
    """Few keys are allowed"""
    cwd: str | None = None
    developer_instructions: str | None = Field(
        None, alias="developer-instructions", max_length=INSTRUCTIONS_LIMIT
    )
    model: Model | None = None
    profile: Profile | None = None
    sandbox: Sandbox | None = None


class CodexReplyRequest(Record):
    """The arguments of codex-reply."""

    prompt: str = Field(min_length=1, max_length=PROMPT_LIMIT)
    threadId: str | None = None
    conversationId: str | None = None
    """threadId's former name"""

    @model_validator(mode="after")
    def _one_of(self) -> CodexReplyRequest:
        if (self.threadId is None) == (self.conversationId is None):
            raise ValueError("give threadId, as in the result of codex")
        return self


class CodexResult(Record):
    """The result of both tools."""

    threadId: str
    content: str


class CodexFailure(CodexResult):
    """The result of both tools after a failure; *threadId* is empty if there is no thread."""


async def call_codex(request: CodexRequest, context: Context) -> CodexResult:
    """Run a task in a new thread and wait until it has ended."""
    options = _options(request)

    def adapt(turn: TurnRequest) -> TurnRequest:
        added = (
            *_setting("developer_instructions", request.developer_instructions),
            *_setting("compact_prompt", request.compact_prompt),
        )
        return replace(
            turn, config=(*turn.config, *added), base_instructions=request.base_instructions
        )

    started = await run.start(options, context, adapt)
    return _to_old(await context.follow(started, options.wait_s))


async def call_reply(request: CodexReplyRequest, context: Context) -> CodexResult:
    """Continue a thread and wait until the turn has ended."""
    options = resume.RESUME.read(
        {
            "prompt": request.prompt,
            "thread_id": request.threadId or request.conversationId,
            "wait_s": _FOREVER,
        }
    )
    return _to_old(await resume.resume(options, context))


def refuse(error: CodexError) -> CodexResult:
    """Return the result of a request that was refused."""
    shown = tell_error(error)
    return CodexFailure(threadId="", content=f"{shown.kind}: {shown.message}\nHint: {shown.hint}")


def words(result: CodexResult) -> Words:
    """Return a result as text.

    Without a thread, the tools of `codex mcp-server` returned no structured content.
    """
    failed = isinstance(result, CodexFailure)
    return Words(result.content, is_error=failed, has_data=not failed or bool(result.threadId))


def _options(request: CodexRequest) -> run.RunRequest:
    given = request.model_dump(include={"prompt", "sandbox", "model", "profile", "config"})
    # As in `codex mcp-server`, a relative path starts at this server's own folder.
    cwd = None if request.cwd is None else str(Path(request.cwd).absolute())
    return run.RUN.read({**given, "cwd": cwd, "wait_s": _FOREVER})


def _setting(key: str, text: str | None) -> tuple[tuple[str, str], ...]:
    """Return Codex's setting *key* as a pair of key and TOML value; nothing if *text* is None."""
    if text is None:
        return ()
    try:
        value = to_toml(text)
        size = len(value.encode())
    except ValueError as error:
        raise InvalidArguments([f"{key.replace('_', '-')}: {error}"]) from None
    if size > ARGUMENT_LIMIT:
        raise InvalidArguments([f"{key.replace('_', '-')}: has more than {ARGUMENT_LIMIT:,} bytes"])
    return ((key, value),)


def _to_old(result: RunResult) -> CodexResult:
    if result.status == "completed":
        return CodexResult(threadId=result.thread_id or "", content=result.final_response or "")
    return CodexFailure(threadId=result.thread_id or "", content=error_text(result))


CODEX = Tool(
    name="codex",
    title=None,
    description="Run a Codex session. Compatible with `codex mcp-server`; codex_run does more.",
    request=CodexRequest,
    result=CodexResult,
    call=call_codex,
    refuse=refuse,
    words=words,
)

CODEX_REPLY = Tool(
    name="codex-reply",
    title=None,
    description="Continue a session of the tool codex. codex_resume does more.",
    request=CodexReplyRequest,
    result=CodexResult,
    call=call_reply,
    refuse=refuse,
    words=words,
)
