"""The scripts that complete commands and options, in the shells that are on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.lab import server_program


def script(shell: str) -> str:
    done = subprocess.run(
        [server_program(), "completion", shell], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mcp-server-codex us", {"usage"}),
        ("mcp-server-codex usage --gr", {"--group-by"}),
        ("mcp-server-codex install cu", {"cursor"}),
        ("mcp-server-codex stop --st", {"--state-dir"}),
        ("mcp-server-codex completion f", {"fish"}),
        ("mcp-server-codex uninst", {"uninstall"}),
    ],
)
def test_bash_completes(line: str, offered: set[str], tmp_path: Path) -> None:
    file = tmp_path / "completion.bash"
    file.write_text(script("bash"))
    words = line.split()
    listed = " ".join(words)
    ask = (
        f". {file}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _mcp_server_codex;"
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert {*done.stdout.split()} == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_get_the_same_words(shell: str, tmp_path: Path) -> None:
    text = script(shell)
    for name in re.findall(r"^ {6}([a-z]+)\)", script("bash"), re.MULTILINE):
        assert name in text
    for word in ("group-by", "cursor", "thread-id"):
        assert word in text
    if shutil.which(shell):
        file = tmp_path / "completion"
        file.write_text(text)
        subprocess.run([shell, "-n", str(file)], check=True)


@pytest.mark.parametrize("arguments", [[], ["tcsh"], ["bash", "zsh"]])
def test_an_unknown_shell_is_refused(arguments: list[str]) -> None:
    done = subprocess.run(
        [server_program(), "completion", *arguments],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 2
    assert "bash | zsh | fish" in done.stderr
