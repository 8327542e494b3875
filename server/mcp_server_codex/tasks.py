"""Serve MCP Tasks: the extension io.modelcontextprotocol/tasks of 2026-07-28.

A client that declares the extension gets a task at once from codex_run and codex_resume. It then
polls the task with tasks/get until the run has ended, and answers with tasks/update what the run
asks meanwhile. A task is a run and has the run's id, so
tasks outlive this server as runs do. The shapes follow the extension's published schema
(@modelcontextprotocol/ext-tasks 0.2.2).
"""

from __future__ import annotations

from typing import Any, Literal

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from codex_tools.codex.clean_text import clean
from codex_tools.codex.json_object import Json
from codex_tools.codex.run_errors import UnknownRun
from codex_tools.runs.register import Runs
from codex_tools.runs.run import Run
from codex_tools.runs.store import KEEP_S, StoredRun, now
from mcp_server_codex.elicitation import can_ask
from mcp_server_codex.questions import requests_of, take_responses
from mcp_server_codex.task_params import EXTENSION, TaskParams, UpdateParams
from mcp_server_codex.wire import AnyTool, caller_of, to_result

VERSION = "2026-07-28"
POLL_EVERY_MS = 1000
"""Polling interval in milliseconds that clients are asked to keep."""

Call = ServerRequestContext[Runs, Any]
Status = Literal["working", "input_required", "completed", "cancelled"]


def wants_task(call: Call) -> bool:
    """Return True if the client of *call* accepts a task instead of a result."""
    capabilities = call.session.client_capabilities
    declared = capabilities.extensions if capabilities is not None else None
    return call.protocol_version == VERSION and EXTENSION in (declared or {})


def new_task(run: Run) -> Json:
    """Return the task for *run*, as the result of the call that started the run."""
    return {"resultType": "task", **_head(run, "working")}


class Tasks:
    """The methods of the extension; a task's result has the shape of *tool*'s."""

    def __init__(self, tool: AnyTool) -> None:
        self._tool = tool

    async def get(self, call: Call, params: TaskParams) -> Json:
        """Return the state of a task, and its result if its run has ended."""
        found = await _find(call, params.task_id)
        result = found.result() if isinstance(found, Run) else found.result
        result = await call.lifespan_context.refreshed(result)
        match result.status:
            case "needs_answer" if isinstance(found, Run) and can_ask(call):
                requests = requests_of(found)
                status = "input_required" if requests else "working"
                more = {"inputRequests": requests} if requests else {}
                return {"resultType": "complete", **_head(found, status), **more}
            case "running" | "queued" | "needs_answer":
                return {"resultType": "complete", **_head(found, "working")}
            case "cancelled":
                return {"resultType": "complete", **_head(found, "cancelled")}
            case _:
                facts = {"caller": caller_of(call.session), "run_ids": [result.run_id]}
                call.lifespan_context.audit.write("fetched", facts)
                # A failed run is completed too: its result, with isError, is what the call returns.
                answer = to_result(self._tool, result).model_dump(
                    by_alias=True, mode="json", exclude_none=True
                )
                return {"resultType": "complete", **_head(found, "completed"), "result": answer}

    async def cancel(self, call: Call, params: TaskParams) -> Json:
        """Stop the run of a task."""
        await _find(call, params.task_id)
        try:
            await call.lifespan_context.stop(params.task_id)
        except UnknownRun as error:
            raise MCPError(code=types.INVALID_PARAMS, message=error.message) from None
        return {"resultType": "complete"}

    async def update(self, call: Call, params: UpdateParams) -> Json:
        """Deliver the client's answers to what the run of a task asks."""
        found = await _find(call, params.task_id)
        if isinstance(found, Run) and can_ask(call):
            take_responses(found, params.input_responses, call.lifespan_context)
        return {"resultType": "complete"}


async def _find(call: Call, task_id: str) -> Run | StoredRun:
    if call.protocol_version != VERSION:
        raise MCPError(code=types.METHOD_NOT_FOUND, message="Method not found", data=call.method)
    if not wants_task(call):
        raise MCPError(
            code=types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            message=f"{call.method} needs the client capability extensions.{EXTENSION}",
            data={"requiredCapabilities": {"extensions": {EXTENSION: {}}}},
        )
    try:
        return await call.lifespan_context.find(task_id)
    except UnknownRun:
        raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown task: {task_id}") from None


def _head(found: Run | StoredRun, status: Status) -> Json:
    if isinstance(found, Run):
        task_id, message = found.run_id, clean(found.headline)
        updated_at = now() if found.outcome is None else found.ended
    else:
        task_id, message, updated_at = found.result.run_id, found.result.status, found.updated_at
    return {
        "taskId": task_id,
        "status": status,
        "statusMessage": message[:200],
        "createdAt": found.created_at,
        "lastUpdatedAt": updated_at,
        "ttlMs": KEEP_S * 1000,
        "pollIntervalMs": POLL_EVERY_MS,
    }
