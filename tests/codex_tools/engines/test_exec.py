"""The command line and the environment that Codex gets."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from codex_tools.codex.errors import CodexUnsupported
from codex_tools.codex.program import Program, Version
from codex_tools.codex.sandbox import Sandbox
from codex_tools.engines.engine import TurnRequest
from codex_tools.engines.exec import build_argv

NEW = Program(Path("/bin/codex"), (0, 169, 0), "0.169.0", None, frozenset({"--ephemeral"}))
OLD = Program(Path("/bin/codex"), (0, 60, 1), "0.60.1", "/vendor/path", frozenset())
THREAD = "01a20661-b445-73e1-b566-c552cde98ccd"
PLAIN = TurnRequest(NEW, "do it", Path("/project"), "read-only", timeout_s=60, stall_s=60)
FULL = replace(
    PLAIN,
    sandbox="workspace-write",
    model="gpt-5.5",
    reasoning_effort="high",
    profile="fast",
    output_schema={"type": "object"},
    images=(Path("/project/-a.png"), Path("/project/b c.png")),
    add_dirs=(Path("/more"), Path("/and more")),
    web_search=True,
    config=(("model_verbosity", '"low"'), ("a.b", "[1, 2]")),
    skip_git_repo_check=True,
    ephemeral=True,
)


def settings(argv: list[str]) -> list[str]:
    return [following for word, following in pairwise(argv) if word == "-c"]


PROFILE = 'default_permissions=":read-only"'


def test_a_plain_turn_names_its_sandbox_and_folder_and_reads_stdin() -> None:
    assert build_argv(PLAIN, None) == [
        *("/bin/codex", "exec", "--json", "-s", "read-only", "-C", "/project"),
        *("-c", PROFILE, "-"),
    ]


def test_every_option_has_its_place() -> None:
    assert build_argv(FULL, Path("/tmp/schema.json")) == [
        *("/bin/codex", "exec", "--json", "-s", "workspace-write", "-C", "/project"),
        *("-m", "gpt-5.5", "-p", "fast"),
        *("-c", 'model_verbosity="low"', "-c", "a.b=[1, 2]"),
        *("-c", 'default_permissions=":workspace"'),
        *("-c", 'model_reasoning_effort="high"', "-c", "features.web_search_request=true"),
        *("--skip-git-repo-check", "--ephemeral"),
        *("--add-dir", "/more", "--add-dir", "/and more"),
        *("--output-schema", "/tmp/schema.json"),
        *("--image=/project/-a.png", "--image=/project/b c.png", "-"),
    ]


@pytest.mark.parametrize("request_", [PLAIN, FULL])
def test_everything_stands_before_resume(request_: TurnRequest) -> None:
    fresh = build_argv(request_, Path("/tmp/schema.json"))
    resumed = build_argv(replace(request_, thread_id=THREAD), Path("/tmp/schema.json"))
    assert resumed == [*fresh[:-1], "resume", THREAD, "-"]


@pytest.mark.parametrize("sandbox", ["read-only", "workspace-write", "danger-full-access"])
@pytest.mark.parametrize("thread_id", [None, THREAD])
def test_the_sandbox_is_always_named(sandbox: Sandbox, thread_id: str | None) -> None:
    argv = build_argv(replace(PLAIN, sandbox=sandbox, thread_id=thread_id), None)
    assert argv.count("-s") == 1
    assert argv[argv.index("-s") + 1] == sandbox


def test_the_prompt_is_never_on_the_command_line() -> None:
    argv = build_argv(replace(FULL, prompt="--yolo secret"), None)
    assert "--yolo secret" not in argv
    assert argv[-1] == "-"


def test_an_image_cannot_swallow_the_dash() -> None:
    argv = build_argv(FULL, None)
    assert not {"-i", "--image"} & set(argv)


def test_web_search_is_switched_by_the_key_of_every_version() -> None:
    def read(web_search: bool | None, program: Program = OLD) -> dict[str, object]:
        argv = build_argv(replace(PLAIN, web_search=web_search, program=program), None)
        return tomllib.loads("\n".join(settings(argv)))

    sandbox = {"default_permissions": ":read-only"}
    assert read(None) == sandbox
    assert read(True) == sandbox | {"features": {"web_search_request": True}}
    off = sandbox | {"web_search": "disabled", "tools": {"web_search": False}}
    assert read(False) == off | {"features": {"web_search_request": False}}
    # Newer versions warn of the older key.
    assert read(False, PLAIN.program) == off


def test_what_the_options_say_comes_after_the_config_and_so_wins() -> None:
    given = replace(PLAIN, config=(("model_reasoning_effort", '"low"'),), reasoning_effort="xhigh")
    assert settings(build_argv(given, None)) == [
        'model_reasoning_effort="low"',
        PROFILE,
        'model_reasoning_effort="xhigh"',
    ]


def test_ephemeral_is_refused_where_codex_does_not_know_it() -> None:
    with pytest.raises(CodexUnsupported) as caught:
        build_argv(replace(PLAIN, program=OLD, ephemeral=True), None)
    assert caught.value.version == "0.60.1"
    assert "--ephemeral" in caught.value.message
    assert "--ephemeral" not in build_argv(replace(PLAIN, program=OLD), None)


def test_variables_that_commands_must_not_get_are_named_after_what_the_caller_sets() -> None:
    given = replace(PLAIN, config=(("web_search", "true"),))
    assert settings(build_argv(given, None, ["CODEX_API_KEY", 'a"b'])) == [
        "web_search=true",
        'shell_environment_policy.exclude=["CODEX_API_KEY", "a\\"b"]',
        PROFILE,
    ]
    assert settings(build_argv(PLAIN, None, [])) == [PROFILE]


@pytest.mark.parametrize(
    ("version", "off"),
    [
        *(((0, 77, 0), False), ((0, 98, 0), True), ((0, 120, 0), True), ((0, 147, 0), True)),
        *(((0, 163, 0), False), ((0, 171, 0), False), (None, True)),
    ],
)
def test_no_snapshot_of_the_environment_gives_back_what_is_kept_from_commands(
    version: Version | None, off: bool
) -> None:
    other = replace(PLAIN, program=replace(NEW, version=version))
    switch = "features.shell_snapshot=false"
    assert (switch in build_argv(other, None, ["CODEX_API_KEY"])) is off
    assert switch not in build_argv(other, None)
