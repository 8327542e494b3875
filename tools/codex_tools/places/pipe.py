"""Reach a worker: start the command of a place, greet the worker and exchange frames with it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from codex_tools.codex.json_object import Json
from codex_tools.codex.masking import quote
from codex_tools.codex.place_errors import PlaceUnavailable
from codex_tools.codex.program import Program
from codex_tools.codex.workers import on_disk
from codex_tools.engines.process import open_child
from codex_tools.places.frames import PROTOCOL, Decoder, Frame, ProtocolError
from codex_tools.places.lease import (
    HELLO_WITHIN_S,
    MARGIN_S,
    TICK_S,
    SentPings,
    now,
    wait_silent,
)
from codex_tools.places.place import NODE, Place
from codex_tools.places.wire_turn import load_program
from codex_tools.places.writer import FrameWriter

BYE_WITHIN_S = 2.0
"""Seconds for a worker to end after it was asked to; then its pipe is closed."""

_BATCHES = 4
_SAID = 300


class PipeEnded(Exception):
    """The connection to a worker has ended, or the worker is silent."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first answer of a worker."""

    version: str
    """The version of the worker's package."""
    program: Program
    """The Codex of the place."""
    fields: Json
    """All that the worker said of itself."""

    @property
    def node(self) -> str:
        """The machine of a Ray cluster on which the worker runs; empty elsewhere."""
        node = self.fields.get("node")
        return node if isinstance(node, str) and NODE.fullmatch(node) else ""


class Link(Protocol):
    """What carries the bytes of one worker, which reads what is written to the link's source."""

    def pieces(self) -> AsyncGenerator[bytes]:
        """Yield what the worker prints as it arrives."""
        ...

    def stderr_end(self) -> str:
        """Return the end of what the worker, or the command that reaches it, wrote to stderr."""
        ...


class Links(Protocol):
    """Opens links to the workers of a place."""

    def open(self, place: Place, source: IO[bytes]) -> AbstractAsyncContextManager[Link]:
        """Open a link to a new worker, which ends on leaving."""
        ...


class Pipe:
    """A connection to a worker; `open_pipe` creates it."""

    def __init__(
        self, place: Place, link: Link, writer: FrameWriter, pings: SentPings, margin_s: float
    ) -> None:
        self.place, self._margin_s = place, margin_s
        self._link, self._writer, self._pings = link, writer, pings
        self.echo_s: float | None = None
        """Seconds from the latest ping that was answered to its answer."""
        self._handing = False
        self._ready: deque[Frame] = deque()
        send, receive = anyio.create_memory_object_stream[list[Frame]](_BATCHES)
        self._send: MemoryObjectSendStream[list[Frame]] = send
        self._receive: MemoryObjectReceiveStream[list[Frame]] = receive
        self._problem = ""
        # A run that is cancelled must still be able to fetch what it has changed.
        self._reading = anyio.CancelScope(shield=True)

    @property
    def has_failed(self) -> bool:
        """True if the connection was given up."""
        return bool(self._problem)

    @property
    def problem(self) -> str:
        """Why the connection has ended."""
        said = quote(self._link.stderr_end()[-_SAID:].strip(), _SAID)
        problem = self._problem or "the connection ended"
        return f"{problem} ({said})" if said else problem

    async def send(self, frame: Frame) -> None:
        """Send a frame.

        Raises:
            PipeEnded: The connection has ended.
        """
        try:
            await self._writer.send(frame)
        except ProtocolError as error:
            self._problem = self._problem or str(error)
            raise PipeEnded(self.problem) from error

    def put(self, frame: Frame) -> None:
        """Send a frame soon, without waiting; nothing happens if the connection has ended."""
        self._writer.put(frame)

    async def next(self) -> Frame:
        """Return the next frame of the worker.

        Raises:
            PipeEnded: The connection has ended, or the worker was silent for its lease.
        """
        while not self._ready:
            try:
                self._ready.extend(await self._receive.receive())
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                raise PipeEnded(self.problem) from None
        return self._ready.popleft()

    async def expect(self, type_: str) -> Frame:
        """Return the next frame, which must be of this type.

        Raises:
            PipeEnded: The connection has ended.
            ProtocolError: Another frame arrived.
        """
        frame = await self.next()
        if frame.type != type_:
            raise ProtocolError(f"{frame.type[:40]!r} instead of {type_!r}")
        return frame

    def fail(self, problem: str) -> None:
        """Note why the connection is given up; send no more pings."""
        self._problem = self._problem or problem
        self._writer.stop_pings()

    async def wait_dead(self) -> None:
        """Wait until the worker has ended all work, because its lease is over.

        No wait is needed for a worker on this machine: its guard has killed it by then.
        """
        self._writer.stop_pings()
        if not self.place.argv and self.place.ray is None:
            return
        # A sleep does not count while the machine is suspended, but this clock does.
        while (left_s := self._pings.dead_at(self._margin_s) - now()) > 0:  # noqa: ASYNC110
            await anyio.sleep(min(left_s, TICK_S))

    async def read(self) -> None:
        """Read frames until the connection ends, or `close` is called."""
        with self._reading:
            await self._read()

    async def _read(self) -> None:
        decoder = Decoder(greeting=True)
        try:
            async with self._send, aclosing(self._link.pieces()) as pieces:
                async for piece in pieces:
                    self._pings.heard_at = now()
                    batch: list[Frame] = []
                    for frame in decoder.feed(piece):
                        if frame.type != "pong":
                            batch.append(frame)
                        elif "sent" in frame.fields:
                            self.echo_s = now() - frame.seconds("sent")
                    if batch:
                        self._handing = True
                        await self._send.send(batch)
                        self._handing = False
                        self._pings.heard_at = now()
        except ProtocolError as error:
            self._problem = self._problem or f"it broke the protocol: {error}"
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            self._writer.stop_pings()

    async def watch(self) -> None:
        """End the connection when the worker is silent for its lease."""
        await wait_silent(self._pings, lambda: self._handing)
        self.fail(f"nothing was heard of it for {self._pings.length_s:g} s")
        self._receive.close()

    def close(self) -> None:
        """Close what the process has of the connection."""
        self._reading.cancel()
        self._send.close()
        self._receive.close()


@asynccontextmanager
async def open_pipe(
    place: Place,
    *,
    margin_s: float = MARGIN_S,
    hello: Json | None = None,
    links: Links | None = None,
) -> AsyncGenerator[tuple[Pipe, Hello]]:
    """Start the command of *place* and greet the worker; its end is ordered on leaving.

    Args:
        place: The place.
        margin_s: Seconds beyond the lease, see `SentPings.dead_at`.
        hello: Further fields of the greeting.
        links: What opens the link to the worker; None to start the command of the place for it.

    Raises:
        PlaceUnavailable: There is no worker, no answer, or another protocol.
    """
    reading, writing = os.pipe()
    pings = SentPings(place.lease_s)
    writer = FrameWriter(writing, pings)
    failure: BaseException | None = None
    try:
        with os.fdopen(reading, "rb", buffering=0) as source:
            async with (
                _open_link(place, source, links) as link,
                anyio.create_task_group() as tasks,
            ):
                source.close()
                pipe = Pipe(place, link, writer, pings, margin_s)
                tasks.start_soon(pipe.read)
                try:
                    answer = await _greet(pipe, place, hello or {})
                    tasks.start_soon(pipe.watch)
                    yield pipe, answer
                except Exception as error:  # Raised again below: the task group would wrap it.
                    failure = error
                finally:
                    writer.put(Frame("bye"))
                    writer.close()
                    with anyio.move_on_after(BYE_WITHIN_S, shield=True), suppress(PipeEnded):
                        while not pipe.has_failed and await pipe.next():
                            pass
                    writer.close(abandon=True)
                    pipe.close()
                    tasks.cancel_scope.cancel()
    except OSError as error:
        raise PlaceUnavailable(place.name, error.strerror or str(error)) from error
    finally:
        writer.close(abandon=True)
    if failure is not None:
        raise failure


async def _greet(pipe: Pipe, place: Place, more: Json) -> Hello:
    greeting = {"protocol": PROTOCOL, "lease_s": place.lease_s, "keep_days": place.keep_days}
    try:
        with anyio.fail_after(HELLO_WITHIN_S):
            await pipe.send(Frame("hello", {**greeting, **more}))
            frame = await pipe.next()
            if frame.type == "refused":
                kind = str(frame.fields.get("kind"))[:40]
                raise PlaceUnavailable(place.name, quote(frame.text("problem"), _SAID), kind)
            if frame.type != "hello":
                raise ProtocolError(f"{frame.type[:40]!r} instead of 'hello'")
            if frame.number("protocol") != PROTOCOL:
                raise PlaceUnavailable(
                    place.name,
                    f"its worker speaks version {frame.number('protocol')} of the protocol, this"
                    f" server version {PROTOCOL}: install the same version there",
                )
            return Hello(
                frame.text("version")[:100],
                load_program(frame.fields.get("program")),
                frame.fields,
            )
    except TimeoutError:
        problem = f"there was no answer within {HELLO_WITHIN_S:g} s"
        raise PlaceUnavailable(place.name, problem) from None
    except (PipeEnded, ProtocolError) as error:
        raise PlaceUnavailable(place.name, str(error)) from error


@asynccontextmanager
async def _open_link(place: Place, source: IO[bytes], links: Links | None) -> AsyncGenerator[Link]:
    if links is not None:
        async with links.open(place, source) as link:
            yield link
        return
    command = await on_disk(resolve, place, place.command_to_run())
    async with open_child(command, stdin=source, cwd=Path("/"), env=os.environ) as child:
        yield child


def resolve(place: Place, command: Sequence[str]) -> list[str]:
    """Return *command*, which reaches *place*, with the path of its program.

    Raises:
        PlaceUnavailable: There is no such program.
    """
    import shutil

    found = shutil.which(command[0])
    if found is None:
        raise PlaceUnavailable(place.name, f"there is no program {command[0]!r} on PATH")
    return [str(Path(found).absolute()), *command[1:]]
