"""Prompts that a person picks: delegate, review, second opinion.

Each becomes one message to the client's own model, which then calls the tools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import mcp_types as types
from mcp.shared.exceptions import MCPError

from codex_tools.codex.sandbox import Sandbox


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a prompt."""

    name: str
    description: str
    required: bool = False
    values: tuple[str, ...] = ()
    """What it may be, where that is a closed set."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and how its message is made of its arguments."""

    name: str
    title: str
    description: str
    arguments: tuple[Argument, ...]
    message: Callable[[Mapping[str, str]], str]


def _delegate(given: Mapping[str, str]) -> str:
    task, thread_id, sandbox = (given.get(key) for key in ("task", "thread_id", "sandbox"))
    tool = "codex_run"
    lines = [
        f"Delegate this task to Codex:\n\n{task}\n",
        "Write a prompt that stands on its own, since Codex sees nothing of this conversation: the"
        " goal, the files that matter, what must not change, and how to check the result.",
    ]
    if thread_id:
        tool = "codex_resume"
        lines[1] = (
            f"Go on in thread {thread_id}: Codex remembers it, so say only what is new, and how to"
            " check the result."
        )
    mode = (
        f"Use sandbox {sandbox}."
        if sandbox
        else "Use sandbox workspace-write if files have to change, else read-only."
    )
    return "\n".join(
        [
            *lines,
            f"Call {tool}. {mode} While it says running, call codex_wait with its run_id.",
            "Then look at files_changed yourself, run the check, and tell what was done, what was"
            " not, and the thread_id to go on with.",
        ]
    )


def _review(given: Mapping[str, str]) -> str:
    target = given.get("target") or "the uncommitted changes in this folder (git diff HEAD)"
    focus = f" Look above all at: {given['focus']}." if given.get("focus") else ""
    return (
        f"Let Codex review {target}.{focus}\n"
        "Call codex_run with sandbox read-only and ask for defects only: wrong results, lost data,"
        " races, leaks, security holes, broken callers, missing tests. Each with file and line,"
        " how it goes wrong, and how bad it is; no praise, no style. Give output_schema for a list"
        " of findings with path, line, severity (high, medium, low), problem and fix.\n"
        "Check each finding against the code before you pass it on. Report those that hold, worst"
        " first, and name those that you dropped and why. Change nothing yet."
    )


def _second_opinion(given: Mapping[str, str]) -> str:
    return (
        f"Get a second opinion from Codex on this:\n\n{given['question']}\n\n"
        "Form your own view first and keep it to yourself. Then call codex_run with sandbox"
        " read-only: put the question, the facts and the files that matter, without your answer and"
        " without leaning to one. Compare: where both agree, where they differ and who has the"
        " better evidence in the code. Where you differ, go on once with codex_resume and the"
        " strongest argument of the other side. Then say what you recommend."
    )


PROMPTS = (
    Prompt(
        "delegate",
        "Delegate a task to Codex",
        "Hand a task to Codex and check what comes back.",
        (
            Argument("task", "What is to be done", required=True),
            Argument("sandbox", "What Codex may change", values=get_args(Sandbox)),
            Argument("thread_id", "A thread of Codex to go on in"),
        ),
        _delegate,
    ),
    Prompt(
        "review",
        "Review by Codex",
        "Let Codex look for defects in changes or code, and check what it finds.",
        (
            Argument("target", "What to review; else the uncommitted changes"),
            Argument("focus", "What matters most"),
        ),
        _review,
    ),
    Prompt(
        "second_opinion",
        "Second opinion from Codex",
        "Ask Codex the same question, without your answer, and compare.",
        (Argument("question", "The question or decision", required=True),),
        _second_opinion,
    ),
)


def list_prompts() -> types.ListPromptsResult:
    """Return the prompts as MCP lists them."""
    return types.ListPromptsResult(
        prompts=[
            types.Prompt(
                name=prompt.name,
                title=prompt.title,
                description=prompt.description,
                arguments=[
                    types.PromptArgument(
                        name=each.name, description=each.description, required=each.required
                    )
                    for each in prompt.arguments
                ],
            )
            for prompt in PROMPTS
        ]
    )


def get_prompt(params: types.GetPromptRequestParams) -> types.GetPromptResult:
    """Return a prompt with its arguments filled in.

    Raises:
        MCPError: There is none of that name, or an argument is unknown, missing or no such value.
    """
    prompt = find_prompt(params.name)
    if prompt is None:
        names = ", ".join(each.name for each in PROMPTS)
        raise _invalid(f"Unknown prompt: {params.name}; there are {names}")
    given = {name: value.strip() for name, value in (params.arguments or {}).items()}
    known = {argument.name: argument for argument in prompt.arguments}
    for name, value in given.items():
        if name not in known:
            raise _invalid(f"{prompt.name} has no argument {name}; it has {', '.join(known)}")
        if value and known[name].values and value not in known[name].values:
            raise _invalid(f"{name} must be one of {', '.join(known[name].values)}")
    for argument in prompt.arguments:
        if argument.required and not given.get(argument.name):
            raise _invalid(f"{prompt.name} needs the argument {argument.name}")
    text = types.TextContent(type="text", text=prompt.message(given))
    return types.GetPromptResult(
        description=prompt.description, messages=[types.PromptMessage(role="user", content=text)]
    )


def find_prompt(name: str) -> Prompt | None:
    """Return the prompt of that name, if there is one."""
    return next((prompt for prompt in PROMPTS if prompt.name == name), None)


def values_of(
    ref: types.PromptReference | types.ResourceTemplateReference, name: str
) -> tuple[str, ...]:
    """Return what the argument *name* may be, where *ref* is a prompt that limits it."""
    prompt = find_prompt(ref.name) if isinstance(ref, types.PromptReference) else None
    arguments = prompt.arguments if prompt is not None else ()
    return next((each.values for each in arguments if each.name == name), ())


def _invalid(message: str) -> MCPError:
    return MCPError(code=types.INVALID_PARAMS, message=message)
