"""The end of the server, whatever ends it and whatever hangs meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import pty
import signal
import sys
from typing import Any, cast

import anyio
import pytest

from mcp_server_codex.watchdog import VARIABLE
from support.fake_codex import FakeCodex
from support.lab import (
    MODES,
    Json,
    Lab,
    environment,
    lay_slow_rollouts,
    marked,
    reads_below,
    server_program,
    until,
)
from support.wire import HANGS_S, PARSE, Wire, records, wire

ENDINGS = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129, "EOF": 0}


@pytest.mark.parametrize(
    ("mode", "ending"), [*itertools.product(MODES, ENDINGS), ("silent", "SIGTERM")]
)
async def test_an_idle_server_ends_as_it_is_told_to(ending: str, mode: str, lab: Lab) -> None:
    async with wire(mode, lab) as client:
        if mode == "silent":
            # No request has come: only an answer tells that it listens.
            await client.send(b"?")
            assert (await client.read())["error"]["code"] == PARSE
        else:
            await client.open()
            await client.ask(client.call("codex_sessions", limit=1))
        if ending == "EOF":
            assert await client.hang_up() == 0
        else:
            client.process.send_signal(signal.Signals[ending])
            with anyio.fail_after(HANGS_S):
                assert await client.process.wait() == ENDINGS[ending]
            await client.read_to_the_end()
    if mode == "silent":
        assert not lab.state.exists()
    else:
        assert list((lab.state / "servers").iterdir()) == []
    assert "Traceback" not in lab.log.read_text()


async def hang(what: str, client: Wire, lab: Lab) -> None:
    """Let something that the server waits for hang for good."""
    match what:
        case "a cold index":
            folder = lay_slow_rollouts(lab.home)
            await client.send(client.call("codex_usage"))
            await until(lambda: reads_below(client.process.pid, folder))
        case "a hung disk":
            (lab.home / "config.toml").unlink()
            os.mkfifo(lab.home / "config.toml")
            await client.ask(client.call("codex_run", prompt="y", wait_s=0))
            await until(lambda: len(records(lab)) == 2)
        case "an audit log that hangs":
            (lab.state / "audit.jsonl").unlink()
            os.mkfifo(lab.state / "audit.jsonl")
            await client.ask(client.call("codex_wait", run_ids=["run_0000000000000000"]))
        case _:  # An answer to a malformed frame that the client does not read.
            chunk = b"?\n" * 30_000
            assert client.process.stdin is not None
            for _ in range(40):
                await client.process.stdin.send(chunk)


CLOSINGS = {"EOF": 0, "SIGTERM": 143, "stdout": 1}


@pytest.mark.parametrize(
    "what", ["a cold index", "a hung disk", "an audit log that hangs", "an answer nobody reads"]
)
@pytest.mark.parametrize("ending", CLOSINGS)
async def test_nothing_that_hangs_keeps_a_server_and_its_runs_alive(
    what: str, ending: str, mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = "time.sleep(600)"
    async with wire(mode, lab, "--codex-bin", str(fake.build())) as client:
        await client.open()
        begun = await client.ask(client.call("codex_run", prompt="x", wait_s=0))
        run_id = begun["result"]["structuredContent"]["run_id"]
        await until(lambda: fake.was_started)
        await hang(what, client, lab)
        if ending == "EOF":
            assert client.process.stdin is not None
            await client.process.stdin.aclose()
        elif ending == "stdout":
            pipe = cast("Any", client.process)._process._transport.get_pipe_transport(1)
            pipe.close()
        else:
            client.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(HANGS_S):
            assert await client.process.wait() == CLOSINGS[ending]
    await until(lambda: not marked(str(lab.home)), within_s=HANGS_S)
    assert list((lab.state / "servers").iterdir()) == []
    if what != "an audit log that hangs":  # Nothing can be stored then.
        (kept,) = (r["result"] for r in records(lab) if r["result"]["run_id"] == run_id)
        assert kept["error"]["kind"] == "interrupted"


@pytest.mark.parametrize("ending", CLOSINGS)
async def test_a_run_whose_caller_waits_when_the_server_ends_is_interrupted(
    ending: str, mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = "time.sleep(600)"
    async with wire(mode, lab, "--codex-bin", str(fake.build())) as client:
        await client.open()
        await client.send(client.call("codex_run", prompt="x", wait_s=600))
        await until(lambda: fake.was_started)
        if ending == "EOF":
            await client.hang_up()
        elif ending == "stdout":
            cast("Any", client.process)._process._transport.get_pipe_transport(1).close()
        else:
            client.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(HANGS_S):
            await client.process.wait()
    (record,) = records(lab)
    assert record["result"]["status"] == "failed"
    assert record["result"]["error"]["kind"] == "interrupted"
    lines = (lab.state / "audit.jsonl").read_text().splitlines()
    ended = next(line for line in map(json.loads, lines) if line["event"] == "ended")
    assert "interrupted" in ended.values()


SLOW = """\
import time
from codex_tools.runs.store import RunStore
from mcp_server_codex.__main__ import main
save = RunStore.save
RunStore.save = lambda *given: (time.sleep(0.5), save(*given))
main()
"""
"""The server with a disk that takes its time for each record."""

TASKS = "io.modelcontextprotocol/tasks"


@pytest.mark.parametrize("mode", [*MODES, "tasks"])
async def test_a_server_killed_after_its_answer_has_kept_the_run(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = "time.sleep(600)"
    program = lab.root / "slow.py"
    program.write_text(SLOW)
    options = ("--codex-bin", str(fake.build()), "--max-runs", "1")
    declared: Json = {"io.modelcontextprotocol/clientCapabilities": {"extensions": {TASKS: {}}}}
    meta = declared if mode == "tasks" else None
    ids: list[str] = []
    async with wire(mode, lab, *options, program=[sys.executable, str(program)]) as client:
        await client.open()
        for prompt in ("at work", "queued"):
            call = client.call("codex_run", meta=meta, prompt=prompt, wait_s=0)
            begun = (await client.ask(call))["result"]
            ids.append(begun.get("taskId") or begun["structuredContent"]["run_id"])
        client.process.kill()
    async with wire(mode, lab, *options) as client:
        await client.open()
        waited = await client.ask(client.call("codex_wait", run_ids=ids, wait_s=0))
    kinds = [run["error"]["kind"] for run in waited["result"]["structuredContent"]["runs"]]
    assert kinds == ["interrupted", "interrupted"]


BLOCKS = """\
import os, signal, sys, time
from mcp_server_codex.__main__ import main
os.environ.pop(sys.argv.pop(1))
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(600))
main()
"""
"""The server in a process whose event loop a signal blocks."""


async def test_a_blocked_event_loop_does_not_outlive_the_client(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = "time.sleep(600)"
    program = lab.root / "blocks.py"
    program.write_text(BLOCKS)
    command = [sys.executable, str(program), VARIABLE]
    async with wire(mode, lab, "--codex-bin", str(fake.build()), program=command) as client:
        await client.open()
        await client.ask(client.call("codex_run", prompt="x", wait_s=0))
        await until(lambda: fake.was_started)
        client.process.send_signal(signal.SIGUSR1)
        await anyio.sleep(0.2)
        assert client.process.stdin is not None
        await client.process.stdin.aclose()
        with anyio.fail_after(HANGS_S):
            assert await client.process.wait() == 0
    await until(lambda: not marked(str(lab.home)), within_s=HANGS_S)


async def test_a_terminal_that_is_closed_ends_the_server(mode: str, lab: Lab) -> None:
    """Reading from it fails then, instead of coming to an end."""
    ours, theirs = pty.openpty()
    command = [server_program(), "--state-dir", str(lab.state)]
    with lab.log.open("ab") as log:
        process = await anyio.open_process(
            command, stdin=theirs, stderr=log, cwd=lab.project, env=environment(lab)
        )
    os.close(theirs)
    assert process.stdout is not None
    async with process:
        os.write(ours, b"?\n")  # Only an answer tells that it listens.
        assert b"not JSON" in await process.stdout.receive()
        os.close(ours)
        with anyio.fail_after(HANGS_S):
            assert await process.wait() == 0
