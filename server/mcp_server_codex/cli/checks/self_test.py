"""The server as a client meets it: it starts, it answers, and a turn goes through it.

The turn is real but for the model: the person's own Codex, with a folder of
its own in place of CODEX_HOME, asks a model on loopback that has its answers
written down.
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
from mcp_server_codex.cli.checks.context import CheckContext, Codex, room
from mcp_server_codex.cli.scripted_model import Patch, ScriptedModel, Shell, do, model_name, say
from mcp_server_codex.settings import PREFIX

_ERAS: tuple[Literal["auto", "legacy"], ...] = ("auto", "legacy")

_ANSWER_WITHIN_S = 60.0
"""For a large history, the first call of codex_sessions answers before all of it is read."""
_TURN_WITHIN_S = 45.0
_GONE_WITHIN_S = 5.0

_TAG = "CODEX_DOCTOR_TAG"
"""Marks all that the turn starts."""

_PROMPT = "Write two files, please."
_SCRIPT = (
    do(Shell("echo by a command > command.txt", yield_ms=10_000)),
    do(Patch("*** Add File: patch.txt\n+by a patch")),
    say("Done."),
)
_REPORT = "mcp-server-codex --log-level debug shows more; report it as a bug if it stays"


async def check_protocol(examination: CheckContext) -> list[Check]:
    """Start the server as a client would, in both eras of MCP, and use it."""
    from mcp_server_codex.app import TOOLS  # Here, so that a failure is this check's.

    arguments = [*examination.arguments]
    if examination.codex is None:
        # The protocol does without; what is wrong with Codex is said elsewhere.
        arguments += ["--codex-bin", os.devnull]
    start_s: list[float] = []
    versions: list[str] = []
    with room() as folder:
        log = folder / "stderr"
        for era in _ERAS:
            began = time.monotonic()
            try:
                server = _connect(era, arguments, examination.environ, folder, log)
                with anyio.fail_after(_ANSWER_WITHIN_S):
                    async with server as client:
                        listed = await client.list_tools()
                        start_s.append(round(time.monotonic() - began, 2))
                        versions.append(client.protocol_version or "?")
                        answer = await client.call_tool("codex_sessions", {"limit": 1})
            except Exception as error:
                return [_broken(f"in {era} mode", error, log)]
            if missing := {tool.name for tool in TOOLS} - {tool.name for tool in listed.tools}:
                said = f"The server does not offer {', '.join(sorted(missing))}."
                return [problem("protocol", said, _REPORT)]
            if answer.is_error:
                error = cast("Json", answer.structured_content)["error"]
                said = f"codex_sessions fails: {error['message']}"
                return [problem("protocol", said, error["hint"], kind=error["kind"])]
    said = f"The server answers in MCP {' and '.join(versions)}; it starts in"
    said += f" {' and '.join(f'{each:.1f} s' for each in start_s)}."
    return [ok("protocol", said, versions=versions, start_s=start_s)]


async def check_turn(examination: CheckContext) -> list[Check]:
    """Let the person's Codex do a turn through the server, with a model that is scripted."""
    codex = examination.codex
    assert codex is not None
    # Without a sandbox that works, and that is said elsewhere, the rest can still be seen.
    sandbox = "workspace-write" if examination.sandbox_holds else "danger-full-access"
    tag = f"{_TAG}={os.getpid()}-{time.monotonic_ns()}"
    with room() as folder, ScriptedModel({_PROMPT: _SCRIPT}) as model:
        log, work = folder / "stderr", folder / "work"
        for each in (work, folder / "tmp"):
            each.mkdir()
        limits = "[sandbox_workspace_write]\nexclude_slash_tmp = true\n"
        model.write_config(folder / "home", model=model_name(codex.program.version), extra=limits)
        try:
            with anyio.fail_after(_TURN_WITHIN_S + 30):
                env = _turn_environment(examination.environ, folder, tag)
                server = _connect("auto", _turn_options(codex, sandbox, env), env, work, log)
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
    if finding.status == "problem" and not examination.sandbox_holds:
        return [replace(finding, cure="Cure the sandbox first, which may be the cause.")]
    return [finding]


def _turn_finding(result: Json, missing: list[str], left: list[int]) -> Check:
    if result["status"] != "completed":
        error = result["error"] or {"kind": "?", "message": result["status"], "hint": _REPORT}
        said = f"A turn with a scripted model fails ({error['kind']}): {error['message']}"
        return problem("turn", said, error["hint"], kind=error["kind"])
    if missing:
        said = "Codex completed a turn with a scripted model, but the file that its"
        said += f" {' and its '.join(missing)} had to write is not there."
        commands = [f"{each['command']} -> exit {each['exit_code']}" for each in result["commands"]]
        return problem("turn", said, _REPORT, commands=commands)
    if left:
        said = f"After a turn with a scripted model, {len(left)} processes were left running."
        return problem("turn", said, f"kill {' '.join(map(str, left))}", pids=left)
    took = result["duration_s"]
    said = "Codex did a turn with a scripted model: a command, a patch, nothing left running"
    return ok("turn", f"{said} ({took:.1f} s).", duration_s=took)


def _turn_environment(environ: Mapping[str, str], folder: Path, tag: str) -> dict[str, str]:
    """Return *environ* without the person's settings and files."""
    env = {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
    env |= {"CODEX_HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    name, _, value = tag.partition("=")
    return env | {name: value}


def _turn_options(codex: Codex, sandbox: str, env: Mapping[str, str]) -> list[str]:
    state = str(Path(env["CODEX_HOME"]).parent / "state")
    options = ["--codex-bin", str(codex.place), "--state-dir", state, "--max-sandbox", sandbox]
    # Inside a run it would be refused, but here the model is none that goes on for ever.
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
    said = f"The server fails {when}: {reason}."
    about: dict[str, Any] = {"stderr": quote(written[-4000:], 1000)}
    if lines := written.strip().splitlines():
        said += f" It says: {quote(lines[-1], 300)}"
    return problem(name, said, _REPORT, **about)


async def _left_over(tag: str) -> list[int]:
    """Return the processes with *tag* in their environment that do not end by themselves."""
    left = _marked(tag)
    with anyio.move_on_after(_GONE_WITHIN_S):
        while left:
            await anyio.sleep(0.05)
            left = _marked(tag)
    return left


def _marked(tag: str) -> list[int]:
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):  # None on macOS, where nobody may look.
        try:
            if tag.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found
