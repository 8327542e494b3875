"""Isolated runs of the real Codex: the person's folder changes by codex_apply alone."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcp_server_codex.cli.scripted_model import Patch, Shell, do, say
from support.codex_versions import number, real_codex
from support.isolated import COPY, apply
from support.lab import BY_EXEC, Lab, call, connect
from support.repository_kinds import KINDS, OTHER_KINDS
from support.stub_server import commit, started, stub, trust
from support.work_trees import IGNORED, Project, files_in, make_torture_tree, run_git, state_of

IDENTITY = ("-c", "user.name=A", "-c", "user.email=a@example.com")


def lay_project(lab: Lab) -> None:
    """Make a project with a commit, changes that are not committed, and an ignored file."""
    for name in ("a.txt", "old.txt", "mine.txt", "src/deep.txt"):
        path = lab.project / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("one\ntwo\nthree\n")
    (lab.project / ".gitignore").write_text("*.log\n")
    run_git(lab.project, "add", ".")
    run_git(lab.project, *IDENTITY, "commit", "-qm", "first")
    (lab.project / "mine.txt").write_text("the person's own\n")
    (lab.project / "untracked.txt").write_text("as well\n")
    (lab.project / "ignored.log").write_text("not copied\n")


def bytes_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of all below *folder*.

    Without a sandbox, git in the copy may set the mtime of an object of the person's that it is
    asked to write again (git 2.39.5).
    """
    return {path: (mode, content) for path, (mode, _, content) in state_of(folder).items()}


EDITS = """\
printf 'three\\r\\n' >> win.crlf; printf '$Id$\\nmore\\n' > x.id; printf '\\377\\000' > binary
chmod 755 script; ln -sfn d/clean retargeted; ln -s nowhere new-link; rm d/dirty dangling
echo more >> kept.log; echo more >> untracked/deep/file; mkdir -p made/here; echo x > made/here/y
mv bare-crlf moved; for each in 'with blank'/*; do echo more >> "$each"; done; : > d/clean
"""


async def test_every_kind_of_file_goes_there_and_back_byte_for_byte(
    codex: Path, mode: str, lab: Lab
) -> None:
    project = Project(lab.root)
    make_torture_tree(project)
    before, files = state_of(project.root), files_in(project.root)
    ignored = {name: files.pop(name) for name in IGNORED}
    look = lab.script("look", do(Shell("ls > /dev/null")), say("done"))
    edit = lab.script("edit", do(Shell(EDITS)), say("done"))
    async with connect(mode, codex, lab, "--root", str(lab.project)) as client:
        first = await call(
            client, "codex_run", prompt=look, sandbox="workspace-write", isolation="copy"
        )
        assert files_in(Path(first["copy"])) == files
        second = await call(client, "codex_resume", prompt=edit, thread_id=first["thread_id"])
        assert second["error"] is None
        there = files_in(Path(second["copy"]))
        assert state_of(project.root) == before
        latin = "with blank/caf\ufffd"
        one = await apply(client, second["run_id"], "check", paths=[latin])
        applied = await apply(client, second["run_id"], "apply")
    assert [each["path"] for each in one["files"]] == [latin]
    assert first["changes"]["files"] == []
    assert second["changes"]["insertions"] > 0
    assert applied["applied"], applied
    changed = {path for path in files.keys() | there.keys() if files.get(path) != there.get(path)}
    assert len(changed) == 15
    assert {each["path"] for each in second["changes"]["files"]} == {
        path.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for path in changed
    }
    assert files_in(project.root) == there | ignored
    git = f"{project.root}/.git/"
    after = state_of(project.root)
    assert {path: each for path, each in after.items() if path.startswith(git)} == {
        path: each for path, each in before.items() if path.startswith(git)
    }


async def test_every_kind_of_repository_is_worked_on_in_a_copy_and_gets_the_changes(
    codex: Path, mode: str, lab: Lab
) -> None:
    edit = do(Shell("echo more >> a; unlink sub/b; echo x > made"))
    async with connect(mode, codex, lab, "--root", str(lab.root)) as client:
        for make in (*KINDS, *OTHER_KINDS):
            prompt = lab.script(make.__name__, edit, say("ok"))
            project = Project(lab.root / "kinds", name=make.__name__)
            make(project)
            before, files = state_of(project.root), files_in(project.root)
            run = await call(
                client,
                "codex_run",
                prompt=prompt,
                cwd=str(project.root),
                sandbox="workspace-write",
                isolation="copy",
                skip_git_repo_check=True,
            )
            assert run["error"] is None, (make, run)
            assert state_of(project.root) == before, make
            there = files_in(Path(run["copy"]))
            files["made"] = ("file", b"x\n")
            files["a"] = (files["a"][0], files["a"][1] + b"more\n")
            files.pop("sub/b", None)
            assert there == files, (make, run)
            applied = await apply(client, run["run_id"], "apply")
            assert applied["applied"], (make, applied)
            assert files_in(project.root) == files, make
            after = state_of(project.root)
            kept = {path for path in before if "/.git" in path.removeprefix(str(project.root))}
            assert all(after[path] == before[path] for path in kept), make


async def test_a_run_in_a_copy_changes_nothing_until_it_is_applied(
    codex: Path, mode: str, lab: Lab
) -> None:
    lay_project(lab)
    before = state_of(lab.project)
    patch = Patch("*** Add File: patched.txt\n+one")
    shell = "echo more >> a.txt; rm old.txt; printf '\\000\\001\\377' > blob.bin; cat mine.txt"
    prompt = lab.script("work", do(patch), do(Shell(shell)), say("done"))
    onward = lab.script("more", do(Shell("cat patched.txt blob.bin > seen.bin")), say("done"))
    options = ("--root", str(lab.project))
    async with connect(mode, codex, lab, *options) as client:
        first = await call(
            client, "codex_run", prompt=prompt, sandbox="workspace-write", isolation="copy"
        )
        listed: Any = await client.call_tool("codex_sessions", {"cwd": str(lab.project)})
        usage: Any = await client.call_tool("codex_usage", {"group_by": "cwd"})
        read: Any = await client.call_tool("codex_sessions", {"thread_id": first["thread_id"]})
        transcript: Any = await client.read_resource(f"codex://threads/{first['thread_id']}")
        second = await call(client, "codex_resume", prompt=onward, last=True)
        assert state_of(lab.project) == before
        checked = await apply(client, second["run_id"], "check")
        assert state_of(lab.project) == before
        applied = await apply(client, second["run_id"], "apply")
        again = await apply(client, second["run_id"], "apply")
        waited: Any = await client.call_tool("codex_wait", {"run_ids": [second["run_id"]]})
        dropped = await apply(client, second["run_id"], "discard")
        third = await call(
            client,
            "codex_resume",
            prompt=lab.script("last", say("-")),
            thread_id=first["thread_id"],
        )
    assert first["status"] == second["status"] == "completed", (first, second)
    assert first["cwd"] == second["cwd"] == str(lab.project)
    (thread,) = listed.structured_content["sessions"]
    assert (thread["thread_id"], thread["cwd"]) == (first["thread_id"], str(lab.project))
    patched = str(lab.project / "patched.txt")
    assert [each["path"] for each in read.structured_content["turns"][0]["files_changed"]] == [
        patched
    ]
    assert patched in transcript.contents[0].text
    assert [row["key"] for row in usage.structured_content["groups"]] == [str(lab.project)]
    # The second run continues in the same copy, and has what the first one did.
    assert first["copy"] == second["copy"]
    assert not Path(first["copy"]).is_relative_to(lab.project)
    kinds = {each["path"]: each["kind"] for each in first["files_changed"]}
    expected = {"a.txt": "update", "blob.bin": "add", "old.txt": "delete", "patched.txt": "add"}
    assert kinds == expected
    assert [each["path"] for each in second["files_changed"]] == ["seen.bin"]
    changes = second["changes"]
    assert {each["path"]: each["kind"] for each in changes["files"]} == expected | {
        "seen.bin": "add"
    }
    lines = {each["path"]: (each["insertions"], each["deletions"]) for each in changes["files"]}
    assert lines["a.txt"] == (1, 0)
    assert lines["blob.bin"] == (None, None)
    assert "+more" in changes["text"]
    assert {"path": "ignored.log", "reason": "ignored"} in changes["left_out"]
    assert changes["applied"] is False
    assert not checked["applied"]
    assert {each["action"] for each in checked["files"]} == {"write", "delete"}
    assert applied["applied"]
    assert (lab.project / "seen.bin").read_bytes() == b"one\n\0\1\xff"
    assert not (lab.project / "old.txt").exists()
    assert (lab.project / "mine.txt").read_text() == "the person's own\n"
    assert "applied before" in again["next"]
    assert waited.structured_content["runs"][0]["changes"]["applied"] is True
    # The index and all else of .git is as before.
    inside = f"{lab.project}/.git/"
    assert {path: each for path, each in state_of(lab.project).items() if inside in path} == {
        path: each for path, each in before.items() if inside in path
    }
    assert dropped["error"] is None
    assert not any("changed the same files" in each for each in second["warnings"])
    # A thread whose copy is gone works in a new one of the project as it is now.
    assert third["status"] == "completed", third
    assert third["cwd"] == str(lab.project)
    assert files_in(Path(third["copy"]))["seen.bin"] == ("file", b"one\n\0\1\xff")
    assert third["changes"]["files"] == []
    assert any("works in a new copy" in each for each in third["warnings"])


async def test_what_a_run_commits_in_its_copy_is_a_change_too(
    codex: Path, mode: str, lab: Lab
) -> None:
    lay_project(lab)
    before = bytes_of(lab.project)
    commit = f"echo more >> src/deep.txt; git add -A; git {' '.join(IDENTITY)} commit -qm inside"
    prompt = lab.script("work", do(Shell(f"cd .. && {commit} && git log --oneline")), say("done"))
    options = ("--max-sandbox", "danger-full-access", "--isolation", "copy")
    async with connect(mode, codex, lab, *options, cwd=lab.project / "src") as client:
        result = await call(client, "codex_run", prompt=prompt, sandbox="danger-full-access")
    assert result["status"] == "completed", result
    assert bytes_of(lab.project) == before
    assert result["cwd"] == str(lab.project / "src")
    assert [each["path"] for each in result["changes"]["files"]] == ["src/deep.txt"]
    assert run_git(Path(result["copy"]), "log", "-1", "--format=%s") == "inside\n"
    assert files_in(Path(result["copy"]))["mine.txt"] == ("file", b"the person's own\n")
    assert any("danger-full-access" in each for each in result["warnings"])


async def test_the_copy_is_trusted_as_the_project_is_and_a_run_cannot_arm_the_next_one(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    codex_folder = lab.project / ".codex"
    codex_folder.mkdir()
    (codex_folder / "config.toml").write_text(stub(lab, "mine"))
    commit(lab)
    prompt = lab.script("x", replace(say("ok"), delay_s=1.0))
    planted = stub(lab, "planted").replace("\n", "\\n").replace("'", "")
    arm = lab.script("arm", do(Shell(f"printf '{planted}' > .codex/config.toml")), say("ok"))
    options = ("--max-sandbox", "danger-full-access")
    async with connect(mode, codex, lab, *options) as client:
        stranger = await call(client, "codex_run", prompt=prompt, isolation="copy")
        assert stranger["status"] == "completed", stranger
        assert started(lab) == set()
        trust(lab)
        before = (lab.home / "config.toml").read_bytes()
        known = await call(client, "codex_run", prompt=prompt, **COPY)
        assert known["status"] == "completed", known
        # 0.60.1 loads no .codex of a project.
        assert started(lab) == ({"mine"} if number(version) >= (0, 98, 0) else set())
        armed = await call(
            client,
            "codex_run",
            prompt=arm,
            sandbox="danger-full-access",
            isolation="copy",
        )
        started(lab)
        again = await call(client, "codex_resume", prompt=prompt, thread_id=armed["thread_id"])
    assert (lab.home / "config.toml").read_bytes() == before
    assert "planted" in (Path(armed["copy"]) / ".codex/config.toml").read_text()
    assert any(".codex/config.toml" in each for each in armed["warnings"])
    assert again["error"]["kind"] == "not_allowed", again
    assert started(lab) == set()


async def test_a_fork_of_an_isolated_thread_gets_a_copy_of_its_own(mode: str, lab: Lab) -> None:
    prompt = lab.script("work", do(Shell("echo x > made.txt")), say("done"))
    lay_project(lab)
    async with connect(mode, real_codex("0.163.0"), lab) as client:
        first = await call(client, "codex_run", prompt=prompt, **COPY)
        onward = lab.script("on", say("done"))
        fork = await call(
            client, "codex_resume", prompt=onward, thread_id=first["thread_id"], fork=True
        )
        home = await call(
            client,
            "codex_resume",
            prompt=onward,
            thread_id=first["thread_id"],
            isolation="none",
            sandbox="read-only",
        )
    assert fork["status"] == home["status"] == "completed", (fork, home)
    assert fork["copy"] not in (first["copy"], None)
    assert "made.txt" not in files_in(Path(fork["copy"]))
    assert any("a fork gets a new copy" in each for each in fork["warnings"])
    assert (home["copy"], home["cwd"]) == (None, str(lab.project))


SCHEMA = {
    "type": "object",
    "properties": {"made": {"type": "string"}},
    "required": ["made"],
}


async def test_a_resumed_run_in_a_copy_answers_as_its_schema_says(
    codex: Path, mode: str, lab: Lab
) -> None:
    lay_project(lab)
    wrong, right = say('{"other": 1}'), say('{"made": "made.txt"}')
    first_prompt = lab.script("one", do(Shell("echo x > made.txt")), say("done"))
    # The answer is corrected in a turn of its own, in the same copy.
    onward = lab.script("two", do(Shell("cat made.txt > again.txt")), wrong, right)
    async with connect(mode, codex, lab) as client:
        first = await call(client, "codex_run", prompt=first_prompt, **COPY)
        second = await call(
            client,
            "codex_resume",
            prompt=onward,
            thread_id=first["thread_id"],
            output_schema=SCHEMA,
            repair_attempts=1,
        )
        applied = await apply(client, second["run_id"], "apply")
    assert second["structured_output"] == {"made": "made.txt"}, second
    assert second["copy"] == first["copy"]
    assert [each["path"] for each in second["files_changed"]] == ["again.txt"]
    assert applied["applied"]
    assert (lab.project / "again.txt").read_text() == "x\n"


@pytest.mark.parametrize("named", ["/tmp", "TMPDIR"])
async def test_no_copy_is_made_where_commands_of_other_runs_can_write(
    codex: Path, mode: str, lab: Lab, named: str
) -> None:
    lay_project(lab)
    (lab.root / "temporary").mkdir()
    env = {} if named == "/tmp" else {"TMPDIR": str(lab.root / "temporary")}
    with tempfile.TemporaryDirectory(dir=env.get("TMPDIR", "/tmp")) as place:
        state = Path(place, "state")
        prompt = lab.script("work", do(Shell(f"touch {state}/written")), say("done"))
        async with connect(mode, codex, lab, state=state, env=env) as client:
            refused = await call(client, "codex_run", prompt=prompt, **COPY)
            plain = await call(client, "codex_run", prompt=prompt, sandbox="workspace-write")
            applied = await apply(client, plain["run_id"], "apply")
        assert plain["status"] == "completed", plain
        assert (state / "written").exists()
    for result in (refused, applied):
        assert result["error"]["kind"] == "invalid_arguments"
        assert "--state-dir" in result["error"]["message"]


async def test_an_error_about_the_folder_of_a_copy_names_that_of_the_project(lab: Lab) -> None:
    lay_project(lab)
    (lab.project / ".codex").mkdir()
    (lab.project / ".codex" / "config.toml").write_text('model_verbosity = "low"\n')
    config = lab.home / "config.toml"
    config.write_text(
        "".join(line for line in config.read_text().splitlines(True) if "trust" not in line)
    )
    async with connect("auto", real_codex("0.120.0"), lab, *BY_EXEC) as client:
        result = await call(client, "codex_run", prompt="x", **COPY)
    assert result["error"]["kind"] == "codex_unsupported", result
    for text in (result["error"]["message"], result["error"]["hint"]):
        assert str(lab.project) in text
        assert "/trees/" not in text
