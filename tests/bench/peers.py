"""Other MCP servers that call Codex: how each is installed, set up, called and resumed.

They are fetched once, into the cache. Their versions are fixed here, for the table to name them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from codex_tools.codex.json_object import Json
from support.codex_versions import from_npm, from_pypi
from support.lab import Lab, server_program

Call = tuple[str, Json]
"""The name of a tool, and its arguments."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server, and how its tools are called."""

    name: str
    version: str
    command: Callable[[Lab], list[str]]
    """Install the server; return its command line."""
    run: Callable[[str, str, Lab], Call]
    """Return the call that runs a prompt in a sandbox and waits for the answer."""
    resume: Callable[[str, str], Call] | None = None
    """Return the call that resumes a conversation by its id and names no sandbox."""
    keys: tuple[str, ...] = ("thread_id",)
    """The fields of a result that hold the id of the conversation, the best first."""
    limit: tuple[str, float] | None = None
    """The argument that limits the time of a call, and its smallest value."""
    prepare: Callable[[Lab, dict[str, str]], None] = lambda _, __: None
    """Write the server's own configuration, where it does not start without."""
    unserved: str = ""
    """Why a scripted model cannot serve its calls; only its start is measured then."""
    wait: Callable[[str], Call] | None = None
    """Return the call that waits for what `run` has started, by its id."""


def _pypi(package: str, version: str, program: str, *args: str, extra: str = ""):
    def command(_: Lab) -> list[str]:
        name = f"pypi/peer-{package}-{version}{extra and '-' + extra}"
        what = f"{package}[{extra}]=={version}" if extra else f"{package}=={version}"
        return [str(from_pypi(name, what).with_name(program)), *args]

    return command


def _npm(package: str, version: str, program: str):
    def command(_: Lab) -> list[str]:
        short = package.rpartition("/")[2]
        folder = from_npm(f"npm/peer-{short}-{version}", f"{package}@{version}")
        return [str(folder / "node_modules" / ".bin" / program)]

    return command


def _first_commit(lab: Lab) -> None:
    name = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    commit = ["git", *name, "commit", "-q", "--allow-empty", "-m", "first"]
    subprocess.run(commit, cwd=lab.project, check=True)


def _prepare_marshal(lab: Lab, _: dict[str, str]) -> None:
    _first_commit(lab)
    clients = {name: {"backend": "codex", "model": "gpt-5.5"} for name in ("write", "read")}
    config = {
        "defaults": {"permission": "safe-edit", "timeout_s": 900},
        "clients": clients | {"read": clients["read"] | {"permission": "read-only"}},
    }
    # JSON is YAML.
    (lab.project / "fleet.config.yaml").write_text(json.dumps(config))


def _prepare_orchestrator(lab: Lab, env: dict[str, str]) -> None:
    agent = {
        "runtime": "codex",
        "command": str(lab.root / "bin" / "codex"),
        "model": "gpt-5.5",
        "priority": 10,
        "scores": {"coding": 90, "reasoning": 90},
    }
    consult: Json = {
        "database_path": str(lab.root / "consultations.sqlite3"),
        "timeout_s": 180,
        "agents": {"codex": agent},
    }
    path = lab.root / "orchestrator.yaml"
    path.write_text(json.dumps({"consult": consult}))
    env |= {"ORCHESTRATOR_CONFIG": str(path), "ORCHESTRATOR_HOST_RUNTIME": "claude"}


def _prepare_git(lab: Lab, _: dict[str, str]) -> None:
    _first_commit(lab)


def _amicus(prompt: str, sandbox: str, lab: Lab) -> Call:
    root = {"backend": "codex", "workspace_root": str(lab.project)}
    if sandbox == "read-only":
        return "amicus_consult", {"question": prompt, **root}
    return "amicus_delegate", {"task": prompt, **root}


def _harflow(prompt: str, sandbox: str, lab: Lab) -> Call:
    freedom = "read_only" if sandbox == "read-only" else "write_in_repo"
    where = {"repo_path": str(lab.project), "backend": "codex"}
    return "start_task", {"prompt": prompt, "freedom": freedom, **where}


def _own(lab: Lab) -> list[str]:
    # A spare app-server belongs to no run, but this cannot be seen from outside.
    return [server_program(), "--state-dir", str(lab.state), "--spares", "0"]


OURS = Peer(
    "this server",
    "",
    _own,
    lambda p, s, lab: ("codex_run", {"prompt": p, "sandbox": s, "cwd": str(lab.project)}),
    lambda thread, p: ("codex_resume", {"thread_id": thread, "prompt": p}),
    limit=("timeout_s", 5),
)

PEERS = (
    OURS,
    Peer(
        "codex-mcp-swarm",
        "1.11.1",
        _pypi("codex-mcp-swarm", "1.11.1", "codex-mcp-swarm"),
        lambda p, s, lab: ("codex", {"prompt": p, "sandbox": s, "cwd": str(lab.project)}),
        lambda thread, p: ("codex_reply", {"threadId": thread, "prompt": p}),
    ),
    Peer(
        "codex-cli-mcp-slim",
        "0.1.1",
        _pypi("codex-cli-mcp-slim", "0.1.1", "codex-cli-mcp-slim"),
        lambda p, s, lab: ("codex", {"prompt": p, "sandbox": s, "cd": str(lab.project)}),
        lambda thread, p: ("codex-reply", {"thread_id": thread, "prompt": p}),
        limit=("timeout_seconds", 30),
    ),
    Peer(
        "agenthub-gateway",
        "1.2.4",
        _pypi("agenthub-gateway", "1.2.4", "agenthub-gateway"),
        lambda p, s, lab: (
            "ask",
            {"agent": "codex", "prompt": p, "permission_mode": s, "workdir": str(lab.project)},
        ),
        lambda thread, p: ("ask", {"agent": "codex", "prompt": p, "session_id": thread}),
    ),
    Peer(
        "agent-intern",
        "0.33.0",
        _pypi("agent-intern", "0.33.0", "agent-intern"),
        lambda p, s, lab: ("codex_ask", {"prompt": p, "sandbox": s, "workspace": str(lab.project)}),
        lambda _, p: ("codex_continue", {"prompt": p}),
        limit=("timeout_s", 5),
    ),
    Peer(
        "amicus",
        "0.11.1",
        _pypi("amicus", "0.11.1", "amicus-mcp"),
        _amicus,
        limit=("timeout_seconds", 10),
        prepare=_prepare_git,
    ),
    Peer(
        "marshal-agents",
        "0.6.0",
        _pypi("marshal-agents", "0.6.0", "marshal", "mcp", extra="mcp"),
        lambda p, s, _: (
            "run_agent",
            {"goal": p, "client": "read" if s == "read-only" else "write"},
        ),
        prepare=_prepare_marshal,
    ),
    Peer(
        "orchestrator-mcp-server",
        "0.12.0",
        _pypi("orchestrator-mcp-server", "0.12.0", "orchestrator-mcp-server"),
        lambda p, _, __: (
            "orchestrator_consult",
            {"capability": "coding", "prompt": p, "target_agent": "codex", "source_mode": "model"},
        ),
        lambda consultation, p: (
            "orchestrator_consult",
            {"capability": "coding", "prompt": p, "consultation_id": consultation},
        ),
        keys=("consultation_id",),
        unserved="starts Codex without the user's configuration, which names the scripted model",
        prepare=_prepare_orchestrator,
    ),
    Peer(
        "harflow-mcp",
        "0.0.3",
        _pypi("harflow-mcp", "0.0.3", "harflow-mcp"),
        _harflow,
        lambda task, p: ("resume_task", {"task_id": task, "followup_prompt": p}),
        keys=("task_id",),
        prepare=_prepare_git,
        wait=lambda task: (
            "wait_for_task",
            {"task_id": task, "timeout_seconds": 120, "include_tail": True},
        ),
    ),
    Peer(
        "codex-mcp-server",
        "1.4.10",
        _npm("codex-mcp-server", "1.4.10", "codex-mcp-server"),
        lambda p, s, lab: (
            "codex",
            {"prompt": p, "sandbox": s, "workingDirectory": str(lab.project), "sessionId": "one"},
        ),
        lambda _, p: ("codex", {"prompt": p, "sessionId": "one"}),
    ),
    Peer(
        "@trishchuk/codex-mcp-tool",
        "2.5.0",
        _npm("@trishchuk/codex-mcp-tool", "2.5.0", "codex-mcp"),
        lambda p, s, lab: (
            "ask-codex",
            {"prompt": p, "sandboxMode": s, "workingDir": str(lab.project), "sessionId": "one"},
        ),
        lambda _, p: ("ask-codex", {"prompt": p, "sessionId": "one"}),
        limit=("timeout", 5000),
    ),
)
"""In the order of the table."""

NOT_MEASURED = {
    "codex-as-mcp 2026.6.29.1 (PyPI)": "does not start: it allows mcp 2, which lacks what it needs",
    "cli-bridge-mcp 0.3.1 (PyPI)": "needs Python 3.12; the others were run on 3.11",
    "openai/codex-plugin-cc": "a plugin of Claude Code without an MCP server",
}
"""Servers that could not be measured, each with the reason."""


def codex_on_path(lab: Lab, codex: Path) -> str:
    """Put a `codex` into the lab that uses the lab's home, even where a server drops variables."""
    folder = lab.root / "bin"
    folder.mkdir()
    script = folder / "codex"
    script.write_text(f'#!/bin/sh\nCODEX_HOME="{lab.home}" exec "{codex}" "$@"\n')
    script.chmod(0o755)
    return str(folder)
