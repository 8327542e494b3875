"""MCP tasks: the extension of 2026-07-28, spoken in frames and checked by its own schemas."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, cast

import anyio
import pytest
from anyio.abc import Process
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from mcp_server_codex.app import make_server
from mcp_server_codex.backend import Backend
from mcp_server_codex.settings import read_settings
from support.codex_versions import cannot_have, from_npm
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Json, Lab, environment, marked, server_program, until
from support.scripted_engine import ScriptedEngine

EXTENSION = "io.modelcontextprotocol/tasks"
PACKAGES = ("@modelcontextprotocol/ext-tasks@0.2.2", "zod@4.6.7")

HELLO = events(thread_line(), *answer_lines("hello"))
FAILING = events(
    thread_line(),
    {"type": "turn.started"},
    {"type": "turn.failed", "error": {"message": "the model has left"}},
)

HANGS_S = 120.0


def ext_tasks() -> Path:
    """Return the extension's published module."""
    folder = from_npm("npm/ext-tasks-0.2.2", *PACKAGES, options=("--ignore-scripts",))
    scope = folder / "node_modules" / "@modelcontextprotocol"
    return scope / "ext-tasks" / "dist" / "core" / "v2" / "index.js"


JUDGE = """\
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
const schemas = await import(pathToFileURL(process.argv[2]));
for await (const line of createInterface({ input: process.stdin })) {
  const { schema, value } = JSON.parse(line);
  const verdict = schemas[schema].safeParse(value);
  const faults = verdict.success ? [] : verdict.error.issues;
  console.log(JSON.stringify(faults.map((each) => `${each.path.join(".")}: ${each.message}`)));
}
"""


class Judge:
    """The extension's schemas, in a process of their own that is started when needed."""

    def __init__(self, folder: Path) -> None:
        self._script = folder / "judge.mjs"
        self._node: subprocess.Popen[str] | None = None

    def faults(self, name: str, value: object) -> list[str]:
        """Return what the schema of that *name* finds wrong with *value*."""
        if self._node is None:
            self._script.write_text(JUDGE)
            try:
                self._node = subprocess.Popen(
                    ["node", str(self._script), str(ext_tasks())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            except OSError as error:
                cannot_have(f"node: {error}")
        assert self._node is not None
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        line = json.dumps({"schema": f"{name}V2Schema", "value": value})
        self._node.stdin.write(line + "\n")
        self._node.stdin.flush()
        return cast("list[str]", json.loads(self._node.stdout.readline()))

    def close(self) -> None:
        if self._node is not None:
            self._node.communicate()


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Generator[Judge]:
    opened = Judge(tmp_path_factory.mktemp("judge"))
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def said(judge: Judge) -> Generator[list[tuple[str, object]]]:
    """All that was said of tasks in the test, each with its schema's name; judged at the end."""
    SAID.clear()
    yield SAID
    for name, value in SAID:
        assert judge.faults(name, value) == [], (name, value)


SAID: list[tuple[str, object]] = []


class Within:
    """A server in this process, with the pipes of one that is a process."""

    def __init__(self) -> None:
        self.stdin, self._lines = anyio.create_memory_object_stream[bytes](100)
        self._sent, self.stdout = anyio.create_memory_object_stream[bytes](100)

    async def __aiter__(self) -> AsyncGenerator[str]:
        async for line in self._lines:
            yield line.decode()

    async def write(self, text: str) -> None:
        await self._sent.send(text.encode())

    async def flush(self) -> None:
        pass

    async def serve(self, server: Server[Backend]) -> None:
        pipe = cast("Any", self)
        with self._lines, self._sent:
            async with stdio_server(pipe, pipe) as (incoming, outgoing):
                await server.run(incoming, outgoing, server.create_initialization_options())


class Wire:
    """A client of the modern era, or the legacy one, that speaks in frames."""

    def __init__(self, process: Process, era: str, declared: Json | None = None) -> None:
        self.process = process
        self._declared = declared or DECLARED
        self.era = era
        self._rest = b""
        self._count = 0

    async def ask(self, method: str, **params: Any) -> Json:
        """Send a request and return its answer as it came."""
        self._count += 1
        if self.era != "legacy":
            params["_meta"] = self._envelope()
        request: Json = {"jsonrpc": "2.0", "id": self._count, "method": method, "params": params}
        await self._send(request)
        while (message := await self._read()).get("id") != self._count:
            pass
        if method in REQUESTS and "result" in message:
            SAID.extend([(REQUESTS[method][0], request), (REQUESTS[method][1], message["result"])])
        elif message.get("result", {}).get("resultType") == "task":
            SAID.extend([("CreateTaskResult", message["result"]), ("Task", message["result"])])
        if "error" in message:
            SAID.extend([("Error", message["error"])])
        return message

    async def result(self, method: str, **params: Any) -> Json:
        """Send a request and return its result, which it has to have."""
        answer = await self.ask(method, **params)
        assert "result" in answer, answer
        return cast("Json", answer["result"])

    async def call(self, tool: str, **arguments: Any) -> Json:
        return await self.result("tools/call", name=tool, arguments=arguments)

    async def task(self, task_id: str) -> Json:
        return await self.result("tasks/get", taskId=task_id)

    async def ended(self, task_id: str) -> Json:
        """Ask for the task until it is at work no more."""
        with anyio.fail_after(HANGS_S):
            while (task := await self.task(task_id))["status"] == "working":  # noqa: ASYNC110
                await anyio.sleep(0.1)
        return task

    async def open(self) -> Json:
        if self.era != "legacy":
            return await self.result("server/discover")
        opened = await self.result(
            "initialize",
            protocolVersion="2025-11-25",
            capabilities=DECLARED,
            clientInfo={"name": "raw", "version": "1"},
        )
        await self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return opened

    def _envelope(self) -> Json:
        return {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": self._declared
            if self.era == "tasks"
            else {},
        }

    async def _send(self, message: Json) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send(json.dumps(message).encode() + b"\n")

    async def _read(self) -> Json:
        assert self.process.stdout is not None
        parts = [self._rest]
        with anyio.fail_after(HANGS_S):
            while b"\n" not in parts[-1]:
                parts.append(await self.process.stdout.receive())
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return cast("Json", json.loads(line))


DECLARED: Json = {"extensions": {EXTENSION: {}}}
"""The capabilities of a client that takes tasks."""

REQUESTS = {
    "tasks/get": ("GetTaskRequest", "GetTaskResult"),
    "tasks/update": ("UpdateTaskRequest", "UpdateTaskResult"),
    "tasks/cancel": ("CancelTaskRequest", "CancelTaskResult"),
}


@asynccontextmanager
async def wire(
    lab: Lab, codex: FakeCodex, *options: str, era: str = "tasks"
) -> AsyncGenerator[Wire]:
    """Start the server for a client.

    Eras: `tasks` (modern, with the extension), `modern` (without), `legacy`.
    """
    options = ("--codex-bin", str(codex.build()), "--state-dir", str(lab.state), *options)
    with lab.log.open("ab") as log:
        process = await anyio.open_process(
            [server_program(), *options], stderr=log, cwd=lab.project, env=environment(lab)
        )
    client = Wire(process, era)
    try:
        yield client
        if process.returncode is None:
            assert process.stdin is not None
            await process.stdin.aclose()
            with anyio.fail_after(HANGS_S):
                assert await process.wait() == 0
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            await process.aclose()


@asynccontextmanager
async def wire_within(folder: Path, engine: ScriptedEngine, *options: str) -> AsyncGenerator[Wire]:
    """Connect a client that takes tasks, and can show forms, to a server on a scripted engine."""

    def fail(problem: str) -> NoReturn:
        raise AssertionError(problem)

    settings = read_settings(["--state-dir", str(folder / "state"), *options], {}, fail)
    within = Within()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(within.serve, make_server(settings, engine))
        yield Wire(cast("Process", within), "tasks", DECLARED | {"elicitation": {}})
        within.stdin.close()
    within.stdout.close()


def working(task: Json) -> Json:
    """Return *task*, which is one at work, as the call that began it gives it."""
    assert task["resultType"] == "task"
    assert task["status"] == "working"
    assert "result" not in task
    assert task["ttlMs"] > 24 * 3600 * 1000
    assert task["pollIntervalMs"] > 0
    return task


def moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    assert found.tzinfo is not None
    return found


def resumable_thread(lab: Lab) -> str:
    """Leave the rollout of a thread in *lab*; return the thread's id."""
    thread_id = "01a20000-0000-7000-8000-000000000001"
    payload = {"id": thread_id, "cwd": str(lab.project), "cli_version": "0.169.0", "source": "exec"}
    meta = {"timestamp": "2026-08-01T10:00:00.000Z", "type": "session_meta", "payload": payload}
    folder = lab.home / "sessions" / "2026" / "08" / "01"
    folder.mkdir(parents=True)
    (folder / f"rollout-2026-08-01T10-00-00-{thread_id}.jsonl").write_bytes(events(meta))
    return thread_id


def test_the_schemas_find_what_is_wrong(judge: Judge) -> None:
    good: Json = {
        "taskId": "run_1",
        "status": "working",
        "createdAt": "2026-08-01T10:00:00Z",
        "lastUpdatedAt": "2026-08-01T10:00:00Z",
        "ttlMs": None,
    }
    complete = good | {"resultType": "complete"}
    assert judge.faults("CreateTaskResult", good | {"resultType": "task"}) == []
    assert judge.faults("CreateTaskResult", good)
    assert judge.faults("GetTaskResult", complete) == []
    assert judge.faults("GetTaskResult", complete | {"status": "completed"})
    assert judge.faults("GetTaskResult", complete | {"taskId": 7})
    assert judge.faults("CancelTaskResult", {})


async def test_the_extension_is_advertised(lab: Lab, fake: FakeCodex) -> None:
    async with wire(lab, fake) as client:
        capabilities = (await client.open())["capabilities"]
    assert capabilities["extensions"][EXTENSION] == {}
    SAID.append(("ServerTaskCapabilityEnvelope", capabilities))
    SAID.append(("TasksExtensionCapability", capabilities["extensions"][EXTENSION]))
    SAID.append(("ClientTaskCapabilityEnvelope", DECLARED))


async def test_a_run_comes_back_as_a_task_at_once_and_is_asked_for_until_it_ends(
    lab: Lab, fake: FakeCodex
) -> None:
    go = lab.root / "go"
    fake.body = f"while not os.path.exists({str(go)!r}):\n    time.sleep(0.02)"
    fake.stdout = HELLO
    async with wire(lab, fake) as client:
        task = working(await client.call("codex_run", prompt="x"))
        task_id = task["taskId"]
        still = await client.task(task_id)
        assert (still["taskId"], still["status"]) == (task_id, "working")
        assert still["createdAt"] == task["createdAt"]
        go.touch()
        done = await client.ended(task_id)
        again = await client.task(task_id)
    assert (done["taskId"], done["status"]) == (task_id, "completed")
    assert done["createdAt"] == task["createdAt"]
    assert moment(done["lastUpdatedAt"]) >= moment(done["createdAt"])
    assert again == done
    result = done["result"]
    SAID.append(("CallToolResult", {"resultType": "complete"} | result))
    assert result["isError"] is False
    assert result["content"][0]["text"].startswith("hello\n\n---\nthread_id: ")
    assert result["structuredContent"]["run_id"] == task_id
    assert result["structuredContent"]["status"] == "completed"
    assert SAID[-2][0] == "GetTaskResult"


async def test_a_resumed_thread_is_a_task_too(lab: Lab, fake: FakeCodex) -> None:
    fake.stdout = HELLO
    thread_id = resumable_thread(lab)
    async with wire(lab, fake) as client:
        task = working(await client.call("codex_resume", prompt="go on", thread_id=thread_id))
        done = await client.ended(task["taskId"])
    data = done["result"]["structuredContent"]
    assert (done["status"], data["status"]) == ("completed", "completed")
    assert data["thread_id"] == thread_id
    assert fake.seen()["argv"][-3:] == ["resume", thread_id, "-"]


async def test_a_run_that_fails_is_a_completed_task_with_an_error_inside(
    lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout, fake.exit_code = FAILING, 1
    async with wire(lab, fake) as client:
        task = working(await client.call("codex_run", prompt="x"))
        failed = await client.ended(task["taskId"])
        fake.body = "time.sleep(600)"
        fake.build()
        task = working(await client.call("codex_run", prompt="x", timeout_s=0.5))
        late = await client.ended(task["taskId"])
    for done, kind in ((failed, "turn_failed"), (late, "timed_out")):
        SAID.append(("CallToolResult", {"resultType": "complete"} | done["result"]))
        assert (done["status"], done["result"]["isError"]) == ("completed", True)
        assert done["result"]["structuredContent"]["error"]["kind"] == kind
    assert "the model has left" in failed["result"]["content"][0]["text"]


async def test_cancelling_a_task_ends_it_and_leaves_nothing_alive(
    lab: Lab, fake: FakeCodex
) -> None:
    fake.body = (
        "import subprocess\n"
        'subprocess.Popen(["sleep", "600"], start_new_session=True)\n'
        "time.sleep(600)"
    )
    async with wire(lab, fake) as client:
        task_id = working(await client.call("codex_run", prompt="x"))["taskId"]
        await until(lambda: fake.was_started and len(marked(str(lab.home))) >= 4)
        acknowledged = await client.result("tasks/cancel", taskId=task_id)
        assert set(acknowledged) <= {"resultType", "_meta"}
        await until(lambda: marked(str(lab.home)) == [client.process.pid])
        done = await client.ended(task_id)
        assert done["status"] == "cancelled"
        assert "result" not in done
        # Once more changes nothing, nor does it for one that has ended by itself.
        await client.result("tasks/cancel", taskId=task_id)
        assert await client.task(task_id) == done
        fake.body, fake.stdout = "", HELLO
        fake.build()
        other = working(await client.call("codex_run", prompt="x"))["taskId"]
        before = await client.ended(other)
        await client.result("tasks/cancel", taskId=other)
        assert await client.task(other) == before
    assert before["status"] == "completed"


async def test_a_task_that_waits_in_line_is_at_work_and_can_be_cancelled(
    lab: Lab, fake: FakeCodex
) -> None:
    fake.body = "time.sleep(600)"
    async with wire(lab, fake, "--max-runs", "1") as client:
        first = working(await client.call("codex_run", prompt="x"))["taskId"]
        second = working(await client.call("codex_run", prompt="y"))["taskId"]
        assert "in the queue" in (await client.task(second))["statusMessage"]
        await client.result("tasks/cancel", taskId=second)
        assert (await client.ended(second))["status"] == "cancelled"
        assert (await client.task(first))["status"] == "working"
        await client.result("tasks/cancel", taskId=first)
        assert (await client.ended(first))["status"] == "cancelled"


async def test_an_update_is_acknowledged(lab: Lab, fake: FakeCodex) -> None:
    fake.stdout = HELLO
    async with wire(lab, fake) as client:
        task_id = working(await client.call("codex_run", prompt="x"))["taskId"]
        for responses in ({}, {"question": {"action": "accept", "content": {"a": "b"}}}):
            answer = await client.result("tasks/update", taskId=task_id, inputResponses=responses)
            assert set(answer) <= {"resultType", "_meta"}
        assert (await client.ended(task_id))["status"] == "completed"
        await client.result("tasks/update", taskId=task_id, inputResponses={})


async def test_unknown_tasks_and_wrong_params_are_refused(lab: Lab, fake: FakeCodex) -> None:
    ids = ("run_0123456789abcdef", "", "../runs", "run_", "task_1", "x" * 10_000)
    async with wire(lab, fake) as client:
        for method in REQUESTS:
            more: Json = {"inputResponses": {}} if method == "tasks/update" else {}
            wrong: list[Json] = [{"taskId": id_, **more} for id_ in ids]
            wrong += [more, {"taskId": 7, **more}, {"taskId": None, **more}]
            for params in wrong:
                answer = await client.ask(method, **params)
                assert answer["error"]["code"] == -32602, (method, params)
        for method in ("tasks/list", "tasks/result", "tasks/nothing"):
            answer = await client.ask(method, taskId=ids[0])
            assert answer["error"]["code"] == -32601, method


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_client_that_does_not_declare_it_meets_no_task(
    era: str, lab: Lab, fake: FakeCodex
) -> None:
    """In the legacy era not even one that does, since the extension is of 2026."""
    fake.stdout = HELLO
    async with wire(lab, fake, era=era) as client:
        await client.open()
        result = await client.call("codex_run", prompt="x")
        assert "taskId" not in result
        assert result.get("resultType") == ("complete" if era == "modern" else None)
        data = result["structuredContent"]
        assert data["status"] == "completed"
        for method in REQUESTS:
            answer = await client.ask(method, taskId=data["run_id"], inputResponses={})
            assert answer["error"]["code"] == (-32601 if era == "legacy" else -32021), method
            if era == "modern":
                needed: Json = {"extensions": {EXTENSION: {}}}
                assert answer["error"]["data"] == {"requiredCapabilities": needed}


async def test_what_is_refused_is_a_plain_error_and_no_task(lab: Lab, fake: FakeCodex) -> None:
    gone = "01a20000-0000-7000-8000-00000000dead"
    cases: list[tuple[str, Json, str]] = [
        ("codex_run", {"promt": "x"}, "invalid_arguments"),
        ("codex_run", {"prompt": "x", "cwd": str(lab.root / "gone")}, "invalid_arguments"),
        ("codex_run", {"prompt": "x", "sandbox": "danger-full-access"}, "not_allowed"),
        ("codex_run", {"prompt": "x", "output_schema": {"type": "?"}}, "invalid_output_schema"),
        ("codex_resume", {"prompt": "x", "thread_id": gone}, "thread_not_found"),
    ]
    async with wire(lab, fake) as client:
        for tool, arguments, kind in cases:
            result = await client.call(tool, **arguments)
            SAID.append(("CallToolResult", result))
            assert "taskId" not in result
            assert (result["resultType"], result["isError"]) == ("complete", True)
            assert result["structuredContent"]["error"]["kind"] == kind
    assert not fake.was_started
    assert list((lab.state / "runs").iterdir()) == []


async def test_the_other_tools_answer_a_task_client_plainly(lab: Lab, fake: FakeCodex) -> None:
    fake.body = "time.sleep(600)"
    async with wire(lab, fake) as client:
        task_id = working(await client.call("codex_run", prompt="x"))["taskId"]
        waited = await client.call("codex_wait", run_ids=[task_id], wait_s=0)
        assert waited["resultType"] == "complete"
        assert waited["structuredContent"]["runs"][0]["status"] in ("running", "queued")
        stopped = await client.call("codex_stop", run_id=task_id)
        assert stopped["structuredContent"]["run"]["status"] == "cancelled"
        assert (await client.task(task_id))["status"] == "cancelled"
        SAID.extend([("CallToolResult", waited), ("CallToolResult", stopped)])


async def test_tasks_survive_the_server_and_say_the_same_afterwards(
    lab: Lab, fake: FakeCodex
) -> None:
    before: dict[str, Json] = {}
    async with wire(lab, fake) as client:
        for ending in ("completed", "failed", "cancelled"):
            fake.stdout = FAILING if ending == "failed" else HELLO
            fake.body = "time.sleep(600)" if ending == "cancelled" else ""
            fake.build()
            task_id = working(await client.call("codex_run", prompt="x"))["taskId"]
            if ending == "cancelled":
                await client.result("tasks/cancel", taskId=task_id)
            before[task_id] = await client.ended(task_id)
    async with wire(lab, fake) as client:
        for task_id, told in before.items():
            after = await client.task(task_id)
            await client.result("tasks/cancel", taskId=task_id)
            await client.result("tasks/update", taskId=task_id, inputResponses={})
            assert await client.task(task_id) == after
            assert moment(after["lastUpdatedAt"]) >= moment(told["lastUpdatedAt"])
            assert after | {"lastUpdatedAt": told["lastUpdatedAt"]} == told
    endings = [told["result"]["isError"] if "result" in told else None for told in before.values()]
    assert endings == [False, True, None]


async def test_a_task_whose_server_died_with_it_is_an_interrupted_run(
    lab: Lab, fake: FakeCodex
) -> None:
    fake.body = "time.sleep(600)"
    async with wire(lab, fake) as client:
        task_id = working(await client.call("codex_run", prompt="x"))["taskId"]
        await until(lambda: fake.was_started)
        client.process.kill()
        assert await client.process.wait() == -9
    await until(lambda: not marked(str(lab.home)))
    async with wire(lab, fake) as client:
        task = await client.task(task_id)
    assert (task["status"], task["result"]["isError"]) == ("completed", True)
    assert task["result"]["structuredContent"]["error"]["kind"] == "interrupted"


async def test_all_kinds_of_clients_get_the_same_result_of_one_run(
    lab: Lab, fake: FakeCodex
) -> None:
    tasks: dict[str, Json] = {}
    async with wire(lab, fake) as client:
        for ending in ("completed", "failed"):
            fake.stdout = FAILING if ending == "failed" else HELLO
            fake.build()
            task_id = working(await client.call("codex_run", prompt="x"))["taskId"]
            tasks[task_id] = (await client.ended(task_id))["result"]["structuredContent"]
            assert tasks[task_id]["status"] == ending
        for era in ("tasks", "modern", "legacy"):
            async with wire(lab, fake, era=era) as other:
                await other.open()
                waited = await other.call("codex_wait", run_ids=list(tasks), wait_s=50)
            assert waited["structuredContent"]["runs"] == list(tasks.values()), era


async def test_a_task_can_be_asked_for_from_another_server_while_it_is_at_work(
    lab: Lab, fake: FakeCodex
) -> None:
    fake.body = "time.sleep(600)"
    async with wire(lab, fake) as client:
        task_id = working(await client.call("codex_run", prompt="x"))["taskId"]
        async with wire(lab, fake) as other:
            assert (await other.task(task_id))["status"] == "working"
            # Only the server that has the run can end it, and the other one says so.
            answer = await other.ask("tasks/cancel", taskId=task_id)
            assert answer["error"]["code"] == -32602
        await client.result("tasks/cancel", taskId=task_id)
        assert (await client.ended(task_id))["status"] == "cancelled"


@pytest.mark.parametrize("action", ["accept", "decline", "cancel"])
@pytest.mark.parametrize("kind", ["command", "choice"])
async def test_a_task_asks_the_person_and_is_told_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, action: str
) -> None:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "home"))
    engine = ScriptedEngine(tmp_path / "home")
    project = tmp_path / "project"
    project.mkdir()
    options = {"cwd": str(project), "sandbox": "workspace-write", "approvals": "ask"}
    async with wire_within(tmp_path, engine, "--approvals", "person") as client:
        task = working(await client.call("codex_run", prompt=kind, **options))
        task_id = task["taskId"]
        asks = await client.ended(task_id)
        assert asks["status"] == "input_required"
        ((key, request),) = asks["inputRequests"].items()
        assert (key, request["method"]) == ("question_1", "elicitation/create")
        assert "need it" in request["params"]["message"] or kind == "choice"
        answers: list[Json] = [
            {"question_2": {"action": "accept", "content": {}}},
            {key: {"action": "perhaps"}},
            {key: "accept"},
        ]
        for wrong in answers:
            await client.ask("tasks/update", taskId=task_id, inputResponses=wrong)
            SAID.clear()  # The schemas have something against these.
        assert (await client.task(task_id))["status"] == "input_required"
        content = {"content": {"q1": "a"} if kind == "choice" else {}} if action == "accept" else {}
        answer = {key: {"action": action, **content}}
        await client.result("tasks/update", taskId=task_id, inputResponses=answer)
        done = await client.ended(task_id)
    data = done["result"]["structuredContent"]
    said = "accepted" if action == "accept" else "declined"
    assert (done["status"], data["final_response"]) == ("completed", said)
    assert len(engine.turns) == 1


async def test_a_run_that_may_ask_its_caller_is_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "home"))
    engine = ScriptedEngine(tmp_path / "home")
    async with wire_within(tmp_path, engine) as client:
        result = await client.call("codex_run", prompt="caller", cwd=str(tmp_path), ask_caller=True)
        run = result["structuredContent"]
        await client.call("codex_stop", run_id=run["run_id"])
    assert run["status"] == "needs_answer"
