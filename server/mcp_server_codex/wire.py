"""Our values as MCP's: tools, results, errors, progress."""

from __future__ import annotations

import functools
from typing import Any

import mcp_types as types
from mcp.server.session import ServerSession

from codex_tools.codex.record import Record
from codex_tools.compat import CodexFailure, CodexResult
from codex_tools.runs.result import RunError, RunResult, error_text, run_uri
from codex_tools.schemas.output_schema import problems
from codex_tools.sessions import SessionsResult
from codex_tools.stop import StopResult
from codex_tools.tool import Tool, input_schema, output_schema
from codex_tools.usage import UsageResult
from codex_tools.wait import WaitResult

AnyTool = Tool[Any, Any]


LARGEST = 500_000
"""Characters of a result that Claude Code shall show to its model (it takes up to so many).

Ours keep within 48,000, but for structured output, which is never cut.
"""


def caller_of(session: ServerSession) -> str:
    """Return the client's name and version, as it tells them."""
    client = session.client_params
    if client is None:
        return "unknown"
    return f"{client.client_info.name} {client.client_info.version}"[:200]


@functools.cache
def to_tool(tool: AnyTool) -> types.Tool:
    """Return *tool* as MCP lists it."""
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
    """Return what Claude Code reads of a tool besides (2.1.330: both seen to work)."""
    meta: dict[str, Any] = {}
    if tool.search_hint is not None:
        meta["anthropic/searchHint"] = tool.search_hint
    if tool.may_be_large:
        meta["anthropic/maxResultSizeChars"] = LARGEST
    return meta or None


def to_result(tool: AnyTool, result: Record) -> types.CallToolResult:
    """Return *result* as MCP's, checked against the schema that *tool* advertises.

    The SDK checks nothing. Claude Code shows its model only the structured
    content on success and only the text on an error, so each says it all.

    Raises:
        ValueError: The result breaks its own schema.
    """
    data = result.model_dump(mode="json")
    if faults := problems(to_tool(tool).output_schema or {}, data):
        raise ValueError(f"result of {tool.name} breaks its schema: {faults}")
    text, failed = _told(result)
    content: list[types.ContentBlock] = [types.TextContent(type="text", text=text)]
    content += _links(result)
    # The old tools give no structured content where there is no thread, as they never did.
    threadless = isinstance(result, CodexFailure) and not result.threadId
    return types.CallToolResult(
        content=content,
        structured_content=None if threadless else data,
        is_error=failed,
    )


def _links(result: Record) -> list[types.ResourceLink]:
    """Return where to read what was cut out of *result*."""
    uri = run_uri(result.run_id) if isinstance(result, RunResult) else None
    if uri is None or uri not in (getattr(result, "final_response", None) or ""):
        return []
    return [
        types.ResourceLink(
            type="resource_link",
            name="whole answer",
            uri=uri,
            mime_type="application/json",
            description="The result with its answer in full",
        )
    ]


def _told(result: Record) -> tuple[str, bool]:
    """Return *result* in words, and whether it is an error."""
    match result:
        case RunResult(status="failed" | "timed_out"):
            return error_text(result), True
        case RunResult():
            return result.final_response or result.next, False
        case CodexResult():
            return result.content, isinstance(result, CodexFailure)
        case StopResult(run=run):
            # That a run had failed before it was to be stopped is not stop's failure.
            unknown = run.run_id is None
            return (error_text(run), True) if unknown else (f"{run.status}. {run.next}", False)
        case WaitResult(runs=runs, error=None):
            return "\n\n".join(f"{r.run_id}: {r.status}\n{_told(r)[0]}" for r in runs), False
        case (
            WaitResult(error=RunError() as error)
            | SessionsResult(error=RunError() as error)
            | UsageResult(error=RunError() as error)
        ):
            return f"{error.kind}: {error.message}\nHint: {error.hint}", True
        case SessionsResult() | UsageResult():
            return result.model_dump_json(), False
        case _:
            raise TypeError(f"{type(result).__name__} has no words")
