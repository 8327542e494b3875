"""Know how long a call may wait for its run, by the client."""

from __future__ import annotations

WAIT_S: dict[str, float] = {
    "claude-code": float("inf"),
    "gemini-cli-mcp-client": 1800.0,
    "qwen-cli-mcp-client-": 1800.0,
    "opencode": 1800.0,
    "copilot-cli": 1800.0,
}
"""Seconds that a call waits for its run, by the client's name or, with a "-" last, its beginning.

In Claude Code 2.1.330, a call may take hours while the client receives progress. Each message
resets its idle limit of 30 minutes, and a call without progress survived 330 s (both measured).
Gemini CLI
0.61.0, Qwen Code 0.24.4, opencode 1.18.33 and Copilot CLI 1.0.102 waited 1,800 s for a call that
sends progress; longer was not measured. So did Codex 0.171.0 with the `tool_timeout_sec` that
`install` sets, but without it Codex waits 60 s, and this server cannot tell the two apart.
"""

WAIT_S_ELSE = 45.0
"""Seconds that a call waits with any other client, or if it did not ask for progress.

Less than the 60 s of Codex without `tool_timeout_sec`, of Continue 1.5.47 and of clients on the
TypeScript SDK. The frameworks on the Python SDK cannot be told apart: all call themselves `mcp`.
"""


def patience_of(client: str, *, has_progress: bool) -> float:
    """Return the seconds that a call of *client* waits for its run.

    Args:
        client: The name that the client gives itself.
        has_progress: True if the call asked for progress, which extends the client's time limit.
    """
    if client != "claude-code" and not has_progress:
        return WAIT_S_ELSE
    found = (s for key, s in WAIT_S.items() if client == key or _begins(client, key))
    return next(found, WAIT_S_ELSE)


def _begins(client: str, key: str) -> bool:
    return key.endswith("-") and client.startswith(key)
