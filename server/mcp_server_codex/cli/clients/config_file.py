"""A client's configuration file: read whole, replaced whole, backed up once."""

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
    """A configuration file, which need not exist."""

    path: Path

    @property
    def backup(self) -> ConfigFile:
        """The file as it was before this server was put into it."""
        return ConfigFile(self.path.with_name(self.path.name + BACKUP_SUFFIX))

    def read(self) -> str | None:
        """Return its text, line ends and byte order mark included; None without a file.

        Raises:
            ConfigError: It is no UTF-8.
            OSError: It cannot be read.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigError("this is not UTF-8", line) from None

    def write(self, text: str, *, instead_of: str | None, like: Path | None = None) -> None:
        """Put *text* in place of *instead_of* in one step, keeping mode, owner and links.

        Args:
            text: What the file shall hold.
            instead_of: What it held when *text* was made from it.
            like: Whose mode it gets, if it is new.

        Raises:
            ConfigError: It has been made read-only, or was changed meanwhile.
            OSError: It cannot be written.
        """
        target = Path(os.path.realpath(self.path))  # A link shall go on pointing there.
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
                raise ConfigError("it was changed by somebody else meanwhile; try again")
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)

    def back_up(self, text: str | None) -> None:
        """Keep *text*, which it holds now; without a file, forget what was kept before."""
        if text is None:
            self.backup.path.unlink(missing_ok=True)
        else:
            self.backup.write(text, instead_of=self.backup.read(), like=self.path)

    def delete(self, *, up_to: Path) -> None:
        """Delete it, and the folders around it that are empty then, below *up_to*."""
        self.check_writable()
        Path(os.path.realpath(self.path)).unlink()
        if self.path.is_symlink():
            return  # Somebody made that link: it stays, as it was before.
        for folder in self.path.parents:
            if folder == up_to or not folder.is_relative_to(up_to):
                return
            try:
                folder.rmdir()
            except OSError:
                return

    def check_writable(self) -> None:
        """Refuse what its owner has made read-only.

        Raises:
            ConfigError: It is.
        """
        # Renaming over it would succeed all the same, and for root os.access says yes.
        with suppress(FileNotFoundError):
            if not self.path.stat().st_mode & 0o222 or not os.access(self.path, os.W_OK):
                raise ConfigError("it is read-only")
