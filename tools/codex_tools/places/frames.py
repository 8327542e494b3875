"""Read and write the frames that this server and a worker exchange over a pipe.

A frame is one line with a JSON object, whose `type` says what it is. Its `size` is the number of
bytes that follow the line, if any follow. Both ends bound lines and bytes, because neither trusts
the other. Bytes that break the format end the connection, because nothing behind them can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import orjson

from codex_tools.codex.json_object import Json

PROTOCOL = 1
"""The version of the protocol, which both ends name in `hello`; they must be the same."""

LINE_LIMIT = 64 * 1024
"""Most bytes of a line; what may be longer travels as the bytes after it."""

BODY_LIMIT = 40 * 1024 * 1024
"""Most bytes after a line. The longest are lines of Codex, of which 32 MB are read whole."""

GREETING_LIMIT = 64 * 1024
"""Most bytes before the first frame: a login script of the place may print a greeting."""

PIECE = 256 * 1024
"""Bytes of a pack that travel in one frame: a ping never waits for more than that."""

_FIRST = b'{"type":"'


class ProtocolError(Exception):
    """The other end sent something that is no frame, or a frame that it may not send."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    type: str
    fields: Json = field(default_factory=dict[str, object])
    body: bytes = b""

    def text(self, name: str) -> str:
        """Return a field that must be a text.

        Raises:
            ProtocolError: It is missing, or something else.
        """
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise ProtocolError(f"{self.type}.{name} is no text")
        return value

    def number(self, name: str) -> int:
        """Return a field that must be a whole number of at least 0.

        Raises:
            ProtocolError: It is missing, or something else.
        """
        value = self.fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ProtocolError(f"{self.type}.{name} is no number")
        return value

    def seconds(self, name: str) -> float:
        """Return a field that must be a number.

        Raises:
            ProtocolError: It is missing, or something else.
        """
        value = self.fields.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ProtocolError(f"{self.type}.{name} is no number of seconds")
        return float(value)

    def encode(self) -> bytes:
        """Return the bytes of the frame."""
        head: Json = {"type": self.type, **self.fields}
        if self.body:
            head["size"] = len(self.body)
        return b"%b\n%b" % (orjson.dumps(head), self.body)


class Decoder:
    """Turn the bytes of a pipe, in whatever pieces they arrive, into frames."""

    def __init__(self, *, greeting: bool = False) -> None:
        """Begin at the start of a pipe.

        Args:
            greeting: True to pass over lines that are no frame, until the first frame.
        """
        self._rest = bytearray()
        self._wanted: tuple[str, Json, int] | None = None
        self._skipped = 0 if greeting else None

    @property
    def is_torn(self) -> bool:
        """True if a frame has begun and is not complete."""
        return bool(self._rest) or self._wanted is not None

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that *data* completes.

        Raises:
            ProtocolError: The bytes are no frames.
        """
        self._rest += data
        start = 0
        try:
            while True:
                if self._wanted is not None:
                    type_, fields, size = self._wanted
                    if len(self._rest) - start < size:
                        return
                    body = bytes(memoryview(self._rest)[start : start + size])
                    start += size
                    self._wanted = None
                    yield Frame(type_, fields, body)
                    continue
                end = self._rest.find(b"\n", start, start + LINE_LIMIT + 1)
                if end < 0:
                    if len(self._rest) - start > LINE_LIMIT:
                        raise ProtocolError(f"a line has more than {LINE_LIMIT:,} bytes")
                    return
                line = bytes(memoryview(self._rest)[start:end])
                start = end + 1
                if self._skipped is not None and not line.startswith(_FIRST):
                    self._skipped += len(line) + 1
                    if self._skipped > GREETING_LIMIT:
                        raise ProtocolError("a long text instead of a worker's answer")
                    continue
                self._skipped = None
                self._wanted = _head(line)
        finally:
            del self._rest[:start]


def _head(line: bytes) -> tuple[str, Json, int]:
    """Return the type, the fields and the size of the body that a line announces."""
    try:
        read: object = orjson.loads(line)
    except ValueError:
        raise ProtocolError("a line is no JSON") from None
    if not isinstance(read, dict):
        raise ProtocolError("a line is no JSON object")
    fields = cast(Json, read)
    type_, size = fields.pop("type", None), fields.pop("size", 0)
    if not isinstance(type_, str):
        raise ProtocolError("a frame has no type")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= BODY_LIMIT:
        raise ProtocolError(f"a frame of type {type_[:40]!r} has an impossible size")
    return type_, fields, size


def pieces(data: bytes) -> Iterator[bytes]:
    """Yield *data* in pieces for one frame each."""
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]
