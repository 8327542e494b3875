"""Show callers what Codex waits for, as a bounded Record."""

from __future__ import annotations

from typing import Any, Literal

import anyio
import orjson
from pydantic import ConfigDict, Field

from codex_tools.codex.json_object import Json
from codex_tools.codex.masking import quote
from codex_tools.codex.questions import Question
from codex_tools.codex.record import Record

QUESTION_LIMIT = 4000
"""Characters of each text of a question."""

QUESTION_FILES = 20
"""Files of a question that asks about a patch."""

NAME_LIMIT = 300
"""Characters of a path, and of a label."""


class Choice(Record):
    """One of the questions of a choice, with the answers that Codex suggests."""

    id: str
    labels: list[str]


class OpenQuestion(Record):
    """What Codex waits for."""

    # pydantic's own `schema` must not be the name of an attribute.
    model_config = ConfigDict(serialize_by_alias=True)

    id: str
    kind: Literal["command", "patch", "permissions", "mcp_tool", "form", "choice"]
    text: str
    command: str | None
    cwd: str | None
    reason: str | None
    files: list[str]
    diff: str | None
    content_schema: Any = Field(alias="schema")
    options: list[Choice]
    answer_within_s: float


def shown_question(question: Question) -> OpenQuestion:
    """Return *question* as the Record that callers get: bounded, with secrets masked."""
    left_s = question.until - anyio.current_time()
    return OpenQuestion(
        id=question.id,
        kind=question.kind,
        text=quote(question.text, QUESTION_LIMIT),
        command=_quoted(question.command),
        cwd=_quoted(question.cwd),
        reason=_quoted(question.reason),
        files=[_name(name) for name in question.files[:QUESTION_FILES]],
        diff=_quoted(question.diff),
        schema=question.schema if _is_small(question.schema) else None,
        options=[
            Choice(id=name, labels=[_name(label) for label in labels[:QUESTION_FILES]])
            for name, labels in question.options[:QUESTION_FILES]
        ],
        answer_within_s=round(max(left_s, 0.0), 1),
    )


def _quoted(text: str | None) -> str | None:
    return None if text is None else quote(text, QUESTION_LIMIT)


def _is_small(schema: Json | None) -> bool:
    return schema is None or len(orjson.dumps(schema)) <= QUESTION_LIMIT


def _name(text: str) -> str:
    return quote(text, NAME_LIMIT)
