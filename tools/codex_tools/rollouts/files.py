"""Find rollout files in a CODEX_HOME and read their content.

A rollout is `$CODEX_HOME/sessions/YYYY/MM/DD/rollout-<local time>-<thread id>.jsonl`, or
`.jsonl.zst` once Codex has compressed it. `archived_sessions/` has no date folders. Codex
appends one JSON object per line; only `codex migrate-rollouts` and compression rewrite a file.
These shapes were seen on 0.60.1 to 0.171.0.

A thread may have several rollouts, its segments. The name of each later one ends with
`-<thread id>_<segment id>`; the first segment has the thread's id. Both ids are UUIDs of version
7, so segments sort by age. Codex begins a segment when a person takes turns back (0.163.0 to
0.171.0).
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, cast

from codex_tools.codex.foreign_file import open_foreign, open_foreign_file
from codex_tools.codex.json_object import Json
from codex_tools.codex.paths import codex_home

SESSIONS = "sessions"
ARCHIVE = "archived_sessions"

PACKED = ".jsonl.zst"
ENDINGS = (".jsonl", PACKED)

BLOCK = 256 * 1024
"""Bytes per read."""

UNPACKED_LIMIT = 1024 * 1024 * 1024
"""Most bytes of a compressed rollout's content: 32 KB on disk can hold 1 GB."""

_SPOOLED = 16 * 1024 * 1024
"""Bytes of a compressed rollout's content that are kept in memory; more goes to a file."""

_UUID = "[0-9A-Za-z]{8}-[0-9A-Za-z]{4}-[0-9A-Za-z]{4}-[0-9A-Za-z]{4}-[0-9A-Za-z]{12}"
_IDS = re.compile(f"-({_UUID})(?:_({_UUID}))?")
"""The ids in a rollout's name; a file manager may have added something behind them."""
_FRAME_HEAD = 18
"""Bytes of the longest zstd frame header."""


def local_home() -> Path:
    """Return the Codex home of this machine: CODEX_HOME, by default ~/.codex."""
    return codex_home()


def is_rollout(name: str) -> bool:
    """Return True if *name* is the file name of a rollout."""
    return name.startswith("rollout-") and name.endswith(ENDINGS)


def ids_of(name: str) -> tuple[str, str]:
    """Return the ids of the thread and of the segment in a rollout's name; "" if it has none.

    Both are equal for a thread's first segment.
    """
    found = _IDS.search(name)
    return (found[1], found[2] or found[1]) if found else ("", "")


def find_rollouts(home: Path, thread_id: str) -> list[Path]:
    """Return one rollout for each segment of *thread_id* in `sessions`, the oldest segment first.

    Of several copies of a segment, it is the one with the shortest name.
    """
    sessions = home / SESSIONS
    # Later segments are in the folders of later days.
    for folders in (_folders_since(sessions, thread_id), [sessions]):
        if found := _segments_in(folders, thread_id):
            return found
    return []


def rollouts_since(home: Path, thread_id: str) -> Iterator[Path]:
    """Yield the first rollout of each thread that is newer than *thread_id*, by its id."""
    for folder in _folders_since(home / SESSIONS, thread_id):
        for path in map(Path, rollouts_below(folder)):
            thread, segment = ids_of(path.name)
            if thread > thread_id and thread == segment:
                yield path


def find_archived(home: Path, thread_id: str) -> list[Path]:
    """Return the rollouts of *thread_id* in the archive, as `find_rollouts` does.

    Codex 0.171.0 archives all segments of a thread together, and resumes none from there.
    """
    return _segments_in([home / ARCHIVE], thread_id)


def _segments_in(folders: Iterable[Path], thread_id: str) -> list[Path]:
    found: dict[str, str] = {}
    for folder in folders:
        for path in rollouts_below(folder):
            name = path.rpartition("/")[2]
            if thread_id not in name:
                continue
            thread, segment = ids_of(name)
            if thread == thread_id and name.partition(".jsonl")[0].endswith(segment):
                found[segment] = min(found.get(segment, path), path, key=len)
    return [Path(found[segment]) for segment in sorted(found)]


def rollouts_below(folder: Path) -> Iterator[str]:
    """Yield the path of every rollout below *folder*."""
    ahead = [str(folder)]
    while ahead:
        try:
            with os.scandir(ahead.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        ahead.append(entry.path)
                    elif is_rollout(entry.name) and entry.is_file(follow_symlinks=False):
                        yield entry.path
        except OSError:
            continue  # The folder was archived or removed during the search.


@contextmanager
def open_rollout(path: Path) -> Generator[BinaryIO]:
    """Open a rollout, plain or compressed, as a seekable binary file.

    Raises:
        OSError: The file cannot be read, or its compression is damaged.
    """
    with open_foreign_file(path) as file:
        if path.suffix != ".zst":
            yield file
        else:
            # Codex itself unpacks a rollout to disk when it resumes the thread (seen on 0.169.0).
            with tempfile.SpooledTemporaryFile(_SPOOLED) as plain:
                for block in unpacked(file):
                    plain.write(block)
                plain.seek(0)
                yield cast(BinaryIO, plain)


def blocks(path: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield the content of a rollout, plain or compressed, block by block.

    Args:
        path: The rollout.
        start: The offset of the first byte; ignored for a compressed rollout.
        end: The offset after the last byte; ignored for a compressed rollout.

    Raises:
        OSError: The file cannot be read, or its compression is damaged.
    """
    with os.fdopen(open_foreign(path), "rb", buffering=0) as file:
        if path.name.endswith(PACKED):
            yield from unpacked(file)
            return
        if start:
            file.seek(start)
        left = sys.maxsize if end is None else end - start
        while left > 0 and (block := file.read(min(BLOCK, left))):
            yield block
            left -= len(block)


def parts_of(path: Path, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from *start* to *end* of a rollout's content, plain or compressed.

    Raises:
        OSError: The file cannot be read.
    """
    if path.name.endswith(PACKED):
        at = 0
        for block in blocks(path):
            yield block[max(0, start - at) : max(0, end - at)]
            at += len(block)
        return
    yield from blocks(path, start, end)


def unpacked(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of a compressed rollout, block by block.

    Raises:
        OSError: The file is damaged or incomplete, or holds more than UNPACKED_LIMIT bytes.
    """
    import zstandard

    head = file.read(_FRAME_HEAD)
    file.seek(0)
    size = 0
    try:
        # Codex writes a single frame, with the size of the content in its header.
        expected = zstandard.frame_content_size(head)
        with zstandard.ZstdDecompressor().stream_reader(
            file, read_across_frames=True, closefd=False
        ) as plain:
            while block := plain.read(BLOCK):
                size += len(block)
                if size > UNPACKED_LIMIT:
                    raise OSError(f"compressed file of more than {UNPACKED_LIMIT:,} bytes")
                yield block
    except zstandard.ZstdError as error:
        raise OSError(f"damaged zstd file: {error}") from error
    if size < expected:
        raise OSError(f"incomplete zstd file: {size} of {expected} bytes")


def meta_of(line: bytes) -> Json | None:
    """Return the payload of a session_meta line; None for any other line."""
    import orjson

    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(data, dict) or cast(Json, data).get("type") != "session_meta":
        return None
    payload: object = cast(Json, data).get("payload")
    return cast(Json, payload) if isinstance(payload, dict) else None


def _folders_since(sessions: Path, thread_id: str) -> list[Path]:
    """Return the day folders that may hold a thread, from the day in its id on.

    Empty if the id contains no day.
    """
    try:
        created = datetime.fromtimestamp(int(thread_id.replace("-", "")[:12], 16) / 1000, tz=UTC)
        first = (created - timedelta(days=1)).strftime("%Y/%m/%d")
    except (ValueError, OverflowError, OSError):
        return []  # Not a UUID of version 7.
    days = [""]
    for length in (4, 7, 10):
        days = [
            f"{day}/{name}".lstrip("/")
            for day in days
            for name in _names_in(sessions / day)
            if f"{day}/{name}".lstrip("/") >= first[:length]
        ]
    return [sessions / day for day in sorted(days)]


def _names_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.name.isdecimal()]
    except OSError:
        return []
