"""Ways to run a turn of Codex, and what they share."""
