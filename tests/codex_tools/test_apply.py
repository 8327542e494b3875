"""codex_apply, the whole way from a call: its limits, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import mcp_types as types
import pytest

from support.fake_codex import FakeCodex
from support.isolated import COPY, acting_codex, apply
from support.lab import Json, Lab, call, connect
from support.work_trees import run_git, state_of

MADE = "open('made.txt', 'w').write('x'); open('common.txt', 'a').write('end\\n')"


@pytest.fixture
def acting(lab: Lab, fake: FakeCodex) -> Path:
    return acting_codex(lab, fake)


async def test_it_counts_as_writing_in_the_project(mode: str, lab: Lab, acting: Path) -> None:
    """Whoever may not let a run write there may not apply what one changed in a copy."""
    inner = lab.project / "inner"
    inner.mkdir()
    (inner / "a.txt").write_text("one")
    async with connect(mode, acting, lab) as client:
        made = await call(client, "codex_run", prompt=MADE, **COPY)
    before = state_of(lab.project)
    async with connect(mode, acting, lab, "--max-sandbox", "read-only") as client:
        for action, more in (("apply", {}), ("branch", {"branch": "b"})):
            refused = await apply(client, made["run_id"], action, **more)
            assert refused["error"]["kind"] == "not_allowed"
            assert "--max-sandbox" in refused["error"]["hint"]
        checked = await apply(client, made["run_id"], "check")
        assert checked["error"] is None
    assert state_of(lab.project) == before
    async with connect(mode, acting, lab, "--root", str(inner), cwd=inner) as client:
        unknown = await apply(client, made["run_id"], "check")
        assert unknown["error"]["kind"] == "unknown_run"
        # The copy is that of the whole repository, but only what is in the roots is applied.
        both = "open('../made.txt', 'w'); open('a.txt', 'w').write('two')"
        wide = await call(client, "codex_run", prompt=both, **COPY)
        refused = await apply(client, wide["run_id"], "apply")
        assert refused["error"]["kind"] == "not_allowed"
        assert "made.txt" in refused["error"]["message"]
        assert state_of(lab.project) == before
        some = await apply(client, wide["run_id"], "apply", paths=["inner/a.txt"])
        assert some["error"] is None, some
    assert (inner / "a.txt").read_text() == "two"
    assert not (lab.project / "made.txt").exists()


async def test_a_person_may_allow_it_once(mode: str, lab: Lab, acting: Path) -> None:
    asked: list[str] = []

    async def accept(_: object, params: types.ElicitRequestParams) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept" if len(asked) == 1 else "decline", content={})

    async with connect(mode, acting, lab) as client:
        made = await call(client, "codex_run", prompt=MADE, **COPY)
    options = ("--max-sandbox", "read-only")
    async with connect(mode, acting, lab, *options, elicitation_callback=accept) as client:
        some = await apply(client, made["run_id"], "apply", paths=["made.txt"])
        rest = await apply(client, made["run_id"], "apply")
    assert some["applied"]
    assert any("allowed this once" in each for each in some["warnings"])
    assert f"Folder: {lab.project}" in asked[0]
    assert made["run_id"] in asked[0]
    assert rest["error"]["kind"] == "not_allowed"
    assert len(asked) == 2


async def test_the_model_of_a_run_cannot_leave_its_sandbox_by_it(
    mode: str, lab: Lab, acting: Path
) -> None:
    async with connect(mode, acting, lab) as client:
        made = await call(client, "codex_run", prompt=MADE, **COPY)
    async with connect(mode, acting, lab, env={"CODEX_RUN_DEPTH": "1"}) as client:
        result = await apply(client, made["run_id"], "apply")
    assert result["error"]["kind"] == "too_deep"
    assert not (lab.project / "made.txt").exists()


async def test_wrong_calls_are_refused_with_the_reason(mode: str, lab: Lab, acting: Path) -> None:
    async with connect(mode, acting, lab) as client:
        made = await call(client, "codex_run", prompt=MADE, **COPY)
        run = await call(client, "codex_run", prompt="time.sleep(10 ** 6)", wait_s=0, **COPY)
        cases: list[tuple[str, str, Json, str, str]] = [
            (made["run_id"], "merge", {}, "invalid_arguments", "action"),
            (made["run_id"], "branch", {}, "invalid_arguments", "branch"),
            (made["run_id"], "apply", {"branch": "b"}, "invalid_arguments", "branch"),
            (made["run_id"], "discard", {"paths": ["a"]}, "invalid_arguments", "paths"),
            (made["run_id"], "apply", {"paths": ["other.txt"]}, "invalid_arguments", "other.txt"),
            (made["run_id"], "apply", {"paths": ["../x"]}, "invalid_arguments", "../x"),
            (made["run_id"], "branch", {"branch": "a..b"}, "apply_conflict", "a..b"),
            ("run_0000000000000000", "apply", {}, "unknown_run", "run_0000000000000000"),
            ("../../x", "apply", {}, "unknown_run", "../../x"),
            (run["run_id"], "apply", {}, "invalid_arguments", "codex_wait"),
        ]
        before = state_of(lab.project)
        for run_id, action, more, kind, word in cases:
            result = await apply(client, run_id, action, **more)
            assert result["error"] is not None, (action, more)
            assert result["error"]["kind"] == kind, (action, more, result)
            assert word in result["text"], (word, result["text"])
            assert not result["applied"]
        await client.call_tool("codex_stop", {"run_id": run["run_id"]})
    assert state_of(lab.project) == before


async def test_each_action_says_what_comes_next(mode: str, lab: Lab, acting: Path) -> None:
    async with connect(mode, acting, lab) as client:
        made = await call(client, "codex_run", prompt=MADE, **COPY)
        run_id = made["run_id"]
        checked = await apply(client, run_id, "check")
        branch = await apply(client, run_id, "branch", branch="codex/made")
        some = await apply(client, run_id, "apply", paths=[f"{made['copy']}/made.txt"])
        part: Json = (await apply(client, run_id, "check")) | {}
        rest = await apply(client, run_id, "apply")
        twice = await apply(client, run_id, "apply")
        dropped = await apply(client, run_id, "discard")
        gone = await apply(client, run_id, "apply")
    audit = [json.loads(line) for line in (lab.state / "audit.jsonl").read_text().splitlines()]
    done = [each["action"] for each in audit if each["event"] == "applied"]
    assert done == ["branch", "apply", "apply", "apply", "discard"]
    assert '"apply" makes these changes' in checked["next"]
    assert checked["text"].startswith(f"check {run_id}: not applied\n")
    assert branch["branch"] == "codex/made"
    log = run_git(lab.project, "log", "-1", "--format=%an %H", "codex/made")
    assert log == f"Ann {branch['commit']}\n"
    assert [file["path"] for file in some["files"]] == ["made.txt"]
    assert some["applied"]
    assert "others of the run are not" in some["next"]
    assert {file["path"]: file["action"] for file in part["files"]} == {
        "common.txt": "write",
        "made.txt": "same",
    }
    assert rest["applied"]
    assert '"discard"' in rest["next"]
    assert twice["applied"]
    assert "applied before" in twice["next"]
    assert {file["action"] for file in twice["files"]} == {"same"}
    assert dropped["error"] is None
    assert gone["error"]["kind"] == "invalid_arguments"
    assert "discarded" in gone["error"]["message"]
    assert run_git(lab.project, "diff", "--cached", "--name-only") == ""
