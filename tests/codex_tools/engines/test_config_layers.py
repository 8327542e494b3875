"""What is read of the layers of Codex's configuration, however they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from codex_tools.engines.config_layers import (
    SIZE_LIMIT,
    CodexConfig,
    read_config,
    without_mcp_servers,
)
from support.work_trees import run_git

NOTHING = CodexConfig()


def server(name: str, variable: str) -> str:
    return f'[mcp_servers.{name}]\ncommand = "run"\nenv_vars = ["{variable}"]\n'


def test_each_layer_counts(tmp_path: Path) -> None:
    machine, home = tmp_path / "etc", tmp_path / "home"
    machine.mkdir()
    home.mkdir()
    (machine / "config.toml").write_text(server("machine", "A"))
    (machine / "managed_config.toml").write_text(server("managed", "B"))
    (home / "config.toml").write_text(server("user", "C") + '[profiles.p.x]\nenv_key = "D"\n')
    (home / "fast.config.toml").write_text(server("profile", "E"))
    plain = read_config(home, machine=machine)
    config = read_config(
        home, "fast", settings=[("model_providers.x.env_key", '"F"')], machine=machine
    )
    assert plain.named == {*"ABCD"}
    assert config.named == {*"ABCDEF"}
    assert [*config.mcp_servers] == ["machine", "user", "profile", "managed"]
    assert config.problems == ()


@pytest.mark.parametrize(
    "text",
    [
        '\ufeff[x]\nenv_key = "A_KEY"\n',
        '[x]\r\nenv_key = "A_KEY"\r\n',
        'x = {\n  env_key = "A_KEY", # the key\n  other = 1,\n}\n',
        'y = "\\e[0m \\x41"\nx.env_key = "A_KEY"\n',
        'y = 2026-11-28T10:30Z\nz = 10:30\nx.env_key = "A_KEY"\n',
    ],
)
def test_toml_is_read_as_tolerantly_as_codex_0_171_reads_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_bytes(text.encode())
    config = read_config(tmp_path, machine=tmp_path / "none")
    assert (config.named, config.problems) == ({"A_KEY"}, ())


@pytest.mark.parametrize(
    "text",
    [
        b'x = = 1\nenv_key = "A_KEY"\n',
        b"x = = 1\nenv_vars = [\n  'A_KEY', # it\n]\n",
        b'"bearer_token_env_var" = "A_KEY"\nx = \xff\n',
        b'm = { env_http_headers = { "X-Y" = "A_KEY" } }\n]',
        b'env_key = "A_KEY"\nx = ' + b"[" * 100_000,
        b'env_key = "A_KEY"\n' + b"# long\n" * (SIZE_LIMIT // 7 + 1),
        b'env_key = "A_KEY"\na' + b".a" * 900 + b" = 1\nx = = 1",
    ],
)
def test_names_are_searched_in_the_text_of_what_is_not_toml(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(text)
    config = read_config(tmp_path, machine=tmp_path / "none")
    assert "A_KEY" in config.named
    (problem,) = config.problems
    assert str(tmp_path / "config.toml") in problem


def test_a_deep_key_is_no_fault_of_ours(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("a" + ".a" * 990 + ' = 1\n[x]\nenv_key = "A_KEY"\n')
    assert "A_KEY" in read_config(tmp_path, machine=tmp_path / "none").named


@pytest.mark.parametrize("text", [b"", b"env_key = 3", None])
def test_a_configuration_that_says_nothing_names_nothing(
    tmp_path: Path, text: bytes | None
) -> None:
    if text is not None:
        (tmp_path / "config.toml").write_bytes(text)
    assert read_config(tmp_path, machine=tmp_path / "none") == NOTHING


def test_a_named_pipe_in_place_of_the_configuration_is_not_waited_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    assert read_config(tmp_path, machine=tmp_path / "none") == NOTHING


def test_a_built_in_provider_gets_the_secret_that_it_reads(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('model_provider = "amazon-bedrock"\n')
    assert read_config(tmp_path, machine=tmp_path / "none").named == {"AWS_BEARER_TOKEN_BEDROCK"}
    (tmp_path / "config.toml").write_text('model_provider = "openai"\n')
    assert read_config(tmp_path, machine=tmp_path / "none").named == set()


@pytest.mark.parametrize(
    ("otel", "read"),
    [
        ("exporter = { otlp-http = { endpoint = 'http://127.0.0.1:9', protocol = 'json' } }", True),
        ("exporter = 'none'\nlog_user_prompt = false", False),
    ],
)
def test_codex_s_own_telemetry_gets_its_headers(tmp_path: Path, otel: str, read: bool) -> None:
    (tmp_path / "config.toml").write_text(f"[otel]\n{otel}\n")
    named = read_config(tmp_path, machine=tmp_path / "none").named
    assert ("OTEL_EXPORTER_OTLP_HEADERS" in named) is read
    assert ("OTEL_EXPORTER_OTLP_LOGS_HEADERS" in named) is read


FOLDERS = (".", "a", "a/b")


@pytest.mark.parametrize(
    ("trust", "root", "git", "read"),
    [
        ({".": "trusted"}, ".", "", FOLDERS),
        ({"a": "trusted"}, ".", "", ["a"]),
        ({"a/b": "trusted"}, ".", "", ["a/b"]),
        ({"a/b": "trusted"}, ".", "folder", ["a/b"]),
        ({".": "trusted", "a": "untrusted"}, ".", "", [".", "a/b"]),
        ({".": "trusted"}, "a", "", []),
        ({".": "trusted"}, "a", "folder", ["a", "a/b"]),
        ({".": "trusted"}, "a", "file", []),
        ({".": "trusted"}, "a", "link to nothing", []),
        ({"a": "trusted"}, "a", "", ["a", "a/b"]),
        ({"a/b": "trusted"}, "elsewhere", "", ["a/b"]),
        ({".": "trusted"}, "elsewhere", "", []),
        ({}, ".", "", []),
        ({}, ".", "folder", []),
    ],
)
def test_only_trusted_folders_of_the_project_name_variables(
    tmp_path: Path, trust: dict[str, str], root: str, git: str, read: Sequence[str]
) -> None:
    # Each row is what 0.147.0 and 0.171.0 did. Without a .git in the project: in the temp folder,
    # above it, older versions of Codex leave an empty one, and whether it is there must not matter.
    home, project = tmp_path / "home", tmp_path / "project"
    for folder in FOLDERS:
        (project / folder / ".codex").mkdir(parents=True)
        name = folder.replace("/", "_").replace(".", "root")
        (project / folder / ".codex" / "config.toml").write_text(server(name, f"KEY_{name}"))
    match git:
        case "folder":
            run_git(project, "init", "-q")
        case "file":
            (project / ".git").write_text("gitdir: nowhere\n")
        case "link to nothing":
            (project / ".git").symlink_to("nowhere")
        case _:
            pass
    (project / root / ".marker").mkdir(parents=True)
    home.mkdir()
    (home / "config.toml").write_text(
        'project_root_markers = [".marker"]\n'
        + "".join(f'[projects."{(project / f)}"]\ntrust_level = "{t}"\n' for f, t in trust.items())
    )
    config = read_config(home, cwd=project / "a" / "b", machine=tmp_path / "none")
    names = {folder.replace("/", "_").replace(".", "root") for folder in read}
    assert config.named == {f"KEY_{name}" for name in names}
    # A server is known even so: some versions trust the folder as they start (0.120 to 0.163).
    assert "a_b" in config.mcp_servers


@pytest.mark.parametrize("is_known", [True, False])
def test_only_a_linked_work_tree_that_the_main_one_knows_has_its_trust(
    tmp_path: Path, is_known: bool
) -> None:
    main, linked = tmp_path / "main", tmp_path / "linked"
    (main / ".git" / "worktrees" / "linked").mkdir(parents=True)
    (linked / ".codex").mkdir(parents=True)
    (linked / ".git").write_text(f"gitdir: {main}/.git/worktrees/linked\n")
    back = linked if is_known else tmp_path / "another"
    (main / ".git" / "worktrees" / "linked" / "gitdir").write_text(f"{back}/.git\n")
    (linked / ".codex" / "config.toml").write_text(server("x", "KEY"))
    (tmp_path / "config.toml").write_text(f'[projects."{main}"]\ntrust_level = "trusted"\n')
    config = read_config(tmp_path, cwd=linked, machine=tmp_path / "none")
    assert config.named == ({"KEY"} if is_known else set())
    assert config.project is not None
    assert config.project.is_borrowed is not is_known


@pytest.mark.parametrize("form", ["default", "named", "inline"])
def test_the_servers_of_a_plugin_are_known(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "plugins" / "cache" / "market" / "plug" / "1.0.0"
    (folder / ".codex-plugin").mkdir(parents=True)
    servers = {
        "theirs": {"url": "http://127.0.0.1:9", "bearer_token_env_var": "A_KEY"},
        "both": {"command": "theirs"},
    }
    file = "servers.json" if form == "named" else ".mcp.json"
    if form != "inline":
        (folder / file).write_text(json.dumps({"mcpServers": servers}))
    manifest = {"default": {}, "named": {"mcpServers": "./servers.json"}}
    (folder / ".codex-plugin" / "plugin.json").write_text(
        json.dumps(manifest.get(form, {"mcpServers": servers}))
    )
    (tmp_path / "config.toml").write_text(
        '[plugins."plug@market"]\nenabled = true\n[plugins."../x@.."]\nenabled = true\n'
        '[mcp_servers.both]\ncommand = "mine"\n'
    )
    config = read_config(tmp_path, machine=tmp_path / "none")
    assert config.named == {"A_KEY"}
    assert config.mcp_servers == {
        "theirs": "url",
        "both": "command",
    }


def test_what_disables_a_server_names_its_kind_of_transport_and_no_secret_of_it() -> None:
    config = CodexConfig(
        mcp_servers={
            "a": "command",
            "b": "url",
            "c.d": "command",
        }
    )
    assert without_mcp_servers(config, ["b", "a", "c.d"]) == [
        ("mcp_servers", '{"c.d" = {"command" = "false", "enabled" = false}}'),
        ("mcp_servers.b.url", '"http://127.0.0.1"'),
        ("mcp_servers.b.enabled", "false"),
        ("mcp_servers.a.command", '"false"'),
        ("mcp_servers.a.enabled", "false"),
    ]


def test_an_exclusion_of_the_managed_layer_is_marked(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('shell_environment_policy.exclude = ["X"]\n')
    assert not read_config(tmp_path, machine=tmp_path).exclusion_is_managed
    (tmp_path / "managed_config.toml").write_text('shell_environment_policy.exclude = ["Y"]\n')
    config = read_config(tmp_path, machine=tmp_path)
    assert config.exclusion_is_managed
    assert {*config.excluded} == {"X", "Y"}


@pytest.mark.parametrize(
    ("home", "profile", "managed", "given", "tier"),
    [
        (None, None, None, None, None),
        ("fast", None, None, None, "fast"),
        ("fast", "flex", None, None, "flex"),
        ("fast", "flex", None, "default", "default"),
        (None, None, "flex", "fast", "flex"),
    ],
)
def test_the_service_tier_is_that_of_the_strongest_layer(
    tmp_path: Path,
    home: str | None,
    profile: str | None,
    managed: str | None,
    given: str | None,
    tier: str | None,
) -> None:
    layers = {"config.toml": home, "p.config.toml": profile, "managed_config.toml": managed}
    for name, value in layers.items():
        if value is not None:
            (tmp_path / name).write_text(f'service_tier = "{value}"\n')
    settings = [("service_tier", f'"{given}"')] if given is not None else []
    config = read_config(tmp_path, "p", None, settings, machine=tmp_path)
    assert config.service_tier == tier


OFF, CACHED = 'web_search = "disabled"', 'web_search = "cached"'


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"home/config.toml": 'web_search = "live"'}, None),
        ({"home/config.toml": OFF}, "disabled"),
        ({"home/config.toml": CACHED}, "cached"),
        ({"etc/config.toml": OFF}, "disabled"),
        ({"etc/config.toml": OFF, "home/config.toml": 'web_search = "live"'}, None),
        ({"etc/managed_config.toml": OFF, "home/config.toml": 'web_search = "live"'}, "disabled"),
        ({"home/config.toml": CACHED, "home/p.config.toml": OFF}, "disabled"),
        ({"home/config.toml": OFF, "home/p.config.toml": 'web_search = "live"'}, None),
        ({"home/config.toml": f"[profiles.p]\n{OFF}"}, "disabled"),
        ({"home/config.toml": f'profile = "q"\n[profiles.q]\n{OFF}'}, "disabled"),
        ({"home/config.toml": f"[profiles.other]\n{OFF}"}, None),
        ({"home/config.toml": "[tools]\nweb_search = false"}, "disabled"),
        ({"home/config.toml": "features.web_search_request = false"}, "disabled"),
        ({"home/config.toml": f"{CACHED}\n[tools]\nweb_search = false"}, "cached"),
        ({"etc/requirements.toml": 'allowed_web_search_modes = ["disabled"]'}, "disabled"),
        ({"etc/requirements.toml": "allowed_web_search_modes = []"}, "disabled"),
        ({"etc/requirements.toml": 'allowed_web_search_modes = ["cached"]'}, "cached"),
        ({"etc/requirements.toml": 'allowed_web_search_modes = ["live"]'}, None),
        ({"home/config.toml": f"{OFF}\nthis is not TOML"}, "disabled"),
        ({"cwd/.codex/config.toml": OFF}, None),
    ],
)
def test_the_person_s_limit_of_web_search_is_read_from_all_layers(
    tmp_path: Path, files: dict[str, str], limit: str | None
) -> None:
    for name in ("home", "etc", "cwd/.codex", "cwd/.git"):
        (tmp_path / name).mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    settings = [("web_search", '"live"'), ("tools.web_search", "true")]
    for given in (settings, [], [("web_search", '"disabled"')]):
        config = read_config(
            tmp_path / "home", "p", tmp_path / "cwd", given, machine=tmp_path / "etc"
        )
        assert config.web_search == limit
