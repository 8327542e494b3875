"""Work for a server on another machine: lay out its project, run turns, send back what came of it.

A worker is started by the server's command for this place. It reads frames from stdin and writes
frames to stdout. It serves one run, and ends with its pipe or its lease. Codex is started as a
server here would start it: with this machine's environment, configuration and login.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, cast

import anyio
import orjson
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from codex_tools.codex.errors import CodexError, NotAllowed
from codex_tools.codex.events import (
    EngineEvent,
    ExitedEvent,
    NoticeEvent,
    ThreadStartedEvent,
)
from codex_tools.codex.json_object import Json
from codex_tools.codex.private_folder import claim_folder
from codex_tools.codex.program import Program
from codex_tools.codex.workers import on_disk
from codex_tools.engines.engine import Engine, TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.engines.guard_lease import GuardLease
from codex_tools.places import trees
from codex_tools.places.frames import PROTOCOL, Decoder, Frame, ProtocolError, pieces
from codex_tools.places.lease import Lease
from codex_tools.places.ray_place import NODE_VARIABLE
from codex_tools.places.rollout_follower import RolloutFollower
from codex_tools.places.wire_turn import dump_program, load_paths, load_turn, plain_path
from codex_tools.places.writer import FrameWriter
from codex_tools.rollouts.threads import Threads
from codex_tools.worktree.copies import Copy, clean_up, lay_out, open_copy
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import Snapshot, load_snapshot
from codex_tools.worktree.tree_error import CopyBusy, TreeError

PACK_LIMIT = 64 * 1024 * 1024 * 1024
"""Most bytes of a pack; the server sets the limit that counts, by its `max_tree_mb`."""

END_WITHIN_S = 15.0
"""Seconds to end all work after the end of the pipe; then this process ends at once."""

ENDED_WITHIN_S = 5.0
"""Seconds to wait for a copy in which another worker was that has lost its server."""

FOLLOW_EVERY_S = 0.2
"""Interval in seconds for sending what Codex has appended to a rollout."""

CLAIMS_KEPT_S = 30 * 24 * 3600.0
"""Seconds that the id of a run is kept, so that it never starts twice."""

KEPT_AT_LEAST_S = 3600.0
"""Seconds that a copy is kept, whatever `keep_days` says: after a lost connection, the server
fetches from it what the run has changed."""

_RUN_ID = 64


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker works with; its command line decides it."""

    engine: Engine
    threads: Threads
    state_dir: Path
    rules: EnvironmentRules
    check: Callable[[TurnRequest], TurnRequest]
    """Return the turn within this place's own limits; raise NotAllowed if it exceeds them."""
    lock_thread: Callable[[str], tuple[int, Callable[[], None]]]
    """Lock a thread: return a descriptor for Codex to inherit, and what releases the lock."""


async def serve(worker: Worker, source: int = 0, target: int = 1) -> None:
    """Serve the server at the other end of the descriptors *source* and *target*, until its end."""
    await _Service(worker, source, target).run()


class _Refused(Exception):
    """The worker cannot do what it was asked to."""

    def __init__(self, problem: str, kind: str = "") -> None:
        super().__init__(problem)
        self.kind = kind


class _Service:
    def __init__(self, worker: Worker, source: int, target: int) -> None:
        self._worker, self._source = worker, source
        self._writer = FrameWriter(target)
        self._lease: Lease | None = None
        self._guards: GuardLease | None = None
        self._program: Program | None = None
        self._shadow: Shadow | None = None
        self._snapshot: Snapshot | None = None
        self._copy: Copy | None = None
        self._turn: anyio.CancelScope | None = None
        self._spool: IO[bytes] | None = None
        self._images: list[bytes] = []
        send, receive = anyio.create_memory_object_stream[Frame](float("inf"))
        self._send: MemoryObjectSendStream[Frame] = send
        self._receive: MemoryObjectReceiveStream[Frame] = receive

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), name="pipe", daemon=True).start()
        async with anyio.create_task_group() as tasks:
            try:
                async for frame in self._receive:
                    if frame.type == "bye":
                        break
                    if frame.type == "stop":
                        if self._turn is not None:
                            self._turn.cancel()
                    elif self._turn is not None:
                        raise ProtocolError(f"{frame.type[:40]!r} during a turn")
                    elif frame.type == "turn":
                        self._turn = anyio.CancelScope()
                        tasks.start_soon(self._run_turn, frame, self._turn)
                    else:
                        await self._answer(frame)
            except ProtocolError as error:
                self._writer.put(Frame("refused", {"problem": str(error)}))
            finally:
                threading.Thread(target=_end_late, name="end", daemon=True).start()
                tasks.cancel_scope.cancel()
        if self._copy is not None:
            with suppress(OSError):
                os.utime(self._copy.place)  # It is kept for `keep_days` from now on.
            self._copy.close()
        self._writer.close()
        await on_disk(self._writer.join, 2.0)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the pipe, in a thread of its own: a ping must never wait for the event loop."""
        decoder = Decoder()
        try:
            while data := os.read(self._source, 1 << 18):
                for frame in decoder.feed(data):
                    if frame.type == "ping":
                        self._ping(frame)
                    elif frame.type == "pack":
                        self._spool = self._spool or tempfile.TemporaryFile()  # noqa: SIM115
                        self._spool.write(frame.body)
                    else:
                        loop.call_soon_threadsafe(self._send.send_nowait, frame)
        except (OSError, ProtocolError, RuntimeError):
            pass
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._send.close)

    def _ping(self, frame: Frame) -> None:
        lease = self._lease
        if lease is None or lease.renew(frame.seconds("sent")):
            self._writer.put(Frame("pong", {"sent": frame.seconds("sent")}), first=True)
            if self._guards is not None:
                self._guards.renew()

    def _watch_lease(self, lease: Lease) -> None:
        """End this process when the lease is over: then the guard ends what it has started."""
        while (left_s := lease.left_s()) > 0:
            time.sleep(min(left_s, 1.0))
        os._exit(3)

    async def _answer(self, frame: Frame) -> None:
        try:
            match frame.type:
                case "hello":
                    await self._greet(frame)
                case "project":
                    await self._open_project(frame)
                case "tree":
                    await self._lay(frame)
                case "image":
                    self._images.append(frame.body)
                case "collect":
                    await self._collect(frame)
                case "examine":
                    await self._examine()
                case _:
                    raise ProtocolError(f"an unknown frame {frame.type[:40]!r}")
        except (_Refused, CodexError, TreeError, OSError) as error:
            await self._refuse(error)

    async def _refuse(self, error: Exception) -> None:
        problem = str(error)
        if isinstance(error, OSError):
            problem = error.strerror or problem
        kind = "not_allowed" if isinstance(error, NotAllowed) else getattr(error, "kind", "")
        await self._writer.send(Frame("refused", {"problem": problem[:2000], "kind": str(kind)}))

    async def _greet(self, frame: Frame) -> None:
        if frame.number("protocol") != PROTOCOL:
            await self._writer.send(Frame("hello", {"protocol": PROTOCOL, "version": _version()}))
            return
        lease_s = frame.seconds("lease_s")
        self._lease, self._guards = Lease(lease_s), GuardLease(lease_s)
        watch = threading.Thread(
            target=self._watch_lease, args=(self._lease,), name="lease", daemon=True
        )
        watch.start()
        keep_s = max(frame.seconds("keep_days") * 86400, KEPT_AT_LEAST_S)
        await on_disk(self._claim_folders)
        worker = self._worker
        self._program = await worker.engine.prepare(worker.state_dir, worker.rules)
        await self._writer.send(
            Frame(
                "hello",
                {
                    "protocol": PROTOCOL,
                    "version": _version(),
                    "program": dump_program(self._program),
                    "python": sys.version.split()[0],
                    "node": os.environ.get(NODE_VARIABLE, ""),
                    "time": time.time(),
                },
            )
        )
        await on_disk(_clean_up, worker.state_dir, keep_s)

    def _claim_folders(self) -> None:
        for folder in (self._worker.state_dir, self._worker.state_dir / "claims"):
            claim_folder(folder)

    async def _open_project(self, frame: Frame) -> None:
        try:
            description: object = orjson.loads(frame.body)
        except ValueError:
            raise ProtocolError("a project is no JSON") from None
        if not isinstance(description, dict):
            raise ProtocolError("a project is no object")
        self._shadow = shadow = await on_disk(
            trees.open_project, self._worker.state_dir, cast(Json, description)
        )
        name = frame.fields.get("copy")
        if isinstance(name, str) and trees.is_copy_id(name):
            try:
                copy, self._snapshot = await on_disk(_reopen, shadow, name)
                self._copy = copy
                fields: Json = {"copy": copy.id, "folder": str(copy.folder)}
                await self._writer.send(Frame("project", {**fields, "known": []}))
                return
            except CopyBusy:
                raise
            except TreeError:
                pass  # It is no longer kept.
        known = await on_disk(trees.known_objects, shadow)
        await self._writer.send(Frame("project", {"copy": None, "known": known}))

    async def _lay(self, frame: Frame) -> None:
        if self._shadow is None or self._copy is not None:
            raise ProtocolError("a tree without a project")
        spool, self._spool = self._spool, None
        limit = frame.number("limit")
        self._snapshot, self._copy = await on_disk(
            _lay_out, self._shadow, spool, frame.body, frame.fields.get("history") is True, limit
        )
        copy = self._copy
        await self._writer.send(Frame("laid", {"copy": copy.id, "folder": str(copy.folder)}))

    async def _collect(self, frame: Frame) -> None:
        if self._shadow is None or self._snapshot is None or self._copy is None:
            raise ProtocolError("nothing to collect")
        limit = frame.number("limit")
        with tempfile.TemporaryFile() as pack:
            found, left_out = await on_disk(
                trees.collect, self._shadow, self._snapshot, self._copy, pack, limit
            )
            await self._writer.send(Frame("trees", body=trees.dump_trees(found, left_out)))
            while piece := await on_disk(pack.read, 1 << 18):
                await self._writer.send(Frame("pack", body=piece))
        await self._writer.send(Frame("collected"))

    async def _examine(self) -> None:
        if self._program is None:
            raise ProtocolError("nothing to examine")
        from codex_tools.places.examination import examine

        worker = self._worker
        found = await examine(
            self._program, worker.threads.home, worker.state_dir, worker.rules, self._guards
        )
        await self._writer.send(Frame("examined", found))

    async def _run_turn(self, frame: Frame, scope: anyio.CancelScope) -> None:
        """Run a turn; `dead` is sent when none of its processes is left."""
        follower: RolloutFollower | None = None
        with ExitStack() as stack:
            try:
                with scope:
                    try:
                        request = await self._prepare(frame, stack)
                        follower = RolloutFollower(
                            self._worker.threads, load_paths(frame.fields.get("sizes"))
                        )
                        if request.thread_id is not None:
                            await self._follow(follower, request.thread_id)
                        await self._play(request, follower)
                    except (_Refused, CodexError, TreeError, OSError) as error:
                        await self._refuse(error)
            except ProtocolError:
                pass  # The pipe has ended: `run` ends too.
            finally:
                with anyio.CancelScope(shield=True), suppress(ProtocolError):
                    if follower is not None:
                        await self._follow(follower, None)
                    self._turn = None
                    await self._writer.send(Frame("dead"))

    async def _prepare(self, frame: Frame, stack: ExitStack) -> TurnRequest:
        if self._copy is None or self._program is None:
            raise ProtocolError("a turn without a copy")
        sent = load_turn(frame.body)
        copy, folder = self._copy, self._copy.folder

        def at(path: str) -> Path:
            there = folder / plain_path(path)
            if not there.is_dir() or not Path(os.path.realpath(there)).is_relative_to(folder):
                raise _Refused(f"the folder {path!r} is not in the copy, because git ignores it")
            return there

        def ready() -> TurnRequest:
            rules = EnvironmentRules(
                self._worker.rules.passed,
                (*self._worker.rules.denied, *sent.request.environment.denied),
            )
            request = replace(
                sent.request,
                program=cast(Program, self._program),
                cwd=at(sent.cwd),
                add_dirs=tuple(map(at, sent.add_dirs)),
                images=self._write_images(sent.images, stack),
                environment=rules,
                project_files={},  # Nobody here has trusted the project.
                scratch=self._worker.state_dir / "scratch",
                lease=self._guards,
            )
            request = self._worker.check(request)
            held = [copy.lock_fd]
            if request.resumed is not None:
                fd, release = self._worker.lock_thread(request.resumed)
                stack.callback(release)
                held.append(fd)
            self._claim(frame)
            return replace(request, held=tuple(held))

        return await on_disk(ready)

    def _claim(self, frame: Frame) -> None:
        """Take the id of the turn, so that no turn runs twice whatever is sent twice.

        Raises:
            _Refused: It was taken before.
        """
        run_id, number = frame.text("run_id"), frame.number("number")
        if not run_id.replace("_", "").replace("-", "").isalnum() or len(run_id) > _RUN_ID:
            raise _Refused("the id of the run cannot be right")
        try:
            os.close(
                os.open(
                    self._worker.state_dir / "claims" / f"{run_id}.{number}",
                    os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                    0o600,
                )
            )
        except FileExistsError:
            raise _Refused(f"turn {number} of {run_id} was started before", "twice") from None

    def _write_images(self, names: Sequence[str], stack: ExitStack) -> tuple[Path, ...]:
        images, self._images = self._images, []
        if not names:
            return ()
        if len(names) != len(images):
            raise ProtocolError("images are missing")
        base = self._worker.state_dir.resolve()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="images-", dir=base)))
        written: list[Path] = []
        for number, (suffix, data) in enumerate(zip(names, images, strict=True)):
            end = suffix if suffix[1:].isalnum() and suffix.startswith(".") else ""
            written.append(folder / f"{number}{end[:10]}")
            written[-1].write_bytes(data)
        return tuple(written)

    async def _play(self, request: TurnRequest, follower: RolloutFollower) -> None:
        lines: list[bytes] = []
        send = self._writer.send
        async with (
            self._worker.engine.open_turn(request, lines.append) as events,
            anyio.create_task_group() as tasks,
        ):
            async for event in events:
                for line in lines:
                    await send(Frame("event", body=line))
                lines.clear()
                if isinstance(event, EngineEvent):
                    await send(Frame("started", {"engine": event.name}))
                elif isinstance(event, NoticeEvent):
                    await send(Frame("notice", body=event.message.encode("utf-8", "replace")))
                elif isinstance(event, ThreadStartedEvent):
                    tasks.start_soon(self._keep_following, follower, event.thread_id)
                elif isinstance(event, ExitedEvent):
                    said = event.stderr.encode("utf-8", "replace")
                    await send(Frame("exited", {"returncode": event.returncode}, said))
            tasks.cancel_scope.cancel()

    async def _keep_following(self, follower: RolloutFollower, thread_id: str) -> None:
        follower.thread_id = thread_id
        while True:
            await self._follow(follower, thread_id)
            await anyio.sleep(FOLLOW_EVERY_S)

    async def _follow(self, follower: RolloutFollower, thread_id: str | None) -> None:
        """Send what was appended to the thread's rollouts since the last time."""
        if thread_id is not None:
            follower.thread_id = thread_id
        while news := await on_disk(follower.news):
            for path, offset, data in news:
                at = offset
                for piece in pieces(data):
                    await self._writer.send(Frame("rollout", {"path": path, "offset": at}, piece))
                    at += len(piece)


def _reopen(shadow: Shadow, name: str) -> tuple[Copy, Snapshot]:
    until = time.monotonic() + ENDED_WITHIN_S
    while True:
        try:
            copy = open_copy(shadow, name)
            break
        except CopyBusy:
            if time.monotonic() >= until:
                raise
            time.sleep(0.1)
    try:
        snapshot = load_snapshot(shadow, copy.snapshot)
        os.utime(copy.place)
    except BaseException:
        copy.close()
        raise
    return copy, snapshot


def _lay_out(
    shadow: Shadow, pack: IO[bytes] | None, description: bytes, has_history: bool, limit: int
) -> tuple[Snapshot, Copy]:
    if pack is not None:
        with pack:
            pack.flush()
            pack.seek(0)
            trees.unpack(shadow.git(), pack, min(limit, PACK_LIMIT), strict=False)
    snapshot = trees.receive_snapshot(shadow, description, has_history=has_history)
    return snapshot, lay_out(shadow, snapshot)


def _clean_up(state_dir: Path, older_than_s: float) -> None:
    with suppress(OSError, TreeError):
        clean_up(state_dir, older_than_s)
    for claim in (state_dir / "claims").glob("*"):
        with suppress(OSError):
            if time.time() - claim.stat().st_mtime > CLAIMS_KEPT_S:
                claim.unlink()


def _end_late() -> None:
    """End this process if it has not ended by itself; the guards end with it."""
    time.sleep(END_WITHIN_S)
    os._exit(4)


def _version() -> str:
    try:
        return version("mcp-server-codex")
    except PackageNotFoundError:
        return "unknown"
