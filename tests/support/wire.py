"""A client that speaks to a server in frames on pipes, and hides nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
from anyio.abc import Process

from support.fake_codex import answer_lines, events, thread_line
from support.lab import (
    Json,
    Lab,
    environment,
    server_program,
)

HELLO = events(thread_line(), *answer_lines("hello"))

MODERN: Json = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
"""What each request of the modern era carries."""

INITIALIZE: Json = {
    "jsonrpc": "2.0",
    "id": "first",
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "raw", "version": "1"},
    },
}
INITIALIZED: Json = {"jsonrpc": "2.0", "method": "notifications/initialized"}
"""What the legacy era begins with."""

HANGS_S = 120.0
"""Seconds after which a test fails that waits for the server."""

PARSE = -32700
"""The code of JSON-RPC for a frame that is no JSON."""


class Wire:
    """A client that writes and reads frames, and hides nothing."""

    def __init__(self, process: Process, mode: str) -> None:
        self.process = process
        self.mode = mode
        self.frames: list[bytes] = []
        """All frames that came, as they came."""
        self.aside: list[Json] = []
        """Messages that came while another one was waited for."""
        self._rest = b""
        self._count = 0

    async def send(self, *frames: bytes | Json) -> None:
        assert self.process.stdin is not None
        lines = [each if isinstance(each, bytes) else dump(each) for each in frames]
        await self.process.stdin.send(b"".join(line + b"\n" for line in lines))

    async def read(self) -> Json:
        """Return the next message; a line that is none fails the test."""
        assert self.process.stdout is not None
        parts = [self._rest]
        with anyio.fail_after(HANGS_S):
            while b"\n" not in parts[-1]:
                parts.append(await self.process.stdout.receive())
        line, _, self._rest = b"".join(parts).partition(b"\n")
        self.frames.append(line)
        message = json.loads(line)
        assert message["jsonrpc"] == "2.0", line
        return cast("Json", message)

    async def read_to_the_end(self) -> None:
        with anyio.fail_after(HANGS_S):
            try:
                while True:
                    await self.read()
            except anyio.EndOfStream:
                assert self._rest == b""

    async def answer(self, id_: int | str | None) -> Json:
        """Return the answer that bears *id_*; put aside what comes before it."""
        while "method" in (message := await self.read()) or message.get("id") != id_:
            self.aside.append(message)
        return message

    def request(self, method: str, id_: object = None, **params: Any) -> Json:
        """Return a request of the era; without *id_*, it gets one of its own."""
        if id_ is None:
            self._count += 1
            id_ = f"mine-{self._count}"
        if self.mode != "legacy":
            params["_meta"] = MODERN | params.get("_meta", {})
        return {"jsonrpc": "2.0", "id": id_, "method": method, "params": params}

    def call(self, tool: str, *, meta: Json | None = None, **arguments: Any) -> Json:
        more = {"_meta": meta} if meta else {}
        return self.request("tools/call", name=tool, arguments=arguments, **more)

    async def ask(self, request: Json) -> Json:
        await self.send(request)
        return await self.answer(request["id"])

    async def open(self) -> None:
        """Do what the era begins with."""
        if self.mode == "legacy":
            opened = await self.ask(INITIALIZE)
            await self.send(INITIALIZED)
        else:
            opened = await self.ask(self.request("server/discover"))
        assert "result" in opened, opened

    async def lists_tools(self) -> bool:
        answer = await self.ask(self.request("tools/list"))
        return len(answer["result"]["tools"]) >= 4

    async def hang_up(self) -> int:
        """Close the server's stdin, and return how it has ended."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        await self.read_to_the_end()
        with anyio.fail_after(HANGS_S):
            return await self.process.wait()

    def peak_mb(self) -> float:
        """Return how much memory the server has taken at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024


def dump(message: Json) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode()


@asynccontextmanager
async def wire(
    mode: str,
    lab: Lab,
    *options: str,
    program: Sequence[str] = (),
    stdout: int = subprocess.PIPE,
) -> AsyncGenerator[Wire]:
    """Start the server and speak to it in frames; nothing is sent by itself."""
    command = [*(program or (server_program(),)), "--state-dir", str(lab.state), *options]
    with lab.log.open("ab") as log:
        process = await anyio.open_process(
            command, stdout=stdout, stderr=log, cwd=lab.project, env=environment(lab)
        )
    try:
        yield Wire(process, mode)
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            await process.aclose()


def records(lab: Lab) -> list[Json]:
    """Return what the server has kept of its runs."""
    return [json.loads(path.read_bytes()) for path in (lab.state / "runs").glob("*/run.json")]
