"""Call the tools and read the resources; see backend.py for when this is imported."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from codex_tools.answer import ANSWER
from codex_tools.apply import APPLY
from codex_tools.arguments import read_arguments
from codex_tools.codex.errors import CodexError
from codex_tools.codex.faults import fault_for
from codex_tools.codex.masking import shorten
from codex_tools.codex.record import Record
from codex_tools.codex.workers import on_disk
from codex_tools.compat import CODEX, CODEX_REPLY
from codex_tools.engines.choose import choose_engine
from codex_tools.engines.engine import Engine
from codex_tools.engines.nesting import find_depth
from codex_tools.history.index import ThreadIndex
from codex_tools.pricing.prices import Prices, read_prices
from codex_tools.resume import RESUME
from codex_tools.rollouts.threads import Threads, local_threads
from codex_tools.run import RUN
from codex_tools.runs.opening import open_runs
from codex_tools.runs.register import Runs
from codex_tools.runs.result import RunResult
from codex_tools.runs.run import Run
from codex_tools.sessions import SESSIONS
from codex_tools.steer import STEER
from codex_tools.stop import STOP
from codex_tools.tool import Context
from codex_tools.usage import USAGE
from codex_tools.wait import WAIT
from mcp_server_codex import prompts
from mcp_server_codex.elicitation import Ask, Seals, Unanswered, can_ask, find_asker
from mcp_server_codex.listing import input_schema_of
from mcp_server_codex.patience import patience_of
from mcp_server_codex.progress import ProgressReporter
from mcp_server_codex.questions import find_questioner, find_repeated, seal_of, take_answer
from mcp_server_codex.resources import Resources
from mcp_server_codex.settings import Settings
from mcp_server_codex.tasks import Tasks, new_task, wants_task
from mcp_server_codex.wire import AnyTool, caller_of, to_result

if TYPE_CHECKING:
    from codex_tools.places.places import Places

logger = logging.getLogger(__name__)

TOOLS: tuple[AnyTool, ...] = (RUN, RESUME, WAIT, ANSWER, STEER, STOP, APPLY, SESSIONS, USAGE)
OLD_TOOLS: tuple[AnyTool, ...] = (CODEX, CODEX_REPLY)
"""Offered in addition with `--compat codex-mcp-server`."""

_ROOTS_WITHIN_S = 5.0
"""Seconds to wait for the client's list of roots."""


Call = ServerRequestContext[Runs, Any]


@asynccontextmanager
async def open_calls(
    settings: Settings, engine: Engine | None, folder: Path
) -> AsyncGenerator[Calls]:
    """Open what calls need; leaving it ends all runs and the processes they have started.

    Args:
        settings: The operator's settings.
        engine: Runs the turns; None to choose the engine by the settings.
        folder: The folder that this server was started in.
    """
    engine, threads, history, places = await on_disk(_prepare, settings, engine, folder)
    try:
        async with (
            engine.opened(),
            places.opened() if places is not None else nullcontext(),
            open_runs(
                settings.state_dir,
                engine=engine,
                threads=threads,
                max_runs=settings.max_runs,
                max_queue=settings.max_queue,
                roots=settings.policy.roots,
                budgets=settings.policy.budgets,
                wait_for_limits=settings.wait_for_limits,
                places=places,
            ) as runs,
        ):
            if settings.notify is not None:
                from mcp_server_codex.notify import notifier

                runs.audit.listener = notifier(settings.notify)
            yield Calls(settings, engine, threads, history, folder, places, runs)
    finally:
        history.close()


def _prepare(
    settings: Settings, engine: Engine | None, folder: Path
) -> tuple[Engine, Threads, ThreadIndex, Places | None]:
    """Make the objects that calls share; this imports the engine and reads the operator's files."""
    engine = engine or choose_engine(
        settings.codex_bin,
        settings.policy.projects(folder),
        choice=settings.engine,
        spares=settings.spares,
    )
    prices = read_prices(settings.prices)
    threads = local_threads(prices, settings.state_dir)
    history = ThreadIndex(threads.home, settings.state_dir, prices)
    return engine, threads, history, _places(settings, prices, threads)


def _places(settings: Settings, prices: Prices, threads: Threads) -> Places | None:
    """Return the operator's places; nothing of them is imported where there are none."""
    if settings.places is None:
        return None
    from codex_tools.places.place import read_places
    from codex_tools.places.places import Places

    return Places(read_places(settings.places), settings.state_dir, prices, threads)


class Calls:
    """The tools and resources of one connection, with all that its calls share."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        threads: Threads,
        history: ThreadIndex,
        folder: Path,
        places: Places | None,
        runs: Runs,
    ) -> None:
        """Remember the objects that the calls share; `open_calls` makes and closes them."""
        self.runs = runs
        self.resources = Resources(history, settings, engine)
        self.tasks = Tasks(RUN)
        self._settings = settings
        self._engine = engine
        self._threads = threads
        self._history = history
        self._folder = folder
        self._places = places
        self._seals = Seals()
        self._depth: int | None = None
        """How many runs this server is nested in; None before the first call."""
        offered = TOOLS if settings.compat == "none" else (*TOOLS, *OLD_TOOLS)
        self._tools = {tool.name: tool for tool in offered}

    async def call_tool(
        self, call: Call, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        """Call the tool that *params* name.

        Raises:
            MCPError: There is no such tool, or the state of the call belongs to another one.
        """
        tool = self._tools.get(params.name)
        if tool is None:
            raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown tool: {params.name}")
        if not call.session.can_send_request:  # Else no question came as a result.
            self._seals.check(seal_of(params.request_state))
        try:
            return await self._call(tool, call, params)
        except Unanswered as question:
            return question.result
        except MCPError:  # A state that belongs to another call.
            raise
        except Exception as error:  # An outer wall: the SDK would send the error's text.
            logger.exception("%s met an internal fault", tool.name)
            return to_result(tool, tool.refuse(fault_for(error)))

    async def complete(
        self, call: Call, params: types.CompleteRequestParams
    ) -> types.CompleteResult:
        """Complete an argument of a prompt or of a resource."""
        name, value = params.argument.name, params.argument.value
        values = prompts.values_of(params.ref, name)
        if values:
            found = [each for each in values if each.startswith(value)]
        else:
            found = await self.resources.complete(call, name, value)
        return types.CompleteResult(completion=types.Completion(values=found))

    def _find_depth(self) -> int:
        self._depth = find_depth(os.environ)
        return self._depth

    async def _call(
        self, tool: AnyTool, call: Call, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        settings, seals = self._settings, self._seals
        runs, caller = call.lifespan_context, caller_of(call.session)

        def refuse(error: CodexError) -> types.CallToolResult:
            facts = {"caller": caller, "tool": tool.name, "kind": error.kind}
            runs.audit.write("refused", facts | {"message": shorten(error.message, 500)})
            return to_result(tool, tool.refuse(error))

        try:
            arguments = read_arguments(
                tool.request, params.arguments or {}, input_schema_of(tool.name)
            )
        except CodexError as error:
            return refuse(error)
        request = arguments.request
        _leave_deleted_folder()
        cwd = Path()
        repeated = find_repeated(params, request, seals)
        if repeated is None and getattr(request, "cwd", "") is None:
            found = await _callers_folder(call, params, self._folder)
            if isinstance(found, types.InputRequiredResult):
                return found
            cwd = found
        depth = self._depth if self._depth is not None else await on_disk(self._find_depth)
        progress = ProgressReporter(call.session)
        questioner = find_questioner(call, params, request, seals) if not depth else None
        context = Context(
            policy=settings.policy,
            runs=runs,
            engine=self._engine,
            threads=self._threads,
            default_cwd=cwd,
            watch=progress.watch,
            wait_s=_wait_s(call, settings),
            history=self._history,
            state_dir=settings.state_dir,
            report=progress.report,
            caller=caller,
            depth=depth,
            ask=_find_asker(call, params, request, seals, settings, progress)
            if settings.ask == "auto" and not depth
            else None,
            warnings=arguments.warnings,
            places=self._places,
            default_place=settings.default_place,
            ask_person=questioner,
            reaches_person=questioner is not None or (wants_task(call) and can_ask(call)),
        )
        # The run of a key may belong to another server, and a dry run is no run.
        may_be_new = not getattr(request, "idempotency_key", None) and not getattr(
            request, "dry_run", False
        )
        # What a task asks goes to the person, not to the agent that delegated it.
        asks = getattr(request, "approvals", None) == "ask" and not can_ask(call)
        may_be_task = may_be_new and not asks and not getattr(request, "ask_caller", False)
        if tool.start is not None and wants_task(call) and may_be_task and repeated is None:
            try:
                run = await tool.start(request, context)
            except CodexError as error:
                return refuse(error)
            runs.audit.write("handed_back", {"caller": caller, "run_id": run.run_id})
            await runs.stored()
            # A shape that only the extension defines; the SDK sends any object unchanged.
            return cast("types.CallToolResult", new_task(run))
        wants_progress = (call.meta or {}).get("progress_token") is not None
        async with progress.reporting() if wants_progress else nullcontext():
            try:
                if repeated is not None:
                    await take_answer(repeated, runs)
                if repeated is None or tool.start is None:
                    result = await tool.call(request, context)
                else:
                    result = await _go_on(repeated.run_id, request, context)
            except CodexError as error:
                return refuse(error)
            except Unanswered as question:  # Further out, the task group would have wrapped it.
                return question.result
        if tool.start is None:  # A tool that runs Codex is in the audit log through its run.
            runs.audit.write("called", {"caller": caller, "tool": tool.name})
        note_handover(runs, caller, result)
        return to_result(tool, result)


async def _go_on(run_id: str, request: Record, context: Context) -> Record:
    """Go on with the run that an earlier call of the same kind started."""
    found = await context.runs.find(run_id)
    if not isinstance(found, Run):
        return await context.runs.refreshed(found.result)
    return await context.follow(found, getattr(request, "wait_s", None))


def note_handover(runs: Runs, caller: str, result: Record) -> None:
    """Note in the audit log which runs a result leaves at work, and which it brings back.

    The plugin's hooks read this: they tell of runs that have ended and that nobody fetched.
    """
    if isinstance(result, RunResult):
        if not result.has_ended:
            runs.audit.write("handed_back", {"caller": caller, "run_id": result.run_id})
        return
    one: object = getattr(result, "run", None)
    found: list[RunResult] = getattr(result, "runs", None) or []
    if isinstance(one, RunResult):
        found = [one]
    if ids := [run.run_id for run in found if run.has_ended and run.run_id is not None]:
        runs.audit.write("fetched", {"caller": caller, "run_ids": ids})


def _find_asker(
    call: Call,
    params: types.CallToolRequestParams,
    request: Record,
    seals: Seals,
    settings: Settings,
    progress: ProgressReporter,
) -> Ask | None:
    # A wait_s of 0 asks for no waiting for the run; it says nothing about the client.
    within_s = _wait_s(call, settings) or _client_wait_s(call)
    return find_asker(call, params, request, seals, report=progress.report, within_s=within_s)


def _wait_s(call: Call, settings: Settings) -> float:
    return _client_wait_s(call) if settings.wait_s == "auto" else settings.wait_s


def _client_wait_s(call: Call) -> float:
    client = call.session.client_params
    has_token = (call.meta or {}).get("progress_token") is not None
    return patience_of(client.client_info.name if client else "", has_progress=has_token)


def _leave_deleted_folder() -> None:
    """Leave the folder of this process if it was deleted, such as a git worktree after its use.

    Otherwise each look at it would fail, and so would programs that start in it, such as node.
    """
    try:
        # PTH109 wants Path.cwd, which calls this function; it reads no disk.
        os.getcwd()  # noqa: PTH109
    except OSError:
        os.chdir("/")


async def _callers_folder(
    call: Call, params: types.CallToolRequestParams, own: Path
) -> Path | types.InputRequiredResult:
    """Return the caller's folder: its first root, CLAUDE_PROJECT_DIR, or *own*, the server's.

    In the 2026 protocol a server cannot send a request. This server returns the question instead,
    and the client repeats the call with the answer. Claude Code is not asked that way: its only
    root is the folder that CLAUDE_PROJECT_DIR names.
    """
    project = os.environ.get("CLAUDE_PROJECT_DIR")
    fallback = await on_disk(lambda: _folder(project) or own)
    capabilities = call.session.client_capabilities
    if capabilities is None or capabilities.roots is None:
        return fallback
    question = types.ListRootsRequest()
    if call.session.can_send_request:
        with anyio.move_on_after(_ROOTS_WITHIN_S):
            try:
                answer = await call.session.send_request(question, types.ListRootsResult)
                return await on_disk(_first_folder, answer) or fallback
            except MCPError:
                logger.info("the client offers roots but does not list them")
        return fallback
    answer = (params.input_responses or {}).get("roots")
    if isinstance(answer, types.ListRootsResult):
        return await on_disk(_first_folder, answer) or fallback
    if project or answer is not None:
        return fallback
    return types.InputRequiredResult(input_requests={"roots": question})


def _first_folder(answer: types.ListRootsResult) -> Path | None:
    for root in answer.roots:
        parts = urlsplit(str(root.uri))
        if parts.scheme == "file" and (folder := _folder(unquote(parts.path))):
            return folder
    return None


def _folder(path: str | None) -> Path | None:
    return Path(path) if path and Path(path).is_dir() else None
