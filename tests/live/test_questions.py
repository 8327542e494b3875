"""What Codex asks during a run, by each way that an answer travels, in from tools/call."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp import Client

from mcp_server_codex.cli.scripted_model import Call, Patch, Shell, do, say
from support.codex_versions import ASKING_ENGINE, WITH_APP_SERVER
from support.engine_turns import untouched
from support.lab import Json, Lab, call, connect, until


@pytest.fixture(params=WITH_APP_SERVER, scope="module")
def version(request: pytest.FixtureRequest) -> str:
    """A Codex version that the app-server engine runs."""
    return str(request.param)


def escalated(command: str) -> Call:
    """Return the model's request to run *command* outside the sandbox."""
    arguments: Json = {
        "cmd": command,
        "sandbox_permissions": "require_escalated",
        "justification": "need it",
    }
    return Call("exec_command", arguments)


Person = Callable[[types.ElicitRequestFormParams], Awaitable[types.ElicitResult]]


def person(
    lab: Lab, action: str, content: Json | None = None
) -> Callable[[Any, types.ElicitRequestParams], Awaitable[types.ElicitResult]]:
    """Return a person who answers each question with *action*, and notes what was asked."""

    async def answer(_: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        assert isinstance(params, types.ElicitRequestFormParams)
        with (lab.root / "asked.jsonl").open("a") as file:
            file.write(json.dumps([params.message, params.requested_schema]) + "\n")
        return types.ElicitResult(action=action, content=content)  # pyright: ignore[reportArgumentType] - a literal

    return answer


def asked(lab: Lab) -> list[tuple[str, Json]]:
    """Return what the person was asked: the text and the form."""
    file = lab.root / "asked.jsonl"
    return (
        [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    )


def audited(lab: Lab, event: str) -> list[Json]:
    """Return the entries of the audit log about *event*."""
    lines = (lab.state / "audit.jsonl").read_text().splitlines()
    return [each for each in map(json.loads, lines) if each["event"] == event]


@asynccontextmanager
async def server(
    mode: str, codex: Path, lab: Lab, who: str, *options: str, **client: Any
) -> AsyncGenerator[Client]:
    chosen = ("--engine", ASKING_ENGINE, "--spares", "0", "--approvals", who)
    async with connect(mode, codex, lab, *chosen, *options, **client) as connected:
        yield connected


def ask_to_touch(lab: Lab) -> tuple[str, Path]:
    """Let the model ask for a file outside the sandbox; return the prompt and the file."""
    out = lab.root / "out"
    return lab.script("ask", do(escalated(f"touch {out}")), say("Done.")), out


@pytest.mark.parametrize("action", ["accept", "decline", "cancel"])
async def test_a_person_is_asked_by_a_form_and_the_same_run_goes_on(
    codex: Path, mode: str, lab: Lab, action: str
) -> None:
    before = untouched(lab.home)
    prompt, out = ask_to_touch(lab)
    async with server(
        mode, codex, lab, "person", elicitation_callback=person(lab, action)
    ) as client:
        result = await call(
            client, "codex_run", prompt=prompt, sandbox="workspace-write", approvals="ask"
        )
    assert (result["status"], result["final_response"]) == ("completed", "Done.")
    assert (result["questions"], result["engine"]) == ([], "app-server")
    assert out.exists() is (action == "accept")
    ((text, form),) = asked(lab)
    assert f"touch {out}" in text
    assert "need it" in text
    assert form["properties"]["for_run"]["type"] == "boolean"
    (entry,) = audited(lab, "answered")
    assert (entry["by"], entry["decision"] == "accept") == ("person", action == "accept")
    assert entry["run_id"] == result["run_id"]
    assert len(audited(lab, "started")) == 1
    assert untouched(lab.home) == before


@pytest.mark.parametrize("decision", ["accept", "decline"])
async def test_a_caller_answers_with_codex_answer(
    codex: Path, mode: str, lab: Lab, decision: str
) -> None:
    prompt, out = ask_to_touch(lab)
    async with server(mode, codex, lab, "caller") as client:
        waiting = await call(
            client, "codex_run", prompt=prompt, sandbox="workspace-write", approvals="ask"
        )
        assert waiting["status"] == "needs_answer"
        (question,) = waiting["questions"]
        assert question["kind"] == "command"
        assert f"touch {out}" in question["command"]
        assert question["reason"] == "need it"
        assert 0 < question["answer_within_s"] <= 600
        for text in (waiting["text"], waiting["next"]):
            assert waiting["run_id"] in text
            assert question["id"] in text
        assert f"touch {out}" in waiting["text"]
        name = {"run_id": waiting["run_id"], "question_id": question["id"]}
        gone = await run_of(
            client, "codex_answer", **name | {"question_id": "x"}, decision="accept"
        )
        assert (gone["error"]["kind"], question["id"] in gone["error"]["message"]) == (
            *("invalid_arguments", True),
        )
        again = await runs_of(client, waiting["run_id"], wait_s=60)
        assert again[0]["status"] == "needs_answer"
        answered = await run_of(client, "codex_answer", **name, decision=decision)
        assert answered["error"] is None
        assert answered["questions"] == []
        (ended,) = await runs_of(client, waiting["run_id"], wait_s=60)
        late = await run_of(client, "codex_answer", **name, decision=decision)
    assert (ended["status"], ended["final_response"]) == ("completed", "Done.")
    assert out.exists() is (decision == "accept")
    assert late["error"]["kind"] == "invalid_arguments"
    (entry,) = audited(lab, "answered")
    assert (entry["decision"], entry["by"].startswith("mcp")) == (decision, True)


async def test_a_caller_answers_where_the_form_reaches_no_person(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt, out = ask_to_touch(lab)
    options = {"sandbox": "workspace-write", "approvals": "ask"}
    callback = person(lab, "cancel")
    async with server(mode, codex, lab, "caller", elicitation_callback=callback) as client:
        waiting = await call(client, "codex_run", prompt=prompt, **options)
        assert waiting["status"] == "needs_answer"
        (question,) = waiting["questions"]
        await run_of(
            client,
            "codex_answer",
            run_id=waiting["run_id"],
            question_id=question["id"],
            decision="accept",
        )
        (ended,) = await runs_of(client, waiting["run_id"], wait_s=60)
    assert ended["status"] == "completed"
    assert out.exists()
    assert len(asked(lab)) == 1


async def test_only_the_person_may_accept_where_the_operator_says_so(
    codex: Path, mode: str, lab: Lab
) -> None:
    """A run in the background asks the person as soon as a call waits for it."""
    prompt, out = ask_to_touch(lab)
    callback = person(lab, "accept")
    async with server(mode, codex, lab, "person", elicitation_callback=callback) as client:
        started = await call(
            client,
            "codex_run",
            prompt=prompt,
            sandbox="workspace-write",
            approvals="ask",
            wait_s=0,
        )
        file = lab.state / "runs" / started["run_id"] / "run.json"
        await until(lambda: "needs_answer" in file.read_text())
        name = {"run_id": started["run_id"], "question_id": "question_1"}
        refused = await run_of(client, "codex_answer", **name, decision="accept")
        assert refused["error"]["kind"] == "not_allowed"
        assert not asked(lab)
        (ended,) = await runs_of(client, started["run_id"], wait_s=60)
    assert ended["status"] == "completed"
    assert out.exists()
    assert len(asked(lab)) == 1


async def test_nobody_is_asked_where_no_person_can_be_reached(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt, out = ask_to_touch(lab)
    async with server(mode, codex, lab, "person") as client:
        result = await call(
            client, "codex_run", prompt=prompt, sandbox="workspace-write", approvals="ask"
        )
    assert result["status"] == "completed"
    assert [each for each in result["warnings"] if "no person can be asked" in each]
    assert not out.exists()


async def test_a_patch_outside_and_a_second_question_for_the_rest_of_the_run(
    codex: Path, mode: str, lab: Lab
) -> None:
    outside = lab.root / "outside.txt"
    prompt = lab.script(
        "edit",
        do(escalated("echo one"), escalated("echo one")),
        do(Patch(f"*** Add File: {outside}\n+x")),
        do(Patch(f"*** Update File: {outside}\n@@\n-x\n+y")),
        say("Done."),
    )
    callback = person(lab, "accept", {"for_run": True})
    async with server(mode, codex, lab, "person", elicitation_callback=callback) as client:
        result = await call(
            client, "codex_run", prompt=prompt, sandbox="workspace-write", approvals="ask"
        )
    assert result["status"] == "completed", result
    assert outside.read_text() == "y\n"
    texts = [text for text, _ in asked(lab)]
    assert [each for each in texts if str(outside) in each]
    kinds = [each["question"] for each in audited(lab, "answered")]
    assert all(each["for_run"] for each in audited(lab, "answered"))
    assert sorted(kinds)[0] == "command"
    assert "patch" in kinds


async def test_codex_asks_its_caller(codex: Path, mode: str, lab: Lab) -> None:
    prompt = lab.script(
        "name it", do(Call("ask_caller", {"question": "Which name?"})), say("Named.")
    )
    async with connect(mode, codex, lab, "--engine", ASKING_ENGINE, "--spares", "0") as client:
        waiting = await call(client, "codex_run", prompt=prompt, ask_caller=True)
        assert waiting["status"] == "needs_answer", waiting
        (question,) = waiting["questions"]
        assert (question["kind"], question["text"]) == ("form", "Which name?")
        name = {"run_id": waiting["run_id"], "question_id": question["id"]}
        wrong = await run_of(client, "codex_answer", **name, decision="accept")
        assert wrong["error"]["kind"] == "invalid_arguments"
        content = {"answer": "Call it Ada."}
        await run_of(client, "codex_answer", **name, decision="accept", content=content)
        (ended,) = await runs_of(client, waiting["run_id"], wait_s=60)
    assert ended["final_response"] == "Named."
    assert "Call it Ada." in json.dumps(lab.model.requests[-1].body)


async def test_a_cancelled_call_and_a_stop_end_a_run_that_waits_for_an_answer(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt, out = ask_to_touch(lab)
    async with server(mode, codex, lab, "caller") as client:
        options = {"sandbox": "workspace-write", "approvals": "ask"}
        waiting = await call(client, "codex_run", prompt=prompt, **options)
        stopped = await run_of(client, "codex_stop", run_id=waiting["run_id"])
    assert (stopped["status"], stopped["questions"]) == ("cancelled", [])
    assert not out.exists()


async def test_the_clocks_stand_still_while_an_answer_is_awaited(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt, out = ask_to_touch(lab)
    async with server(mode, codex, lab, "caller", "--stall-s", "4") as client:
        options = {"sandbox": "workspace-write", "approvals": "ask", "timeout_s": 15}
        waiting = await call(client, "codex_run", prompt=prompt, **options)
        assert waiting["status"] == "needs_answer"
        await anyio.sleep(16)
        (question,) = waiting["questions"]
        name = {"run_id": waiting["run_id"], "question_id": question["id"]}
        answered = await run_of(client, "codex_answer", **name, decision="accept")
        assert answered["error"] is None
        (ended,) = await runs_of(client, waiting["run_id"], wait_s=60)
    assert ended["status"] == "completed", ended
    assert out.exists()


async def test_a_run_is_steered(codex: Path, mode: str, lab: Lab) -> None:
    lab.script("long", do(Shell("sleep 3; echo slept", yield_ms=500)), say("first"))
    lab.script("and this", say("steered"))
    async with connect(mode, codex, lab, "--engine", ASKING_ENGINE, "--spares", "0") as client:
        started = await call(client, "codex_run", prompt="long", wait_s=0)
        run_id = started["run_id"]
        await until(lambda: lab.model.requests)
        steered = [await run_of(client, "codex_steer", run_id=run_id, prompt="and this")]
        with anyio.fail_after(30):  # Codex may not have said yet that the turn has begun.
            while steered[-1]["error"] is not None:
                steered.append(
                    await run_of(client, "codex_steer", run_id=run_id, prompt="and this")
                )
        (ended,) = await runs_of(client, run_id, wait_s=60)
        late = await run_of(client, "codex_steer", run_id=run_id, prompt="too late")
    assert ended["final_response"] == "steered"
    assert late["error"]["kind"] == "invalid_arguments"
    assert "codex_resume" in late["error"]["message"]
    assert len(audited(lab, "steered")) == 1


async def test_a_run_of_codex_exec_cannot_be_steered(codex: Path, mode: str, lab: Lab) -> None:
    lab.model.default = (say("never", delay_s=600),)
    async with connect(mode, codex, lab, "--engine", "exec") as client:
        started = await call(client, "codex_run", prompt="long", wait_s=0)
        await until(lambda: lab.model.requests)
        refused = await run_of(client, "codex_steer", run_id=started["run_id"], prompt="more")
        asks = await call(client, "codex_run", prompt="x", ask_caller=True)
        await run_of(client, "codex_stop", run_id=started["run_id"])
    assert refused["error"]["kind"] == "codex_unsupported"
    assert asks["error"]["kind"] == "codex_unsupported"
    assert "--engine exec" in asks["error"]["hint"]


async def test_a_turn_that_only_codex_exec_can_run_cannot_ask(
    codex: Path, mode: str, lab: Lab
) -> None:
    (lab.home / "careful.config.toml").write_text('model_reasoning_effort = "low"\n')
    async with server(mode, codex, lab, "caller") as client:
        refused = await call(
            client,
            "codex_run",
            prompt="x",
            profile="careful",
            sandbox="workspace-write",
            approvals="ask",
        )
    assert refused["error"]["kind"] == "codex_unsupported"
    assert "profiles" in refused["error"]["message"]
    assert "leave out approvals" in refused["error"]["hint"]
    assert lab.model.requests == []


async def run_of(client: Client, tool: str, **arguments: Any) -> Json:
    """Call a tool that returns one run."""
    result = await client.call_tool(tool, arguments)
    assert result.structured_content is not None
    return result.structured_content["run"]


async def runs_of(client: Client, *run_ids: str, **arguments: Any) -> list[Json]:
    """Wait for runs and return their results."""
    result = await client.call_tool("codex_wait", {"run_ids": [*run_ids], **arguments})
    assert result.structured_content is not None
    return result.structured_content["runs"]


@pytest.mark.parametrize("engine", ["exec", "app-server"])
async def test_a_reviewer_of_codex_decides_without_a_question(
    codex: Path, mode: str, lab: Lab, engine: str
) -> None:
    """The reviewer is a model: it gets the same script here, whose answer allows nothing."""
    prompt, out = ask_to_touch(lab)
    lab.model.default = (say('{"risk_level":"high","outcome":"deny","rationale":"no"}'),)
    options = ("--engine", engine, "--approvals", "caller")
    async with connect(mode, codex, lab, *options) as client:
        result = await call(
            client, "codex_run", prompt=prompt, sandbox="workspace-write", approvals="auto"
        )
        thread_id = result["thread_id"]
        again = await call(
            client, "codex_resume", prompt=prompt, thread_id=thread_id, approvals="auto"
        )
    assert (again["status"], again["sandbox"]) == ("completed", "workspace-write"), again
    assert (result["status"], result["engine"]) == ("completed", engine), result
    assert result["sandbox"] == "workspace-write"
    assert result["questions"] == []
    assert not out.exists()
    assert len(lab.model.requests) > 2  # The reviewer was asked.
