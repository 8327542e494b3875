"""Paths as a person writes them."""

from __future__ import annotations

import os


def expand_home(path: str) -> str:
    """Return *path* with the home folder in place of a leading "~", where there is one."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser raises where there is none


def make_absolute(path: str) -> str:
    """Return *path* from the root on, with each ".." taken out and no link followed."""
    return os.path.abspath(path)  # noqa: PTH100 - no method of Path does all three
