"""`doctor --place NAME` finds what is missing at a place, and names the fix."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from importlib.metadata import version as version_of
from pathlib import Path

import pytest

from codex_tools.codex.json_object import Json
from support.fake_codex import FakeCodex
from support.far_machine import FarMachine, far_machine
from support.lab import Lab, environment, server_program

WORKER = """
import json, os
def put(type_, **fields):
    os.write(1, json.dumps({"type": type_, **fields}, separators=(",", ":")).encode() + b"\\n")
rest = b""
while True:
    while b"\\n" not in rest:
        rest += os.read(0, 65536) or os._exit(0)
    line, _, rest = rest.partition(b"\\n")
    type_ = json.loads(line)["type"]
    if type_ == "hello":
        put("hello", **HELLO)
    elif type_ == "examine":
        put("examined", **FOUND)
    elif type_ == "ping" and PONG is not None:
        put("pong", sent=json.loads(line)["sent"] - PONG)
"""
"""A worker that says what the test wants."""

FOUND: Json = {
    **{"git": "git version 2.39.2", "login": 0, "login_said": "Logged in using ChatGPT"},
    **{"has_key": False, "home": "/far/.codex", "state_dir": "/far/state", "free_mb": 90_000},
    "python": "3.12.1",
}

PROGRAM: Json = {
    **{"path": "/far/codex", "version": [0, 171, 0], "version_text": "0.171.0", "flags": []}
}

ALL = ["place", "codex", "login", "git", "python", "disk", "clock", "lease"]


def diagnose(lab: Lab, places: str, name: str = "box", *options: str) -> tuple[int, list[Json]]:
    """Return the exit code and the findings, without those about this machine."""
    file = lab.root / "places.toml"
    file.write_text(places)
    command = [server_program(), "doctor", "--json", "--place", name, "--places", str(file)]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment(lab), check=False
    )
    found: list[Json] = json.loads(done.stdout)["checks"]
    names = [each["name"] for each in found]
    return done.returncode, found[names.index("settings") + 1 :]


def of(lab: Lab, checks: dict[str, object] | None = None, **more: object) -> list[Json]:
    """Return the findings about a place whose worker says this."""
    mine = version_of("mcp-server-codex")
    hello = {"protocol": 1, "version": mine, "program": PROGRAM} | (checks or {})
    pong = more.pop("pong", 0)
    found = {**FOUND, "time": time.time(), **more}
    script = f"HELLO, FOUND, PONG = {hello!r}, {found!r}, {pong!r}\n{WORKER}"
    argv = [sys.executable, "-I", "-c", script]
    code, all_ = diagnose(lab, f"[box]\nargv = {json.dumps(argv)}\nworker = 'x'\n")
    assert code == (1 if any(each["status"] == "problem" for each in all_) else 0)
    return all_


def far(lab: Lab, codex: Path, **env: str) -> tuple[list[str], dict[str, str]]:
    home = lab.root / "far-home"
    home.mkdir()
    command = [server_program(), "worker", "--codex-bin", str(codex)]
    command += ["--state-dir", str(lab.root / "far-state")]
    return command, environment(lab) | {"CODEX_HOME": str(home)} | env


def table(machine: FarMachine) -> str:
    return f"[box]\nargv = {json.dumps([*machine.argv])}\nworker = 'x'\n"


def test_a_place_with_all_that_a_run_needs_has_no_problem(lab: Lab, fake: FakeCodex) -> None:
    with far_machine(*far(lab, fake.build())) as machine:
        code, found = diagnose(lab, table(machine))
    assert code == 0, [each for each in found if each["status"] == "problem"]
    assert [each["name"] for each in found] == ALL
    known = {each["name"]: each for each in found if each["name"] not in ("login", "disk")}
    assert {each["status"] for each in known.values()} == {"ok"}, found
    assert str(lab.root / "far-state") in next(
        each["message"] for each in found if each["name"] == "disk"
    )
    assert not (lab.root / "far-home" / "sessions").exists()


def test_codex_without_a_login_at_the_place_is_found(codex: Path, lab: Lab) -> None:
    with far_machine(*far(lab, codex)) as machine:
        _, found = diagnose(lab, table(machine))
        login = next(each for each in found if each["name"] == "login")
        assert login["status"] == "warning"
        assert "Not logged in" in login["message"]
        assert login["cure"].startswith(shlex.join(machine.argv) + " codex login --device-auth")
    with far_machine(*far_again(lab, codex, CODEX_API_KEY="sk-far-1234567890")) as machine:
        _, found = diagnose(lab, table(machine))
    login = next(each for each in found if each["name"] == "login")
    assert (login["status"], "sk-far" in json.dumps(found)) == ("ok", False)


def far_again(lab: Lab, codex: Path, **env: str) -> tuple[list[str], dict[str, str]]:
    shutil.rmtree(lab.root / "far-home")
    return far(lab, codex, **env)


def test_a_place_without_git_or_codex_is_a_problem(lab: Lab, fake: FakeCodex) -> None:
    with far_machine(*far(lab, fake.build(), PATH="/nowhere")) as machine:
        code, found = diagnose(lab, table(machine))
    git = next(each for each in found if each["name"] == "git")
    assert (code, git["status"]) == (1, "problem")
    assert "Install git 2.31" in git["cure"]
    with far_machine(*far_again(lab, lab.root / "no-codex")) as machine:
        code, found = diagnose(lab, table(machine))
    assert (code, [each["name"] for each in found]) == (1, ["codex"])
    assert "--codex-bin" in found[0]["cure"]


@pytest.mark.parametrize(
    ("text", "name", "problem", "cure"),
    [
        ("[box]\nargv = ['sh', '-c', 'echo no route >&2; exit 255']", "box", "no route", "sh -c"),
        ("[box]\nargv = ['/no/such/ssh']", "box", "no program '/no/such/ssh'", "terminal"),
        ("[box]\nssh = 'b'", "mars", "has no place 'mars'; there are: box", "Edit"),
        ("[box]\nssh = 'b'", "here", "needs no --place", "mcp-server-codex doctor"),
        ("[box]\nssh = 'b'", "", "has no place ''", "Edit"),
    ],
)
def test_a_place_that_cannot_be_reached_is_a_problem(
    lab: Lab, text: str, name: str, problem: str, cure: str
) -> None:
    code, (found,) = diagnose(lab, text, name)
    assert (code, found["name"], found["status"]) == (1, "place", "problem")
    assert problem in found["message"]
    assert cure in found["cure"]


def test_without_a_file_of_places_the_doctor_says_so(lab: Lab) -> None:
    command = [server_program(), "doctor", "--json", "--place=box"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(lab), check=False
    )
    found = json.loads(done.stdout)["checks"][-1]
    assert (done.returncode, found["message"]) == (1, "There is no file of places.")
    assert "--places FILE" in found["cure"]


@pytest.mark.parametrize(
    ("says", "name", "status", "message", "cure"),
    [
        ({"git": "git version 2.30.9"}, "git", "problem", "2.30.9 is too old", "2.31"),
        ({"git": ""}, "git", "problem", "no git", "2.31"),
        ({"free_mb": 20}, "disk", "problem", "20 MB", "--state-dir"),
        ({"free_mb": 1500}, "disk", "warning", "max_tree_mb is 2000", "lower max_tree_mb"),
        ({"time": time.time() - 7000}, "clock", "warning", "behind", "timedatectl"),
        ({"time": time.time() + 7000}, "clock", "warning", "ahead of", "timedatectl"),
        ({"login": 1, "login_said": "Not logged in"}, "login", "warning", "Not logged", "login"),
        ({"pong": 20}, "lease", "warning", "A ping takes 20,", "Raise lease_s"),
        ({"pong": None}, "lease", "problem", "No ping was answered", "terminal"),
        ({"free_mb": "much"}, "place", "problem", "free_mb is no number", "terminal"),
    ],
)
def test_what_a_worker_says_is_judged(
    lab: Lab, says: dict[str, object], name: str, status: str, message: str, cure: str
) -> None:
    found = next(each for each in of(lab, None, **says) if each["name"] == name)
    assert found["status"] == status
    assert message in found["message"]
    assert cure in found["cure"]


def test_another_version_or_protocol_there_is_found(lab: Lab) -> None:
    first = of(lab, {"version": "0.0.1"})[0]
    assert (first["status"], "0.0.1" in first["message"]) == ("warning", True)
    assert f"mcp-server-codex=={version_of('mcp-server-codex')}" in first["cure"]
    (only,) = of(lab, {"protocol": 7})
    assert (only["status"], "version 7 of the protocol" in only["message"]) == ("problem", True)


def test_no_process_of_the_place_is_left(lab: Lab, fake: FakeCodex) -> None:
    mark = f"doctor-{os.getpid()}-{lab.root.name}"
    from support.far_machine import wait_until_gone

    with far_machine(*far(lab, fake.build(), TEST_MARK=mark)) as machine:
        assert diagnose(lab, table(machine))[0] == 0
        assert wait_until_gone(f"TEST_MARK={mark}", 5.0) == {}
