"""Rollouts as files: where Codex keeps its threads, and how to open one.

`$CODEX_HOME/sessions/YYYY/MM/DD/rollout-<local time>-<thread id>.jsonl`, or
`.jsonl.zst` once Codex has compressed it; `archived_sessions/` without the
date folders. One JSON object a line, appended; only `codex migrate-rollouts`
and compression write one anew. The shapes were seen on 0.60.1 to 0.169.0.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, cast

from codex_tools.codex.json_object import Json
from codex_tools.codex.paths import codex_home

SESSIONS = "sessions"
ARCHIVE = "archived_sessions"

PACKED = ".jsonl.zst"
ENDINGS = (".jsonl", PACKED)

BLOCK = 256 * 1024
"""Bytes read at once."""

_ID_LENGTH = 36
_FRAME_HEAD = 18


def local_home() -> Path:
    """Return the Codex home of this machine: CODEX_HOME, by default ~/.codex."""
    return codex_home()


def is_rollout(name: str) -> bool:
    """Return whether a file of that name is a rollout."""
    return name.startswith("rollout-") and name.endswith(ENDINGS)


def thread_id_of(name: str) -> str:
    """Return the thread's id as the file's name has it."""
    return name.partition(".jsonl")[0][-_ID_LENGTH:]


def find_rollout(home: Path, thread_id: str) -> Path | None:
    """Return the rollout of *thread_id* among the threads that can be resumed."""
    sessions = home / SESSIONS
    # The id tells the day (UUID version 7), give or take a time zone; if not, look everywhere.
    for folder in (*_days_of(sessions, thread_id), sessions):
        found = [path for path in rollouts_below(folder) if _is_of(path, thread_id)]
        if found:
            return Path(min(found, key=len))
    return None


def find_archived(home: Path, thread_id: str) -> Path | None:
    """Return the rollout of *thread_id* in the archive, where Codex does not resume it."""
    found = [path for path in rollouts_below(home / ARCHIVE) if _is_of(path, thread_id)]
    return Path(min(found, key=len)) if found else None


def rollouts_below(folder: Path) -> Iterator[str]:
    """Yield the path of every rollout below *folder*."""
    ahead = [str(folder)]
    while ahead:
        try:
            with os.scandir(ahead.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        ahead.append(entry.path)
                    elif is_rollout(entry.name):
                        yield entry.path
        except OSError:
            continue  # It was archived or removed while we looked.


@contextmanager
def open_rollout(path: Path) -> Generator[BinaryIO]:
    """Open a rollout, plain or compressed, to be read from any position.

    Raises:
        OSError: It cannot be read, or its compression is damaged.
    """
    with path.open("rb") as file:
        if path.suffix != ".zst":
            yield file
        else:
            yield io.BytesIO(b"".join(unpacked(file)))


def blocks(path: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield the content of a rollout, plain or compressed, block by block.

    Args:
        path: The rollout.
        start: Where to begin, in bytes; of a plain one only.
        end: Where to stop; of a plain one only.

    Raises:
        OSError: It cannot be read, or its compression is damaged.
    """
    with path.open("rb", buffering=0) as file:
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
    """Yield a part of a rollout's content, plain or compressed.

    Raises:
        OSError: It cannot be read.
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
        OSError: It is damaged, or cut off.
    """
    import zstandard

    head = file.read(_FRAME_HEAD)
    file.seek(0)
    size = 0
    try:
        # Codex writes the size of the content into the head of its single frame.
        expected = zstandard.frame_content_size(head)
        with zstandard.ZstdDecompressor().stream_reader(
            file, read_across_frames=True, closefd=False
        ) as plain:
            while block := plain.read(BLOCK):
                size += len(block)
                yield block
    except zstandard.ZstdError as error:
        raise OSError(f"damaged: {error}") from error
    if size < expected:
        raise OSError("cut off")


def payload_of(line: bytes) -> Json | None:
    """Return the payload of a rollout's line, or None if it is no such line."""
    import orjson

    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    payload: object = cast(Json, data).get("payload") if isinstance(data, dict) else None
    return cast(Json, payload) if isinstance(payload, dict) else None


def _is_of(path: str, thread_id: str) -> bool:
    return path.endswith(tuple(f"-{thread_id}{ending}" for ending in ENDINGS))


def _days_of(sessions: Path, thread_id: str) -> Iterator[Path]:
    try:
        created = datetime.fromtimestamp(int(thread_id.replace("-", "")[:12], 16) / 1000, tz=UTC)
        for days in (0, 1, -1):
            yield sessions / (created + timedelta(days=days)).strftime("%Y/%m/%d")
    except (ValueError, OverflowError, OSError):
        return  # Not a UUID of version 7.
