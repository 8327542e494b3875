"""Write the sandbox of a turn as the app-server takes it, and compare what it says that it took."""

from __future__ import annotations

import os
from typing import cast

from codex_tools.codex.errors import WiderThanAsked
from codex_tools.codex.json_object import Json, object_of, text_of
from codex_tools.codex.sandbox import WIDTH, Sandbox
from codex_tools.codex.turn_result import TurnResult
from codex_tools.engines.engine import TurnRequest
from codex_tools.engines.json_rpc import Notification

_MODES: dict[str, Sandbox] = {
    "readOnly": "read-only",
    "workspaceWrite": "workspace-write",
    "dangerFullAccess": "danger-full-access",
    "externalSandbox": "danger-full-access",  # No sandbox by Codex itself.
}


def sandbox_policy(request: TurnRequest, configured: Json) -> Json:
    """Return the sandbox of a turn as a `sandboxPolicy`.

    Codex 0.163.0 and 0.171.0 take a policy as it is: without these fields, a turn would lose the
    network access that the user's configuration gives it.

    Args:
        request: The turn.
        configured: The user's `sandbox_workspace_write`, as `config/read` returns it.
    """
    match request.sandbox:
        case "read-only":
            return {"type": "readOnly", "networkAccess": False}
        case "danger-full-access":
            return {"type": "dangerFullAccess"}
        case "workspace-write":
            roots = [*_texts(configured.get("writable_roots")), *map(str, request.add_dirs)]
            return {
                "type": "workspaceWrite",
                "writableRoots": [*dict.fromkeys(roots)],
                "networkAccess": configured.get("network_access") is True,
                "excludeTmpdirEnvVar": configured.get("exclude_tmpdir_env_var") is True,
                "excludeSlashTmp": configured.get("exclude_slash_tmp") is True,
            }


def approvals_of(request: TurnRequest) -> Json:
    """Return who may allow what the sandbox forbids.

    With `untrusted`, an accepted command may run twice, the second time without a sandbox
    (0.147.0 to 0.171.0).
    """
    return {
        "approvalPolicy": "never" if request.approvals == "never" else "on-request",
        "approvalsReviewer": "auto_review" if request.approvals == "auto" else "user",
    }


def check_echo(request: TurnRequest, thread: Json) -> str | None:
    """Return how the started thread differs from what was asked; None if it does not.

    Args:
        request: The turn.
        thread: The result of `thread/start`, `thread/resume` or `thread/fork`.
    """
    asked = approvals_of(request)
    cwd = text_of(thread, "cwd") or ""
    if cwd != str(request.cwd) and os.path.normpath(cwd) != str(request.cwd):
        return f"cwd {cwd[:200]!r}"
    if thread.get("approvalPolicy") != asked["approvalPolicy"]:
        return f"approval policy {str(thread.get('approvalPolicy'))[:100]}"
    if thread.get("approvalsReviewer") not in (None, asked["approvalsReviewer"]):
        return f"approvals reviewer {str(thread.get('approvalsReviewer'))[:100]}"
    sandbox = object_of(thread, "sandbox")
    if sandbox.get("type") != "readOnly" or sandbox.get("networkAccess") not in (None, False):
        return f"sandbox {str(sandbox)[:200]}"
    thread_id = text_of(object_of(thread, "thread"), "id")
    if thread_id is None:
        return "no id of the thread"
    if request.thread_id is not None and (thread_id == request.thread_id) is request.fork:
        return f"thread {thread_id[:100]}"
    return None


def check_turn_echo(
    request: TurnRequest, thread_id: str, notification: Notification, policy: Json
) -> None:
    """Check the settings that Codex reports for the thread against those of the turn.

    Raises:
        WiderThanAsked: They allow more than *policy*.
    """
    params = notification.params
    if notification.method != "thread/settings/updated" or params.get("threadId") != thread_id:
        return
    settings = object_of(params, "threadSettings")
    taken = object_of(settings, "sandboxPolicy")
    if (excess := _excess(request, policy, taken)) is not None:
        raise WiderThanAsked("sandbox", request.sandbox, excess, TurnResult(thread_id=thread_id))
    cwd = text_of(settings, "cwd")
    if cwd is not None and os.path.normpath(cwd) != str(request.cwd):
        raise WiderThanAsked("cwd", str(request.cwd), cwd[:200], TurnResult(thread_id=thread_id))
    asked = approvals_of(request)["approvalsReviewer"]
    if settings.get("approvalsReviewer") not in (None, "user", asked):
        reviewer = str(settings.get("approvalsReviewer"))[:100]
        turn = TurnResult(thread_id=thread_id)
        raise WiderThanAsked("approvals reviewer", asked, reviewer, turn)


def _excess(request: TurnRequest, policy: Json, taken: Json) -> str | None:
    """Return what *taken* allows beyond *policy*; None if nothing."""
    kind = text_of(taken, "type") or ""
    mode = _MODES.get(kind)
    if mode is None or WIDTH[mode] > WIDTH[request.sandbox]:
        return kind[:100] or "an unknown sandbox"
    if mode == "danger-full-access":
        return None
    if request.sandbox == "danger-full-access":
        return None  # It is narrower.
    if taken.get("networkAccess") not in (None, False, policy.get("networkAccess")):
        return f"{kind} with network access"
    known = {*_texts(policy.get("writableRoots")), str(request.cwd)}
    further = [root for root in _texts(taken.get("writableRoots")) if root not in known]
    return f"{kind} with {further[0][:200]} writable" if further else None


def _texts(value: object) -> list[str]:
    found = cast("list[object]", value) if isinstance(value, list) else []
    return [each for each in found if isinstance(each, str)]
