"""Find the files of a git work tree that changed during a turn."""
