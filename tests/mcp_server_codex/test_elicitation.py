"""Questions to the person: which clients are asked, and that no answer can be made up."""

from __future__ import annotations

from typing import Any, cast

import anyio
import mcp_types as types
import pytest

from mcp_server_codex.elicitation import Seals
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Json, Lab, call, connect

WIDE: Json = {"prompt": "x", "sandbox": "danger-full-access"}


def test_a_seal_is_good_for_its_question_and_once() -> None:
    seals = Seals()
    seal, other = seals.seal("May it?"), seals.seal("May it?")
    assert seal != other
    assert not seals.breaks(seal, "May it do more?")
    assert not Seals().breaks(seal, "May it?")
    for forged in (None, "", ".", seal[:-1], seal + "0", seal.upper(), "é." + seal):
        assert not seals.breaks(forged, "May it?")
    assert seals.breaks(seal, "May it?")
    assert not seals.breaks(seal, "May it?")
    assert seals.breaks(other, "May it?")


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
        for state in (None, "forged", "0.0"):
            result = await client.call_tool(
                "codex_run", WIDE, input_responses=cast("Any", answers), request_state=state
            )
            assert cast("Json", result.structured_content)["error"]["kind"] == "not_allowed"
    assert len(asked) == 3
    assert not fake.was_started


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
