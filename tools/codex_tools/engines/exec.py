"""Run a turn with `codex exec --json`: one child process per turn, events from its stdout."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import replace
from pathlib import Path

import anyio

from codex_tools.codex.errors import CodexUnsupported
from codex_tools.codex.events import EngineEvent, Event, ExitedEvent, NoticeEvent, parse_event
from codex_tools.codex.json_object import write_exactly
from codex_tools.codex.masking import mask
from codex_tools.codex.program import Program
from codex_tools.codex.sandbox import Sandbox
from codex_tools.codex.toml import to_toml
from codex_tools.codex.workers import on_disk
from codex_tools.engines.config_layers import MERGED_SERVERS
from codex_tools.engines.engine import Keep, Plan, ReviewTarget, TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.engines.model_list import ModelList, ModelLists
from codex_tools.engines.preparation import (
    check_unmoved,
    find_program,
    plain_environment,
    prepare_turn,
    settings_of,
)
from codex_tools.engines.process import Child, open_child
from codex_tools.engines.scratch import Scratch


class ExecEngine:
    """Run each turn as a `codex exec --json` process under a guard."""

    name = "exec"

    def __init__(self, codex_bin: str | None, untrusted: Sequence[Path] = ()) -> None:
        """Remember *codex_bin*, the configured Codex; None to look for one.

        No Codex inside the folders *untrusted* is taken from PATH.
        """
        self._codex_bin = codex_bin
        self._untrusted = untrusted
        self._models = ModelLists()

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Keep nothing ready; see `Engine.opened`."""
        return nullcontext()

    async def prepare(self, cwd: Path, rules: EnvironmentRules) -> Program:
        """Find Codex and return its path, version and abilities; see `Engine.prepare`."""
        return await find_program(self._codex_bin, self._untrusted, cwd, rules)

    async def list_models(self, program: Program, rules: EnvironmentRules) -> ModelList | None:
        """Return the models that *program* offers; see `Engine.list_models`."""
        env = await on_disk(plain_environment, rules, self._untrusted)
        return await self._models.find(program, env)

    async def plan_turn(self, request: TurnRequest) -> Plan:
        """Return the command line of a turn; see `Engine.plan_turn`."""
        return await on_disk(_plan, request)

    @asynccontextmanager
    async def open_turn(
        self, request: TurnRequest, keep: Keep
    ) -> AsyncGenerator[AsyncGenerator[Event]]:
        """Start a turn and yield its events; see `Engine.open_turn`."""
        scratch: Scratch | None = None
        try:
            with anyio.CancelScope(shield=True):  # A folder that nobody knows would remain.
                scratch = await on_disk(_scratch_for, request)
            argv, env, notices = await on_disk(_prepare, request, scratch)
            async with (
                open_child(
                    argv,
                    stdin=request.prompt.encode("utf-8", "replace"),
                    cwd=request.cwd,
                    env=env,
                    scratch=scratch.path if scratch is not None else None,
                    held=request.held,
                    lease=request.lease,
                ) as child,
                aclosing(_events(child, keep, notices)) as events,
            ):
                yield events
        finally:
            if scratch is not None:
                with anyio.CancelScope(shield=True):
                    await on_disk(scratch.remove)


NEEDS_LIVE_ENGINE = (
    "approvals: ask and ask_caller need Codex 0.163.0 or later, and an operator who has not set"
    " --engine exec."
)
"""Hint for a turn that may ask, where nothing can ask."""

REVIEWS_COMMANDS = "--approve-for-me"
"""Flag with which a reviewer of Codex, a model, decides what leaves the sandbox.

It means sandbox workspace-write, and is refused beside -s (0.147.0 to 0.171.0).
"""

_PERMISSIONS: dict[Sandbox, str] = {
    "read-only": ":read-only",
    "workspace-write": ":workspace",
    "danger-full-access": ":danger-full-access",
}
"""The permission profiles of Codex that are the same as the sandbox modes.

With machine requirements that name a default profile, 0.147 to 0.171 ignore `-s` but keep this
setting. Without them it changes nothing, neither on 0.60.1, which does not know it, nor where the
user's configuration names another profile or extends the sandbox (all seen).
"""


def build_argv(
    request: TurnRequest,
    schema_file: Path | None,
    kept: Sequence[str] = (),
    further: Sequence[str] = (),
) -> list[str]:
    """Return the command line of a turn, in a form that all supported versions accept.

    All options come before `resume`, `fork` and `review`: 0.60.1 accepts few after `resume`, and
    no version accepts -s or -C after one of them. The sandbox is always named, because several
    versions remember or guess another one. `--image=` binds its value, because in `-i FILE -`
    Codex takes the dash for a file.

    Args:
        request: The turn.
        schema_file: File with the output schema; None without one.
        kept: Globs of environment variables that Codex must keep from its commands.
        further: Settings, as `key=value`, that follow from Codex's own configuration.

    Raises:
        CodexUnsupported: This version of Codex lacks an option that the turn needs.
    """
    program = request.program
    if request.asks:
        raise CodexUnsupported("questions in codex exec", program.version_text, NEEDS_LIVE_ENGINE)
    argv = [str(program.path), "exec", "--json"]
    if request.approvals == "auto":
        program.need(REVIEWS_COMMANDS)
        argv += [REVIEWS_COMMANDS, "-C", str(request.cwd)]
    else:
        argv += ["-s", request.sandbox, "-C", str(request.cwd)]
    if request.model is not None:
        argv += ["-m", request.model]
    if request.profile is not None:
        argv += ["-p", request.profile]
    if not request.keep_rules and "--ignore-rules" in program.flags:
        argv.append("--ignore-rules")
    permissions = _PERMISSIONS[request.sandbox]
    for setting in (*settings_of(request, kept, permissions), *further):
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
    if request.review is not None:
        return [*argv, "review", *_review_arguments(request.review)]
    if request.thread_id is not None:
        if request.fork:
            program.need("exec fork")
        argv += ["fork" if request.fork else "resume", request.thread_id]
    return [*argv, "-"]


def _review_arguments(target: ReviewTarget) -> list[str]:
    # With another target, 0.98 to 0.171 refuse a prompt. `=` binds a name that begins with a dash.
    match target.kind:
        case "custom":
            return ["-"]
        case "uncommitted":
            return ["--uncommitted"]
        case kind:
            return [f"--{kind}={target.name}"]


def _scratch_for(request: TurnRequest) -> Scratch | None:
    """Make a folder for the files that Codex reads a part of the turn from.

    Return None if the turn needs no files.
    """
    if (
        request.output_schema is None
        and request.base_instructions is None
        and not any("," in str(image) for image in request.images)
    ):
        return None
    return Scratch(request.scratch)


def _prepare(
    request: TurnRequest, scratch: Scratch | None
) -> tuple[list[str], dict[str, str], list[str]]:
    """Write the files of the turn; return the command line, the environment and warnings.

    Raises:
        CodexUnsupported: This version of Codex lacks an option that the turn needs.
        NotAllowed: A path leads elsewhere than when it was checked.
    """
    check_unmoved(request)
    schema_file: Path | None = None
    if scratch is not None:
        if request.output_schema is not None:
            schema_file = scratch.write("output_schema.json", write_exactly(request.output_schema))
        if request.base_instructions is not None:
            request = _with_instructions(request, request.base_instructions, scratch)
        request = replace(request, images=_without_commas(request.images, scratch))
    return _command_for(request, schema_file)


def _plan(request: TurnRequest) -> Plan:
    check_unmoved(request)
    schema_file = Path("output_schema.json") if request.output_schema is not None else None
    argv, env, notices = _command_for(request, schema_file)
    # For a Codex before 0.77, this setting holds the user's MCP servers with their environment.
    hidden = f"{MERGED_SERVERS}="
    shown = (f"{hidden}…" if each.startswith(hidden) else mask(each) for each in argv)
    return Plan(tuple(shown), tuple(sorted(env)), tuple(notices))


def _command_for(
    request: TurnRequest, schema_file: Path | None
) -> tuple[list[str], dict[str, str], list[str]]:
    """Read Codex's configuration; return the command line, the environment and warnings."""
    prepared = prepare_turn(request)
    argv = build_argv(prepared.request, schema_file, prepared.kept, prepared.further)
    return argv, prepared.env, prepared.notices


def _with_instructions(request: TurnRequest, text: str, scratch: Scratch) -> TurnRequest:
    """Write *text* to a file and return *request* with the settings that name that file.

    Codex 0.60.1 reads the first key, 0.163.0 and 0.169.0 the second; each ignores the other key.
    """
    file = scratch.write("instructions.md", text.encode("utf-8", "replace"))
    keys = ("experimental_instructions_file", "model_instructions_file")
    return replace(request, config=(*request.config, *((key, to_toml(str(file))) for key in keys)))


def _without_commas(images: Sequence[Path], scratch: Scratch) -> tuple[Path, ...]:
    """Return *images*, with a link in *scratch* for each path that contains a comma.

    Codex would split such a path at its commas.
    """
    plain: list[Path] = []
    for number, image in enumerate(images):
        if "," in str(image):
            image = scratch.link(f"{number}{image.suffix.replace(',', '')}", image)
        plain.append(image)
    return tuple(plain)


async def _events(child: Child, keep: Keep, notices: Sequence[str]) -> AsyncGenerator[Event]:
    """Yield the engine, *notices*, then the events that *child* prints, then an ExitedEvent."""
    yield EngineEvent(ExecEngine.name)
    for notice in notices:
        yield NoticeEvent(notice)
    async with aclosing(child.lines()) as lines:
        async for line in lines:
            if line.strip():
                keep(line)
                yield parse_event(line)
    returncode = await child.wait()
    yield ExitedEvent(returncode, child.stderr_end())
