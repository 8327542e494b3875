"""Write the files that Codex reads a part of a turn from, and remove exactly those files.

A command of a run may be able to write to the folder, or to swap it for a link. So the files are
written and removed by the descriptor of the folder, by the names that were written.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from codex_tools.codex.private_folder import claim_folder, make_private_folder
from codex_tools.engines import guard


class Scratch:
    """A new folder with the files of one turn."""

    def __init__(self, beginning: Path | None) -> None:
        """Create the folder.

        Args:
            beginning: The beginning of its path; None for a folder outside the state folder.

        Raises:
            OSError: The folder cannot be created.
        """
        if beginning is None:
            self.path, _ = make_private_folder()
        else:
            claim_folder(beginning.parent, follow=False)
            self.path = Path(f"{beginning}-{secrets.token_hex(8)}")
            self.path.mkdir(mode=0o700)
        self._held = guard.hold(str(self.path))

    def write(self, name: str, data: bytes) -> Path:
        """Write *data* to the new file *name*; return its path."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._held.folder)
        self._held.names.append(name)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        return self.path / name

    def link(self, name: str, target: Path) -> Path:
        """Make the link *name* to *target*; return its path."""
        os.symlink(target, name, dir_fd=self._held.folder)
        self._held.names.append(name)
        return self.path / name

    def remove(self) -> None:
        """Remove the files that were written, and the folder."""
        guard.remove(self._held)
