"""One `codex exec --json` child as a stream of events; argv is built here.

An engine is one function of the shape of `open_turn`: a turn's request in, its
events out, the last of them an ExitedEvent, and nothing left alive afterwards.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from codex_tools.codex.events import Event, ExitedEvent, parse_event
from codex_tools.codex.process import Child, open_child
from codex_tools.codex.program import Program
from codex_tools.codex.sandbox import Sandbox

_SEARCH_ON = ("features.web_search_request=true",)
_SEARCH_OFF = (
    'web_search="disabled"',
    "tools.web_search=false",
    "features.web_search_request=false",
)
"""Each version knows another key; together they hold on 0.60.1 to 0.169.0."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One turn, as it shall really run: everything is decided, nothing is checked again."""

    prompt: str
    cwd: Path
    sandbox: Sandbox
    timeout_s: float
    stall_s: float
    thread_id: str | None = None
    """The thread to resume, as a UUID; None begins a new one."""
    model: str | None = None
    reasoning_effort: str | None = None
    profile: str | None = None
    output_schema: dict[str, Any] | None = None
    images: tuple[Path, ...] = ()
    add_dirs: tuple[Path, ...] = ()
    web_search: bool | None = None
    config: tuple[tuple[str, str], ...] = ()
    """Pairs of a dotted key and its value in TOML."""
    skip_git_repo_check: bool = False
    ephemeral: bool = False
    held: Sequence[int] = field(default=())
    """File descriptors to hold until nothing of the turn is alive (its lock)."""


def build_argv(program: Program, request: TurnRequest, schema_file: Path | None) -> list[str]:
    """Return the command line, in the one form that all versions take.

    All options stand before `resume`, since 0.60.1 takes few and no version
    takes -s or -C after it. The sandbox is always named, because several
    versions remember or guess another one. `--image=` binds its value, because
    `-i FILE -` swallows the dash.

    Raises:
        CodexUnsupported: This version lacks an option that is needed.
    """
    argv = [str(program.path), "exec", "--json"]
    argv += ["-s", request.sandbox, "-C", str(request.cwd)]
    if request.model is not None:
        argv += ["-m", request.model]
    if request.profile is not None:
        argv += ["-p", request.profile]
    for setting in _settings(request):
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


def _settings(request: TurnRequest) -> list[str]:
    settings = [f"{key}={value}" for key, value in request.config]
    if request.reasoning_effort is not None:
        settings.append(f'model_reasoning_effort="{request.reasoning_effort}"')
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
    """
    scratch = schema_file = None
    try:
        if request.output_schema is not None or any("," in str(i) for i in request.images):
            scratch = Path(tempfile.mkdtemp(prefix="mcp-server-codex-"))
            request = replace(request, images=_without_commas(request.images, scratch))
        if request.output_schema is not None and scratch is not None:
            schema_file = scratch / "output_schema.json"
            schema_file.write_bytes(orjson.dumps(request.output_schema))
        async with (
            open_child(
                build_argv(program, request, schema_file),
                stdin=request.prompt.encode("utf-8", "replace"),
                cwd=request.cwd,
                env=child_environment(program, os.environ),
                scratch=scratch,
                held=request.held,
            ) as child,
            aclosing(_events(child, keep)) as events,
        ):
            yield events
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


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


def child_environment(program: Program, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for Codex, made from this server's *environ*."""
    env = dict(environ)
    if program.search_path is not None:
        env["PATH"] = os.pathsep.join(filter(None, (program.search_path, env.get("PATH"))))
    # Client snippets set these two to protect the server. The commands that Codex
    # runs must not inherit them: scripts would no longer find their own modules.
    env.pop("PYTHONSAFEPATH", None)
    if not env.get("PYTHONPATH"):
        env.pop("PYTHONPATH", None)
    return env
