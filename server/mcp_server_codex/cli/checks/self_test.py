"""Check the server from a client's side: it starts, it answers, and it runs a turn.

Everything in the turn is real except the model. The person's own Codex, with a
temporary CODEX_HOME, calls a scripted model on loopback.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from codex_tools.codex.masking import quote
from codex_tools.engines.nesting import find_depth
from mcp_server_codex.cli.checks.check import Check, Json, ok, problem
from mcp_server_codex.cli.checks.context import CheckContext, Codex, temporary_folder
from mcp_server_codex.cli.scripted_model import Patch, ScriptedModel, Shell, do, model_name, say
from mcp_server_codex.settings import PREFIX

_ERAS: tuple[Literal["auto", "legacy"], ...] = ("auto", "legacy")

_ANSWER_WITHIN_S = 60.0
"""Seconds for the start and a codex_sessions call, which does not wait for a large history."""
_TURN_WITHIN_S = 45.0
_GONE_WITHIN_S = 5.0

_TAG = "CODEX_DOCTOR_TAG"
"""Variable that marks every process that the turn starts."""

_PROMPT = "Write two files, please."
_SCRIPT = (
    do(Shell("echo by a command > command.txt", yield_ms=10_000)),
    do(Patch("*** Add File: patch.txt\n+by a patch")),
    say("Done."),
)
_REPORT = (
    "Run mcp-server-codex --log-level debug to see more. If the error stays, report it as a bug."
)


async def check_protocol(context: CheckContext) -> list[Check]:
    """Start the server as a client does, in both eras of the MCP protocol, and call a tool."""
    # Imported here, so that a failure of the import belongs to this check.
    from mcp_server_codex.calls import TOOLS

    arguments = [*context.arguments]
    if context.codex is None:
        # The protocol needs no Codex; check_codex reports what is wrong with Codex.
        arguments += ["--codex-bin", os.devnull]
    start_s: list[float] = []
    versions: list[str] = []
    with temporary_folder() as folder:
        log = folder / "stderr"
        for era in _ERAS:
            began = time.monotonic()
            try:
                server = _connect(era, arguments, context.environ, folder, log)
                with anyio.fail_after(_ANSWER_WITHIN_S):
                    async with server as client:
                        listed = await client.list_tools()
                        start_s.append(round(time.monotonic() - began, 2))
                        versions.append(client.protocol_version or "?")
                        answer = await client.call_tool("codex_sessions", {"limit": 1})
            except Exception as error:
                return [_broken(f"with a client in {era} mode", error, log)]
            if missing := {tool.name for tool in TOOLS} - {tool.name for tool in listed.tools}:
                message = f"The server does not list the tools {', '.join(sorted(missing))}."
                return [problem("protocol", message, _REPORT)]
            if answer.is_error:
                error = cast("Json", answer.structured_content)["error"]
                message = f"A call of codex_sessions failed: {error['message']}"
                return [problem("protocol", message, error["hint"], kind=error["kind"])]
    message = f"The server speaks MCP {' and '.join(versions)} and starts in"
    message += f" {' and '.join(f'{each:.1f} s' for each in start_s)}."
    return [ok("protocol", message, versions=versions, start_s=start_s)]


async def check_turn(context: CheckContext) -> list[Check]:
    """Run a turn of the person's Codex through the server, with a scripted model."""
    codex = context.codex
    assert codex is not None
    # check_sandbox reports a broken sandbox. The turn then runs without one, to test the rest.
    sandbox = "workspace-write" if context.sandbox_holds else "danger-full-access"
    tag = f"{_TAG}={os.getpid()}-{time.monotonic_ns()}"
    with temporary_folder() as folder, ScriptedModel({_PROMPT: _SCRIPT}) as model:
        log, work = folder / "stderr", folder / "work"
        for each in (work, folder / "tmp"):
            each.mkdir()
        limits = "[sandbox_workspace_write]\nexclude_slash_tmp = true\n"
        model.write_config(folder / "home", model=model_name(codex.program.version), extra=limits)
        try:
            with anyio.fail_after(_TURN_WITHIN_S + 30):
                env = _turn_environment(context.environ, folder, tag)
                options = _turn_options(codex, sandbox, env)
                options += ["--engine", context.settings.engine]
                server = _connect("auto", options, env, work, log)
                async with server as client:
                    request: Json = {"prompt": _PROMPT, "cwd": str(work), "sandbox": sandbox}
                    request |= {
                        "skip_git_repo_check": True,
                        "timeout_s": _TURN_WITHIN_S,
                        "wait_s": 75,
                    }
                    answer = await client.call_tool("codex_run", request)
        except Exception as error:
            return [_broken("during a turn", error, log, "turn")]
        result = cast("Json", answer.structured_content)
        missing = [name for name in ("command", "patch") if not (work / f"{name}.txt").is_file()]
    left = await _left_over(tag)
    finding = _turn_finding(result, missing, left)
    if finding.status == "problem" and not context.sandbox_holds:
        return [replace(finding, cure="First fix the sandbox, which may be the cause.")]
    return [finding]


def _turn_finding(result: Json, missing: list[str], left: list[int]) -> Check:
    if result["status"] != "completed":
        error = result["error"] or {"kind": "?", "message": result["status"], "hint": _REPORT}
        message = f"A turn with a scripted model failed ({error['kind']}): {error['message']}"
        return problem("turn", message, error["hint"], kind=error["kind"])
    if missing:
        message = "Codex completed a turn with a scripted model, but its"
        message += f" {' and its '.join(missing)} did not write the expected file."
        commands = [
            f"{each['command']}: exit code {each['exit_code']}" for each in result["commands"]
        ]
        return problem("turn", message, _REPORT, commands=commands)
    if left:
        message = f"After a turn with a scripted model, {len(left)} processes are still running."
        return problem("turn", message, f"kill {' '.join(map(str, left))}", pids=left)
    took = result["duration_s"]
    message = "Codex completed a turn with a scripted model: a command, a patch, no process left"
    engine = result["engine"]
    message += f" ({took:.1f} s, by the engine {engine})."
    return ok("turn", message, duration_s=took, engine=engine)


def _turn_environment(environ: Mapping[str, str], folder: Path, tag: str) -> dict[str, str]:
    """Return *environ* without the person's settings and files."""
    env = {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
    env |= {"CODEX_HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    name, _, value = tag.partition("=")
    return env | {name: value}


def _turn_options(codex: Codex, sandbox: str, env: Mapping[str, str]) -> list[str]:
    state = str(Path(env["CODEX_HOME"]).parent / "state")
    options = ["--codex-bin", str(codex.place), "--state-dir", state, "--max-sandbox", sandbox]
    # A nested run would be refused, but a scripted model cannot start runs without end.
    return [*options, "--max-depth", str(find_depth(env) + 1)]


@asynccontextmanager
async def _connect(
    era: Literal["auto", "legacy"],
    arguments: list[str],
    environ: Mapping[str, str],
    cwd: Path,
    log: Path,
) -> AsyncGenerator[Client]:
    server = StdioServerParameters(
        command=sys.executable,
        args=["-P", "-m", "mcp_server_codex", *arguments],
        env=dict(environ),
        cwd=cwd,
    )
    with log.open("ab") as file:
        async with Client(stdio_client(server, cast("TextIO", file)), mode=era) as client:
            yield client


def _broken(when: str, error: Exception, log: Path, name: str = "protocol") -> Check:
    leaf: BaseException = error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = cast("BaseExceptionGroup[BaseException]", leaf).exceptions[0]
    reason = f"{type(leaf).__name__}: {leaf}".rstrip(": ")
    written = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    message = f"The server failed {when}: {reason}."
    about: dict[str, Any] = {"stderr": quote(written[-4000:], 1000)}
    if lines := written.strip().splitlines():
        message += f" Its last line on stderr: {quote(lines[-1], 300)}"
    return problem(name, message, _REPORT, **about)


async def _left_over(tag: str) -> list[int]:
    """Return the processes with *tag* in their environment that do not end within 5 seconds."""
    left = _marked(tag)
    with anyio.move_on_after(_GONE_WITHIN_S):
        while left:
            await anyio.sleep(0.05)
            left = _marked(tag)
    return left


def _marked(tag: str) -> list[int]:
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):  # macOS has no /proc, so nothing is found there.
        try:
            if tag.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found
