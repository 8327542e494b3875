"""A project to copy, a fake Codex that does what its prompt says, and calls of codex_apply."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from mcp import Client

from support.fake_codex import FakeCodex, answer_lines, events
from support.lab import Json, Lab
from support.work_trees import run_git

ACTS = """
import uuid
print(json.dumps({"type": "thread.started", "thread_id": str(uuid.uuid4())}), flush=True)
exec(seen["stdin"])
"""
"""The fake Codex takes its prompt for Python and runs it in its folder."""

COPY: Json = {"sandbox": "workspace-write", "isolation": "copy"}


def acting_codex(lab: Lab, fake: FakeCodex) -> Path:
    """Lay a project with a commit; return a fake Codex that does what its prompt says."""
    lines = "".join(f"line {number}\n" for number in range(80))
    (lab.project / "common.txt").write_text(lines)
    (lab.project / ".gitignore").write_text("*.log\n")
    (lab.project / "secret.log").write_text("ignored\n")
    run_git(lab.project, "config", "user.name", "Ann")
    run_git(lab.project, "config", "user.email", "ann@example.com")
    run_git(lab.project, "add", ".")
    run_git(lab.project, "commit", "-qm", "first")
    (lab.project / "mine.txt").write_text("not committed\n")
    fake.body = ACTS
    fake.stdout = events(*answer_lines("done"))
    return fake.build()


async def apply(client: Client, run_id: str, action: str, **more: object) -> Json:
    result = await client.call_tool("codex_apply", {"run_id": run_id, "action": action, **more})
    data = cast("Json", result.structured_content)
    assert result.is_error is (data["error"] is not None), data
    return data | {"text": cast("Any", result.content[0]).text}
