"""Run a turn with `codex app-server`: one guarded process per turn, spoken to in JSON-RPC.

Unlike `codex exec`, an app-server can be asked to stop, can be told more while it works, and can
ask. Its threads and rollouts are those of exec. What was seen of it on 0.163.0 and 0.171.0 decides
how a turn is started:

* A thread is always started read-only, and the sandbox of the turn comes with the turn. With any
  other sandbox at the start, Codex writes the project as trusted into the user's config.toml.
* Every setting is given at the thread's start and with the turn. A thread remembers the sandbox
  of its last turn otherwise.
* What Codex says that it took is compared with what was asked.
* The app-server ignores CODEX_API_KEY; the key is sent to it, and kept in memory there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from pathlib import Path

import anyio
import orjson

from codex_tools.codex.events import (
    EngineEvent,
    Event,
    ExitedEvent,
    NoticeEvent,
    QuestionsEvent,
    UnreadableEvent,
    WritingEvent,
    parse_event,
)
from codex_tools.codex.json_object import Json, object_of, text_of
from codex_tools.codex.masking import mask
from codex_tools.codex.program import Program
from codex_tools.codex.workers import on_disk
from codex_tools.engines.app_server_events import TurnLines, Writing
from codex_tools.engines.app_server_preparation import (
    OLDEST,
    OLDEST_BY_NAME,
    SANDBOX_SETTING,
    TurnStart,
    absent,
    broken,
    prepare,
    unfit,
)
from codex_tools.engines.app_server_sandbox import (
    approvals_of,
    check_echo,
    check_turn_echo,
    sandbox_policy,
)
from codex_tools.engines.app_server_start import (
    ANSWER_WITHIN_S,
    AppServer,
    DidNotOpen,
    DidNotStart,
    describe,
    exit_of,
    read_config,
    start_app_server,
)
from codex_tools.engines.engine import Keep, Plan, TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.engines.handle import RESOLVED, TurnHandle
from codex_tools.engines.json_rpc import (
    Connection,
    Notification,
    RequestRefused,
    RequestTimedOut,
    RpcError,
)
from codex_tools.engines.model_list import ModelList, ModelLists
from codex_tools.engines.preparation import (
    check_unmoved,
    find_program,
    plain_environment,
)
from codex_tools.engines.questions import ASK_CALLER
from codex_tools.engines.spares import Spares, open_spares, spare_key

INTERRUPT_WITHIN_S = 0.15
"""Seconds to wait until a running turn is interrupted, before all is ended anyway.

0.147.0 to 0.171.0 answer in 0.005 to 0.045 s.
"""

THREAD_WITHIN_S = 300.0
"""Seconds to wait for a thread to start, resume or fork, which reads its rollouts."""

_LOGIN_RULES = ("forced_login_method", "forced_chatgpt_workspace_id")
"""Settings that exec enforces at its start, and app-server does not (0.163.0, 0.171.0)."""

_NOT_GIT = "Not inside a trusted directory and --skip-git-repo-check was not specified."
"""What `codex exec` says of a folder in no repository; the app-server does not check."""


class AppServerEngine:
    """Run each turn with an app-server of its own, under a guard."""

    name = "app-server"

    def __init__(
        self,
        codex_bin: str | None,
        untrusted: Sequence[Path] = (),
        spares: int = 0,
        *,
        is_only: bool = False,
    ) -> None:
        """Remember *codex_bin*, the configured Codex; None to look for one.

        No Codex inside the folders *untrusted* is taken from PATH. While the engine is opened,
        *spares* app-servers wait for the next turns. With *is_only*, no other engine can try a
        turn: an app-server that ends at its start is a failed turn, as with `codex exec`, and an
        older Codex is taken, too.
        """
        self._is_only = is_only
        self._oldest = OLDEST_BY_NAME if is_only else OLDEST
        self._count = spares
        self._codex_bin = codex_bin
        self._untrusted = untrusted
        self._models = ModelLists()
        self._spares: Spares | None = None

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Keep spares ready; see `Engine.opened`."""
        return self.keep_spares(self._count) if self._count else nullcontext()

    async def prepare(self, cwd: Path, rules: EnvironmentRules) -> Program:
        """Find Codex and return its path, version and abilities; see `Engine.prepare`."""
        return await find_program(self._codex_bin, self._untrusted, cwd, rules)

    async def list_models(self, program: Program, rules: EnvironmentRules) -> ModelList | None:
        """Return the models that *program* offers; see `Engine.list_models`."""
        env = await on_disk(plain_environment, rules, self._untrusted)
        return await self._models.find(program, env)

    async def plan_turn(self, request: TurnRequest) -> Plan:
        """Return the command line of the app-server of a turn; see `Engine.plan_turn`.

        Raises:
            EngineUnfit: This engine cannot run the turn.
        """
        start = await on_disk(prepare, request, self._oldest)
        argv = tuple(mask(each) for each in start.argv)
        return Plan(argv, tuple(sorted(start.env)), tuple(start.notices))

    @asynccontextmanager
    async def open_turn(
        self, request: TurnRequest, keep: Keep
    ) -> AsyncGenerator[AsyncGenerator[Event]]:
        """Start a turn and yield its events; see `Engine.open_turn`.

        The prompt is sent when the first event is taken. An error raised before, by this function,
        means that nothing was sent to a model.

        Raises:
            EngineUnfit: This engine cannot run the turn.
            NotAllowed: A path resolves to another place than when it was checked.
        """
        start = await on_disk(prepare, request, self._oldest)
        async with AsyncExitStack() as stack:
            try:
                if start.is_refused:
                    events = _refused(start, _NOT_GIT)
                else:
                    events = await self._events_of(start, stack, keep)
            except DidNotStart as error:
                if error.exited is None or not self._is_only:
                    unusable = broken if isinstance(error, DidNotOpen) else absent
                    raise unusable(request, f"a working app-server ({error})") from error
                events = _refused(start, error.exited.stderr, error.exited.returncode)
            yield await stack.enter_async_context(aclosing(events))

    @asynccontextmanager
    async def keep_spares(self, count: int = 1) -> AsyncGenerator[None]:
        """Keep *count* app-servers ready for the next turns until the context manager exits.

        The first turn asks for them: without turns, none is started.
        """
        async with open_spares(count) as self._spares:
            try:
                yield
            finally:
                self._spares = None

    async def _events_of(
        self, start: TurnStart, stack: AsyncExitStack, keep: Keep
    ) -> AsyncGenerator[Event]:
        """Start a thread in a spare app-server, or in a new one; return the events of the turn.

        Raises:
            EngineUnfit: The app-server did not take the settings, or cannot keep to them.
            DidNotStart: It did not start, has ended, or does not answer.
        """
        if (spares := self._spares) is None:
            return await _open_new(start, stack, keep)
        key = await on_disk(spare_key, start.argv, start.env)
        spare = spares.take(key)
        if spare is None:
            events = await _open_new(start, stack, keep)
            # Not earlier: in a new CODEX_HOME, one of two app-servers of 0.163.0 that start at the
            # same time ends, because both make the database (seen).
            spares.order(key)
            return events
        spares.order(key)
        stack.push_async_callback(spare.release)
        # It may have ended while it waited, or its guard: nothing was sent to a model.
        with suppress(OSError, DidNotStart):
            spare.server.child.hold(start.request.held)
            return await _open(start, spare.server, stack, keep)
        await spare.release()
        return await _open_new(start, stack, keep)


async def _open_new(start: TurnStart, stack: AsyncExitStack, keep: Keep) -> AsyncGenerator[Event]:
    """Start an app-server, and a thread in it; see `_open`.

    Raises:
        DidNotStart: It did not start.
    """
    request = start.request
    server = await start_app_server(
        start.argv, start.env, request.cwd, TurnHandle(), stack, request.held
    )
    return await _open(start, server, stack, keep)


async def _open(
    start: TurnStart, server: AppServer, stack: AsyncExitStack, keep: Keep
) -> AsyncGenerator[Event]:
    """Start a thread in *server*; return the events of the turn, which ends with *stack*.

    Raises:
        EngineUnfit: The app-server did not take the settings, or cannot keep to them.
        DidNotOpen: It has ended, or does not answer.
    """
    request, connection, handle = start.request, server.connection, server.handle
    stack.push_async_callback(_interrupt, handle)
    handle.asks, handle.asks_caller = request.approvals == "ask", request.ask_caller
    try:
        try:
            config = await read_config(connection, request.cwd)
        except RequestRefused as error:
            return _refused(start, f"Error loading config.toml: {error.message}")
        if any(config.get(name) for name in _LOGIN_RULES):
            raise unfit(request, f"an app-server that enforces {' and '.join(_LOGIN_RULES)}")
        try:
            thread = await _open_thread(connection, start)
        except RequestRefused as error:
            return _refused(start, f"Error: {error.message}")
    except RpcError as error:
        said = describe(error, server.child, connection)
        raise DidNotOpen(said, await exit_of(server.child, connection)) from error
    if (difference := check_echo(request, thread)) is not None:
        raise broken(request, f"an app-server that takes the settings of the turn ({difference})")
    handle.thread_id = text_of(object_of(thread, "thread"), "id") or ""
    policy = sandbox_policy(request, object_of(config, SANDBOX_SETTING))
    return _events(server, start, policy, keep)


async def _open_thread(connection: Connection, start: TurnStart) -> Json:
    """Start, resume or fork the thread; return what Codex says of it.

    Raises:
        RpcError: It was refused, or there was no answer.
    """
    request = start.request
    params: Json = {
        "cwd": str(request.cwd),
        "sandbox": "read-only",
        "config": start.settings,
        **approvals_of(request),
    }
    if request.model is not None:
        params["model"] = request.model
    if request.base_instructions is not None:
        params["baseInstructions"] = request.base_instructions
    if request.ask_caller:
        params["dynamicTools"] = [ASK_CALLER]
    if request.thread_id is None:
        params["ephemeral"] = request.ephemeral
        return await connection.request("thread/start", params, THREAD_WITHIN_S)
    params |= {"threadId": request.thread_id, "excludeTurns": True}
    if request.fork:
        params["ephemeral"] = request.ephemeral
        return await connection.request("thread/fork", params, THREAD_WITHIN_S)
    return await connection.request("thread/resume", params, THREAD_WITHIN_S)


async def _begin(
    connection: Connection, handle: TurnHandle, start: TurnStart, policy: Json
) -> None:
    """Send the prompt, or what to review.

    Raises:
        RpcError: It was refused, or there was no answer.
    """
    request = start.request
    params: Json = {"threadId": handle.thread_id}
    if request.review is not None:
        params["target"] = _review_target(request)
        answer = await connection.request("review/start", params, ANSWER_WITHIN_S)
    else:
        images = [{"type": "localImage", "path": str(image)} for image in request.images]
        params |= {
            "input": [*images, {"type": "text", "text": request.prompt}],
            "cwd": str(request.cwd),
            "sandboxPolicy": policy,
            **approvals_of(request),
        }
        if request.model is not None:
            params["model"] = request.model
        if request.output_schema is not None:
            params["outputSchema"] = request.output_schema
        answer = await connection.request("turn/start", params, ANSWER_WITHIN_S)
    handle.turn_id = text_of(object_of(answer, "turn"), "id") or ""


def _review_target(request: TurnRequest) -> Json:
    assert request.review is not None
    name = request.review.name
    match request.review.kind:
        case "custom":
            return {"type": "custom", "instructions": request.prompt}
        case "uncommitted":
            return {"type": "uncommittedChanges"}
        case "base":
            return {"type": "baseBranch", "branch": name}
        case "commit":
            return {"type": "commit", "sha": name, "title": None}


async def _events(
    server: AppServer, start: TurnStart, policy: Json, keep: Keep
) -> AsyncGenerator[Event]:
    """Send the turn; yield warnings, its events, and an ExitedEvent.

    Raises:
        NotAllowed: A path leads elsewhere than when it was checked.
        WiderThanAsked: Codex took a wider sandbox than it was given.
    """

    def read(line: Json) -> Event:
        data = orjson.dumps(line)
        keep(data)
        return parse_event(data)

    child, connection, handle = server.child, server.connection, server.handle
    yield EngineEvent(AppServerEngine.name, handle)
    for notice in start.notices:
        yield NoticeEvent(notice)
    lines, writing = TurnLines(handle.thread_id), Writing(handle.thread_id)
    yield read({"type": "thread.started", "thread_id": handle.thread_id})
    # A spare was started in another folder, so its guard has not checked this one.
    await on_disk(check_unmoved, start.request)
    try:
        await _begin(connection, handle, start, policy)
    except RequestRefused as error:
        yield ExitedEvent(1, f"Error: {error.message}")
        return
    except RequestTimedOut:
        pass  # The turn may have begun: its events tell, or the time limit ends it.
    except RpcError:
        pass  # The app-server has ended; its exit is the last event.
    async with aclosing(connection.messages()) as messages:
        async for message in messages:
            if not isinstance(message, Notification) or message.method == RESOLVED:
                yield QuestionsEvent()
                continue
            if (text := writing.add(message)) is not None:
                yield WritingEvent(text)
            check_turn_echo(start.request, handle.thread_id, message, policy)
            for line in lines.add(message):
                yield read(line)
            handle.diff = lines.diff
            if lines.status is not None:
                handle.has_ended = True
                break
    if connection.first_unreadable is not None:
        yield UnreadableEvent(connection.first_unreadable.decode("utf-8", "replace"))
    await child.close_stdin()
    returncode = await child.wait()
    yield ExitedEvent(returncode, child.stderr_end())


async def _interrupt(handle: TurnHandle) -> None:
    """End a turn that is still running, so that its rollout tells of that."""
    if handle.is_running:
        with anyio.CancelScope(shield=True), suppress(RpcError):
            with anyio.move_on_after(INTERRUPT_WITHIN_S):
                await handle.interrupt()


async def _refused(start: TurnStart, message: str, returncode: int = 1) -> AsyncGenerator[Event]:
    """Yield the events of a turn that could not begin, as those of `codex exec`."""
    yield EngineEvent(AppServerEngine.name)
    for notice in start.notices:
        yield NoticeEvent(notice)
    yield ExitedEvent(returncode, message)
