"""`mcp-server-codex completion SHELL`: print a script that completes commands and options.

The words come from the help of each command, so they are always those that it takes.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    case "${COMP_WORDS[1]} ${COMP_WORDS[COMP_CWORD-1]}" in
VALUES
    *) case "${COMP_WORDS[1]}" in
CASES
    esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _mcp_server_codex mcp-server-codex
"""

_TOP = ("--help", "--version")
"""Options that stand in place of a command."""

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
    words["completion"] = Words([*SHELLS], {"--help": []})
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments[0]]
    sys.stdout.write(write(words))
    return 0


@dataclass(frozen=True, slots=True)
class Words:
    """What may follow the name of a command."""

    plain: list[str]
    """Values of an argument, such as the names of clients."""
    options: dict[str, list[str]]
    """Options, each with its values; empty if it has none or any value will do."""

    @property
    def listed(self) -> str:
        """All words that are not the value of an option."""
        return " ".join([*self.plain, *self.options])


def _words_of(name: str, run: Run) -> Words:
    """Return the words that the help of a command lists, values from within braces."""
    said = io.StringIO()
    if name != "completion":
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            run(name, ["--help"])
    text = re.sub(r"\s+", " ", said.getvalue())
    options: dict[str, list[str]] = {"--help": []}
    for option, choices in re.findall(r"(?<![\w-])(--[a-z][a-z-]*)(?: \{([a-z0-9, -]+)\})?", text):
        options[option] = _values(choices) or options.get(option, [])
    rest = re.sub(r"--[a-z-]+ \{[^}]*\}", "", text)
    plain = {
        value for choices in re.findall(r"\{([a-z0-9, -]+)\}", rest) for value in _values(choices)
    }
    return Words(sorted(plain), dict(sorted(options.items())))


def _values(choices: str) -> list[str]:
    return [value.strip() for value in choices.split(",") if value.strip()]


def _bash(words: dict[str, Words]) -> str:
    cases = [f'      {name}) words="{each.listed}" ;;' for name, each in words.items()]
    values = [
        f'    "{name} {option}") words="{" ".join(choices)}" ;;'
        for name, each in words.items()
        for option, choices in each.options.items()
        if choices
    ]
    script = _BASH.replace("COMMANDS", " ".join([*words, *_TOP]))
    return script.replace("CASES", "\n".join(cases)).replace("VALUES", "\n".join(values))


def _zsh(words: dict[str, Words]) -> str:
    lines = [
        "#compdef mcp-server-codex",
        "local -a choices",
        "if (( CURRENT == 2 )); then",
        f"  choices=({' '.join([*words, *_TOP])})",
        "else",
        '  case "$words[2] $words[CURRENT-1]" in',
    ]
    for name, each in words.items():
        lines += [
            f'    "{name} {option}") choices=({" ".join(values)}) ;;'
            for option, values in each.options.items()
            if values
        ]
    lines += ['    *) case "$words[2]" in']
    lines += [f"      {name}) choices=({each.listed}) ;;" for name, each in words.items()]
    lines += ["    esac ;;", "  esac", "fi", "compadd -a choices || _files"]
    return "\n".join(lines) + "\n"


def _fish(words: dict[str, Words]) -> str:
    begin = "complete -c mcp-server-codex"
    lines = [f"{begin} -f -n __fish_use_subcommand -a '{' '.join(words)}'"]
    lines += [f"{begin} -n __fish_use_subcommand -l {option[2:]}" for option in _TOP]
    for name, each in words.items():
        seen = f"'__fish_seen_subcommand_from {name}'"
        if each.plain:
            lines.append(f"{begin} -f -n {seen} -a '{' '.join(each.plain)}'")
        for option, values in each.options.items():
            choices = f" -x -a '{' '.join(values)}'" if values else ""
            lines.append(f"{begin} -n {seen} -l {option[2:]}{choices}")
    return "\n".join(lines) + "\n"
