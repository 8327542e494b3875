"""Isolated runs, the whole way from a call: what they change, stop, leave behind, and meet."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from mcp.shared.exceptions import MCPError

from codex_tools.runs import kept_run
from codex_tools.runs.isolation import KEEP_COPIES_S, remove_old_copies
from support.fake_codex import FakeCodex
from support.isolated import COPY, acting_codex, apply
from support.lab import Json, Lab, call, connect, marked, reads_below, until
from support.work_trees import files_in, run_git, state_of


@pytest.fixture
def acting(lab: Lab, fake: FakeCodex) -> Path:
    return acting_codex(lab, fake)


def server_of(tag: str) -> int:
    """Return the id of the server among the processes that hold *tag*."""
    (found,) = (pid for pid in marked(tag) if b"--state-dir" in argv_of(pid))
    return found


def argv_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def change(line: int, name: str) -> str:
    """Return a prompt that changes one line of the common file, and adds a file of its own."""
    return (
        f"text = open('common.txt').read().replace('line {line}\\n', 'line {line} of {name}\\n')\n"
        "open('common.txt', 'w').write(text)\n"
        f"open('{name}.txt', 'w').write(' '.join(sorted(os.listdir('.'))))\n"
    )


async def test_eight_runs_at_once_do_not_see_each_other_and_are_applied_in_turn(
    mode: str, lab: Lab, acting: Path
) -> None:
    before = state_of(lab.project)
    lines = [5, 15, 25, 35, 45, 55, 65, 65]  # The last two change the same line.
    names = [f"run{number}" for number in range(8)]
    async with connect(mode, acting, lab, "--max-runs", "8") as client:
        started = [
            await call(client, "codex_run", prompt=change(line, name), wait_s=0, **COPY)
            for line, name in zip(lines, names, strict=True)
        ]
        ids = [each["run_id"] for each in started]
        waited: Any = await client.call_tool("codex_wait", {"run_ids": ids, "wait_s": 60})
        assert state_of(lab.project) == before
        results = [
            (await client.call_tool("codex_wait", {"run_ids": [each]})).structured_content
            for each in ids
        ]
        applied = [await apply(client, each, "apply") for each in ids]
        rest = await apply(client, ids[7], "apply", paths=["run7.txt"])
    assert {each["status"] for each in waited.structured_content["runs"]} == {"completed"}
    for number, result in enumerate(results):
        (run,) = cast("Json", result)["runs"]
        changed = [each["path"] for each in run["changes"]["files"]]
        assert changed == ["common.txt", f"{names[number]}.txt"]
        # Each names others that changed the same file, and no more than a few.
        told = [each for each in run["warnings"] if "changed the same files: common.txt" in each]
        assert len(told) == 5
        assert not any(run["run_id"] in each for each in told)
        assert run["cwd"] == str(lab.project)
    assert len({cast("Json", each)["runs"][0]["copy"] for each in results}) == 8
    assert [each["error"] for each in applied[:7]] == [None] * 7
    assert {file["action"] for each in applied[1:7] for file in each["files"]} == {"merge", "write"}
    # Nothing of the last one was applied, and its text says why.
    assert applied[7]["error"]["kind"] == "apply_conflict"
    assert "conflict common.txt: both changed the same lines" in applied[7]["text"]
    assert not applied[7]["applied"]
    assert [each["action"] for each in applied[7]["files"]] == ["conflict", "write"]
    text = (lab.project / "common.txt").read_text()
    assert [
        f"line {line} of {name}\n" in text for line, name in zip(lines, names, strict=True)
    ] == [
        *[True] * 7,
        False,
    ]
    for name in names[:7]:
        files = (lab.project / f"{name}.txt").read_text().split()
        assert files == sorted([".git", ".gitignore", "common.txt", "mine.txt", f"{name}.txt"])
    assert rest["error"] is None
    assert (lab.project / "run7.txt").exists()


async def test_a_killed_server_s_run_has_its_changes_in_the_next_server(
    mode: str, lab: Lab, acting: Path
) -> None:
    before, tag = state_of(lab.project), str(uuid.uuid4())
    prompt = "open('made.txt', 'w').write('x')\ntime.sleep(10 ** 6)"
    run: Json = {}
    # Its end is the client's as well; what the SDK makes of that is no business of this test.
    with suppress(MCPError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with connect(mode, acting, lab, env={"FAR_END": tag}) as client:
            run |= await call(client, "codex_run", prompt=prompt, wait_s=0, **COPY)
            await until(lambda: any(lab.state.glob("trees/*/copies/*/project/made.txt")))
            server = server_of(tag)
            # The copy stays locked as long as a process of the run is alive.
            others = [pid for pid in marked(tag) if pid != server]
            assert any(reads_below(pid, lab.state / "trees") for pid in others)
            os.kill(server, signal.SIGKILL)
            await until(lambda: not marked(tag))
    assert state_of(lab.project) == before
    async with connect(mode, acting, lab) as client:
        waited: Any = await client.call_tool("codex_wait", {"run_ids": [run["run_id"]]})
        (found,) = waited.structured_content["runs"]
        assert found["error"]["kind"] == "interrupted"
        assert [each["path"] for each in found["changes"]["files"]] == ["made.txt"]
        assert [each["path"] for each in found["files_changed"]] == ["made.txt"]
        assert "codex_apply" in found["next"]
        assert state_of(lab.project) == before
        applied = await apply(client, run["run_id"], "apply")
    assert applied["applied"]
    assert (lab.project / "made.txt").read_text() == "x"


async def test_a_run_that_fails_or_is_stopped_has_its_changes_too(
    mode: str, lab: Lab, acting: Path
) -> None:
    made = "open('made.txt', 'w').write('x')\n"
    async with connect(mode, acting, lab) as client:
        failed = await call(client, "codex_run", prompt=f"{made}os._exit(3)", **COPY)
        late = await call(
            client, "codex_run", prompt=f"{made}time.sleep(10 ** 6)", timeout_s=2, **COPY
        )
        run = await call(client, "codex_run", prompt=f"{made}time.sleep(10 ** 6)", wait_s=0, **COPY)
        await until(lambda: len([*lab.state.glob("trees/*/copies/*/project/made.txt")]) == 3)
        ended: Any = await client.call_tool("codex_stop", {"run_id": run["run_id"]})
    stopped = ended.structured_content["run"]
    assert (failed["status"], late["status"], stopped["status"]) == (
        *("failed", "timed_out", "cancelled"),
    )
    for each in (failed, late, stopped):
        assert [file["path"] for file in each["changes"]["files"]] == ["made.txt"], each
        assert "codex_apply" in each["next"]
        assert "codex_apply" in each["text"] if "text" in each else True
    assert not (lab.project / "made.txt").exists()


async def test_what_can_not_be_isolated_is_refused_or_told(
    mode: str, lab: Lab, acting: Path
) -> None:
    outside = lab.root / "outside"
    outside.mkdir()
    ignored = lab.project / "build.log"
    ignored.mkdir()
    async with connect(mode, acting, lab) as client:
        whole = await call(client, "codex_run", prompt="1", isolation="copy", cwd=str(lab.root))
        inside = await call(client, "codex_run", prompt="1", isolation="copy", cwd=str(lab.state))
        lost = await call(client, "codex_run", prompt="1", isolation="copy", cwd=str(ignored))
        mixed = await call(
            client,
            "codex_run",
            prompt=f"'{lab.project}/common.txt'",
            add_dirs=[str(outside)],
            **COPY,
        )
        near = await call(client, "codex_run", prompt=f"'{lab.project}2/x'", **COPY)
        plan = await call(client, "codex_run", prompt="1", dry_run=True, **COPY)
    assert whole["error"]["kind"] == inside["error"]["kind"] == "invalid_arguments"
    assert "contains the home folder" in whole["error"]["message"]
    assert lost["error"]["kind"] == "not_started"
    assert "git ignores it" in lost["error"]["message"]
    told = "\n".join(mixed["warnings"])
    assert f"{outside} is outside the project" in told
    assert f"the prompt names {lab.project}" in told
    assert not any("the prompt names" in each for each in near["warnings"])
    assert plan["status"] == "planned"
    assert not [*lab.state.glob("trees/*/snapshots")] or plan["copy"] is None


async def test_without_git_nothing_is_started(mode: str, lab: Lab, acting: Path) -> None:
    programs = lab.root / "programs"
    programs.mkdir()
    async with connect(mode, acting, lab, env={"PATH": str(programs)}) as client:
        result = await call(client, "codex_run", prompt="1", **COPY)
    assert result["error"]["kind"] == "not_started"
    assert "git" in result["error"]["message"]
    assert "isolation none" in result["error"]["hint"]
    assert result["changes"] is None
    assert not (lab.root / "fake" / "seen.json").exists()


async def test_a_state_folder_that_is_not_kept_holds_no_copies(
    mode: str, lab: Lab, acting: Path
) -> None:
    lab.state.write_text("a file")
    async with connect(mode, acting, lab) as client:
        result = await call(client, "codex_run", prompt="1", **COPY)
    assert result["error"]["kind"] == "not_started"
    assert "state folder" in result["error"]["message"]


async def test_without_isolation_changes_are_named_and_in_place(
    mode: str, lab: Lab, acting: Path
) -> None:
    plain = lab.root / "plain"
    plain.mkdir()
    writes: Json = {"prompt": "open('.envrc', 'w').write('x')", "sandbox": "workspace-write"}
    async with connect(mode, acting, lab) as client:
        seen = await call(client, "codex_run", **writes)
        unseen = await call(client, "codex_run", **writes, cwd=str(plain))
        read = await call(client, "codex_run", prompt="1")
        none = await apply(client, seen["run_id"], "apply")
    assert seen["copy"] is None
    (file,) = seen["changes"].pop("files")
    assert (file["path"], file["kind"], file["insertions"]) == (".envrc", "add", 1)
    assert "direnv" in file["warning"]
    assert "+x" in seen["changes"].pop("text")
    assert seen["changes"] == {
        **{"insertions": 1, "deletions": 0, "patch": f"codex://runs/{seen['run_id']}/patch"},
        **{"left_out": [], "applied": True},
    }
    assert unseen["changes"] is None
    assert any(each.startswith("changes is null") for each in unseen["warnings"])
    assert read["changes"]["files"] == []
    assert none["error"]["kind"] == "invalid_arguments"
    assert "was not isolated" in none["error"]["message"]


async def test_files_that_act_by_themselves_are_flagged(mode: str, lab: Lab, acting: Path) -> None:
    prompt = "os.mkdir('.vscode'); open('.vscode/tasks.json', 'w').write('{}')"
    async with connect(mode, acting, lab) as client:
        result = await call(client, "codex_run", prompt=prompt, **COPY)
        checked = await apply(client, result["run_id"], "check")
    assert "editor" in result["changes"]["files"][0]["warning"]
    assert any("act by themselves: .vscode/tasks.json" in each for each in result["warnings"])
    assert "editor" in checked["files"][0]["warning"]
    assert "editor" in checked["text"]


async def test_the_whole_diff_is_a_resource(mode: str, lab: Lab, acting: Path) -> None:
    prompt = "open('big.txt', 'w').write('a line of text\\n' * 8000)"
    latin = "open('latin.txt', 'wb').write('caf\\u00e9\\n'.encode('latin-1'))"
    async with connect(mode, acting, lab) as client:
        result = await call(client, "codex_run", prompt=prompt, **COPY)
        odd = await call(client, "codex_run", prompt=latin, **COPY)
        assert len(result["changes"]["text"]) < 11_000
        assert result["changes"]["patch"] in result["changes"]["text"]
        uri: str | None = result["changes"]["patch"]
        pages: list[str] = []
        while uri is not None:
            read = await client.read_resource(uri)
            pages.append(cast("Any", read.contents[0]).text)
            uri = (read.meta or {}).get("next")
        blob = (await client.read_resource(odd["changes"]["patch"])).contents[0]
    assert len(pages) > 2
    patch = lab.root / "whole.patch"
    patch.write_text("".join(pages))
    run_git(lab.project, "apply", "--binary", str(patch))
    assert (lab.project / "big.txt").read_text() == "a line of text\n" * 8000
    assert "blob" in blob.model_dump(exclude_none=True)


async def test_old_copies_are_removed_and_the_results_stay(
    mode: str, lab: Lab, acting: Path
) -> None:
    async with connect(mode, acting, lab) as client:
        result = await call(client, "codex_run", prompt="open('made', 'w')", **COPY)
        remove_old_copies(lab.state)
        copy = Path(result["copy"])
        assert files_in(copy)
        long_ago = time.time() - KEEP_COPIES_S - 60
        for path in lab.state.glob("trees/*/**/*"):
            os.utime(path, (long_ago, long_ago), follow_symlinks=False)
        remove_old_copies(lab.state)
        assert not files_in(copy.parent.parent)
        assert kept_run.find(lab.state, result["run_id"]) is None
        waited: Any = await client.call_tool("codex_wait", {"run_ids": [result["run_id"]]})
        gone = await apply(client, result["run_id"], "apply")
    (found,) = waited.structured_content["runs"]
    assert found["changes"]["files"] == result["changes"]["files"]
    assert gone["error"]["kind"] == "invalid_arguments"
    assert "more than a week ago" in gone["error"]["message"]


async def test_an_operator_may_isolate_all_runs_and_a_caller_still_chooses(
    mode: str, lab: Lab, acting: Path
) -> None:
    prompt = "open('made.txt', 'w')"
    async with connect(mode, acting, lab, "--isolation", "copy") as client:
        copied = await call(client, "codex_run", prompt=prompt, sandbox="workspace-write")
        assert not (lab.project / "made.txt").exists()
        placed = await call(
            client, "codex_run", prompt=prompt, sandbox="workspace-write", isolation="none"
        )
    assert copied["copy"] is not None
    assert placed["copy"] is None
    assert (lab.project / "made.txt").exists()


async def test_a_project_without_git_is_copied_too(mode: str, lab: Lab, acting: Path) -> None:
    plain = lab.root / "plain"
    plain.mkdir()
    (plain / "a.txt").write_text("one\n")
    async with connect(mode, acting, lab, cwd=plain) as client:
        result = await call(
            client,
            "codex_run",
            prompt="open('a.txt', 'a').write('two\\n')",
            skip_git_repo_check=True,
            **COPY,
        )
        assert (plain / "a.txt").read_text() == "one\n"
        applied = await apply(client, result["run_id"], "apply")
    assert applied["applied"]
    assert (plain / "a.txt").read_text() == "one\ntwo\n"


async def test_records_of_later_and_damaged_builds_are_read_tolerantly(
    mode: str, lab: Lab, acting: Path
) -> None:
    async with connect(mode, acting, lab) as client:
        one = await call(client, "codex_run", prompt="open('made.txt', 'w')", **COPY)
        two = await call(client, "codex_run", prompt="open('made.txt', 'w')", **COPY)
        (path,) = lab.state.glob(f"trees/*/runs/{one['run_id']}.json")
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"of_a_later_build": 1}))
        (other,) = lab.state.glob(f"trees/*/runs/{two['run_id']}.json")
        other.write_text(json.dumps(json.loads(other.read_text()) | {"version": 2}))
        later = await apply(client, one["run_id"], "check")
        damaged = await apply(client, two["run_id"], "check")
        shutil.rmtree(lab.project)
        moved = await apply(client, one["run_id"], "check")
    assert later["error"] is None
    assert damaged["error"]["kind"] == moved["error"]["kind"] == "invalid_arguments"
    assert "is no folder" in moved["error"]["message"]
