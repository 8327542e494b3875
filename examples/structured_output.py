"""Ask Codex for data instead of prose: the answer follows a JSON Schema.

    python examples/structured_output.py "Find functions without a test." --cwd ~/shop

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

FINDING = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "line": {"type": "integer"},
        "problem": {"type": "string"},
    },
    "required": ["path", "problem"],
}
SCHEMA = {"type": "array", "items": FINDING}


async def find(prompt: str, cwd: Path) -> int:
    """Run *prompt* in *cwd* and print one line for each finding; return the exit code."""
    server = StdioServerParameters(command="mcp-server-codex", env=dict(os.environ))
    arguments = {"prompt": prompt, "cwd": str(cwd), "output_schema": SCHEMA, "wait_s": 3600}
    async with Client(stdio_client(server)) as client:
        result = await client.call_tool("codex_run", arguments)
    run: dict[str, Any] = result.structured_content or {}
    if error := run["error"]:
        print(f"{error['kind']}: {error['message']}\n{error['hint']}", file=sys.stderr)
        return 1
    # The server has validated the answer against SCHEMA, so nothing is checked here.
    for finding in run["structured_output"]:
        print(f"{finding['path']}:{finding.get('line', '?')}: {finding['problem']}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Ask Codex for data instead of prose.")
    parser.add_argument("prompt")
    parser.add_argument("--cwd", type=Path, default=Path(), help="a folder inside a git repository")
    given = parser.parse_args()
    sys.exit(anyio.run(find, given.prompt, given.cwd.resolve()))
