"""`mcp-server-codex runs` lists what all servers of the state folder do and did."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from codex_tools.codex.errors import TurnFailed
from codex_tools.codex.failures import classify
from codex_tools.codex.turn_result import TurnResult
from codex_tools.runs.result import ChangedFile
from codex_tools.runs.store import Recorded
from mcp_server_codex.cli.run_list import SHORT_LIMIT
from support.lab import Json, server_program
from support.stored_state import (
    EVIL,
    SECRET,
    check_obeyed_by_no_terminal,
    command_event,
    item,
    json_of,
    keep,
    person_runs,
    run_id,
    server,
)

FIELDS = [
    *("run_id", "status", "created_at", "age_s", "ended_at", "duration_s", "doing"),
    *("files_changed", "usage", "cost_usd", "thread_id", "cwd", "place", "sandbox", "model"),
    *("reasoning_effort", "error", "answer"),
]
"""The names that docs/runs.md gives; programs rely on them."""


def of(found: Json, number: int) -> Json:
    return next(run for run in found["runs"] if run["run_id"] == run_id(number))


def test_the_newest_run_comes_first_and_live_runs_say_what_they_do(state: Path) -> None:
    with server(state) as one, server(state) as two:
        keep(one, 1, created_at="2026-11-20T10:00:00.000Z", tokens=12_345, cost_usd=0.5)
        patch: Json = {"changes": [{"path": "/project/a.py", "kind": "add"}], "status": "completed"}
        patched = item("file_change", **patch)
        running = command_event("bash -lc 'pytest -q'")
        keep(one, 2, "running", created_at="2026-11-20T11:00:00Z", events=(patched, running))
        keep(two, 3, "queued", created_at="2026-11-20T12:00:00.000Z")
        keep(two, 4, "running", created_at="2026-11-20T13:00:00.000Z", tokens=900)
        found = json_of(state, "runs")
        printed = person_runs(state, "runs").stdout
    assert [run["run_id"] for run in found["runs"]] == [run_id(n) for n in (4, 3, 2, 1)]
    assert [run["doing"] for run in found["runs"]] == [
        *("starting Codex", "waiting in the queue", "running pytest -q", None)
    ]
    assert all([*run] == FIELDS for run in found["runs"])
    assert (found["total"], found["state_dir"]) == (4, str(state))
    assert of(found, 1)["answer"] == "the answer"
    assert of(found, 1)["usage"]["total_tokens"] == 12_345
    assert of(found, 2)["files_changed"] == 1
    assert of(found, 2)["ended_at"] is None
    assert of(found, 4)["usage"]["total_tokens"] == 900
    lines = printed.splitlines()
    assert re.fullmatch(rf"{run_id(4)}  running  \S+  900 tokens", lines[0])
    assert lines[1] == "  starting Codex"
    assert lines[2] == "  /work · workspace-write · gpt-5.5"
    assert lines[7] == "  running pytest -q"
    ended = rf"{run_id(1)}  completed  \S+ ago, took 0s  12.3K tokens  \$0.50"
    assert re.fullmatch(ended, lines[9])
    assert lines[10] == "  the answer"


def test_live_runs_are_listed_however_old_they_are(state: Path) -> None:
    with server(state) as store:
        keep(store, 1, "running", created_at="2026-11-01T10:00:00.000Z")
        for number in range(2, 6):
            keep(store, number, created_at=f"2026-11-20T10:00:0{number}.000Z")
        found = json_of(state, "runs", "--limit", "2")
        printed = person_runs(state, "runs", "--limit", "2").stdout
    assert [run["run_id"] for run in found["runs"]] == [run_id(n) for n in (5, 4, 1)]
    assert "3 of 5 runs in ~/state. For more: --limit 5" in printed


def test_the_run_of_a_dead_server_is_interrupted_or_what_its_rollout_says(
    state: Path, tmp_path: Path
) -> None:
    thread = "01a20000-0000-7000-8000-000000000001"
    with server(state) as store:
        recorded = Recorded(0, 0, has_schema=False)
        keep(store, 1, "running", recorded=recorded, attempts=1)
        keep(store, 2, "running", recorded=recorded, thread_id=None)
    payloads = [
        ("session_meta", {"id": thread, "cwd": "/work"}),
        ("event_msg", {"type": "task_started", "turn_id": "t"}),
        ("event_msg", {"type": "user_message", "message": "go"}),
        ("turn_context", {"cwd": "/work", "model": "m"}),
        ("event_msg", {"type": "agent_message", "message": "done before the end"}),
        ("event_msg", {"type": "task_complete", "last_agent_message": "done before the end"}),
    ]
    day = tmp_path / "home" / "sessions" / "2026" / "11" / "20"
    day.mkdir(parents=True)
    stamp = "2026-11-20T10:00:00.000Z"
    (day / f"rollout-2026-11-20T10-00-00-{thread}.jsonl").write_text(
        "".join(
            json.dumps({"timestamp": stamp, "type": kind, "payload": payload}) + "\n"
            for kind, payload in payloads
        )
    )
    found = json_of(state, "runs")
    assert of(found, 1)["status"] == "completed"
    assert of(found, 1)["answer"] == "done before the end"
    assert of(found, 2)["status"] == "failed"
    assert of(found, 2)["error"]["kind"] == "interrupted"


def test_a_failed_run_has_its_error(state: Path) -> None:
    message = f"unexpected status 500 with the key {SECRET} " + "x" * 5000
    error = TurnFailed(classify(message), TurnResult())
    with server(state) as store:
        keep(store, 1, "failed", error=error)
    found = json_of(state, "runs")
    printed = person_runs(state, "runs").stdout
    assert of(found, 1)["error"]["kind"] == error.failure.kind
    assert len(of(found, 1)["error"]["message"]) <= SHORT_LIMIT
    assert f"  {error.failure.kind}: " in printed
    assert SECRET not in printed + json.dumps(found)


def test_secrets_in_answers_and_commands_are_masked_and_long_texts_cut(state: Path) -> None:
    with server(state) as store:
        keep(store, 1, answer=f"key {SECRET} " + "x" * 5000)
        keep(store, 2, "running", events=(command_event(f"curl -H {SECRET}"),))
        found = json_of(state, "runs")
        printed = person_runs(state, "runs").stdout
    assert SECRET not in printed + json.dumps(found)
    assert "[secret]" in of(found, 2)["doing"]
    assert len(of(found, 1)["answer"]) <= SHORT_LIMIT


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("colour", [True, False])
def test_no_text_of_a_run_controls_the_terminal(
    state: Path, options: tuple[str, ...], colour: bool
) -> None:
    events = (item("reasoning", text=f"**{EVIL}**"), command_event(f"make {EVIL}\nforged"))
    evil: Json = {"reasoning_effort": EVIL, "thread_id": EVIL}
    with server(state) as store:
        keep(store, 1, "running", cwd=f"/w{EVIL}\nx", model=EVIL, events=events, **evil)
        keep(store, 2, answer=f"{EVIL}\nrun_forged", cwd=EVIL, model=EVIL, **evil)
        env = {"TERM": "xterm-256color", "COLUMNS": "50"} | ({"FORCE_COLOR": "1"} if colour else {})
        done = person_runs(state, "runs", *options, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    printed = check_obeyed_by_no_terminal(done.stdout)
    if options:
        assert len(json.loads(printed)["runs"]) == 2
    else:
        assert [line for line in printed.splitlines() if line.startswith("run_forged")] == []
        assert "\ufffd" in printed


@pytest.mark.parametrize("width", [20, 40, 60])
def test_on_a_narrow_terminal_each_line_is_cut_and_the_id_has_one_of_its_own(
    state: Path, width: int
) -> None:
    with server(state) as store:
        keep(store, 1, answer="word " * 50, tokens=1500, cost_usd=0.25)
    env = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width)}
    printed = check_obeyed_by_no_terminal(person_runs(state, "runs", env=env).stdout)
    lines = printed.splitlines()
    assert all(len(line) <= width for line in lines)
    assert lines[0] == run_id(1)
    assert lines[1].startswith("  completed")
    assert lines[-2].endswith("…")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_no_figure_of_a_run_is_cut(state: Path, width: int) -> None:
    changed = [ChangedFile(path="/home/dev/a.py", kind="add")]
    with server(state) as store:
        keep(store, 1, files_changed=changed, tokens=123_456_789, cost_usd=1234.25)
    env = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width)}
    for command in (["runs"], ["show", run_id(1)]):
        printed = check_obeyed_by_no_terminal(person_runs(state, *command, env=env).stdout)
        lines = printed.splitlines()
        assert all(len(line) <= width for line in lines), lines
        for figure in (run_id(1), "completed", "123M tokens", "$1,234.25", "1 file changed"):
            assert any(figure in line for line in lines), lines


@pytest.mark.parametrize("width", [60, 80])
def test_neither_an_error_nor_the_model_of_a_run_is_cut(state: Path, width: int) -> None:
    limit = classify(
        "You've hit your usage limit, or that of your workspace. Try again at 5:30 PM."
    )
    with server(state) as store:
        cwd = "/home/dev/a-folder-with-a-long-name/packages/api"
        keep(store, 1, "failed", error=TurnFailed(limit, TurnResult()), cwd=cwd)
    env = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width)}
    printed = check_obeyed_by_no_terminal(person_runs(state, "runs", env=env).stdout)
    lines = [line.strip() for line in printed.splitlines()]
    assert max(map(len, lines)) <= width
    assert f"usage_limit: {limit.message}" in " ".join(lines)
    assert lines[-1].endswith("/packages/api · workspace-write · gpt-5.5")


def test_what_is_no_terminal_gets_whole_plain_lines(state: Path) -> None:
    with server(state) as store:
        keep(store, 1, answer="word " * 40, tokens=1500)
    printed = person_runs(state, "runs", env={"COLUMNS": "40", "TERM": "xterm"}).stdout
    assert "\x1b" not in printed
    assert len(printed.splitlines()) == 3
    assert "word " * 39 in printed


def test_there_may_be_no_state_folder_and_none_is_made(state: Path) -> None:
    done = person_runs(state, "runs")
    assert (done.returncode, done.stdout) == (0, "No runs in ~/state.\n")
    assert json_of(state, "runs")["runs"] == []
    assert not state.exists()


@pytest.mark.parametrize("folder", ["", "runs", "servers"])
@pytest.mark.parametrize(
    ("mode", "owner", "says"),
    [
        pytest.param(
            0o700,
            12345,
            "belongs to another user",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away"),
        ),
        (0o777, None, "other users may write to it"),
        (0o1777, None, "shared by several users"),
    ],
)
@pytest.mark.parametrize("command", [("runs",), ("watch",), ("show", "run_"), ("stop", "run_")])
def test_a_folder_of_others_is_refused(
    state: Path, folder: str, mode: int, owner: int | None, says: str, command: tuple[str, ...]
) -> None:
    with server(state) as store:
        keep(store, 1)
    (state / folder).chmod(mode)
    if owner is not None:
        os.chown(state / folder, owner, owner)
    done = person_runs(state, *command)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert "--state-dir" in done.stderr
    assert stat.S_IMODE((state / folder).stat().st_mode) == mode


def test_a_link_in_place_of_a_folder_is_refused(state: Path, tmp_path: Path) -> None:
    with server(state) as store:
        keep(store, 1)
    (state / "runs").rename(tmp_path / "elsewhere")
    (state / "runs").symlink_to(tmp_path / "elsewhere")
    done = person_runs(state, "runs")
    assert (done.returncode, done.stdout) == (1, "")


def test_what_is_no_record_is_left_out(state: Path) -> None:
    with server(state) as store:
        for number in (1, 2, 3, 4):
            keep(store, number)
    (state / "runs" / run_id(2) / "run.json").write_text("{")
    (state / "runs" / run_id(3) / "run.json").unlink()
    os.mkfifo(state / "runs" / run_id(3) / "run.json")
    (state / "runs" / "no run").mkdir()
    (state / "runs" / "run_ffffffffffffffff").mkdir()
    done = person_runs(state, "runs", "--json")
    assert [run["run_id"] for run in json.loads(done.stdout)["runs"]] == [run_id(4), run_id(1)]
    assert done.returncode == 0


def test_only_runs_inside_the_roots_are_listed(state: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with server(state) as store:
        keep(store, 1, cwd=str(tmp_path / "a"))
        keep(store, 2, cwd=str(tmp_path / "b"))
    found = json_of(state, "runs", "--root", str(tmp_path / "a"))
    assert [run["run_id"] for run in found["runs"]] == [run_id(1)]
    hidden = person_runs(state, "show", run_id(2), "--root", str(tmp_path / "a"))
    assert hidden.returncode == 1
    assert "There is no run" in hidden.stderr


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly(state: Path) -> None:
    with server(state) as store:
        for number in range(300):
            keep(store, number, answer="word " * 60)
    words = f"{server_program()} runs --limit 300 --state-dir {state}"
    script = f"set -o pipefail; {words} | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("run_")
