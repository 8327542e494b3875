"""Serve the stdio server over HTTP, for the official conformance suite, which speaks only HTTP.

A connection of the handshake era gets a server process of its own, by its session id. All requests
of 2026-07-28 share one. Calls of the suite's fixture tools become calls of ours, by ALIASES.
"""

from __future__ import annotations

import itertools
import json
import queue
import subprocess
import threading
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from codex_tools.codex.json_object import Json

WIDE: Json = {"prompt": "x", "sandbox": "danger-full-access"}

ALIASES: dict[str, tuple[str, Json]] = {
    "test_simple_text": ("codex_run", {"prompt": "x"}),
    "test_tool_with_progress": ("codex_run", {"prompt": "slow"}),
    "test_error_handling": ("codex_run", {"prompt": "x", "timeout_s": -1}),
    "test_input_required_result_elicitation": ("codex_run", WIDE),
    "test_input_required_result_list_roots": ("codex_run", {"prompt": "x"}),
    "test_input_required_result_request_state": ("codex_run", WIDE),
    "test_input_required_result_tampered_state": ("codex_run", WIDE),
    "test_input_required_result_capabilities": ("codex_run", WIDE),
    "slow_compute": ("codex_run", {"prompt": "slow"}),
    "failing_job": ("codex_run", {"prompt": "fail"}),
    "greet": ("codex_sessions", {}),
}
"""The suite's fixture tools that have a counterpart: its name, and the arguments of the call."""

WITHIN_S = 60.0
"""Seconds to wait for an answer."""


class _Process:
    """A server process, and where the messages for each request go."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path
    ) -> None:
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=env,
                cwd=cwd,
            )
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[object, object, queue.Queue[Json | None]]] = {}
        self._writing = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, message: Json) -> Generator[Json]:
        """Send a request; yield its notifications and, last, its answer."""
        number = next(self._numbers)
        params = cast("Json", message.get("params") or {})
        meta = cast("Json", params.get("_meta") or {})
        token = meta.get("progressToken")
        inbox: queue.Queue[Json | None] = queue.Queue()
        self._open[number] = (message["id"], token, inbox)
        if token is not None:
            params = params | {"_meta": meta | {"progressToken": number}}
        self.send(message | {"id": number} | ({"params": params} if params else {}))
        while (found := inbox.get(timeout=WITHIN_S)) is not None:
            yield found
            if "result" in found or "error" in found:
                return

    def send(self, message: Json) -> None:
        assert self._child.stdin is not None
        with self._writing, suppress(OSError):
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()

    def cancel(self, params: Json) -> None:
        """Send a cancellation of the request that the client calls by its own id."""
        for number, (asked, _, _) in list(self._open.items()):
            if asked == params.get("requestId"):
                told = params | {"requestId": number}
                self.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": told})

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            message = cast("Json", json.loads(line))
            number = message.get("id")
            if "method" in message and "id" not in message:
                params = cast("Json", message.get("params") or {})
                number = params.get("progressToken")
                found = self._open.get(cast("int", number))
                if found is not None:
                    told = params | {"progressToken": found[1]}
                    found[2].put(message | {"params": told})
            elif "method" in message:  # A question of the handshake era belongs to the newest call.
                if self._open:
                    self._open[max(self._open)][2].put(message)
            elif (found := self._open.pop(cast("int", number), None)) is not None:
                found[2].put(message | {"id": found[0]})
        for _, _, inbox in self._open.values():
            inbox.put(None)

    def close(self) -> None:
        assert self._child.stdin is not None
        with suppress(OSError):
            self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._reader.join()
        assert self._child.stdout is not None
        self._child.stdout.close()


class Bridge:
    """The processes behind one address."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path
    ) -> None:
        self.cwd = cwd
        self._make = lambda: _Process(command, env, cwd, log)
        self.sessions: dict[str, _Process] = {}
        self._lock = threading.Lock()
        self._shared: _Process | None = None

    def open(self) -> str:
        """Start a process for a connection of the handshake era; return its session id."""
        session = uuid.uuid4().hex
        self.sessions[session] = self._make()
        return session

    @property
    def shared(self) -> _Process:
        with self._lock:
            if self._shared is None:
                self._shared = self._make()
                # The first request of a stdio connection decides its era.
                meta: Json = {
                    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                    "io.modelcontextprotocol/clientCapabilities": {},
                }
                asked: Json = {"jsonrpc": "2.0", "id": 0, "method": "server/discover"}
                list(self._shared.ask(asked | {"params": {"_meta": meta}}))
            return self._shared

    def close(self) -> None:
        shared = [self._shared] if self._shared is not None else []
        for process in (*self.sessions.values(), *shared):
            process.close()


def _with_alias(message: Json, cwd: Path) -> Json:
    params = cast("Json", message.get("params") or {})
    if message.get("method") != "tools/call" or params.get("name") not in ALIASES:
        return message
    name, arguments = ALIASES[params["name"]]
    if name == "codex_run" and "list_roots" not in params["name"]:
        arguments = arguments | {"cwd": str(cwd)}  # Else the client is asked for its roots first.
    return message | {"params": params | {"name": name, "arguments": arguments}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bridge: Bridge

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

    def do_GET(self) -> None:
        self._answer(405)

    def do_DELETE(self) -> None:
        process = self.bridge.sessions.pop(self.headers.get("Mcp-Session-Id", ""), None)
        if process is not None:
            process.close()
        self._answer(200 if process is not None else 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._is_local():
            self._answer(403)
            return
        try:
            message = _with_alias(cast("Json", json.loads(body)), self.bridge.cwd)
        except ValueError:
            self._answer(400)
            return
        session = self.headers.get("Mcp-Session-Id")
        if message.get("method") == "initialize" and "_meta" not in (message.get("params") or {}):
            session = self.bridge.open()
        if session is not None and session not in self.bridge.sessions:
            self._answer(404)
            return
        process = self.bridge.shared if session is None else self.bridge.sessions[session]
        if message.get("method") == "notifications/cancelled":
            process.cancel(message.get("params") or {})
            self._answer(202)
        elif "id" not in message or "method" not in message:
            process.send(message)
            self._answer(202)
        else:
            self._stream(process, message, session)

    def _is_local(self) -> bool:
        origin = self.headers.get("Origin", "").partition("//")[2]
        names = [self.headers.get("Host", ""), *([origin] if origin else [])]
        return all(name.partition(":")[0] in ("127.0.0.1", "localhost") for name in names)

    def _stream(self, process: _Process, message: Json, session: str | None) -> None:
        headers = {} if session is None else {"Mcp-Session-Id": session}
        if message["method"] != "tools/call":
            answer = list(process.ask(message))[-1]
            code = answer.get("error", {}).get("code")
            status = 200 if session else {-32601: 404, -32602: 400, -32022: 400}.get(code, 200)
            status = 400 if code == -32021 else status
            self._answer(status, json.dumps(answer).encode(), **headers)
            return
        self.send_response(200)
        sent = headers | {"Content-Type": "text/event-stream", "Connection": "close"}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        with suppress(OSError, queue.Empty):
            for each in process.ask(message):
                self.wfile.write(f"event: message\ndata: {json.dumps(each)}\n\n".encode())
                self.wfile.flush()

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        kind = {"Content-Type": "application/json"} if body else {}
        for name, value in (headers | kind | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve_over_http(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path
) -> Generator[str]:
    """Serve the server that *command* starts, on loopback; yield the address."""
    bridge = Bridge(command, env, cwd, log)
    handler = type("Handler", (_Handler,), {"bridge": bridge})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/mcp"
    finally:
        server.shutdown()
        server.server_close()
        bridge.close()
