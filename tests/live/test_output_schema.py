"""Schemas that people use, through the real Codex, to a model that answers wrongly at first."""

from __future__ import annotations

import json
from pathlib import Path

import anyio

from codex_tools.schemas.rewriter import make_strict
from mcp_server_codex.cli.scripted_model import say
from support.codex_versions import real_codex
from support.fake_codex import FakeCodex
from support.lab import Json, Lab, call, connect
from support.strict_answer import Unsayable, comes_back, encoded, is_valid

DATA = Path(__file__).parent.parent / "data" / "schemas"
USABLE: list[Json] = json.loads((DATA / "usable.json").read_text())
IMPOSSIBLE: list[Json] = json.loads((DATA / "impossible.json").read_text())

AT_ONCE = 4
FIRST = {"auto": 0, "legacy": 1}


def sent_form(case: Json, answer: object) -> str:
    """Return *answer* as the schema that is sent asks for it, or as it is."""
    try:
        return json.dumps(encoded(answer, make_strict(case["schema"])))
    except Unsayable:
        return json.dumps(answer)


async def test_forty_schemas_and_more_give_validated_data_after_a_wrong_answer(
    mode: str, lab: Lab
) -> None:
    # Half of them in either era.
    cases = USABLE[FIRST[mode] :: 2]
    assert len(USABLE) >= 40
    results: dict[str, Json] = {}
    for case in cases:
        good = say(sent_form(case, case["good"][0]))
        bad = json.dumps(case["bad"][0]) if case["bad"] else "All is well."
        lab.script(case["name"], say(bad), good)

    async def ask(case: Json) -> None:
        async with places:
            results[case["name"]] = await call(
                client, "codex_run", prompt=case["name"], output_schema=case["schema"]
            )

    places = anyio.CapacityLimiter(AT_ONCE)
    async with (
        connect(mode, real_codex("0.163.0"), lab) as client,
        anyio.create_task_group() as group,
    ):
        for case in cases:
            group.start_soon(ask, case)
    for case in cases:
        result = results[case["name"]]
        assert result["status"] == "completed", (case["name"], result["error"])
        assert result["attempts"] == 2, case["name"]
        assert is_valid(case["schema"], result["structured_output"]), case["name"]
        assert comes_back(result["structured_output"], case["good"][0]), case["name"]
        sent = [seen for seen in lab.model.requests if seen.prompt == case["name"]]
        assert len(sent) == 2, case["name"]
        for seen in sent:
            told = seen.body["text"]["format"]
            assert told["strict"] is True
            assert told["schema"] == make_strict(case["schema"]).schema, case["name"]


async def test_impossible_ones_are_refused_before_anything_starts(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    assert len(IMPOSSIBLE) >= 10
    async with connect(mode, fake.build(), lab) as client:
        for case in IMPOSSIBLE:
            result = await call(client, "codex_run", prompt="x", output_schema=case["schema"])
            assert result["error"]["kind"] == "invalid_output_schema", case["name"]
            assert f"at {case['path']}:" in result["error"]["message"], case["name"]
    assert not fake.was_started
