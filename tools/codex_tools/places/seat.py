"""Hold a worker with a copy of the project, in which the turns of one run work: an engine.

A seat lives longer than a turn. Repairs of an answer, and a later run in the same thread, work in
the same copy.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from pathlib import Path
from typing import IO, cast

import anyio

from codex_tools.codex.events import (
    EngineEvent,
    Event,
    ExitedEvent,
    NoticeEvent,
    ThreadStartedEvent,
    parse_event,
)
from codex_tools.codex.masking import mask, quote
from codex_tools.codex.place_errors import PlaceLost, PlaceRefused, PlaceUnavailable
from codex_tools.codex.program import Program
from codex_tools.codex.turn_result import TurnResult
from codex_tools.codex.workers import on_disk
from codex_tools.engines.engine import Keep, Plan, TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.engines.model_list import ModelList
from codex_tools.places.frames import Frame, ProtocolError
from codex_tools.places.lease import MARGIN_S
from codex_tools.places.mirror import Mirror
from codex_tools.places.pipe import Hello, Links, Pipe, PipeEnded, open_pipe
from codex_tools.places.place import Place
from codex_tools.places.trees import (
    changes_from,
    describe_project,
    make_parcel,
    pack_snapshot,
    read_trees,
    unpack,
)
from codex_tools.places.wire_turn import dump_turn
from codex_tools.worktree.scan import LeftOut
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import Snapshot
from codex_tools.worktree.tree_changes import Changes
from codex_tools.worktree.tree_error import TreeError

END_WITHIN_S = 10.0
"""Seconds for the place to say that all processes of a turn are dead, after its end or a stop."""

LAY_WITHIN_S = 1800.0
"""Seconds to send a project and to lay it out; the first pack of a large one takes minutes."""

COLLECT_WITHIN_S = 600.0
"""Seconds to find what was changed in a copy, and to send it."""

_ENGINES = ("exec", "app-server")
_PIECE = 256 * 1024
_MB = 1024 * 1024
_NOTICE = 2000


class Seat:
    """A worker in use by one run; `open_seat` creates it."""

    name = "exec"

    def __init__(
        self, pipe: Pipe, hello: Hello, mirror: Mirror, run_id: str, shadow: Shadow
    ) -> None:
        self._pipe, self._hello, self._mirror = pipe, hello, mirror
        self._run_id, self._shadow = run_id, shadow
        self._turns = 0
        self._is_collecting = False
        self._threads: set[str] = set()
        """The threads whose rollouts this seat may send."""
        self._limit = int(pipe.place.max_tree_mb * _MB)
        self.copy = ""
        """The id of the copy at the place."""
        self.folder = Path("/")
        """The folder of the copy there."""
        self.snapshot: Snapshot | None = None
        """The snapshot that was sent; None if the copy was laid out for an earlier run."""
        self.warnings: list[str] = []

    @property
    def place(self) -> Place:
        """The place of the seat."""
        return self._pipe.place

    @property
    def node(self) -> str:
        """The machine of the place, if it has several; see `Hello.node`."""
        return self._hello.node

    @property
    def program(self) -> Program:
        """The Codex of the place."""
        return self._hello.program

    @property
    def is_lost(self) -> bool:
        """True if the connection was given up, or has ended."""
        return self._pipe.has_failed

    async def reopen(self, copy: str | None) -> Sequence[str] | None:
        """Open the project at the place, and the *copy* of an earlier run if it is still kept.

        Returns:
            None if that copy is open; else the objects that the place says it has.

        Raises:
            PlaceUnavailable: The place cannot do it.
        """
        body = json.dumps(describe_project(self._shadow)).encode()
        with self._unavailable():
            await self._pipe.send(Frame("project", {"copy": copy}, body))
            answer = await self._answer("project")
            if copy is not None and answer.fields.get("copy") == copy:
                self._settle(answer)
                return None
            known: object = answer.fields.get("known")
            return [*map(str, cast("list[object]", known))] if isinstance(known, list) else []

    async def lay(self, snapshot: Snapshot, known: Sequence[str]) -> None:
        """Send *snapshot* to the place, which lays it out as a new copy.

        Raises:
            PlaceUnavailable: The place cannot do it, or the project is too large for it.
            TreeError: git failed here.
        """
        carry, limit = self.place.carry, self._limit
        parcel = await on_disk(lambda: make_parcel(self._shadow, snapshot, carry=carry))
        self.warnings += parcel.warnings
        with tempfile.TemporaryFile() as pack, self._unavailable():
            try:
                has_history = await on_disk(
                    pack_snapshot, self._shadow, parcel.snapshot, known, pack, limit
                )
            except TreeError as error:
                raise PlaceUnavailable(self.place.name, str(error)) from error
            with anyio.fail_after(LAY_WITHIN_S):
                await self._send_pack(pack)
                fields = {"history": has_history, "limit": limit}
                await self._pipe.send(Frame("tree", fields, parcel.description))
                self._settle(await self._answer("laid"))
        self.snapshot = parcel.snapshot

    async def collect(self, before: Snapshot) -> Changes:
        """Fetch what was changed in the copy since the snapshot *before*.

        Raises:
            TreeError: The place did not send it, or sent what no honest place sends.
        """
        try:
            with anyio.fail_after(COLLECT_WITHIN_S), tempfile.TemporaryFile() as pack:
                while self._is_collecting:  # An earlier call was cancelled: skip its frames.
                    kind = (await self._pipe.next()).type
                    self._is_collecting = kind not in ("collected", "refused")
                await self._pipe.send(Frame("collect", {"limit": self._limit}))
                self._is_collecting = True
                trees, left_out = await on_disk(read_trees, (await self._answer("trees")).body)
                size = 0
                while (frame := await self._pipe.next()).type == "pack":
                    size += len(frame.body)
                    if size > self._limit:
                        raise ProtocolError("the pack is larger than max_tree_mb")
                    await on_disk(pack.write, frame.body)
                self._is_collecting = False
                if frame.type != "collected":
                    raise ProtocolError(f"{frame.type[:40]!r} instead of 'collected'")
                return await on_disk(self._compare, before, trees, left_out, pack)
        except ProtocolError as error:
            self._pipe.fail(str(error))
            raise TreeError(f"the place {self.place.name} broke the protocol: {error}") from error
        except (PipeEnded, PlaceUnavailable) as error:
            self._is_collecting = False
            raise TreeError(f"the place {self.place.name} did not send them: {error}") from error
        except TimeoutError:
            problem = f"did not send them within {COLLECT_WITHIN_S:g} s"
            raise TreeError(f"the place {self.place.name} {problem}") from None

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Keep nothing ready; see `Engine.opened`."""
        return nullcontext()

    async def prepare(self, cwd: Path, rules: EnvironmentRules) -> Program:
        """Return the Codex of the place; see `Engine.prepare`."""
        return self.program

    async def plan_turn(self, request: TurnRequest) -> Plan:
        """Return what is started here for a turn; see `Engine.plan_turn`."""
        return Plan(tuple(mask(each) for each in self.place.command), ())

    async def list_models(self, program: Program, rules: EnvironmentRules) -> ModelList | None:
        """Return None: the place is not asked for its models; see `Engine.list_models`."""
        return None

    @asynccontextmanager
    async def open_turn(
        self, request: TurnRequest, keep: Keep
    ) -> AsyncGenerator[AsyncGenerator[Event]]:
        """Start a turn at the place and yield its events; see `Engine.open_turn`."""
        self._turns += 1
        turn = _Turn()
        if request.thread_id is not None:
            self._threads.add(request.thread_id)
        body = await on_disk(dump_turn, request, self.folder)
        sizes: dict[str, int] = {}
        for thread_id in self._threads:
            sizes |= await on_disk(self._mirror.sizes, thread_id)
        images = [await on_disk(each.read_bytes) for each in request.images]
        try:
            async with aclosing(self._events(turn, keep)) as events:
                try:
                    for image in images:
                        await self._pipe.send(Frame("image", body=image))
                    fields = {"run_id": self._run_id, "number": self._turns, "sizes": sizes}
                    await self._pipe.send(Frame("turn", fields, body))
                except PipeEnded as error:
                    raise PlaceUnavailable(self.place.name, str(error)) from error
                yield events
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(turn)

    async def _events(self, turn: _Turn, keep: Keep) -> AsyncGenerator[Event]:
        try:
            while True:
                frame = await self._pipe.next()
                match frame.type:
                    case "started":
                        name = frame.text("engine")
                        if name not in _ENGINES:
                            raise ProtocolError(f"{name[:40]!r} is no engine")
                        yield EngineEvent(name)
                    case "event":
                        event = parse_event(frame.body)
                        if isinstance(event, ThreadStartedEvent) and not turn.opened:
                            turn.opened = event.thread_id
                            if event.thread_id not in self._threads:
                                await on_disk(self._mirror.check_new, event.thread_id)
                                self._threads.add(event.thread_id)
                        keep(frame.body)
                        yield event
                    case "notice":
                        yield NoticeEvent(quote(frame.body.decode("utf-8", "replace"), _NOTICE))
                    case "exited":
                        code = frame.fields.get("returncode")
                        turn.has_exited = True
                        yield ExitedEvent(
                            code if isinstance(code, int) else 1,
                            frame.body.decode("utf-8", "replace"),
                        )
                        return
                    case "rollout":
                        await self._write(frame)
                    case "refused":
                        turn.has_exited = True
                        raise self._refusal(frame)
                    case "dead":
                        turn.is_dead = True
                        raise ProtocolError("the turn ended without its end")
                    case _:
                        raise ProtocolError(f"{frame.type[:40]!r} during a turn")
        except (PipeEnded, ProtocolError) as error:
            problem = str(error)
            self._pipe.fail(problem)
            turn.is_lost = True
            if not turn.is_dead:
                await self._pipe.wait_dead()
            raise PlaceLost(self.place.name, problem, TurnResult()) from error

    async def _end(self, turn: _Turn) -> None:
        """Wait until the place says that all processes of the turn are dead."""
        if turn.is_lost or turn.is_dead:
            return
        if not turn.has_exited:
            self._pipe.put(Frame("stop"))
        problem = f"it did not answer within {END_WITHIN_S:g} s"
        with anyio.move_on_after(END_WITHIN_S):
            try:
                while (frame := await self._pipe.next()).type != "dead":
                    if frame.type == "rollout":
                        await self._write(frame)
                return
            except (PipeEnded, ProtocolError) as error:
                problem = str(error)
        self._pipe.fail(problem)
        self.warnings.append(
            f"The place {self.place.name} has not said that the turn ended ({problem}). It ends all"
            f" work within {self.place.lease_s + MARGIN_S:g} s."
        )

    async def _write(self, frame: Frame) -> None:
        """Write a part of a rollout to the mirror.

        Raises:
            ProtocolError: It is none of a thread of this seat.
        """
        path = frame.text("path")
        thread_id = next((each for each in self._threads if each in path), None)
        if thread_id is None:
            raise ProtocolError(f"{path[:200]!r} is no rollout of the thread")
        await on_disk(self._mirror.write, thread_id, path, frame.number("offset"), frame.body)

    async def _send_pack(self, pack: IO[bytes]) -> None:
        while piece := await on_disk(pack.read, _PIECE):
            await self._pipe.send(Frame("pack", body=piece))

    def _settle(self, answer: Frame) -> None:
        self.copy, folder = answer.text("copy")[:64], Path(answer.text("folder")[:4096])
        if not folder.is_absolute() or folder == Path("/"):
            raise ProtocolError("the folder of the copy is no path")
        self.folder = folder

    async def _answer(self, type_: str) -> Frame:
        frame = await self._pipe.next()
        if frame.type == "refused":
            raise self._refusal(frame)
        if frame.type != type_:
            raise ProtocolError(f"{frame.type[:40]!r} instead of {type_!r}")
        return frame

    def _refusal(self, frame: Frame) -> PlaceRefused | PlaceUnavailable:
        problem = quote(frame.text("problem"), _NOTICE)
        if frame.fields.get("kind") == "not_allowed":
            return PlaceRefused(self.place.name, problem)
        return PlaceUnavailable(self.place.name, problem.rstrip("."))

    def _compare(
        self, before: Snapshot, trees: dict[str, str], left_out: Sequence[LeftOut], pack: IO[bytes]
    ) -> Changes:
        if pack.tell():
            pack.flush()
            pack.seek(0)
            git = self._shadow.git(objects=before.objects)
            unpack(git, pack, self._limit, strict=True)
        return changes_from(self._shadow, before, trees, left_out)

    def _unavailable(self) -> _Unavailable:
        return _Unavailable(self._pipe)


class _Turn:
    """What is known of a turn."""

    def __init__(self) -> None:
        self.has_exited = self.is_dead = self.is_lost = False
        self.opened = ""


class _Unavailable:
    """Turn the errors of the pipe into PlaceUnavailable, before a turn was sent."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, PipeEnded | ProtocolError | TimeoutError):
            problem = str(error) or f"no answer within {LAY_WITHIN_S:g} s"
            self._pipe.fail(problem)
            raise PlaceUnavailable(self._pipe.place.name, problem) from error


@asynccontextmanager
async def open_seat(
    place: Place,
    mirror: Mirror,
    run_id: str,
    shadow: Shadow,
    *,
    margin_s: float = MARGIN_S,
    links: Links | None = None,
) -> AsyncGenerator[Seat]:
    """Start a worker at *place* for the run *run_id*; all of it ends on leaving.

    Raises:
        PlaceUnavailable: There is no worker.
        OSError: The state folder cannot be written to.
    """
    await on_disk(mirror.claim)
    async with open_pipe(place, margin_s=margin_s, links=links) as (pipe, hello):
        yield Seat(pipe, hello, mirror, run_id, shadow)
