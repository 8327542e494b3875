"""The tools' schemas through the converters and validators that clients really use."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from mcp_server_codex.calls import OLD_TOOLS, TOOLS
from mcp_server_codex.wire import to_tool
from support.codex_versions import from_npm, from_pypi
from support.lab import Json, Lab, environment, server_program

GENAI, AGENTS = "google-genai==3.6.1", "openai-agents==0.24.0"
AJV, SDK, CLIENT = "ajv@8.20.0", "@modelcontextprotocol/sdk@1.32.2", "client@2.4.0"
"""What the tests fetch: Google's and OpenAI's Python packages, and what TypeScript clients use."""

LISTED: list[Json] = [
    to_tool(tool).model_dump(mode="json", by_alias=True, exclude_none=True)
    for tool in (*TOOLS, *OLD_TOOLS)
]

GOOGLE = """
import json, sys
from types import SimpleNamespace
from google.genai import types
from google.genai._mcp_utils import mcp_to_gemini_tool
made = []
for tool in json.load(sys.stdin):
    one = mcp_to_gemini_tool(SimpleNamespace(**tool)).function_declarations[0]
    made.append(one.model_dump(mode="json", by_alias=True, exclude_none=True))
print(json.dumps(made))
"""

OPENAI = """
import json, sys
from agents.strict_schema import ensure_strict_json_schema
print(json.dumps([ensure_strict_json_schema(tool["inputSchema"]) for tool in json.load(sys.stdin)]))
"""

AJV_SCRIPT = """
import { readFileSync } from "node:fs";
import Ajv from "ajv/dist/2020.js";
const [tools, calls] = JSON.parse(readFileSync(0));
const made = {};
const said = [];
const logger = { log: (t) => said.push(t), warn: (t) => said.push(t), error: (t) => said.push(t) };
for (const tool of tools) {
  const check = new Ajv({ strict: true, logger }).compile(tool.inputSchema);
  new Ajv({ strict: true, allowUnionTypes: true, logger }).compile(tool.outputSchema);
  made[tool.name] = (calls[tool.name] ?? []).map((call) => check(call));
}
console.log(JSON.stringify({ made, said }));
"""

SPEAK = """
const [program, args, env] = JSON.parse(process.argv[2]);
const transport = new StdioClientTransport({ command: program, args, env });
const client = new Client({ name: "test", version: "1" }, { capabilities: {} });
await client.connect(transport);
const { tools } = await client.listTools();
const { structuredContent, isError } = await client.callTool({
  name: "codex_usage", arguments: { timezone: "UTC" },
});
await client.close();
console.log(JSON.stringify({ tools, structuredContent, isError }));
"""


@pytest.fixture(scope="module")
def python() -> Path:
    return from_pypi("pypi/schema-converters-1", GENAI, AGENTS)


@pytest.fixture(scope="module")
def modules() -> Path:
    name = "npm/schema-validators-1"
    return from_npm(name, AJV, SDK, f"@modelcontextprotocol/{CLIENT}")


def ran(command: list[str], sent: object = None, cwd: Path | None = None) -> Any:
    done = subprocess.run(command, input=json.dumps(sent), capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def same(ours: Json, theirs: Json, where: str) -> None:
    """Fail if *theirs*, a Schema of Google's, says less than *ours*.

    Google's package drops the largest lengths of texts and lists, as of 3.6.1; we check those.
    """
    kept = {"description", "minimum", "maximum", "default", "enum", "required"}
    for key in kept & ours.keys():
        assert theirs[key] == ours[key], (where, key)
    if "type" in ours:
        assert theirs["type"] == ours["type"].upper(), where
    if "items" in ours:
        same(ours["items"], theirs["items"], f"{where}.items")
    assert len(theirs.get("anyOf", ())) == len(ours.get("anyOf", ())), where
    for mine, other in zip(ours.get("anyOf", ()), theirs.get("anyOf", ()), strict=True):
        same(mine, other, f"{where}.anyOf")
    assert theirs.get("properties", {}).keys() == ours.get("properties", {}).keys(), where
    for name, each in ours.get("properties", {}).items():
        same(each, theirs["properties"][name], f"{where}.{name}")


def test_google_s_package_keeps_all_of_each_input_schema(python: Path) -> None:
    declared = ran([str(python), "-c", GOOGLE], LISTED)
    assert [each["name"] for each in declared] == [tool["name"] for tool in LISTED]
    for tool, each in zip(LISTED, declared, strict=True):
        same(tool["inputSchema"], each["parameters"], tool["name"])


def test_openai_s_strict_form_can_be_made_of_each_input_schema(python: Path) -> None:
    strict = ran([str(python), "-c", OPENAI], LISTED)
    for tool, each in zip(LISTED, strict, strict=True):
        ours = tool["inputSchema"]
        assert each["required"] == [*ours["properties"]], tool["name"]
        for name, about in each["properties"].items():
            mine = dict(ours["properties"][name])
            # Strict objects are closed, and strict arguments have no default: see the test below.
            assert {k: v for k, v in about.items() if k in mine} == mine, (tool["name"], name)


CALLS: dict[str, list[Json]] = {
    "codex_run": [{"prompt": "x", "mcp_servers": ["a"]}, {"mcp_servers": "all"}, {"prompt": 5}],
    "codex_wait": [{"run_ids": ["a"]}, {"run_ids": ["a"], "wait_s": 0}, {"run_ids": []}],
    "codex_usage": [{}, {"group_by": "week"}, {"group_by": "hour"}],
}


def test_ajv_in_its_strict_mode_compiles_each_schema_without_a_word(modules: Path) -> None:
    script = modules / "ajv.mjs"
    script.write_text(AJV_SCRIPT)
    found = ran(["node", str(script)], [LISTED, CALLS], modules)
    assert found["said"] == []
    for tool in CALLS:
        assert found["made"][tool] == [True, True, False], tool


@pytest.mark.parametrize("generation", ["1", "2"])
def test_the_typescript_clients_get_the_schemas_and_accept_a_result(
    generation: str, modules: Path, lab: Lab
) -> None:
    imports = {
        "1": (
            'import { Client } from "@modelcontextprotocol/sdk/client/index.js";\n'
            'import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";'
        ),
        "2": (
            'import { Client } from "@modelcontextprotocol/client";\n'
            'import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";'
        ),
    }
    script = modules / f"client-{generation}.mjs"
    script.write_text(imports[generation] + SPEAK)
    args = ["--state-dir", str(lab.state)]
    told = json.dumps([server_program(), args, environment(lab)])
    found = ran(["node", str(script), told], cwd=modules)
    for tool, ours in zip(found["tools"], LISTED, strict=False):
        assert tool["inputSchema"] == ours["inputSchema"]
        assert tool["outputSchema"] == ours["outputSchema"]
    assert len(found["tools"]) == len(TOOLS)
    assert cast("Json", found["structuredContent"])["sessions_read"] == 0
    assert found["isError"] is False
