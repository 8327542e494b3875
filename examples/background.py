"""Run several tasks at the same time: start them in the background, then wait for all.

    python examples/background.py "Review api.py." "Review cli.py." "Review db.py." --cwd ~/shop

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


async def run_all(prompts: list[str], cwd: Path) -> int:
    """Run each of *prompts* in *cwd* and print the results in order; return the exit code."""
    server = StdioServerParameters(command="mcp-server-codex", env=dict(os.environ))
    async with Client(stdio_client(server)) as client:

        async def call(tool: str, **arguments: Any) -> dict[str, Any]:
            return (await client.call_tool(tool, arguments)).structured_content or {}

        started = [
            await call("codex_run", prompt=prompt, cwd=str(cwd), wait_s=0) for prompt in prompts
        ]
        if refused := [run["error"]["message"] for run in started if run["error"]]:
            print(*refused, sep="\n", file=sys.stderr)
            return 1
        ids = [run["run_id"] for run in started]
        runs = started
        while any(run["status"] in ("queued", "running") for run in runs):
            runs = (await call("codex_wait", run_ids=ids, wait_s=50))["runs"]
    for prompt, run in zip(prompts, runs, strict=True):
        answer = run["error"]["message"] if run["error"] else run["final_response"]
        print(f"{prompt}\n  {run['status']}: {answer}")
    return int(any(run["error"] for run in runs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run several tasks at the same time.")
    parser.add_argument("prompts", nargs="+", metavar="prompt")
    parser.add_argument("--cwd", type=Path, default=Path(), help="a folder inside a git repository")
    given = parser.parse_args()
    sys.exit(anyio.run(run_all, given.prompts, given.cwd.resolve()))
