"""The kill matrix: however a run ends, nothing it has started is left, and its thread goes on.

One command of a scripted turn starts sleepers of every kind. Then the run is
ended, and what carries the lab's mark in its environment is counted, no matter
whose child it is by then. A table of all that was seen ends the test run.

With the app-server engine, an idle spare is no part of the run. It may stay as long as the server
lives, and must be gone with it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import IO, Any, cast

import anyio
import anyio.to_thread
import pytest

from codex_tools.engines.choose import EngineChoice
from codex_tools.engines.guard import processes, tree
from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import WITH_APP_SERVER
from support.engine_turns import untouched
from support.kill_matrix import KINDS, OTHERS, Ending, idle_spares
from support.lab import (
    ENGINE,
    Json,
    Lab,
    Note,
    environment,
    lay_slow_rollouts,
    marked,
    open_lab,
    reads_below,
    server_program,
    until,
)

SLEEPERS = (
    "sleep 601 & nohup sleep 602 >/dev/null 2>&1 & setsid sleep 603 & "
    "(setsid sh -c 'sleep 604 & sleep 605' &) ; echo ready; sleep 600"
)
SANDBOXES = ("workspace-write", "danger-full-access")
USUAL = cast("EngineChoice", ENGINE or "exec")
AT_ONCE = 3
GONE_WITHIN_S = 20.0
WAIT_S = 60.0
RUN_ID = re.compile(r"run_id (run_[0-9a-f]{16})")
THREAD_ID = re.compile(r"thread_id (\S{36})")


@asynccontextmanager
async def serve(
    codex: Path, lab: Lab, mode: str, mark: str = "", engine: EngineChoice = USUAL
) -> AsyncGenerator[Server]:
    """Start a server with bare pipes, to be ended in whatever way; kill it if it is not."""
    options = ("--codex-bin", str(codex), "--state-dir", str(lab.state), "--engine", engine)
    with (
        lab.log.open("ab") as log,
        subprocess.Popen(  # noqa: ASYNC220 - nothing waits for it but polls
            [server_program(), *options, "--max-sandbox", "danger-full-access"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=lab.project,
            env=environment(lab) | {"FAR_END": mark},
        ) as process,
    ):
        try:
            server = Server(process, mode, lab, f"FAR_END={mark}")
            await server.open()
            yield server
        finally:
            process.kill()


class Server:
    """A server, and the client's ends of its pipes."""

    def __init__(
        self, process: subprocess.Popen[bytes], mode: str, lab: Lab, tag: str = ""
    ) -> None:
        self.process = process
        self.lab = lab
        self.tag = tag
        self.run: set[int] = set()
        """Ids of the guard and the processes of the run, while it sleeps."""
        self.stdin = cast("IO[bytes]", process.stdin)
        self.stdout = cast("IO[bytes]", process.stdout)
        self._mode = mode
        self._last_id = 0
        self._unread = b""
        self._answers: dict[int, Json] = {}
        self._told: list[str] = []

    async def open(self) -> None:
        """Wait until the server answers: to a handshake, or to the question that replaced it."""
        if self._mode == "legacy":
            client = {"name": "kill-matrix", "version": "1"}
            hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
            await self.answer(self._request("initialize", hello))
            self._send({"method": "notifications/initialized"})
        else:
            await self.answer(self._request("server/discover", {}))

    def ask(self, tool: str, **arguments: object) -> int:
        """Call *tool*, to be told of its progress; return the request's id."""
        return self._request("tools/call", {"name": tool, "arguments": arguments})

    def cancel(self, request: int) -> None:
        """Cancel *request*."""
        params = {"requestId": request, "reason": "caller cancelled"}
        self._send({"method": "notifications/cancelled", "params": params})

    async def answer(self, request: int) -> Json:
        """Return the result of *request*."""
        with anyio.fail_after(WAIT_S):
            while request not in self._answers:
                await self._receive()
        return self._answers.pop(request)

    async def call(self, tool: str, **arguments: object) -> Json:
        """Call *tool* and return its structured result."""
        return (await self.answer(self.ask(tool, **arguments)))["structuredContent"]

    async def told(self, id_: re.Pattern[str]) -> str:
        """Return the id that the server's progress tells first."""
        with anyio.fail_after(WAIT_S):
            while (found := id_.search(" ".join(self._told))) is None:
                await self._receive()
        return found[1]

    def others(self) -> list[int]:
        """Return the ids of the server's processes, without those of the server and a spare."""
        spares = idle_spares(self.process.pid, self.run)
        return [pid for pid in marked(self.tag) if pid not in {self.process.pid, *spares}]

    def forget(self) -> None:
        """Forget the progress so far."""
        self._told.clear()

    def _request(self, method: str, params: Json) -> int:
        self._last_id += 1
        meta: Json = {"progressToken": self._last_id}
        if self._mode == "auto":
            prefix = "io.modelcontextprotocol/"
            meta[prefix + "protocolVersion"] = "2026-07-28"
            meta[prefix + "clientInfo"] = {"name": "kill-matrix", "version": "1"}
            meta[prefix + "clientCapabilities"] = {}
        params = {**params, "_meta": meta}
        self._send({"id": self._last_id, "method": method, "params": params})
        return self._last_id

    def _send(self, message: Json) -> None:
        self.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.stdin.flush()

    async def _receive(self) -> None:
        while b"\n" not in self._unread:
            await anyio.wait_readable(self.stdout)
            chunk = os.read(self.stdout.fileno(), 65536)
            assert chunk, "the server has closed its stdout"
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        message = cast("Json", json.loads(line))
        if message.get("method") == "notifications/progress":
            self._told.append(message["params"]["message"])
        elif "method" not in message:
            assert "result" in message, message
            self._answers[message["id"]] = message["result"]


Bring = Callable[[Server, int, str], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class End:
    """One way for a run to end."""

    name: str
    bring: Bring
    """Brings it about; called with the server, the request and the run's id."""
    exit_codes: tuple[int, ...] = ()
    """How the server may end by it; none if it lives on."""
    timeout_s: float | None = None
    kind: str | None = None
    """The kind of the run's error, if it is none of the usual ones."""


async def cancel(server: Server, request: int, _: str) -> None:
    server.cancel(request)


async def stop(server: Server, request: int, run_id: str) -> None:
    stopped = await server.call("codex_stop", run_id=run_id)
    assert stopped["run"]["status"] == "cancelled"
    answer = await server.answer(request)
    assert answer["structuredContent"]["status"] == "cancelled"


async def run_into_timeout(server: Server, request: int, _: str) -> None:
    answer = await server.answer(request)
    assert answer["structuredContent"]["status"] == "timed_out"


async def close_stdin(server: Server, _: int, __: str) -> None:
    server.stdin.close()


async def close_stdout(server: Server, _: int, __: str) -> None:
    server.stdout.close()


async def kill_guard(server: Server, request: int, _: str) -> None:
    """Kill the guard alone, as the kernel does when it is short of memory."""
    parents = dict(processes())
    (guard,) = (pid for pid in server.run if parents.get(pid) == server.process.pid)
    os.kill(guard, KILL)
    await server.answer(request)


async def close_stdin_in_a_cold_index(server: Server, _: int, __: str) -> None:
    """Close stdin while a call reads a home that takes hours to read."""
    folder = lay_slow_rollouts(server.lab.home)
    server.ask("codex_usage")
    await until(lambda: reads_below(server.process.pid, folder))
    server.stdin.close()
    await until(lambda: server.process.returncode is not None)
    shutil.rmtree(folder)  # The resumed thread finds its home as it was.


async def remove_folder(server: Server, request: int, run_id: str) -> None:
    """Remove the folder that Codex works in, which is the server's own; then stop both."""
    shutil.rmtree(server.lab.project)
    await stop(server, request, run_id)
    server.lab.project.mkdir()  # For the thread to go on, in another server.
    await anyio.run_process(["git", "init", "-q", str(server.lab.project)])
    server.process.send_signal(TERM)


def send(*steps: signal.Signals | float) -> Bring:
    """Return an end: signals to the server, with pauses in seconds, while it lives."""

    async def bring(server: Server, _: int, __: str) -> None:
        for step in steps:
            if isinstance(step, signal.Signals):
                server.process.send_signal(step)
            else:
                await anyio.sleep(step)

    return bring


async def send_all(server: Server, _: int, __: str) -> None:
    """Send SIGINT, and after it one signal on the other, till there is nobody to get them."""
    server.process.send_signal(INT)
    await anyio.sleep(0.02)

    def storm() -> None:
        # In a thread, for a millisecond to be one: the exit itself takes few.
        for each in cycle((TERM, INT, HUP)):
            if server.process.poll() is not None:
                return
            server.process.send_signal(each)
            time.sleep(0.0005)

    await anyio.to_thread.run_sync(storm, abandon_on_cancel=True)


INT, TERM, HUP, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL
STOP, CONT = signal.SIGSTOP, signal.SIGCONT

ENDS = (
    End("client cancel", cancel),
    End("codex_stop", stop),
    # Less than the 10 s that 0.60.1 gives a command.
    End("timeout", run_into_timeout, timeout_s=9),
    End("EOF", close_stdin, (0,)),
    End("SIGTERM", send(TERM), (143,)),
    End("SIGINT", send(INT), (130,)),
    End("SIGHUP", send(HUP), (129,)),
    End("SIGINT + SIGTERM", send(INT, 0.1, TERM), (130,)),
    End("SIGKILL", send(KILL), (-KILL,)),
    End("stdout closed", close_stdout, (1,)),
    End("guard killed", kill_guard, kind="codex_crashed"),
    End("EOF, cold index", close_stdin_in_a_cold_index, (0,)),
)
IMPATIENT = (
    # As Claude Code does it; whether the last one still meets a server is the machine's choice.
    End("SIGINT + SIGTERM + SIGKILL", send(INT, 0.1, TERM, 0.4, KILL), (130, -KILL)),
    # The kernel hands over the lowest number last of those that it keeps: any may be the first.
    End("SIGINT + all others", send_all, (130, 143, 129)),
    End("SIGSTOP + SIGCONT + SIGTERM", send(STOP, 0.5, CONT, TERM), (143,)),
    End("SIGSTOP + SIGKILL", send(STOP, 0.1, KILL), (-KILL,)),
    End("folder removed", remove_folder, (143,), kind="cancelled"),
)


@dataclass
class Play:
    """A run to be ended, and what is seen of it."""

    end: End
    seen: Ending

    @classmethod
    def of(
        cls, end: End, version: str, sandbox: str, mode: str, engine: EngineChoice = USUAL
    ) -> Play:
        place = (*ENDS, *IMPATIENT).index(end)
        lives = not end.exit_codes
        return cls(end, Ending(place, end.name, lives, version, engine, sandbox, mode))


@pytest.mark.every_pair
@pytest.mark.parametrize("sandbox", SANDBOXES)
async def test_whatever_ends_a_run_nothing_is_left_and_the_thread_goes_on(
    codex: Path, version: str, mode: str, sandbox: str, note: Note
) -> None:
    plays = [Play.of(end, version, sandbox, mode) for end in ENDS]
    await play_all(plays, codex, note)


@pytest.mark.every_pair
async def test_no_second_signal_cuts_the_clean_up_short(
    codex: Path, version: str, mode: str, note: Note
) -> None:
    plays = [Play.of(end, version, "danger-full-access", mode) for end in IMPATIENT]
    await play_all(plays, codex, note)


@pytest.mark.every_pair
@pytest.mark.skipif(USUAL == "app-server", reason="The tests above are by this engine.")
@pytest.mark.parametrize("version", WITH_APP_SERVER, scope="module")
async def test_an_app_server_and_its_spare_leave_nothing_either(
    codex: Path, version: str, mode: str, note: Note
) -> None:
    ends = (*ENDS, *IMPATIENT)
    plays = [Play.of(end, version, "danger-full-access", mode, "app-server") for end in ends]
    await play_all(plays, codex, note)


@pytest.mark.every_pair
async def test_notify_finishes_after_the_run_and_all_else_is_gone(
    codex: Path, version: str, mode: str
) -> None:
    mark = str(uuid.uuid4())
    tag = f"FAR_END={mark}"
    sleepers = SLEEPERS.removesuffix("; sleep 600")
    with open_lab(version) as lab:
        config = lab.home / "config.toml"
        done = lab.root / "notified"
        # Top-level keys come before the first table.
        notify = ["sh", "-c", f"while [ ! -e {lab.root}/gate ]; do sleep 0.05; done; : > {done}"]
        config.write_text(f"notify = {json.dumps(notify)}\n{config.read_text()}")
        for how in ("gate", "server ends"):
            prompt = lab.script(how, do(Shell(sleepers)), say("done"))
            async with serve(codex, lab, mode, mark) as server:
                ended = await server.call("codex_run", prompt=prompt, sandbox=SANDBOXES[1])
                assert ended["status"] == "completed"
                left = [command(pid) for pid in marked(tag)]
                assert not [each for each in left if each in KINDS]
                assert any("gate" in each and "guard" not in each for each in left)
                if how == "gate":
                    (lab.root / "gate").touch()
                    await until(lambda: not server.others())
                    assert done.exists()
                    (lab.root / "gate").unlink()
                    done.unlink()
                else:
                    server.stdin.close()
                    await until(lambda: not marked(tag))
                    assert not done.exists()


async def play_all(plays: Sequence[Play], codex: Path, note: Note) -> None:
    """Play all side by side, note what was seen, and fail if one is not what it should be."""
    places = anyio.CapacityLimiter(AT_ONCE)

    async def play_in_turn(each: Play) -> None:
        async with places:
            try:
                await play(each.end, each.seen, codex)
            except Exception as error:
                # The others go on: the table shall be whole.
                each.seen.fault = f"{type(error).__name__}: {error}"

    try:
        async with anyio.create_task_group() as tasks:
            for each in plays:
                tasks.start_soon(play_in_turn, each)
    finally:
        for each in plays:
            note("ending", each.seen.noted())
    faults = [str(each.seen) for each in plays if each.seen.fault]
    assert not faults, "\n".join(faults)


async def play(end: End, ending: Ending, codex: Path) -> None:
    """Run the sleepers, end them, note what is left, and go on with the thread."""
    mark = str(uuid.uuid4())
    tag = f"FAR_END={mark}"
    engine = cast("EngineChoice", ending.engine)
    with open_lab(ending.version) as lab:
        prompt = lab.script("sleep", do(Shell(SLEEPERS)), say("never said"))
        (lab.home / "auth.json").write_text('{"OPENAI_API_KEY": "sk-kept"}')
        before = untouched(lab.home)
        try:
            async with serve(codex, lab, ending.mode, mark, engine) as server:
                if engine == "app-server" and ending.mode == "auto":
                    await take_no_fresh_one(server)
                rollouts = lab.rollouts()
                limit = {} if end.timeout_s is None else {"timeout_s": end.timeout_s}
                asked_at = anyio.current_time()
                request = server.ask("codex_run", prompt=prompt, sandbox=ending.sandbox, **limit)
                run_id = await server.told(RUN_ID)
                # Codex may begin before a server on a busy machine has read of its thread.
                thread_id = await server.told(THREAD_ID)
                server.run = await sleep_all(tag, server.process.pid)
                if engine == "app-server":
                    await until(lambda: idle_spares(server.process.pid, server.run))
                began = max(anyio.current_time(), asked_at + (end.timeout_s or 0))
                with anyio.fail_after(WAIT_S):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(end.bring, server, request, run_id)
                        await watch(ending, server, began)
                assert ending.left == {}
                new = [each for each in lab.rollouts() if each not in rollouts]
                assert [rollout.stem[-36:] for rollout in new] == [thread_id]
                if engine == "app-server":
                    assert untouched(lab.home) == before
                    pair = 2 if ending.server_lives else 0
                    assert len(idle_spares(server.process.pid)) == pair
                if not end.exit_codes:
                    # A cancel is not answered; before the run has ended, its thread is busy.
                    ended = (await server.call("codex_wait", run_ids=[run_id]))["runs"][0]
                    kinds = (end.kind,) if end.kind else ("cancelled", "timed_out")
                    assert ended["error"]["kind"] in kinds, ended
                    assert ended["engine"] == engine
                    if engine == "app-server":
                        await resume_by_exec(codex, lab, thread_id, ending.sandbox)
                    await go_on(ending, server, thread_id)
            if end.exit_codes:
                assert ending.exit_code in end.exit_codes, "the server's exit code"
                if ending.exit_code != -KILL:
                    assert not list((lab.state / "servers").iterdir()), "its clean-up came short"
                async with serve(codex, lab, ending.mode, engine=engine) as server:
                    kept = (await server.call("codex_wait", run_ids=[run_id]))["runs"][0]
                    assert kept["error"]["kind"] == (end.kind or "interrupted")
                    assert kept["thread_id"] == thread_id
                    if engine == "app-server":
                        await resume_by_exec(codex, lab, thread_id, ending.sandbox)
                    await go_on(ending, server, thread_id)
        finally:
            for pid in marked(tag):
                with suppress(ProcessLookupError):
                    os.kill(pid, KILL)


async def take_no_fresh_one(server: Server) -> None:
    """Let a spare wait, so that the next run gets it."""
    prompt = server.lab.script("first", say("done"))
    assert (await server.call("codex_run", prompt=prompt))["engine"] == "app-server"
    await until(lambda: idle_spares(server.process.pid))
    server.forget()


async def sleep_all(tag: str, server: int) -> set[int]:
    """Wait until there is a sleeper of each kind; return all processes of their run."""
    with anyio.fail_after(WAIT_S):
        while not KINDS.keys() <= {command(pid) for pid in marked(tag)}:  # noqa: ASYNC110
            await anyio.sleep(0.1)
    trees = [{pid, *tree(pid)} for pid, parent in processes() if parent == server]
    (run,) = (each for each in trees if any(command(pid) in KINDS for pid in each))
    return run


async def watch(ending: Ending, server: Server, began: float) -> None:
    """Note when all is gone, when the server is, and what is left when time is up."""
    process = server.process
    while True:
        took_s = max(0.0, anyio.current_time() - began)
        left = server.others()
        if not left and ending.gone_s is None:
            ending.gone_s = took_s
        if ending.exit_code is None and (code := process.poll()) is not None:
            ending.exit_code, ending.exit_s = code, took_s
        exited = ending.exit_code is not None or ending.server_lives
        if (not left and exited) or took_s > (GONE_WITHIN_S if left else WAIT_S):
            break
        await anyio.sleep(0.03)
    ending.left = dict(Counter(KINDS.get(command(pid), OTHERS) for pid in left))


async def go_on(ending: Ending, server: Server, thread_id: str) -> None:
    """Resume the thread."""
    after = await server.call("codex_resume", thread_id=thread_id, prompt="go on")
    assert after["status"] == "completed", after
    assert after["thread_id"] == thread_id
    assert after["sandbox"] == ending.sandbox
    assert after["engine"] == ending.engine
    ending.goes_on = True


async def resume_by_exec(codex: Path, lab: Lab, thread_id: str, sandbox: str) -> None:
    """Resume the thread without a server: Codex itself must not find it locked."""
    argv = [str(codex), "exec", "-s", sandbox, "resume", thread_id, "go on"]
    await anyio.run_process(argv, cwd=lab.project, env=environment(lab))


def command(pid: int) -> str:
    """Return the command line of *pid*, or "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""
