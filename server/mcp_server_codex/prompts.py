"""MCP prompts that a person picks in the client: delegate, review, second opinion.

Each prompt becomes one message to the client's own model. That model then calls
this server's tools.
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
    """The allowed values; empty if any value is allowed."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and the function that makes its message from its arguments."""

    name: str
    title: str
    description: str
    arguments: tuple[Argument, ...]
    message: Callable[[Mapping[str, str]], str]


def _with_model(given: Mapping[str, str]) -> str:
    return f" Use the model {given['model']}." if given.get("model") else ""


def _delegate(given: Mapping[str, str]) -> str:
    task, thread_id, sandbox = (given.get(key) for key in ("task", "thread_id", "sandbox"))
    tool = "codex_run"
    lines = [
        f"Delegate this task to Codex:\n\n{task}\n",
        "Codex sees nothing of this conversation, so write a complete prompt: the goal, the files"
        " that matter, what must not change, and how to check the result.",
    ]
    if thread_id:
        tool = "codex_resume"
        lines[1] = (
            f"Continue thread {thread_id}. Codex remembers that thread, so write only what is new"
            " and how to check the result."
        )
    mode = (
        f"Use sandbox {sandbox}."
        if sandbox
        else "Use sandbox workspace-write if files must change, otherwise read-only."
    )
    return "\n".join(
        [
            *lines,
            f"Call {tool}. {mode}{_with_model(given)}",
            "While its status is running, call codex_wait with its run_id.",
            "Then read the files in files_changed yourself and run the check. Report what was done,"
            " what was not done, and the thread_id with which the work can continue.",
        ]
    )


_BY_TARGET = (
    ' {"uncommitted": true}, {"base": "BRANCH"} or {"commit": "SHA"} without a prompt, for anything'
    " else"
)


def _review(given: Mapping[str, str]) -> str:
    target = given.get("target") or "the uncommitted changes in this folder (git diff HEAD)"
    focus = f" Focus on: {given['focus']}." if given.get("focus") else ""
    how = "" if focus else _BY_TARGET
    return (
        f"Let Codex review {target}.{focus}\n"
        f"Call codex_run with review, which runs Codex's own reviewer read-only:{how}"
        ' {"custom": true} and a prompt that says what to look at. In that prompt, ask for defects'
        " only: wrong results, lost data, races, leaks, security holes, broken callers, missing"
        f" tests; no praise and no style notes.{_with_model(given)} The findings are in"
        " structured_output.\n"
        "Check each finding against the code before you report it. Report the confirmed findings,"
        " the worst first. Name the findings that you dropped, each with the reason. Do not change"
        " any file yet."
    )


def _second_opinion(given: Mapping[str, str]) -> str:
    return (
        f"Get a second opinion from Codex on this:\n\n{given['question']}\n\n"
        "First form your own answer and do not show it to Codex. Then call codex_run with sandbox"
        f" read-only.{_with_model(given)} Give Codex the question, the facts and the files that"
        " matter, but not your answer and no hint of it. Compare the two answers: where they agree,"
        " where they differ, and which one has the better evidence in the code. If they differ,"
        " call codex_resume once with your strongest argument against Codex's answer. Then say what"
        " you recommend."
    )


_MODEL = Argument("model", "The model for Codex; default: the one that Codex is configured for")

PROMPTS = (
    Prompt(
        "delegate",
        "Delegate a task to Codex",
        "Hand a task to Codex and check the result.",
        (
            Argument("task", "The task for Codex", required=True),
            Argument("sandbox", "What Codex may change", values=get_args(Sandbox)),
            Argument("thread_id", "The Codex thread to continue; default: a new thread"),
            _MODEL,
        ),
        _delegate,
    ),
    Prompt(
        "review",
        "Review by Codex",
        "Let Codex look for defects in changes or code, and check its findings.",
        (
            Argument("target", "What to review; default: the uncommitted changes"),
            Argument("focus", "What Codex should look at most"),
            _MODEL,
        ),
        _review,
    ),
    Prompt(
        "second_opinion",
        "Second opinion from Codex",
        "Ask Codex the same question without showing your answer, and compare both answers.",
        (Argument("question", "The question or decision", required=True), _MODEL),
        _second_opinion,
    ),
)


def list_prompts() -> types.ListPromptsResult:
    """Return all prompts in the form of MCP's `prompts/list`."""
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
        MCPError: No prompt has that name, or an argument is unknown, missing or has a value
            that is not allowed.
    """
    prompt = find_prompt(params.name)
    if prompt is None:
        names = ", ".join(each.name for each in PROMPTS)
        raise _invalid(f"unknown prompt {params.name!r}; the prompts are {names}")
    given = {name: value.strip() for name, value in (params.arguments or {}).items()}
    known = {argument.name: argument for argument in prompt.arguments}
    for name, value in given.items():
        if name not in known:
            raise _invalid(
                f"prompt {prompt.name} has no argument {name!r}; it takes {', '.join(known)}"
            )
        if value and known[name].values and value not in known[name].values:
            raise _invalid(f"{name} must be one of {', '.join(known[name].values)}, not {value!r}")
    for argument in prompt.arguments:
        if argument.required and not given.get(argument.name):
            raise _invalid(f"prompt {prompt.name} needs the argument {argument.name}")
    text = types.TextContent(type="text", text=prompt.message(given))
    return types.GetPromptResult(
        description=prompt.description, messages=[types.PromptMessage(role="user", content=text)]
    )


def find_prompt(name: str) -> Prompt | None:
    """Return the prompt called *name*, or None."""
    return next((prompt for prompt in PROMPTS if prompt.name == name), None)


def values_of(
    ref: types.PromptReference | types.ResourceTemplateReference, name: str
) -> tuple[str, ...]:
    """Return the allowed values of the argument *name*.

    The result is empty if *ref* is no prompt or the argument takes any value.
    """
    prompt = find_prompt(ref.name) if isinstance(ref, types.PromptReference) else None
    arguments = prompt.arguments if prompt is not None else ()
    return next((each.values for each in arguments if each.name == name), ())


def _invalid(message: str) -> MCPError:
    return MCPError(code=types.INVALID_PARAMS, message=message)
