"""A scripted model: a server on loopback that imitates the Responses API over SSE.

The real Codex CLI uses it like any other provider. So the demo, the doctor and
the tests run Codex itself without an account, a key or a network. The answers are
a script: one `Step` for each request, found by the prompt of the turn.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.loopback import Loopback, QuietHandler


@dataclass(frozen=True, slots=True)
class Say:
    """The model answers *text*; the turn ends unless the reply also calls a tool."""

    text: str


@dataclass(frozen=True, slots=True)
class Think:
    """The model shows a reasoning summary."""

    text: str


@dataclass(frozen=True, slots=True)
class Shell:
    """The model runs *command* with the shell tool that Codex offers."""

    command: str
    yield_ms: int = 30_000


@dataclass(frozen=True, slots=True)
class Patch:
    """The model applies *patch*, in Codex's patch format without the first and last line."""

    patch: str


@dataclass(frozen=True, slots=True)
class Call:
    """The model calls the function *name*, in *namespace* if that is given."""

    name: str
    arguments: Json
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """The model has searched the web for *query*. The tool is hosted: no request follows."""

    query: str


Act = Say | Think | Shell | Patch | Call | Search


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one response reports."""

    input_tokens: int = 1200
    cached_tokens: int = 1000
    output_tokens: int = 34
    reasoning_tokens: int = 10


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete response: the acts of the model, after a pause of *delay_s* seconds."""

    acts: tuple[Act, ...]
    usage: Usage = Usage()
    delay_s: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """An HTTP error: *body* as JSON under *status*."""

    status: int
    body: Json
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Fail:
    """A stream that ends with `response.failed`, carrying *code* and *message*."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A stream that ends with `response.incomplete` for *reason*."""

    reason: str
    text: str = "half an ans"


@dataclass(frozen=True, slots=True)
class Cut:
    """A stream that is closed in the middle of an answer."""

    text: str = "half an ans"


Step = Reply | Refuse | Fail | Incomplete | Cut
"""The answer to one request."""


def model_name(version: tuple[int, int, int] | None) -> str:
    """Return a model that Codex *version* knows, so that Codex offers all of its tools."""
    if version is None or version >= (0, 147, 0):
        return "gpt-5.5"
    return "gpt-5.4" if version >= (0, 98, 0) else "gpt-5.1-codex-max"


def say(text: str, usage: Usage = Usage(), *, delay_s: float = 0.0) -> Reply:
    """Return a reply that ends the turn with *text*."""
    return Reply((Say(text),), usage, delay_s)


def do(*acts: Act, delay_s: float = 0.0) -> Reply:
    """Return a reply with *acts*; after a tool call Codex sends another request."""
    return Reply(acts, delay_s=delay_s)


def api_error(status: int, message: str, kind: str, code: str | None = None) -> Refuse:
    """Return an HTTP error in the format of the OpenAI API."""
    return Refuse(
        status, {"error": {"message": message, "type": kind, "param": None, "code": code}}
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that the model received."""

    at_s: float
    prompt: str
    body: Json
    authorization: str | None
    step: Step
    """The step that answered the request."""


@dataclass(slots=True)
class ScriptedModel:
    """The scripted model's server; use it as a context manager.

    The script of a turn is found by its prompt: the newest user text that has a
    script. Its steps are used in order, one for each request, and the last step
    repeats. So `[Cut(), say("ok")]` fails once and `[Cut()]` fails always.
    """

    scripts: dict[str, Sequence[Step]] = field(default_factory=dict[str, Sequence[Step]])
    default: Sequence[Step] = (say("Hello from the scripted model."),)
    requests: list[Seen] = field(default_factory=list[Seen])
    _taken: dict[str, int] = field(default_factory=dict[str, int])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _server: Loopback | None = None

    def __enter__(self) -> ScriptedModel:
        """Start serving on a free loopback port."""
        self._server = Loopback(_Handler, model=self)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving and free the port."""
        if self._server is not None:
            self._server.close()

    @property
    def base_url(self) -> str:
        """The provider's `base_url`."""
        assert self._server is not None, "the scripted model is not serving"
        return f"{self._server.url}/v1"

    def write_config(self, codex_home: Path, *, model: str = "gpt-5.5", extra: str = "") -> None:
        """Write a config.toml that makes this model the only provider of *codex_home*."""
        codex_home.mkdir(parents=True, exist_ok=True)
        (codex_home / "config.toml").write_text(
            f'model = "{model}"\nmodel_provider = "scripted"\n{extra}\n'
            "[model_providers.scripted]\n"
            'name = "scripted model"\n'
            f'base_url = "{self.base_url}"\n'
            'wire_api = "responses"\n',
            encoding="utf-8",
        )

    def next_step(self, body: Json, authorization: str | None) -> Step:
        """Record one request and return the step that answers it."""
        texts = list(_user_texts(body))
        with self._lock:
            known = [text for text in texts if text in self.scripts]
            prompt = (known or texts or [""])[-1]
            steps = self.scripts.get(prompt, self.default)
            taken = self._taken.get(prompt, 0)
            self._taken[prompt] = taken + 1
            step = steps[min(taken, len(steps) - 1)]
            self.requests.append(Seen(time.time(), prompt, body, authorization, step))
        return step

    def next_id(self) -> int:
        """Return a number that is unique among the responses of this model."""
        with self._lock:
            return next(self._ids)


class _Handler(QuietHandler):
    model: ScriptedModel

    def do_GET(self) -> None:  # http.server's name
        """Answer with an empty list of models, which some versions request."""
        self._send_json(200, {"object": "list", "data": [], "models": []})

    def do_POST(self) -> None:  # http.server's name
        """Answer one Responses request with the next step of its script."""
        length = int(self.headers.get("content-length") or 0)
        body = cast(Json, json.loads(self.rfile.read(length) or b"{}"))
        if not self.path.split("?")[0].endswith("/responses"):
            return self._send_json(404, {"error": {"message": "not served here"}})
        step = self.model.next_step(body, self.headers.get("authorization"))
        if isinstance(step, Refuse):
            return self._send_json(step.status, step.body, step.headers)
        self.close_connection = True
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        for name, value in step.headers if isinstance(step, Reply) else ():
            self.send_header(name, value)
        self.end_headers()
        if isinstance(step, Reply) and step.delay_s:
            time.sleep(step.delay_s)
        for event in _stream(step, body, self.model.next_id()):
            data = json.dumps(event)
            self.wfile.write(f"event: {event['type']}\ndata: {data}\n\n".encode())
        self.wfile.flush()

    def _send_json(self, status: int, body: Json, headers: Sequence[tuple[str, str]] = ()) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _user_texts(body: Json) -> Iterator[str]:
    # Each part on its own, because Codex adds texts around each image.
    for item in _list(body, "input"):
        if item.get("type") == "message" and item.get("role") == "user":
            for part in _list(item, "content"):
                yield part.get("text") or ""


def _list(owner: Json, key: str) -> list[Json]:
    return cast("list[Json]", owner.get(key) or [])


def _stream(step: Step, body: Json, number: int) -> Iterator[Json]:
    response: Json = {"id": f"resp_{number}_{time.time_ns()}"}
    yield {"type": "response.created", "response": response}
    match step:
        case Reply(acts, usage):
            for index, act in enumerate(acts):
                yield from _act(act, body, f"{number}_{index}")
            yield {
                "type": "response.completed",
                "response": response | {"usage": _usage(usage), "output": []},
            }
        case Fail(code, message):
            error = {"code": code, "message": message}
            yield {
                "type": "response.failed",
                "response": response | {"status": "failed", "error": error},
            }
        case Incomplete(reason, text):
            yield from _act(Say(text), body, str(number))
            yield {
                "type": "response.incomplete",
                "response": response
                | {"status": "incomplete", "incomplete_details": {"reason": reason}},
            }
        case Cut(text):
            yield {"type": "response.output_text.delta", "delta": text}
        case Refuse():
            raise AssertionError("a refusal has no stream")


def _act(act: Act, body: Json, number: str) -> Iterator[Json]:
    match act:
        case Say(text):
            item: Json = {
                "type": "message",
                "role": "assistant",
                "id": f"msg_{number}",
                "content": [{"type": "output_text", "text": text}],
            }
            yield _event("added", item | {"content": []})
            for part in range(0, len(text), 4096):
                delta = text[part : part + 4096]
                yield {"type": "response.output_text.delta", "item_id": item["id"], "delta": delta}
        case Think(text):
            summary = [{"type": "summary_text", "text": text}]
            item = {"type": "reasoning", "id": f"rs_{number}", "summary": summary}
        case Shell(command, yield_ms):
            item = _shell_call(command, yield_ms, _tool_names(body))
        case Patch(patch):
            item = _patch_call(f"*** Begin Patch\n{patch}\n*** End Patch", body)
        case Call(name, arguments, namespace):
            item = _function_call(name, arguments)
            if namespace is not None:
                item["namespace"] = namespace
        case Search(query):
            action = {"type": "search", "query": query}
            item = {"type": "web_search_call", "id": f"ws_{number}", "status": "completed"}
            item["action"] = action
    if item["type"].endswith("_call") and item["type"] != "web_search_call":
        item["call_id"] = f"call_{number}"
    yield _event("done", item)


def _event(what: str, item: Json) -> Json:
    return {"type": f"response.output_item.{what}", "output_index": 0, "item": item}


def _tool_names(body: Json) -> set[str]:
    return {tool.get("name") or tool.get("type") or "" for tool in _list(body, "tools")}


def _function_call(name: str, arguments: Json) -> Json:
    return {"type": "function_call", "name": name, "arguments": json.dumps(arguments)}


def _shell_call(command: str, yield_ms: int, offered: set[str]) -> Json:
    # The shell tool depends on Codex's version and on the model.
    if "exec_command" in offered:
        return _function_call("exec_command", {"cmd": command, "yield_time_ms": yield_ms})
    if "shell_command" in offered:
        return _function_call("shell_command", {"command": command})
    return _function_call("shell", {"command": ["bash", "-lc", command]})


def _patch_call(patch: str, body: Json) -> Json:
    for tool in _list(body, "tools"):
        if tool.get("name") == "apply_patch":
            if tool.get("type") == "custom":
                return {"type": "custom_tool_call", "name": "apply_patch", "input": patch}
            return _function_call("apply_patch", {"input": patch})
    # Without the tool, models run a command called apply_patch, which Codex intercepts.
    return _shell_call(f"apply_patch <<'EOF'\n{patch}\nEOF", 30_000, _tool_names(body))


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
