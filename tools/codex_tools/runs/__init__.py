"""Look after runs: start, retry, stop, keep their results, and log who asked."""
