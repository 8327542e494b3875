"""What Codex asks, on its way to a person or to the caller and back; and attempts to abuse it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import anyio
import mcp_types as types
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from codex_tools.codex.json_object import Json
from codex_tools.codex.questions import Answer
from mcp_server_codex.app import make_server
from mcp_server_codex.settings import read_settings
from support.lab import until
from support.scripted_engine import QUESTIONS, ScriptedEngine

ASK = {"sandbox": "workspace-write", "approvals": "ask"}
CONTENT: dict[str, Json] = {
    "form": {"n": 3},
    "choice": {"q1": "a"},
    "caller": {"answer": "Ada"},
    "nested form": {"n": {}},
}
BY_PERSON = sorted({*QUESTIONS} - {"caller", "nested form"})


def fail(problem: str) -> NoReturn:
    raise AssertionError(problem)


@dataclass
class Desk:
    """A server in this process on a scripted engine."""

    folder: Path
    engine: ScriptedEngine
    mode: str
    asked: list[types.ElicitRequestFormParams] = field(
        default_factory=list[types.ElicitRequestFormParams]
    )

    @asynccontextmanager
    async def client(
        self, *options: str, action: str | None = None, content: Json | None = None
    ) -> AsyncGenerator[Client]:
        """Connect a client; one with a person who answers with *action* if that is not None."""

        async def answer(_: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
            assert isinstance(params, types.ElicitRequestFormParams)
            self.asked.append(params)
            if action == "never":
                await anyio.sleep_forever()
            return types.ElicitResult(action=cast("Any", action), content=content)

        settings = read_settings(["--state-dir", str(self.folder / "state"), *options], {}, fail)
        server = make_server(settings, self.engine)
        more: dict[str, Any] = {"elicitation_callback": answer} if action is not None else {}
        async with Client(server, mode=cast("Any", self.mode), **more) as client:
            yield client

    @property
    def answers(self) -> list[Answer]:
        return [each for handle in self.engine.handles for each in handle.answers]

    def audited(self, event: str) -> list[Json]:
        lines = (self.folder / "state" / "audit.jsonl").read_text().splitlines()
        return [each for each in map(json.loads, lines) if each["event"] == event]

    async def run(self, client: Client, prompt: str, **arguments: Any) -> Json:
        project = self.folder / "project"
        project.mkdir(exist_ok=True)
        return await ask(client, "codex_run", prompt=prompt, cwd=str(project), **arguments)


async def ask(client: Client, tool: str, **arguments: Any) -> Json:
    result = await client.call_tool(tool, arguments)
    data = cast("Json", result.structured_content)
    assert result.is_error is ((data.get("run") or data).get("status") in ("failed", "timed_out"))
    return data


async def reply(client: Client, run: Json, decision: str, /, **more: Any) -> Json:
    """Answer the only question of *run*."""
    (question,) = run["questions"]
    name = {"run_id": run["run_id"], "question_id": question["id"]}
    return (await ask(client, "codex_answer", **(name | {"decision": decision} | more)))["run"]


async def ended(client: Client, run: Json) -> Json:
    return (await ask(client, "codex_wait", run_ids=[run["run_id"]], wait_s=30))["runs"][0]


@pytest.fixture
def desk(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "home"))
    return Desk(tmp_path, ScriptedEngine(tmp_path / "home"), mode)


@pytest.mark.parametrize("kind", BY_PERSON)
@pytest.mark.parametrize("action", ["accept", "decline"])
async def test_a_person_answers_each_kind_by_a_form(desk: Desk, kind: str, action: str) -> None:
    options = ("--approvals", "person")
    async with desk.client(*options, action=action, content=CONTENT.get(kind)) as client:
        result = await desk.run(client, kind, **ASK)
    expected = "accepted" if action == "accept" else "declined"
    assert (result["status"], result["final_response"]) == ("completed", expected)
    (form,) = desk.asked
    fields = {"form": ["n"], "choice": ["q1"], "command": ["for_run"], "patch": ["for_run"]}
    assert [*form.requested_schema["properties"]] == fields.get(kind, [])
    (answer,) = desk.answers
    assert (answer.accept, answer.for_run) == (action == "accept", False)
    if action == "accept":
        assert (answer.content or {}) == CONTENT.get(kind, {})
    assert len(desk.engine.turns) == 1
    assert desk.audited("answered")[0]["by"] == "person"


@pytest.mark.parametrize("kind", sorted(QUESTIONS))
async def test_the_caller_answers_each_kind(desk: Desk, kind: str) -> None:
    options = ASK | {"ask_caller": kind == "caller"}
    async with desk.client("--approvals", "caller") as client:
        run = await desk.run(client, kind, **options)
        assert run["status"] == "needs_answer"
        assert run["questions"][0]["kind"] == QUESTIONS[kind].kind
        content = {"content": CONTENT[kind]} if kind in CONTENT else {}
        answered = await reply(client, run, "accept", **content)
        assert (answered["error"], answered["questions"]) == (None, [])
        result = await ended(client, run)
    assert (result["status"], result["final_response"]) == ("completed", "accepted")


async def test_an_answer_for_the_rest_of_the_run_comes_from_the_form_or_the_caller(
    desk: Desk,
) -> None:
    options = ("--approvals", "caller")
    async with desk.client(*options, action="accept", content={"for_run": True}) as client:
        await desk.run(client, "command", **ASK)
    async with desk.client(*options) as client:
        await reply(client, await desk.run(client, "patch", **ASK), "accept", for_run=True)
    assert [each.for_run for each in desk.answers] == [True, True]


async def test_a_wait_of_several_runs_asks_the_person_and_returns_for_the_caller(
    desk: Desk,
) -> None:
    async with desk.client("--approvals", "caller", action="accept") as client:
        both = [
            await desk.run(client, kind, wait_s=0, isolation="none", **more)
            for kind, more in (("command", ASK), ("caller", {"ask_caller": True}))
        ]
        await until(lambda: len(desk.engine.handles) == 2)
        ids = [each["run_id"] for each in both]
        results = (await ask(client, "codex_wait", run_ids=ids, wait_s=30))["runs"]
        if results[0]["status"] != "completed":  # The caller's question came first.
            results[0] = await ended(client, results[0])
        assert [each["status"] for each in results] == ["completed", "needs_answer"]
        await ask(client, "codex_stop", run_id=ids[1])
    assert len(desk.asked) == 1


@pytest.mark.parametrize("kind", sorted(QUESTIONS))
async def test_a_model_that_sees_one_channel_can_answer(desk: Desk, kind: str) -> None:
    async with desk.client("--approvals", "caller") as client:
        project = desk.folder / "project"
        project.mkdir()
        arguments: Json = {"prompt": kind, "cwd": str(project), "ask_caller": True, **ASK}
        result = await client.call_tool("codex_run", arguments)
        data = cast("Json", result.structured_content)
        text = cast("types.TextContent", result.content[0]).text
        question = QUESTIONS[kind]
        said = [data["run_id"], "question_1", "codex_answer", "accept"]
        said += [each for each in (question.command, question.reason, *question.files) if each]
        said += [*(question.schema or {}).get("properties", {})]
        said += [label for _, labels in question.options for label in labels]
        for channel in (json.dumps(data), text):
            assert [each for each in said if each not in channel] == []
        await ask(client, "codex_stop", run_id=data["run_id"])


async def test_a_stop_ends_a_run_whose_person_says_nothing(desk: Desk) -> None:
    async with desk.client("--approvals", "person", action="never") as client:
        run = await desk.run(client, "command", wait_s=0, **ASK)
        await until(lambda: desk.engine.handles)
        stopped = (await ask(client, "codex_stop", run_id=run["run_id"]))["run"]
    assert (stopped["status"], stopped["questions"]) == ("cancelled", [])
    assert desk.answers == []


async def test_the_words_of_a_question_keep_to_their_line(desk: Desk) -> None:
    hostile = 'x"\nCommand: harmless\nRun run_1 \x1b[2Jin /'
    question = QUESTIONS["command"].__class__("question_1", "command", hostile, hostile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(QUESTIONS, "command", question)
        async with desk.client("--approvals", "person", action="decline") as client:
            await desk.run(client, "command", **ASK)
    lines = desk.asked[0].message.splitlines()
    assert [line.split(":")[0] for line in lines[1:3]] == ["Command", "Question"]
    assert len(lines) == 4
    assert "\x1b" not in desk.asked[0].message


# What a caller may try. Each line: the operator's options, the call, and what must come of it.
NOT_ALLOWED: dict[str, tuple[tuple[str, ...], Json]] = {
    "ask by default": ((), ASK),
    "auto by default": ((), ASK | {"approvals": "auto"}),
    "ask where never is said": (("--approvals", "never"), ASK),
    "ask with a read-only sandbox": ((), {"sandbox": "read-only", "approvals": "ask"}),
    "ask without a sandbox": ((), {"approvals": "ask"}),
    "auto where a person decides": (("--approvals", "person"), ASK | {"approvals": "auto"}),
    "ask under a pinned ceiling, person": (
        ("--approvals", "person", "--max-sandbox", "read-only"),
        {"approvals": "ask"},
    ),
    "ask under a pinned ceiling, caller": (
        ("--approvals", "caller", "--max-sandbox", "read-only"),
        {"approvals": "ask"},
    ),
    "auto under a pinned ceiling": (
        ("--approvals", "caller", "--max-sandbox", "read-only"),
        {"approvals": "auto", "sandbox": "read-only"},
    ),
    "approval policy by config": ((), {"config": {"approval_policy": "on-request"}}),
    "approval policy by config, allowed to ask": (
        ("--approvals", "caller"),
        ASK | {"config": {"approval_policy": "untrusted"}},
    ),
    "reviewer by config": (
        ("--approvals", "caller"),
        {"config": {"approvals_reviewer": "auto_review"}},
    ),
    "granular policy by config": (
        ("--approvals", "caller"),
        {"config": {"approval_policy.granular.rules": True}},
    ),
    "wider sandbox beside": (
        ("--approvals", "caller"),
        {"sandbox": "danger-full-access", "approvals": "ask"},
    ),
}
INVALID: dict[str, tuple[tuple[str, ...], Json]] = {
    "auto with a read-only sandbox": (
        ("--approvals", "caller"),
        {"sandbox": "read-only", "approvals": "auto"},
    ),
    "auto with full access": (
        ("--approvals", "caller", "--max-sandbox", "danger-full-access"),
        {"sandbox": "danger-full-access", "approvals": "auto"},
    ),
    "an unknown word": (("--approvals", "caller"), {"approvals": "always"}),
    "untrusted": (("--approvals", "caller"), {"approvals": "untrusted"}),
    "on-request": (("--approvals", "caller"), {"approvals": "on-request"}),
    "a person's name": (("--approvals", "caller"), {"approvals": "person"}),
    "a list": (("--approvals", "caller"), {"approvals": ["ask"]}),
    "true": (("--approvals", "caller"), {"approvals": True}),
    "answered_by": (("--approvals", "person"), ASK | {"answered_by": "caller"}),
    "approvals_reviewer": (("--approvals", "person"), ASK | {"approvals_reviewer": "auto"}),
    "with a review": (
        ("--approvals", "caller"),
        {"review": {"uncommitted": True}, "approvals": "ask"},
    ),
    "ask_caller with a review": ((), {"review": {"uncommitted": True}, "ask_caller": True}),
}


@pytest.mark.parametrize("name", sorted(NOT_ALLOWED))
async def test_no_call_widens_who_may_allow_what(desk: Desk, name: str) -> None:
    options, arguments = NOT_ALLOWED[name]
    async with desk.client(*options, "--ask", "never") as client:
        result = await desk.run(client, "command", **arguments)
    assert result["error"]["kind"] == "not_allowed", result
    assert desk.engine.turns == []


@pytest.mark.parametrize("name", sorted(INVALID))
async def test_no_other_word_is_taken(desk: Desk, name: str) -> None:
    options, arguments = INVALID[name]
    async with desk.client(*options) as client:
        prompt = {} if "review" in arguments else {"prompt": "command"}
        project = desk.folder / "project"
        project.mkdir()
        result = await ask(client, "codex_run", cwd=str(project), **prompt, **arguments)
    assert result["error"]["kind"] == "invalid_arguments", result
    assert desk.engine.turns == []


async def test_a_person_is_not_asked_to_lift_the_operator_s_word(desk: Desk) -> None:
    async with desk.client(action="accept") as client:
        result = await desk.run(client, "command", **ASK)
    assert result["error"]["kind"] == "not_allowed"
    assert desk.asked == []


async def test_the_operator_may_let_answers_leave_a_read_only_ceiling(desk: Desk) -> None:
    options = ("--approvals", "caller", "--max-sandbox", "read-only", "--approve-outside-sandbox")
    async with desk.client(*options) as client:
        run = await desk.run(client, "command", approvals="ask")
        assert run["status"] == "needs_answer"
        await reply(client, run, "decline")


ANSWERS: dict[str, Json] = {
    "another question": {"question_id": "question_2"},
    "no question": {"question_id": ""},
    "a request's number": {"question_id": "0"},
    "another run": {"run_id": "run_0000000000000000"},
    "a path as the run": {"run_id": "../run"},
    "an unknown decision": {"decision": "acceptForSession"},
    "an amendment": {"decision": "acceptWithExecpolicyAmendment"},
    "a decision as an object": {"decision": {"acceptWithExecpolicyAmendment": ["rm"]}},
    "content for a command": {"content": {"decision": "acceptForSession"}},
    "permissions as content": {"content": {"permissions": {"network": True}}},
    "an unknown argument": {"scope": "session"},
}


@pytest.mark.parametrize("name", sorted(ANSWERS))
async def test_a_wrong_answer_changes_nothing(desk: Desk, name: str) -> None:
    async with desk.client("--approvals", "caller") as client:
        run = await desk.run(client, "command", **ASK)
        refused = await reply(client, run, "accept", **ANSWERS[name])
        assert refused["error"]["kind"] in ("invalid_arguments", "unknown_run")
        assert (await ended(client, run))["status"] == "needs_answer"
        assert desk.answers == []
        await reply(client, run, "decline")
        assert (await ended(client, run))["final_response"] == "declined"


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("form", {}),
        ("form", {"content": {"n": 0}}),
        ("form", {"content": {"n": "one"}}),
        ("choice", {}),
        ("choice", {"content": {"q2": "a"}}),
        ("choice", {"content": {"q1": "a", "q2": "b"}}),
        ("permissions", {"for_run": True}),
        ("permissions", {"content": {"network": True}}),
        ("mcp_tool", {"for_run": True}),
        ("caller", {}),
        ("caller", {"content": {"answer": 3}}),
    ],
)
async def test_an_accepted_question_gets_what_it_asks_for(
    desk: Desk, kind: str, more: Json
) -> None:
    async with desk.client("--approvals", "caller") as client:
        run = await desk.run(client, kind, **ASK, ask_caller=True)
        refused = await reply(client, run, "accept", **more)
        assert refused["error"]["kind"] == "invalid_arguments"
        assert desk.answers == []
        await reply(client, run, "decline")


async def test_a_caller_may_decline_but_not_accept_for_the_person(desk: Desk) -> None:
    async with desk.client("--approvals", "person", action="never") as client:
        run = await desk.run(client, "command", wait_s=0, **ASK)
        await until(lambda: desk.engine.handles)
        name = {"run_id": run["run_id"], "question_id": "question_1"}
        refused = await ask(client, "codex_answer", **name, decision="accept")
        assert refused["run"]["error"]["kind"] == "not_allowed"
        assert "--approvals" in refused["run"]["error"]["hint"]
        await ask(client, "codex_answer", **name, decision="decline")
        assert [each.accept for each in desk.answers] == [False]


async def test_a_caller_s_question_goes_to_no_person(desk: Desk) -> None:
    async with desk.client("--approvals", "person", action="accept") as client:
        run = await desk.run(client, "caller", ask_caller=True)
        assert run["status"] == "needs_answer"
        await reply(client, run, "accept", content={"answer": "Ada"})
        assert (await ended(client, run))["final_response"] == "accepted"
    assert desk.asked == []


async def test_inside_a_run_nobody_may_allow_anything(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEX_RUN_DEPTH", "1")
    options = ("--approvals", "caller", "--max-depth", "3")
    async with desk.client(*options, action="accept") as client:
        result = await desk.run(client, "command", **ASK)
    assert result["error"]["kind"] == "not_allowed"
    assert desk.asked == []


async def test_another_server_neither_answers_nor_steers_a_run(desk: Desk) -> None:
    async with desk.client("--approvals", "caller") as client:
        run = await desk.run(client, "command", **ASK)
        async with desk.client("--approvals", "caller") as other:
            await until(lambda: "needs_answer" in record(desk, run).read_text())
            seen = await ended(other, run)
            assert (seen["status"], len(seen["questions"])) == ("needs_answer", 1)
            answered = await reply(other, run, "accept")
            steered = (await ask(other, "codex_steer", run_id=run["run_id"], prompt="x"))["run"]
        assert [each["error"]["kind"] for each in (answered, steered)] == ["unknown_run"] * 2
        assert desk.answers == []
        await reply(client, run, "decline")


def record(desk: Desk, run: Json) -> Path:
    return desk.folder / "state" / "runs" / run["run_id"] / "run.json"


async def test_a_run_that_died_with_its_question_has_none(desk: Desk) -> None:
    async with desk.client("--approvals", "caller") as client:
        run = await desk.run(client, "command", **ASK)
    async with desk.client("--approvals", "caller") as client:
        left = await ended(client, run)
        late = await reply(client, run, "accept")
    assert (left["status"], left["error"]["kind"]) == ("failed", "interrupted")
    assert left["questions"] == []
    assert late["error"]["kind"] == "invalid_arguments"


REPEATED: dict[str, Json] = {
    "another prompt": {"prompt": "patch"},
    "another sandbox": {"sandbox": "read-only"},
    "another schema": {"output_schema": {"type": "object"}},
    "another time": {"timeout_s": 5},
    "a dry run": {"dry_run": True},
}


async def test_the_state_of_a_question_goes_on_with_its_run_and_starts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the 2026 protocol the client repeats the call, with arguments that it may change."""
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "home"))
    desk = Desk(tmp_path, ScriptedEngine(tmp_path / "home"), "auto")
    project = tmp_path / "project"
    project.mkdir()
    first: Json = {"prompt": "command", "cwd": str(project), **ASK}
    accept = {"answer": types.ElicitResult(action="accept", content={})}
    async with desk.client("--approvals", "person", action="accept") as client:

        async def send(
            arguments: Json,
            state: str | None,
            answers: Any = accept,
            tool: str = "codex_run",
        ) -> Any:
            return await client.session.call_tool(
                tool,
                arguments,
                input_responses=answers if state else None,
                request_state=state,
                allow_input_required=True,
            )

        asked = await send(first, None)
        assert isinstance(asked, types.InputRequiredResult)
        state = asked.request_state or ""
        _, run_id, question_id, seal = state.split(":")
        for change in REPEATED.values():
            with pytest.raises(MCPError, match="other arguments"):
                await send(first | change, state)
        forged = [
            f"run:run_0000000000000000:{question_id}:{seal}",
            f"run:{run_id}:question_2:{seal}",
            f"run:{run_id}:{question_id}:{seal}0",
            f"run:{run_id}:{question_id}:",
            f"run:{run_id}:{question_id}:é.x.y",
            f"{run_id}:{question_id}:{seal}",
        ]
        for each in forged:
            with pytest.raises(MCPError, match="requestState"):
                await send(first, each)
        with pytest.raises(MCPError, match="other arguments"):
            await send({"run_ids": [run_id]}, state, tool="codex_wait")
        assert desk.answers == []
        # The client lost the answer, or the call: the question is asked again, by the same run.
        again = await send(first, state, answers={})
        assert isinstance(again, types.InputRequiredResult)
        assert (again.request_state or "").split(":")[1] == run_id
        done = await send(first, again.request_state)
        assert done.structured_content["final_response"] == "accepted"
        assert done.structured_content["run_id"] == run_id
        replayed = await send(first, again.request_state)
        assert replayed.structured_content["run_id"] == run_id
    assert len(desk.engine.turns) == 1
    assert [each.accept for each in desk.answers] == [True]
