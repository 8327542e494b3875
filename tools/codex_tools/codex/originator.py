"""Name this client to Codex."""

from __future__ import annotations

CLIENT_NAME = "mcp-server-codex"
"""Name that this client gives itself to an app-server.

Codex records it as the originator of the threads, whose source is `vscode` (0.163.0, 0.171.0).
"""
