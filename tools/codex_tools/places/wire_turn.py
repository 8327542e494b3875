"""Write a turn, a program and an answer as JSON for the pipe, and read them again.

The worker takes nothing for granted: a field that is missing or of another type is an error. No
environment, no path of this machine and no lock crosses. Paths are relative to the project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import orjson

from codex_tools.codex.json_object import Json
from codex_tools.codex.program import NOT_ASKED, Program, Version
from codex_tools.codex.sandbox import sandbox_of
from codex_tools.engines.config_layers import MERGED_SERVERS
from codex_tools.engines.engine import ReviewTarget, TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.places.frames import ProtocolError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SentTurn:
    """A turn as the worker reads it: its paths are relative to the project's copy."""

    request: TurnRequest
    cwd: str
    add_dirs: tuple[str, ...]
    images: tuple[str, ...]
    """The ends of the images' names; their contents come in frames of their own."""


def dump_turn(request: TurnRequest, root: Path) -> bytes:
    """Return a turn in the project *root* as JSON.

    Raises:
        ValueError: A folder of the turn is outside of *root*.
    """
    review = request.review
    fields: Json = {
        "prompt": request.prompt.encode("utf-8", "replace").decode(),
        "cwd": _inside(request.cwd, root),
        "add_dirs": [_inside(each, root) for each in request.add_dirs],
        "images": [each.suffix for each in request.images],
        "sandbox": request.sandbox,
        "timeout_s": request.timeout_s,
        "stall_s": request.stall_s,
        "thread_id": request.thread_id,
        "fork": request.fork,
        "review": None if review is None else [review.kind, review.name],
        "model": request.model,
        "reasoning_effort": request.reasoning_effort,
        "profile": request.profile,
        "output_schema": request.output_schema,
        "web_search": request.web_search,
        # For a Codex before 0.77, that setting holds this machine's MCP servers with their secrets.
        "config": [[*each] for each in request.config if each[0] != MERGED_SERVERS],
        "skip_git_repo_check": request.skip_git_repo_check,
        "ephemeral": request.ephemeral,
        "base_instructions": request.base_instructions,
        "denied": [*request.environment.denied],
        "keep_rules": request.keep_rules,
        "depth": request.depth,
    }
    return orjson.dumps(fields, option=orjson.OPT_NON_STR_KEYS)


def load_turn(body: bytes) -> SentTurn:
    """Return the turn that `dump_turn` wrote.

    Raises:
        ProtocolError: It is none.
    """
    try:
        read: object = orjson.loads(body)
    except ValueError:
        raise ProtocolError("a turn is no JSON") from None
    if not isinstance(read, dict):
        raise ProtocolError("a turn is no object")
    get = _Fields(cast(Json, read))
    sandbox = sandbox_of(get.text("sandbox"))
    if sandbox is None:
        raise ProtocolError("a turn has an unknown sandbox")
    request = TurnRequest(
        program=NOT_ASKED,
        prompt=get.text("prompt"),
        cwd=Path("/"),
        sandbox=sandbox,
        timeout_s=get.number("timeout_s"),
        stall_s=get.number("stall_s"),
        thread_id=get.maybe("thread_id", str),
        fork=get.flag("fork"),
        review=_review(get.words("review")) if get.values.get("review") is not None else None,
        model=get.maybe("model", str),
        reasoning_effort=get.maybe("reasoning_effort", str),
        profile=get.maybe("profile", str),
        output_schema=cast("Json | None", get.maybe("output_schema", dict)),
        web_search=get.maybe("web_search", bool),
        config=get.pairs("config"),
        isolation="copy",
        skip_git_repo_check=get.flag("skip_git_repo_check"),
        ephemeral=get.flag("ephemeral"),
        base_instructions=get.maybe("base_instructions", str),
        environment=EnvironmentRules(denied=get.words("denied")),
        keep_rules=get.flag("keep_rules"),
        depth=int(get.number("depth")),
    )
    return SentTurn(request, get.text("cwd"), get.words("add_dirs"), get.words("images"))


def dump_program(program: Program) -> Json:
    """Return what the server must know of the place's Codex."""
    return {
        "path": str(program.path),
        "version": None if program.version is None else [*program.version],
        "version_text": program.version_text,
        "flags": sorted(program.flags),
    }


def load_program(value: object) -> Program:
    """Return the place's Codex; its path means something only there.

    Raises:
        ProtocolError: It is none.
    """
    if not isinstance(value, dict):
        raise ProtocolError("a program is no object")
    get = _Fields(cast(Json, value))
    version: Version | None = None
    if get.values.get("version") is not None:
        numbers = cast(object, get.values["version"])
        if not isinstance(numbers, list) or len(cast(list[object], numbers)) != 3:
            raise ProtocolError("a version is not three numbers")
        if not all(isinstance(each, int) for each in cast(list[object], numbers)):
            raise ProtocolError("a version is not three numbers")
        version = cast(Version, tuple(cast(list[int], numbers)))
    text = get.text("version_text")[:100]
    return replace(
        NOT_ASKED,
        path=Path("/", get.text("path")[:4096]),
        version=version,
        version_text=text or "unknown",
        flags=frozenset(get.words("flags")),
    )


def load_paths(value: object) -> dict[str, int]:
    """Return sizes of files by their paths.

    Raises:
        ProtocolError: It is no such object.
    """
    if not isinstance(value, dict):
        raise ProtocolError("sizes of files are no object")
    found: dict[str, int] = {}
    for path, size in cast(Mapping[object, object], value).items():
        if not isinstance(path, str) or not isinstance(size, int) or isinstance(size, bool):
            raise ProtocolError("sizes of files are no numbers")
        found[path] = size
    return found


def plain_path(path: str) -> str:
    """Return *path* if it is relative and leads nowhere out; "" is the folder itself.

    Raises:
        ProtocolError: It is absolute, or has empty, `.` or `..` parts.
    """
    if path == "":
        return path
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ProtocolError(f"the path {path[:100]!r} leads out of its folder")
    return path


def _inside(path: Path, root: Path) -> str:
    if not path.is_relative_to(root):
        raise ValueError(f"{path} is not inside {root}")
    inner = path.relative_to(root).as_posix()
    return "" if inner == "." else inner


def _review(words: tuple[str, ...]) -> ReviewTarget:
    if len(words) != 2 or words[0] not in ("uncommitted", "base", "commit", "custom"):
        raise ProtocolError("a review has an unknown target")
    return ReviewTarget(words[0], words[1])


class _Fields:
    def __init__(self, values: Json) -> None:
        self.values = values

    def _of(self, name: str, is_right: Callable[[object], bool]) -> object:
        value: object = self.values.get(name)
        if not is_right(value):
            raise ProtocolError(f"{name} is missing or has a wrong type")
        return value

    def text(self, name: str) -> str:
        return cast(str, self._of(name, lambda value: isinstance(value, str)))

    def flag(self, name: str) -> bool:
        return cast(bool, self._of(name, lambda value: isinstance(value, bool)))

    def number(self, name: str) -> float:
        value = self._of(name, lambda value: isinstance(value, int | float) and value is not True)
        return cast(float, value)

    def maybe(self, name: str, kind: type[T]) -> T | None:
        value = self._of(name, lambda value: value is None or isinstance(value, kind))
        return cast("T | None", value)

    def words(self, name: str) -> tuple[str, ...]:
        value = self._of(name, lambda value: isinstance(value, list))
        words = cast(list[object], value)
        if not all(isinstance(each, str) for each in words):
            raise ProtocolError(f"{name} is no list of texts")
        return tuple(cast(list[str], words))

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        value = cast(list[object], self._of(name, lambda value: isinstance(value, list)))
        found: list[tuple[str, str]] = []
        for each in value:
            match each:
                case [str(key), str(setting)]:
                    found.append((key, setting))
                case _:
                    raise ProtocolError(f"{name} is no list of pairs")
        return tuple(found)
