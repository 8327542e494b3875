"""Keep the events of one run on disk, byte for byte as Codex wrote them, and read them in pages."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import orjson

from codex_tools.codex.foreign_file import open_foreign_file
from codex_tools.codex.masking import mask_line
from codex_tools.runs.writer import StateWriter

logger = logging.getLogger(__name__)

LOG_LIMIT = 64 * 1024 * 1024
"""Maximum bytes of events that are kept of one run; a last line then says that more came."""


@dataclass(frozen=True, slots=True)
class EventPage:
    """A page of a run's events, in order, and the offset of the next page."""

    lines: tuple[str, ...]
    next_offset: int | None
    """Offset of the next page in bytes; None on the last page."""
    size: int
    """Total bytes of all events so far."""


class EventLog:
    """The events of one run; the first event creates the file, which grows up to LOG_LIMIT."""

    def __init__(self, path: Path, writer: StateWriter) -> None:
        self._path = path
        self._writer = writer
        self._pending: deque[bytes] = deque()
        self._fd: int | None = None
        self._size = 0
        self._failed = False
        self._is_full = False

    def add(self, line: bytes) -> None:
        """Add a line to the queue of the writer's thread, which keeps the order."""
        if self._is_full or self._failed:
            return
        self._size += len(line) + 1
        if self._size > LOG_LIMIT:
            # The last message in the log is then not the last one of the run.
            self._is_full = True
            line = orjson.dumps({"type": "log_ends_here", "limit_bytes": LOG_LIMIT})
        self._pending.append(line)
        if len(self._pending) == 1:
            try:
                # Lines that arrive together are written together: each write wakes a thread.
                asyncio.get_running_loop().call_soon(self._writer.put, self._drain)
            except RuntimeError:  # No event loop runs in this thread.
                self._writer.put(self._drain)

    def close(self) -> None:
        """Close the file once all lines are written."""
        self._writer.put(self._drain)
        self._writer.put(self._close)

    def _drain(self) -> None:
        """Write all pending lines in one write, so that a killed server leaves only whole lines."""
        lines: list[bytes] = []
        while self._pending:
            lines.append(self._pending.popleft())
        if not lines or self._failed:
            return
        try:
            if self._fd is None:
                self._path.parent.mkdir(mode=0o700, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
                self._fd = os.open(self._path, flags, 0o600)
            if not _append(self._fd, b"".join(line + b"\n" for line in lines)):
                # The disk has no room for all lines: write as many as fit.
                for line in lines:
                    if not _append(self._fd, line + b"\n"):
                        raise OSError("the disk is full")
        except OSError as error:
            logger.warning("cannot write to %s: %s", self._path, error)
            self._failed = True

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> EventLog:
        """Return the log itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def _append(fd: int, data: bytes) -> bool:
    """Write all of *data* or nothing; return False if there is no room for it."""
    before = os.fstat(fd).st_size
    try:
        written = os.write(fd, data)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        written = 0
    if written == len(data):
        return True
    os.ftruncate(fd, before)
    return False


def read_page(path: Path, offset: int, room: int) -> EventPage | None:
    """Return the events from byte *offset*, in about *room* characters; None if there is no log.

    Secrets are masked. A single event longer than *room* is replaced by its type and size.
    """
    lines: list[str] = []
    try:
        with open_foreign_file(path, owned=True) as file:
            end = file.seek(0, os.SEEK_END)
            # For an offset in the middle of an event, the page begins with the next event.
            file.seek(max(0, offset - 1))
            if offset > 0:
                file.readline()
            while room > 0 and (line := file.readline()):
                # A character takes at most six bytes, as in \u00e9; this line is not worth masking.
                text = mask_line(line) if len(line) <= 6 * room + 1 else None
                if text is None or len(text) > room:
                    if lines:
                        file.seek(-len(line), os.SEEK_CUR)
                        break
                    text = _outline(line)
                lines.append(text)
                room -= len(text) + 1
            at = file.tell()
    except OSError:
        return None
    return EventPage(tuple(lines), at if at < end else None, end)


def _outline(line: bytes) -> str:
    """Return the type and the size of the event *line*, as JSON."""
    try:
        kind = orjson.loads(line)["type"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        kind = None  # Not an event of Codex.
    return orjson.dumps({"type": kind, "bytes_left_out": len(line)}).decode()
