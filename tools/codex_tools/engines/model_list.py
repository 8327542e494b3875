"""Ask Codex which models it offers: `model/list` of `codex app-server`, under the guard.

No thread is begun, so that no MCP server starts and nothing is written to config.toml. With a
ChatGPT login, 0.147.0 to 0.171.0 ask the provider which models the account has. Without one, and
with 0.60.1, Codex answers with the list that it was built with. 0.77.0 to 0.120.0 ask OpenAI, and
without a network take 3 s before they answer with that list (all seen).

The answer is that of the user's own configuration. A profile, or `config` of a run that names
another provider, plays no part: such a run may meet models that are not in the list.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio

from codex_tools.codex.json_object import Json, object_of, objects_of, text_of
from codex_tools.codex.masking import quote
from codex_tools.codex.paths import codex_home, file_stamp
from codex_tools.codex.program import Program
from codex_tools.codex.workers import on_cpu, on_disk
from codex_tools.engines.process import open_child

ANSWER_WITHIN_S = 5.0
"""Seconds for the answer, which took 0.1 to 0.6 s, and 3.4 s for 0.77.0 without a network."""

KEPT_S = 3600.0
"""Seconds for which an answer is kept: OpenAI may offer other models later."""

MODELS_KEPT = 50

_REQUESTS = b"""\
{"id":1,"method":"initialize","params":{"clientInfo":{"name":"mcp-server-codex","version":"1"}}}
{"method":"initialized"}
{"id":2,"method":"getAuthStatus","params":{"includeToken":false,"refreshToken":false}}
{"id":3,"method":"model/list","params":{}}
"""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that Codex offers."""

    name: str
    description: str
    efforts: tuple[str, ...]
    """Values of reasoning_effort that it supports."""
    is_default: bool


@dataclass(frozen=True, slots=True)
class ModelList:
    """The models that Codex offers, the best ones first."""

    models: tuple[Model, ...]
    is_of_account: bool
    """True with a ChatGPT login; else Codex does not know which models the provider has."""


class ModelLists:
    """The model lists that this process has asked for, each for one program and one login."""

    def __init__(self) -> None:
        self._asking = anyio.Lock()
        self._known: dict[tuple[object, ...], tuple[float, ModelList]] = {}

    async def find(self, program: Program, env: Mapping[str, str]) -> ModelList | None:
        """Return the models that *program* offers; None if it does not say so in time.

        A Codex whose app-server changes the user's configuration is not asked.

        Args:
            program: The Codex to ask.
            env: Its environment.
        """
        if program.writes_config:
            return None
        async with self._asking:  # Many runs may fail for the same reason at once.
            stamps = await on_disk(_stamps)
            key = (program.path, program.version_text, *stamps)
            since, known = self._known.get(key, (0.0, None))
            if known is not None and time.monotonic() - since < KEPT_S:
                return known
            found: ModelList | None = None
            with anyio.move_on_after(ANSWER_WITHIN_S):
                found = await _ask(program, env)
            if found is not None:
                self._known = {key: (time.monotonic(), found)}
            return found


def _stamps() -> list[tuple[int, ...] | None]:
    """Return what changes with the login and with the configured provider."""
    return [file_stamp(codex_home() / name) for name in ("auth.json", "config.toml")]


async def _ask(program: Program, env: Mapping[str, str]) -> ModelList | None:
    reading, writing = os.pipe()
    # At the end of its stdin, 0.163.0 and 0.171.0 end without an answer.
    with os.fdopen(writing, "wb", buffering=0) as requests, os.fdopen(reading, "rb") as source:
        requests.write(_REQUESTS)  # Less than a pipe holds.
        argv = (str(program.path), "app-server")
        try:
            async with (
                open_child(argv, stdin=source, cwd=Path("/"), env=env) as child,
                aclosing(child.lines()) as lines,
            ):
                login: Json | None = None
                found: Json | None = None
                async for line in lines:
                    match await on_cpu(_answer_in, line):
                        case 2, answer:
                            login = answer
                        case 3, answer:
                            found = answer
                        case _:
                            pass
                    if login is not None and found is not None:
                        return _list_of(found, login)
        except OSError:
            return None
    return None


def _answer_in(line: bytes) -> tuple[int, Json] | None:
    """Return the number and the result of an answer; an error has an empty result."""
    import orjson

    try:
        message: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(message, dict) or "method" in message:
        return None
    answer = cast(Json, message)
    number = answer.get("id")
    return (number, object_of(answer, "result")) if isinstance(number, int) else None


def _list_of(found: Json, login: Json) -> ModelList | None:
    models = tuple(
        Model(
            quote(name)[:100],
            quote(text_of(each, "description") or "")[:300],
            tuple(
                effort[:30]
                for known in objects_of(each, "supportedReasoningEfforts")
                if (effort := text_of(known, "reasoningEffort"))
            ),
            each.get("isDefault") is True,
        )
        for each in objects_of(found, "data")[:MODELS_KEPT]
        if (name := text_of(each, "model") or text_of(each, "id")) and not each.get("hidden")
    )
    return ModelList(models, login.get("authMethod") == "chatgpt") if models else None
