"""The wire: frames of all kinds, floods, noise, clients that do not read."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from support.fake_codex import FakeCodex, answer_lines, events
from support.lab import (
    Json,
    Lab,
    marked,
    until,
)
from support.wire import HANGS_S, HELLO, INITIALIZE, INITIALIZED, PARSE, Wire, dump, records, wire


def nested(depth: int) -> bytes:
    deep = b"[" * depth + b"]" * depth
    return b'{"jsonrpc":"2.0","id":"deep","method":"ping","params":{"x":' + deep + b"}}"


INVALID, NO_METHOD, PARAMS = -32600, -32601, -32602

MALFORMED: list[tuple[str, bytes, int, int | str | None]] = [
    ("words", b"hello", PARSE, None),
    ("half a message", b'{"jsonrpc":"2.0","id":1,', PARSE, None),
    ("two messages", b'{"jsonrpc":"2.0"} {"jsonrpc":"2.0"}', PARSE, None),
    ("a header of another transport", b"Content-Length: 52\r", PARSE, None),
    ("binary", bytes(byte for byte in range(256) if byte != 10), PARSE, None),
    ("zeros", bytes(64), PARSE, None),
    ("not UTF-8", b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}', PARSE, None),
    ("a surrogate in UTF-8", b'{"jsonrpc":"2.0","id":1,"method":"\xed\xa0\x80"}', PARSE, None),
    ("a byte order mark", b'\xef\xbb\xbf{"jsonrpc":"2.0"}', PARSE, None),
    ("a lone surrogate", b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}', PARSE, None),
    ("NaN", b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":NaN}}', PARSE, None),
    ("infinity", b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":-Infinity}}', PARSE, None),
    ("5,000 lists in each other", nested(5000), PARSE, "deep"),
    ("50,000 lists in each other", b"[" * 50_000, PARSE, None),
    ("a batch", b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', INVALID, None),
    ("an empty batch", b"[]", INVALID, None),
    ("a number", b"1", INVALID, None),
    ("null", b"null", INVALID, None),
    ("a string", b'"ping"', INVALID, None),
    ("an empty object", b"{}", INVALID, None),
    ("no jsonrpc", b'{"id":7,"method":"ping"}', INVALID, 7),
    ("jsonrpc 1.0", b'{"jsonrpc":"1.0","id":"seven","method":"ping"}', INVALID, "seven"),
    ("jsonrpc as a number", b'{"jsonrpc":2.0,"id":7,"method":"ping"}', INVALID, 7),
    ("id null", b'{"jsonrpc":"2.0","id":null,"method":"ping"}', INVALID, None),
    ("id true", b'{"jsonrpc":"2.0","id":true,"method":"ping"}', INVALID, None),
    ("id 1.5", b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', INVALID, None),
    ("id as a list", b'{"jsonrpc":"2.0","id":[1],"method":"ping"}', INVALID, None),
    ("no method", b'{"jsonrpc":"2.0","id":8}', INVALID, 8),
    ("method 7", b'{"jsonrpc":"2.0","id":8,"method":7}', INVALID, 8),
    ("params as a list", b'{"jsonrpc":"2.0","id":9,"method":"ping","params":[1]}', PARAMS, 9),
    ("params as a string", b'{"jsonrpc":"2.0","id":9,"method":"ping","params":"x"}', PARAMS, 9),
]
"""What it is, the frame, the code of the answer, and the answer's id."""

IGNORED: list[tuple[str, bytes]] = [
    ("an empty line", b""),
    ("blanks", b"  \t "),
    ("a carriage return", b"\r"),
    ("a result nobody asked for", b'{"jsonrpc":"2.0","id":99,"result":{}}'),
    ("a result that is a number", b'{"jsonrpc":"2.0","id":99,"result":5}'),
    ("a result without id", b'{"jsonrpc":"2.0","result":{}}'),
    ("an error nobody asked for", b'{"jsonrpc":"2.0","id":9,"error":{"code":1,"message":"x"}}'),
    ("an error without id", b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}'),
    *(
        (f"{method} {params}", dump({"jsonrpc": "2.0", "method": method, "params": params}))
        for method, params in (
            ("notifications/cancelled", {"requestId": 4711, "reason": "gone"}),
            ("notifications/cancelled", {"requestId": "none"}),
            ("notifications/cancelled", {"requestId": None}),
            ("notifications/cancelled", {}),
            ("notifications/progress", {"progressToken": "none", "progress": 1}),
            ("notifications/progress", {"progressToken": 4711, "progress": "much"}),
            ("notifications/nothing", {"a": 1}),
            ("tools/call", {"name": "codex_run", "arguments": {"prompt": "x"}}),
        )
    ),
]
"""Frames that ask for no answer, and get none."""


async def play_malformed(client: Wire) -> None:
    for what, frame, code, id_ in MALFORMED:
        await client.send(frame)
        answer = await client.read()
        assert "error" in answer, what
        assert (answer["error"]["code"], answer["id"]) == (code, id_), what
        assert answer["error"]["message"], what


async def test_a_frame_that_is_no_message_is_answered_and_the_next_one_served(
    mode: str, lab: Lab
) -> None:
    async with wire(mode, lab) as client:
        await play_malformed(client)
        await client.open()
        await play_malformed(client)
        assert await client.lists_tools()
        assert client.aside == []
        assert await client.hang_up() == 0


async def test_a_frame_that_asks_for_nothing_gets_nothing(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    async with wire(mode, lab, "--codex-bin", str(fake.build())) as client:
        for stage in ("before the handshake", "after it"):
            for what, frame in IGNORED:
                await client.send(frame, b"?")
                answer = await client.read()
                assert answer["error"]["code"] == PARSE, (stage, what, answer)
            if stage == "before the handshake":
                await client.open()
            assert await client.lists_tools()
        assert client.aside == []
        assert await client.hang_up() == 0
    assert not fake.was_started


async def test_no_request_is_dropped_for_the_depth_of_its_params(mode: str, lab: Lab) -> None:
    async with wire(mode, lab) as client:
        await client.open()
        for depth in (100, 190, 200, 250, 500, 1000, 1020, 1030):
            await client.send(nested(depth), client.request("nothing", id_=depth))
            # Served or refused, under its own id or none: but not passed over.
            await client.answer(depth)
            if not client.aside:
                with anyio.move_on_after(HANGS_S):
                    client.aside.append(await client.read())
            assert [each["id"] in ("deep", None) for each in client.aside] == [True], depth
            client.aside.clear()


async def test_every_way_to_write_a_message_is_understood(mode: str, lab: Lab) -> None:
    async with wire(mode, lab) as client:
        await client.open()
        odd = "a\u2028b\u2029c\u0085d\u000be\U0001f600"
        request = client.request("tools/call", name=odd, arguments={})
        answer = await client.ask(request)
        assert (answer["error"]["code"], odd in answer["error"]["message"]) == (PARAMS, True)
        plain = client.request("tools/list")
        indented = json.dumps(plain, indent=1).replace("\n", "\r").encode()
        for frame in (dump(plain) + b"\r", b" \t" + dump(plain) + b" \t\r", indented):
            await client.send(frame)
            assert "result" in await client.answer(plain["id"]), frame
        # In pieces, and several at once.
        assert client.process.stdin is not None
        for byte in dump(plain) + b"\n":
            await client.process.stdin.send(bytes([byte]))
        assert "result" in await client.answer(plain["id"])
        ids: list[int | str] = [0, -1, 2**53, "", "1", "x" * 10_000, "\u2028"]
        await client.send(*(client.request("tools/list", id_) for id_ in ids))
        for id_ in ids:
            if not any(each["id"] == id_ for each in client.aside):
                await client.answer(id_)
        assert all("result" in each for each in client.aside)


async def test_an_unknown_method_is_named_as_such(mode: str, lab: Lab) -> None:
    async with wire(mode, lab) as client:
        # Before the handshake too: clients try a server out that way.
        for opened in (False, True):
            for method in ("nothing", "", "tasks/list", "notifications/initialized"):
                answer = await client.ask(client.request(method))
                assert answer["error"]["code"] == NO_METHOD, (opened, method)
            if not opened:
                await client.open()
        assert await client.lists_tools()


async def test_two_requests_of_one_id_are_both_answered(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout, fake.body = HELLO, "time.sleep(0.5)"
    async with wire(mode, lab, "--codex-bin", str(fake.build())) as client:
        await client.open()
        request = client.call("codex_run", prompt="x")
        await client.send(request, request)
        answers = [await client.answer(request["id"]) for _ in range(2)]
        runs = {each["result"]["structuredContent"]["run_id"] for each in answers}
        assert len(runs) == 2
        assert await client.lists_tools()


async def test_a_frame_over_the_limit_is_refused_and_the_next_one_served(
    mode: str, lab: Lab
) -> None:
    async with wire(mode, lab) as client:
        await client.open()
        limit = 32 * 1024 * 1024
        request = client.request("tools/list", id_="large", x="")
        room = limit - len(dump(request))
        for more, fits in ((0, True), (1, False), (limit, False)):
            request["params"]["x"] = "x" * (room + more)
            await client.send(request)
            if fits:
                await client.answer("large")
            else:
                answer = await client.read()
                assert (answer["error"]["code"], answer["id"]) == (INVALID, None), more
                assert "33,554,432" in answer["error"]["message"]
            assert await client.lists_tools()
        # Without an end it is not answered, but not kept either.
        assert client.process.stdin is not None
        before = client.peak_mb()
        for _ in range(32):
            await client.process.stdin.send(b"x" * (8 * 1024 * 1024))
        await client.send(b"")
        assert (await client.read())["error"]["code"] == INVALID
        assert client.peak_mb() < before + 64
        assert await client.lists_tools()


async def test_a_large_frame_below_the_limit_is_judged_by_its_contents(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    async with wire(mode, lab, "--codex-bin", str(fake.build())) as client:
        await client.open()
        answer = await client.ask(client.call("codex_run", prompt="x" * 20_000_000))
        assert answer["result"]["isError"] is True
        error = answer["result"]["structuredContent"]["error"]
        assert error["kind"] == "prompt_too_large"
        assert "20,000,000" in error["message"]
        assert await client.lists_tools()
    assert not fake.was_started


CALLS = 1000


def quick_codex(lab: Lab) -> Path:
    """Return a fake Codex that takes as little time as can be."""
    program, stream = lab.root / "codex", lab.root / "stream"
    stream.write_bytes(HELLO)
    program.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && exec echo codex-cli 0.169.0\n'
        "while read -r line; do :; done\n"
        f"exec cat '{stream}'\n"
    )
    program.chmod(0o755)
    return program


# One era is enough: what is tested lies below both, and it takes its time.
async def test_a_thousand_calls_at_once_are_all_answered_in_bounded_memory(lab: Lab) -> None:
    codex = str(quick_codex(lab))
    options = ("--codex-bin", codex, "--max-runs", "4", "--max-queue", str(CALLS))
    async with wire("auto", lab, *options) as client:
        await client.open()
        calls = [client.call("codex_run", prompt=f"{n}", wait_s=600) for n in range(CALLS)]
        with anyio.fail_after(HANGS_S):
            await client.send(*calls)
        missing = {call["id"] for call in calls}
        runs: set[str] = set()
        faults: list[Json] = []
        with anyio.fail_after(2 * HANGS_S):
            while missing:
                answer = await client.read()
                missing.remove(answer["id"])
                result = answer["result"]["structuredContent"]
                runs.add(result["run_id"])
                if result["status"] != "completed":
                    faults.append(result["error"] or result)
        peak = client.peak_mb()
        sys.stderr.write(f"\n{CALLS:,} calls at once: {peak:.0f} MB at most\n")
        assert faults == []
        assert len(runs) == CALLS
        assert peak < 400
        assert await client.lists_tools()
        assert await client.hang_up() == 0


MANY_EVENTS = """
def say(**line):
    print(json.dumps(line), flush=True)
say(type="thread.started", thread_id="01a20000-0000-7000-8000-000000000001")
for n in range(3000):
    item = {"id": f"item_{n}", "type": "command_execution", "command": f"step {n} " + "x" * 1000,
            "aggregated_output": "", "exit_code": 0, "status": "completed"}
    say(type="item.completed", item=item)
    if n % 100 == 0:
        time.sleep(0.05)
"""


@asynccontextmanager
async def unread(mode: str, lab: Lab, *options: str) -> AsyncGenerator[Wire]:
    """Start the server for a client that never reads, and has asked for more than a pipe holds."""
    reader, writer = os.pipe()
    try:
        async with wire(mode, lab, *options, stdout=writer) as client:
            os.close(writer)
            if mode == "legacy":
                await client.send(INITIALIZE, INITIALIZED)
            await client.send(*(client.request("tools/list") for _ in range(20)))
            yield client
    finally:
        os.close(reader)


async def test_a_client_that_does_not_read_holds_up_no_run(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body, fake.stdout = MANY_EVENTS, events(*answer_lines("done"))
    async with unread(mode, lab, "--codex-bin", str(fake.build())) as client:
        await client.send(client.call("codex_run", meta={"progressToken": "t"}, prompt="x"))
        await until(
            lambda: [r for r in records(lab) if r["result"]["status"] == "completed"],
            within_s=HANGS_S,
        )
    (record,) = records(lab)
    assert record["result"]["final_response"] == "done"
    assert record["result"]["command_count"] == 3000


@pytest.mark.parametrize("ending", ["SIGTERM", "EOF"])
async def test_a_client_that_does_not_read_holds_up_neither_the_end_nor_the_kill(
    ending: str, mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = "time.sleep(600)"
    async with unread(mode, lab, "--codex-bin", str(fake.build())) as client:
        await client.send(client.call("codex_run", meta={"progressToken": "t"}, prompt="x"))
        await until(lambda: fake.was_started)
        children = [pid for pid in marked(str(lab.home)) if pid != client.process.pid]
        assert children
        if ending == "EOF":
            assert client.process.stdin is not None
            await client.process.stdin.aclose()
        else:
            client.process.send_signal(signal.SIGTERM)
        await until(lambda: set(marked(str(lab.home))) <= {client.process.pid}, within_s=30)
        with anyio.fail_after(HANGS_S):
            code = await client.process.wait()
    assert code == (0 if ending == "EOF" else 128 + signal.SIGTERM)


NOISY = """\
import os, sys, threading, time

def make_noise(sign):
    while True:
        if os.path.exists(sign):
            print("noise", flush=True)
            print("noise" * 2000, end="")
            os.write(1, b"more noise\\n")
        time.sleep(0.005)

threading.Thread(target=make_noise, args=(sys.argv.pop(1),), daemon=True).start()
from mcp_server_codex.__main__ import main
main()
"""
"""The server in a process where something prints while the file named first is there."""


def noisy_program(lab: Lab, sign: Path) -> list[str]:
    program = lab.root / "noisy.py"
    program.write_text(NOISY)
    return [sys.executable, str(program), str(sign)]


async def test_what_a_library_prints_while_the_server_serves_is_kept_off_the_wire(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body, fake.stdout = "time.sleep(1)", HELLO
    sign = lab.root / "noise"
    program, codex = noisy_program(lab, sign), str(fake.build())
    async with wire(mode, lab, "--codex-bin", codex, program=program) as client:
        await client.open()
        sign.touch()
        call = client.call("codex_run", meta={"progressToken": "t"}, prompt="x")
        answer = await client.ask(call)
        assert answer["result"]["structuredContent"]["status"] == "completed"
        sign.unlink()
        assert await client.lists_tools()
        await anyio.sleep(0.2)
        assert await client.hang_up() == 0
        assert not any(b"noise" in frame for frame in client.frames)
    assert "more noise" in lab.log.read_text()


NOISY_IMPORT = """\
import os, sys

class Noise:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("mcp."):
            print("noise from", name, flush=True)
            os.write(1, b"more noise\\n")

from mcp_server_codex.__main__ import main
sys.meta_path.insert(0, Noise())
main()
"""
"""The server in a process where the SDK's modules print while they are imported."""


async def test_what_a_library_prints_when_it_is_imported_is_kept_off_too(
    mode: str, lab: Lab
) -> None:
    program = lab.root / "noisy_import.py"
    program.write_text(NOISY_IMPORT)
    async with wire(mode, lab, program=[sys.executable, str(program)]) as client:
        await client.open()
        assert await client.lists_tools()
        assert await client.hang_up() == 0
    assert "noise from mcp." in lab.log.read_text()


@pytest.mark.parametrize("ending", ["SIGTERM", "EOF"])
async def test_what_a_library_prints_while_the_server_ends_is_kept_off_too(
    ending: str, mode: str, lab: Lab
) -> None:
    sign = lab.root / "noise"
    async with wire(mode, lab, program=noisy_program(lab, sign)) as client:
        await client.open()
        sign.touch()
        assert await client.lists_tools()
        await until(lambda: "more noise" in lab.log.read_text())
        if ending == "SIGTERM":
            client.process.send_signal(signal.SIGTERM)
            await client.read_to_the_end()
        else:
            assert await client.hang_up() == 0


async def test_discover_then_initialize_then_discover_ends_in_the_modern_era(lab: Lab) -> None:
    """So a client may come that takes a slow start for a server of the older era."""
    async with wire("auto", lab) as client:
        early, late = client.request("server/discover"), client.request("server/discover")
        await client.send(early, INITIALIZE)
        assert "2026-07-28" in (await client.answer(early["id"]))["result"]["supportedVersions"]
        refused = await client.answer(INITIALIZE["id"])
        assert refused["error"]["code"] == -32022
        assert refused["error"]["data"]["supported"] == ["2026-07-28"]
        assert (await client.ask(late))["result"]["capabilities"]["tools"] is not None
        assert await client.lists_tools()
