"""Frames arrive whole in whatever pieces the pipe cuts them, and nothing else passes for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_tools.places.frames import (
    BODY_LIMIT,
    GREETING_LIMIT,
    LINE_LIMIT,
    PIECE,
    Decoder,
    Frame,
    ProtocolError,
    pieces,
)

_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_FRAMES = st.builds(
    Frame,
    st.text(max_size=12),
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name not in ("type", "size")), _VALUES, max_size=4
    ),
    st.binary(max_size=200),
)


@given(st.lists(_FRAMES, max_size=5), st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_frames_survive_any_cutting(frames: list[Frame], cuts: list[int]) -> None:
    data = b"".join(each.encode() for each in frames)
    decoder, at, turn = Decoder(), 0, 0
    found: list[Frame] = []
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += decoder.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert found == frames
    assert not decoder.is_torn


@given(st.binary(max_size=400))
def test_any_bytes_are_frames_or_a_protocol_error(data: bytes) -> None:
    try:
        for frame in Decoder().feed(data):
            assert frame.type is not None
    except ProtocolError:
        pass


@given(_FRAMES, st.data())
def test_a_frame_that_ends_early_is_torn_and_yields_nothing(frame: Frame, data: Any) -> None:
    whole = frame.encode()
    cut = data.draw(st.integers(1, len(whole) - 1))
    decoder = Decoder()
    assert [*decoder.feed(whole[:cut])] == []
    assert decoder.is_torn
    assert [*decoder.feed(whole[cut:])] == [frame]


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"",
        b"[1]",
        b"null",
        b'{"size":3}',
        b'{"type":7}',
        b'{"type":"x","size":-1}',
        b'{"type":"x","size":true}',
        b'{"type":"x","size":1.5}',
        b'{"type":"x","size":"9"}',
        b'{"type":"x","size":%d}' % (BODY_LIMIT + 1),
        b'{"type":"x","size":%d}' % 2**70,
        b'{"type":"\xff"}',
        b"x" * (LINE_LIMIT + 1),
        json.dumps({"type": "x", "a": "y" * LINE_LIMIT}).encode(),
    ],
)
def test_what_is_no_frame_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Decoder().feed(line + b"\n"))


def _pieces_until_refused(decoder: Decoder, piece: bytes) -> int:
    for number in range(LINE_LIMIT):
        try:
            assert [*decoder.feed(piece)] == []
        except ProtocolError:
            return number
    raise AssertionError("never refused")


def test_an_endless_line_is_refused_before_its_end() -> None:
    assert _pieces_until_refused(Decoder(), b"x" * 64) <= LINE_LIMIT // 64 + 1


def test_a_greeting_before_the_first_frame_is_passed_over_but_none_after_it() -> None:
    decoder = Decoder(greeting=True)
    hello = Frame("hello", {"protocol": 1})
    assert [*decoder.feed(b"Welcome to box!\n\n" + hello.encode())] == [hello]
    with pytest.raises(ProtocolError):
        list(decoder.feed(b"Welcome again\n"))


def test_a_greeting_without_end_is_refused() -> None:
    assert _pieces_until_refused(Decoder(greeting=True), b"motd\n") <= GREETING_LIMIT // 5 + 1


@pytest.mark.parametrize("value", [None, "1", -1, 1.5, True, [], {}])
def test_a_number_of_the_wrong_type_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(ProtocolError):
        Frame("x", {"n": value}).number("n")


@pytest.mark.parametrize("value", [None, 1, [], {}, True])
def test_a_text_of_the_wrong_type_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(ProtocolError):
        Frame("x", {"n": value}).text("n")


def test_a_pack_travels_in_pieces() -> None:
    data = bytes(range(256)) * (PIECE // 100)
    assert b"".join(pieces(data)) == data
    assert max(map(len, pieces(data))) == PIECE
