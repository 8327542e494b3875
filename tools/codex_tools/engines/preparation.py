"""Prepare a turn for any engine: settings, environment, and checks before its start.

An engine may start Codex in different ways, but the rights of a turn must not depend on that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codex_tools.codex.errors import InvalidArguments, NotAllowed
from codex_tools.codex.images import IMAGES_LIMIT
from codex_tools.codex.masking import shorten
from codex_tools.codex.paths import codex_home, trusted_path
from codex_tools.codex.program import Program, Version, find_codex
from codex_tools.codex.sandbox import Sandbox
from codex_tools.codex.toml import to_toml
from codex_tools.engines.config_layers import MACHINE_FOLDER, MERGED_SERVERS, read_config
from codex_tools.engines.engine import TurnRequest
from codex_tools.engines.environment import (
    EnvironmentRules,
    environment_for_codex,
    kept_from_commands,
    set_empty_in_commands,
)
from codex_tools.engines.git_config import HARDENED_GIT, without_repository_programs
from codex_tools.engines.project_trust import Project, decide_trust, files_in
from codex_tools.engines.rules import describe_rules, rules_in, rules_of, switch_rules_off

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


async def find_program(
    codex_bin: str | None, untrusted: Sequence[Path], cwd: Path, rules: EnvironmentRules
) -> Program:
    """Find Codex and return its path, version and abilities; see `Engine.prepare`.

    Args:
        codex_bin: The configured Codex; None to look for one.
        untrusted: Folders in which no Codex is taken from PATH.
        cwd: The folder of the turn.
        rules: The operator's rules for the environment of that program.
    """

    def environ() -> dict[str, str]:
        return plain_environment(rules, (cwd, *untrusted))

    return await find_codex(codex_bin, cwd, environ, untrusted)


def plain_environment(rules: EnvironmentRules, untrusted: Sequence[Path]) -> dict[str, str]:
    """Return the environment of a Codex that runs no turn; accesses the disk.

    Args:
        rules: The operator's rules.
        untrusted: Folders that are taken off PATH.
    """
    env = environment_for_codex(os.environ, rules, read_config(None), depth=1)
    return env | {"PATH": trusted_path(env.get("PATH", ""), untrusted)}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the person's configuration and the operator's rules add to a turn."""

    request: TurnRequest
    """The turn, perhaps with fewer `add_dirs`."""
    kept: list[str]
    """Globs of environment variables that Codex must keep from its commands."""
    further: list[str]
    """Settings, as `key=value`, that follow from Codex's own configuration."""
    env: dict[str, str]
    """The environment of Codex."""
    notices: list[str]
    """Warnings for the caller."""
    rules: list[Path]
    """Files with rules about commands that Codex would load, without those of the machine."""


def prepare_turn(request: TurnRequest, *, starts_as: Sandbox | None = None) -> Prepared:
    """Read Codex's configuration; return what it and the operator's rules add to a turn.

    Args:
        request: The turn.
        starts_as: The sandbox with which Codex starts the thread; None for that of the turn. From
            it Codex decides whether to trust the project for ever.

    Raises:
        CodexUnsupported: This Codex would trust the project for ever.
        InvalidArguments: One of the `add_dirs` contains cwd.
        NotAllowed: This Codex obeys rules that must not count, or the project's files changed.
    """
    config = read_config(None, request.profile, request.cwd, request.config)
    kept = kept_from_commands(os.environ, request.environment, config)
    empty = set_empty_in_commands(os.environ, request.environment, config)
    further = [f'shell_environment_policy.set.{name}=""' for name in empty]
    rules = rules_in(config.project, codex_home())
    settings, notices = _doors(request, config.project, rules, starts_as or request.sandbox)
    further += settings
    recorded = request.program.records_service_tier and not request.ephemeral
    tier = config.service_tier
    if tier not in (None, "default") and not recorded:
        notices.append(
            f"service_tier: nothing records that this turn asks for {shorten(tier, 40)}."
            " cost_usd is the price in the standard tier."
        )
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
    env |= without_repository_programs(env, request.cwd, version)
    return Prepared(request, kept, further, env, notices, rules)


def settings_of(
    request: TurnRequest, kept: Sequence[str], permissions: str | None = None
) -> list[str]:
    """Return the settings of a turn, as `key=value`.

    Args:
        request: The turn.
        kept: Globs of environment variables that Codex must keep from its commands.
        permissions: Codex's name of the permission profile to name; None to name none.
    """
    version = request.program.version
    merges = version is None or version >= (0, 77, 0)
    settings = [f"{k}={v}" for k, v in request.config if merges or k != MERGED_SERVERS]
    if kept and request.program.keeps_whole_snapshot:
        settings.append("features.shell_snapshot=false")
    if kept:  # After the caller's settings, which it includes.
        settings.append(f"shell_environment_policy.exclude={to_toml([*kept])}")
    if permissions is not None:
        settings.append(f"default_permissions={to_toml(permissions)}")
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


def _doors(
    request: TurnRequest, project: Project | None, rules: Sequence[Path], starts_as: Sandbox
) -> tuple[list[str], list[str]]:
    """Return the settings that keep a project's files from widening the turn, and warnings.

    Raises:
        CodexUnsupported: This Codex would trust the project for ever.
        NotAllowed: This Codex obeys rules that must not count, or the project's files changed.
    """
    home, program = codex_home(), request.program
    settings: list[str] = []
    notices: list[str] = []
    if project is not None:
        settings, notice = decide_trust(project, starts_as, program, home)
        notices += [notice] if notice is not None else []
        known = request.project_files
        if known is not None and (found := files_in(project, home)) != known:
            changed = sorted({name for name, _ in found.items() ^ known.items()})
            raise NotAllowed(
                f"a trusted project with {shorten(changed[0], 300)}",
                "it was changed after the check",
                "--project-config",
            )
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


def check_unmoved(request: TurnRequest) -> None:
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
