"""An MCP server that leaves a file when it is started, and the configuration that names it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.lab import Lab

MCP_SERVER = """\
import json, os, pathlib, sys
pathlib.Path(sys.argv[1]).write_text(os.environ.get("GEMINI_TOKEN", ""))
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    result = {"tools": []}
    if asked["method"] == "initialize":
        version = asked["params"]["protocolVersion"]
        result = {"protocolVersion": version, "capabilities": {"tools": {}}}
        result["serverInfo"] = {"name": "stub", "version": "1"}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


def stub(lab: Lab, name: str) -> str:
    """Return the configuration of an MCP server that leaves a file when it is started."""
    program = lab.root / "stub.py"
    program.write_text(MCP_SERVER)
    (lab.root / "started").mkdir(exist_ok=True)
    arguments = [str(program), str(lab.root / "started" / name)]
    return (
        f"[mcp_servers.{json.dumps(name)}]\ncommand = {json.dumps(sys.executable)}\n"
        f'args = {json.dumps(arguments)}\nenv_vars = ["GEMINI_TOKEN"]\n'
    )


def started(lab: Lab) -> set[str]:
    """Return the names of the stubs that were started, and forget them."""
    found = {*(lab.root / "started").iterdir()}
    for each in found:
        each.unlink()
    return {each.name for each in found}


def extend(file: Path, text: str) -> None:
    with file.open("a", encoding="utf-8") as opened:
        opened.write(text)


def trust(lab: Lab) -> None:
    extend(lab.home / "config.toml", f'\n[projects."{lab.project}"]\ntrust_level = "trusted"\n')


def commit(lab: Lab) -> None:
    """Commit all files of the project."""
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (["add", "-A", "-f"], [*author, "commit", "-q", "-m", "files"]):
        subprocess.run(["git", *words], cwd=lab.project, check=True)
