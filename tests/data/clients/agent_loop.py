"""A minimal agent: asks the scripted model, calls the tools that it names, until it answers."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any


async def converse(
    url: str, tools: list[dict[str, Any]], call: Callable[[str, dict[str, Any]], Awaitable[str]]
) -> str:
    """Return the model's answer; *call* returns what the model gets to see of a tool's result."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Go."}]
    while True:
        body = {"model": "scripted", "messages": messages, "tools": tools}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            message = json.load(response)["choices"][0]["message"]
        messages.append(message)
        if not message.get("tool_calls"):
            return message["content"]
        for each in message["tool_calls"]:
            function = each["function"]
            told = await call(function["name"], json.loads(function["arguments"]))
            messages.append({"role": "tool", "tool_call_id": each["id"], "content": told})


def function(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as chat completions take it."""
    about = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": about}
