"""Find what Codex has appended to the rollouts of a thread since the last look."""

from __future__ import annotations

from pathlib import Path

from codex_tools.codex.foreign_file import open_foreign_file
from codex_tools.rollouts.files import find_rollouts
from codex_tools.rollouts.threads import Threads

READ_LIMIT = 8 * 1024 * 1024
"""Most bytes that are read at a time; the rest follows at the next look."""


class RolloutFollower:
    """The rollouts of one thread; its methods access the disk."""

    def __init__(self, threads: Threads, sizes: dict[str, int]) -> None:
        """Read nothing yet.

        Args:
            threads: The threads of this machine.
            sizes: How much of each rollout the server has, by the path in CODEX_HOME.
        """
        self._home = threads.home
        self._sizes = dict(sizes)
        self.thread_id: str | None = None

    def news(self) -> list[tuple[str, int, bytes]]:
        """Return the path, the offset and some new bytes of each rollout that has grown.

        Call it again until it returns nothing. A rollout that is shorter than what the server has
        is sent from its start.
        """
        if self.thread_id is None:
            return []
        found: list[tuple[str, int, bytes]] = []
        for path in find_rollouts(self._home, self.thread_id):
            name = path.relative_to(self._home).as_posix()
            try:
                found += self._read(path, name)
            except OSError:
                continue  # Codex has archived or packed it meanwhile.
        return found

    def _read(self, path: Path, name: str) -> list[tuple[str, int, bytes]]:
        at = self._sizes.get(name, 0)
        with open_foreign_file(path) as file:
            size = file.seek(0, 2)
            if size < at:
                at = 0
            file.seek(at)
            data = file.read(min(READ_LIMIT, size - at))
        self._sizes[name] = at + len(data)
        return [(name, at, data)] if data else []
