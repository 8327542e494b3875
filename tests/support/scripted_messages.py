"""A scripted model on loopback for Claude Code: the Messages API over SSE, without a model.

The counterpart of the server's own scripted model, which speaks the Responses
API for Codex. What it answers is one list of steps: the first request of the
conversation gets the first, and each further one the step after those that the
conversation already holds, so a request that is sent again is answered alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.loopback import Loopback, QuietHandler


@dataclass(frozen=True, slots=True)
class Use:
    """The model calls the tool *name*, as the client has named it."""

    name: str
    arguments: Json


Step = Use | str | Callable[[Sequence["ToolResult"]], Use]
"""What one request is answered with: a tool call, or a text that ends the turn.

A function makes the tool call from the results so far.
"""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the model was told that a tool call has come to."""

    text: str
    is_error: bool


@dataclass(slots=True)
class ScriptedMessages:
    """The loopback server; use it as a context manager."""

    steps: Sequence[Step] = ("Nothing to do.",)
    requests: list[Json] = field(default_factory=list[Json])
    """The bodies of all requests for a message."""
    _server: Loopback | None = None

    def __enter__(self) -> ScriptedMessages:
        self._server = Loopback(_Handler, model=self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    @property
    def base_url(self) -> str:
        """What ANTHROPIC_BASE_URL must be."""
        assert self._server is not None, "the scripted model is not serving"
        return self._server.url

    @property
    def offered(self) -> dict[str, Json]:
        """The tools of the newest request, by name."""
        return {tool["name"]: tool for tool in self.requests[-1]["tools"]}

    @property
    def tool_results(self) -> list[ToolResult]:
        """The results of all tool calls, as the newest request tells of them."""
        return [
            ToolResult(_text(block["content"]), bool(block.get("is_error")))
            for message in self.requests[-1]["messages"]
            for block in _blocks(message)
            if block["type"] == "tool_result"
        ]

    @property
    def told(self) -> str:
        """All texts of the newest request that no tool call has brought."""
        system = cast("list[Json] | str", self.requests[-1].get("system", ""))
        blocks = [b for message in self.requests[-1]["messages"] for b in _blocks(message)]
        return "\n".join([_text(system), *(b["text"] for b in blocks if b["type"] == "text")])

    def next_step(self, body: Json) -> Use | str:
        """Record one request and return the step that answers it."""
        self.requests.append(body)
        taken = sum(message["role"] == "assistant" for message in body["messages"])
        step = self.steps[min(taken, len(self.steps) - 1)]
        return step(self.tool_results) if callable(step) else step


def _blocks(message: Json) -> list[Json]:
    content = cast("list[Json] | str", message["content"])
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(content: list[Json] | str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block["text"] for block in content if block["type"] == "text")


class _Handler(QuietHandler):
    model: ScriptedMessages

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        data = self.rfile.read(length)
        path = self.path.partition("?")[0]
        if path.endswith("/count_tokens"):
            return self._send(200, "application/json", {"input_tokens": len(data) // 4})
        if not path.endswith("/messages"):
            error = {"type": "not_found_error", "message": "not served here"}
            return self._send(404, "application/json", {"type": "error", "error": error})
        body = cast("Json", json.loads(data))
        step = self.model.next_step(body)
        events = _stream(step, body, len(self.model.requests))
        text = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events)
        return self._send(200, "text/event-stream", text)

    def _send(self, status: int, kind: str, content: Json | str) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _stream(step: Use | str, body: Json, number: int) -> Iterator[Json]:
    message: Json = {"id": f"msg_{number}", "type": "message", "role": "assistant", "content": []}
    message |= {"model": body["model"], "stop_reason": None, "stop_sequence": None}
    yield {
        "type": "message_start",
        "message": message | {"usage": {"input_tokens": 1200, "output_tokens": 1}},
    }
    if isinstance(step, Use):
        block: Json = {"type": "tool_use", "id": f"toolu_{number}", "name": step.name, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(step.arguments)}
        reason = "tool_use"
    else:
        block = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": step}
        reason = "end_turn"
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": None},
        "usage": {"output_tokens": 34},
    }
    yield {"type": "message_stop"}
