"""The MCP server on stdio: tools, progress, questions, tasks, prompts and resources."""
