"""Traces: a span for each run below that of its call, and nothing in them that was said."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
from collections.abc import Generator
from typing import Any, cast

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mcp_server_codex.cli.loopback import Loopback, QuietHandler
from mcp_server_codex.tracing import start_traces
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Json, Lab, call, connect, environment, server_program, until

PROMPT = "a prompt that nobody else may see"
ANSWER = "an answer that nobody else may see"


class _Handler(QuietHandler):
    collector: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.collector.take(body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()


class Collector:
    """An OTLP collector on loopback that keeps the spans it gets."""

    def __init__(self) -> None:
        self.spans: list[Json] = []
        self.raw = b""
        self.server = Loopback(_Handler, collector=self)
        self.url = self.server.url

    def take(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    facts = {
                        each.key: getattr(each.value, each.value.WhichOneof("value") or "")
                        for each in span.attributes
                    }
                    self.spans.append(
                        {
                            "name": span.name,
                            "id": span.span_id,
                            "parent": span.parent_span_id,
                            "trace": span.trace_id.hex(),
                            "status": span.status.code,
                            **facts,
                        }
                    )

    def named(self, name: str) -> list[Json]:
        return [span for span in self.spans if span["name"] == name]


@pytest.fixture
def collector() -> Generator[Collector]:
    made = Collector()
    yield made
    made.server.close()


async def test_each_run_has_a_span_below_that_of_its_call(
    mode: str, lab: Lab, fake: FakeCodex, collector: Collector
) -> None:
    fake.stdout = events(thread_line(), *answer_lines(ANSWER))
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    async with connect(mode, fake.build(), lab, env=env) as client:
        waited = await call(client, "codex_run", prompt=PROMPT, model="gpt-5.5")
        begun = await call(client, "codex_run", prompt=PROMPT, wait_s=0)
        fake.stdout = b""
        await client.call_tool("codex_wait", {"run_ids": [begun["run_id"]]})
    # The server has ended by now, and has sent what it had.
    await until(lambda: len(collector.named("invoke_agent codex")) == 2)
    calls = {span["id"] for span in collector.named("tools/call codex_run")}
    runs = {span["codex.run_id"]: span for span in collector.named("invoke_agent codex")}
    assert runs.keys() == {waited["run_id"], begun["run_id"]}
    assert {span["parent"] for span in runs.values()} == calls
    span = runs[waited["run_id"]]
    assert span["gen_ai.conversation.id"] == waited["thread_id"]
    assert span["gen_ai.request.model"] == "gpt-5.5"
    assert span["gen_ai.usage.input_tokens"] == 10
    assert span["gen_ai.usage.output_tokens"] == 2
    assert span["codex.status"] == "completed"
    assert "error.type" not in span
    assert PROMPT.encode() not in collector.raw
    assert ANSWER.encode() not in collector.raw


async def test_a_failed_run_is_a_failed_span(
    mode: str, lab: Lab, fake: FakeCodex, collector: Collector
) -> None:
    failure = {"type": "turn.failed", "error": {"message": "quota exceeded, a private matter"}}
    fake.stdout = events(thread_line(), {"type": "turn.started"}, failure)
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    async with connect(mode, fake.build(), lab, env=env) as client:
        result = await call(client, "codex_run", prompt=PROMPT)
    await until(lambda: collector.named("invoke_agent codex"))
    (span,) = collector.named("invoke_agent codex")
    assert span["error.type"] == result["error"]["kind"]
    assert span["status"] == 2
    assert b"a private matter" not in collector.raw


def test_a_collector_that_never_answers_does_not_keep_the_server(lab: Lab) -> None:
    client = {"name": "x", "version": "1"}
    hello: Json = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
    request: Json = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    with socket.create_server(("127.0.0.1", 0)) as mute:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{mute.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "600",
        }
        done = subprocess.run(
            [server_program(), "--state-dir", str(lab.state)],
            input=json.dumps(request).encode() + b"\n",
            capture_output=True,
            env=environment(lab) | env,
            cwd=lab.project,
            timeout=60,
        )
    assert done.returncode == 0
    assert json.loads(done.stdout)["id"] == 1


async def test_a_run_belongs_to_the_trace_of_its_client(
    mode: str, lab: Lab, fake: FakeCodex, collector: Collector
) -> None:
    fake.stdout = events(thread_line(), *answer_lines(ANSWER))
    trace = "0af7651916cd43dd8448eb211c80319c"
    meta = cast("Any", {"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    async with connect(mode, fake.build(), lab, env=env) as client:
        await client.call_tool("codex_run", {"prompt": PROMPT}, meta=meta)
    await until(lambda: collector.named("invoke_agent codex"))
    assert collector.named("invoke_agent codex")[0]["trace"] == trace


def test_what_cannot_be_exported_is_said_and_starts_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start_traces({"OTEL_TRACES_EXPORTER": "carrier-pigeon"})()
    assert "carrier-pigeon" in caplog.text
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    start_traces({"OTEL_TRACES_EXPORTER": "otlp"})()
    assert "mcp-server-codex[otel]" in caplog.text


async def test_the_console_exporter_writes_to_stderr(mode: str, lab: Lab, fake: FakeCodex) -> None:
    fake.stdout = events(thread_line(), *answer_lines(ANSWER))
    async with connect(mode, fake.build(), lab, env={"OTEL_TRACES_EXPORTER": "console"}) as client:
        await call(client, "codex_run", prompt=PROMPT)
    log = lab.log.read_text()
    assert "invoke_agent codex" in log
    assert PROMPT not in log


@pytest.mark.parametrize(
    "env",
    [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}],
    ids=["unset", "none", "disabled"],
)
async def test_without_an_exporter_nothing_is_recorded(
    lab: Lab, fake: FakeCodex, collector: Collector, env: dict[str, str]
) -> None:
    fake.stdout = events(thread_line(), *answer_lines(ANSWER))
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} if env else {}
    async with connect("auto", fake.build(), lab, env=endpoint | env) as client:
        await call(client, "codex_run", prompt=PROMPT)
    assert collector.raw == b""
    assert lab.log.read_text() == ""


async def test_the_headers_of_the_exporter_do_not_reach_codex(
    lab: Lab, fake: FakeCodex, collector: Collector
) -> None:
    fake.stdout = events(thread_line(), *answer_lines(ANSWER))
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abcdefgh123456",
    }
    async with connect("auto", fake.build(), lab, env=env) as client:
        await call(client, "codex_run", prompt=PROMPT)
    seen = cast("dict[str, str]", fake.seen()["env"])
    assert "OTEL_EXPORTER_OTLP_HEADERS" not in seen
