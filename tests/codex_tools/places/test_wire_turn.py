"""A turn crosses with what the place may know, and nothing that only holds at home."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import orjson
import pytest

from codex_tools.codex.program import NOT_ASKED
from codex_tools.engines.engine import TurnRequest
from codex_tools.engines.environment import EnvironmentRules
from codex_tools.places.frames import ProtocolError
from codex_tools.places.wire_turn import dump_turn, load_turn

ROOT = Path("/home/me/project")

TURN = TurnRequest(NOT_ASKED, "x", ROOT / "sub", "workspace-write", timeout_s=60, stall_s=50)

STAYS = {
    *("program", "limits", "approvals", "answered_by", "ask_caller", "isolation", "place"),
    *("environment", "project_files", "scratch", "held", "lease"),
}
"""What the place decides itself, or what only this server must know."""


def test_all_else_of_a_turn_arrives_as_it_was() -> None:
    turn = replace(TURN, model="m", config=(("a.b", "1"),), keep_rules=True, depth=3)
    sent = load_turn(dump_turn(turn, ROOT))
    assert (sent.cwd, sent.add_dirs, sent.images) == ("sub", (), ())
    for each in fields(TurnRequest):
        if each.name not in {*STAYS, "cwd", "add_dirs", "images"}:
            assert getattr(sent.request, each.name) == getattr(turn, each.name), each.name


@pytest.mark.parametrize("asked", ["ask", "auto"])
def test_no_approval_and_no_question_crosses_not_even_in_a_forged_turn(asked: str) -> None:
    body = dump_turn(replace(TURN, approvals="ask", ask_caller=True), ROOT)
    forged = orjson.loads(body) | {"approvals": asked, "ask_caller": True, "answered_by": "person"}
    for each in (body, orjson.dumps(forged)):
        request = load_turn(each).request
        assert (request.approvals, request.ask_caller, request.asks) == ("never", False, False)


def test_what_this_machine_denies_is_denied_there_and_what_it_passes_is_not() -> None:
    rules = EnvironmentRules(passed=("MINE",), denied=("AWS_*",))
    request = load_turn(dump_turn(replace(TURN, environment=rules), ROOT)).request
    assert request.environment == EnvironmentRules(denied=("AWS_*",))


def test_a_folder_outside_of_the_project_cannot_cross() -> None:
    with pytest.raises(ValueError, match="not inside"):
        dump_turn(replace(TURN, add_dirs=(Path("/etc"),)), ROOT)


@pytest.mark.parametrize(
    "change", [{"sandbox": "none"}, {"depth": "1"}, {"config": [["a"]]}, {"prompt": None}]
)
def test_a_turn_that_is_not_as_it_must_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        load_turn(orjson.dumps(orjson.loads(dump_turn(TURN, ROOT)) | change))
