"""Many runs in one server: nothing grows, and no more than allowed are at work."""

from __future__ import annotations

import sys
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from mcp import Client

from mcp_server_codex.cli.scripted_model import Patch, Shell, do, say
from support.codex_versions import real_codex
from support.fake_codex import answer_lines, events
from support.fake_codex import thread_line as thread
from support.lab import Json, Lab, Note, app_servers, call, connect, marked, until

SCHEMA: Json = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

COUNTING = """\
#!{python} -ISE
import os, sys, time
here = {here!r}
def note(file, text):
    fd = os.open(here + "/" + file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, text.encode() + b"\\n")
    os.close(fd)
if sys.argv[1:] == ["--version"]:
    note("asked", "version")
    print("codex-cli 0.169.0")
    sys.exit(0)
mine = here + "/alive/" + str(os.getpid())
open(mine, "w").close()
prompt = sys.stdin.read()
note("order", prompt)
note("alive.most", str(len(os.listdir(here + "/alive"))))
sys.stdout.write({first!r})
sys.stdout.flush()
time.sleep(float(prompt.partition(" takes ")[2] or 0))
sys.stdout.write({rest!r})
sys.stdout.flush()
os.unlink(mine)
"""


@dataclass(frozen=True)
class CountingCodex:
    """A quick fake Codex that notes when it is alive."""

    folder: Path

    def build(self) -> Path:
        """Write the program; return its path."""
        (self.folder / "alive").mkdir(parents=True)
        program = self.folder / "codex"
        first, *rest = answer_lines('{"a": 1}')
        program.write_text(
            COUNTING.format(
                python=sys.executable,
                here=str(self.folder),
                first=events(thread(), first).decode(),
                rest=events(*rest).decode(),
            )
        )
        program.chmod(0o755)
        return program

    def noted(self, file: str) -> list[str]:
        """Return the lines of one of its files."""
        path = self.folder / file
        return path.read_text().splitlines() if path.exists() else []


@dataclass(frozen=True)
class Trace:
    """What a server holds while nothing runs."""

    processes: int
    fds: list[str]
    threads: int
    temporary: list[str]
    locks: list[str]
    rss_kb: int


@dataclass(frozen=True)
class Watched:
    """A server and where it leaves its traces."""

    client: Client
    lab: Lab
    server: int
    tag: str

    async def trace(self) -> Trace:
        """Return what is left now; once the last answer has gone out."""
        await anyio.sleep(0.5)
        folder = Path(f"/proc/{self.server}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        links = [each.readlink() for each in (folder / "fd").iterdir() if each.is_symlink()]
        return Trace(
            processes=len(marked(self.tag)),
            # Pipes and sockets are named by number; a new one is no other kind of thing.
            fds=sorted(str(link).partition(":[")[0] for link in links),
            threads=int(status["Threads"]),
            temporary=sorted(
                each.name
                for folder in (self.lab.root / "tmp", self.lab.state / "scratch")
                for each in folder.iterdir()
            ),
            locks=sorted(each.name for each in (self.lab.home / "mcp-server-codex").iterdir()),
            rss_kb=int(status["VmRSS"].split()[0]),
        )


@asynccontextmanager
async def watched(
    mode: str, codex: Path, lab: Lab, *options: str, within_s: float = 400
) -> AsyncGenerator[Watched]:
    (lab.root / "tmp").mkdir()
    mark = str(uuid.uuid4())
    env = {"FAR_END": mark, "TMPDIR": str(lab.root / "tmp")}
    with anyio.fail_after(within_s):
        async with connect(mode, codex, lab, *options, env=env) as client:
            (server,) = marked(f"FAR_END={mark}")
            yield Watched(client, lab, server, f"FAR_END={mark}")


async def in_turn(count: int, at_once: int, one: Callable[[int], Awaitable[None]]) -> None:
    """Do *one* for each number below *count*, some side by side."""
    places = anyio.CapacityLimiter(at_once)

    async def placed(number: int) -> None:
        async with places:
            await one(number)

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(placed, number)


def check_growth(early: Trace, late: Trace, processes: int = 1) -> None:
    assert late.processes == early.processes == processes
    assert late.fds == early.fds
    assert late.threads <= early.threads + 4
    # Codex itself leaves a folder or two, always the same ones; we leave nothing.
    assert late.temporary == early.temporary
    assert not [name for name in late.temporary if not name.startswith("codex-")]
    assert late.locks == early.locks == []
    assert late.rss_kb < early.rss_kb * 1.10


async def test_after_300_runs_the_server_holds_no_more_than_after_60(lab: Lab, note: Note) -> None:
    codex = CountingCodex(lab.root / "counting")

    async def one(number: int) -> None:
        kind = number % 10
        options: Json = {"output_schema": SCHEMA} if kind == 3 else {}
        prompt = f"{number} takes {0 if kind != 7 else 600}"
        if kind == 7:
            begun = await call(here.client, "codex_run", prompt=prompt, wait_s=0)
            stopped = await here.client.call_tool("codex_stop", {"run_id": begun["run_id"]})
            assert stopped.structured_content is not None
            assert stopped.structured_content["run"]["status"] == "cancelled"
        else:
            result = await call(here.client, "codex_run", prompt=prompt, **options)
            assert result["status"] == "completed"

    async with watched("auto", codex.build(), lab) as here:
        await in_turn(60, 4, one)
        early = await here.trace()
        await in_turn(240, 4, one)
        late = await here.trace()
    note("measured", f"RSS after 60 runs {early.rss_kb} kB, after 300 runs {late.rss_kb} kB")
    note("measured", f"file descriptors {len(late.fds)}, threads {early.threads} {late.threads}")
    # A wrapper is asked for its version with each run, since it may choose by folder.
    assert len(codex.noted("asked")) <= 300
    check_growth(early, late)
    assert len(list((lab.state / "runs").iterdir())) == 300
    assert not list(lab.state.rglob("run.json.*"))


async def test_after_40_runs_of_the_real_codex_the_server_holds_no_more_than_after_8(
    lab: Lab, note: Note
) -> None:
    codex = real_codex("0.163.0")
    prompts = [
        lab.script("say", say("said")),
        lab.script("shell", do(Shell("echo hello; sleep 30 & disown")), say("done")),
        lab.script("patch", do(Patch("*** Add File: a.txt\n+a")), say("patched")),
        lab.script("data", say('{"a": 1}')),
    ]

    async def one(number: int) -> None:
        prompt = prompts[number % len(prompts)]
        schema: Json = {"output_schema": SCHEMA | {"additionalProperties": False}}
        options = schema if prompt == "data" else {}
        result = await call(here.client, "codex_run", prompt=prompt, wait_s=60, **options)
        assert result["status"] == "completed", result

    async with watched("auto", codex, lab) as here:
        await in_turn(8, 2, one)
        await until(lambda: len(app_servers(here.tag)) == 1)
        early = await here.trace()
        await in_turn(32, 2, one)
        await until(lambda: len(app_servers(here.tag)) == 1)
        late = await here.trace()
    note("measured", f"real Codex: RSS after 8 runs {early.rss_kb} kB, after 40 {late.rss_kb} kB")
    check_growth(early, late, processes=3)  # The server, a spare app-server and its guard.


async def test_of_32_calls_at_once_four_are_at_work_and_the_others_say_that_they_wait(
    mode: str, lab: Lab
) -> None:
    codex = CountingCodex(lab.root / "counting")
    heard: dict[int, list[str]] = {number: [] for number in range(32)}
    results: dict[int, Json] = {}

    async with watched(mode, codex.build(), lab, "--max-runs", "4") as here:

        async def one(number: int) -> None:
            async def tell(progress: float, total: float | None, message: str | None) -> None:
                heard[number].append(message or "")

            answer = await here.client.call_tool(
                "codex_run",
                {"prompt": f"{number} takes 0.6", "wait_s": 300},
                progress_callback=tell,
            )
            assert answer.structured_content is not None
            results[number] = answer.structured_content

        async with anyio.create_task_group() as tasks:
            for number in range(32):
                tasks.start_soon(one, number)
        assert marked(here.tag) == [here.server]
    assert {result["status"] for result in results.values()} == {"completed"}
    assert len({result["run_id"] for result in results.values()}) == 32
    alive = [int(count) for count in codex.noted("alive.most")]
    assert len(alive) == 32
    assert 2 <= max(alive) <= 4
    assert all(messages for messages in heard.values())
    waited = [
        n for n, messages in heard.items() if any("waiting in the queue" in m for m in messages)
    ]
    # The first four never wait; the next ones may have started before they could say a thing.
    assert len(waited) >= 20
    assert len(waited) <= 28


async def test_runs_in_line_are_queued_and_come_in_the_order_of_their_calls(
    mode: str, lab: Lab
) -> None:
    codex = CountingCodex(lab.root / "counting")
    async with watched(mode, codex.build(), lab, "--max-runs", "4") as here:
        run_ids: list[str] = []
        first: list[str] = []
        for number in range(32):
            takes = 4 if number < 4 else 0.3
            run = await call(here.client, "codex_run", prompt=f"{number} takes {takes}", wait_s=0)
            run_ids.append(run["run_id"])
            first.append(run["status"])
        assert first[:4] == ["running"] * 4
        assert first[-8:] == ["queued"] * 8

        given_up = run_ids[-1]
        stopped = await here.client.call_tool("codex_stop", {"run_id": given_up})
        assert stopped.structured_content is not None
        assert stopped.structured_content["run"]["status"] == "cancelled"
        assert stopped.structured_content["run"]["attempts"] == 0

        between = await standing(here.client, run_ids, 0)
        assert between[-2]["status"] == "queued"
        assert between[-2]["duration_s"] == 0
        after = await standing(here.client, run_ids, 100)
    assert [run["run_id"] for run in after] == run_ids
    assert [run["status"] for run in after] == ["completed"] * 31 + ["cancelled"]
    order = [int(line.partition(" ")[0]) for line in codex.noted("order")]
    assert sorted(order) == list(range(31))
    # Four start up side by side, so each may be overtaken by its neighbours.
    assert all(abs(number - place) <= 6 for place, number in enumerate(order)), order
    assert max(int(count) for count in codex.noted("alive.most")) <= 4


async def test_32_first_calls_at_once_ask_codex_for_its_version_a_few_times_at_most(
    lab: Lab,
) -> None:
    codex = CountingCodex(lab.root / "counting")
    async with watched("auto", codex.build(), lab, "--max-runs", "2") as here:

        async def one(number: int) -> None:
            result = await call(here.client, "codex_run", prompt=f"{number}", wait_s=100)
            assert result["status"] == "completed"

        await in_turn(32, 32, one)
    assert len(codex.noted("asked")) <= 4


async def standing(client: Client, run_ids: list[str], wait_s: float) -> list[Json]:
    """Return how the runs stand after *wait_s* at most."""
    answer = await client.call_tool("codex_wait", {"run_ids": run_ids, "wait_s": wait_s})
    assert answer.structured_content is not None
    return list(answer.structured_content["runs"])
