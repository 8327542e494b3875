"""Speak to Codex's app-server as the desktop app does, one request at a time."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from support.lab import Json, Lab, environment


class AppServer:
    """A running `codex app-server`."""

    def __init__(self, lab: Lab, codex: Path) -> None:
        self._process = subprocess.Popen(
            [str(codex), "app-server"],
            cwd=lab.project,
            env=environment(lab),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._number = 0
        self._notes: list[Json] = []
        self.call("initialize", clientInfo={"name": "desk", "version": "1"})
        self._send({"method": "initialized"})

    def call(self, method: str, **params: Any) -> Json:
        """Call a method and return its result."""
        self._number += 1
        self._send({"id": self._number, "method": method, "params": params})
        while True:
            message = self._read()
            if message.get("id") == self._number and "method" not in message:
                assert "error" not in message, message
                return cast("Json", message["result"])
            self._notes.append(message)

    def turn(self, thread_id: str, prompt: str, **more: Any) -> str:
        """Run a turn to its end and return its id."""
        asked = [{"type": "text", "text": prompt}]
        turn = self.call("turn/start", threadId=thread_id, input=asked, **more)["turn"]
        while True:
            ended = [note for note in self._notes if note.get("method") == "turn/completed"]
            if ended:
                self._notes.clear()
                return str(turn["id"])
            self._notes.append(self._read())

    def close(self) -> None:
        """End it, as a client does that closes its end of the pipe."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _send(self, message: Json) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _read(self) -> Json:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the app-server has ended"
        return cast("Json", json.loads(line))


@contextmanager
def app_server(lab: Lab, codex: Path) -> Generator[AppServer]:
    """Start an app-server and end it."""
    server = AppServer(lab, codex)
    try:
        yield server
    finally:
        server.close()
