"""What all others need to know of Codex: events, errors, its program, paths and text forms."""
