"""Options and environment, and what is said when they make no sense."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from codex_tools.codex.budget import Budgets
from codex_tools.codex.paths import codex_home
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.policy import Policy
from mcp_server_codex.settings import OPTIONS, Option, Settings, default_state_dir, read_settings


class Refused(Exception):
    """What the program would have said before it ends."""


def fail(problem: str) -> NoReturn:
    raise Refused(problem)


def read(*arguments: str, **environ: str) -> Settings:
    return read_settings(arguments, environ, fail)


def value_of(name: str, settings: Settings) -> Any:
    holder: object = settings if hasattr(settings, name) else settings.policy
    if name in ("pass_env", "deny_env"):
        holder = settings.policy.environment
    if hasattr(settings.policy.budgets, name):
        holder = settings.policy.budgets
    value = getattr(
        holder, {"root": "roots", "pass_env": "passed", "deny_env": "denied"}.get(name, name)
    )
    return value.relative_to(Path.cwd()) if name == "prices" else value


# By option: two texts and the values that they stand for.
TEXTS: dict[str, tuple[str, Any, str, Any]] = {
    "--codex-bin": ("/a/codex", "/a/codex", "codex-b", "codex-b"),
    "--engine": ("auto", "auto", "app-server", "app-server"),
    "--spares": ("0", 0, "3", 3),
    "--root": ("/", (Path("/"),), str(Path.home()), (Path.home().resolve(),)),
    "--default-sandbox": ("workspace-write", "workspace-write", "read-only", "read-only"),
    "--max-sandbox": ("danger-full-access", "danger-full-access", "read-only", "read-only"),
    "--isolation": ("copy", "copy", "none", "none"),
    "--allow-config": ("tools.*", ("tools.*",), "model_provider", ("model_provider",)),
    "--approvals": ("person", "person", "caller", "caller"),
    "--approve-outside-sandbox": ("yes", True, "no", False),
    "--rules": ("keep", "keep", "ignore", "ignore"),
    "--project-config": ("any", "any", "committed", "committed"),
    "--timeout-s": ("7", 7.0, "0.5", 0.5),
    "--max-timeout-s": ("8e3", 8000.0, "9", 9.0),
    "--stall-s": ("20", 20.0, "30", 30.0),
    "--wait-s": ("45.5", 45.5, "auto", "auto"),
    "--max-run-tokens": ("50000", 50_000, "1", 1),
    "--max-run-usd": ("2.5", 2.5, "0.01", 0.01),
    "--budget-tokens-day": ("1000000", 1_000_000, "7", 7),
    "--budget-usd-day": ("20", 20.0, "1e2", 100.0),
    "--max-runs": ("1", 1, "32", 32),
    "--max-queue": ("0", 0, "400", 400),
    "--wait-for-limits": ("yes", True, "no", False),
    "--max-depth": ("2", 2, "1", 1),
    "--ask": ("never", "never", "auto", "auto"),
    "--pass-env": ("ANTHROPIC_*", ("ANTHROPIC_*",), "HF_TOKEN", ("HF_TOKEN",)),
    "--deny-env": ("*_SECRET", ("*_SECRET",), "MY_KEY", ("MY_KEY",)),
    "--state-dir": ("/a/state", Path("/a/state"), "/b", Path("/b")),
    "--prices": ("prices.toml", Path("prices.toml"), "b.toml", Path("b.toml")),
    "--places": ("/a/places.toml", Path("/a/places.toml"), "/b.toml", Path("/b.toml")),
    "--default-place": ("box", "box", "dev", "dev"),
    "--compat": ("codex-mcp-server", "codex-mcp-server", "none", "none"),
    "--notify": ("notify-send codex", "notify-send codex", "logger", "logger"),
    "--log-level": ("debug", "debug", "error", "error"),
}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay the files that options name."""
    monkeypatch.chdir(tmp_path)
    for name in ("prices.toml", "b.toml"):
        Path(name).write_text('[models."m"]\ninput = 1\noutput = 2\n')


by_flag = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)


def test_the_options_are_those_of_the_contract() -> None:
    assert [option.flag for option in OPTIONS] == list(TEXTS)


def test_without_anything_the_defaults_hold() -> None:
    assert read() == Settings(
        codex_bin=None,
        engine="auto",
        spares=1,
        policy=Policy(
            default_sandbox="read-only",
            max_sandbox="workspace-write",
            roots=(),
            allow_config=(),
            timeout_s=3600,
            max_timeout_s=14400,
            stall_s=600,
            budgets=Budgets(None, None, None, None),
            max_depth=1,
            rules="ignore",
            project_config="committed",
            environment=EnvironmentRules(),
            home=Path.home(),
            codex_home=codex_home(),
            state_dir=default_state_dir(),
            cache_dir=read().policy.cache_dir,
        ),
        wait_s="auto",
        max_runs=4,
        max_queue=64,
        wait_for_limits=False,
        state_dir=default_state_dir(),
        prices=None,
        ask="auto",
        compat="none",
        notify=None,
        log_level="warning",
    )
    assert default_state_dir().is_absolute()
    assert default_state_dir().name == "mcp-server-codex"
    assert read().policy.cache_dir is not None


@by_flag
def test_an_option_is_read(option: Option) -> None:
    first, first_value, second, second_value = TEXTS[option.flag]
    assert value_of(option.name, read(option.flag, first)) == first_value
    assert value_of(option.name, read(f"{option.flag}={second}")) == second_value


@by_flag
def test_every_option_has_its_twin_in_the_environment(option: Option) -> None:
    first, first_value, *_ = TEXTS[option.flag]
    twin = "MCP_SERVER_CODEX_" + option.flag.removeprefix("--").replace("-", "_").upper()
    assert twin in option.variables
    assert value_of(option.name, read(**{twin: first})) == first_value


@by_flag
def test_an_option_beats_the_environment(option: Option) -> None:
    first, _, second, second_value = TEXTS[option.flag]
    for variable in option.variables:
        settings = read(option.flag, second, **{variable: first})
        assert value_of(option.name, settings) == second_value


def test_prices_that_cannot_be_used_are_an_error_of_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('[models."m"]\ninput = -1\noutput = 2\n')
    for name in ("bad.toml", "none.toml"):
        with pytest.raises(Refused, match=f"--prices: .*{name}"):
            read("--prices", name)


@by_flag
def test_an_empty_variable_is_none(option: Option) -> None:
    assert read(**dict.fromkeys(option.variables, "")) == read()


@by_flag
def test_a_setting_that_claude_desktop_s_user_left_blank_is_none(option: Option) -> None:
    placeholder = f"${{user_config.{option.name}}}"
    assert read(**dict.fromkeys(option.variables, placeholder)) == read()


def test_what_follows_two_dashes_are_roots(tmp_path: Path) -> None:
    for name in ("one", "two", "--max-runs"):
        (tmp_path / name).mkdir()
    folders = (tmp_path / "one", tmp_path / "two")
    assert read("--", *map(str, folders)).policy.roots == folders
    settings = read("--root", str(tmp_path), "--max-runs", "2", "--", *map(str, folders))
    assert settings.policy.roots == (tmp_path, *folders)
    assert settings.max_runs == 2
    assert read("--", "--max-runs").policy.roots == (tmp_path / "--max-runs",)
    for none in ((), ("${user_config.roots}",)):
        assert read("--", *none) == read()
    with pytest.raises(Refused, match=r"--root: .*no-such is not a folder"):
        read("--", str(folders[0]), str(tmp_path / "no-such"))
    with pytest.raises(Refused, match="--root: '' is not a path"):
        read("--", "")


def test_codex_bin_works_too_but_the_server_s_own_variable_wins() -> None:
    assert read(CODEX_BIN="/a").codex_bin == "/a"
    assert read(CODEX_BIN="/a", MCP_SERVER_CODEX_CODEX_BIN="/b").codex_bin == "/b"
    assert read("--codex-bin", "/c", CODEX_BIN="/a").codex_bin == "/c"


def test_a_list_is_an_option_repeated_or_a_variable_with_separators(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (tmp_path / "link").symlink_to(two)
    both = (one.resolve(), two.resolve())
    assert read("--root", str(one), "--root", str(tmp_path / "link")).policy.roots == both
    joined = os.pathsep.join((str(one), str(two)))
    assert read(MCP_SERVER_CODEX_ROOT=joined).policy.roots == both
    globs = read(MCP_SERVER_CODEX_ALLOW_CONFIG=os.pathsep.join(("a.*", "b"))).policy.allow_config
    assert globs == ("a.*", "b")


def test_an_empty_part_of_a_list_is_no_root(tmp_path: Path) -> None:
    for text in (f"{tmp_path}:", f":{tmp_path}", f"{tmp_path}::{tmp_path}"):
        settings = read(MCP_SERVER_CODEX_ROOT=text.replace(":", os.pathsep))
        assert set(settings.policy.roots) == {tmp_path.resolve()}


def test_folders_may_begin_with_the_home_folder_or_be_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text in ("~/sub", "sub", "./sub/../sub"):
        settings = read("--root", text, "--state-dir", text)
        assert settings.policy.roots == ((tmp_path / "sub").resolve(),)
        assert settings.state_dir == (tmp_path / "sub").resolve()


def test_the_last_of_a_repeated_option_counts() -> None:
    assert read("--max-runs", "2", "--max-runs", "3").max_runs == 3


def test_an_option_that_is_a_switch_needs_no_value() -> None:
    assert read("--wait-for-limits").wait_for_limits is True
    assert read("--wait-for-limits", "--max-runs", "3").wait_for_limits is True
    assert read("--wait-for-limits", "--max-runs", "3").max_runs == 3
    assert read("--wait-for-limits", "--", "/").policy.roots == (Path("/"),)
    for text in ("1", "true", "YES"):
        assert read(MCP_SERVER_CODEX_WAIT_FOR_LIMITS=text).wait_for_limits is True
    assert (
        read("--wait-for-limits=no", MCP_SERVER_CODEX_WAIT_FOR_LIMITS="1").wait_for_limits is False
    )


SECONDS = ["", "soon", "0", "-1", "nan", "inf", "1e9", "1,5"]
BAD = [
    *(("--timeout-s", text) for text in SECONDS),
    *(("--max-timeout-s", text) for text in SECONDS),
    *(("--stall-s", text) for text in SECONDS),
    *(("--wait-s", text) for text in ("", "AUTO", "-1", "nan")),
    *(("--max-runs", text) for text in ("", "0", "-4", "1.5", "many")),
    *(("--max-queue", text) for text in ("-1", "1.5", "many")),
    *(("--wait-for-limits", text) for text in ("", "maybe")),
    *(("--max-run-tokens", text) for text in ("", "0", "-1", "1.5", "1e6", "many")),
    *(("--max-run-usd", text) for text in SECONDS),
    *(("--budget-tokens-day", text) for text in ("", "0", "-1", "1.5", "many")),
    *(("--budget-usd-day", text) for text in SECONDS),
    *(("--log-level", text) for text in ("", "DEBUG", "trace")),
    *(("--default-sandbox", text) for text in ("", "none", "Read-Only")),
    *(("--max-sandbox", text) for text in ("", "full", "workspace-write ")),
    *(("--root", text) for text in ("", "/no/such/folder", __file__, "~no-such-user/x")),
    *(("--state-dir", text) for text in ("", "~no-such-user/x")),
]


@pytest.mark.parametrize(("flag", "text"), BAD)
def test_a_bad_value_is_refused_with_the_name_of_its_source(flag: str, text: str) -> None:
    with pytest.raises(Refused, match=f"^{flag}: "):
        read(f"{flag}={text}")
    variable = "MCP_SERVER_CODEX_" + flag.removeprefix("--").replace("-", "_").upper()
    if text:
        with pytest.raises(Refused, match=f"^{variable}: "):
            read(**{variable: text})


def test_a_refusal_says_what_would_do() -> None:
    with pytest.raises(Refused, match="must be one of read-only, workspace-write, danger-full"):
        read("--max-sandbox", "all")
    with pytest.raises(Refused, match="/no/such/folder is not a folder"):
        read("--root", "/no/such/folder")


@pytest.mark.parametrize(
    "arguments",
    [["--max-run", "3"], ["--max-runs", "3", "run"], ["-x"], ["--roots=/"], ["-v", "--max-runs=2"]],
)
def test_an_unknown_argument_is_named(arguments: list[str]) -> None:
    unknown = next(a for a in arguments if a not in ("--max-runs", "--max-runs=2", "3"))
    with pytest.raises(Refused, match=f"^unknown argument: {unknown}$"):
        read(*arguments)


@by_flag
def test_an_option_without_its_value_is_refused_by_name(option: Option) -> None:
    if option.is_flag:
        return  # See test_an_option_that_is_a_switch_needs_no_value.
    with pytest.raises(Refused, match=f"{option.flag}: expected one argument"):
        read(option.flag)


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (("--default-sandbox", "danger-full-access"), {}),
        (("--default-sandbox=workspace-write", "--max-sandbox=read-only"), {}),
        (("--max-sandbox=read-only",), {"MCP_SERVER_CODEX_DEFAULT_SANDBOX": "workspace-write"}),
        ((), {"MCP_SERVER_CODEX_DEFAULT_SANDBOX": "danger-full-access"}),
    ],
)
def test_a_default_sandbox_wider_than_the_ceiling_is_refused(
    arguments: tuple[str, ...], environ: Mapping[str, str]
) -> None:
    with pytest.raises(Refused, match="--default-sandbox is wider than --max-sandbox"):
        read(*arguments, **environ)


def test_a_default_sandbox_as_wide_as_the_ceiling_will_do() -> None:
    policy = read("--default-sandbox", "workspace-write").policy
    assert (policy.default_sandbox, policy.max_sandbox) == ("workspace-write", "workspace-write")
