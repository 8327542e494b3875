"""What the doctor looks at, each subject in its file."""
