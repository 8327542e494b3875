"""The whole server against a Codex that is broken or means harm.

Each fault has a defined end, nothing of it is left alive, and the server goes on.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from mcp import Client

from support.fake_codex import FakeCodex
from support.lab import Json, Lab, Note, call, connect, marked, until

PRELUDE = """
import signal, subprocess
out = sys.stdout.buffer
def put(*lines):
    for line in lines:
        out.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\\n")
    out.flush()
def item(type_, kind="completed", **fields):
    return {"type": f"item.{kind}", "item": {"id": fields.pop("id", "i"), "type": type_, **fields}}
def message(text):
    return item("agent_message", text=text)
def command(text, kind="completed", **fields):
    status = "completed" if kind == "completed" else "in_progress"
    return item("command_execution", kind, command=text, status=status, **fields)
def done(n=10):
    return {"type": "turn.completed", "usage": {"input_tokens": n, "output_tokens": 2}}
def failed(text):
    return {"type": "turn.failed", "error": {"message": text}}
def error(text):
    return {"type": "error", "message": text}
def thread(id_="01a20000-0000-7000-8000-000000000001"):
    return {"type": "thread.started", "thread_id": id_}
def deaf():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
def fork(count, seconds):
    for number in range(count):
        if os.fork() == 0:
            if number % 2:
                os.setsid()
            time.sleep(seconds)
            os._exit(0)
"""


@dataclass(frozen=True)
class Case:
    """What Codex does, as Python, and how the run has to end."""

    body: str
    status: str = "completed"
    kind: str | None = None
    says: str = ""
    """What the error's message, the answer or a warning holds."""
    arguments: Json = field(default_factory=dict[str, object])


CRASHED = ("failed", "codex_crashed")
ANSWER = "put(thread(), message('the answer'), done())"

STREAMS = {
    "garbage lines": Case(
        "put(b'garbage\\n', b'[1]\\n', b'\"x\"\\n', b'null\\n', b'{}\\n', b'{\"type\": 7}\\n')\n"
        f"put(b'\\n \\n\\r\\n'); {ANSWER}; put(b'\\x1b[0m}}}}\\n')",
        says="5 lines of Codex's output could not be read",
    ),
    "half a line in the middle": Case(
        f'put(thread(), b\'{{"type": "item.comp\\n\'); {ANSWER}', says="1 lines"
    ),
    "half a line at the end": Case(
        'put(thread(), message(\'x\'), b\'{"type": "turn.completed", "usa\')', *CRASHED
    ),
    "a last line without a line feed": Case(
        "put(thread(), message('the answer'), json.dumps(done()).encode())", says="the answer"
    ),
    "a line in many pieces": Case(
        "for byte in json.dumps(message('the answer')).encode() + b'\\n':\n"
        "    put(bytes([byte]))\n    time.sleep(0.002)\nput(done())",
        says="the answer",
    ),
    "windows line ends": Case(
        "for line in (thread(), message('the answer'), done()):\n"
        "    put(json.dumps(line).encode() + b'\\r\\n')",
        says="the answer",
    ),
    "invalid UTF-8": Case(
        f"put(b'\\xff\\xfe\\x80\\n', json.dumps(message('@')).encode().replace(b'@', b'\\xc3')"
        f" + b'\\n'); {ANSWER}",
        says="2 lines",
    ),
    "NUL bytes": Case(
        f"put(b'\\0\\n', b'\\0' * 70000 + b'\\n', command('a\\0b')); {ANSWER}", says="2 lines"
    ),
    "half a surrogate": Case(
        'put(thread(), b\'{"type": "item.completed", "item": {"id": "i", "type":'
        ' "agent_message", "text": "\\\\ud800"}}\\n\', done())',
        "failed",
        "no_answer",
    ),
    "values nested without end": Case(
        "put(b'[' * 200000 + b'\\n', b'{\"type\":' * 200000 + b'\\n')\n"
        "put(b'{\"type\": \"item.completed\", \"item\": ' + b'[' * 900 + b']' * 900 + b'}\\n')\n"
        + ANSWER,
        says="2 lines",
    ),
    "fields of the wrong type": Case(
        "for value in (None, 1, 'x', [], {}, [[]], True, 1e308):\n"
        "    for kind in ('file_change', 'todo_list', 'command_execution', 'mcp_tool_call'):\n"
        "        put(item(kind, id=value, changes=value, items=value, command=value, status=value,"
        " exit_code=value, tool=value, server=value))\n"
        "    put({'type': 'turn.failed', 'error': value}, {'type': 'turn.completed',"
        " 'usage': value}, {'type': 'item.completed', 'item': value})\n" + ANSWER,
        says="the answer",
    ),
    "events after the end": Case(
        f"{ANSWER}; put({{'type': 'turn.started'}}, thread('late'), error('late'))\n"
        "put(command('late'), {'type': 'session.closed'})",
        says="the answer",
    ),
    "two ends": Case(f"{ANSWER}; put(done(20))", says="the answer"),
    "a failure, then success": Case(
        "put(thread(), failed('of a sub-agent'), message('the answer'), done())", says="the answer"
    ),
    "success, then a failure": Case(
        f"{ANSWER}; put(failed('of the parent'))", "failed", "turn_failed", "of the parent"
    ),
    "a failure without words": Case("put({'type': 'turn.failed'})", "failed", "turn_failed"),
    "success without an answer": Case("put(thread(), done())", "failed", "no_answer"),
    "success without a thread": Case("put(message('the answer'), done())", says="the answer"),
    "nothing at all": Case("", *CRASHED, "exit code 0"),
    "an exit code in spite of success": Case(f"{ANSWER}; os._exit(101)", says="the answer"),
    "a signal in spite of success": Case(f"{ANSWER}; os.kill(os.getpid(), 9)", says="the answer"),
    **{
        f"no end, exit code {code}": Case(
            f"put(thread(), message('so far')); os._exit({code})", *CRASHED, f"exit code {code}"
        )
        for code in (0, 1, 2, 101, 127)
    },
    **{
        f"no end, signal {number}": Case(
            "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
            f"put(thread(), message('so far')); os.kill(os.getpid(), {number}); time.sleep(60)",
            *CRASHED,
            f"signal {number}",
        )
        for number in (1, 2, 6, 9, 11, 15)
    },
    "a panic": Case(
        "put(thread()); sys.stderr.write(\"thread 'main' panicked at src/x.rs:1:1:\\nboom\\n\")\n"
        "sys.stderr.flush(); os._exit(101)",
        *CRASHED,
        "boom",
    ),
    "stdout closed, then a late exit": Case(
        "put(thread()); sys.stdout.flush(); os.close(1); time.sleep(0.5); os._exit(0)", *CRASHED
    ),
    "stdout closed, lives on": Case(
        "put(thread()); os.close(1); time.sleep(600)",
        "timed_out",
        "timed_out",
        arguments={"timeout_s": 2},
    ),
    "all streams closed, lives on, deaf": Case(
        "deaf(); os.close(0); os.close(1); os.close(2); time.sleep(600)",
        "timed_out",
        "timed_out",
        arguments={"timeout_s": 2},
    ),
    "success, then stdout closed, lives on": Case(
        f"{ANSWER}; os.close(1); time.sleep(600)", says="the answer"
    ),
    "success, then it lives on, deaf": Case(
        f"deaf(); {ANSWER}; time.sleep(600)", says="the answer"
    ),
    "success, then output without end": Case(
        f"{ANSWER}\nwhile True:\n    put(b'more\\n'); time.sleep(0.01)",
        says="the answer",
        arguments={"timeout_s": 60},
    ),
    "garbage without end": Case(
        "while True:\n    put(b'garbage\\n' * 100); time.sleep(0.01)",
        "timed_out",
        "timed_out",
        arguments={"timeout_s": 2},
    ),
    "a line without end": Case(
        "while True:\n    put(b'x' * 1000); time.sleep(0.01)",
        "timed_out",
        "timed_out",
        arguments={"timeout_s": 2},
    ),
    "signals ignored until the time is over": Case(
        "deaf(); fork(5, 600); put(thread()); time.sleep(600)",
        "timed_out",
        "timed_out",
        arguments={"timeout_s": 2},
    ),
    "200 short children": Case(
        "fork(200, 0)\nfor _ in range(200):\n    os.wait()\n" + ANSWER, says="the answer"
    ),
    "200 children left behind": Case(f"fork(200, 600); {ANSWER}", says="the answer"),
    "200 children left behind by a crash": Case("fork(200, 600); os._exit(3)", *CRASHED),
    "200 children until the time is over": Case(
        "deaf(); fork(200, 600); time.sleep(600)",
        "timed_out",
        "timed_out",
        arguments={"timeout_s": 4},
    ),
    "children that make children": Case(
        "def spread(depth):\n"
        "    for _ in range(5):\n"
        "        if os.fork() == 0:\n"
        "            os.setsid()\n"
        "            if depth:\n"
        "                spread(depth - 1)\n"
        "            time.sleep(600); os._exit(0)\n"
        f"spread(2); {ANSWER}",
        says="the answer",
    ),
    "counts below zero": Case("put(message('the answer'), done(-1))", says="the answer"),
}

THREAD_IDS = {
    "leads out of the folder": "../../../evil",
    "is a path": "/tmp/evil/evil",
    "holds a slash": "a/b",
    "holds a NUL": "a\0b",
    "is long": "x" * 300,
    "is very long": "x" * 100_000,
    "is not text": 7,
    "is blank": " ",
    "holds a line feed": "a\nb",
}


@dataclass
class Bench:
    """A server, and the fake Codex that it runs."""

    client: Client
    tag: str
    server: int

    async def play(self, cases: dict[str, Case]) -> dict[str, Json]:
        """Run all *cases* side by side; return what came of each."""
        results: dict[str, Json] = {}

        async def one(name: str, case: Case) -> None:
            arguments: Json = {"timeout_s": 300, "wait_s": 330} | case.arguments
            results[name] = await call(self.client, "codex_run", prompt=name, **arguments)

        async with anyio.create_task_group() as tasks:
            for name, case in cases.items():
                tasks.start_soon(one, name, case)
        return results

    def memory(self, field: str) -> int:
        """Return a figure of the server's memory, in megabytes."""
        lines = Path(f"/proc/{self.server}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024

    def left(self) -> list[int]:
        """Return the processes that are left besides the server."""
        return [pid for pid in marked(self.tag) if pid != self.server]


@asynccontextmanager
async def bench(
    mode: str,
    fake: FakeCodex,
    lab: Lab,
    cases: dict[str, Case],
    *options: str,
    within_s: float = 400,
) -> AsyncGenerator[Bench]:
    """Start a server whose Codex plays the case that the prompt names."""
    fake.folder.mkdir(parents=True, exist_ok=True)
    bodies = fake.folder / "cases.json"
    bodies.write_text(json.dumps({name: case.body for name, case in cases.items()}))
    fake.body = f"{PRELUDE}\nexec(json.load(open({str(bodies)!r}))[seen['stdin']])\n"
    mark = str(uuid.uuid4())
    tag = f"FAR_END={mark}"
    with anyio.fail_after(within_s):
        async with connect(
            mode, fake.build(), lab, "--max-runs", "8", *options, env={"FAR_END": mark}
        ) as client:
            (server,) = marked(tag)
            yield Bench(client, tag, server)
        await until(lambda: not marked(tag), within_s=60)


def wrong(cases: dict[str, Case], results: dict[str, Json]) -> dict[str, Json]:
    """Return the results that are not what their case defines."""
    found: dict[str, Json] = {}
    for name, case in cases.items():
        result = results[name]
        error: Json = result["error"] or {}
        told = f"{error.get('message')} {result['final_response']} {result['warnings']}"
        as_defined = (result["status"], error.get("kind")) == (case.status, case.kind)
        if not as_defined or case.says not in told:
            found[name] = {key: result[key] for key in ("status", "error", "warnings")}
    return found


async def test_each_hostile_stream_has_its_defined_end(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    async with bench(mode, fake, lab, STREAMS) as here:
        results = await here.play(STREAMS)
        assert here.left() == []
    assert wrong(STREAMS, results) == {}
    assert results["two ends"]["usage"]["input_tokens"] == 20
    assert results["events after the end"]["thread_id"].startswith("01a2")
    assert results["no end, exit code 1"]["final_response"] == "so far"
    assert "Traceback" not in lab.log.read_text()


async def test_counts_at_the_edge_of_64_bits_do_not_end_the_server(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    cases = {
        str(count): Case(f"put(message('the answer'), done({count}))", says="the answer")
        for count in (2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**300)
    }
    cases["exit code"] = Case(f"put(command('x', exit_code=2**64 - 1)); {ANSWER}")
    async with bench(mode, fake, lab, cases) as here:
        for name, case in cases.items():
            results = await here.play({name: case})
            assert wrong({name: case}, results) == {}


async def test_a_hostile_thread_id_neither_breaks_the_run_nor_leads_out_of_the_state_folder(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    outside = lab.root / "outside"
    outside.mkdir()
    (outside / "kept.lock").write_text("precious")
    ids = THREAD_IDS | {"names a lock elsewhere": f"{outside}/kept"}
    # The answer comes late: by then a lock file would lie where the id leads.
    cases = {
        name: Case(f"put(thread({id_!r})); time.sleep(0.3); put(message('the answer'), done())")
        for name, id_ in ids.items()
    }
    async with bench(mode, fake, lab, cases) as here:
        results = await here.play(cases)
        again = await call(here.client, "codex_run", prompt="is not text")
        assert here.left() == []
    assert (outside / "kept.lock").exists()
    assert wrong(cases, results) == {}
    assert again["status"] == "completed"
    for name, result in results.items():
        assert len(json.dumps(result, ensure_ascii=False)) < 50_000, name
        assert len(result["thread_id"] or "") <= 1000, name


async def test_one_line_of_100_mb_leaves_the_memory_bounded(
    mode: str, lab: Lab, fake: FakeCodex, note: Note
) -> None:
    cases = {
        "an answer": Case("put(thread(), message('a' * 100_000_000), done())", says="left out"),
        "not JSON": Case(f"put(b'x' * 100_000_000 + b'\\n'); {ANSWER}", says="1 lines"),
        "no line feed": Case("put(thread(), b'{' * 100_000_000)", *CRASHED),
    }
    async with bench(mode, fake, lab, cases) as here:
        before, peaks = here.memory("VmRSS"), list[int]()
        for name, case in cases.items():
            results = await here.play({name: case})
            assert wrong({name: case}, results) == {}
            peaks.append(here.memory("VmHWM"))
            if name == "an answer":
                assert len(results[name]["final_response"]) <= 40_000
        after = here.memory("VmRSS")
        assert here.left() == []
    note("measured", f"100 MB line, {mode}: RSS {before} -> {after} MB, peaks {peaks} MB")
    assert max(peaks) < before + 6 * 100
    # What stays is what the allocator keeps of one line's pieces, however many lines come.
    assert after < before + 150


async def test_the_longest_command_neither_blocks_the_server_nor_outlives_its_time(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    cases = {
        "in a shell": Case(
            "put(command(\"/bin/bash -lc '\" + 'x ' * 2_000_000 + \"'\")); " + ANSWER
        ),
        "nearly a token": Case(f"put(command('eyJ-' * 100_000)); {ANSWER}"),
        "a failure": Case("put(failed('eyJ-' * 100_000))", "failed", "turn_failed"),
    }
    async with bench(mode, fake, lab, cases) as here:
        for name, case in cases.items():
            run = await call(here.client, "codex_run", prompt=name, wait_s=0)
            with anyio.move_on_after(30) as limit:
                await here.client.call_tool(
                    "codex_wait", {"run_ids": [run["run_id"]], "wait_s": 20}
                )
                (result,) = await waited(here.client, run["run_id"])
                assert result["status"] == case.status, name
            # A minute is what a client gives a call; this takes a tenth of a second if linear.
            assert not limit.cancelled_caught, f"{name}: the server was blocked"


async def test_a_flood_of_stderr_leaves_the_memory_bounded(
    mode: str, lab: Lab, fake: FakeCodex, note: Note
) -> None:
    cases = {
        "1 GB": Case(
            "block = b'ERROR: the flood ' * 65536\n"
            "for _ in range(1024**3 // len(block) + 1):\n    os.write(2, block)\n" + ANSWER,
            says="the answer",
        ),
        "then a crash": Case(
            "os.write(2, b'x' * 10_000_000 + b'\\nError: last words\\n'); os._exit(1)",
            *("failed", "not_started"),
            "last words",
        ),
    }
    async with bench(mode, fake, lab, cases) as here:
        before = here.memory("VmRSS")
        results = await here.play(cases)
        peak = here.memory("VmHWM")
        assert here.left() == []
    note("measured", f"1 GB of stderr, {mode}: RSS {before} MB, peak {peak} MB")
    assert wrong(cases, results) == {}
    assert peak < before + 60


async def test_a_million_events_leave_the_memory_bounded(
    lab: Lab, fake: FakeCodex, note: Note
) -> None:
    cases = {
        "events": Case(
            "block = b''.join(json.dumps(e).encode() + b'\\n' for e in ["
            "message('so far'), error('a warning'), item('new_type', 'updated'),"
            " {'type': 'turn.started'}]) * 250\n"
            "put(thread())\n"
            "for n in range(999):\n"
            "    put(block, command(f'step {n}', id=f'c{n}'),"
            " item('file_change', changes=[{'path': f'/p/{n}', 'kind': 'add'}]))\n" + ANSWER,
            says="the answer",
        ),
    }
    async with bench("auto", fake, lab, cases) as here:
        before = here.memory("VmRSS")
        results = await here.play(cases)
        peak = here.memory("VmHWM")
        assert here.left() == []
    note("measured", f"a million events: RSS {before} MB, peak {peak} MB")
    assert wrong(cases, results) == {}
    result = results["events"]
    assert result["command_count"] == 999
    assert len(result["files_changed"]) == 200
    assert peak < before + 60
    (log,) = lab.state.glob("runs/*/events.jsonl")
    assert log.stat().st_size <= 64 * 1024 * 1024


async def test_codex_stop_ends_what_ignores_every_signal_it_can(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    cases = {
        "deaf": Case("deaf(); fork(20, 600); put(thread('here')); time.sleep(600)"),
        "deaf and busy": Case("deaf(); put(thread('there'))\nwhile True:\n    put(error('x'))"),
        "200 children": Case("deaf(); fork(200, 600); put(thread('gone')); time.sleep(600)"),
        "stopped": Case(
            "put(thread('where'))\nif os.fork() == 0:\n    time.sleep(600)\n"
            "os.kill(os.getpid(), signal.SIGSTOP)"
        ),
    }
    async with bench(mode, fake, lab, cases) as here:
        for name in cases:
            run_id = (await call(here.client, "codex_run", prompt=name, wait_s=0))["run_id"]
            with anyio.fail_after(60):
                # codex_wait waits for an end; there is no waiting for a beginning.
                while (await waited(here.client, run_id))[0]["thread_id"] is None:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
                answer = await here.client.call_tool("codex_stop", {"run_id": run_id})
            assert answer.structured_content is not None
            run: Json = answer.structured_content["run"]
            assert (run["status"], run["error"]["kind"]) == ("cancelled", "cancelled"), name
            assert here.left() == [], name


async def test_a_codex_that_never_reads_its_prompt_still_ends(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = f"{PRELUDE}\n{ANSWER}\n"
    program = fake.build()
    text = program.read_text()
    program.write_text(text.replace("sys.stdin.buffer.read()", "b''"))
    assert program.read_text() != text
    async with connect(mode, program, lab) as client:
        with anyio.fail_after(60):
            result = await call(client, "codex_run", prompt="é" * 1_000_000)
    assert result["final_response"] == "the answer"


async def test_a_stall_is_silence_with_nothing_at_work(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    stalled = ("timed_out", "stalled")
    reconnecting = "put(error(f'Reconnecting... {n}/5 (stream disconnected)')); time.sleep(0.2)"
    cases = {
        "silence from the start": Case("time.sleep(600)", *stalled, arguments={"timeout_s": 60}),
        "silence in the turn": Case("put(thread(), message('so far')); time.sleep(600)", *stalled),
        "silence, deaf": Case("deaf(); fork(3, 600); put(thread()); time.sleep(600)", *stalled),
        "silence, stdout closed": Case("put(thread()); os.close(1); time.sleep(600)", *stalled),
        "only blank lines": Case(
            "while True:\n    put(b'\\n'); time.sleep(0.2)", *stalled, arguments={"timeout_s": 60}
        ),
        "only reconnecting": Case(
            f"put(thread())\nfor n in range(1, 9**9):\n    {reconnecting}",
            *stalled,
            "Reconnecting...",
        ),
        "silence after a command": Case(
            "put(command('make', 'started')); time.sleep(6); put(command('make'))\ntime.sleep(600)",
            *stalled,
        ),
        "a long command": Case(
            f"put(command('make', 'started')); time.sleep(9); put(command('make')); {ANSWER}",
            says="the answer",
        ),
        "a long command while reconnecting": Case(
            f"put(command('make', 'started'))\nfor n in range(45):\n    {reconnecting}\n{ANSWER}",
            says="the answer",
        ),
        "a long tool call": Case(
            "put(item('mcp_tool_call', 'started', tool='x', status='in_progress'))\n"
            f"time.sleep(9); put(item('mcp_tool_call', tool='x')); {ANSWER}",
            says="the answer",
        ),
        "slow but sure": Case(
            f"for _ in range(9):\n    put({{'type': 'new.event'}}); time.sleep(1)\n{ANSWER}",
            says="the answer",
        ),
        "a command that never ends": Case(
            "put(command('make', 'started')); time.sleep(600)",
            "timed_out",
            "timed_out",
            arguments={"timeout_s": 10},
        ),
    }
    options = ("--stall-s", "4", "--max-runs", "16")
    async with bench(mode, fake, lab, cases, *options) as here:
        results = await here.play(cases)
        assert here.left() == []
    assert wrong(cases, results) == {}


async def waited(client: Client, *run_ids: str) -> list[Json]:
    """Return how the runs stand now."""
    answer = await client.call_tool("codex_wait", {"run_ids": list(run_ids), "wait_s": 0})
    assert answer.structured_content is not None
    return list(answer.structured_content["runs"])
