"""What the outputs of Codex's shell tools say, in all their forms."""

from __future__ import annotations

import json

import pytest

from codex_tools.rollouts.shell_output import (
    ShellOutput,
    is_patch,
    patched_folder,
    patched_paths,
    read_output,
)

DONE = "Success. Updated the following files:\nA new.txt\nM src/a b.py\nD old\n"


def as_json(text: str, code: object) -> str:
    return json.dumps({"output": text, "metadata": {"exit_code": code, "duration_seconds": 0.1}})


@pytest.mark.parametrize(
    ("output", "code", "text"),
    [
        (as_json("a.txt\n", 0), 0, "a.txt\n"),  # `shell` of 0.60.1
        (as_json("Exit code: 7\n", 3), 3, "Exit code: 7\n"),
        ("Exit code: 0\nWall time: 0.1 seconds\nOutput:\nhi\n", 0, "hi\n"),
        ("Exit code: 124\nWall time: 9 seconds\nTotal output lines: 3\nOutput:\nx", 124, "x"),
        ("Chunk ID: 1\nWall time: 0 seconds\nProcess exited with code -1\nOutput:\n", -1, ""),
        ("Exit code: 2\n", 2, "Exit code: 2\n"),
        (
            "Wall time: 0.0 seconds\nOutput:\n" + as_json(DONE, 0),  # a patch on 0.120.0
            0,
            DONE,
        ),
        (
            # A patch on 0.171.0.
            "Wall time: 0.0 seconds\nOutput:\nExit code: 0\nWall time: 0 seconds\nOutput:\n" + DONE,
            0,
            DONE,
        ),
    ],
)
def test_an_exit_code_is_read_in_each_form(output: str, code: int, text: str) -> None:
    assert read_output(output) == ShellOutput(text, code)
    assert read_output([{"type": "input_text", "text": output}]) == ShellOutput(text, code)


@pytest.mark.parametrize(
    "output",
    [
        "hello\nExit code: 5\nOutput:\n",
        "Wall time: 1 seconds\nOutput:\nExit code: 5\nOutput:\nprinted by the command",
        "Wall time: 1 seconds\nOutput:\n" + as_json("printed by the command", 5),
        '{"output": 3, "metadata": {"exit_code": 5}}',
        '{"exit_code": 5}',
        '{"output": "torn',
        as_json("x", "5"),
        as_json("x", None),
        "",
    ],
)
def test_what_a_command_printed_is_no_exit_code(output: str) -> None:
    assert read_output(output).exit_code is None


@pytest.mark.parametrize("output", [None, 5, {"output": "x"}, [1], []])
def test_an_output_of_another_type_says_nothing(output: object) -> None:
    assert read_output(output) == ShellOutput()


def test_a_command_that_still_runs_has_a_session_and_no_exit_code() -> None:
    output = "Chunk ID: 1\nProcess running with session ID 71469\nOutput:\nExit code: 5\n"
    assert read_output(output) == ShellOutput("Exit code: 5\n", None, "71469")


@pytest.mark.parametrize(
    "output",
    [
        "exec_command failed for `x`: CreateProcess",
        "aborted by user after 3.1s",
        "Wall time: 3.1 seconds\nOutput:\naborted by user",
        "exec command rejected by user",
        "unsupported call: container.exec",
        "apply_patch verification failed: invalid patch",
    ],
)
def test_a_command_that_did_not_run_to_its_end_is_known(output: str) -> None:
    assert read_output(output).is_refused
    assert not read_output("Exit code: 1\nOutput:\naborted by user").is_refused


def test_the_files_of_a_patch_end_where_its_list_ends() -> None:
    assert list(patched_paths(f"before\n{DONE}")) == [
        ("A", "new.txt"),
        ("M", "src/a b.py"),
        ("D", "old"),
    ]
    assert list(patched_paths(f"{DONE}\nA no.txt\n"))[3:] == []
    assert list(patched_paths("A no.txt\n")) == []


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("apply_patch <<'EOF'", "/p"),
        ("cd sub && apply_patch <<'EOF'", "/p/sub"),
        (" cd  'a b' &&  apply_patch <<EOF", "/p/a b"),
        ("cd /q && apply_patch <<EOF", "/q"),
        ("cd sub; apply_patch <<EOF", "/p"),
        ("make", "/p"),
    ],
)
def test_a_patch_is_applied_where_its_command_changes_to(command: str, folder: str) -> None:
    assert patched_folder(command, "/p") == folder


def test_a_command_that_does_more_than_a_patch_is_a_command() -> None:
    assert is_patch("apply_patch <<'EOF'\n...", ShellOutput(DONE, 0))
    assert is_patch("cd a && apply_patch <<'EOF'\n...", ShellOutput(DONE, 0))
    assert not is_patch("apply_patch <<'EOF'\n...\nmake", ShellOutput(f"{DONE}made\n", 0))
    assert not is_patch("make && apply_patch <<'EOF'", ShellOutput(DONE, 0))
    assert not is_patch("apply_patch <<'EOF'", ShellOutput("apply_patch verification failed", 1))
