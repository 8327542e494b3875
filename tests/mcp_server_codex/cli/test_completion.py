"""The scripts that complete commands and options, in the shells that are on this machine."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.lab import server_program


@functools.cache
def script(shell: str) -> str:
    done = subprocess.run(
        [server_program(), "completion", shell], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


LINES = pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mcp-server-codex us", {"usage"}),
        ("mcp-server-codex --v", {"--version"}),
        ("mcp-server-codex usage --gr", {"--group-by"}),
        ("mcp-server-codex usage --group-by mo", {"model", "month"}),
        ("mcp-server-codex install cu", {"cursor"}),
        ("mcp-server-codex install pro", set[str]()),
        ("mcp-server-codex install cursor --scope pro", {"project"}),
        ("mcp-server-codex stop --st", {"--state-dir"}),
        ("mcp-server-codex completion f", {"fish"}),
        ("mcp-server-codex uninst", {"uninstall"}),
    ],
)


@LINES
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


@LINES
def test_fish_completes(line: str, offered: set[str], tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    program = Path(server_program())
    folder = tmp_path / ".config" / "fish" / "completions"
    folder.mkdir(parents=True)
    (folder / "mcp-server-codex.fish").write_text(script("fish"))
    done = subprocess.run(
        ["fish", "-c", f"complete -C '{line}'"],
        # fish looks for the completions of a command that it finds.
        env={"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    start = line.split()[-1]
    # fish also offers words that have the letters elsewhere in them.
    assert {word for word in done.stdout.split() if word.startswith(start)} == offered


ZSH = """\
zmodload zsh/zpty
zpty shell zsh -f -i
ask() { zpty -w shell "$1"; }
ask "fpath=($2 \\$fpath); autoload -Uz compinit; compinit -u -d $2/dump"
ask "zstyle ':completion:*' list-prompt ''; LISTMAX=10000; PS1=; compadd() { local -a found"
ask "  builtin compadd -O found \"\\$@\"; print -rl -- '' \\"OFFERED \\${(j: :)found}\\"; false }"
ask "print READY"
zpty -r shell answer "*READY*"$'\\n'"*READY*"
zpty -w -n shell "$1"$'\\t'
zpty -r shell answer "*OFFERED*"$'\\n'
print -r -- "$answer"
zpty -d shell
"""


@LINES
def test_zsh_completes(line: str, offered: set[str], tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    (tmp_path / "_mcp-server-codex").write_text(script("zsh"))
    done = subprocess.run(
        ["zsh", "-f", "-c", ZSH, "zsh", line, str(tmp_path)],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TERM": "dumb"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    words = re.findall(r"OFFERED (.*)", done.stdout)
    assert words, done.stdout + done.stderr
    assert {*words[0].split()} == offered


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
