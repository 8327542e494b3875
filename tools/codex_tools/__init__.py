"""The tools, one module for each, and the limits that they work within."""
