"""`mcp-server-codex demo`: show four calls of the tools, as a client sees them.

Everything is real except the model: this server as a child process over stdio,
the MCP SDK's client, the Codex CLI and a git repository. With --live the model is
real too, and the calls are charged to the user's own login.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from rich.console import Console, Group
from rich.json import JSON
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from codex_tools.codex.clean_text import clean, clean_json, clean_lines
from codex_tools.codex.errors import CodexError
from codex_tools.codex.json_object import Json
from codex_tools.codex.program import Program
from codex_tools.engines.choose import choose_engine
from codex_tools.engines.environment import EnvironmentRules
from mcp_server_codex.cli.scripted_model import (
    Patch,
    ScriptedModel,
    Shell,
    Step,
    Think,
    Usage,
    api_error,
    do,
    model_name,
    say,
)
from mcp_server_codex.cli.show import coloured

_THEME = Theme({"json.key": "cyan"})
"""Rich's own bold blue cannot be read on black."""

_PRICES = '''\
def total(prices, discount):
    """Return the sum of *prices*, less *discount* percent."""
    return sum(prices) - discount / 100
'''
_CHECK = """\
from prices import total

assert total([40, 60], 10) == 90, total([40, 60], 10)
print("all good")
"""
_FIX = """\
*** Update File: prices.py
@@
-    return sum(prices) - discount / 100
+    return sum(prices) * (1 - discount / 100)"""

_TASK = "check.py fails. Find out why, fix prices.py, and run `python3 check.py` again."
_QUESTION = "In one sentence: what was wrong?"
_REVIEW = "Review prices.py. Give a verdict and the issues that are left."
_LIMIT = "Write a haiku about tokens."

_SCHEMA: Json = {
    "type": "object",
    "properties": {
        "verdict": {"type": "string", "enum": ["ship", "fix first"]},
        "issues": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["verdict", "issues"],
    "additionalProperties": False,
}

_SCRIPTS: dict[str, Sequence[Step]] = {
    _TASK: [
        do(Think("**Reproducing the failure**"), Shell("python3 check.py"), delay_s=0.8),
        do(Think("**Correcting the formula**"), Patch(_FIX), delay_s=0.8),
        do(Shell("python3 check.py"), delay_s=0.8),
        say(
            "`total` took the percentage off as an amount of money. It now scales the sum,"
            " and `check.py` passes.",
            delay_s=0.8,
        ),
    ],
    _QUESTION: [
        say(
            "The discount was subtracted as an amount instead of being applied as a percentage.",
            Usage(1600, 1500, 18, 0),
            delay_s=0.5,
        )
    ],
    _REVIEW: [
        say(
            json.dumps(
                {"verdict": "ship", "issues": ["discounts above 100 % give a negative total"]}
            ),
            delay_s=0.5,
        )
    ],
    _LIMIT: [api_error(429, "The usage limit has been reached", "usage_limit_reached")],
}


_USAGE = """\
usage: mcp-server-codex demo [--live]

Shows the server at work in a project of its own: the real Codex, with a scripted model on loopback.
It needs no login, costs nothing and leaves nothing behind.

  --live    use your own login and model; this costs tokens
"""


def run_demo(arguments: list[str]) -> int:
    """Run the demo; return the exit code."""
    if {"--help", "-h"} & {*arguments}:
        sys.stdout.write(_USAGE)
        return 0
    if unknown := [each for each in arguments if each != "--live"]:
        sys.stderr.write(f"mcp-server-codex demo: unknown argument {unknown[0]!r}; known: --live\n")
        return 2
    console = Console(highlight=False, markup=False, emoji=False, theme=_THEME)
    try:
        engine = choose_engine(os.environ.get("CODEX_BIN"))
        program = anyio.run(engine.prepare, Path("/"), EnvironmentRules())
    except CodexError as error:
        console.print(Text.assemble((clean_lines(error.message), "red"), f"\n{clean(error.hint)}"))
        return 1
    live = "--live" in arguments
    with _make_project(program, live=live) as (folder, env):
        console.print(_opening(program, folder, live=live))
        done = anyio.run(_play, console, folder, env, live)
    console.print(Rule(style="dim"))
    if done:
        console.print(
            "Done. To use this server in your own client: mcp-server-codex install CLIENT"
        )
    return 0 if done else 1


def _opening(program: Program, folder: Path, *, live: bool) -> Panel:
    model = (
        Text.assemble(("real", "bold"), ", with your own login; this costs tokens")
        if live
        else Text.assemble(
            ("scripted", "bold yellow"), ", on loopback: its answers are fixed in advance"
        )
    )
    codex = f"the real CLI, {clean(program.version_text)} "
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("client", "the MCP SDK's client, over stdio")
    table.add_row("server", "mcp-server-codex, started as your own client would start it")
    table.add_row("Codex", Text.assemble(codex, (f"({clean(str(program.path))})", "dim")))
    table.add_row("model", model)
    table.add_row("project", Text(f"a new git repository in {clean(str(folder))}"))
    return Panel(table, title="mcp-server-codex", title_align="left", border_style="cyan")


@contextmanager
def _make_project(program: Program, *, live: bool) -> Generator[tuple[Path, dict[str, str]]]:
    """Yield a temporary project and an environment with a CODEX_HOME for the scripted model."""
    with tempfile.TemporaryDirectory(prefix="codex-demo-") as place, ScriptedModel(_SCRIPTS) as m:
        folder, home = Path(place).resolve() / "shop", Path(place).resolve() / "codex-home"
        folder.mkdir()
        (folder / "prices.py").write_text(_PRICES, encoding="utf-8")
        (folder / "check.py").write_text(_CHECK, encoding="utf-8")
        git = ("git", "-c", "user.name=demo", "-c", "user.email=demo@example.invalid")
        for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "A shop")):
            subprocess.run([*git, *command], cwd=folder, check=True)
        env = {**os.environ, "MCP_SERVER_CODEX_STATE_DIR": str(Path(place) / "state")}
        if not live:
            m.write_config(home, model=model_name(program.version))
            env["CODEX_HOME"] = str(home)
        yield folder, env


async def _play(console: Console, folder: Path, env: dict[str, str], live: bool) -> bool:
    server = StdioServerParameters(
        command=sys.executable,
        args=["-P", "-m", "mcp_server_codex"],
        env=env,
        cwd=folder,
    )
    async with Client(server) as client:
        tools = await client.list_tools()
        names = ", ".join(tool.name for tool in tools.tools)
        connected = f"Connected, protocol {client.protocol_version}. Tools: {names}"
        console.print(f"{connected}\n", style="dim")

        def scene(title: str) -> None:
            text = Text(title, "bold")
            is_long = text.cell_len > console.width - 4  # A rule would cut it.
            console.print(text if is_long else Rule(text, align="left", style="cyan"))

        scene("1  Delegate a task that edits a file")
        first = await _call(
            console, client, "codex_run", {"prompt": _TASK, "sandbox": "workspace-write"}
        )
        if first["error"] is None:
            diff = await anyio.run_process(["git", "diff", "-U0", "--no-ext-diff"], cwd=folder)
            lines = clean_lines(diff.stdout.decode("utf-8", "replace")).split("\n")
            change = "\n".join(line for line in lines if line.startswith(("+", "-")))
            console.print(coloured(change), "", sep="\n")
        scene("2  Continue that thread: folder, sandbox and model stay the same")
        second = await _call(
            console, client, "codex_resume", {"thread_id": first["thread_id"], "prompt": _QUESTION}
        )
        scene("3  Ask for structured data instead of text")
        third = await _call(
            console, client, "codex_run", {"prompt": _REVIEW, "output_schema": _SCHEMA}
        )
        scene("4  A failed call: the kind of error and a hint")
        if live:
            unknown = {"thread_id": "00000000-0000-7000-8000-000000000000", "prompt": _QUESTION}
            failed = await _call(console, client, "codex_resume", unknown)
        else:
            failed = await _call(console, client, "codex_run", {"prompt": _LIMIT})
    return failed["error"] is not None and all(r["error"] is None for r in (first, second, third))


async def _call(console: Console, client: Client, tool: str, arguments: Json) -> Json:
    shown = json.dumps(arguments, ensure_ascii=False)
    console.print(Text(f"→ {tool}", "bold cyan"), JSON(shown, indent=None), "", sep=" ")

    async def show_progress(progress: float, total: float | None, message: str | None) -> None:
        console.print(f"  {clean(message or '')}", style="dim")

    with console.status("[dim]Codex is working[/dim]"):
        result = await client.call_tool(tool, arguments, progress_callback=show_progress)
    data = cast("Json", result.structured_content)
    console.print(_result(data))
    return data


def _result(data: Json) -> Group:
    colour = "green" if data["error"] is None else "red"
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    status = (data["status"], f"bold {colour}")
    rows.add_row("status", Text.assemble(status, f" in {data['duration_s']:.1f} s"))
    if data["error"] is not None:
        error = cast("Json", data["error"])
        message = f" {clean_lines(error['message'])}"
        rows.add_row("error", Text.assemble((error["kind"], "bold"), message))
        rows.add_row("hint", Text(clean(error["hint"])))
    elif data["structured_output"] is not None:
        rows.add_row("structured_output", JSON(clean_json(json.dumps(data["structured_output"]))))
    else:
        rows.add_row("final_response", Text(clean_lines(data["final_response"])))
    for index, file in enumerate(data["files_changed"]):
        changed = Text(f"{file['kind']} {clean(file['path'])}")
        rows.add_row("" if index else "files_changed", changed)
    for index, command in enumerate(data["commands"]):
        ran = f"{clean(command['command'])} → exit {command['exit_code']}"
        rows.add_row("" if index else "commands", Text(ran))
    if data["usage"] is not None:
        usage = cast("Json", data["usage"])
        rows.add_row(
            "usage",
            f"{usage['input_tokens']:,} tokens in ({usage['cached_input_tokens']:,} cached),"
            f" {usage['output_tokens']:,} out",
        )
    if data["sandbox"] is not None:
        rows.add_row("ran with", Text(clean(f"{data['model']}, {data['sandbox']}")))
    if data["thread_id"] is not None:
        rows.add_row("thread_id", data["thread_id"])
    return Group(rows, "")
