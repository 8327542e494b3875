"""Json, the type of a parsed JSON object, defined once for all packages."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
"""A JSON object as a parser returns it: keys are strings, values are of any JSON type."""
