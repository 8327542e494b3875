"""Define the parameters of the Tasks extension; tasks.py serves it."""

from __future__ import annotations

from typing import Any

import mcp_types as types

EXTENSION = "io.modelcontextprotocol/tasks"


class TaskParams(types.RequestParams):
    """The params of tasks/get and tasks/cancel."""

    task_id: str


class UpdateParams(TaskParams):
    """The params of tasks/update."""

    input_responses: dict[str, Any]
