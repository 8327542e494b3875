"""Read, replace and back up a client's configuration file."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mcp_server_codex.cli.clients.config_error import ConfigError

BACKUP_SUFFIX = ".bak-mcp-server-codex"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration file, which may not exist."""

    path: Path

    @property
    def backup(self) -> ConfigFile:
        """The backup: a copy of the file from before this server was added."""
        return ConfigFile(self.path.with_name(self.path.name + BACKUP_SUFFIX))

    def read(self) -> str | None:
        """Return the text of the file, or None if the file does not exist.

        Line endings and the byte order mark are kept.

        Raises:
            ConfigError: The file is not UTF-8.
            OSError: The file cannot be read.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigError("the file is not valid UTF-8", line) from None

    def write(self, text: str, *, instead_of: str | None, like: Path | None = None) -> None:
        """Replace the text *instead_of* by *text* atomically; keep mode, owner and links.

        Args:
            text: The new text of the file.
            instead_of: The text of the file from which *text* was made.
            like: The file whose mode a new file gets.

        Raises:
            ConfigError: The file is read-only, or another program changed it meanwhile.
            OSError: The file cannot be written.
        """
        target = Path(os.path.realpath(self.path))  # A link must keep pointing to its target.
        self.check_writable()
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with os.fdopen(
                os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb"
            ) as out:
                with suppress(FileNotFoundError):
                    old = (like or target).stat()
                    os.fchmod(out.fileno(), stat.S_IMODE(old.st_mode))
                    with suppress(PermissionError):
                        os.fchown(out.fileno(), old.st_uid, old.st_gid)
                out.write(text.encode())
                out.flush()
                os.fsync(out.fileno())
            if self.read() != instead_of:
                raise ConfigError(
                    "another program changed the file meanwhile; run the command again"
                )
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)

    def back_up(self, text: str | None) -> None:
        """Write *text*, the file's current text, to the backup; delete the backup if it is None."""
        if text is None:
            self.backup.path.unlink(missing_ok=True)
        else:
            self.backup.write(text, instead_of=self.backup.read(), like=self.path)

    def delete(self, *, up_to: Path) -> None:
        """Delete the file and its parent folders below *up_to* that are then empty."""
        self.check_writable()
        Path(os.path.realpath(self.path)).unlink()
        if self.path.is_symlink():
            return  # This server did not make the link, so the link stays.
        for folder in self.path.parents:
            if folder == up_to or not folder.is_relative_to(up_to):
                return
            try:
                folder.rmdir()
            except OSError:
                return

    def check_writable(self) -> None:
        """Check that the file's owner has not made the file read-only.

        Raises:
            ConfigError: The file is read-only.
        """
        # A rename over a read-only file succeeds, and os.access returns True for root.
        with suppress(FileNotFoundError):
            if not self.path.stat().st_mode & 0o222 or not os.access(self.path, os.W_OK):
                raise ConfigError("the file is read-only")
