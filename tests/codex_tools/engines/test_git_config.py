"""What replaces the programs that a repository names, read by git itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from codex_tools.codex.errors import InvalidArguments
from codex_tools.engines import git_config
from codex_tools.engines.git_config import without_repository_programs

NEW = (0, 171, 0)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def configure(project: Path, key: str, value: str, *where: str) -> None:
    subprocess.run(["git", "config", *where, key, value], cwd=project, check=True)


def in_force(project: Path, env: dict[str, str], key: str) -> list[str]:
    """Return the values that git sees in the environment for Codex."""
    changed = env | without_repository_programs(env, project, NEW)
    command = ["git", "config", "-z", "--get-all", key]
    done = subprocess.run(command, cwd=project, env=changed, capture_output=True, check=False)
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("filter.x.clean", "touch ran", ""),
        ("filter.x.process", "touch ran", ""),
        ("filter.x.required", "true", "false"),
        ("filter.a=b.clean", "touch ran", ""),
        ("filter.it's!.clean", "touch ran", ""),
        ('filter.a" b\\.clean', "touch ran", ""),
        ("filter.LFS.clean", "git-lfs clean -- %f", ""),
        ("filter.lfs.clean", "git-lfs clean -- %f; touch ran", ""),
        ("filter.lfs.clean", "git-lfs clean -- %f", "git-lfs clean -- %f"),
        ("lfs.extension.x.clean", "touch ran", "cat"),
        ("core.fsmonitor", "touch ran", ""),
        ("core.sshCommand", "touch ran", "ssh"),
        ("core.askPass", "touch ran", ""),
        ("credential.helper", "!touch ran", ""),
        ("credential.https://x.helper", "!touch ran", "!touch ran"),  # Dropped, see below.
        ("protocol.ext.allow", "always", "never"),
        ("remote.origin.uploadpack", "touch ran", "git-upload-pack"),
        ("user.name", "A", "A"),
        ("diff.x.textconv", "cat", "cat"),
    ],
)
def test_each_program_of_the_repository_is_replaced(
    key: str, value: str, instead: str, project: Path, env: dict[str, str]
) -> None:
    configure(project, key, value)
    assert in_force(project, env, key)[-1] == instead


def test_the_persons_own_values_stay(project: Path, env: dict[str, str]) -> None:
    own = Path(env["HOME"], ".gitconfig")
    configure(project, "filter.lfs.clean", "mine", "--file", str(own))
    configure(project, "filter.lfs.required", "true", "--file", str(own))
    configure(project, "credential.helper", "mine", "--file", str(own))
    configure(project, "core.fsmonitor", "true", "--file", str(own))
    assert without_repository_programs(env, project, NEW) == {}
    for key in ("filter.lfs.clean", "filter.lfs.required", "core.fsmonitor"):
        configure(project, key, "touch ran")
    configure(project, "credential.https://x.helper", "!touch ran")
    assert in_force(project, env, "filter.lfs.clean")[-1] == "mine"
    assert in_force(project, env, "filter.lfs.required")[-1] == "true"
    assert in_force(project, env, "core.fsmonitor")[-1] == "true"
    # The empty helper drops all before it.
    assert in_force(project, env, "credential.helper")[-2:] == ["", "mine"]


def test_allowing_all_protocols_does_not_allow_ext(project: Path, env: dict[str, str]) -> None:
    configure(project, "protocol.allow", "always")
    assert in_force(project, env, "protocol.ext.allow") == ["never"]


def test_settings_of_the_surroundings_stay(project: Path, env: dict[str, str]) -> None:
    configure(project, "filter.x.clean", "touch ran")
    env |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "A b"}
    assert in_force(project, env, "user.name") == ["A b"]
    assert in_force(project, env, "filter.x.clean")[-1] == ""
    # 0.60.1 keeps names with KEY from commands, whose git would miss them.
    old = without_repository_programs(env, project, (0, 60, 1))
    assert old["GIT_CONFIG_COUNT"] == "0"
    assert old["GIT_CONFIG_PARAMETERS"] == "'user.name=A b' 'filter.x.clean='"


def test_a_git_of_the_repository_is_not_run(project: Path, env: dict[str, str]) -> None:
    configure(project, "filter.x.clean", "touch ran")
    planted = project / "git"
    planted.write_text(f"#!/bin/sh\ntouch {project}/ran\n")
    planted.chmod(0o755)
    for first in (str(project), ".", ""):
        changed = env | {"PATH": f"{first}:{env['PATH']}"}
        variables = without_repository_programs(changed, project, NEW)
        assert variables == {"GIT_CONFIG_PARAMETERS": "'filter.x.clean='"}
    assert not (project / "ran").exists()


def test_too_many_programs_and_a_silent_git_are_refused(
    project: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (project / ".git" / "config").open("a") as config:
        config.writelines(f'[filter "{n}"]\nclean = x\n' for n in range(501))
    with pytest.raises(InvalidArguments, match="more than 500 programs"):
        without_repository_programs(env, project, NEW)
    (project / ".git" / "config").write_text("[include]\npath = pipe\n")
    os.mkfifo(project / ".git" / "pipe")
    monkeypatch.setattr(git_config, "ANSWER_WITHIN_S", 0.2)
    with pytest.raises(InvalidArguments, match="did not read its configuration"):
        without_repository_programs(env, project, NEW)
