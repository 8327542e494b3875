"""Define the errors of snapshots, copies and their application.

TreeError
* GitFailed: git did not do what it was asked to do
* CopyBusy: another process uses the copy
* NotAppliable: a plan cannot be carried out; nothing was changed
* RolledBack: an application failed, and the files were restored
"""

from __future__ import annotations


class TreeError(Exception):
    """A work tree cannot be read, copied or changed; the text says why."""


class GitFailed(TreeError):
    """git failed, took too long or printed too much."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"git {command}: {reason}")
        self.command = command
        self.reason = reason


class CopyBusy(TreeError):
    """Another process holds the lock."""


class NotAppliable(TreeError):
    """A plan holds a conflict, or the files have changed since it was made."""


class RolledBack(TreeError):
    """Files could not be written; what was written before has been restored."""
