"""codex_run with review over the real Codex, both protocol eras."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mcp_server_codex.cli.scripted_model import Fail, Shell, do, say
from support.codex_versions import number, real_codex
from support.lab import BY_EXEC, Lab, call, connect, open_lab

HAS_REVIEWER = (0, 98, 0)


def git(lab: Lab, *args: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    done = subprocess.run(
        ["git", *identity, *args], cwd=lab.project, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def lay_project(lab: Lab) -> str:
    """Make two commits and a change that is not committed; return the id of the second commit."""
    git(lab, "checkout", "-q", "-b", "main")
    for text in ("x = 1\n", "x = 2\n"):
        (lab.project / "a.py").write_text(text)
        git(lab, "add", ".")
        git(lab, "commit", "-q", "-m", text)
    (lab.project / "a.py").write_text("x = 3\n")
    return git(lab, "rev-parse", "HEAD")


def codex_answer(lab: Lab) -> str:
    """Return an answer in the form that Codex asks its reviewer for."""
    place = {
        "absolute_file_path": str(lab.project / "a.py"),
        "line_range": {"start": 1, "end": 2},
    }
    finding = {"title": "[P1] Wrong x", "body": "It is off.", "code_location": place}
    return json.dumps(
        {
            "findings": [finding | {"confidence_score": 0.9, "priority": 1}],
            "overall_correctness": "patch is incorrect",
            "overall_explanation": "It breaks x.",
            "overall_confidence_score": 0.8,
        }
    )


def expected(lab: Lab) -> dict[str, Any]:
    finding = {
        "title": "[P1] Wrong x",
        "body": "It is off.",
        "file": str(lab.project / "a.py"),
        "lines": [1, 2],
        "priority": 1,
        "confidence": 0.9,
    }
    return {"summary": "It breaks x.", "findings": [finding]}


def asked(lab: Lab) -> str:
    """Return the text that the model was asked with last."""
    texts = [
        part.get("text", "")
        for item in lab.model.requests[-1].body["input"]
        if item.get("role") == "user"
        for part in item["content"]
    ]
    return texts[-1]


@pytest.mark.usefixtures("each_engine")
async def test_a_review_is_read_only_and_returns_its_findings_and_its_usage(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    second = lay_project(lab)
    has_reviewer = number(version) >= HAS_REVIEWER
    answer = codex_answer(lab) if has_reviewer else json.dumps(expected(lab))
    lab.model.default = (do(Shell("git diff; touch written")), say(answer))
    targets = (
        ({"uncommitted": True}, "uncommitted" if not has_reviewer else "current code changes"),
        ({"base": "main"}, "main"),
        ({"commit": "HEAD"}, second),
    )
    async with connect(mode, codex, lab, "--max-sandbox", "workspace-write") as client:
        for target, words in targets:
            result = await call(client, "codex_run", review=target, sandbox="workspace-write")
            assert result["status"] == "completed", result
            assert result["structured_output"] == expected(lab)
            assert json.loads(result["text"]) == expected(lab)
            assert (result["usage"]["input_tokens"], result["usage"]["total_tokens"]) == (
                2400,
                2468,
            )
            assert result["sandbox"] == "read-only"
            assert any("read-only" in each for each in result["warnings"])
            assert any("no reviewer" in each for each in result["warnings"]) is not has_reviewer
            assert words in asked(lab)
            assert not (lab.project / "written").exists()


async def test_a_custom_review_takes_a_prompt(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    lay_project(lab)
    has_reviewer = number(version) >= HAS_REVIEWER
    answer = codex_answer(lab) if has_reviewer else json.dumps(expected(lab))
    lab.model.default = (say(answer),)
    async with connect(mode, codex, lab) as client:
        result = await call(
            client, "codex_run", review={"custom": True}, prompt="Look at a.py only."
        )
    assert result["structured_output"] == expected(lab), result
    assert "Look at a.py only." in asked(lab)


async def test_a_review_with_isolation_runs_in_the_folder_itself_and_names_its_files(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    lay_project(lab)
    has_reviewer = number(version) >= HAS_REVIEWER
    lab.model.default = (say(codex_answer(lab) if has_reviewer else json.dumps(expected(lab))),)
    async with connect(mode, codex, lab, "--isolation", "copy") as client:
        asked_for = await call(client, "codex_run", review={"uncommitted": True}, isolation="copy")
        by_operator = await call(client, "codex_run", review={"uncommitted": True})
    for result in (asked_for, by_operator):
        assert (result["copy"], result["cwd"]) == (None, str(lab.project)), result
        assert result["structured_output"] == expected(lab)
    warned = ["in the folder itself" in " ".join(r["warnings"]) for r in (asked_for, by_operator)]
    assert warned == [True, False]


async def test_a_reviewer_that_answers_in_prose_is_quoted(mode: str, lab: Lab) -> None:
    lay_project(lab)
    lab.model.default = (say("All is well."),)
    async with connect(mode, real_codex("0.163.0"), lab) as client:
        result = await call(client, "codex_run", review={"uncommitted": True})
    assert (result["final_response"], result["structured_output"]) == ("All is well.", None)


async def test_a_failed_review_says_why_and_what_it_used(mode: str, lab: Lab) -> None:
    lay_project(lab)
    quota = Fail("insufficient_quota", "No money is left.")
    lab.model.default = (do(Shell("git diff")), quota)
    async with connect(mode, real_codex("0.163.0"), lab) as client:
        result = await call(client, "codex_run", review={"uncommitted": True})
    assert (result["status"], result["error"]["kind"]) == ("failed", "usage_limit"), result
    assert result["usage"]["input_tokens"] == 1200
    assert result["structured_output"] is None


@pytest.mark.usefixtures("each_engine")
async def test_a_review_can_be_resumed_and_stays_read_only(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    lay_project(lab)
    answer = codex_answer(lab) if number(version) >= HAS_REVIEWER else json.dumps(expected(lab))
    lab.model.default = (say(answer),)
    async with connect(mode, codex, lab, "--default-sandbox", "workspace-write") as client:
        first = await call(client, "codex_run", review={"uncommitted": True})
        lab.model.default = (do(Shell("touch written")), say("done"))
        second = await call(client, "codex_resume", thread_id=first["thread_id"], prompt="go on")
    assert (second["status"], second["sandbox"]) == ("completed", "read-only"), second
    assert second["model"] == first["model"]
    assert not (lab.project / "written").exists()


async def test_a_model_that_the_caller_names_reviews_in_spite_of_the_configuration(
    mode: str,
) -> None:
    with open_lab("0.163.0", config='review_model = "gpt-5.4"\n') as lab:
        lay_project(lab)
        async with connect(mode, real_codex("0.163.0"), lab) as client:
            result = await call(client, "codex_run", review={"uncommitted": True}, model="gpt-5.5")
        assert lab.model.requests[-1].body["model"] == result["model"] == "gpt-5.5"


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"review": {"uncommitted": True}, "prompt": "x"}, "prompt"),
    ({"review": {"custom": True}}, "prompt: field required"),
    ({}, "prompt: field required"),
    ({"review": {}}, "prompt: field required"),
    ({"review": {"uncommitted": True, "base": "main"}}, "exactly one"),
    ({"review": {"unknown": True}}, "exactly one"),
    ({"review": {"uncommitted": False}}, "prompt: field required"),
    ({"review": {"uncommitted": "yes"}}, "uncommitted must be true"),
    ({"review": {"base": "--output=x"}}, "name of a git branch"),
    ({"review": {"base": "a b"}}, "name of a git branch"),
    ({"review": {"base": "$(touch x)"}}, "name of a git branch"),
    ({"review": {"commit": "-x"}}, "name of a git commit"),
    ({"review": {"commit": 5}}, "name of a git commit"),
    ({"review": {"commit": "HEAD..main"}}, "name of a git commit"),
    ({"review": {"base": "nosuch"}}, "knows no branch"),
    ({"review": {"commit": "deadbeef"}}, "knows no commit"),
    ({"review": {"uncommitted": True}, "output_schema": {"type": "object"}}, "output_schema"),
    ({"review": {"uncommitted": True}, "images": ["a.png"]}, "images"),
    ({"review": {"uncommitted": True}, "add_dirs": ["/tmp"]}, "add_dirs"),
    ({"review": {"uncommitted": True}, "web_search": True}, "web_search"),
    ({"review": {"uncommitted": True}, "ephemeral": True}, "ephemeral"),
)


async def test_wrong_targets_and_combinations_are_refused_by_name(mode: str, lab: Lab) -> None:
    lay_project(lab)
    async with connect(mode, real_codex("0.163.0"), lab) as client:
        for arguments, words in WRONG:
            result = await call(client, "codex_run", **arguments)
            assert result["error"]["kind"] == "invalid_arguments", (arguments, result)
            assert words in result["error"]["message"]
            assert words in result["text"]
        outside = lab.root / "outside"
        outside.mkdir()
        for target in ({"uncommitted": True}, {"base": "main"}, {"commit": "HEAD"}):
            arguments = {"cwd": str(outside), "skip_git_repo_check": True}
            result = await call(client, "codex_run", review=target, **arguments)
            assert "not in a git repository" in result["error"]["message"], result
    assert not lab.model.requests
    assert not lab.rollouts()


@pytest.mark.parametrize("reviewer", ["0.98.0", "0.147.0", "0.171.0"])
async def test_other_versions_record_a_review_in_a_form_that_is_known(reviewer: str) -> None:
    with open_lab(reviewer) as lab:
        lay_project(lab)
        lab.model.default = (say(codex_answer(lab)),)
        async with connect("auto", real_codex(reviewer), lab, *BY_EXEC) as client:
            result = await call(client, "codex_run", review={"base": "main"})
        assert result["structured_output"] == expected(lab), result
        assert result["usage"]["input_tokens"] == 1200
        assert result["sandbox"] == "read-only"


async def test_a_reviewer_that_works_with_a_wider_sandbox_is_stopped(mode: str, lab: Lab) -> None:
    lay_project(lab)
    wrapper = lab.root / "codex"
    wrapper.write_text(
        "#!/bin/bash\n"
        'args=("${@//read-only/workspace-write}")\n'
        f'exec {real_codex("0.163.0")} "${{args[@]//:workspace-write/:workspace}}"\n'
    )
    wrapper.chmod(0o755)
    lab.model.default = (do(Shell("sleep 30; touch written")), say(codex_answer(lab)))
    async with connect(mode, wrapper, lab, *BY_EXEC) as client:
        result = await call(client, "codex_run", review={"uncommitted": True})
    assert result["status"] == "failed", result
    assert "workspace-write" in result["error"]["message"]
    assert not (lab.project / "written").exists()
