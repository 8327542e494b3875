"""Print what a caller sees of a server: compare two builds before a change of the structure lands.

    python tests/surface.py [PROGRAM] > after.json      PROGRAM: a console script, by default ours
    diff before.json after.json

It asks for the lists of tools, prompts and resource templates, for one success and one failure of
each tool (against a fake Codex), for --help, and for the names of the files in the state folder.
Ids, times and paths are replaced.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, cast

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from codex_tools.codex.json_object import Json
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Lab, environment, open_lab, server_program

CALLS: tuple[tuple[str, Json], ...] = (
    ("codex_run", {"prompt": "x"}),
    ("codex_run", {"prompt": "x", "sandbox": "danger-full-access"}),
    ("codex_run", {"promt": "x"}),
    ("codex_run", {"prompt": "x", "output_schema": {"type": "strin"}}),
    ("codex_resume", {"prompt": "x", "thread_id": "01a20661-b445-73e1-b566-c552cde98ccd"}),
    ("codex_resume", {"prompt": "x", "last": True}),
    ("codex_wait", {"run_ids": ["@RUN@"]}),
    ("codex_wait", {"run_ids": ["run_0000000000000000"]}),
    ("codex_stop", {"run_id": "@RUN@"}),
    ("codex_stop", {"run_id": "run_0000000000000000"}),
    ("codex_apply", {"run_id": "@RUN@", "action": "check"}),
    ("codex_apply", {"run_id": "run_0000000000000000", "action": "discard"}),
    ("codex_sessions", {}),
    ("codex_sessions", {"thread_id": "01a20661-b445-73e1-b566-c552cde98ccd"}),
    ("codex_usage", {"timezone": "UTC"}),
    ("codex_usage", {"since": "soon"}),
)


async def surface(program: str, lab: Lab) -> Json:
    """Return what *program* shows."""
    fake = FakeCodex(lab.root / "fake")
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    args = ["--codex-bin", str(fake.build()), "--state-dir", str(lab.state)]
    server = StdioServerParameters(
        command=program, args=args, cwd=lab.project, env=environment(lab)
    )
    found: Json = {}
    async with Client(stdio_client(server), mode="auto") as client:
        found["instructions"] = client.instructions
        found["tools"] = (await client.list_tools()).model_dump(mode="json")["tools"]
        found["prompts"] = (await client.list_prompts()).model_dump(mode="json")["prompts"]
        listed = await client.list_resource_templates()
        found["templates"] = listed.model_dump(mode="json")["resource_templates"]
        run_id = ""
        for number, (tool, arguments) in enumerate(CALLS):
            text = json.dumps(arguments).replace("@RUN@", run_id)
            result = (await client.call_tool(tool, json.loads(text))).model_dump(mode="json")
            data = cast("Json", result.get("structured_content") or {})
            run_id = run_id or cast("str", data.get("run_id") or "")
            found[f"{number} {tool}"] = {"arguments": arguments, "result": result}
    found["help"] = (await anyio.run_process([program, "--help"])).stdout.decode().splitlines()
    found["state"] = sorted(str(p.relative_to(lab.state)) for p in lab.state.rglob("*"))
    return found


def without_accidents(text: str, lab: Lab) -> str:
    """Return *text* without what differs from one run to the next."""
    text = text.replace(str(lab.root), "@LAB@")
    text = re.sub(r"run_[0-9a-f]{16}", "@RUN@", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "@TIME@", text)
    return re.sub(r'("duration_s": |"age_s": )[\d.]+', r"\g<1>0", text)


async def main() -> None:
    program = sys.argv[1] if len(sys.argv) > 1 else server_program()
    with open_lab() as lab:
        found: Any = await surface(program, lab)
        sys.stdout.write(without_accidents(json.dumps(found, indent=1, sort_keys=True), lab))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    anyio.run(main)
