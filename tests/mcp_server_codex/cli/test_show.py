"""`mcp-server-codex show RUN` prints a result, its diff and its newest events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codex_tools.codex.masking import shorten
from codex_tools.runs.result import RunResult, run_uri
from mcp_server_codex.cli import show
from support.lab import Json
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

DIFF = """\
diff --git a/a.py b/a.py
index 123..456 100644
--- a/a.py
+++ b/a.py
@@ -1,2 +1,2 @@
 same
-old
+new \x1b[31m
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def many_events(count: int) -> tuple[Json, ...]:
    return tuple(command_event(f"bash -lc 'make {n}'", 0) for n in range(count))


def test_the_whole_result_is_shown(state: Path) -> None:
    text = "first line\n\nlast line " + "x" * 60_000
    cut = shorten(text, 2000, run_uri(run_id(1)))
    with server(state) as store:
        keep(
            store,
            1,
            answer=cut,
            tokens=1234,
            warnings=["be careful"],
            events=(*many_events(3), item("agent_message", text="first line")),
        )
        (state / "runs" / run_id(1) / "answer.txt").write_text(text)
    done = person_runs(state, "show", run_id(1))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{run_id(1)}  completed")
    assert "  thread   01a20000-0000-7000-8000-000000000001" in lines
    assert "  tokens   1,234 in, 0 out" in lines
    for title, first in (("Warnings:", "  be careful"), ("Answer:", "  first line")):
        assert lines[lines.index(title) + 1] == first
    assert "x" * 60_000 in done.stdout
    assert lines[-4:] == [
        *(f"  ran make {n} (exit code 0)" for n in range(3)),
        "  says: first line",
    ]
    found = json_of(state, "show", run_id(1))
    assert [*found] == ["run", "result", "events", "has_earlier_events"]
    assert found["result"]["final_response"] == text
    assert [*RunResult.model_validate(found["result"]).model_dump()] == [*found["result"]]
    assert found["run"]["run_id"] == run_id(1)
    assert len(found["events"]) == 4


def test_a_live_run_says_what_it_does(state: Path) -> None:
    with server(state) as store:
        keep(store, 1, "running", events=(*many_events(1), command_event("pytest -q")))
        done = person_runs(state, "show", run_id(1))
        found = json_of(state, "show", run_id(1))
    assert "\n  running pytest -q\n" in done.stdout
    assert "\n  runs pytest -q\n" in done.stdout
    assert "Answer:" not in done.stdout
    assert found["run"]["doing"] == "running pytest -q"


def test_structured_output_is_the_answer(state: Path) -> None:
    with server(state) as store:
        keep(store, 1, structured_output={"name": f"a{EVIL}"})
    printed = check_obeyed_by_no_terminal(person_runs(state, "show", run_id(1)).stdout)
    assert 'Answer:\n  {\n    "name": "a' in printed


@pytest.mark.parametrize(
    ("options", "shown", "has_more"),
    [((), 20, True), (("--events", "3"), 3, True), (("--events", "0"), 0, True)],
)
def test_the_newest_events_are_shown(
    state: Path, options: tuple[str, ...], shown: int, has_more: bool
) -> None:
    with server(state) as store:
        keep(store, 1, events=many_events(50))
    found = json_of(state, "show", run_id(1), *options)
    newest = [event["item"]["command"] for event in found["events"]]
    assert newest == [f"bash -lc 'make {n}'" for n in range(50 - shown, 50)]
    assert found["has_earlier_events"] is has_more
    assert "--events N" in person_runs(state, "show", run_id(1), *options).stdout


def test_events_beyond_the_first_read_are_found(state: Path) -> None:
    output = "x" * 30_000
    events = tuple(
        item("command_execution", command=f"make {n}", aggregated_output=output, exit_code=0)
        for n in range(100)
    )
    with server(state) as store:
        keep(store, 1, events=events)
    found = json_of(state, "show", run_id(1), "--events", "1000")
    assert len(found["events"]) == 100
    assert found["has_earlier_events"] is False
    found = json_of(state, "show", run_id(1), "--events", "30")
    assert [event["item"]["command"] for event in found["events"]] == [
        f"make {n}" for n in range(70, 100)
    ]
    assert found["has_earlier_events"] is True


def test_secrets_in_events_are_masked(state: Path) -> None:
    events = (command_event(f"curl {SECRET}"), item("agent_message", text=f"it is {SECRET}"))
    with server(state) as store:
        keep(store, 1, events=events)
    printed = person_runs(state, "show", run_id(1)).stdout
    printed += person_runs(state, "show", run_id(1), "--json").stdout
    assert SECRET not in printed
    assert printed.count("[secret]") == 4


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("colour", [True, False])
def test_no_text_of_a_run_controls_the_terminal(
    state: Path, options: tuple[str, ...], colour: bool
) -> None:
    text = f"{EVIL}\nError: forged\nrun_forged"
    events = (
        item("reasoning", text=text),
        item("agent_message", text=text),
        item("file_change", changes=[{"path": text, "kind": "add"}], status="completed"),
        item("mcp_tool_call", server=text, tool=text, status="completed"),
        item("web_search", query=text),
        item("error", message=text),
        command_event(text, 0),
        {"type": "turn.failed", "error": {"message": text}},
        {"type": "error", "message": text},
        {"type": EVIL},
    )
    fields: Json = {"warnings": [text], "thread_id": text, "reasoning_effort": text}
    fields |= {"codex_version": text, "structured_output": None}
    with server(state) as store:
        keep(store, 1, answer=text, cwd=text, model=text, events=events, **fields)
        log = state / "runs" / run_id(1) / "events.jsonl"
        log.write_bytes(log.read_bytes() + f"no JSON {EVIL}".replace("\n", " ").encode() + b"\n")
        env = {"TERM": "xterm-256color", "COLUMNS": "50"} | ({"FORCE_COLOR": "1"} if colour else {})
        done = person_runs(state, "show", run_id(1), *options, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    printed = check_obeyed_by_no_terminal(done.stdout)
    if options:
        assert len(json.loads(printed)["events"]) == 11
    else:
        own = ("run_forged", "Error: forged")
        assert [line for line in printed.splitlines() if line.startswith(own)] == []
        assert "printed: no JSON" in printed


def test_a_diff_has_the_colours_of_git_and_nothing_else() -> None:
    text = show.coloured(DIFF)
    assert "\x1b" not in text.plain
    styles = {text.plain[span.start : span.end].strip(): span.style for span in text.spans}
    assert styles["+new \ufffd[31m"] == "green"
    assert styles["-old"] == "red"
    assert styles["@@ -1,2 +1,2 @@"] == "cyan"
    assert styles["--- a/a.py"] == styles["+++ b/a.py"] == "bold"
    assert "same" not in styles


def test_the_diff_of_a_result_is_shown_once_there_is_one(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(state) as store:
        keep(store, 1)
    found = json_of(state, "show", run_id(1))
    found["result"]["changes"] = {"text": DIFF}
    show.show(found)
    assert "Diff:\n  diff --git a/a.py b/a.py\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "prefix", ["run_00000000000000a", "00000000000000a1", "run_00000000000000a1"]
)
def test_an_unambiguous_beginning_of_an_id_is_enough(state: Path, prefix: str) -> None:
    with server(state) as store:
        keep(store, 0xA1)
        keep(store, 0xB1)
    assert json_of(state, "show", prefix)["run"]["run_id"] == run_id(0xA1)


@pytest.mark.parametrize("command", ["show", "stop"])
@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("run_", "9 runs begin with 'run_': run_0000000000000001, "),
        ("", "There is no run '' in "),
        ("run_f", "There is no run 'run_f' in "),
        ("../runs/run_", "There is no run "),
        (f"x{EVIL}", "There is no run "),
        ("run_0000000000000009", "Run run_0000000000000009 is not known"),
    ],
)
def test_an_unknown_or_ambiguous_id_is_named(
    state: Path, command: str, prefix: str, says: str
) -> None:
    with server(state) as store:
        for number in range(1, 10):
            keep(store, number)
    (state / "runs" / run_id(9) / "run.json").write_text("{")
    done = person_runs(state, command, prefix, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    check_obeyed_by_no_terminal(done.stderr)


def test_a_run_must_be_named(state: Path) -> None:
    for words in (
        ("show",),
        ("stop",),
        ("show", "run_1", "--events", "few"),
        ("runs", "--limit=x"),
    ):
        done = person_runs(state, *words)
        assert (done.returncode, done.stdout) == (2, ""), words
