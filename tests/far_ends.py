"""The far ends that tests run against: real Codex, a fake Codex, a lab to work in."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, TextIO, cast

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from platformdirs import user_cache_path

from codex_tools.codex.program import bundled_codex, native_binary
from mcp_server_codex.cli.scripted_model import ScriptedModel, Step, model_name

Json = dict[str, Any]
Note = Callable[[str, object], None]

PINNED = ("0.60.1", "0.163.0")
"""The Codex versions that the tests fetch: the oldest supported, the newest on PyPI."""

VERSIONS = tuple(os.environ.get("CODEX_VERSIONS", ",".join(PINNED)).split(","))
"""Name others, comma-separated, to run the same tests on them."""

MODES = ("auto", "legacy")
"""Both protocol eras: 2026-07-28 by discovery, and the initialize handshake."""

CACHE = user_cache_path("mcp-server-codex", appauthor=False)


def number(version: str) -> tuple[int, int, int]:
    """Return *version* as numbers."""
    major, minor, patch = (int(part) for part in version.split("."))
    return major, minor, patch


@contextmanager
def alone(lock: Path) -> Generator[None]:
    """Keep out all other processes that ask for the same *lock*, a file."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def from_npm(name: str, *packages: str, options: Sequence[str] = ()) -> Path:
    """Return a folder below which *packages* are installed, once and kept in the cache.

    Tests run side by side in several processes: the first fetches, the others wait.
    """
    folder = CACHE / name
    if folder.exists():
        return folder
    with alone(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            made = Path(place) / "made"
            made.mkdir()
            install = ["npm", "install", "--prefix", str(made), "--no-audit", "--no-fund"]
            try:
                done = subprocess.run(
                    [*install, "--loglevel=error", *options, *packages],
                    capture_output=True,
                    text=True,
                )
                problem = done.stderr.strip() if done.returncode else ""
            except OSError as error:
                problem = str(error)
            if problem:
                cannot_have(f"{packages[0]} from npm: {problem}")
            # Whole or not at all, for those that look without waiting.
            made.rename(folder)
    return folder


@cache
def npm_codex(version: str) -> Path:
    """Return npm's `codex` script of *version*."""
    folder = from_npm(f"codex/npm-{version}", f"@openai/codex@{version}")
    return folder / "node_modules" / ".bin" / "codex"


@cache
def real_codex(version: str) -> Path:
    """Return the native binary of *version*: from PyPI if installed so, else from npm."""
    with suppress(PackageNotFoundError):
        bundled = bundled_codex()
        if bundled is not None and installed("openai-codex-cli-bin") == version:
            return bundled
    native = native_binary(npm_codex(version))
    assert native.suffix != ".js", f"no native binary behind {native}"
    return native


def cannot_have(what: str) -> None:
    """Skip the test for lack of *what*; in CI, where everything can be had, fail it."""
    if os.environ.get("CI"):
        pytest.fail(f"cannot be had here: {what}")
    pytest.skip(f"cannot be had here: {what}")


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
        subprocess.run(["git", "init", "-q"], cwd=lab.project, check=True)
        yield lab


@asynccontextmanager
async def connect(
    mode: str,
    codex: Path | None,
    lab: Lab,
    *options: str,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    **client: Any,
) -> AsyncGenerator[Client]:
    """Start the server as a client would and speak to it in *mode*."""
    chosen = ("--codex-bin", str(codex)) if codex is not None else ()
    server = StdioServerParameters(
        command=server_program(),
        args=[*chosen, "--state-dir", str(lab.state), *options],
        cwd=cwd or lab.project,
        env=environment(lab) | (env or {}),
    )
    with lab.log.open("ab") as log:
        transport = stdio_client(server, errlog=cast("TextIO", log))
        async with Client(transport, mode=mode, **client) as connected:
            yield connected


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
    }


async def call(client: Client, tool: str, **arguments: Any) -> Json:
    """Call *tool* and return its structured result, which every result has."""
    result = await client.call_tool(tool, arguments)
    data = cast("Json", result.structured_content)
    assert result.is_error is (data["status"] in ("failed", "timed_out")), data
    return data | {"text": cast("Any", result.content[0]).text}


_FAKE = """\
#!{python} -I
import json, os, sys, time
plan = json.load(open({plan!r}))
if sys.argv[1:] == ["--version"]:
    print(plan["version_line"])
    sys.exit(0)
if "--help" in sys.argv:
    print(plan["help"])
    sys.exit(0)
seen = {{"argv": sys.argv, "cwd": os.getcwd(), "env": dict(os.environ)}}
seen["stdin"] = sys.stdin.buffer.read().decode("utf-8", "replace")
for word, following in zip(sys.argv, sys.argv[1:]):
    if word == "--output-schema":
        seen["schema_file"] = following
        seen["schema"] = json.load(open(following))
        seen["schema_mode"] = oct(os.stat(following).st_mode & 0o777)
json.dump(seen, open({seen!r}, "w"))
{body}
for path, stream in ((plan["stderr"], sys.stderr), (plan["stdout"], sys.stdout)):
    if path:
        stream.buffer.write(open(path, "rb").read())
        stream.flush()
sys.exit(plan["exit_code"])
"""


@dataclass
class FakeCodex:
    """A program that looks like Codex and plays what it is told to."""

    folder: Path
    version: str = "0.169.0"
    help: str = ""
    stdout: bytes | Path = b""
    stderr: bytes | Path = b""
    exit_code: int = 0
    body: str = ""
    """Python to run before the streams are played."""
    _seen: Path = field(init=False)

    def __post_init__(self) -> None:
        self._seen = self.folder / "seen.json"

    def build(self) -> Path:
        """Write the program; return its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = {
            "version_line": f"codex-cli {self.version}",
            "help": self.help,
            "stdout": self._file("stdout", self.stdout),
            "stderr": self._file("stderr", self.stderr),
            "exit_code": self.exit_code,
        }
        (self.folder / "plan.json").write_text(json.dumps(plan))
        program = self.folder / "codex"
        program.write_text(
            _FAKE.format(
                python=sys.executable,
                plan=str(self.folder / "plan.json"),
                seen=str(self._seen),
                body=self.body,
            )
        )
        program.chmod(0o755)
        return program

    def seen(self) -> Json:
        """Return what its last run was given."""
        return cast("Json", json.loads(self._seen.read_text()))

    def forget(self) -> None:
        """Forget what earlier runs were given."""
        self._seen.unlink(missing_ok=True)

    @property
    def was_started(self) -> bool:
        return self._seen.exists()

    def _file(self, name: str, data: bytes | Path) -> str:
        if isinstance(data, Path):
            return str(data)
        path = self.folder / name
        path.write_bytes(data)
        return str(path)


def events(*lines: Json) -> bytes:
    """Return a stream of *lines* as Codex prints them."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


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


def commands(tag: str) -> list[str]:
    """Return the command lines of the processes whose environment holds *tag*."""
    found: list[str] = []
    for pid in marked(tag):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        found.append(argv.replace(b"\0", b" ").decode(errors="replace").strip())
    return found


def thread_line(thread_id: str = "01a20000-0000-7000-8000-000000000001") -> Json:
    return {"type": "thread.started", "thread_id": thread_id}


def answer_lines(text: str, **usage: int) -> Sequence[Json]:
    counts = {"input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 2} | usage
    return (
        {"type": "turn.started"},
        {"type": "item.completed", "item": {"id": "item_0", "type": "agent_message", "text": text}},
        {"type": "turn.completed", "usage": counts},
    )
