"""The comparison that `make conformance` makes, and the bridge that it goes over."""

from __future__ import annotations

import json
import urllib.request
from typing import cast

import pytest

import conformance
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.http_bridge import serve_over_http
from support.lab import Json, Lab, environment, server_program

MODERN: Json = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


def test_a_failure_needs_a_reason_and_a_reason_a_failure() -> None:
    failed = {"a one": "broken", "a two": "broken", "b one": "bad"}
    assert conformance.compare(failed, {"a *": "x", "b one": "y"}) == []
    assert conformance.compare(failed, {"a *": "x"}) == ["b one: bad"]
    assert conformance.compare({}, {"a *": "x"}) == ["no longer fails: a *"]


def test_each_expected_failure_is_explained() -> None:
    expected = cast("dict[str, dict[str, str]]", json.loads(conformance.EXPECTED.read_text()))
    assert tuple(expected) == conformance.ERAS
    for reasons in expected.values():
        assert all(reason.endswith(".") for reason in reasons.values())


def post(url: str, message: Json, **headers: str) -> tuple[dict[str, str], Json]:
    sent = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, json.dumps(message).encode(), sent)
    with urllib.request.urlopen(request, timeout=60) as answer:
        body = answer.read().decode()
        last = [line for line in body.splitlines() if line.strip()][-1].removeprefix("data: ")
        return dict(answer.headers), cast("Json", json.loads(last))


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_bridge_carries_a_call_of_a_fixture_to_ours(
    era: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    command = [server_program(), "--codex-bin", str(fake.build()), "--state-dir", str(lab.state)]
    meta = {"_meta": MODERN} if era == "modern" else {}
    headers: dict[str, str] = {}
    with serve_over_http(command, environment(lab), lab.project, lab.log) as url:
        if era == "legacy":
            hello: Json = {"protocolVersion": "2025-11-25", "capabilities": {}}
            hello["clientInfo"] = {"name": "t", "version": "1"}
            begin: Json = {"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": hello}
            answered, answer = post(url, begin)
            assert answer["id"] == "a"
            headers = {"Mcp-Session-Id": answered["Mcp-Session-Id"]}
        params: Json = {"name": "test_simple_text", "arguments": {}, **meta}
        call: Json = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
        _, answer = post(url, call, **headers)
    assert answer["id"] == 7
    assert answer["result"]["content"][0]["text"].startswith("hello")
