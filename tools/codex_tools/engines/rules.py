"""Keep Codex's rules about commands from widening a turn.

Codex loads `rules/*.rules` from CODEX_HOME, from `/etc/codex` and from the `.codex` folders of a
trusted project. A command that a rule allows runs outside the sandbox, even if that is read-only
(seen with 0.77.0 to 0.171.0; 0.60.1 has no rules). A rule can forbid a command, too. The rules in
`/etc/codex` always count: they are the administrator's, and `--ignore-rules` leaves them in force
(seen with 0.147.0 and 0.171.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from codex_tools.codex.errors import NotAllowed
from codex_tools.codex.foreign_file import open_foreign_file
from codex_tools.codex.program import Program, Version
from codex_tools.codex.sandbox import Sandbox
from codex_tools.engines.project_trust import Project

RULES: tuple[Version, Version] = ((0, 61, 0), (0, 99, 0))
"""First version that may have rules, and end (excluded) of those that a feature switches off.

`features.exec_policy=false` works on 0.77.0 and 0.98.0, and has no effect on 0.120.0.
"""

BYTES_LIMIT = 1024 * 1024
"""Bytes of a file with rules that are searched for a rule that forbids."""

_FORBIDS = (b"forbidden", b"prompt")
"""Decisions of rules that narrow: nobody can answer a prompt of `codex exec`."""

_OPTION = "--rules"


def rules_in(project: Project | None, home: Path) -> list[Path]:
    """Return the files with rules that Codex would load from CODEX_HOME and the project."""
    places = [home]
    if project is not None:
        trusted = (folder / ".codex" for folder in project.trusted)
        places += [folder for folder in trusted if folder != home]
    return [file for place in places for file in rules_of(place)]


def rules_of(place: Path) -> list[Path]:
    """Return the files with rules in CODEX_HOME, or another folder like it."""
    return sorted((place / "rules").glob("*.rules"))


def switch_rules_off(program: Program, rules: Sequence[Path]) -> list[str]:
    """Return the settings with which Codex loads no rules, beside `--ignore-rules`.

    Raises:
        NotAllowed: There are *rules*, and this Codex obeys them whatever it is told.
    """
    version = program.version
    if "--ignore-rules" in program.flags or (version is not None and version < RULES[0]):
        return []
    if version is not None and version < RULES[1]:
        return ["features.exec_policy=false"]
    if rules:
        raise NotAllowed(
            f"a run with Codex {program.version_text}, which obeys the rules in {rules[0]}",
            "commands that they allow run outside the sandbox",
            _OPTION,
        )
    return []


def describe_rules(
    machine: Sequence[Path], rules: Sequence[Path], sandbox: Sandbox, *, kept: bool
) -> list[str]:
    """Return warnings about rules that were in force, or that no longer forbid anything.

    Args:
        machine: The files with the rules of the machine.
        rules: The files with other rules.
        sandbox: The sandbox of the turn.
        kept: True if those other rules count.
    """
    warnings: list[str] = []
    in_force = [*machine, *rules] if kept else machine
    if in_force:
        warnings.append(
            f"Codex's rules were in force ({_listed(in_force)}): commands that they allow ran"
            f" outside the sandbox {sandbox}."
        )
    forbidding = [] if kept else [file for file in rules if _may_forbid(file)]
    if forbidding:
        warnings.append(
            f"Codex's rules were ignored, those that forbid commands too ({_listed(forbidding)})."
            f" The operator can keep all rules with {_OPTION} keep."
        )
    return warnings


def _may_forbid(file: Path) -> bool:
    try:
        if not file.is_file():
            return False
        with open_foreign_file(file, follow=True) as opened:
            text = opened.read(BYTES_LIMIT)
    except OSError:
        return False
    return any(word in text for word in _FORBIDS)


def _listed(files: Sequence[Path]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(str(file) for file in files[:3]) + more
