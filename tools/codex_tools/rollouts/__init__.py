"""Read the rollouts of a thread: its requests, its turns and its state."""
