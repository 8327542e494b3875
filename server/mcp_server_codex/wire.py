"""Convert tools and their results to MCP's types, without knowledge of any single tool."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import mcp_types as types
from mcp.server.session import ServerSession

from codex_tools.codex.json_object import Json
from codex_tools.codex.record import Record
from codex_tools.schemas.validation import Validator
from codex_tools.tool import Tool, input_schema, output_schema
from mcp_server_codex.listing import output_schema_of

logger = logging.getLogger(__name__)

AnyTool = Tool[Any, Any]


LARGEST = 500_000
"""Characters of a result that Claude Code may show to its model: the maximum it accepts.

Results have at most 48,000 characters, except for structured output, which is never cut.
"""


def caller_of(session: ServerSession) -> str:
    """Return the client's name and version, as the client gives them."""
    client = session.client_params
    if client is None:
        return "unknown"
    return f"{client.client_info.name} {client.client_info.version}"[:200]


def to_tool(tool: AnyTool) -> types.Tool:
    """Return *tool* as an entry of tools/list; `make docs` writes them into tools.json."""
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=input_schema(tool.request),
        output_schema=output_schema(tool.result),
        _meta=_meta_of(tool),
        annotations=types.ToolAnnotations(
            read_only_hint=tool.read_only,
            destructive_hint=None if tool.read_only else tool.destructive,
            idempotent_hint=tool.idempotent,
            open_world_hint=tool.open_world,
        ),
    )


def _meta_of(tool: AnyTool) -> dict[str, Any] | None:
    """Return the metadata for Claude Code (both keys seen to work in 2.1.330)."""
    meta: dict[str, Any] = {}
    if tool.search_hint is not None:
        meta["anthropic/searchHint"] = tool.search_hint
    if tool.may_be_large:
        meta["anthropic/maxResultSizeChars"] = LARGEST
    return meta or None


@functools.cache
def _validator(tool: AnyTool) -> Validator:
    return Validator(output_schema_of(tool.name))


def _faults_of(tool: AnyTool, data: Json) -> Sequence[object]:
    try:
        return _validator(tool).problems(data)
    except (ImportError, OSError) as error:
        # An upgrade removed what the check needs. If that made the call fail, its error says so.
        logger.warning("a result is sent unchecked: %s", error)
        return ()


def to_result(tool: AnyTool, result: Record) -> types.CallToolResult:
    """Return *result* as an MCP result, validated against the schema that *tool* advertises.

    The SDK does not validate results. Claude Code shows its model only the structured content of a
    success and only the text of an error; half of the other clients show only the text. So each of
    the two is complete.

    Raises:
        ValueError: The result does not match the schema.
    """
    data = result.model_dump(mode="json")
    if faults := _faults_of(tool, data):
        raise ValueError(f"result of {tool.name} does not match its schema: {faults}")
    words = tool.words(result)
    texts = [words.text] if words.tail is None else [words.text, words.tail]
    content: list[types.ContentBlock] = [
        types.TextContent(type="text", text=text) for text in texts
    ]
    if words.whole_answer is not None:
        content.append(
            types.ResourceLink(
                type="resource_link",
                name="whole answer",
                uri=words.whole_answer,
                mime_type="application/json",
                description="The result with its full answer",
            )
        )
    return types.CallToolResult(
        content=content,
        structured_content=data if words.has_data else None,
        is_error=words.is_error,
    )
