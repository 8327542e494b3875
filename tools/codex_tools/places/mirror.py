"""Keep copies of the rollouts of threads that live at another place.

The rollout at the place is the truth. The worker sends what Codex appends to it, while the turn
runs. So all that reads a thread's rollout here finds it in the mirror, as in CODEX_HOME.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from codex_tools.codex.copy_paths import CopyPlace
from codex_tools.codex.foreign_file import read_foreign
from codex_tools.codex.private_folder import claim_folder
from codex_tools.places.frames import ProtocolError
from codex_tools.pricing.prices import Prices
from codex_tools.rollouts.files import find_rollouts, ids_of
from codex_tools.rollouts.threads import Threads, ThreadState

SIZE_LIMIT = 2 * 1024 * 1024 * 1024
"""Most bytes of one rollout."""

UNFINISHED_S = 3600.0
"""Seconds after which a file that a killed process left half-written is removed."""

_PATH = re.compile(
    r"sessions/[0-9]{4}/[0-9]{2}/[0-9]{2}/rollout-[0-9A-Za-z_.-]{1,200}\.jsonl(\.zst)?"
)

_THREAD = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_LIMIT = 65_536


@dataclass(frozen=True, slots=True)
class Home:
    """What this machine knows of a thread at a place: it does not ask the place for that."""

    root: Path
    """The project's folder here."""
    cwd: Path
    """The folder of the thread's last turn, here."""
    copy: str
    """The id of the copy at the place."""
    snapshot: str
    """The id of the snapshot here that was laid out there."""
    node: str = ""
    """The machine of a Ray cluster that has the thread and the copy."""


class Mirror:
    """The mirror of one place; its methods access the disk."""

    def __init__(
        self,
        state_dir: Path,
        place: str,
        is_taken: Callable[[str, str], bool] = lambda thread_id, place: False,
    ) -> None:
        """Make nothing yet.

        Args:
            state_dir: The folder of this server's files.
            place: A name that `read_places` accepted.
            is_taken: Returns True for a thread that is here, or at another place than the one
                that is named: a place could give its thread the id of that one.
        """
        self._state_dir, self._is_taken = state_dir, is_taken
        self.place = place
        self.home = state_dir / "places" / place
        """The folder that stands for CODEX_HOME."""

    def claim(self) -> None:
        """Create the folders.

        Raises:
            OSError: They cannot be used.
        """
        for folder in (self._state_dir, self.home.parent, self.home, self.home / "threads"):
            claim_folder(folder)

    def check_new(self, thread_id: str) -> None:
        """Check that a new thread of the place may have this id.

        Raises:
            ProtocolError: It is no id of a thread, or that of another one.
        """
        if _THREAD.fullmatch(thread_id) is None or self._is_taken(thread_id, self.place):
            raise ProtocolError(f"{thread_id[:60]!r} cannot be the id of a new thread")

    def sizes(self, thread_id: str) -> dict[str, int]:
        """Return the sizes of a thread's rollouts in the mirror, by their paths."""
        return {
            path.relative_to(self.home).as_posix(): path.stat().st_size
            for path in find_rollouts(self.home, thread_id)
        }

    def write(self, thread_id: str, path: str, offset: int, data: bytes) -> None:
        """Append to a rollout of the thread; an *offset* of 0 begins it from its start.

        Raises:
            ProtocolError: It is no rollout of that thread, or bytes are missing before *offset*.
            OSError: The state folder cannot be written to.
        """
        name = path.rpartition("/")[2]
        if _PATH.fullmatch(path) is None or ids_of(name)[0] != thread_id:
            raise ProtocolError(f"{path[:200]!r} is no rollout of the thread")
        if offset + len(data) > SIZE_LIMIT:
            raise ProtocolError("a rollout is too large")
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(file, flags, 0o600)
        try:
            size = os.fstat(fd).st_size
            if offset == 0 and size:
                os.ftruncate(fd, 0)
            elif offset != size:
                raise ProtocolError(f"a rollout has {size} bytes here, and {offset} were expected")
            left = memoryview(data)
            os.lseek(fd, offset, os.SEEK_SET)
            while left:
                left = left[os.write(fd, left) :]
        finally:
            os.close(fd)

    def remember(self, thread_id: str, home: Home) -> None:
        """Store which project a thread belongs to.

        Raises:
            OSError: The state folder cannot be written to.
        """
        if _THREAD.fullmatch(thread_id) is None:
            return
        values = {"root": str(home.root), "cwd": str(home.cwd)}
        values |= {"copy": home.copy, "snapshot": home.snapshot}
        values |= {"node": home.node}
        file = self.home / "threads" / f"{thread_id}.json"
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(values))
        new.replace(file)

    def prune(self, older_than_s: float) -> None:
        """Delete what is here of threads that had no turn for *older_than_s* seconds.

        Their rollouts at the place stay.
        """
        now = time.time()
        kept: set[str] = set()
        for path in sorted((self.home / "sessions").rglob("rollout-*")):
            with suppress(OSError):
                if now - path.lstat().st_mtime > older_than_s:
                    path.unlink()
                else:
                    kept.update(ids_of(path.name)[:1])
        for folder in sorted((self.home / "sessions").glob("*/*/*"), reverse=True):
            for each in (folder, folder.parent, folder.parent.parent):
                with suppress(OSError):  # It holds another file.
                    each.rmdir()
        for path in (self.home / "threads").glob("*"):
            is_whole = path.suffix == ".json"
            if is_whole and path.stem in kept:
                continue
            with suppress(OSError):
                age_s = now - path.lstat().st_mtime
                if age_s > (older_than_s if is_whole else UNFINISHED_S):
                    path.unlink()

    def find_home(self, thread_id: str) -> Home | None:
        """Return what `remember` stored of a thread; None if it did not."""
        if _THREAD.fullmatch(thread_id) is None:
            return None
        try:
            text = read_foreign(self.home / "threads" / f"{thread_id}.json", _LIMIT, owned=True)
            read = json.loads(text)
            folders = Path(read["root"]), Path(read["cwd"])
            node = str(read.get("node", ""))  # Files of earlier builds have none.
            return Home(*folders, str(read["copy"]), str(read["snapshot"]), node)
        except (OSError, ValueError, KeyError, TypeError):
            return None


class MirrorThreads(Threads):
    """The threads of a place, as its mirror has them."""

    def __init__(self, mirror: Mirror, prices: Prices) -> None:
        super().__init__(mirror.home, prices)
        self.mirror = mirror

    def _at_home(self, state: ThreadState | None) -> ThreadState | None:
        """Return *state* with the folder in the project here, which the place does not decide."""
        if state is None:
            return None
        home = self.mirror.find_home(state.thread_id)
        if home is None:
            return replace(state, cwd=None, copy=None)
        return replace(state, cwd=str(home.cwd), copy=CopyPlace(home.root, home.copy, home.cwd))


def places_with(state_dir: Path, thread_id: str) -> list[str]:
    """Return the names of the places whose mirror has the thread."""
    if _THREAD.fullmatch(thread_id) is None:
        return []
    found = (state_dir / "places").glob(f"*/threads/{thread_id}.json")
    return sorted(path.parent.parent.name for path in found)
