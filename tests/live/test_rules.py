"""Rules of Codex's that let commands run outside the sandbox: real Codex."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import number
from support.lab import BY_ANY, Lab, call, connect
from support.stub_server import commit, trust

ALLOW = 'prefix_rule(pattern=["touch"], decision="allow")\n'
FORBID = 'prefix_rule(pattern=["rm"], decision="forbidden")\n'


def plant(lab: Lab, place: str, text: str) -> Path:
    """Write rules; return the file that a sandboxed command cannot make."""
    home = lab.home if place == "CODEX_HOME" else lab.project / ".codex"
    (home / "rules").mkdir(parents=True)
    (home / "rules" / "default.rules").write_text(text)
    if place != "CODEX_HOME":
        commit(lab)
        trust(lab)
    outside = lab.root / "outside"
    lab.script("x", do(Shell(f"touch {outside}")), say("ok"))
    return outside


@pytest.mark.parametrize("place", ["CODEX_HOME", "project"])
async def test_rules_do_not_lift_the_sandbox(
    codex: Path, version: str, mode: str, lab: Lab, place: str
) -> None:
    """Seen before: the file was there on 0.77.0 to 0.171.0, and the result said read-only."""
    outside = plant(lab, place, ALLOW)
    async with connect(mode, codex, lab, *BY_ANY, "--max-sandbox", "read-only") as client:
        first = await call(client, "codex_run", prompt="x")
        if (0, 99, 0) <= number(version) < (0, 147, 0):
            assert first["error"]["kind"] == "not_allowed"
            assert "--rules" in first["error"]["hint"]
        else:
            assert first["status"] == "completed", first
            thread = first["thread_id"]
            second = await call(client, "codex_resume", prompt="x", thread_id=thread)
            assert second["status"] == "completed", second
            assert not any("rules" in w for w in first["warnings"])
    assert not outside.exists()


async def test_rules_that_the_operator_keeps_are_named_in_the_result(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    outside = plant(lab, "CODEX_HOME", ALLOW)
    async with connect(mode, codex, lab, "--rules", "keep") as client:
        result = await call(client, "codex_run", prompt="x")
    assert result["status"] == "completed", result
    assert outside.exists() is (number(version) >= (0, 77, 0))
    (said,) = [w for w in result["warnings"] if "rules were in force" in w]
    assert "outside the sandbox read-only" in said


async def test_a_rule_that_no_longer_forbids_is_named_in_the_result(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    if (0, 99, 0) <= number(version) < (0, 147, 0):
        pytest.skip("this Codex obeys rules whatever it is told, so the run is refused")
    plant(lab, "CODEX_HOME", FORBID)
    async with connect(mode, codex, lab, *BY_ANY) as client:
        result = await call(client, "codex_run", prompt="x")
    assert result["status"] == "completed", result
    (said,) = [w for w in result["warnings"] if "rules were ignored" in w]
    assert "--rules keep" in said
