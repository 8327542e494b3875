"""What an agent can do with Codex: one module per tool, and the core they share."""
