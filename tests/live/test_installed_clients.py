"""Real clients read what `install` has written: Claude Code from npm, Codex of both ends."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from mcp_server_codex.cli.scripted_model import Call, Reply, do, say
from support.codex_versions import from_npm, number, real_codex
from support.lab import Json, Lab, environment, server_program
from support.user_home import Desk, make_desk

CLAUDE = "2.1.332"

QUIET = {
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return make_desk(tmp_path)


@pytest.fixture(scope="module")
def claude() -> Path:
    """The real Claude Code; its native program needs no node."""
    folder = from_npm(f"npm/claude-code-{CLAUDE}", f"@anthropic-ai/claude-code@{CLAUDE}")
    return folder / "node_modules" / ".bin" / "claude"


class ClaudeCode:
    """Claude Code on a desk."""

    def __init__(self, program: Path, desk: Desk) -> None:
        self.desk = desk
        self.env = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", **QUIET}

    def says(self, *words: str) -> str:
        done = subprocess.run(
            ["claude", "mcp", *words],
            cwd=self.desk.project,
            env={**self.env, "HOME": str(self.desk.home)},
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr

    def change(self, command: str, scope: str, *words: str) -> str:
        return self.desk.change(command, "claude-code", "--scope", scope, *words, **self.env)

    @property
    def state(self) -> Json:
        return json.loads((self.desk.home / ".claude.json").read_text())


@pytest.fixture
def code(claude: Path, desk: Desk) -> ClaudeCode:
    return ClaudeCode(claude, desk)


@pytest.mark.parametrize("scope", ["user", "local"])
def test_claude_code_connects_until_it_is_taken_out(scope: str, code: ClaudeCode) -> None:
    assert "added codex to" in code.change("install", scope)
    listed = code.says("list")
    assert f"codex: {server_program()}" in listed
    assert "Connected" in listed
    about = code.says("get", "codex")
    assert "Timeout: 7200000ms" in about
    assert "PYTHONSAFEPATH=1" in about
    assert f"Scope: {scope.capitalize()} config" in about

    assert "already" in code.change("install", scope)
    assert "updated codex in" in code.change("install", scope, "--", "--max-runs", "2")
    assert "Args: --max-runs 2" in code.says("get", "codex")
    assert "claude mcp remove codex" in code.change("uninstall", scope, "--print")
    assert "codex" in code.says("list")

    code.change("uninstall", scope)
    assert "codex" not in code.says("list")
    assert "nothing to do" in code.change("uninstall", scope)


def test_claude_code_s_local_scope_is_found_below_the_repository(code: ClaudeCode) -> None:
    repository = code.desk.project.parent
    subprocess.run(["git", "init", "-q"], cwd=repository, check=True)
    code.change("install", "local")
    assert list(code.state["projects"]) == [str(repository.resolve())]
    assert "already" in code.change("install", "local")
    code.change("uninstall", "local")
    assert code.state["projects"][str(repository.resolve())]["mcpServers"] == {}


def test_claude_code_s_other_server_is_left_alone_unless_forced(code: ClaudeCode) -> None:
    code.says("add", "-s", "user", "codex", "--", "/bin/false", "--other")
    done = code.desk.run("install", "claude-code", **code.env)
    assert done.returncode == 1
    assert "--other" in done.stderr
    assert code.state["mcpServers"]["codex"]["command"] == "/bin/false"
    code.change("install", "user", "--force")
    assert code.state["mcpServers"]["codex"]["command"] == server_program()


def test_claude_code_reads_the_project_s_file(code: ClaudeCode) -> None:
    code.change("install", "project")
    about = code.says("get", "codex")
    assert f"Command: {server_program()}" in about
    assert "Scope: Project config" in about
    code.change("uninstall", "project")
    assert "No MCP server" in code.says("get", "codex")


def test_claude_code_takes_a_mark_and_crlf_but_no_comments_in_the_project_s_file(
    code: ClaudeCode,
) -> None:
    text = '\ufeff{\r\n  "mcpServers": {\r\n    "a": { "command": "/bin/false" }\r\n  }\r\n}\r\n'
    path = code.desk.write("claude-code", text)
    code.change("install", "project")
    assert f"Command: {server_program()}" in code.says("get", "codex")
    assert "Command: /bin/false" in code.says("get", "a")
    path.write_text("// why\n{}\n")
    assert "not a valid JSON (line 1" in code.says("list")
    done = code.desk.run("install", "claude-code", "--scope", "project", **code.env)
    assert "line 1, column 1: comments are not allowed" in done.stderr


def codex_says(codex: Path, desk: Desk, *words: str) -> str:
    """Return what Codex prints on stdout."""
    env = {"HOME": str(desk.home), "PATH": os.environ["PATH"]}
    command = [codex, "mcp", *words]
    return subprocess.run(
        command, cwd=desk.project, env=env, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_codex_lists_the_server_until_it_is_taken_out(codex: Path, desk: Desk) -> None:
    text = '# mine\nmodel = "gpt-5.5"\n\n[mcp_servers.docs]\ncommand = "docs-mcp"\n'
    path = desk.write("codex", text)
    desk.change("install", "codex", "--", "--max-runs", "2")
    servers: list[Json] = json.loads(codex_says(codex, desk, "list", "--json"))
    assert [each["name"] for each in servers] == ["codex", "docs"]
    ours = servers[0]
    assert ours["enabled"] is True
    assert ours["tool_timeout_sec"] == 7200
    assert ours["startup_timeout_sec"] == 30
    assert ours["transport"] == {
        "type": "stdio",
        "command": server_program(),
        "args": ["--max-runs", "2"],
        "env": {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"},
        "env_vars": ["CODEX_HOME", "CODEX_RUN_DEPTH"],
        "cwd": None,
    }
    desk.change("uninstall", "codex")
    assert path.read_text() == text
    names = [each["name"] for each in json.loads(codex_says(codex, desk, "list", "--json"))]
    assert names == ["docs"]


def test_what_codex_itself_added_meanwhile_stays(codex: Path, desk: Desk) -> None:
    desk.write("codex", 'model = "gpt-5.5" # mine\n')
    desk.change("install", "codex")
    codex_says(codex, desk, "add", "docs", "--env", "A=b", "--", "docs-mcp", "-y")
    desk.change("uninstall", "codex")
    servers: list[Json] = json.loads(codex_says(codex, desk, "list", "--json"))
    assert [each["name"] for each in servers] == ["docs"]
    assert servers[0]["transport"]["env"] == {"A": "b"}
    assert "# mine" in desk.config("codex").read_text()


def test_codex_reads_a_trusted_project_s_file(desk: Desk) -> None:
    desk.write("codex", f'[projects."{desk.project.resolve()}"]\ntrust_level = "trusted"\n')
    desk.change("install", "codex", "--scope", "project")
    newest = real_codex("0.163.0")
    assert server_program() in codex_says(newest, desk, "list")
    desk.change("uninstall", "codex", "--scope", "project")
    assert server_program() not in codex_says(newest, desk, "list")


def use(version: str, tool: str, **arguments: str) -> Reply:
    """Return a reply that calls *tool*, as Codex of *version* names it."""
    if number(version) < (0, 147, 0):
        return do(Call(f"mcp__codex__{tool}", arguments))
    return do(Call(tool, arguments, "mcp__codex"))


@pytest.mark.parametrize("approved", [False, True], ids=["as installed", "approved"])
def test_codex_calls_the_tools(version: str, lab: Lab, approved: bool) -> None:
    """What the note on Codex says of approvals holds, and CODEX_HOME reaches the server."""
    codex, desk = real_codex(version), Desk(lab.root)
    desk.project.mkdir(parents=True)
    options = ("--state-dir", str(lab.state), "--codex-bin", str(codex))
    desk.change("install", "codex", "--", *options, CODEX_HOME=str(lab.home))
    if approved:
        with (lab.home / "config.toml").open("a") as file:
            file.write('default_tools_approval_mode = "approve"\n')
    lab.script("inner", say("Done inside."))
    outer = lab.script(
        "outer",
        use(version, "codex_sessions", query="outer"),
        use(version, "codex_run", prompt="inner", cwd=str(lab.project)),
        say("Done."),
    )
    # Or the model may be asked before the server is there.
    required = ("-c", "mcp_servers.codex.required=true")
    command = [codex, "exec", *required, "-s", "workspace-write", "-"]
    done = subprocess.run(
        command, cwd=lab.project, env=environment(lab), input=outer, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    asked = [seen.body["input"] for seen in lab.model.requests if seen.prompt == outer]
    sessions, run = [
        str(each["output"]) for each in asked[-1] if each.get("type", "").endswith("_call_output")
    ]
    assert str(lab.project) in sessions  # The thread that asks, found in its own CODEX_HOME.
    never_asks = number(version) < (0, 117, 0)
    runs = never_asks or (approved and number(version) >= (0, 147, 0))
    assert ("Done inside." in run) is runs
    assert ("inner" in [seen.prompt for seen in lab.model.requests]) is runs
