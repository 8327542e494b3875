"""Check whether Codex may ask before it leaves the sandbox, and who may answer."""

from __future__ import annotations

from typing import Literal

from codex_tools.codex.errors import InvalidArguments, NotAllowed
from codex_tools.codex.questions import Approvals
from codex_tools.codex.sandbox import Sandbox

Answerer = Literal["never", "person", "caller"]
"""Who may allow what leaves the sandbox; `caller`: the calling agent, or a person."""


def check_approvals(
    asked: Approvals | None, by: Answerer, sandbox: Sandbox, depth: int, *, is_pinned: bool
) -> Approvals:
    """Return whether Codex may ask in a turn.

    What is accepted runs outside the sandbox. So this is the operator's decision alone: no person
    is asked to grant it once.

    Args:
        asked: What the caller asks for.
        by: Who may answer, as the operator says.
        sandbox: The sandbox of the turn.
        depth: Number of runs that this server is nested in.
        is_pinned: True if the widest sandbox is read-only, and the operator has not said that an
            answer may leave it all the same.

    Raises:
        NotAllowed: The operator lets nobody answer, or not the one who would.
        InvalidArguments: Codex's own reviewer does not work in that sandbox.
    """
    if asked is None or asked == "never":
        return "never"
    limit, option = None, "--approvals"
    if by == "never":
        limit = "this server lets nobody answer Codex's questions"
    elif depth:
        limit = "this server was started inside a run, whose model must not allow more"
    elif asked == "auto" and by == "person":
        limit = "only a person may answer Codex's questions"
    elif is_pinned:
        limit = "what is accepted runs outside the sandbox, and the widest here is read-only"
        option = "--approve-outside-sandbox"
    if limit is not None:
        raise NotAllowed(f"approvals {asked}", limit, option)
    if asked == "auto" and sandbox != "workspace-write":
        raise InvalidArguments(["approvals: auto needs sandbox workspace-write"])
    return asked
