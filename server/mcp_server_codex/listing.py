"""List the tools from tools.json, which `make docs` writes.

To make the schemas takes 40 ms of CPU time and all the code of the tools, in each session of each
client. A test compares the file with what the code makes.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import mcp_types as types
from pydantic import TypeAdapter

_FILE = Path(__file__).with_name("tools.json").read_bytes()
"""Read at the start, because an upgrade may replace the file later."""


@functools.cache
def _tools() -> dict[str, list[types.Tool]]:
    """Return the tools by the value of `--compat` that adds them."""
    return TypeAdapter(dict[str, list[types.Tool]]).validate_json(_FILE)


@functools.cache
def listed_tools(compat: str) -> types.ListToolsResult:
    """Return the tools that a server with this `--compat` offers."""
    tools = _tools()
    return types.ListToolsResult(
        tools=tools["none"] if compat == "none" else [*tools["none"], *tools[compat]]
    )


def input_schema_of(name: str) -> dict[str, Any]:
    """Return the schema of a tool's arguments."""
    return _tool(name).input_schema


def output_schema_of(name: str) -> dict[str, Any]:
    """Return the schema of a tool's results."""
    schema = _tool(name).output_schema
    assert schema is not None
    return schema


def _tool(name: str) -> types.Tool:
    return next(tool for tools in _tools().values() for tool in tools if tool.name == name)
