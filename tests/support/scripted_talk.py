"""A scripted model on loopback for clients of other providers: OpenAI's chat completions, Gemini.

A talk is a list of moves. Each request holds the results of the tool calls so far, and their
number chooses the next move, so that a request that is sent again is answered alike. A request
that offers no tools, such as one for a title, gets a text and is no part of the talk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.loopback import Loopback, QuietHandler
from mcp_server_codex.cli.scripted_model import Call, ScriptedModel, do, say
from mcp_server_codex.cli.scripted_model import Step as CodexStep
from support.scripted_messages import ScriptedMessages, Use

Move = Use | str
"""A call of a tool by the name that the server gave it, or the text that ends the talk."""

NextMove = Callable[[Sequence[str]], Move]
"""Returns the next move from what the model was told of its calls so far, the newest last."""


@dataclass(slots=True)
class Talk:
    """What the model does, and what it was told."""

    next_move: NextMove
    told: list[str] = field(default_factory=list[str])
    """The results of the tool calls, as the newest request has them."""
    offered: set[str] = field(default_factory=set[str])
    """The names of the tools in the newest request, as the client has made them."""

    def answer(self, told: Sequence[str], offered: Sequence[str]) -> Move:
        """Return the next move, its tool under the name that the client gave it."""
        if not offered:
            return "A title."
        # A client may show its tools only to a search, and accepts their names before it.
        names = [name for name in offered if "codex_run" in name]
        if len(told) >= len(self.told):
            self.told = [*told]
            self.offered = {*offered}
        move = self.next_move(told)
        if isinstance(move, Use):
            prefix = names[0].removesuffix("codex_run") if names else "mcp__codex__"
            return Use(prefix + move.name, move.arguments)
        return move


@dataclass(slots=True)
class ScriptedTalk:
    """The server for chat completions and Gemini; use it as a context manager."""

    talk: Talk
    _server: Loopback | None = None

    def __enter__(self) -> ScriptedTalk:
        self._server = Loopback(_Handler, talk=self.talk)
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    @property
    def url(self) -> str:
        """The base URL for Gemini; chat completions are below its `/v1`."""
        assert self._server is not None, "the scripted model is not serving"
        return self._server.url


class MessagesTalk(ScriptedMessages):
    """The model of Claude Code, led by a talk."""

    talk: Talk

    def next_step(self, body: Json) -> Move:
        """Record one request and return the move that answers it."""
        self.requests.append(body)
        offered = [tool["name"] for tool in cast("list[Json]", body.get("tools") or [])]
        return self.talk.answer([result.text for result in self.tool_results], offered)


class CodexTalk(ScriptedModel):
    """The model of Codex as the client, led by a talk."""

    talk: Talk

    def next_step(self, body: Json, authorization: str | None) -> CodexStep:
        """Return the move that answers one request."""
        items = cast("list[Json]", body["input"])
        told = [str(i["output"]) for i in items if i.get("type", "").endswith("_call_output")]
        move = self.talk.answer(told, ["codex_run"])
        if isinstance(move, Use):
            return do(Call(move.name, move.arguments, "mcp__codex"))
        return say(move)


class _Handler(QuietHandler):
    talk: Talk

    def do_GET(self) -> None:
        models = [{"id": "scripted", "object": "model", "owned_by": "nobody"}]
        self._send("application/json", json.dumps({"object": "list", "data": models}))

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = cast("Json", json.loads(data or b"{}"))
        path, _, query = self.path.partition("?")
        if path.endswith("/chat/completions"):
            answer = self._chat(body)
            if not body.get("stream"):
                return self._send("application/json", json.dumps(answer))
            events = [*_chat_chunks(answer), "[DONE]"]
        elif "enerateContent" in path:
            answer = self._gemini(body)
            if "streamGenerateContent" not in path:
                return self._send("application/json", json.dumps(answer))
            if "alt=sse" not in query:
                return self._send("application/json", json.dumps([answer]))
            events = [json.dumps(answer)]
        elif path.endswith(":countTokens"):
            return self._send("application/json", '{"totalTokens": 1000}')
        else:
            return self._send("application/json", '{"error": {"message": "not served"}}', 404)
        return self._send("text/event-stream", "".join(f"data: {event}\n\n" for event in events))

    def _chat(self, body: Json) -> Json:
        told = [_text(m["content"]) for m in body["messages"] if m["role"] == "tool"]
        offered = [tool["function"]["name"] for tool in _list(body, "tools")]
        move = self.talk.answer(told, offered)
        message: Json = {"role": "assistant", "content": None}
        if isinstance(move, Use):
            function = {"name": move.name, "arguments": json.dumps(move.arguments)}
            id_ = f"call_{len(told)}"
            message["tool_calls"] = [{"id": id_, "type": "function", "function": function}]
        else:
            message["content"] = move
        reason = "tool_calls" if isinstance(move, Use) else "stop"
        usage = {"prompt_tokens": 1200, "completion_tokens": 34, "total_tokens": 1234}
        return {
            "id": f"chat_{len(told)}",
            "object": "chat.completion",
            "created": 1,
            "model": str(body.get("model")),
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": usage,
        }

    def _gemini(self, body: Json) -> Json:
        parts = [part for each in _list(body, "contents") for part in _list(each, "parts")]
        found: list[Json] = [p["functionResponse"] for p in parts if "functionResponse" in p]
        told = [json.dumps(each["response"], ensure_ascii=False) for each in found]
        declared = [_list(tool, "functionDeclarations") for tool in _list(body, "tools")]
        move = self.talk.answer(told, [each["name"] for some in declared for each in some])
        part: Json = {"text": move}
        if isinstance(move, Use):
            part = {"functionCall": {"name": move.name, "args": move.arguments}}
        content = {"role": "model", "parts": [part]}
        usage = {"promptTokenCount": 1200, "candidatesTokenCount": 34, "totalTokenCount": 1234}
        candidate = {"index": 0, "content": content, "finishReason": "STOP"}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "scripted"}

    def _send(self, kind: str, text: str, status: int = 200) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _chat_chunks(answer: Json) -> Iterator[str]:
    (choice,) = answer["choices"]
    delta = dict(choice["message"])
    if calls := delta.get("tool_calls"):
        delta["tool_calls"] = [call | {"index": index} for index, call in enumerate(calls)]
    head = {"id": answer["id"], "object": "chat.completion.chunk", "created": 1}
    head["model"] = answer["model"]
    yield json.dumps(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    last: Json = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    yield json.dumps(head | {"choices": [last], "usage": answer["usage"]})


def _list(owner: Json, key: str) -> list[Json]:
    return cast("list[Json]", owner.get(key) or [])


def _text(content: str | list[Json]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content)
