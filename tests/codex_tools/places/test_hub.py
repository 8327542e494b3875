"""The process that runs on a large Ray cluster share, without Ray: its channels in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import IO, Any

import pytest

from codex_tools.places import hub
from codex_tools.places.frames import Decoder, Frame, ProtocolError
from codex_tools.places.lease import SentPings
from codex_tools.places.place import Place
from codex_tools.places.writer import FrameWriter

PLACE = Place("cluster", ("true",), worker="worker")


@dataclass
class Scene:
    """What the process would read, and the object that writes it."""

    shared: Any  # The class is private to its module; its users see only a `Link`.
    output: IO[bytes]
    channels: list[Any] = field(default_factory=list[Any])

    def open(self, source: int) -> Any:
        """Return a new channel, whose run writes to the other end of the descriptor *source*."""
        self.channels.append(self.shared.add(PLACE, source))
        return self.channels[-1]

    def frames(self, count: int) -> list[Frame]:
        """Return the next *count* frames that the process gets."""
        decoder, found = Decoder(), list[Frame]()
        while len(found) < count:
            found += decoder.feed(os.read(self.output.fileno(), 65536))
        return found


@pytest.fixture
def scene() -> Generator[Scene]:
    reading, writing = os.pipe()
    writer = FrameWriter(writing)
    kind: Any = hub._Shared  # pyright: ignore[reportPrivateUsage] - see Scene
    made = kind(None, writer, SentPings(6.0))
    with os.fdopen(reading, "rb", buffering=0) as output:
        scene = Scene(made, output)
        yield scene
        for channel in scene.channels:
            channel._receive.close()
        made.close()
        made._thread.join(10)
        writer.close(abandon=True)
        writer.join(10)


def test_what_a_run_writes_goes_out_with_the_number_of_its_channel(scene: Scene) -> None:
    reading, writing = os.pipe()
    channel = scene.open(reading)
    (opened,) = scene.frames(1)
    assert (opened.type, opened.fields["worker"]) == ("open", "worker")
    os.write(writing, b"hello")
    (data,) = scene.frames(1)
    assert (data.type, data.fields["channel"], data.body) == ("data", channel.number, b"hello")
    os.close(writing)
    (end,) = scene.frames(1)
    assert (end.type, end.fields["channel"]) == ("end", channel.number)


def test_no_more_is_sent_than_the_process_has_room_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "ROOM", 10)
    (slow, to_slow), (quick, to_quick) = os.pipe(), os.pipe()
    first, second = scene.open(slow), scene.open(quick)
    assert [each.type for each in scene.frames(2)] == ["open", "open"]
    os.write(to_slow, b"0123456789abc")
    assert scene.frames(1)[0].body == b"0123456789"
    # The one without room does not hold up the other one.
    os.write(to_quick, b"quick")
    (data,) = scene.frames(1)
    assert (data.fields["channel"], data.body) == (second.number, b"quick")
    scene.shared._take(Frame("room", {"channel": first.number, "bytes": 10}))
    (rest,) = scene.frames(1)
    assert (rest.fields["channel"], rest.body) == (first.number, b"abc")
    os.close(to_slow)
    os.close(to_quick)


def test_a_process_that_sends_more_than_it_may_is_refused(scene: Scene) -> None:
    reading, writing = os.pipe()
    number = scene.open(reading).number
    scene.shared._take(Frame("data", {"channel": number}, bytes(hub.ROOM)))
    with pytest.raises(ProtocolError):
        scene.shared._take(Frame("data", {"channel": number}, b"x"))
    os.close(writing)


@pytest.mark.parametrize("forged", [{"type": "what", "channel": 1}, {"type": "data"}])
def test_a_frame_that_is_none_of_its_kinds_is_refused(scene: Scene, forged: Any) -> None:
    reading, writing = os.pipe()
    scene.open(reading)
    (frame,) = Decoder().feed(json.dumps(forged).encode() + b"\n")
    with pytest.raises(ProtocolError):
        scene.shared._take(frame)
    os.close(writing)


def test_a_frame_for_a_channel_that_was_dropped_is_passed_over(scene: Scene) -> None:
    scene.shared._take(Frame("data", {"channel": 7}, b"late"))


def test_the_end_of_a_run_after_that_of_the_process_writes_into_no_other_file(
    scene: Scene,
) -> None:
    reading, writing = os.pipe()
    channel = scene.open(reading)
    scene.shared.close()
    scene.shared._thread.join(10)
    # These get the numbers that were free first, those of the pipe that woke the thread.
    pipes = [os.pipe() for _ in range(4)]
    assert scene.shared._wakes in [fd for pipe in pipes for fd in pipe]
    os.set_blocking(scene.shared._wakes, True)
    scene.shared.drop(channel)
    for source, target in pipes:
        os.close(target)
        assert os.read(source, 1) == b""
        os.close(source)
    os.close(writing)
