"""dry_run over the real Codex, both protocol eras."""

from __future__ import annotations

from pathlib import Path

from codex_tools.engines.app_server_preparation import OLDEST
from support.codex_versions import number
from support.lab import ENGINE, Lab, call, connect


async def test_a_dry_run_says_what_would_run_and_starts_nothing(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    secret = {"SECRET_VALUE": "must-not-be-shown"}
    async with connect(mode, codex, lab, env=secret) as client:
        plan = await call(
            client,
            "codex_run",
            prompt="x",
            sandbox="workspace-write",
            model="some-model",
            timeout_s=77,
            output_schema=schema,
            dry_run=True,
        )
        assert (plan["status"], plan["run_id"], plan["thread_id"]) == ("planned", None, None), plan
        assert (plan["sandbox"], plan["model"]) == ("workspace-write", "some-model")
        argv = plan["planned"]["argv"]
        by_exec = argv[1] == "exec"
        assert by_exec is (ENGINE == "exec" or number(version) < OLDEST)
        if not by_exec:  # The settings of the turn go into its input.
            assert argv[1:] == ["app-server"]
        else:
            assert argv[1:5] == ["exec", "--json", "-s", "workspace-write"]
            assert {"-m", "some-model", "--output-schema"} <= {*argv}
        assert plan["planned"]["timeout_s"] == 77
        assert {"PATH", "CODEX_HOME"} <= {*plan["planned"]["environment"]}
        assert "must-not-be-shown" not in str(plan)
        assert "nothing was started" in plan["text"]
        assert not lab.rollouts()
        assert not lab.model.requests
        assert not [*(lab.state / "runs").iterdir(), *(lab.state / "scratch").iterdir()]

        first = await call(client, "codex_run", prompt="x")
        (rollout,) = lab.rollouts()
        before = rollout.read_bytes()
        again = await call(
            client, "codex_resume", thread_id=first["thread_id"], prompt="y", dry_run=True
        )
        if by_exec:
            assert again["planned"]["argv"][-3:] == ["resume", first["thread_id"], "-"]
        assert again["thread_id"] == first["thread_id"]
        assert lab.rollouts() == [rollout]
        assert rollout.read_bytes() == before

        wide = await call(
            client, "codex_run", prompt="x", sandbox="danger-full-access", dry_run=True
        )
        assert wide["error"]["kind"] == "not_allowed", wide
        assert len(lab.model.requests) == 1
