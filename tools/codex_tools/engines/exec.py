"""Run a turn with `codex exec --json`: one child process per turn, events from its stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio

from codex_tools.codex.errors import InvalidArguments, NotAllowed
from codex_tools.codex.events import Event, ExitedEvent, NoticeEvent, parse_event
from codex_tools.codex.images import IMAGES_LIMIT
from codex_tools.codex.json_object import write_exactly
from codex_tools.codex.masking import mask, shorten
from codex_tools.codex.paths import codex_home, trusted_path
from codex_tools.codex.program import Program, Version, find_codex
from codex_tools.codex.sandbox import Sandbox
from codex_tools.codex.toml import to_toml
from codex_tools.codex.workers import on_disk
from codex_tools.engines.config_layers import MACHINE_FOLDER, MERGED_SERVERS, read_config
from codex_tools.engines.engine import Keep, Plan, ReviewTarget, TurnRequest
from codex_tools.engines.environment import (
    EnvironmentRules,
    environment_for_codex,
    kept_from_commands,
    set_empty_in_commands,
)
from codex_tools.engines.git_config import HARDENED_GIT, without_repository_programs
from codex_tools.engines.model_list import ModelList, ModelLists
from codex_tools.engines.process import Child, open_child
from codex_tools.engines.project_trust import Project, decide_trust, files_in
from codex_tools.engines.rules import describe_rules, rules_in, rules_of, switch_rules_off
from codex_tools.engines.scratch import Scratch

_SEARCH_ON = ("features.web_search_request=true",)
_WARNS_OF_FEATURE: Version = (0, 120, 0)
"""A version that does not need `features.web_search_request`, and warns of it."""
_SEARCH_OFF = (
    'web_search="disabled"',
    "tools.web_search=false",
    "features.web_search_request=false",
)
"""Settings that disable web search; which key works depends on the version.

All of these together work on 0.60.1 to 0.169.0.
"""


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

    async def prepare(self, cwd: Path, rules: EnvironmentRules) -> Program:
        """Find Codex and return its path, version and abilities; see `Engine.prepare`."""

        def environ() -> dict[str, str]:
            return self._environment(rules, (cwd,))

        return await find_codex(self._codex_bin, cwd, environ, self._untrusted)

    async def list_models(self, program: Program, rules: EnvironmentRules) -> ModelList | None:
        """Return the models that *program* offers; see `Engine.list_models`."""
        return await self._models.find(program, await on_disk(self._environment, rules))

    def _environment(
        self, rules: EnvironmentRules, untrusted: Sequence[Path] = ()
    ) -> dict[str, str]:
        """Return the environment of a Codex that runs no turn."""
        env = environment_for_codex(os.environ, rules, read_config(None), depth=1)
        return env | {"PATH": trusted_path(env.get("PATH", ""), (*untrusted, *self._untrusted))}

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
                ) as child,
                aclosing(_events(child, keep, notices)) as events,
            ):
                yield events
        finally:
            if scratch is not None:
                with anyio.CancelScope(shield=True):
                    await on_disk(scratch.remove)


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
    argv = [str(program.path), "exec", "--json"]
    argv += ["-s", request.sandbox, "-C", str(request.cwd)]
    if request.model is not None:
        argv += ["-m", request.model]
    if request.profile is not None:
        argv += ["-p", request.profile]
    if kept and program.keeps_whole_snapshot:
        argv += ["-c", "features.shell_snapshot=false"]
    if not request.keep_rules and "--ignore-rules" in program.flags:
        argv.append("--ignore-rules")
    for setting in (*_settings(request, kept), *further):
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


def _settings(request: TurnRequest, kept: Sequence[str]) -> list[str]:
    version = request.program.version
    merges = version is None or version >= (0, 77, 0)
    settings = [f"{k}={v}" for k, v in request.config if merges or k != MERGED_SERVERS]
    if kept:  # After the caller's settings, which it includes.
        settings.append(f"shell_environment_policy.exclude={to_toml([*kept])}")
    settings.append(f"default_permissions={to_toml(_PERMISSIONS[request.sandbox])}")
    if request.reasoning_effort is not None:
        settings.append(f"model_reasoning_effort={to_toml(request.reasoning_effort)}")
    if request.review is not None and request.model is not None:
        # The user's setting of that name goes before -m (seen with 0.98.0 and 0.163.0).
        settings.append(f"review_model={to_toml(request.model)}")
    if request.web_search is not None:
        version = request.program.version
        is_new = version is not None and version >= _WARNS_OF_FEATURE
        off = _SEARCH_OFF[:-1] if is_new else _SEARCH_OFF
        settings += _SEARCH_ON if request.web_search else off
    return settings


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
    _check_unmoved(request)
    schema_file: Path | None = None
    if scratch is not None:
        if request.output_schema is not None:
            schema_file = scratch.write("output_schema.json", write_exactly(request.output_schema))
        if request.base_instructions is not None:
            request = _with_instructions(request, request.base_instructions, scratch)
        request = replace(request, images=_without_commas(request.images, scratch))
    return _command_for(request, schema_file)


def _plan(request: TurnRequest) -> Plan:
    _check_unmoved(request)
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
    config = read_config(None, request.profile, request.cwd, request.config)
    kept = kept_from_commands(os.environ, request.environment, config)
    empty = set_empty_in_commands(os.environ, request.environment, config)
    further = [f'shell_environment_policy.set.{name}=""' for name in empty]
    settings, notices = _doors(request, config.project)
    recorded = request.program.records_service_tier and not request.ephemeral
    tier = config.service_tier
    if tier not in (None, "default") and not recorded:
        notices.append(
            f"service_tier: nothing records that this turn asks for {shorten(tier, 40)}."
            " cost_usd is the price in the standard tier."
        )
    further += settings
    version = request.program.version
    if version is not None and version < SANDBOX_MOUNTS and sys.platform == "linux":
        request = replace(request, add_dirs=_outermost(request))
    if version is not None and version < HARDENED_GIT:
        further.append("features.undo=false")  # 0.60.1 takes snapshots with `git add`, with hooks.
    env = environment_for_codex(
        os.environ,
        request.environment,
        config,
        depth=request.depth,
        search_path=request.program.search_path,
    )
    whole = env.get("PATH", "")
    env["PATH"] = trusted_path(whole, (request.cwd, *request.add_dirs))
    if whole and env["PATH"] != whole:
        further.append(f"shell_environment_policy.set.PATH={to_toml(whole)}")
    argv = build_argv(request, schema_file, kept, further)
    return argv, env | without_repository_programs(env, request.cwd, version), notices


def _doors(request: TurnRequest, project: Project | None) -> tuple[list[str], list[str]]:
    """Return the settings that keep a project's files from widening the turn, and warnings.

    Raises:
        CodexUnsupported: This Codex would trust the project for ever.
        NotAllowed: This Codex obeys rules that must not count, or the project's files changed.
    """
    home, program = codex_home(), request.program
    settings: list[str] = []
    notices: list[str] = []
    if project is not None:
        settings, notice = decide_trust(project, request.sandbox, program, home)
        notices += [notice] if notice is not None else []
        known = request.project_files
        if known is not None and (found := files_in(project, home)) != known:
            changed = sorted({name for name, _ in found.items() ^ known.items()})
            raise NotAllowed(
                f"a trusted project with {shorten(changed[0], 300)}",
                "it was changed after the check",
                "--project-config",
            )
    rules = rules_in(project, home)
    if not request.keep_rules:
        settings += switch_rules_off(program, rules)
    of_machine = rules_of(MACHINE_FOLDER)
    notices += describe_rules(of_machine, rules, request.sandbox, kept=request.keep_rules)
    return settings, notices


SANDBOX_MOUNTS: Version = (0, 120, 0)
"""First version whose sandbox mounts its writable folders, so that no command can rename them.

The sandbox of earlier versions takes each path anew for each command. A command of 0.60.1 could
replace a writable folder inside another one by a link, and the next command wrote where that led.
"""


def _outermost(request: TurnRequest) -> tuple[Path, ...]:
    """Return the add_dirs of *request* without those inside another writable folder.

    Raises:
        InvalidArguments: One of them contains cwd.
    """
    for folder in request.add_dirs:
        if request.sandbox == "workspace-write" and folder in request.cwd.parents:
            raise InvalidArguments(
                [
                    f"add_dirs: {folder} contains cwd, which a command of Codex"
                    f" {request.program.version_text} could then replace; give it as cwd"
                ]
            )
    written = {request.cwd, *request.add_dirs}
    return tuple(each for each in request.add_dirs if written.isdisjoint(each.parents))


def _check_unmoved(request: TurnRequest) -> None:
    """Check that the paths of *request*, whose links were resolved before, still hold no link.

    The run may have waited in the queue for long while another run worked in the same folder.

    Raises:
        NotAllowed: A part of a path was replaced by a link.
        InvalidArguments: The images have grown beyond their limit.
    """
    for path in (request.cwd, *request.add_dirs, *request.images):
        if os.path.realpath(path) != str(path):
            raise NotAllowed(
                f"path {path}", "a part of it was replaced by a link after the check", "--root"
            )
    size = sum(image.stat().st_size for image in request.images)
    if size > IMAGES_LIMIT:
        raise InvalidArguments(
            [f"images: they have {size:,} bytes by now; the limit is {IMAGES_LIMIT:,} in all"]
        )


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
    """Yield *notices*, then the events that *child* prints, then an ExitedEvent."""
    for notice in notices:
        yield NoticeEvent(notice)
    async with aclosing(child.lines()) as lines:
        async for line in lines:
            if line.strip():
                keep(line)
                yield parse_event(line)
    returncode = await child.wait()
    yield ExitedEvent(returncode, child.stderr_end())
