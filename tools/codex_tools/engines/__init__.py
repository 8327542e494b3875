"""Run one turn of Codex: the engines, their process tree and its environment."""
