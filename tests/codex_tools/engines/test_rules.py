"""Which of Codex's rules count, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from codex_tools.codex.errors import NotAllowed
from codex_tools.codex.program import Program, Version
from codex_tools.engines.project_trust import Project
from codex_tools.engines.rules import describe_rules, rules_in, switch_rules_off

RULES = [Path("/home/rules/default.rules")]


def codex(version: Version | None, *flags: str) -> Program:
    return Program(Path("/bin/codex"), version, str(version), None, frozenset(flags))


def test_the_rules_of_the_person_and_of_trusted_folders_are_found(tmp_path: Path) -> None:
    places = ("home/rules", "root/.codex/rules", "root/sub/.codex/rules")
    for place in places:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.rules").touch()
        (tmp_path / place / "a.txt").touch()
    project = Project(((tmp_path / "root", True), (tmp_path / "root" / "sub", False)))
    found = rules_in(project, tmp_path / "home")
    assert found == [tmp_path / place / "a.rules" for place in places[:2]]
    assert rules_in(None, tmp_path / "none") == []


def test_each_version_is_told_in_its_own_way() -> None:
    off = ["features.exec_policy=false"]
    assert switch_rules_off(codex((0, 60, 1)), RULES) == []
    assert switch_rules_off(codex((0, 77, 0)), RULES) == off
    assert switch_rules_off(codex((0, 98, 0)), RULES) == off
    assert switch_rules_off(codex((0, 171, 0), "--ignore-rules"), RULES) == []
    assert switch_rules_off(codex(None, "--ignore-rules"), RULES) == []


@pytest.mark.parametrize("version", [(0, 120, 0), None])
def test_a_codex_that_obeys_rules_whatever_it_is_told_is_refused(version: Version | None) -> None:
    assert switch_rules_off(codex(version), []) == []
    with pytest.raises(NotAllowed) as caught:
        switch_rules_off(codex(version), RULES)
    assert caught.value.option == "--rules"


def test_rules_are_named_where_they_count_or_no_longer_forbid(tmp_path: Path) -> None:
    allowing, forbidding = tmp_path / "a.rules", tmp_path / "b.rules"
    allowing.write_text('prefix_rule(pattern=["a"], decision="allow")')
    forbidding.write_text('prefix_rule(pattern=["b"], decision="forbidden")')
    both = [allowing, forbidding]
    (kept,) = describe_rules([], both, "read-only", kept=True)
    assert str(allowing) in kept
    (ignored,) = describe_rules([], both, "read-only", kept=False)
    assert str(forbidding) in ignored
    assert str(allowing) not in ignored
    assert describe_rules([], [allowing], "read-only", kept=False) == []
    assert describe_rules([], [], "read-only", kept=True) == []
    machine, ignored = describe_rules([allowing], [forbidding], "read-only", kept=False)
    assert "in force" in machine
    assert str(forbidding) not in machine
    assert "ignored" in ignored
