"""Delegate one task to Codex; print its answer and the files it changed.

    python examples/delegate.py "Why does check.py fail?" --cwd ~/shop
    python examples/delegate.py "Make check.py pass." --cwd ~/shop --write

Needs `mcp-server-codex` on PATH and the package `mcp` (pip install mcp).
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client


async def show_progress(progress: float, total: float | None, message: str | None) -> None:
    """Print a progress message, such as "12s · running pytest -q", to stderr."""
    print(message, file=sys.stderr)


async def delegate(prompt: str, cwd: Path, sandbox: str) -> int:
    """Run *prompt* in *cwd* and print the result; return the exit code."""
    # The SDK hands a server only a few variables unless the environment is given.
    server = StdioServerParameters(command="mcp-server-codex", env=dict(os.environ))
    # Without wait_s, a call returns after 45 s and leaves the run in the background.
    arguments = {"prompt": prompt, "cwd": str(cwd), "sandbox": sandbox, "wait_s": 3600}
    async with Client(stdio_client(server)) as client:
        result = await client.call_tool("codex_run", arguments, progress_callback=show_progress)
    run: dict[str, Any] = result.structured_content or {}
    if error := run["error"]:
        print(f"{error['kind']}: {error['message']}\n{error['hint']}", file=sys.stderr)
        return 1
    print(run["final_response"])
    for file in run["files_changed"]:
        print(f"{file['kind']:6} {file['path']}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Delegate one task to Codex.")
    parser.add_argument("prompt")
    parser.add_argument("--cwd", type=Path, default=Path(), help="a folder inside a git repository")
    parser.add_argument("--write", action="store_true", help="let Codex change files below cwd")
    given = parser.parse_args()
    mode = "workspace-write" if given.write else "read-only"
    sys.exit(anyio.run(delegate, given.prompt, given.cwd.resolve(), mode))
