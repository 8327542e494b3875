"""The index over all rollouts, and what it answers."""
