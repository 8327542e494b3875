"""Scan a CODEX_HOME for rollouts and compare them with the index."""

from __future__ import annotations

import os
import re
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from codex_tools.rollouts.files import ARCHIVE, SESSIONS, ids_of, is_rollout

_MIRROR = re.compile(rf"(?:^|/)places/([^/]+)/{SESSIONS}(?:/|$)")

Entry = tuple[str, int, int]
"""A file's name, size in bytes and modification time in ns."""


@dataclass(slots=True)
class ChangedRollout:
    """A rollout on disk that the index does not have in this form."""

    folder: str
    name: str
    size: int
    mtime_ns: int
    file: int | None
    """Its number in the index, if the index has an older form of it."""


@dataclass(slots=True)
class RolloutChanges:
    """The differences between disk and index."""

    found: list[ChangedRollout] = field(default_factory=list[ChangedRollout])
    gone: list[int] = field(default_factory=list[int])
    _by_thread: dict[str, list[ChangedRollout]] = field(
        default_factory=dict[str, list[ChangedRollout]]
    )

    def found_of(self, thread_id: str) -> list[ChangedRollout]:
        """Return the changed rollouts of one thread, by the ids in their file names."""
        if not self._by_thread:
            for found in self.found:
                self._by_thread.setdefault(ids_of(found.name)[0], []).append(found)
        return self._by_thread.get(thread_id, [])


def scan(home: Path) -> Iterator[tuple[str, list[Entry]]]:
    """Yield each folder that contains rollouts, with its entries."""
    for root in (SESSIONS, ARCHIVE):
        yield from _scan(str(home / root), root)


def scan_mirrors(home: Path, state_dir: Path) -> Iterator[tuple[str, list[Entry]]]:
    """Yield the same of the threads at other places, of which *state_dir* has copies.

    The folders are relative to *home* too.
    """
    places = state_dir / "places"
    try:
        mirrors = sorted(places.iterdir())
    except OSError:
        return
    for mirror in mirrors:
        path = os.path.realpath(mirror / SESSIONS)
        yield from _scan(path, os.path.relpath(path, os.path.realpath(home)))


def place_of(folder: str) -> str:
    """Return the name of the place whose threads are in a folder that was scanned."""
    found = _MIRROR.search(folder)
    return "here" if found is None or folder.split("/", 1)[0] == SESSIONS else found[1]


def _scan(path: str, folder: str) -> Iterator[tuple[str, list[Entry]]]:
    inner: list[str] = []
    entries: list[Entry] = []
    try:
        # With a descriptor, the kernel looks up names and not whole paths.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return  # The folder does not exist, or was removed.
    try:
        with os.scandir(fd) as found:
            for entry in found:
                name = entry.name
                if not name.isascii():
                    continue  # Codex uses ASCII names only.
                if name.startswith("rollout-"):
                    if is_rollout(name) and entry.is_file(follow_symlinks=False):
                        stat = entry.stat(follow_symlinks=False)
                        entries.append((name, stat.st_size, stat.st_mtime_ns))
                elif entry.is_dir(follow_symlinks=False):
                    inner.append(name)
    except OSError:
        pass
    finally:
        os.close(fd)
    if entries:
        yield folder, entries
    for name in inner:
        yield from _scan(f"{path}/{name}", f"{folder}/{name}")


def mark_of(entries: list[Entry]) -> int:
    """Return a checksum of a folder's entries, the same in every process."""
    names, sizes, times = zip(*entries, strict=True)
    # Python hashes numbers alike in every process, but not strings.
    return hash((zlib.crc32("/".join(names).encode("utf-8", "surrogateescape")), sizes, times))


def compare(
    db: sqlite3.Connection, folder: str, entries: list[Entry], changes: RolloutChanges
) -> None:
    """Add to *changes* the differences between a folder's entries and the index."""
    rows = db.execute("SELECT name, size, mtime_ns, id FROM file WHERE folder = ?", (folder,))
    known = {name: (size, mtime_ns, id_) for name, size, mtime_ns, id_ in rows}
    for name, size, mtime_ns in entries:
        former = known.pop(name, None)
        if former is None:
            changes.found.append(ChangedRollout(folder, name, size, mtime_ns, None))
        elif former[0] != size or former[1] != mtime_ns:
            changes.found.append(ChangedRollout(folder, name, size, mtime_ns, former[2]))
    changes.gone += [id_ for *_, id_ in known.values()]


def mark_of_file(path: Path) -> str:
    """Return a text that changes with a file's content; empty if the file does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def inode_of(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file; None if the file does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
