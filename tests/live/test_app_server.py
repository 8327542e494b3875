"""Turns on the app-server engine with a real Codex: what exec promises holds here too."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import orjson
import pytest

from codex_tools.codex.events import EngineEvent, Event, ItemStartedEvent
from codex_tools.codex.json_object import Json
from codex_tools.codex.questions import Answer, NotSteered
from codex_tools.codex.turn_result import TurnProgress
from codex_tools.engines.app_server import AppServerEngine
from codex_tools.engines.app_server_preparation import OLDEST
from codex_tools.engines.engine import Engine, ReviewTarget
from codex_tools.engines.exec import ExecEngine
from codex_tools.engines.handle import TurnHandle
from mcp_server_codex.cli.scripted_model import (
    Call,
    Cut,
    Fail,
    Incomplete,
    Patch,
    Say,
    Search,
    Shell,
    Step,
    Think,
    api_error,
    do,
    say,
)
from support.codex_versions import WITH_APP_SERVER, number
from support.engine_turns import Ran, request_for, run, untouched
from support.lab import PNG, Lab, commands, environment, marked, until

SLEEPERS = (
    "sleep 601 & nohup sleep 602 >/dev/null 2>&1 & setsid sleep 603 & "
    "(setsid sh -c 'sleep 604 & sleep 605' &) ; echo ready; sleep 600"
)


@pytest.fixture(params=WITH_APP_SERVER, scope="module")
def version(request: pytest.FixtureRequest) -> str:
    """A Codex version that this engine runs."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _surroundings(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process the environment that a server in *lab* has."""
    plain = environment(lab)
    for name in {*os.environ} - {*plain, "PYTEST_CURRENT_TEST"}:
        monkeypatch.delenv(name)
    for name, value in plain.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def engine(codex: Path, version: str) -> AppServerEngine:
    return AppServerEngine(str(codex), is_only=number(version) < OLDEST)


@pytest.fixture
def exec_engine(codex: Path) -> ExecEngine:
    return ExecEngine(str(codex))


def facts(ran: Ran) -> Json:
    """Return what callers see of a turn, without what differs between two runs of one script."""
    result = ran.result
    return {
        "kind": ran.kind,
        "answer": result.final_response,
        "usage": result.usage,
        "files": result.files_changed,
        "commands": result.commands,
        "tool_calls": [(c.server, c.tool, c.status) for c in result.tool_calls],
        "searches": result.searches,
        "plan": result.plan,
        "warnings": result.warnings,
        "touched": result.touched,
        "lines": [replace_ids(orjson.loads(line)) for line in ran.lines],
    }


def replace_ids(line: Json) -> Json:
    """Return a line without what each run makes anew, and what exec does not have."""
    if line.get("type") == "thread.started":
        line["thread_id"] = ""
    line.get("error", {}).pop("codex_error_info", None)
    item = line.get("item", {})
    if item.get("type") == "web_search":
        item["id"] = ""
        item["action"].pop("queries", None)
    item.pop("aggregated_output", None)  # Codex may leave out that of a quick command.
    return line


async def by_both(
    engine: Engine, other: Engine, lab: Lab, prompt: str, *steps: Step, **more: Any
) -> tuple[Ran, Ran]:
    """Run one script by both engines, in a project that is the same each time."""
    rans: list[Ran] = []
    for each in (engine, other):
        for file in lab.project.iterdir():
            if file.is_file():
                file.unlink()
        lab.script(f"{prompt} by {each.name}", *steps)
        rans.append(await run(each, lab, f"{prompt} by {each.name}", **more))
    return rans[0], rans[1]


async def test_a_turn_prints_what_exec_prints_and_writes_no_trust(
    engine: AppServerEngine, exec_engine: ExecEngine, lab: Lab
) -> None:
    before = untouched(lab.home)
    steps = (
        do(Think("**Looking around**"), Shell("echo looking > a.txt; cat a.txt")),
        do(Shell("echo no >&2; exit 3")),
        do(Patch("*** Add File: new.txt\n+hello")),
        do(Search("weather oslo"), Say("All done.")),
    )
    ran = await by_both(engine, exec_engine, lab, "work", *steps, sandbox="workspace-write")
    ours, theirs = facts(ran[0]), facts(ran[1])
    assert ours["kind"] is None
    assert ours == theirs
    assert len(ours["files"]) == 1
    ran = await by_both(engine, exec_engine, lab, "all", *steps, sandbox="danger-full-access")
    assert ran[0].result.thread_id != ran[1].result.thread_id
    assert facts(ran[0]) == facts(ran[1])
    # exec of 0.163.0 is kept from writing trust by a setting; here nothing may have tried to.
    assert untouched(lab.home) == before


FAILURES: dict[str, Step] = {
    "400": api_error(400, "Invalid value", "invalid_request_error"),
    "401": api_error(401, "Incorrect API key provided: sk-x.", "invalid_request_error"),
    "404": api_error(404, "The model does not exist", "invalid_request_error", "model_not_found"),
    "429": api_error(429, "Slow down", "rate_limit_exceeded"),
    "context": Fail("context_length_exceeded", "Your input exceeds the context window."),
    "incomplete": Incomplete("max_output_tokens"),
    "cut": Cut(),
    "empty": do(),
}


async def test_failures_are_of_the_same_kind_as_exec_s(
    engine: AppServerEngine, exec_engine: ExecEngine, lab: Lab
) -> None:
    config = lab.home / "config.toml"
    config.write_text(config.read_text() + "request_max_retries = 1\nstream_max_retries = 1\n")
    for name, step in FAILURES.items():
        ran = await by_both(engine, exec_engine, lab, name, step)
        assert (ran[0].kind is None) is (ran[1].kind is None), name
        assert ran[0].kind == ran[1].kind, name
        assert ran[0].kind is not None, name
        assert str(ran[0].error) == str(ran[1].error), name


async def test_a_turn_that_cannot_begin_says_why_as_exec_does(
    engine: AppServerEngine, exec_engine: ExecEngine, lab: Lab
) -> None:
    nobody = "00000000-0000-7000-8000-000000000001"
    kinds = [(await run(e, lab, "x", thread_id=nobody)).kind for e in (engine, exec_engine)]
    assert kinds[0] == kinds[1] is not None
    config = (lab.home / "config.toml").read_text()
    (lab.home / "config.toml").write_text("model_reasoning_effort = 7\n" + config)
    ran = [await run(each, lab, "x") for each in (engine, exec_engine)]
    assert ran[0].kind == ran[1].kind is not None
    assert "model_reasoning_effort" in str(ran[0].error)
    (lab.home / "config.toml").write_text(config)
    shutil.rmtree(lab.project / ".git")
    ran = [await run(each, lab, "x") for each in (engine, exec_engine)]
    assert [each.kind for each in ran] == ["untrusted_directory"] * 2
    assert lab.model.requests == []
    assert (await run(engine, lab, "x", skip_git_repo_check=True)).kind is None


async def test_a_thread_goes_on_by_either_engine_and_its_usage_adds_up(
    engine: AppServerEngine, exec_engine: ExecEngine, lab: Lab
) -> None:
    thread_id: str | None = None
    counts: list[int] = []
    for each in (engine, exec_engine, engine, engine, exec_engine):
        ran = await run(each, lab, f"turn {len(counts)}", thread_id=thread_id)
        assert ran.kind is None, ran.error
        assert ran.result.usage is not None
        thread_id = ran.result.thread_id
        counts.append(ran.result.usage.input_tokens)
    assert counts == [1200 * n for n in range(1, 6)]
    fork = await run(engine, lab, "fork", thread_id=thread_id, fork=True)
    assert fork.result.thread_id not in (None, thread_id)
    assert fork.result.usage is not None
    assert fork.result.usage.input_tokens == 1200 * 6


async def test_the_model_is_asked_exactly_as_by_exec(
    engine: AppServerEngine, exec_engine: ExecEngine, lab: Lab
) -> None:
    image = lab.root / "a.png"
    image.write_bytes(PNG)
    schema: Json = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 10**18}},
        "required": ["n"],
        "additionalProperties": False,
    }
    asked: list[Json] = []
    for each in (engine, exec_engine):
        ran = await run(
            each,
            lab,
            "see",
            output_schema=schema,
            images=(image,),
            base_instructions="Be a poet.",
            reasoning_effort="low",
            model="gpt-5.5-other",
            web_search=False,
            config=(("developer_instructions", '"Rhyme."'),),
        )
        assert ran.kind is None
        body = lab.model.requests[-1].body
        names = ("model", "text", "reasoning", "tools", "instructions")
        asked.append({name: body.get(name) for name in names})
        asked[-1]["input"] = [(item["role"], item["content"]) for item in body["input"]]
    assert asked[0] == asked[1]
    assert asked[0]["text"]["format"]["schema"] == schema
    assert asked[0]["reasoning"]["effort"] == "low"
    text = str(asked[0])
    for part in ("data:image/png;base64", "Be a poet.", "Rhyme.", "gpt-5.5-other"):
        assert part in text
    assert "web_search" not in str(asked[0]["tools"])


async def test_the_sandbox_is_that_of_the_turn_and_keeps_the_user_s_settings(
    engine: AppServerEngine, lab: Lab
) -> None:
    shared = lab.root / "shared"
    added = lab.root / "added"
    for folder in (shared, added):
        folder.mkdir()
    config = lab.home / "config.toml"
    config.write_text(
        config.read_text()
        + "[sandbox_workspace_write]\nnetwork_access = true\n"
        + f'writable_roots = ["{shared}"]\n'
    )
    before = untouched(lab.home)
    write = f"echo x > in; echo x > {shared}/s; echo x > {added}/a; echo x > {lab.root}/out; true"
    for turn in ("first", "narrowed", "full", "last"):
        lab.script(turn, do(Shell(write)), say("done"))

    def written() -> list[bool]:
        files = (lab.project / "in", shared / "s", added / "a", lab.root / "out")
        found = [file.exists() for file in files]
        for file in files:
            file.unlink(missing_ok=True)
        return found

    def recorded() -> list[Json]:
        lines = [orjson.loads(line) for line in lab.rollouts()[-1].read_bytes().splitlines()]
        turns = [line["payload"] for line in lines if line["type"] == "turn_context"]
        assert {turn["approval_policy"] for turn in turns} == {"never"}
        return [turn["sandbox_policy"] for turn in turns]

    first = await run(engine, lab, "first", sandbox="workspace-write", add_dirs=(added,))
    assert first.kind is None
    assert written() == [True, True, True, False]
    assert recorded()[-1]["network_access"] is True
    # A caller may narrow what the user allows.
    off = (("sandbox_workspace_write.network_access", "false"),)
    thread = first.result.thread_id
    await run(engine, lab, "narrowed", sandbox="workspace-write", config=off, thread_id=thread)
    assert written() == [True, True, False, False]
    assert recorded()[-1].get("network_access", False) is False
    full = await run(engine, lab, "full", sandbox="danger-full-access", thread_id=thread)
    assert full.kind is None
    assert written() == [True, True, True, True]
    # The thread remembers that, and the next turn is read-only all the same.
    await run(engine, lab, "last", thread_id=thread)
    assert written() == [False, False, False, False]
    assert recorded()[-1]["type"] == "read-only"
    assert untouched(lab.home) == before


async def test_a_key_of_the_environment_is_sent_and_not_written(
    engine: AppServerEngine, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lab.home / "config.toml"
    config.write_text(config.read_text() + "requires_openai_auth = true\n")
    monkeypatch.setenv("CODEX_API_KEY", "sk-planted-key")
    before = untouched(lab.home)
    lab.script("key", do(Shell("echo key=[$CODEX_API_KEY]")), say("done"))
    ran = await run(engine, lab, "key")
    assert ran.kind is None, ran.error
    assert {seen.authorization for seen in lab.model.requests} == {"Bearer sk-planted-key"}
    assert untouched(lab.home) == before
    assert b"key=[]" in b"".join(ran.lines)
    for file in lab.home.rglob("*"):
        assert not file.is_file() or b"sk-planted-key" not in file.read_bytes(), file


MCP_SERVER = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    result = {}
    if asked["method"] == "initialize":
        result = {"protocolVersion": asked["params"]["protocolVersion"]}
        result |= {"capabilities": {"tools": {}}, "serverInfo": {"name": "lab", "version": "1"}}
    elif asked["method"] == "tools/list":
        look = {"name": "look", "inputSchema": {"type": "object"}}
        look["annotations"] = {"readOnlyHint": True}
        result = {"tools": [{"name": "change", "inputSchema": {"type": "object"}}, look]}
    elif asked["method"] == "tools/call":
        result = {"content": [{"type": "text", "text": "hey"}], "structuredContent": {"x": 1}}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


async def test_mcp_tools_are_allowed_and_refused_as_by_exec(
    engine: AppServerEngine, exec_engine: ExecEngine, lab: Lab
) -> None:
    (lab.root / "server.py").write_text(MCP_SERVER)
    config = lab.home / "config.toml"
    config.write_text(
        config.read_text()
        + f'[mcp_servers.lab]\ncommand = "{sys.executable}"\nargs = ["{lab.root}/server.py"]\n'
    )
    calls = do(Call("change", {"to": 1}, "mcp__lab")), do(Call("look", {}, "mcp__lab"))
    for sandbox, changed in (("read-only", "failed"), ("danger-full-access", "completed")):
        ran = await by_both(engine, exec_engine, lab, sandbox, *calls, say("done"), sandbox=sandbox)
        ours = facts(ran[0])
        for line in ours["lines"]:
            if (error := line.get("item", {}).get("error")) is not None:
                # 0.147.0 asks, and is told no; its exec says that the user has cancelled.
                error["message"] = error["message"].replace("user rejected", "user cancelled")
        assert ours == facts(ran[1])
        assert ours["tool_calls"] == [
            ("lab", "change", changed),
            ("lab", "look", "completed"),
        ]


async def test_the_work_of_sub_agents_is_told_as_by_exec(
    engine: AppServerEngine, exec_engine: ExecEngine, lab: Lab
) -> None:
    config = lab.home / "config.toml"
    config.write_text("features.multi_agent = true\n" + config.read_text())
    lab.script("kid", do(Shell("echo kid")), say("kid done"))
    spawn = do(Call("spawn_agent", {"message": "kid"}, "multi_agent_v1"))
    steps = (spawn, do(Shell("sleep 1")), say("parent done"))
    ran = await by_both(engine, exec_engine, lab, "agents", *steps)
    ours, theirs = facts(ran[0]), facts(ran[1])
    for lines in (ours["lines"], theirs["lines"]):
        for item in (line.get("item", {}) for line in lines):
            if item.get("type") == "collab_tool_call":
                # The ids are new each time, and so is how far the agent has come.
                item["sender_thread_id"] = ""
                item["receiver_thread_ids"] = len(item["receiver_thread_ids"])
                item["agents_states"] = len(item["agents_states"])
    assert ours == theirs
    assert ours["tool_calls"] == [(None, "spawn_agent", "completed")]
    assert len(ours["commands"]) == 1


async def test_a_review_comes_back_and_names_its_thread(engine: AppServerEngine, lab: Lab) -> None:
    lab.model.default = (say("Nothing to remark."),)
    ran = await run(engine, lab, "", review=ReviewTarget("uncommitted"))
    assert ran.kind is None, ran.error
    assert "Nothing to remark." in (ran.result.final_response or "")
    assert ran.result.thread_id


@pytest.mark.parametrize("sandbox", ["workspace-write", "danger-full-access"])
async def test_a_turn_that_is_left_leaves_nothing_and_its_thread_goes_on_at_once(
    engine: AppServerEngine,
    exec_engine: ExecEngine,
    lab: Lab,
    sandbox: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark = str(uuid.uuid4())
    monkeypatch.setenv("TURN_MARK", mark)
    lab.script("sleep", do(Shell(SLEEPERS)), say("never"))
    threads: list[str] = []

    def report(progress: TurnProgress) -> None:
        threads[:] = [progress.thread_id or ""]

    async with anyio.create_task_group() as tasks:

        async def sleep() -> None:
            await run(engine, lab, "sleep", report, sandbox=sandbox)

        tasks.start_soon(sleep)
        await until(lambda: sum("sleep 60" in each for each in commands(mark)) >= 5)
        tasks.cancel_scope.cancel()
    assert commands(mark) == []
    monkeypatch.delenv("TURN_MARK")
    ran = await run(exec_engine, lab, "go on", thread_id=threads[0])
    assert ran.kind is None, ran.error


KILLED = """
import sys
from pathlib import Path
import anyio
from codex_tools.engines.app_server import AppServerEngine
from codex_tools.engines.engine import TurnRequest
from codex_tools.engines.environment import EnvironmentRules

async def main():
    engine = AppServerEngine(sys.argv[1], is_only=True)
    cwd = Path(sys.argv[2])
    program = await engine.prepare(cwd, EnvironmentRules())
    request = TurnRequest(program, "sleep", cwd, "danger-full-access", 600.0, 600.0)
    async with engine.open_turn(request, lambda _: None) as events:
        async for event in events:
            if hasattr(event, "thread_id"):
                print(event.thread_id, flush=True)

anyio.run(main)
"""


async def test_nothing_survives_the_death_of_this_process(
    codex: Path, exec_engine: ExecEngine, lab: Lab
) -> None:
    mark = str(uuid.uuid4())
    lab.script("sleep", do(Shell(SLEEPERS)), say("never"))
    with subprocess.Popen(  # noqa: ASYNC220 - nothing waits for it but polls
        [sys.executable, "-c", KILLED, str(codex), str(lab.project)],
        stdout=subprocess.PIPE,
        env=environment(lab) | {"TURN_MARK": mark},
    ) as bridge:
        await until(lambda: sum("sleep 60" in each for each in commands(mark)) >= 5)
        assert bridge.stdout is not None
        thread_id = bridge.stdout.readline().decode().strip()
        os.kill(bridge.pid, signal.SIGKILL)
        bridge.wait()
        await until(lambda: not marked(mark), 20)
    ran = await run(exec_engine, lab, "go on", thread_id=thread_id)
    assert ran.kind is None, ran.error


@asynccontextmanager
async def live(
    engine: AppServerEngine, lab: Lab, prompt: str, **more: Any
) -> AsyncGenerator[tuple[TurnProgress, TurnHandle, list[Event]]]:
    """Run a turn beside the test; yield its progress, its handle and its events so far."""
    request = await request_for(engine, lab, prompt, **more)
    progress = TurnProgress()
    seen: list[Event] = []
    with anyio.fail_after(120):
        async with (
            engine.open_turn(request, lambda _: None) as events,
            anyio.create_task_group() as tasks,
        ):
            first = await anext(events)
            assert isinstance(first, EngineEvent)
            handle = cast("TurnHandle", first.handle)
            progress.add(first)

            async def read() -> None:
                async for event in events:
                    progress.add(event)
                    seen.append(event)

            tasks.start_soon(read)
            yield progress, handle, seen
            await until(lambda: progress.exited is not None)


async def test_a_turn_can_be_steered_and_only_while_it_runs(
    engine: AppServerEngine, lab: Lab
) -> None:
    lab.script("long", do(Shell("sleep 2; echo slept", yield_ms=500)), say("first"))
    lab.script("and this", say("steered"))
    async with live(engine, lab, "long") as (progress, handle, seen):
        await until(lambda: any(isinstance(each, ItemStartedEvent) for each in seen))
        await handle.steer("and this")
        await until(lambda: progress.ended)
    assert progress.completed
    assert progress.final_response == "steered"
    with pytest.raises(NotSteered):
        await handle.steer("too late")


async def test_an_interrupted_turn_ends_and_so_does_its_command(
    engine: AppServerEngine, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = str(uuid.uuid4())
    monkeypatch.setenv("TURN_MARK", mark)
    lab.script("sleep", do(Shell(SLEEPERS)), say("never"))
    async with live(engine, lab, "sleep", sandbox="danger-full-access") as (progress, handle, _):
        await until(lambda: sum("sleep 60" in each for each in commands(mark)) >= 5)
        await handle.interrupt()
        await handle.interrupt()
        await until(lambda: progress.ended)
    assert progress.failure == "Turn interrupted"
    assert commands(mark) == []


async def test_an_interrupted_review_ends_too(engine: AppServerEngine, lab: Lab) -> None:
    lab.model.default = (say("never", delay_s=600),)
    review = ReviewTarget("uncommitted")
    async with live(engine, lab, "", review=review) as (progress, handle, _):
        await until(lambda: lab.model.requests)
        await handle.interrupt()
        await until(lambda: progress.ended)
    assert progress.failure == "Turn interrupted"


def escalated(command: str) -> Call:
    """Return the model's request to run *command* outside the sandbox."""
    arguments: Json = {
        "cmd": command,
        "sandbox_permissions": "require_escalated",
        "justification": "need it",
    }
    return Call("exec_command", arguments)


async def test_questions_wait_for_their_answers_and_two_can_be_open(
    engine: AppServerEngine, lab: Lab
) -> None:
    before = untouched(lab.home)
    yes, no = lab.root / "yes", lab.root / "no"
    lab.script(
        "ask",
        do(escalated(f"touch {yes}"), escalated(f"touch {no}")),
        do(Patch(f"*** Add File: {lab.root}/patched\n+x")),
        say("done"),
    )
    asked: list[str] = []
    async with live(engine, lab, "ask", approvals="ask", sandbox="workspace-write") as (
        progress,
        handle,
        _,
    ):
        while not progress.ended:
            for question in handle.questions:
                asked.append(question.kind)
                if question.kind == "command":
                    assert question.reason == "need it"
                else:
                    assert question.files == (f"{lab.root}/patched",)
                    assert question.diff == "x\n"
                accept = str(yes) in (question.command or "") or question.kind == "patch"
                assert handle.answer(question.id, Answer(accept=accept, for_run=True))
                assert not handle.answer(question.id, Answer(accept=True))
            await anyio.sleep(0.02)
    assert progress.completed, progress.failure
    assert (yes.exists(), no.exists(), (lab.root / "patched").exists()) == (True, False, True)
    assert sorted(asked) == ["command", "command", "patch"]
    assert untouched(lab.home) == before


async def test_a_question_is_declined_at_once_where_nobody_is_asked_or_in_time(
    engine: AppServerEngine, lab: Lab
) -> None:
    out = lab.root / "out"
    lab.script("ask", do(escalated(f"touch {out}")), say("done"))
    ran = await run(engine, lab, "ask", sandbox="workspace-write")
    assert ran.kind is None
    async with live(engine, lab, "ask", approvals="ask") as (progress, handle, _):
        handle._answer_within_s = 0.0  # pyright: ignore[reportPrivateUsage]
        await until(lambda: progress.ended)
    assert progress.completed
    assert not out.exists()


async def test_what_the_model_writes_is_told_and_kept_out_of_the_log(
    engine: AppServerEngine, lab: Lab
) -> None:
    lab.script("hello", say("Hello there."))
    doing: list[str] = []
    ran = await run(engine, lab, "hello", lambda progress: doing.append(progress.doing))
    assert ran.result.final_response == "Hello there."
    assert any(each.startswith("writing: Hello") for each in doing), doing
    assert not any(b"delta" in line for line in ran.lines)
