"""Read one rollout: its requests, its turns and the state of its thread."""
