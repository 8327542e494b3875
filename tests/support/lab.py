"""A lab to work in (a Codex home, a project, a scripted model), and a client connected to it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.scripted_model import ScriptedModel, Step, model_name
from mcp_server_codex.watchdog import VARIABLE
from support.codex_versions import CACHE, PINNED, number
from support.machine_config import machine_prefix

Note = Callable[[str, object], None]


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63"
    "f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
"""An image of one pixel."""

MODES = ("auto", "legacy")
"""Both protocol eras: 2026-07-28 by discovery, and the initialize handshake."""


@dataclass(frozen=True)
class Lab:
    """A Codex home, a project in git, a scripted model; all of one test."""

    root: Path
    model: ScriptedModel

    @property
    def home(self) -> Path:
        return self.root / "codex-home"

    @property
    def project(self) -> Path:
        return self.root / "project"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def log(self) -> Path:
        """What the servers of this lab wrote to stderr."""
        return self.root / "server.log"

    @property
    def blocks(self) -> Path:
        """Where the servers' watchdogs report that an event loop was blocked."""
        return self.root / "blocks"

    def script(self, prompt: str, *steps: Step) -> str:
        """Let the model answer *prompt* with *steps*; return the prompt."""
        self.model.scripts[prompt] = steps
        return prompt

    def rollouts(self) -> list[Path]:
        return sorted((self.home / "sessions").rglob("rollout-*.jsonl"))


@contextmanager
def open_lab(version: str = PINNED[1], *, config: str = "") -> Generator[Lab]:
    """Make a lab for Codex *version*.

    Outside the system's temp folder: a sandboxed Codex leaves an empty .git
    there, after which older versions take all of it for a repository.
    """
    labs = CACHE / "labs"
    labs.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=labs, ignore_cleanup_errors=True) as place,
        ScriptedModel() as model,
    ):
        lab = Lab(Path(place).resolve(), model)
        model.write_config(lab.home, model=model_name(number(version)), extra=config)
        lab.project.mkdir()
        lab.blocks.mkdir()
        subprocess.run(["git", "init", "-q"], cwd=lab.project, check=True)
        yield lab
        # No server of this lab may have blocked its event loop for longer than half a second.
        blocks = [block.read_text() for block in lab.blocks.iterdir()]
        assert not blocks, blocks


ENGINE = os.environ.get("CODEX_ENGINE", "")
"""The --engine of the servers under test; "" for the default one."""

BY_EXEC = ("--engine", "exec")
"""Options for a test that is about `codex exec`, or about a Codex that only that can run."""

BY_ANY = ("--engine", "auto") if ENGINE == "app-server" else ()
"""Options for a test of what `codex exec` alone can do: see docs/engines.md."""


def by_app_server(result: Json) -> bool:
    """Return True if an app-server has run this result's turn."""
    return result["engine"] == "app-server"


@asynccontextmanager
async def connect(
    mode: str,
    codex: Path | None,
    lab: Lab,
    *options: str,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    machine: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
    state: Path | None = None,
    **client: Any,
) -> AsyncGenerator[Client]:
    """Start the server as a client would and speak to it in *mode*.

    With *machine*, the server and its Codex see a /etc/codex that holds these files. *prefix* is
    the beginning of the command line that starts the server, *state* another state folder. A Codex
    that the tests made stands for `codex exec`, unless the options say otherwise.
    """
    chosen = ("--codex-bin", str(codex)) if codex is not None else ()
    private = [] if machine is None else machine_prefix(lab.root, machine)
    command, *args = [
        *private,
        *prefix,
        server_program(),
        *chosen,
        "--state-dir",
        str(state or lab.state),
        *options,
    ]
    server = StdioServerParameters(
        command=command,
        args=args,
        cwd=cwd or lab.project,
        env=environment(lab) | _engine_for(codex) | (env or {}),
    )
    with lab.log.open("ab") as log:
        transport = stdio_client(server, errlog=cast("TextIO", log))
        async with Client(transport, mode=mode, **client) as connected:
            yield connected


def _engine_for(codex: Path | None) -> dict[str, str]:
    is_real = codex is None or {"codex_cli_bin", "node_modules"} & {*codex.parts}
    return {} if is_real else {"MCP_SERVER_CODEX_ENGINE": "exec"}


def server_program() -> str:
    """Return the console script of the environment that runs the tests."""
    return str(Path(sys.executable).parent / "mcp-server-codex")


def environment(lab: Lab) -> dict[str, str]:
    """Return a plain environment for a server in *lab*.

    With an empty home folder, since Codex runs login shells: what they find in
    a developer's own profile is none of a test's business.
    """
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(lab.root),
        "CODEX_HOME": str(lab.home),
        "LANG": "C.UTF-8",
        VARIABLE: str(lab.blocks),
    } | ({"MCP_SERVER_CODEX_ENGINE": ENGINE} if ENGINE else {})


async def call(client: Client, tool: str, **arguments: Any) -> Json:
    """Call *tool* and return its structured result, which every result has."""
    result = await client.call_tool(tool, arguments)
    data = cast("Json", result.structured_content)
    assert result.is_error is (data["status"] in ("failed", "timed_out")), data
    return data | {"text": cast("Any", result.content[0]).text}


async def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    """Wait until *condition* holds; fail if it does not within *within_s*."""
    with anyio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - other processes make it true
            await anyio.sleep(0.02)


def marked(tag: str) -> list[int]:
    """Return the ids of the processes whose environment holds *tag*."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if tag.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def marked_child(tag: str) -> int:
    """Return the id of the only child of this process whose environment holds *tag*.

    It need not be the lowest of their ids: a kernel that has given the highest starts again.
    """
    (child,) = (each for each in marked(tag) if parent_of(each) == os.getpid())
    return child


def app_servers(tag: str) -> list[int]:
    """Return the ids of the app-servers whose environment holds *tag*."""
    return [pid for pid in marked(tag) if _argv(pid)[1:2] == [b"app-server"]]


def commands(tag: str) -> list[str]:
    """Return the command lines of the processes whose environment holds *tag*."""
    lines = (b" ".join(_argv(pid)).decode(errors="replace").strip() for pid in marked(tag))
    return [line for line in lines if line]


def parent_of(pid: int) -> int:
    """Return the id of the parent of a process; 0 if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def _argv(pid: int) -> list[bytes]:
    """Return the arguments of a process; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def lay_slow_rollouts(home: Path) -> Path:
    """Lay rollouts in *home* that take minutes to read; return their folder.

    They are one file of 32 MB under 2,000 names: a sparse file is not read at all.
    """
    folder = home / "sessions" / "2026" / "01" / "01"
    folder.mkdir(parents=True, exist_ok=True)
    line = (
        b'{"timestamp":"2026-01-01T00:00:00.000Z","type":"event_msg",'
        b'"payload":{"type":"agent_reasoning","text":"hm"}}\n'
    )
    stem = "rollout-2026-01-01T00-00-00-01a20000-0000-7000-8000-"
    first = folder / f"{stem}{0:012x}.jsonl"
    first.write_bytes(line * (32 * 1024 * 1024 // len(line)))
    for each in range(1, 2000):
        os.link(first, folder / f"{stem}{each:012x}.jsonl")
    return folder


def reads_below(pid: int, folder: Path) -> bool:
    """Return True if the process *pid* has a file below *folder* open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if link.readlink().is_relative_to(folder):
                return True
        except OSError:
            continue
    return False
