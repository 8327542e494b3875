"""Read and change the configuration files of MCP clients."""
