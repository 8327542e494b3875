"""What Codex and its commands get of the server's environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from codex_tools.engines.config_layers import CodexConfig, read_config
from codex_tools.engines.environment import (
    DEPTH_VARIABLE,
    EnvironmentRules,
    environment_for_codex,
    kept_from_commands,
    set_empty_in_commands,
)

NO_RULES, NO_CONFIG = EnvironmentRules(), CodexConfig()
PLAIN = {"PATH": "/usr/bin", "HOME": "/home/dev", "LANG": "C.UTF-8", "MY_TOKEN": "mine"}
SECRETS = (
    *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "anthropic_api_key", "ANTHROPIC_BASE_URL"),
    *("CLAUDE_CODE_MESSAGING_TOKEN", "CLAUDE_PROJECT_DIR", "CLAUDECODE", "AI_AGENT"),
    *("CURSOR_API_KEY", "COPILOT_TOKEN", "GITHUB_COPILOT_TOKEN", "GEMINI_API_KEY", "XAI_API_KEY"),
    *("GOOGLE_API_KEY", "OPENROUTER_API_KEY", "MISTRAL_API_KEY", "HF_TOKEN", "GROQ_API_KEY"),
    *("MCP_SERVER_CODEX_ROOT", "MCP_SERVER_CODEX_MAX_SANDBOX"),
)


def handed_on(
    environ: dict[str, str],
    rules: EnvironmentRules = NO_RULES,
    config: CodexConfig = NO_CONFIG,
) -> dict[str, str]:
    env = environment_for_codex(environ, rules, config, depth=1)
    assert env.pop(DEPTH_VARIABLE) == "1"
    return env


@pytest.mark.parametrize("name", SECRETS)
def test_what_belongs_to_other_agents_goes_no_further(name: str) -> None:
    assert handed_on(PLAIN | {name: "x"}) == PLAIN


@pytest.mark.parametrize("name", ["CODEX_API_KEY", "OPENAI_API_KEY", "HTTPS_PROXY", "CLAUDIA", "X"])
def test_what_codex_or_the_person_s_own_programs_need_goes_on(name: str) -> None:
    assert handed_on(PLAIN | {name: "x"}) == PLAIN | {name: "x"}


def test_the_operator_passes_and_denies_by_globs_and_to_deny_is_stronger() -> None:
    environ = PLAIN | {"ANTHROPIC_API_KEY": "a", "GEMINI_API_KEY": "g", "OTHER_SECRET": "o"}
    rules = EnvironmentRules(passed=("ANTHROPIC_*", "gemini_*"), denied=("*_SECRET", "GEMINI_*"))
    assert handed_on(environ, rules) == PLAIN | {"ANTHROPIC_API_KEY": "a"}


def test_this_server_s_own_settings_can_be_passed_by_nobody() -> None:
    environ = PLAIN | {"MCP_SERVER_CODEX_MAX_SANDBOX": "read-only"}
    assert handed_on(environ, EnvironmentRules(passed=("*",))) == PLAIN


def test_what_codex_s_own_configuration_names_goes_to_codex_but_not_to_commands(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.toml").write_text(
        """
        [model_providers.router]
        env_key = "OPENROUTER_API_KEY"
        env_http_headers = { "X-Team" = "GEMINI_TEAM" }
        [mcp_servers.a]
        bearer_token_env_var = "HF_TOKEN"
        env_vars = ["ANTHROPIC_API_KEY", { name = "XAI_API_KEY", source = "local" }]
        [shell_environment_policy]
        exclude = ["MINE_*"]
        """
    )
    config = read_config(tmp_path, machine=tmp_path)
    named = ["OPENROUTER_API_KEY", "GEMINI_TEAM", "HF_TOKEN", "ANTHROPIC_API_KEY", "XAI_API_KEY"]
    environ = PLAIN | dict.fromkeys(named, "x") | {"GROQ_API_KEY": "x", "CODEX_API_KEY": "x"}
    assert handed_on(environ, config=config) == PLAIN | dict.fromkeys(named, "x") | {
        "CODEX_API_KEY": "x"
    }
    assert kept_from_commands(environ, EnvironmentRules(), config) == [
        "MINE_*",
        *sorted([*named, "CODEX_API_KEY"]),
    ]
    passed = EnvironmentRules(passed=("*",))
    assert kept_from_commands(environ, passed, config) == []
    assert handed_on(environ, EnvironmentRules(denied=("HF_*",)), config).keys() >= {
        "OPENROUTER_API_KEY"
    }
    assert "HF_TOKEN" not in handed_on(environ, EnvironmentRules(denied=("HF_*",)), config)


def test_commands_are_kept_from_what_is_there_and_from_nothing_else() -> None:
    none, config = EnvironmentRules(), CodexConfig()
    assert kept_from_commands(PLAIN, none, config) == []
    assert kept_from_commands(PLAIN, none, CodexConfig(excluded=("X_*",))) == []
    environ = PLAIN | {"CODEX_API_KEY": "k", "OPENAI_API_KEY": "k"}
    assert kept_from_commands(environ, none, config) == ["CODEX_API_KEY", "OPENAI_API_KEY"]
    passed = EnvironmentRules(passed=("OPENAI_*",))
    assert kept_from_commands(environ, passed, config) == ["CODEX_API_KEY"]


def test_the_folder_with_ripgrep_goes_first_on_path() -> None:
    def path_of(environ: dict[str, str], search_path: str | None) -> str | None:
        rules, config = EnvironmentRules(), CodexConfig()
        return environment_for_codex(environ, rules, config, depth=1, search_path=search_path).get(
            "PATH"
        )

    assert path_of(PLAIN, "/vendor") == os.pathsep.join(("/vendor", "/usr/bin"))
    assert path_of({}, "/vendor") == "/vendor"
    assert path_of({"PATH": ""}, "/vendor") == "/vendor"
    assert path_of(PLAIN, None) == "/usr/bin"
    assert PLAIN["PATH"] == "/usr/bin"


def test_what_protects_the_server_s_own_imports_is_not_passed_on() -> None:
    environ = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "", "CODEX_API_KEY": "k", "PYTHONUTF8": "1"}
    assert handed_on(environ) == {"CODEX_API_KEY": "k", "PYTHONUTF8": "1"}
    assert handed_on({"PYTHONPATH": "/mine"}) == {"PYTHONPATH": "/mine"}


def test_the_place_that_a_tool_runner_made_for_the_server_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = "/home/dev/.cache/uv/archive-v0/abc"
    environ = PLAIN | {"VIRTUAL_ENV": runner, "PATH": f"{runner}/bin:/usr/bin"}
    assert handed_on(environ) == environ  # Nothing of ours: somebody activated it.
    monkeypatch.setattr(sys, "prefix", runner)
    assert handed_on(environ) == PLAIN
    mine = PLAIN | {"VIRTUAL_ENV": "/home/dev/project/.venv"}
    assert handed_on(mine) == mine


def test_the_depth_is_told_to_all_that_inherits() -> None:
    env = environment_for_codex({DEPTH_VARIABLE: "0"}, EnvironmentRules(), CodexConfig(), depth=3)
    assert env == {DEPTH_VARIABLE: "3"}


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "NODE_CHANNEL_FD"])
def test_what_a_program_around_the_server_set_for_it_goes_no_further(name: str) -> None:
    assert handed_on(PLAIN | {name: "x"}) == PLAIN
    passed = EnvironmentRules(passed=("GIT_*", "NODE_*"))
    assert handed_on(PLAIN | {name: "x"}, passed) == PLAIN | {name: "x"}


@pytest.mark.parametrize("name", ["GIT_AUTHOR_NAME", "GIT_SSH_COMMAND", "GIT_CONFIG_COUNT"])
def test_what_the_person_set_for_git_goes_on(name: str) -> None:
    assert handed_on(PLAIN | {name: "x"}) == PLAIN | {name: "x"}


def test_commands_see_secrets_as_empty_where_codex_ignores_what_is_kept_from_them() -> None:
    environ = PLAIN | {"CODEX_CONNECTORS_TOKEN": "x", "NAMED": "x"}
    named = CodexConfig(named=frozenset({"NAMED"}))
    managed = CodexConfig(named=frozenset({"NAMED"}), exclusion_is_managed=True)
    assert set_empty_in_commands(environ, NO_RULES, named) == []
    assert set_empty_in_commands(environ, NO_RULES, managed) == ["CODEX_CONNECTORS_TOKEN", "NAMED"]
