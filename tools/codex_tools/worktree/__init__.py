"""What became of the user's files."""
