"""What it takes to install the package as its users do: uv, a clean home, an unfriendly folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import TextIO, cast

from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from mcp_server_codex.calls import TOOLS
from support.codex_versions import CACHE, alone, cannot_have

TOP = Path(__file__).parents[2]


@cache
def uv() -> Path:
    """Return the `uv` on PATH with its `uvx`, else one from PyPI, kept in the cache."""
    if (found := shutil.which("uv")) and Path(found).with_name("uvx").exists():
        return Path(found)
    folder = CACHE / "uv-venv"
    program = folder / "bin" / "uv"
    with alone(folder.with_name("uv-venv.lock")):
        if not program.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _do([sys.executable, "-m", "venv", str(folder)])
            _do([str(folder / "bin" / "pip"), "install", "--quiet", "uv"])
    return program


def clean_environment(home: Path) -> dict[str, str]:
    """Return the environment of somebody who has never run the server, with an empty *home*.

    What says how to reach the network stays; what uv has fetched is kept, for
    the tests' sake.
    """
    home.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join((str(uv().parent), os.environ["PATH"]))
    network = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SSL_", "UV_")) or name.lower().endswith("_proxy")
    }
    own = {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8"}
    return network | own | {"UV_CACHE_DIR": str(CACHE / "uv")}


def unfriendly(folder: Path) -> Path:
    """Make *folder* a project whose own packages bear the names of ours, and of the SDK."""
    for name in ("tools", "server", "mcp", "codex_tools", "mcp_server_codex"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('the wrong {name}')\n")
    (folder / "anyio.py").write_text("raise SystemExit('the wrong anyio')\n")
    (folder / "pyproject.toml").write_text('[project]\nname = "theirs"\nversion = "1"\n')
    return folder


def build(what: str, out: Path, source: Path = TOP) -> Path:
    """Build *what*, a "wheel" or an "sdist", of *source* into *out*; return it."""
    run_uv("build", f"--{what}", "--out-dir", str(out), str(source))
    (made,) = out.glob("*.whl" if what == "wheel" else "*.tar.gz")
    return made


@asynccontextmanager
async def connect_by(
    command: str,
    arguments: Sequence[str],
    env: Mapping[str, str],
    mode: str,
    *,
    cwd: Path,
    log: Path,
) -> AsyncGenerator[Client]:
    """Start the server by *command* and speak to it in *mode*; it must offer all its tools."""
    server = StdioServerParameters(command=command, args=[*arguments], env={**env}, cwd=cwd)
    with log.open("ab") as file:
        transport = stdio_client(server, errlog=cast("TextIO", file))
        async with Client(transport, mode=mode) as client:
            listed = (await client.list_tools()).tools
            assert [tool.name for tool in listed] == [tool.name for tool in TOOLS]
            yield client


def run_uv(*arguments: str) -> None:
    """Run uv with *arguments*; skip the test if it does not succeed, in CI fail."""
    _do([str(uv()), *arguments, "--quiet"], clean_environment(CACHE / "uv-home"))


def _do(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        cannot_have(f"{' '.join(command)}: {done.stderr.strip()}")
