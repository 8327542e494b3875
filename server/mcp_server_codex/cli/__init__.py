"""Commands for people. Each module is imported only when its command is run."""
