"""Make the error that tells a caller of a fault of this server."""

from __future__ import annotations

from codex_tools.codex.errors import InternalFault, ServerReplaced

_PACKAGE = __file__.removesuffix("codex/faults.py")


def fault_for(error: Exception) -> InternalFault:
    """Return the error that tells a caller of the unexpected *error*.

    A module that is gone is no defect: this server imports some only when they are needed. It also
    reads its own source files, for the descriptions in its schemas.
    """
    if isinstance(error, ImportError):
        return ServerReplaced(f"module {error.name} cannot be imported")
    if isinstance(error, FileNotFoundError) and str(error.filename).startswith(_PACKAGE):
        return ServerReplaced(f"{error.filename} is gone")
    return InternalFault()
