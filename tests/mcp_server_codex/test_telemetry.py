"""Traces: a span for each run below that of its call, and nothing in them that was said."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from far_ends import FakeCodex, Json, Lab, answer_lines, call, connect, events, thread_line, until

PROMPT = "a prompt that nobody else may see"
ANSWER = "an answer that nobody else may see"


class Collector:
    """An OTLP collector on loopback that keeps the spans it gets."""

    def __init__(self) -> None:
        self.spans: list[Json] = []
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

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
                            "status": span.status.code,
                            **facts,
                        }
                    )

    def named(self, name: str) -> list[Json]:
        return [span for span in self.spans if span["name"] == name]


@pytest.fixture
def collector() -> Generator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


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


async def test_a_collector_that_never_answers_does_not_keep_the_server(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines(ANSWER))
    import socket

    with socket.create_server(("127.0.0.1", 0)) as mute:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{mute.getsockname()[1]}"}
        async with connect(mode, fake.build(), lab, env=env) as client:
            result = await call(client, "codex_run", prompt=PROMPT)
    assert result["status"] == "completed"


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
