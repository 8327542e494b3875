"""What a run changed in the person's folder, and which other runs it met there: from a call on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from mcp import Client

from support.fake_codex import FakeCodex
from support.isolated import COPY, acting_codex, apply
from support.lab import Json, Lab, call, connect, until
from support.work_trees import run_git, state_of

WRITES: Json = {"sandbox": "workspace-write"}


@pytest.fixture
def acting(lab: Lab, fake: FakeCodex) -> Path:
    return acting_codex(lab, fake)


def wait_for(name: str) -> str:
    """Return a prompt that waits until a file exists, next to the project."""
    return f"while not os.path.exists('../{name}'): time.sleep(0.02)\n"


async def result_of(client: Client, run_id: str) -> Json:
    waited: Any = await client.call_tool("codex_wait", {"run_ids": [run_id], "wait_s": 50})
    (found,) = waited.structured_content["runs"]
    return cast("Json", found)


def warnings_about(result: Json, run_id: str) -> list[str]:
    return [each for each in result["warnings"] if each.startswith(run_id)]


async def test_a_run_without_isolation_has_the_lines_that_it_changed(
    mode: str, lab: Lab, acting: Path
) -> None:
    prompt = (
        "open('common.txt', 'a').write('line 80\\n')\n"
        "open('mine.txt', 'w').write('not committed, but changed\\n')\n"
        "open('.envrc', 'w').write('x')\n"
        "open('secret.log', 'w').write('ignored as well')\n"
    )
    git = state_of(lab.project / ".git")
    async with connect(mode, acting, lab) as client:
        result = await call(client, "codex_run", prompt=prompt, **WRITES)
        read: Any = await client.read_resource(result["changes"]["patch"])
        refused = await apply(client, result["run_id"], "discard")
    assert state_of(lab.project / ".git") == git
    changes = result["changes"]
    assert [(each["path"], each["insertions"], each["deletions"]) for each in changes["files"]] == [
        (".envrc", 1, 0),
        ("common.txt", 1, 0),
        ("mine.txt", 1, 1),
    ]
    assert "direnv" in changes["files"][0]["warning"]
    assert (changes["insertions"], changes["deletions"]) == (3, 1)
    assert "-not committed\n+not committed, but changed\n" in changes["text"]
    assert (changes["applied"], changes["left_out"], result["copy"]) == (True, [], None)
    assert "codex_apply" not in result["next"]
    patch = lab.root / "whole.patch"
    patch.write_text(read.contents[0].text)
    run_git(lab.project, "apply", "--reverse", "--binary", str(patch))
    assert (lab.project / "mine.txt").read_text() == "not committed\n"
    assert not (lab.project / ".envrc").exists()
    assert refused["error"]["kind"] == "invalid_arguments"
    assert "was not isolated" in refused["error"]["message"]


async def test_a_failed_and_a_stopped_run_have_their_lines_too(
    mode: str, lab: Lab, acting: Path
) -> None:
    made = "open('mine.txt', 'a').write('more\\n')\n"
    async with connect(mode, acting, lab) as client:
        failed = await call(client, "codex_run", prompt=f"{made}sys.exit(3)", **WRITES)
        prompt = f"{made}open('../made', 'w')\ntime.sleep(10 ** 6)"
        started = await call(client, "codex_run", prompt=prompt, wait_s=0, **WRITES)
        await until((lab.root / "made").exists)
        stopped: Any = await client.call_tool("codex_stop", {"run_id": started["run_id"]})
    stopped = stopped.structured_content["run"]
    assert (failed["status"], stopped["status"]) == ("failed", "cancelled")
    for result in (failed, stopped):
        (file,) = result["changes"]["files"]
        assert (file["path"], file["insertions"], file["deletions"]) == ("mine.txt", 1, 0)
        assert "+more\n" in result["changes"]["text"]


async def test_runs_at_once_in_the_same_folder_name_each_other(
    mode: str, lab: Lab, acting: Path
) -> None:
    append = "open('common.txt', 'a').write('more\\n')\n"
    async with connect(mode, acting, lab, "--max-runs", "4") as client:
        early = await call(client, "codex_run", prompt=append, **WRITES)
        one = await call(client, "codex_run", prompt=wait_for("go") + append, wait_s=0, **WRITES)
        # Another server with the same state folder.
        async with connect(mode, acting, lab) as other:
            prompt = f"open('../go', 'w')\n{append}"
            two = await call(other, "codex_run", prompt=prompt, **WRITES)
            first = await result_of(client, one["run_id"])
            second = await result_of(other, two["run_id"])
    for result, other_id in ((first, two["run_id"]), (second, one["run_id"])):
        (warning,) = warnings_about(result, other_id)
        assert "common.txt, in the same folder at the same time" in warning
        # That run had ended before: its work is what the others began with.
        assert not warnings_about(result, early["run_id"])


async def test_an_isolated_run_and_one_in_the_project_name_each_other(
    mode: str, lab: Lab, acting: Path
) -> None:
    append = "open('common.txt', 'a').write('more\\n')\n"
    async with connect(mode, acting, lab) as client:
        copied = await call(client, "codex_run", prompt=append, **COPY)
        plain = await call(client, "codex_run", prompt=append, **WRITES)
        later = await call(client, "codex_run", prompt=append, **COPY)
        copied = await result_of(client, copied["run_id"])
    (warning,) = warnings_about(copied, plain["run_id"])
    assert "common.txt, in the project itself" in warning
    (warning,) = warnings_about(plain, copied["run_id"])
    assert "common.txt, in its copy" in warning
    assert not warnings_about(later, plain["run_id"])


async def test_a_state_folder_that_cannot_be_used_leaves_the_names(
    mode: str, lab: Lab, acting: Path
) -> None:
    lab.state.write_text("a file")
    prompt = "open('mine.txt', 'a').write('more\\n')\n"
    async with connect(mode, acting, lab) as client:
        result = await call(client, "codex_run", prompt=prompt, **WRITES)
    changes = result["changes"]
    assert [(each["path"], each["insertions"]) for each in changes["files"]] == [("mine.txt", None)]
    assert (changes["text"], changes["patch"], changes["insertions"]) == (None, None, None)
    (left,) = changes["left_out"]
    assert left["reason"].startswith("only names are known: the state folder")
