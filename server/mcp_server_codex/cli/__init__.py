"""Commands for people; each module is imported only when its command runs."""
