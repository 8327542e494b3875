"""Questions to the person: which clients are asked, and that no answer can be made up."""

from __future__ import annotations

import uuid
from typing import Any, cast

import anyio
import mcp_types as types
import pytest
from mcp.shared.exceptions import MCPError

from mcp_server_codex.elicitation import OPEN_LIMIT, Seals
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Json, Lab, call, connect

WIDE: Json = {"prompt": "x", "sandbox": "danger-full-access"}


def test_a_seal_is_good_for_its_question_and_once() -> None:
    seals = Seals()
    seal, other = seals.seal("May it?"), seals.seal("May it?")
    assert seal != other
    assert not seals.breaks(seal, "May it do more?")
    assert not Seals().breaks(seal, "May it?")
    for forged in (None, "", ".", seal.upper(), "é." + seal):
        assert not seals.breaks(forged, "May it?")
    assert seals.breaks(seal, "May it?")
    assert not seals.breaks(seal, "May it?")
    assert seals.breaks(other, "May it?")


@pytest.mark.parametrize(
    "change", ["", ".", "0.0", "é.x", "cut", "longer", "upper", "other server"]
)
def test_an_altered_seal_is_refused_and_not_used_up(change: str) -> None:
    seals = Seals()
    seal = seals.seal("May it?")
    altered = {
        "cut": seal[:-1],
        "longer": seal + "0",
        "upper": seal.upper(),
        "other server": Seals().seal("May it?"),
    }
    with pytest.raises(MCPError) as refused:
        seals.check(altered.get(change, change))
    assert refused.value.error.code == types.INVALID_PARAMS
    seals.check(None)
    seals.check(seal)
    assert seals.breaks(seal, "May it?")


async def accept(_: object, __: types.ElicitRequestParams) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={})


async def test_a_question_without_an_answer_ends_before_the_client_s_limit(
    lab: Lab, fake: FakeCodex
) -> None:
    """In the 2026 protocol the client itself waits for the person."""
    said: list[str] = []

    async def think(_: object, __: types.ElicitRequestParams) -> types.ElicitResult:
        await anyio.sleep_forever()
        raise AssertionError

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        said.append(message or "")

    options = ("--wait-s", "3")
    async with connect("legacy", fake.build(), lab, *options, elicitation_callback=think) as client:
        with anyio.fail_after(60):
            result = await client.call_tool("codex_run", WIDE, progress_callback=progress)
    error = cast("Json", result.structured_content)["error"]
    assert error["kind"] == "not_allowed"
    assert "no answer within 3 s" in error["message"]
    assert any("waiting for your answer" in each for each in said)
    assert not fake.was_started
    audit = (lab.state / "audit.jsonl").read_text()
    assert '"event":"unanswered"' in audit


async def test_a_client_that_answers_by_itself_is_not_asked(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("done"))
    codex = types.Implementation(name="codex-mcp-client", version="0.163.0")
    person = types.Implementation(name="claude-code", version="2.1.330")
    for info, status in ((codex, "failed"), (person, "completed")):
        fake.forget()
        async with connect(
            mode, fake.build(), lab, elicitation_callback=accept, client_info=info
        ) as client:
            result = await call(client, "codex_run", **WIDE)
        assert result["status"] == status
        assert fake.was_started is (status == "completed")


async def test_inside_a_run_nobody_is_asked(mode: str, lab: Lab, fake: FakeCodex) -> None:
    env = {"CODEX_RUN_DEPTH": "1"}
    async with connect(
        mode, fake.build(), lab, "--max-depth", "2", env=env, elicitation_callback=accept
    ) as client:
        result = await call(client, "codex_run", **WIDE)
    assert result["error"]["kind"] == "not_allowed"
    assert not fake.was_started


async def test_an_answer_that_comes_without_its_question_counts_for_nothing(
    lab: Lab, fake: FakeCodex
) -> None:
    """In the 2026 protocol the client sends answers along, and could send them unasked."""
    asked: list[str] = []

    async def decline(_: object, params: types.ElicitRequestParams) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="decline")

    answers = {"allow": types.ElicitResult(action="accept", content={})}
    async with connect("auto", fake.build(), lab, elicitation_callback=decline) as client:
        result = await client.call_tool("codex_run", WIDE, input_responses=cast("Any", answers))
        assert cast("Json", result.structured_content)["error"]["kind"] == "not_allowed"
        for tool, arguments in (("codex_run", WIDE), ("codex_run", {}), ("codex_sessions", {})):
            for state in ("", "forged", "0.0"):
                with pytest.raises(MCPError, match="requestState") as refused:
                    await client.call_tool(
                        tool,
                        arguments,
                        input_responses=cast("Any", answers),
                        request_state=state,
                    )
                assert refused.value.error.code == types.INVALID_PARAMS
    assert len(asked) == 1
    assert not fake.was_started


OTHERS: dict[str, Json] = {
    "the prompt after its first 300 characters": {"prompt": "p" * 400 + " and delete all"},
    "a schema": {"output_schema": {"type": "object", "properties": {}}},
    "the repairs": {"repair_attempts": 3},
    "the model": {"model": "other"},
    "a setting": {"config": {"model_verbosity": "low"}},
    "the search": {"web_search": True},
    "the time": {"timeout_s": 5},
    "the waiting": {"wait_s": 1},
    "a folder": {"add_dirs": ["sub"]},
    "no repository": {"skip_git_repo_check": True},
    "no record": {"ephemeral": True},
    "the servers": {"mcp_servers": "none"},
    "a profile": {"profile": "p"},
}


async def test_an_answer_serves_no_other_call_and_no_second_one(lab: Lab, fake: FakeCodex) -> None:
    """In the 2026 protocol the client repeats the call: with the same seal it could change it."""
    fake.stdout = events(thread_line(), *answer_lines("done"))
    (lab.project / "sub").mkdir()
    (lab.home / "p.config.toml").touch()
    first: Json = {"prompt": "p" * 400, "sandbox": "danger-full-access"}
    accepted = {"allow": types.ElicitResult(action="accept", content={})}
    root = ("--root", str(lab.project))
    async with connect("auto", fake.build(), lab, *root, elicitation_callback=accept) as client:

        async def send(arguments: Json, state: str | None, tool: str = "codex_run") -> Any:
            answers = cast("Any", accepted) if state else None
            return await client.session.call_tool(
                tool,
                arguments,
                input_responses=answers,
                request_state=state,
                allow_input_required=True,
            )

        asked = await send(first, None)
        for name, change in OTHERS.items():
            again = await send(first | change, asked.request_state)
            assert isinstance(again, types.InputRequiredResult), name
            assert again.request_state != asked.request_state
        for state in (f"{asked.request_state}0", asked.request_state[:-1], "é.x"):
            with pytest.raises(MCPError, match="requestState"):
                await send(first, state)
        other = await send(first | {"thread_id": str(uuid.UUID(int=7))}, asked.request_state)
        assert not isinstance(other, types.InputRequiredResult)
        assert cast("Json", other.structured_content)["error"]["kind"] == "invalid_arguments"
        assert not fake.was_started
        # Written otherwise, it is the same call: null is left out, and a text is read as JSON.
        same = {**first, "model": None, "repair_attempts": "1"}
        done = await send(same, asked.request_state)
        assert cast("Json", done.structured_content)["status"] == "completed"
        fake.forget()
        assert isinstance(await send(first, asked.request_state), types.InputRequiredResult)
        assert not fake.was_started


def test_questions_without_an_answer_are_forgotten() -> None:
    seals = Seals()
    first = seals.seal("May it?")
    later = [seals.seal("May it?") for _ in range(OPEN_LIMIT)]
    assert not seals.breaks(first, "May it?")
    assert all(seals.breaks(each, "May it?") for each in later)


async def test_the_folder_is_told_along_with_the_answer(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("done"))
    folder = lab.root / "client's own"
    folder.mkdir()

    async def roots(_: object) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri=cast("Any", folder.as_uri()))])

    async with connect(
        mode, fake.build(), lab, elicitation_callback=accept, list_roots_callback=roots
    ) as client:
        result = await call(client, "codex_run", **WIDE, skip_git_repo_check=True)
    assert result["status"] == "completed"
    assert fake.seen()["cwd"] == str(folder)


@pytest.mark.parametrize("key", ["notify", "sandbox_mode"])
async def test_config_is_put_to_nobody(mode: str, lab: Lab, fake: FakeCodex, key: str) -> None:
    async with connect(mode, fake.build(), lab, elicitation_callback=accept) as client:
        result = await call(client, "codex_run", prompt="x", config={key: "x"})
    assert result["error"]["kind"] == "not_allowed"
    assert not fake.was_started
