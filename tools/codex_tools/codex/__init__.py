"""All that knows Codex: its program, its events, its files. No tool lives here."""
