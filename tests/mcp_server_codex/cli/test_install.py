"""`install` and `uninstall` change the server's entry in clients' files, and nothing else."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from mcp_server_codex.cli.clients.known import (
    ENVIRONMENT,
    client_named,
    command_of,
    environment_of,
)
from support.lab import server_program
from support.user_home import CASES, OPTIONS, PLACES, USER, Desk, make_desk

BACKUP = ".bak-mcp-server-codex"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return make_desk(tmp_path)


def case_id(case: Path) -> str:
    return f"{case.parent.name}-{case.name}"


def before(case: Path) -> bytes:
    return (case / "before").read_bytes()


def after(case: Path) -> bytes:
    return (case / "after").read_bytes().replace(b"@COMMAND@", server_program().encode())


def test_there_are_three_files_for_each_client_at_least() -> None:
    clients = [case.parent.name for case in CASES]
    assert {name: clients.count(name) >= 3 for name in clients} == dict.fromkeys(
        ("claude-code", *USER), True
    )


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_the_entry_is_added_once_and_taken_out_byte_for_byte(case: Path, desk: Desk) -> None:
    client = case.parent.name
    path = desk.write(client, before(case))
    path.chmod(0o640)
    backup = path.with_name(path.name + BACKUP)

    assert f"added codex to {path}" in desk.change("install", client, "--", *OPTIONS)
    assert path.read_bytes() == after(case)
    assert backup.read_bytes() == before(case)
    installed = desk.files()
    assert "already" in desk.change("install", client, "--", *OPTIONS)
    assert desk.files() == installed
    assert {stat.S_IMODE(each.stat().st_mode) for each in (path, backup)} == {0o640}

    desk.change("uninstall", client)
    assert path.read_bytes() == before(case)
    assert not backup.exists()
    assert "nothing to do" in desk.change("uninstall", client)
    assert path.read_bytes() == before(case)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_what_was_changed_meanwhile_stays(case: Path, desk: Desk) -> None:
    def edited(data: bytes) -> bytes:
        if client == "codex":
            return b"added = 1\n" + data
        return data.replace(b"{", b'{ "added": [1], ', 1)

    client = case.parent.name
    path = desk.write(client, before(case))
    desk.change("install", client, "--", *OPTIONS)
    path.write_bytes(edited(path.read_bytes()))
    desk.change("uninstall", client)
    left, kept = path.read_bytes(), edited(before(case))
    # In a file that held nothing before, the origin of white space is unknown.
    if case.name in ("empty-file", "blank", "braces", "only-comments", "empty-object", "crlf-tabs"):
        assert b"added" in left
        assert b"codex" not in left
        assert left.split(b"{")[0].strip() == kept.split(b"{")[0].strip() or client == "codex"
    else:
        assert left.rstrip() == kept.rstrip()
    assert path.with_name(path.name + BACKUP).read_bytes() == before(case)


@pytest.mark.parametrize(("client", "scope"), PLACES)
def test_without_a_file_or_folder_both_are_made_and_unmade(
    client: str, scope: str, desk: Desk
) -> None:
    clean = set(desk.files())
    desk.change("install", client, "--scope", scope)
    text = desk.config(client, scope).read_text()
    data = tomllib.loads(text) if client == "codex" else json.loads(text)
    (servers,) = data.values()
    entry = servers["codex"]
    assert command_of(entry) == [server_program()]
    refused = client_named(client).refused_variables
    assert environment_of(entry) == {k: v for k, v in ENVIRONMENT.items() if k not in refused}
    assert ("PYTHONPATH" in refused) is (client == "gemini-cli")
    assert text.endswith("\n")
    assert "already" in desk.change("install", client, "--scope", scope)
    desk.change("uninstall", client, "--scope", scope)
    assert set(desk.files()) == clean


@pytest.mark.parametrize(("client", "scope"), PLACES)
def test_print_shows_where_and_what_and_changes_nothing(
    client: str, scope: str, desk: Desk
) -> None:
    files = desk.files()
    said = desk.change("install", client, "--print", "--scope", scope)
    where, _, what = said.partition("\n\n")
    assert str(desk.config(client, scope)) in where
    assert desk.files() == files
    desk.change("install", client, "--scope", scope)
    assert desk.config(client, scope).read_text() == what
    files = desk.files()
    assert str(desk.config(client, scope)) in desk.change(
        "uninstall", client, "--print", "--scope", scope
    )
    desk.change("install", client, "--print", "--scope", scope, "--", *OPTIONS)
    assert desk.files() == files


def test_an_entry_of_this_server_is_updated_and_keeps_what_a_person_added(desk: Desk) -> None:
    path = desk.write(
        "vscode",
        """{
  "servers": {
    "second-agent": {
      "command": "/old/bin/mcp-server-codex", // moved
      "args": ["--max-runs", "2"],
      "env": { "MCP_SERVER_CODEX_ASK": "never", "PYTHONPATH": "x" },
      "dev": {}, /* mine */
    },
    "codex": { "command": "codex", "args": ["mcp-server"] },
  },
}
""",
    )
    assert "updated second-agent in" in desk.change("install", "vscode", "--", *OPTIONS)
    assert (
        path.read_text()
        == f"""{{
  "servers": {{
    "second-agent": {{
      "command": "{server_program()}", // moved
      "args": [
        "--max-sandbox",
        "read-only"
      ],
      "env": {{ "MCP_SERVER_CODEX_ASK": "never", "PYTHONPATH": "", "PYTHONSAFEPATH": "1" }},
      "dev": {{}}, /* mine */
      "type": "stdio",
    }},
    "codex": {{ "command": "codex", "args": ["mcp-server"] }},
  }},
}}
"""
    )
    desk.change("uninstall", "vscode")
    assert json.loads(path.read_text().replace("},\n", "}\n")) == {
        "servers": {"codex": {"command": "codex", "args": ["mcp-server"]}}
    }


def test_codex_s_entry_is_updated_where_it_stands(desk: Desk) -> None:
    path = desk.write(
        "codex",
        """[mcp_servers.codex] # delegate
command = "mcp-server-codex"
env_vars = ["CODEX_RUN_DEPTH", "MINE"]
tool_timeout_sec = 600 # too short
enabled = false

[mcp_servers.codex.env]
PYTHONPATH = "" # not the project's
MINE = "1"

# the others
[mcp_servers.docs]
command = "docs-mcp"
""",
    )
    assert "The entry is disabled" in desk.change("install", "codex")
    assert (
        path.read_text()
        == f"""[mcp_servers.codex] # delegate
command = "{server_program()}"
env_vars = ["CODEX_RUN_DEPTH", "MINE", "CODEX_HOME"]
tool_timeout_sec = 7200 # too short
enabled = false
args = []
startup_timeout_sec = 30

[mcp_servers.codex.env]
PYTHONPATH = "" # not the project's
MINE = "1"
PYTHONSAFEPATH = "1"

# the others
[mcp_servers.docs]
command = "docs-mcp"
"""
    )
    desk.change("uninstall", "codex")
    assert path.read_text() == '\n# the others\n[mcp_servers.docs]\ncommand = "docs-mcp"\n'


@pytest.mark.parametrize("client", ["cursor", "codex"])
def test_what_was_there_before_is_taken_out_too(client: str, desk: Desk) -> None:
    desk.change("install", client)
    path = desk.config(client)
    made_by_hand = path.read_bytes()
    desk.change("install", client, "--", *OPTIONS)
    assert path.with_name(path.name + BACKUP).read_bytes() == made_by_hand
    desk.change("uninstall", client)
    assert not path.exists() or b"mcp-server-codex" not in path.read_bytes()


def test_options_can_be_changed_and_the_file_still_goes_back(desk: Desk) -> None:
    case = next(each for each in CASES if case_id(each) == "zed-settings")
    path = desk.write("zed", before(case))
    desk.change("install", "zed")
    assert "updated codex in" in desk.change("install", "zed", "--", *OPTIONS)
    assert path.read_bytes() == after(case)
    desk.change("uninstall", "zed")
    assert path.read_bytes() == before(case)


FOREIGN = {
    "cursor": '{ "mcpServers": { "codex": { "command": "other", "args": ["--flag"],'
    ' "env": { "TOKEN": "sk-very-secret" } } } }',
    "codex": '[mcp_servers.codex]\ncommand = "other"\nargs = ["--flag"]\n'
    '[mcp_servers.codex.env]\nTOKEN = "sk-very-secret"\n',
}


@pytest.mark.parametrize("client", FOREIGN)
def test_another_server_called_codex_is_left_alone_unless_forced(client: str, desk: Desk) -> None:
    path = desk.write(client, FOREIGN[client])
    files = desk.files()
    done = desk.run("install", client)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "--flag" in done.stderr
    assert "--force" in done.stderr
    assert "secret" not in done.stderr
    assert "nothing to do" in desk.change("uninstall", client)
    assert desk.files() == files

    desk.change("install", client, "--force")
    assert server_program() in path.read_text()
    assert "secret" not in path.read_text()
    desk.change("uninstall", client)
    assert path.read_text() == FOREIGN[client]


BROKEN = {
    "cursor": [
        ('{\n  "mcpServers": {\n    "a" 1\n  }\n}', "line 3, column 9"),
        ('{\r\n  "a": [1, 2,\r\n', "line 3, column 1"),
        ('{ "a": "b\n" }', "line 1, column 8"),
        ("{} {}", "line 1, column 4"),
        ("[1]", "line 1, column 1"),
        ('{ "a": 1 /* }', "line 1, column 10"),
        (b'{\n"a": "\xff"}', "line 2: the file is not valid UTF-8"),
        ('{ "mcpServers": [] }', "'codex'"),
        ("[" * 5000, "nested too deeply: more than 200 levels"),
    ],
    "claude-desktop": [
        ('{\n  // note\n  "mcpServers": {}\n}', "line 2, column 3: comments are not allowed"),
        ('{\n  "mcpServers": {},\n}', "line 2, column 19: a comma after the last"),
    ],
    "codex": [
        ('model = "a"\n[mcp_servers.x\n', "line 2"),
        ("a = 1\na = 2\n", "line 2"),
        ('a = """', "line 1, column 8"),
        ("mcp_servers = 3\n", "'codex'"),
    ],
}


@pytest.mark.parametrize(
    ("client", "data", "says"),
    [(client, data, says) for client, all_ in BROKEN.items() for data, says in all_],
)
@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_a_broken_file_is_left_alone(
    client: str, data: str | bytes, says: str, command: str, desk: Desk
) -> None:
    path = desk.write(client, data)
    files = desk.files()
    done = desk.run(command, client)
    if says == "'codex'" and command == "uninstall":
        assert done.returncode == 0  # The file is valid, but has no place for an entry.
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{path}: " in done.stderr
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    assert desk.files() == files


def test_a_link_goes_on_pointing_to_the_file(desk: Desk) -> None:
    target = desk.home / "dotfiles" / "codex.toml"
    target.parent.mkdir()
    target.write_text('model = "x"\n')
    link = desk.config("codex")
    link.parent.mkdir()
    link.symlink_to("../dotfiles/codex.toml")
    desk.change("install", "codex")
    assert link.is_symlink()
    assert server_program() in target.read_text()
    desk.change("uninstall", "codex")
    assert link.is_symlink()
    assert target.read_text() == 'model = "x"\n'
    assert [each.name for each in link.parent.iterdir()] == ["config.toml"]

    target.unlink()
    desk.change("install", "codex")
    assert server_program() in target.read_text()
    desk.change("uninstall", "codex")
    assert link.is_symlink()
    assert not target.exists()


@pytest.mark.parametrize("client", ["cursor", "codex"])
def test_a_read_only_file_is_left_alone(client: str, desk: Desk) -> None:
    path = desk.write(client, "")
    path.chmod(0o444)
    files = desk.files()
    done = desk.run("install", client)
    assert done.returncode == 1
    assert f"{path}: the file is read-only" in done.stderr
    assert desk.files() == files


def test_a_folder_that_is_a_file_is_named(desk: Desk) -> None:
    (desk.home / ".cursor").write_text("")
    files = desk.files()
    done = desk.run("install", "cursor")
    assert done.returncode == 1
    assert f"{desk.config('cursor')}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert desk.files() == files


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("cursor", "--", "--max-sandbox", "none"), "--max-sandbox: must be one of"),
        (("cursor", "--", "--no-such"), "unknown argument: --no-such"),
        (("cursor", "--", "--root", "missing"), "--root: missing is not a folder"),
        (("cursor", "--scope", "local"), "no scope 'local'; its scopes: user, project"),
        (("claude-desktop", "--scope", "project"), "no scope 'project'; its scopes: user"),
        (("emacs",), "invalid choice: 'emacs'"),
        (("cursor", "--max-sandbox", "read-only"), "--max-sandbox"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    words: tuple[str, ...], says: str, desk: Desk
) -> None:
    files = desk.files()
    done = desk.run("install", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert desk.files() == files


def test_paths_in_options_are_made_absolute(desk: Desk) -> None:
    words = ("--root", ".", "--root=..", "--codex-bin", "bin/codex", "--state-dir", "~/state")
    desk.change("install", "cursor", "--", *words)
    (entry,) = json.loads(desk.config("cursor").read_text())["mcpServers"].values()
    project = str(desk.project)
    assert entry["args"] == [
        *("--root", project, f"--root={desk.project.parent}"),
        *("--codex-bin", f"{project}/bin/codex", "--state-dir", "~/state"),
    ]


def test_codex_home_and_other_folders_are_respected(desk: Desk, tmp_path: Path) -> None:
    desk.change("install", "codex", CODEX_HOME=str(tmp_path / "c"))
    assert "[mcp_servers.codex]" in (tmp_path / "c" / "config.toml").read_text()
    (desk.home / ".config" / "devin").mkdir(parents=True)
    desk.change("install", "windsurf")
    assert (desk.home / ".config" / "devin" / "mcp_config.json").exists()


@pytest.mark.parametrize("scope", ["user", "local"])
def test_without_claude_s_program_the_command_is_printed(scope: str, desk: Desk) -> None:
    files = desk.files()
    done = desk.run("install", "claude-code", "--scope", scope, "--", *OPTIONS)
    assert done.returncode == 1
    assert "`claude` was not found" in done.stderr
    assert f'claude mcp add-json -s {scope} codex \'{{"type": "stdio"' in done.stdout
    assert '"args": ["--max-sandbox", "read-only"]' in done.stdout
    assert '"timeout": 7200000' in done.stdout
    printed = desk.change("install", "claude-code", "--scope", scope, "--print", "--", *OPTIONS)
    assert done.stdout in printed
    assert desk.files() == files


@pytest.mark.parametrize("code", [3, 0])
def test_when_claude_s_program_does_not_do_it_that_is_said(code: int, desk: Desk) -> None:
    program = desk.home / "bin" / "claude"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho 'not today' >&2\nexit {code}\n")
    program.chmod(0o755)
    done = desk.run("install", "claude-code", PATH=f"{program.parent}:{os.defpath}")
    assert (done.returncode, done.stdout) == (1, "")
    assert ("not today" if code else "the server is not in the file") in done.stderr


async def test_what_is_written_starts_the_server(mode: str, desk: Desk) -> None:
    desk.change("install", "cursor", "--", "--state-dir", str(desk.home / "state"))
    entry = json.loads(desk.config("cursor").read_text())["mcpServers"]["codex"]
    server = StdioServerParameters(cwd=desk.project, **entry)
    async with Client(stdio_client(server), mode=mode) as client:
        tools = await client.list_tools()
    assert "codex_run" in [tool.name for tool in tools.tools]


def test_without_a_client_it_lists_who_is_there(desk: Desk) -> None:
    desk.write("cursor", "{}")
    desk.write("kiro", "not JSON")
    desk.change("install", "cursor")
    before = desk.files()
    done = desk.run("install")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert ["Cursor", "has this server (user)"] in lines
    assert ["Kiro", "mcp-server-codex install kiro"] in lines
    assert "Zed" not in done.stdout
    assert ", zed" in done.stdout
    assert desk.files() == before


def test_an_entry_for_any_other_client_is_printed(desk: Desk) -> None:
    before = desk.files()
    for words in (("--print", "json"), ("json",)):
        done = desk.run("install", *words, "--", "--max-sandbox", "read-only")
        assert (done.returncode, done.stderr) == (0, "")
        entry = json.loads(done.stdout)["mcpServers"]["codex"]
        assert entry["command"] == server_program()
        assert entry["args"] == ["--max-sandbox", "read-only"]
    refused = desk.run("install", "--print", "json", "--", "--max-sandbx", "read-only")
    assert refused.returncode == 2
    assert desk.files() == before


def test_continue_gets_yaml_to_add_by_hand(desk: Desk) -> None:
    done = desk.run("install", "continue")
    assert done.returncode == 0
    assert "nothing was changed" in done.stderr
    assert "~/.continue/config.yaml" in done.stderr
    first, name, command, *_ = done.stdout.splitlines()
    assert (first, name) == ("mcpServers:", "  - name: codex")
    assert command == f'    command: "{server_program()}"'
    assert desk.files() == {} or ".continue" not in "".join(desk.files())
