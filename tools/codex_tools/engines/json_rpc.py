"""Speak JSON-RPC with a guarded child, one JSON object a line, as Codex's app-server does.

Both sides send requests, and both number them from 0 or 1, so the ids overlap. A message with
`method` comes from the child's own will; one without is the response to a request of ours. The
messages have no member `jsonrpc`. Everything that the child writes is foreign: a message of any
size or shape, responses that nobody asked for, no response at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import cast

import anyio
import orjson

from codex_tools.codex.json_object import Json, object_of, text_of, write_exactly
from codex_tools.codex.masking import quote
from codex_tools.engines.process import Child

UNREAD_LIMIT = 64 * 1024 * 1024
"""Bytes of notifications that may wait to be taken; above it, the child's output waits.

One message has 32 MB at most (see LINE_LIMIT of process.py).
"""

UNREAD_COUNT = 10_000
"""Notifications that may wait to be taken."""

UNSENT_COUNT = 1_000
"""Messages that may wait to be written. A child that asks more and reads nothing is given up."""

MESSAGE_LIMIT = 500
"""Characters kept of an error's message; that for an unknown method names all methods, in 6 KB."""

NAME_LIMIT = 200
"""Longest name of a method and longest id; a message with a longer one is dropped."""

NOT_FOUND = -32601
"""Error code for a method that this side does not have."""

RequestId = int | str


class RpcError(Exception):
    """A request got no result."""


class RequestRefused(RpcError):
    """The child answered a request with an error."""

    def __init__(self, message: str, code: int | None = None, data: Json | None = None) -> None:
        super().__init__(message)
        self.message, self.code, self.data = message, code, data or {}


class RequestTimedOut(RpcError):
    """The child did not answer a request in time; a later answer is ignored."""


class ConnectionEnded(RpcError):
    """The child has ended, has closed its output, or no longer reads its input."""


@dataclass(frozen=True, slots=True)
class Notification:
    """A message of the child that wants no response."""

    method: str
    params: Json


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """A request of the child, which waits for its response."""

    id: RequestId
    method: str
    params: Json


Incoming = Notification | ServerRequest

Decide = Callable[[ServerRequest], Json | None]
"""Function that returns the result of a request of the child at once.

It may return None and call `Connection.respond` later. It raises LookupError for a method that it
does not know. It must not wait.
"""

Observe = Callable[[Notification], None]
"""Function that sees each notification as it arrives, before `messages` yields it."""

Background = Callable[[], Coroutine[object, object, None]]
"""Function to run while the connection is open."""


@dataclass(slots=True)
class _Waiter:
    done: anyio.Event
    result: Json | None = None
    error: RpcError | None = None


class Connection:
    """A JSON-RPC connection to a child; `open_connection` creates it."""

    def __init__(self, child: Child, decide: Decide, observe: Observe | None = None) -> None:
        self._child = child
        self._decide = decide
        self._observe = observe
        self._number = 0
        self._waiters: dict[int, _Waiter] = {}
        self._open_requests: set[RequestId] = set()
        self._unread: deque[tuple[Incoming, int]] = deque()
        self._unread_size = 0
        self._changed = anyio.Event()
        self._unsent: deque[bytes] = deque()
        self._to_send = anyio.Event()
        self._ended = anyio.Event()
        self.unreadable = 0
        """Number of lines that were no message."""
        self.first_unreadable: bytes | None = None
        """The first 200 bytes of the first such line; a wrapper's words, for example."""

    @property
    def has_ended(self) -> bool:
        """True if the child can no longer answer."""
        return self._ended.is_set()

    async def request(self, method: str, params: Json, timeout_s: float) -> Json:
        """Send a request and return its result, an empty object for a result that is none.

        Args:
            method: The method.
            params: Its parameters; the app-server wants the member even if it is empty.
            timeout_s: Seconds to wait for the response.

        Raises:
            RequestRefused: The child answered with an error.
            RequestTimedOut: The child did not answer within *timeout_s*.
            ConnectionEnded: The child ended before it answered.
        """
        self._number += 1
        number, waiter = self._number, _Waiter(anyio.Event())
        self._waiters[number] = waiter
        try:
            self._send({"id": number, "method": method, "params": params})
            with anyio.move_on_after(timeout_s):
                await waiter.done.wait()
        finally:
            del self._waiters[number]
        if waiter.error is not None:
            raise waiter.error
        if waiter.result is None:
            raise RequestTimedOut(f"no answer to {method} within {timeout_s:g} s")
        return waiter.result

    def notify(self, method: str) -> None:
        """Send a notification without parameters.

        Raises:
            ConnectionEnded: The child can no longer be spoken to.
        """
        self._send({"method": method})

    def respond(self, request: ServerRequest, result: Json) -> bool:
        """Answer *request* with *result*; return False if it was answered before."""
        return self._answer(request.id, {"id": request.id, "result": result})

    def refuse(self, request: ServerRequest, message: str, code: int = NOT_FOUND) -> bool:
        """Answer *request* with an error; return False if it was answered before."""
        error = {"code": code, "message": message}
        return self._answer(request.id, {"id": request.id, "error": error})

    def forget(self, request: ServerRequest) -> None:
        """Do not answer *request*: the child said that it no longer waits for it."""
        self._open_requests.discard(request.id)

    async def messages(self) -> AsyncGenerator[Incoming]:
        """Yield notifications and requests of the child in their order, until it ends.

        A request that *decide* has answered is not yielded.
        """
        while True:
            while self._unread:
                message, size = self._unread.popleft()
                self._unread_size -= size
                self._wake()
                yield message
            if self._ended.is_set():
                return
            await self._changed.wait()

    async def read(self) -> None:
        """Read the child's output until it ends; then end all that wait."""
        try:
            async with aclosing(self._child.lines()) as lines:
                async for line in lines:
                    if line.strip():
                        self._take(line)
                    while self._is_full() and not self._ended.is_set():
                        await self._changed.wait()
        finally:
            self._end()

    async def write(self) -> None:
        """Write what is to be sent, until the child no longer reads."""
        try:
            while not self._ended.is_set():
                while self._unsent:
                    await self._child.write(self._unsent.popleft())
                self._to_send = anyio.Event()
                await self._to_send.wait()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # Its output may still hold answers; `read` sees its end.

    def _is_full(self) -> bool:
        return self._unread_size > UNREAD_LIMIT or len(self._unread) > UNREAD_COUNT

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _end(self) -> None:
        self._ended.set()
        for waiter in self._waiters.values():
            if not waiter.done.is_set():
                waiter.error = ConnectionEnded("Codex's app-server has ended")
                waiter.done.set()
        self._wake()
        self._to_send.set()

    def _send(self, message: Json) -> None:
        if self._ended.is_set():
            raise ConnectionEnded("Codex's app-server has ended")
        if len(self._unsent) >= UNSENT_COUNT:
            self._end()
            raise ConnectionEnded("Codex's app-server does not read what it is sent")
        self._unsent.append(write_exactly(message) + b"\n")
        self._to_send.set()

    def _answer(self, request_id: RequestId, message: Json) -> bool:
        if request_id not in self._open_requests:
            return False
        self._open_requests.discard(request_id)
        try:
            self._send(message)
        except ConnectionEnded:
            return False
        return True

    def _take(self, line: bytes) -> None:
        try:
            data = orjson.loads(line)
        except orjson.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            self.unreadable += 1
            self.first_unreadable = self.first_unreadable or line[:200]
            return
        message = cast(Json, data)
        method = message.get("method")
        if not isinstance(method, str):
            self._take_response(message)
            return
        params = object_of(message, "params")
        request_id = message.get("id")
        if max(len(method), len(request_id) if isinstance(request_id, str) else 0) > NAME_LIMIT:
            self.unreadable += 1
        elif isinstance(request_id, str) or type(request_id) is int:
            self._take_request(ServerRequest(request_id, method, params), len(line))
        else:
            notification = Notification(method, params)
            if self._observe is not None:
                self._observe(notification)
            self._keep(notification, len(line))

    def _take_request(self, request: ServerRequest, size: int) -> None:
        self._open_requests.add(request.id)
        try:
            result = self._decide(request)
        except LookupError:
            self.refuse(request, f"this client has no method {request.method}")
            return
        if result is None:
            self._keep(request, size)
        else:
            self.respond(request, result)

    def _keep(self, message: Incoming, size: int) -> None:
        self._unread.append((message, size))
        self._unread_size += size
        self._wake()

    def _take_response(self, message: Json) -> None:
        number = message.get("id")
        waiter = self._waiters.get(number) if type(number) is int else None
        if waiter is None or waiter.done.is_set():
            return  # Too late, or nobody asked.
        if "error" in message:
            error = object_of(message, "error")
            code = error.get("code")
            waiter.error = RequestRefused(
                quote(text_of(error, "message") or "an error without a message", MESSAGE_LIMIT),
                code if type(code) is int else None,
                object_of(error, "data"),
            )
        else:
            waiter.result = object_of(message, "result")
        waiter.done.set()


@asynccontextmanager
async def open_connection(
    child: Child,
    decide: Decide,
    observe: Observe | None = None,
    background: Background | None = None,
) -> AsyncGenerator[Connection]:
    """Speak JSON-RPC with *child*, whose stdin is open; stop when the context manager exits.

    Args:
        child: The child.
        decide: Returns the results of its requests.
        observe: Sees each notification as it arrives.
        background: Runs until the context manager exits.
    """
    connection = Connection(child, decide, observe)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.read)
        tasks.start_soon(connection.write)
        if background is not None:
            tasks.start_soon(background)
        try:
            yield connection
        except Exception as error:  # Raised again below: the task group would wrap it.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
