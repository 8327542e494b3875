"""The log: stderr only, secrets masked."""

from __future__ import annotations

import logging

from codex_tools.codex.masking import mask


class _Masked(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the whole entry, its traceback too, with what looks secret masked."""
        return mask(super().format(record))


def log_to_stderr(level: str) -> None:
    """Log what is of *level* or above, of the libraries too."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Masked("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
