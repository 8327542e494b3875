"""Every command line in the README and the docs, run as written in a bare home folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.installed_package import TOP
from support.lab import server_program

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "plugin/**/*.md")
    for path in TOP.glob(pattern)
    if path.name != "CHANGELOG.md"
)
PROGRAM = "mcp-server-codex"
STANDS_FOR = {"CLIENT": "cursor", "RUN": "run_4f", "SHELL": "bash", "ID": "01a2"}
"""What a word in capitals is replaced with."""

NOT_THERE = ("There is no run", "There is no thread", "`claude` was not found", "\nproblem ")
"""What a command says that ends with 1 in a bare home: nothing that it needs is there."""


def command_lines(page: Path) -> set[str]:
    """Return the command lines of *page* that start this program, without comments."""
    text = page.read_text()
    lines = re.findall(rf"^\$ ({PROGRAM}(?: .*)?)$", text, re.MULTILINE)
    lines += re.findall(rf"`({PROGRAM} [^`\n]+)`", text)
    return {re.sub(r"\s+# .*", "", line).strip() for line in lines}


LINES = sorted({line for page in PAGES for line in command_lines(page)})


def make_targets(page: Path) -> set[str]:
    text = page.read_text()
    found = re.findall(r"^\$ make ([a-z]+)", text, re.MULTILINE)
    return {*found, *re.findall(r"`make ([a-z]+)[ `]", text)}


def test_there_are_lines_to_run() -> None:
    assert len(LINES) > 12
    assert f"{PROGRAM} doctor" in LINES


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_of_the_docs_does_what_it_says(line: str, tmp_path: Path) -> None:
    words = [STANDS_FOR.get(word, word.strip("[]")) for word in shlex.split(line)[1:]]
    if words[:1] == ["watch"]:
        words.append("--help")  # It runs until Ctrl-C.
    done = subprocess.run(
        [server_program(), *words],
        cwd=tmp_path,
        env={
            # A folder with git and a shell, but without clients and without a Codex of its own.
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.defpath)),
            "HOME": str(tmp_path),
            "LANG": "C.UTF-8",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )
    said = f"\n{done.stdout}{done.stderr}"
    assert "Traceback" not in said
    assert done.returncode == 0 or any(word in said for word in NOT_THERE), (words, said)
    assert done.returncode in (0, 1), said


def test_each_make_target_that_is_named_exists() -> None:
    known = {*re.findall(r"^([a-z]+):", (TOP / "Makefile").read_text(), re.MULTILINE)}
    named = {target for page in PAGES for target in make_targets(page)}
    assert named - known == set()
    assert len(named) > 8
