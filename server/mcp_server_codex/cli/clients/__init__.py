"""The MCP clients that this server can be installed in, and their files."""
