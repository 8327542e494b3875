"""The MCP stdio server in front of `codex_tools`."""
