"""One finding of the doctor: the subject, its status, and the fix for a problem.

This module imports only a small part of the standard library, because it must
load where other packages cannot be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from codex_tools.codex.json_object import Json

Status = Literal["ok", "skipped", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """A finding of the doctor."""

    name: str
    status: Status
    message: str
    cure: str | None = None
    """The command or the edit that fixes the problem; None if there is nothing to fix."""
    details: Json = field(default_factory=dict[str, Any])

    def masked(self, mask: Callable[[str], str]) -> Check:
        """Return the finding with *mask* applied to all of its texts."""
        cure = mask(self.cure) if self.cure is not None else None
        details = cast("Json", _masked(self.details, mask))
        return Check(self.name, self.status, mask(self.message), cure, details)


def ok(name: str, message: str, **details: Any) -> Check:
    """Return a finding without a problem."""
    return Check(name, "ok", message, None, details)


def skipped(name: str, message: str) -> Check:
    """Return a finding of a check that could not be made because of a problem elsewhere."""
    return Check(name, "skipped", message)


def warning(name: str, message: str, cure: str, **details: Any) -> Check:
    """Return a finding with which the server still works."""
    return Check(name, "warning", message, cure, details)


def problem(name: str, message: str, cure: str, **details: Any) -> Check:
    """Return a finding that prevents the server or Codex from working."""
    return Check(name, "problem", message, cure, details)


def worst(checks: list[Check]) -> Status:
    """Return the worst status of *checks*."""
    found = {check.status for check in checks}
    return "problem" if "problem" in found else "warning" if "warning" in found else "ok"


def _masked(value: object, mask: Callable[[str], str]) -> object:
    match value:
        case str():
            return mask(value)
        case list():
            return [_masked(each, mask) for each in cast("list[object]", value)]
        case dict():
            pairs = cast("dict[str, object]", value).items()
            return {key: _masked(each, mask) for key, each in pairs}
        case _:
            return value
