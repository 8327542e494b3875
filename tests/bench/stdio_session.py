"""Speak MCP with a server as lines on pipes, and see each byte that it sends."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import IO, cast

from codex_tools.codex.json_object import Json

HELLO: Json = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"roots": {"listChanged": False}},
    "clientInfo": {"name": "comparison", "version": "1"},
}


@dataclass
class Session:
    """A server process and a client of it that declares roots."""

    process: subprocess.Popen[bytes]
    folder: Path
    answers: Queue[tuple[Json, int]] = field(default_factory=Queue[tuple[Json, int]])
    messages: list[str] = field(default_factory=list[str])
    """The messages of its progress notifications."""
    _ids: int = 0

    @classmethod
    def start(cls, command: Sequence[str], folder: Path, env: dict[str, str]) -> Session:
        """Start the server in *folder* and begin to read what it says."""
        with (folder.parent / "peer.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=env,
                start_new_session=True,
            )
        session = cls(process, folder)
        threading.Thread(target=session._read, daemon=True).start()
        return session

    def _read(self) -> None:
        for line in cast("IO[bytes]", self.process.stdout):
            try:
                message = cast("Json", json.loads(line))
            except ValueError:
                continue
            if "method" not in message:
                self.answers.put((message, len(line)))
            elif "id" in message:
                self._answer(message)
            elif message["method"] == "notifications/progress":
                self.messages.append(str(message["params"].get("message") or ""))

    def _answer(self, request: Json) -> None:
        if request["method"] == "roots/list":
            root = {"uri": self.folder.as_uri(), "name": self.folder.name}
            self._send({"id": request["id"], "result": {"roots": [root]}})
        else:
            error = {"code": -32601, "message": "not offered"}
            self._send({"id": request["id"], "error": error})

    def _send(self, message: Json) -> None:
        stdin = cast("IO[bytes]", self.process.stdin)
        with suppress(OSError):
            stdin.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")
            stdin.flush()

    def begin(self, method: str, params: Json) -> int:
        """Send a request; return its id."""
        self._ids += 1
        if method == "tools/call":
            params = params | {"_meta": {"progressToken": self._ids}}
        self._send({"id": self._ids, "method": method, "params": params})
        return self._ids

    def notify(self, method: str, params: Json) -> None:
        """Send a notification."""
        self._send({"method": method, "params": params})

    def answer_to(self, request: int, within_s: float) -> tuple[Json, int]:
        """Return the answer and its bytes; raise TimeoutError without one."""
        ends = time.monotonic() + within_s
        while (left := ends - time.monotonic()) > 0:
            with suppress(Empty):
                message, size = self.answers.get(timeout=min(left, 0.5))
                if message.get("id") == request:
                    return message, size
            if self.process.poll() is not None and self.answers.empty():
                raise TimeoutError("the server has ended")
        raise TimeoutError(f"no answer within {within_s:g} s")

    def ask(self, method: str, params: Json, within_s: float = 60) -> tuple[Json, int]:
        """Send a request and return its answer and the answer's bytes."""
        return self.answer_to(self.begin(method, params), within_s)

    def initialize(self) -> Json:
        """Do the handshake; return what the server says of itself."""
        answer, _ = self.ask("initialize", HELLO)
        self.notify("notifications/initialized", {})
        return cast("Json", answer["result"])

    def close_input(self) -> None:
        """Close the server's stdin, as a client does that ends."""
        with suppress(OSError):
            cast("IO[bytes]", self.process.stdin).close()
