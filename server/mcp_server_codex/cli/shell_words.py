"""Say for a person at a shell what a tool says for a model: commands and options, not tools."""

from __future__ import annotations

import re

_COMMANDS = {
    "codex_run": "`codex exec`",
    "codex_resume": "`codex exec resume`",
    "codex_wait": "`mcp-server-codex show RUN`",
    "codex_stop": "`mcp-server-codex stop RUN`",
    "codex_apply": "`mcp-server-codex apply RUN`",
    "codex_sessions": "`mcp-server-codex sessions`",
    "codex_usage": "`mcp-server-codex usage`",
}
"""What a person types instead of calling a tool."""

_TOOL = re.compile(r"\bcodex_(?:run|resume|wait|stop|apply|sessions|usage)\b")
_OPTION = re.compile(
    r"(?<![\w-])(?:(thread_id|group_by|next_cursor|include_archived|include_subagents)\b"
    r"|(since|until|limit|turns|cursor|timezone|cwd|model|source)(?=: ))"
)
"""Names of arguments: those that are no words of English, and others before a colon."""


def for_shell(text: str) -> str:
    """Return *text* with the names of tools and arguments as a person types them."""
    text = _TOOL.sub(lambda found: _COMMANDS[found[0]], text)
    text = _OPTION.sub(lambda found: "--" + found[0].replace("_", "-"), text)
    return text.replace("--next-cursor", "--cursor")
