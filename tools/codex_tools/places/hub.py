"""Share one process on a Ray cluster, which is connected to it, between all runs there.

Above some 50 runs, a process for each of them would take several GB (see `SHARED_ABOVE`). The
shared one is ray_place.py with --hub. It is started for the first run, and ends a while after the
last one. Each run has a channel in it: what its `Pipe` writes to a pipe is read here by a thread,
because pings must not wait for the event loop. If the process dies, its runs are lost and no other
ones; the next run starts another process.
"""

from __future__ import annotations

import itertools
import os
import select
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import anyio
from anyio.abc import TaskGroup, TaskStatus

from codex_tools.codex.place_errors import PlaceUnavailable
from codex_tools.codex.workers import on_disk
from codex_tools.engines.process import Child, open_child
from codex_tools.places.frames import Decoder, Frame, ProtocolError
from codex_tools.places.lease import HELLO_WITHIN_S, SentPings, now, wait_silent
from codex_tools.places.pipe import Link, resolve
from codex_tools.places.place import Place
from codex_tools.places.writer import FrameWriter

ROOM = 1024 * 1024
"""Most bytes of a channel that are on their way in one direction, so that no run that does not read
holds up another one. It is the same number as in ray_place.py."""

KEPT_FOR_S = 60.0
"""Seconds that the process is kept after the end of its last run."""

LAST_WORDS_WITHIN_S = 2.0
"""Seconds to wait for the exit of a process that has closed its output."""

_PIECE = 64 * 1024
_BACKLOG = 256 * 1024
_PAUSE_S = 0.005
_TICK_S = 1.0


class Hub:
    """What the runs at one place share; `Hub.opened` creates it."""

    def __init__(self, place: Place, tasks: TaskGroup) -> None:
        self._place, self._tasks = place, tasks
        self._starting = anyio.Lock()
        self._shared: _Shared | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, place: Place) -> AsyncGenerator[Hub]:
        """Start no process yet; one that was started meanwhile ends on leaving."""
        async with anyio.create_task_group() as tasks:
            try:
                yield cls(place, tasks)
            finally:
                tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def open(self, place: Place, source: IO[bytes]) -> AsyncGenerator[Link]:
        """Open a channel for a new worker, which reads *source*; see `Links.open`.

        Raises:
            PlaceUnavailable: The process cannot be started.
        """
        async with self._starting:
            shared = self._shared
            if shared is None or shared.has_ended or shared.is_doubtful:
                found: _Shared | Exception = await self._tasks.start(_host, self._place)
                if isinstance(found, Exception):
                    raise found
                self._shared = shared = found
            channel = shared.add(place, os.dup(source.fileno()))
        try:
            yield channel
        finally:
            shared.drop(channel)


class _Channel:
    """The link of one run."""

    def __init__(self, shared: _Shared, number: int, fd: int) -> None:
        self.number, self.fd = number, fd
        self.room = ROOM
        """Bytes that the process can take."""
        self.owed = 0
        """Bytes that were received, and not yet taken by the run."""
        self.is_dropped = False
        self.said = ""
        self._shared = shared
        send, receive = anyio.create_memory_object_stream[bytes](float("inf"))
        self._send, self._receive = send, receive

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield what the worker prints as it arrives."""
        with self._receive:
            async for piece in self._receive:
                yield piece
                self.owed -= len(piece)
                self._shared.give_room(self, len(piece))

    def stderr_end(self) -> str:
        """Return the end of what the worker wrote to stderr, or the process that runs share."""
        return self.said or self._shared.stderr_end()

    def receive(self, data: bytes) -> None:
        """Take output of the worker.

        Raises:
            ProtocolError: It is more than there is room for.
        """
        self.owed += len(data)
        if self.owed > ROOM:
            raise ProtocolError("a channel has sent more than it may")
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._send.send_nowait(data)

    def end(self) -> None:
        """End the output."""
        self._send.close()


class _Shared:
    """The process that runs share, while it lives."""

    def __init__(self, child: Child, writer: FrameWriter, pings: SentPings) -> None:
        self.has_ended = False
        self.unused_since = now()
        self._child, self._writer, self._pings = child, writer, pings
        self._numbers = itertools.count(1)
        self._channels: dict[int, _Channel] = {}
        self._lock = threading.Lock()
        """Guards what the thread `_pump` uses: the channels, their room, and what wakes it."""
        self._is_awake = True
        """True while the thread reads what wakes it; then the descriptors may be another file's."""
        self._wake, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)
        self._thread = threading.Thread(target=self._pump, name="hub", daemon=True)
        self._thread.start()

    def add(self, place: Place, fd: int) -> _Channel:
        """Return a new channel, which starts a worker that reads the descriptor *fd*."""
        channel = _Channel(self, next(self._numbers), fd)
        resources = dict(place.ray.resources or {"codex": 1}) if place.ray is not None else {}
        self._writer.put(
            Frame(
                "open",
                {
                    "channel": channel.number,
                    "worker": place.worker,
                    "resources": resources,
                    "node": place.node,
                },
            )
        )
        with self._lock:
            self._channels[channel.number] = channel
        self._wake_up()
        return channel

    def drop(self, channel: _Channel) -> None:
        """End a channel and its worker."""
        self._writer.put(Frame("kill", {"channel": channel.number}))
        channel.end()
        with self._lock:
            channel.is_dropped = True
            self.unused_since = now()
        self._wake_up()

    def give_room(self, channel: _Channel, count: int) -> None:
        """Let the process send *count* bytes more of a channel."""
        self._writer.put(Frame("room", {"channel": channel.number, "bytes": count}))

    def stderr_end(self) -> str:
        """Return the end of what the process wrote to stderr."""
        return self._child.stderr_end()

    @property
    def is_doubtful(self) -> bool:
        """True if it has not answered some pings: no new run may use it, as it may be stopped."""
        return now() - self._pings.heard_at > self._pings.length_s / 2

    @property
    def is_unused(self) -> bool:
        """True if there has been no channel for a while."""
        with self._lock:
            return not self._channels and now() - self.unused_since > KEPT_FOR_S

    async def read(self) -> None:
        """Pass what the process prints to the channels, until it ends.

        Raises:
            ProtocolError: It is not as it must be.
        """
        decoder = Decoder(greeting=True)
        async with aclosing(self._child.pieces()) as pieces:
            async for piece in pieces:
                for frame in decoder.feed(piece):
                    self._pings.heard_at = now()
                    if frame.type != "pong":
                        self._take(frame)
        with anyio.move_on_after(LAST_WORDS_WITHIN_S):
            await self._child.wait()

    def close(self) -> None:
        """End all channels: the process has ended, or is about to."""
        with self._lock:
            self.has_ended = True
            channels = [*self._channels.values()]
        for channel in channels:
            channel.end()
        self._wake_up()

    def _take(self, frame: Frame) -> None:
        with self._lock:
            channel = self._channels.get(frame.number("channel"))
        if channel is None:
            return  # It was dropped a moment ago.
        match frame.type:
            case "data":
                channel.receive(frame.body)
            case "room":
                with self._lock:
                    channel.room = min(channel.room + frame.number("bytes"), ROOM)
                self._wake_up()
            case "ended":
                channel.said = frame.body[-_PIECE:].decode("utf-8", "replace")
                channel.end()
            case _:
                raise ProtocolError(f"{frame.type[:40]!r} from the process that runs share")

    def _wake_up(self) -> None:
        with self._lock, suppress(BlockingIOError):  # So full that it wakes the thread anyway.
            if self._is_awake:
                os.write(self._wakes, b"w")

    def _pump(self) -> None:
        """Pass what the runs write to the process, a piece of each in turn."""
        closing: dict[int, _Channel] = {}
        while not self.has_ended:
            with self._lock:
                for channel in [*self._channels.values()]:
                    if channel.is_dropped:
                        del self._channels[channel.number]
                        closing[channel.number] = channel
                open_ = {each.fd: each for each in self._channels.values() if each.fd >= 0}
                usable = {fd: each for fd, each in open_.items() if each.room > 0}
            for channel in closing.values():
                _close(channel)
            closing.clear()
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            for fd in usable:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll():
                if fd == self._wake:
                    os.read(fd, 4096)
                else:
                    self._pass_on(usable[fd])
            while self._writer.waiting > _BACKLOG and not self.has_ended:
                threading.Event().wait(_PAUSE_S)
        with self._lock:
            channels = [*self._channels.values()]
            self._channels.clear()
            self._is_awake = False
            os.close(self._wake)
            os.close(self._wakes)
        for channel in channels:
            _close(channel)

    def _pass_on(self, channel: _Channel) -> None:
        data = os.read(channel.fd, min(_PIECE, channel.room))
        if not data:
            self._writer.put(Frame("end", {"channel": channel.number}))
            _close(channel)
            return
        with self._lock:
            channel.room -= len(data)
        self._writer.put(Frame("data", {"channel": channel.number}, data))


def _close(channel: _Channel) -> None:
    if channel.fd >= 0:
        os.close(channel.fd)
        channel.fd = -1


async def _host(
    place: Place, *, task_status: TaskStatus[_Shared | Exception] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Start the process and read what it prints, until it ends or is used no more."""
    is_started = False
    try:
        command = await on_disk(resolve, place, place.command_to_share())
        reading, writing = os.pipe()
        pings = SentPings(place.lease_s)
        writer = FrameWriter(writing, pings)
        # More time is given for the first answer; the pings come as often as later.
        pings.heard_at += max(0.0, HELLO_WITHIN_S - place.lease_s)
        try:
            with os.fdopen(reading, "rb", buffering=0) as source:
                async with open_child(
                    command, stdin=source, cwd=Path("/"), env=os.environ
                ) as child:
                    source.close()
                    shared = _Shared(child, writer, pings)
                    try:
                        task_status.started(shared)
                        is_started = True
                        await _serve(shared, pings)
                    finally:
                        shared.close()
        finally:
            writer.close(abandon=True)
    except (PlaceUnavailable, OSError) as error:
        if not is_started:
            failed = error.strerror or str(error) if isinstance(error, OSError) else ""
            task_status.started(PlaceUnavailable(place.name, failed) if failed else error)


async def _serve(shared: _Shared, pings: SentPings) -> None:
    async with anyio.create_task_group() as tasks:

        async def read() -> None:
            with suppress(ProtocolError):  # Its runs hear that their connection has ended.
                await shared.read()
            tasks.cancel_scope.cancel()

        async def watch() -> None:
            await wait_silent(pings)
            tasks.cancel_scope.cancel()

        tasks.start_soon(read)
        tasks.start_soon(watch)
        while not shared.is_unused:  # noqa: ASYNC110 - threads and the clock make it true
            await anyio.sleep(_TICK_S)
        tasks.cancel_scope.cancel()
