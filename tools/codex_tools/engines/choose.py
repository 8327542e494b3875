"""Choose the engine that runs turns; the only file that names the engines.

The engines are imported when one is chosen: `--help` and the commands need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from codex_tools.engines.engine import Engine

EngineChoice = Literal["auto", "exec", "app-server"]
"""What the operator may choose."""

DEFAULT_ENGINE: EngineChoice = "auto"
"""The engine of a server whose operator names none."""


def choose_engine(
    codex_bin: str | None,
    untrusted: Sequence[Path] = (),
    *,
    choice: EngineChoice = DEFAULT_ENGINE,
    spares: int = 0,
) -> Engine:
    """Return the engine for this server.

    Args:
        codex_bin: Path or name of the configured Codex; None to look for one.
        untrusted: Folders that runs may write to; no Codex in them is taken from PATH.
        choice: The operator's choice.
        spares: Number of app-servers that wait for the next turns.
    """
    from codex_tools.engines.exec import ExecEngine

    if choice == "exec":
        return ExecEngine(codex_bin, untrusted)
    from codex_tools.engines.app_server import AppServerEngine

    if choice == "app-server":
        return AppServerEngine(codex_bin, untrusted, spares, is_only=True)
    from codex_tools.engines.auto import AutoEngine

    app_server = AppServerEngine(codex_bin, untrusted, spares)
    return AutoEngine(app_server, ExecEngine(codex_bin, untrusted))
