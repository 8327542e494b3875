"""One `codex exec --json` child as a stream of events; argv is built here.

An engine is one function of the shape of `open_turn`: a turn's request in, its
events out, the last of them an ExitedEvent, and nothing left alive afterwards.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson

from codex_tools.codex.errors import NotAllowed
from codex_tools.codex.events import Event, ExitedEvent, parse_event
from codex_tools.codex.paths import codex_home
from codex_tools.codex.program import Program
from codex_tools.codex.toml import to_toml
from codex_tools.engines.engine import TurnRequest
from codex_tools.engines.environment import (
    environment_for_codex,
    kept_from_commands,
    read_config,
)
from codex_tools.engines.process import Child, open_child

_SEARCH_ON = ("features.web_search_request=true",)
_SEARCH_OFF = (
    'web_search="disabled"',
    "tools.web_search=false",
    "features.web_search_request=false",
)
"""Each version knows another key; together they hold on 0.60.1 to 0.169.0."""


def build_argv(
    program: Program,
    request: TurnRequest,
    schema_file: Path | None,
    kept: Sequence[str] = (),
) -> list[str]:
    """Return the command line, in the one form that all versions take.

    All options stand before `resume`, since 0.60.1 takes few and no version
    takes -s or -C after it. The sandbox is always named, because several
    versions remember or guess another one. `--image=` binds its value, because
    `-i FILE -` swallows the dash.

    Args:
        program: The Codex to run.
        request: The turn.
        schema_file: Where its output schema stands, if it has one.
        kept: Globs of variables that Codex shall keep from its commands.

    Raises:
        CodexUnsupported: This version lacks an option that is needed.
    """
    argv = [str(program.path), "exec", "--json"]
    argv += ["-s", request.sandbox, "-C", str(request.cwd)]
    if request.model is not None:
        argv += ["-m", request.model]
    if request.profile is not None:
        argv += ["-p", request.profile]
    if kept and program.keeps_whole_snapshot:
        argv += ["-c", "features.shell_snapshot=false"]
    for setting in _settings(request, kept):
        argv += ["-c", setting]
    if request.skip_git_repo_check:
        argv.append("--skip-git-repo-check")
    if request.ephemeral:
        program.need("--ephemeral")
        argv.append("--ephemeral")
    for folder in request.add_dirs:
        argv += ["--add-dir", str(folder)]
    if schema_file is not None:
        argv += ["--output-schema", str(schema_file)]
    argv += [f"--image={image}" for image in request.images]
    if request.thread_id is not None:
        argv += ["resume", request.thread_id]
    return [*argv, "-"]


def _settings(request: TurnRequest, kept: Sequence[str]) -> list[str]:
    settings: list[str] = []
    if kept:
        settings.append(f"shell_environment_policy.exclude={to_toml([*kept])}")
    settings += [f"{key}={value}" for key, value in request.config]
    if request.reasoning_effort is not None:
        settings.append(f"model_reasoning_effort={to_toml(request.reasoning_effort)}")
    if request.web_search is not None:
        settings += _SEARCH_ON if request.web_search else _SEARCH_OFF
    return settings


@asynccontextmanager
async def open_turn(
    program: Program, request: TurnRequest, keep: Callable[[bytes], None]
) -> AsyncGenerator[AsyncGenerator[Event]]:
    """Start the turn and yield its events; leaving ends all that it started.

    Each line goes to *keep* as Codex wrote it, before it is read.

    Raises:
        CodexUnsupported: This version lacks an option that is needed.
        NotAllowed: A path leads elsewhere than when it was checked.
    """
    _insist_unmoved(request)
    scratch = schema_file = None
    try:
        if (
            request.output_schema is not None
            or request.base_instructions is not None
            or any("," in str(image) for image in request.images)
        ):
            scratch = Path(tempfile.mkdtemp(prefix="mcp-server-codex-"))
            request = _with_instructions(request, scratch)
            request = replace(request, images=_without_commas(request.images, scratch))
        if request.output_schema is not None and scratch is not None:
            schema_file = scratch / "output_schema.json"
            schema_file.write_bytes(orjson.dumps(request.output_schema))
        config = read_config(codex_home(), request.profile)
        kept = kept_from_commands(os.environ, request.environment, config)
        async with (
            open_child(
                build_argv(program, request, schema_file, kept),
                stdin=request.prompt.encode("utf-8", "replace"),
                cwd=request.cwd,
                env=environment_for_codex(
                    os.environ,
                    request.environment,
                    config,
                    depth=request.depth,
                    search_path=program.search_path,
                ),
                scratch=scratch,
                held=request.held,
            ) as child,
            aclosing(_events(child, keep)) as events,
        ):
            yield events
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _insist_unmoved(request: TurnRequest) -> None:
    """Insist that the paths, whose links were resolved, are still without links.

    The run may have waited in line for long, and another one may have been at
    work in the same folder meanwhile.

    Raises:
        NotAllowed: A part of one was replaced by a link.
    """
    for path in (request.cwd, *request.add_dirs, *request.images):
        if os.path.realpath(path) != str(path):
            raise NotAllowed(
                f"path {path}", "since it was checked, a link took its place", "--root"
            )


def _with_instructions(request: TurnRequest, scratch: Path) -> TurnRequest:
    """Return *request* with its instructions in a file, which Codex takes them from.

    The first key is of 0.60.1, the second of 0.163.0 and 0.169.0; each lets the other be.
    """
    if request.base_instructions is None:
        return request
    file = scratch / "instructions.md"
    file.write_bytes(request.base_instructions.encode("utf-8", "replace"))
    keys = ("experimental_instructions_file", "model_instructions_file")
    return replace(request, config=(*request.config, *((key, to_toml(str(file))) for key in keys)))


def _without_commas(images: Sequence[Path], scratch: Path) -> tuple[Path, ...]:
    """Return *images*, by links in *scratch* where Codex would split a path at its commas."""
    plain: list[Path] = []
    for number, image in enumerate(images):
        link = scratch / f"{number}{image.suffix.replace(',', '')}"
        if "," in str(image):
            link.symlink_to(image)
        plain.append(link if "," in str(image) else image)
    return tuple(plain)


async def _events(child: Child, keep: Callable[[bytes], None]) -> AsyncGenerator[Event]:
    async with aclosing(child.lines()) as lines:
        async for line in lines:
            if line.strip():
                keep(line)
                yield parse_event(line)
    returncode = await child.wait()
    yield ExitedEvent(returncode, child.stderr_end())
