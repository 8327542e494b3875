"""Build the MCP server; see backend.py for what a call needs."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server

from mcp_server_codex import prompts
from mcp_server_codex.backend import Backend
from mcp_server_codex.listing import listed_tools
from mcp_server_codex.settings import Settings
from mcp_server_codex.task_params import EXTENSION, TaskParams, UpdateParams

if TYPE_CHECKING:
    from codex_tools.engines.engine import Engine
    from mcp_server_codex.calls import Call, Calls

INSTRUCTIONS = """\
Codex is another coding agent, with its own shell, editor and model. Delegate self-contained tasks \
to it: a bug to fix, a feature or test to write, a review, a second opinion, a question about a \
large code base. Do small edits yourself.

Codex sees nothing of this conversation. Put into the prompt the goal, the files that matter, the \
constraints and how to check the result. Set cwd if the work is not in the default folder.

Sandbox: read-only (default) to look, explain and review; workspace-write to edit files and run \
tests inside cwd, without network; danger-full-access only if the person asked for it. A sandbox \
above the operator's limit fails with not_allowed.

To continue, call codex_resume with the thread_id of the result: Codex remembers the thread, and \
folder, sandbox, model and effort stay the same. codex_sessions finds earlier threads, of other \
clients too. For data instead of prose, give output_schema.

A run takes seconds to an hour. While its status is running or queued, call codex_wait with its \
run_id. Several tasks at once: call codex_run with wait_s: 0 for each, then codex_wait once with \
all run_ids.

Leave model out unless the person named one. The text of a failed call has the kind of error, what \
to do, and the thread_id to continue with; files already changed stay changed."""

Request = ServerRequestContext[Backend, Any]
ParamsT = TypeVar("ParamsT")
ResultT = TypeVar("ResultT")


def make_server(settings: Settings, engine: Engine | None = None) -> Server[Backend]:
    """Return the server, ready to run.

    Args:
        settings: The operator's settings.
        engine: Runs the turns; None to choose the engine by the settings.
    """

    @asynccontextmanager
    async def lifespan(_: Server[Backend]) -> AsyncGenerator[Backend]:
        async with Backend(settings, engine, folder).serving() as backend:
            yield backend

    async def list_tools(
        _: Request, __: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return listed_tools(settings.compat)

    async def list_prompts(
        _: Request, __: types.PaginatedRequestParams | None
    ) -> types.ListPromptsResult:
        return prompts.list_prompts()

    async def get_prompt(_: Request, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        return prompts.get_prompt(params)

    folder = _own_folder()
    server = Server(
        "mcp-server-codex",
        version=version("mcp-server-codex"),
        title="Codex",
        instructions=INSTRUCTIONS,
        lifespan=lifespan,
        on_list_tools=list_tools,
        on_call_tool=_opened(lambda calls: calls.call_tool),
        on_list_resources=_opened(lambda calls: calls.resources.list),
        on_list_resource_templates=_opened(lambda calls: calls.resources.templates),
        on_read_resource=_opened(lambda calls: calls.resources.read),
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=_opened(lambda calls: calls.complete),
    )
    server.extensions[EXTENSION] = {}
    server.add_request_handler("tasks/get", TaskParams, _opened(lambda calls: calls.tasks.get))
    server.add_request_handler(
        "tasks/cancel", TaskParams, _opened(lambda calls: calls.tasks.cancel)
    )
    server.add_request_handler(
        "tasks/update", UpdateParams, _opened(lambda calls: calls.tasks.update)
    )
    return server


def _opened(
    handler_of: Callable[[Calls], Callable[[Call, ParamsT], Awaitable[ResultT]]],
) -> Callable[[Request, ParamsT], Awaitable[ResultT]]:
    """Return a handler that opens the calls at its first request, and lets them answer it."""

    async def handle(request: Request, params: ParamsT) -> ResultT:
        calls = await request.lifespan_context.opened()
        call: Call = replace(cast("Any", request), lifespan_context=calls.runs)
        return await handler_of(calls)(call, params)

    return handle


def _own_folder() -> Path:
    """Return the folder of this process, or what its starter called it if it was deleted."""
    try:
        return Path.cwd()
    except OSError:
        return Path(os.environ.get("PWD") or "/deleted-folder")
