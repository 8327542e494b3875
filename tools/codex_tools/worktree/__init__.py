"""Find what changed in a work tree; take snapshots of it, lay out copies, apply changes."""
