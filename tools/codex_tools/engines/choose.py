"""Choose the engine that runs turns; the only file that names the engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from codex_tools.engines.engine import Engine
from codex_tools.engines.exec import ExecEngine


def choose_engine(codex_bin: str | None, untrusted: Sequence[Path] = ()) -> Engine:
    """Return the engine for this server.

    Args:
        codex_bin: Path or name of the configured Codex; None to look for one.
        untrusted: Folders that runs may write to; no Codex in them is taken from PATH.
    """
    return ExecEngine(codex_bin, untrusted)
