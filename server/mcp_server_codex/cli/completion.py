"""`mcp-server-codex completion SHELL`: print a script that completes commands and options.

The words come from the help of each command, so they are always those that it takes.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence

SHELLS = ("bash", "zsh", "fish")

_USAGE = """\
usage: mcp-server-codex completion bash | zsh | fish

Prints a script that completes the commands and their options. To use it:

  bash  eval "$(mcp-server-codex completion bash)"     in ~/.bashrc
  zsh   mcp-server-codex completion zsh > "${fpath[1]}/_mcp-server-codex"
  fish  mcp-server-codex completion fish > ~/.config/fish/completions/mcp-server-codex.fish
"""

_BASH = """\
_mcp_server_codex() {
  local words
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="COMMANDS"
  else
    case "${COMP_WORDS[1]}" in
CASES
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _mcp_server_codex mcp-server-codex
"""

Run = Callable[[str, list[str]], int]


def run_completion(arguments: list[str], commands: Sequence[str], run: Run) -> int:
    """Run the command; return the exit code.

    Args:
        arguments: The command line after the command's name.
        commands: The names of all commands.
        run: Runs a command with arguments.
    """
    if arguments in (["--help"], ["-h"]):
        sys.stdout.write(_USAGE)
        return 0
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        sys.stderr.write(_USAGE)
        return 2
    words = {name: _words_of(name, run) for name in commands}
    words["completion"] = [*SHELLS, "--help"]
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments[0]]
    sys.stdout.write(write(words))
    return 0


def _words_of(name: str, run: Run) -> list[str]:
    """Return the options of a command, and the values that its help lists in braces."""
    if name == "completion":
        return []
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        run(name, ["--help"])
    found = re.findall(r"(?<![\w-])--[a-z][a-z-]*", said.getvalue())
    for choices in re.findall(r"\{([a-z0-9,-]+)\}", said.getvalue().replace("\n", "")):
        found += choices.split(",")
    return sorted({*found, "--help"})


def _bash(words: dict[str, list[str]]) -> str:
    cases = [f'      {name}) words="{" ".join(each)}" ;;' for name, each in words.items()]
    script = _BASH.replace("COMMANDS", " ".join([*words, "--help", "--version"]))
    return script.replace("CASES", "\n".join(cases))


def _zsh(words: dict[str, list[str]]) -> str:
    cases = [f"      {name}) choices=({' '.join(each)}) ;;" for name, each in words.items()]
    lines = [
        "#compdef mcp-server-codex",
        "local -a choices",
        "if (( CURRENT == 2 )); then",
        f"  choices=({' '.join([*words, '--help', '--version'])})",
        "else",
        '  case "$words[2]" in',
        *cases,
        "  esac",
        "fi",
        "(( ${#choices} )) && compadd -a choices || _files",
    ]
    return "\n".join(lines) + "\n"


def _fish(words: dict[str, list[str]]) -> str:
    lines = [
        "complete -c mcp-server-codex -f -n __fish_use_subcommand -a '" + " ".join(words) + "'"
    ]
    for name, each in words.items():
        seen = f"'__fish_seen_subcommand_from {name}'"
        plain = [word for word in each if not word.startswith("--")]
        if plain:
            lines.append(f"complete -c mcp-server-codex -f -n {seen} -a '{' '.join(plain)}'")
        lines += [
            f"complete -c mcp-server-codex -n {seen} -l {word[2:]}"
            for word in each
            if word.startswith("--")
        ]
    return "\n".join(lines) + "\n"
