"""Write the log: to stderr only, with secrets masked and foreign text cleaned."""

from __future__ import annotations

import logging

from codex_tools.codex.clean_text import indent_after_first
from codex_tools.codex.masking import mask


class _Masked(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the entry and its traceback, masked, and indented after the first line.

        So no message can pass for an entry of its own.
        """
        return indent_after_first(mask(super().format(record)))


def log_to_stderr(level: str) -> None:
    """Write records of *level* and above to stderr, those of libraries included."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Masked("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
