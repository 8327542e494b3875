"""Define what Codex asks while a turn runs, and how a running turn is spoken to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, Protocol

from codex_tools.codex.clean_text import clean
from codex_tools.codex.json_object import Json
from codex_tools.codex.masking import mask

Kind = Literal["command", "patch", "permissions", "mcp_tool", "form", "choice"]

Approvals = Literal["never", "ask", "auto"]
"""Whether Codex may ask before it leaves the sandbox; `auto`: Codex's own reviewer decides."""

SHOWN_LIMIT = 2000
"""Characters of one text that a person is shown."""

FILES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Question:
    """What Codex waits for."""

    id: str
    kind: Kind
    text: str = ""
    """The question in words, as Codex, the model or an MCP server puts it."""
    command: str | None = None
    cwd: str | None = None
    reason: str | None = None
    """Why the model wants it."""
    files: tuple[str, ...] = ()
    """The paths of a patch."""
    diff: str | None = None
    schema: Json | None = None
    """JSON Schema of the content that a form wants."""
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """For a choice: the id of each question, with the labels that Codex suggests."""
    for_caller: bool = False
    """True if the model asks the agent that delegated the task, and nothing is to be allowed."""
    until: float = 0.0
    """Time on the event loop's clock at which the question is declined."""

    @property
    def leaves_sandbox(self) -> bool:
        """True if accepting lets something happen that the sandbox does not allow."""
        return self.kind in ("command", "patch", "permissions", "mcp_tool")


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision about a question."""

    accept: bool
    for_run: bool = False
    """True to accept the same command or patch for the rest of the thread without a question."""
    content: Json | None = None
    """The content of a form, or for a choice the chosen texts by the question's id."""


DECLINED = Answer(accept=False)


class Handle(Protocol):
    """A running turn that can be spoken to; an engine that has one hands it out."""

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions that wait for an answer, oldest first."""
        ...

    def answer(self, question_id: str, answer: Answer) -> bool:
        """Answer a question; return False if it no longer waits."""
        ...

    async def steer(self, text: str) -> None:
        """Add *text* to the running turn.

        Raises:
            NotSteered: Codex does not take it.
        """
        ...


class NotSteered(Exception):
    """Codex did not take words for a running turn; the text says why."""


_ASKS = {
    "command": "Codex asks to run a command outside its sandbox.",
    "patch": "Codex asks to change files that its sandbox protects.",
    "permissions": "Codex asks for more permissions for this turn.",
    "mcp_tool": "Codex asks to call a tool of one of its MCP servers.",
    "form": "An MCP server of Codex asks for data.",
    "choice": "Codex asks a question.",
}


def describe(question: Question) -> list[str]:
    """Return a question as lines of text, for a person or for a model that sees only text.

    All foreign text is kept on its line, and quoted, so that no part of it passes for a line of
    this description.
    """
    lines = ["Codex asks its caller a question." if question.for_caller else _ASKS[question.kind]]
    if question.command is not None:
        lines.append(f"Command: {_quoted(question.command)}")
    if question.cwd is not None:
        lines.append(f"Folder: {_quoted(question.cwd)}")
    if question.files:
        names = ", ".join(_quoted(name) for name in question.files[:FILES_SHOWN])
        left = len(question.files) - FILES_SHOWN
        lines.append(f"Files: {names}{f' and {left} more' if left > 0 else ''}")
    if question.text and question.text != question.reason:
        names = {"permissions": "Permissions", "mcp_tool": "Call"}
        lines.append(f"{names.get(question.kind, 'Question')}: {_quoted(question.text)}")
    if question.reason:
        lines.append(f"Reason: {_quoted(question.reason)}")
    if question.diff:
        lines.append(f"Diff: {_quoted(question.diff)}")
    for name, labels in question.options:
        if labels:
            shown = ", ".join(_quoted(label) for label in labels)
            lines.append(f"Answers that Codex suggests for {_quoted(name)}: {shown}")
    return lines


def _quoted(text: str) -> str:
    text = mask(clean(text))
    if len(text) > SHOWN_LIMIT:
        half = SHOWN_LIMIT // 2
        text = f"{text[:half]} … {text[-half:]}"
    return json.dumps(text, ensure_ascii=False)
