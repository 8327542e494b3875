"""Runs at another place, the whole way in from tools/call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import cast

import anyio
import pytest
from mcp import Client

from codex_tools.codex.json_object import Json
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.far_machine import FarMachine, far_machine, living, wait_until_gone
from support.isolated import apply
from support.lab import Lab, call, connect, environment, server_program, until

THREAD = "01a20000-0000-7000-8000-000000000001"

SLEEPERS = f"""
import subprocess
for _ in range(2):
    subprocess.Popen(["setsid", "nohup", "sleep", "600"], stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
open("a.txt", "w").write("half\\n")
print('{{"type":"thread.started","thread_id":"{THREAD}"}}', flush=True)
print('{{"type":"turn.started"}}', flush=True)
time.sleep(600)
"""


@dataclass
class Scene:
    """A server with one other place, `box`, whose Codex is a fake one."""

    lab: Lab
    far: FarMachine
    tag: str
    options: Sequence[str]

    def sleepers(self) -> int:
        return sum(argv.startswith("sleep 600") for argv in living(self.tag).values())


@pytest.fixture
def scene(lab: Lab, fake: FakeCodex) -> Generator[Scene]:
    for name, text in (("a.txt", "one\n"), ("b.txt", "b\n")):
        (lab.project / name).write_text(text)
    git = ["git", "-C", str(lab.project), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    (lab.project / "b.txt").write_text("dirty\n")
    mark = str(uuid.uuid4())
    far_home = lab.root / "far-home"
    far_home.mkdir()
    env = environment(lab) | {"TEST_MARK": mark, "CODEX_HOME": str(far_home)}
    command = [server_program(), "worker", "--codex-bin", str(fake.build())]
    command += ["--state-dir", str(lab.root / "far-state")]
    with far_machine(command, env) as far:
        file = lab.root / "places.toml"
        file.write_text(
            f"[box]\nargv = {json.dumps([*far.argv])}\nworker = 'unused'\nlease_s = 4\n"
            f"[gone]\nargv = ['/bin/sh', '-c', 'echo no route >&2; exit 255']\n"
        )
        yield Scene(lab, far, f"TEST_MARK={mark}", ("--places", str(file)))
    left = wait_until_gone(f"TEST_MARK={mark}", 2.0)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


async def lose(client: Client, scene: Scene) -> str:
    """Start a run at the place, stop its worker, and return the id of the run."""
    options: Json = {"sandbox": "workspace-write", "place": "box", "wait_s": 0}
    started = await call(client, "codex_run", prompt="x", **options)
    await until(lambda: scene.sleepers() == 2)
    # The words of Codex take another way home than its processes are seen.
    record = scene.lab.state / "runs" / started["run_id"] / "run.json"
    await until(lambda: THREAD in record.read_text())
    (worker,) = (pid for pid, argv in living(scene.tag).items() if " worker " in argv)
    os.kill(worker, signal.SIGSTOP)
    return str(started["run_id"])


async def wait(client: Client, run_id: str) -> Json:
    """Return the result of the run when it has ended."""
    answer = await client.call_tool("codex_wait", {"run_ids": [run_id], "wait_s": 60})
    (result,) = cast("Json", answer.structured_content)["runs"]
    return result


ROLLOUT = """
import pathlib
folder = pathlib.Path(os.environ["CODEX_HOME"], "sessions/2026/11/29")
folder.mkdir(parents=True, exist_ok=True)
file = folder / "rollout-2026-11-29T00-00-00-{thread}.jsonl"
def record(type_, **payload):
    with file.open("a") as f:
        f.write(json.dumps({{"timestamp": "2026-11-29T00:00:00.000Z", "type": type_,
                             "payload": payload}}) + "\\n")
if not file.exists():
    record("session_meta", id="{thread}", cwd=os.getcwd(), timestamp="2026-11-29T00:00:00.000Z")
record("turn_context", cwd=os.getcwd(), model="m", sandbox_policy={{"type": "workspace-write"}})
"""
"""A rollout as Codex writes it, as far as this server reads it."""


async def test_a_run_at_a_place_returns_its_changes_which_apply_brings_home(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    fake.body = "assert open('b.txt').read() == 'dirty\\n'\nopen('a.txt', 'w').write('two\\n')\n"
    fake.body += ROLLOUT.format(thread=THREAD)
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    fake.build()
    lab = scene.lab
    async with connect(mode, fake.build(), lab, *scene.options) as client:
        result = await call(client, "codex_run", prompt="x", sandbox="workspace-write", place="box")
        assert result["status"] == "completed", result
        assert (result["place"], result["final_response"]) == ("box", "hi")
        assert result["engine"] == "exec"
        assert result["cwd"] == str(lab.project)
        assert [each["path"] for each in result["files_changed"]] == ["a.txt"]
        assert result["changes"]["applied"] is False
        assert (lab.project / "a.txt").read_text() == "one\n"
        applied = await client.call_tool(
            "codex_apply", {"run_id": result["run_id"], "action": "apply"}
        )
        assert applied.is_error is not True, applied
        assert (lab.project / "a.txt").read_text() == "two\n"
        # The thread is continued where it is, in the same copy.
        where = fake.seen()["cwd"]
        fake.body = "open('c.txt', 'w').write(open('a.txt').read())\n"
        fake.body += ROLLOUT.format(thread=THREAD)
        fake.build()
        more = await call(client, "codex_resume", prompt="y", thread_id=THREAD)
        assert more["status"] == "completed", more
        assert more["place"] == "box"
        assert fake.seen()["cwd"] == where
        assert [each["path"] for each in more["files_changed"]] == ["c.txt"]
        assert {each["path"] for each in more["changes"]["files"]} == {"a.txt", "c.txt"}
        listed = cast("Json", (await client.call_tool("codex_sessions", {})).structured_content)
        (session,) = listed["sessions"]
        assert (session["thread_id"], session["place"]) == (THREAD, "box")
        assert session["cwd"] == str(lab.project)
        again = await call(client, "codex_resume", prompt="z", last=True)
        assert (again["place"], again["thread_id"]) == ("box", THREAD)
        refused = await call(client, "codex_resume", prompt="y", thread_id=THREAD, place="here")
        assert refused["error"]["kind"] == "thread_elsewhere"
    mirrored = [*(lab.state / "places" / "box" / "sessions").rglob("*.jsonl")]
    there = [*(lab.root / "far-home" / "sessions").rglob("*.jsonl")]
    assert [each.read_bytes() for each in mirrored] == [each.read_bytes() for each in there]
    assert not (lab.home / "sessions").exists()


async def test_a_place_that_cannot_be_reached_is_unavailable_and_nothing_is_started(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        result = await call(client, "codex_run", prompt="x", place="gone")
    assert (result["place"], result["error"]["kind"]) == ("gone", "place_unavailable")
    assert result["error"]["retryable"] is True
    assert "no route" in result["error"]["message"]
    assert not fake.was_started


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"place": "mars"}, "there is no place 'mars'"),
        ({"place": "../box"}, "plain name"),
        ({"place": "box; rm -rf"}, "plain name"),
        ({"place": "box", "isolation": "none"}, "always works in a copy"),
        ({"place": "box", "mcp_servers": "none"}, "has its own"),
    ],
)
async def test_what_a_place_cannot_do_is_refused_before_anything_runs(
    mode: str, scene: Scene, fake: FakeCodex, arguments: dict[str, str], problem: str
) -> None:
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        result = await call(client, "codex_run", prompt="x", **arguments)
    assert result["error"]["kind"] == "invalid_arguments"
    assert problem in result["error"]["message"]
    assert living(scene.tag) == {}


@pytest.mark.parametrize("approvals", ["ask", "auto"])
async def test_approvals_are_narrowed_at_a_place_and_the_caller_hears_of_it(
    mode: str, scene: Scene, fake: FakeCodex, approvals: str
) -> None:
    fake.body = ROLLOUT.format(thread=THREAD)
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    options = (*scene.options, "--approvals", "caller")
    turn: Json = {"sandbox": "workspace-write", "approvals": approvals}
    async with connect(mode, fake.build(), scene.lab, *options) as client:
        result = await call(client, "codex_run", prompt="x", place="box", **turn)
        assert (result["status"], result["place"]) == ("completed", "box"), result
        assert any("nobody can be asked at box" in each for each in result["warnings"])
        argv = fake.seen()["argv"]
        assert (argv[1], argv[3]) == ("exec", "-s")  # Which never asks, unless it is told to.
        assert not [each for each in argv if "approv" in each]
        more = await call(client, "codex_resume", prompt="y", thread_id=THREAD, **turn)
        assert any("nobody can be asked at box" in each for each in more["warnings"])
    # The operator's limit holds first, wherever the run would be.
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        refused = await call(client, "codex_run", prompt="x", place="box", **turn)
    assert refused["error"]["kind"] == "not_allowed"


async def test_without_a_file_of_places_there_is_only_this_machine(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    async with connect(mode, fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt="x", place="box")
        here = await call(client, "codex_run", prompt="x", place="here")
    assert result["error"]["kind"] == "invalid_arguments"
    # It says why there is none, and how there would be one.
    assert "the operator has configured none beside here" in result["error"]["message"]
    assert "--places FILE" in result["error"]["message"]
    assert here["place"] == "here"


async def test_a_stopped_run_leaves_nothing_there_and_its_changes_come_back(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    fake.body = SLEEPERS
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        started = await call(
            client,
            "codex_run",
            prompt="x",
            sandbox="workspace-write",
            place="box",
            wait_s=0,
        )
        await until(lambda: scene.sleepers() == 2)
        stopped = await client.call_tool("codex_stop", {"run_id": started["run_id"]})
        assert scene.sleepers() == 0
        result = await wait(client, started["run_id"])
    assert stopped.is_error is not True
    assert result["status"] == "cancelled"
    assert [each["path"] for each in result["changes"]["files"]] == ["a.txt"]
    assert (scene.lab.project / "a.txt").read_text() == "one\n"


async def test_a_lost_place_is_an_error_with_the_thread_and_nothing_is_alive(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    fake.body = SLEEPERS
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        run_id = await lose(client, scene)
        result = await wait(client, run_id)
        assert scene.sleepers() == 0
        assert result["error"]["kind"] == "place_lost"
        assert result["error"]["retryable"] is False
        assert result["thread_id"] == THREAD
        # What it did is fetched by another connection, and can be applied.
        assert [each["path"] for each in result["changes"]["files"]] == ["a.txt"]
        await apply(client, run_id, "apply")
    assert (scene.lab.project / "a.txt").read_text() == "half\n"


async def test_changes_that_a_lost_place_could_not_send_are_fetched_by_codex_apply(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    fake.body = SLEEPERS
    away = scene.far.socket.with_suffix(".away")
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        run_id = await lose(client, scene)
        scene.far.socket.rename(away)
        result = await wait(client, run_id)
        assert (result["error"]["kind"], result["changes"]) == ("place_lost", None)
        assert any("still at the place box" in each for each in result["warnings"])
        refused = await client.call_tool("codex_apply", {"run_id": run_id, "action": "check"})
        assert refused.is_error
        error = cast("Json", refused.structured_content)["error"]
        assert (error["kind"], error["retryable"]) == ("place_unavailable", True)
        away.rename(scene.far.socket)
        planned = await apply(client, run_id, "check")
        assert [each["path"] for each in planned["files"]] == ["a.txt"]
        later = await wait(client, run_id)
        assert [each["path"] for each in later["changes"]["files"]] == ["a.txt"]
        assert not any("still at the place" in each for each in later["warnings"])
        await apply(client, run_id, "apply")
    assert (scene.lab.project / "a.txt").read_text() == "half\n"


async def test_the_changes_of_a_run_whose_server_has_ended_are_fetched_by_the_next_one(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    fake.body = SLEEPERS
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        started = await call(client, "codex_run", prompt="x", place="box", wait_s=0)
        await until(lambda: scene.sleepers() == 2)
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        result = await wait(client, started["run_id"])
        assert (result["error"]["kind"], result["changes"]) == ("interrupted", None)
        assert any("still at the place box" in each for each in result["warnings"])
        await apply(client, started["run_id"], "apply")
    assert (scene.lab.project / "a.txt").read_text() == "half\n"


@pytest.mark.parametrize("end", ["failed", "exited", "timed out"])
async def test_the_changes_of_a_run_that_fails_at_a_place_come_back(
    mode: str, scene: Scene, fake: FakeCodex, end: str
) -> None:
    fake.body = "open('a.txt', 'w').write('half\\n')\n"
    fake.stdout = events(thread_line(), {"type": "turn.started"})
    if end == "failed":
        failure = {"type": "turn.failed", "error": {"message": "no"}}
        fake.stdout = events(thread_line(), {"type": "turn.started"}, failure)
    elif end == "timed out":
        fake.body = SLEEPERS
    options: Json = {"sandbox": "workspace-write", "place": "box"}
    if end == "timed out":
        options["timeout_s"] = 3
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        result = await call(client, "codex_run", prompt="x", **options)
        assert result["status"] == ("timed_out" if end == "timed out" else "failed"), result
        assert [each["path"] for each in result["changes"]["files"]] == ["a.txt"]
        await apply(client, result["run_id"], "apply")
    assert (scene.lab.project / "a.txt").read_text() == "half\n"


async def test_a_file_that_may_not_leave_this_machine_is_not_deleted_by_a_later_run(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    lab = scene.lab
    (lab.project / ".gitignore").write_text(".env\n")
    (lab.project / ".worktreeinclude").write_text(".env\n")
    (lab.project / ".env").write_text("SECRET=1\n")
    fake.body = "assert not os.path.exists('.env')\nopen('a.txt', 'a').write('more\\n')\n"
    fake.body += ROLLOUT.format(thread=THREAD)
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    async with connect(mode, fake.build(), lab, *scene.options) as client:
        options: Json = {"sandbox": "workspace-write"}
        first = await call(client, "codex_run", prompt="x", place="box", **options)
        second = await call(client, "codex_resume", prompt="y", thread_id=THREAD, **options)
        assert first["copy"] == second["copy"] is not None
        for result in (first, second):
            assert [each["path"] for each in result["changes"]["files"]] == ["a.txt"]
        await apply(client, second["run_id"], "apply")
    assert (lab.project / "a.txt").read_text() == "one\nmore\nmore\n"
    assert (lab.project / ".env").read_text() == "SECRET=1\n"


GONE = "[gone]\nargv = ['/bin/sh', '-c', 'echo gone >> {log}; exit 255']\nlabels = ['fast']\n"


def rewrite(scene: Scene, here: int, box: int, more: str = "") -> None:
    """Let this machine take *here* runs, and box *box* runs, which has the label `fast`."""
    file = scene.lab.root / "places.toml"
    file.write_text(
        f"[here]\nmax_runs = {here}\n[box]\nargv = {json.dumps([*scene.far.argv])}\n"
        f"worker = 'unused'\nlease_s = 4\nmax_runs = {box}\nlabels = ['fast']\n{more}"
    )


async def test_any_takes_the_place_with_the_fewest_runs_for_its_size(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    fake.body = "time.sleep(600)"
    rewrite(scene, here=1, box=2)
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        chosen: list[str] = []

        async def start() -> None:
            started = await call(client, "codex_run", prompt="x", place="any", wait_s=0)
            chosen.append(started["place"])

        async with anyio.create_task_group() as tasks:  # At the same time.
            for _ in range(3):
                tasks.start_soon(start)
        assert sorted(chosen) == ["box", "box", "here"]
        planned = await call(
            client, "codex_run", prompt="x", place="any", isolation="none", dry_run=True
        )
        assert planned["place"] == "here"  # Nowhere else does a run work in the folder itself.


async def test_any_leaves_out_a_place_that_cannot_be_reached_and_a_label_names_some(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    log = scene.lab.root / "gone.log"
    rewrite(scene, here=1, box=1, more=GONE.format(log=log) + "max_runs = 10\n")
    fake.body = "time.sleep(600)"
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        for _ in range(3):  # From the second one on, `gone` has fewer runs for its size.
            started = await call(client, "codex_run", prompt="x", place="fast", wait_s=0)
            assert started["place"] == "box"
        refused = await call(client, "codex_run", prompt="x", place="slow")
        assert "there are here, box, gone, any, fast" in refused["error"]["message"]
    # It was tried once, and then left alone for a while.
    assert log.read_text() == "gone\n"


async def test_any_leaves_out_an_account_whose_usage_limit_is_reached(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    rewrite(scene, here=4, box=4)
    message = "You've hit your usage limit. Try again in 2 hours."
    failure = {"type": "turn.failed", "error": {"message": message}}
    fake.stdout = events(thread_line(), {"type": "turn.started"}, failure)
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        failed = await call(client, "codex_run", prompt="x", place="here")
        assert failed["error"]["kind"] == "usage_limit"
        fake.stdout = events(thread_line(), *answer_lines("hi"))
        fake.build()
        for _ in range(2):
            assert (await call(client, "codex_run", prompt="x", place="any"))["place"] == "box"
        # A caller who names the place gets it; only --wait-for-limits makes runs wait.
        assert (await call(client, "codex_run", prompt="x", place="here"))["status"] == "completed"


async def test_any_continues_a_thread_where_it_is(mode: str, scene: Scene, fake: FakeCodex) -> None:
    rewrite(scene, here=4, box=4)
    fake.body = ROLLOUT.format(thread=THREAD)
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        assert (await call(client, "codex_run", prompt="x", place="fast"))["place"] == "box"
        for word in ("any", "fast"):
            more = await call(client, "codex_resume", prompt="y", thread_id=THREAD, place=word)
            assert (more["place"], more["status"]) == ("box", "completed")


async def test_the_default_place_is_that_of_the_operator(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    options = (*scene.options, "--default-place", "box")
    async with connect(mode, fake.build(), scene.lab, *options) as client:
        assert (await call(client, "codex_run", prompt="x"))["place"] == "box"
        planned = await call(client, "codex_run", prompt="x", dry_run=True)
    assert planned["place"] == "box"
    assert planned["planned"]["argv"][-1] == "unused"


async def test_runs_and_watch_say_where_a_run_is(mode: str, scene: Scene, fake: FakeCodex) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hi"))
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        for name in ("here", "box"):
            await call(client, "codex_run", prompt="x", place=name)
    command = [server_program(), "runs", "--state-dir", str(scene.lab.state)]
    shown = await anyio.run_process(command, env=environment(scene.lab))
    lines = [line for line in shown.stdout.decode().splitlines() if "read-only" in line]
    assert [" · at box · " in line for line in lines] == [True, False]
    listed = await anyio.run_process([*command, "--json"], env=environment(scene.lab))
    assert [each["place"] for each in json.loads(listed.stdout)["runs"]] == ["box", "here"]


async def test_the_end_of_the_server_ends_the_run_there(
    mode: str, scene: Scene, fake: FakeCodex
) -> None:
    fake.body = SLEEPERS
    async with connect(mode, fake.build(), scene.lab, *scene.options) as client:
        await call(client, "codex_run", prompt="x", place="box", wait_s=0)
        await until(lambda: scene.sleepers() == 2)
    with anyio.fail_after(10):
        while living(scene.tag):  # noqa: ASYNC110 - other processes end
            await anyio.sleep(0.05)


def test_a_server_without_places_imports_none_of_it() -> None:
    code = (
        "import os, sys, mcp_server_codex.app as app, mcp_server_codex.settings as s\n"
        "app.make_server(s.read_settings([], os.environ, sys.exit))\n"
        "print(*sys.modules)"
    )
    import sys

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in loaded if name.startswith("codex_tools.places")] == []
    assert "ray" not in loaded


def test_a_wrong_file_of_places_is_an_error_at_the_start(lab: Lab) -> None:
    file = lab.root / "places.toml"
    file.write_text("[box]\nssh = 3\n")
    done = subprocess.run(
        [server_program(), "--places", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"{file}: [box] ssh: must be a text" in done.stderr
    file.write_text("[box]\nssh = 'b'\nlabels = ['box']\n")
    labelled = subprocess.run(
        [server_program(), "--places", str(file)], capture_output=True, text=True, check=False
    )
    assert f"{file}: [box] labels: 'box' must be" in labelled.stderr
    unknown = subprocess.run(
        [server_program(), "--default-place", "box"], capture_output=True, text=True, check=False
    )
    assert unknown.returncode == 2
    assert "no place 'box'" in unknown.stderr
