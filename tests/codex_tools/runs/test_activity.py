"""What a run does now is read from its event log, as far as it has grown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from codex_tools.runs import activity
from codex_tools.runs.activity import Activity
from support.lab import Json
from support.stored_state import SECRET, command_event, item


def line(event: Json) -> bytes:
    return json.dumps(event).encode() + b"\n"


def patch(name: str) -> bytes:
    changes = [{"path": f"/work/{name}", "kind": "add"}]
    return line(item("file_change", name, changes=changes, status="completed"))


def test_without_a_log_codex_is_starting(tmp_path: Path) -> None:
    run = Activity(tmp_path / "events.jsonl")
    run.look()
    assert run.doing == "starting Codex"
    assert run.files_changed == 0


def test_each_look_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    run = Activity(log)
    log.write_bytes(patch("a") + line(command_event("make")))
    run.look()
    assert (run.doing, run.files_changed) == ("running make", 1)
    late = line(command_event("make test"))
    with log.open("ab") as file:
        file.write(patch("b") + late[:20])
    run.look()
    assert (run.doing, run.files_changed) == ("editing b", 2)
    with log.open("ab") as file:
        file.write(late[20:])
    run.look()
    run.look()
    assert (run.doing, run.files_changed) == ("running make test", 2)
    for part in (late[:10], late[10:30], late[30:]):  # No look sees the end of a line but the last.
        with log.open("ab") as file:
            file.write(part.replace(b"make test", b"make last"))
        run.look()
    assert run.doing == "running make last"


def test_of_a_long_log_only_the_end_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "READ_LIMIT", 1000)
    log = tmp_path / "events.jsonl"
    log.write_bytes(b"".join(patch(f"{n}") for n in range(50)) + line(command_event("make")))
    run = Activity(log)
    run.look()
    assert (run.doing, run.files_changed) == ("running make", None)
    with log.open("ab") as file:
        file.write(line(command_event("make " + "x" * 3000)))
    run.look()  # An event longer than what is read at a time.
    assert run.doing == "running make"
    with log.open("ab") as file:
        file.write(line(command_event("make test")))
    run.look()
    assert run.doing == "running make test"


def test_secrets_are_masked(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_bytes(line(item("web_search", query=f"what is {SECRET}")))
    run = Activity(log)
    run.look()
    assert run.doing == "searching what is [secret]"


def test_what_is_no_log_of_ours_is_not_read(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    other = tmp_path / "other"
    other.write_bytes(line(command_event("make")))
    log.symlink_to(other)
    run = Activity(log)
    run.look()
    log.unlink()
    os.mkfifo(log)
    run.look()
    assert run.doing == "starting Codex"
