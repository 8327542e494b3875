"""JSON-RPC with a child: who answers whom, and what a child cannot do to its caller."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import anyio
import pytest

from codex_tools.codex.json_object import Json
from codex_tools.engines import json_rpc
from codex_tools.engines.json_rpc import (
    MESSAGE_LIMIT,
    NOT_FOUND,
    Connection,
    ConnectionEnded,
    Decide,
    Notification,
    RequestRefused,
    RequestTimedOut,
    ServerRequest,
    open_connection,
)
from codex_tools.engines.process import open_child

SERVER = """
import json, sys, time

def put(**message):
    sys.stdout.write(json.dumps(message) + "\\n")
    sys.stdout.flush()

def get():
    line = sys.stdin.readline()
    return json.loads(line) if line else sys.exit(0)

"""


def unknown(request: ServerRequest) -> Json | None:
    raise LookupError(request.method)


@asynccontextmanager
async def server(tmp_path: Path, code: str, decide: Decide = unknown) -> AsyncGenerator[Connection]:
    """Start a child that runs *code*, and connect to it."""
    argv = [sys.executable, "-I", "-c", SERVER + code]
    with anyio.fail_after(60):
        async with (
            open_child(argv, stdin=None, cwd=tmp_path, env=os.environ) as child,
            open_connection(child, decide) as connection,
        ):
            yield connection


async def test_responses_find_their_requests_in_whatever_order_they_come(tmp_path: Path) -> None:
    code = """
first, second = get(), get()
for asked in (second, first):
    put(id=asked["id"], result={"was": asked["method"], "params": asked["params"]})
get()
"""
    results: dict[str, Json] = {}
    async with server(tmp_path, code) as connection:

        async def ask(method: str) -> None:
            results[method] = await connection.request(method, {"n": len(results)}, 60)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "one")
            tasks.start_soon(ask, "two")
    assert {name: result["was"] for name, result in results.items()} == {"one": "one", "two": "two"}
    assert results["one"]["params"] == {"n": 0}


async def test_integers_of_any_length_arrive_with_all_their_digits(tmp_path: Path) -> None:
    code = 'asked = get()\nput(id=asked["id"], result={"text": str(asked["params"]["n"])})\nget()'
    async with server(tmp_path, code) as connection:
        assert await connection.request("x", {"n": 10**30}, 60) == {"text": str(10**30)}


async def test_an_error_is_raised_with_a_short_message(tmp_path: Path) -> None:
    code = """
put(id=get()["id"], error={"code": -32600, "message": "x" * 100000, "data": {"a": 1}})
put(id=get()["id"], error="none")
get()
"""
    async with server(tmp_path, code) as connection:
        with pytest.raises(RequestRefused) as caught:
            await connection.request("x", {}, 60)
        assert (caught.value.code, caught.value.data) == (-32600, {"a": 1})
        assert len(caught.value.message) <= MESSAGE_LIMIT
        with pytest.raises(RequestRefused, match="without a message"):
            await connection.request("y", {}, 60)


async def test_a_request_without_an_answer_times_out_and_a_late_answer_is_ignored(
    tmp_path: Path,
) -> None:
    code = """
late = get()
now = get()
put(id=late["id"], result={"is": "late"})
put(id=now["id"], result={"is": "now"})
put(id=now["id"], result={"is": "again"})
put(id=77, result={"is": "of nobody"})
put(id=True, result={"is": "no id"})
put(id=get()["id"], result={"is": "next"})
get()
"""
    async with server(tmp_path, code) as connection:
        with pytest.raises(RequestTimedOut):
            await connection.request("x", {}, 0.1)
        assert await connection.request("y", {}, 60) == {"is": "now"}
        assert await connection.request("z", {}, 60) == {"is": "next"}


@pytest.mark.parametrize("end", ["sys.exit(0)", "os.kill(os.getpid(), 9)", "os.close(1); get()"])
async def test_the_end_of_the_child_ends_all_that_wait(tmp_path: Path, end: str) -> None:
    code = f"import os\nget(); get(); put(method='last', params={{}}); {end}"
    ended: list[str] = []
    async with server(tmp_path, code) as connection:

        async def ask(method: str) -> None:
            with pytest.raises(ConnectionEnded):
                await connection.request(method, {}, 600)
            ended.append(method)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "one")
            tasks.start_soon(ask, "two")
            assert [each async for each in connection.messages()] == [Notification("last", {})]
        assert sorted(ended) == ["one", "two"]
        with pytest.raises(ConnectionEnded):
            await connection.request("three", {}, 600)


async def test_every_request_of_the_child_is_answered_and_ids_of_both_sides_may_be_equal(
    tmp_path: Path,
) -> None:
    def decide(request: ServerRequest) -> Json | None:
        if request.method == "later":
            return None
        if request.method == "now":
            return {"n": request.params["n"]}
        raise LookupError

    code = """
ours = get()
put(id=0, method="now", params={"n": 5})
put(id=1, method="later", params={})
put(id="one", method="what", params={})
put(id=2, method="now")
replies = [get() for _ in range(4)]
put(id=ours["id"], result={"replies": replies})
get()
"""

    def decide_tolerantly(request: ServerRequest) -> Json | None:
        return {} if request.id == 2 else decide(request)

    async with server(tmp_path, code, decide_tolerantly) as connection:
        seen: list[ServerRequest] = []
        result: Json = {}

        async def answer() -> None:
            async for message in connection.messages():
                assert isinstance(message, ServerRequest)
                seen.append(message)
                assert connection.respond(message, {"late": True})
                assert not connection.respond(message, {"late": "twice"})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            result = await connection.request("x", {}, 60)
            tasks.cancel_scope.cancel()
    given = cast("list[Json]", result["replies"])
    replies = {reply["id"]: reply for reply in given}
    assert replies[0]["result"] == {"n": 5}
    assert replies[1]["result"] == {"late": True}
    assert replies["one"]["error"]["code"] == NOT_FOUND
    assert [request.method for request in seen] == ["later"]


async def test_lines_that_are_no_messages_are_counted_and_do_no_harm(tmp_path: Path) -> None:
    code = r"""
for line in ("hello", "[1]", "null", '{"id":', "\xff\x00", "[" * 100000, "{}", '{"id":null}'):
    sys.stdout.write(line + "\n\n")
put(method="m" * 1000, params={})
put(method="m", id="i" * 1000, params={})
put(method="fine", params=[1])
put(method=7, params={})
"""
    async with server(tmp_path, code) as connection:
        assert [each async for each in connection.messages()] == [Notification("fine", {})]
    assert connection.unreadable == 8
    assert connection.first_unreadable == b"hello"


async def test_a_child_that_floods_waits_until_its_messages_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rpc, "UNREAD_COUNT", 10)
    code = """
for n in range(5000):
    put(method="tick", params={"n": n, "pad": "x" * 500})
put(id=get()["id"], result={"all": True})
get()
"""
    async with server(tmp_path, code) as connection:
        with pytest.raises(RequestTimedOut):  # The answer comes after what nobody takes.
            await connection.request("x", {}, 1)
        taken = 0
        async for message in connection.messages():
            assert isinstance(message, Notification)
            assert message.params["n"] == taken
            taken += 1
            if taken == 5000:
                break


async def test_a_child_that_asks_and_does_not_read_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rpc, "UNSENT_COUNT", 20)
    code = """
try:
    while True:
        put(id=1, method="what" + "x" * 100, params={})
except BrokenPipeError:
    pass
"""
    async with server(tmp_path, code) as connection:
        assert [each async for each in connection.messages()] == []
        with pytest.raises(ConnectionEnded):
            await connection.request("x", {}, 600)


async def test_what_the_caller_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with server(tmp_path, "get()"):
            raise KeyError("mine")
