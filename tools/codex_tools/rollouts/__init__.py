"""Read one rollout: its requests, its turns, how its thread stands."""
