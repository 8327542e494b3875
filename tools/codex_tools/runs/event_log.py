"""The events of one run on disk, byte for byte as Codex wrote them."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from codex_tools.codex.events import AgentMessageItem, ItemCompletedEvent, parse_event
from codex_tools.codex.masking import mask

logger = logging.getLogger(__name__)

LOG_LIMIT = 64 * 1024 * 1024
"""Bytes of events kept of one run."""


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events of a run, in order, and where the next ones begin."""

    lines: tuple[str, ...]
    next_offset: int | None
    """In bytes; None when these are the last."""
    size: int
    """Bytes of all events so far."""


class EventLog:
    """The events of one run; opened with the first, ended at LOG_LIMIT."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._size = 0

    def add(self, line: bytes) -> None:
        """Keep one more line, in a single write: a killed server leaves whole lines."""
        self._size += len(line) + 1
        if self._size > LOG_LIMIT:
            return
        try:
            if self._file is None:
                self._path.parent.mkdir(mode=0o700, exist_ok=True)
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                self._file = os.fdopen(fd, "wb", buffering=0)
            before = self._file.tell()
            if self._file.write(line + b"\n") != len(line) + 1:
                self._file.truncate(before)
                raise OSError("the disk is full")
        except OSError as error:
            logger.warning("%s is not written on: %s", self._path, error)
            self._size = LOG_LIMIT

    def page(self, offset: int, room: int) -> EventPage | None:
        """Return events from byte *offset* on, in about *room* characters; None without a log.

        Secrets are masked. An event that alone is longer is told by its type
        and size only.
        """
        lines: list[str] = []
        try:
            with self._path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                # What begins in the middle of an event begins with the next one.
                file.seek(max(0, offset - 1))
                if offset > 0:
                    file.readline()
                while room > 0 and (line := file.readline()):
                    text = mask(line.decode("utf-8", "replace").strip())
                    if len(text) > room:
                        if lines:
                            file.seek(-len(line), os.SEEK_CUR)
                            break
                        text = _outline(line)
                    lines.append(text)
                    room -= len(text) + 1
                at = file.tell()
        except FileNotFoundError:
            return None
        return EventPage(tuple(lines), at if at < end else None, end)

    def answer(self) -> str | None:
        """Return the last agent message, whole; None if there is none."""
        last: bytes | None = None
        try:
            with self._path.open("rb") as file:
                for line in file:
                    if b'"agent_message"' in line and b'"item.completed"' in line:
                        last = line
        except FileNotFoundError:
            return None
        match parse_event(last) if last is not None else None:
            case ItemCompletedEvent(item=AgentMessageItem(text=text)):
                return text
            case _:
                return None

    def __enter__(self) -> EventLog:
        """Return the log itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _outline(line: bytes) -> str:
    """Return what kind of event *line* is, and how long."""
    try:
        kind = orjson.loads(line)["type"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        kind = None  # Not one of Codex's.
    return orjson.dumps({"type": kind, "bytes_left_out": len(line)}).decode()
