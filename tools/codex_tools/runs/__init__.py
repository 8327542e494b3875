"""Run turns of Codex in the background, and keep their results, events and traces."""
