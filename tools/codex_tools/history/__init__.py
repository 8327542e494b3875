"""Index all rollouts and report threads, texts and usage from the index."""
