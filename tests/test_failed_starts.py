"""The whole server against wrappers, shims and other programs that start Codex, or cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.codex_versions import VERSIONS, real_codex
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Lab, call, connect

SHIM = """\
#!/bin/sh
read -r version < .tool-versions || {{ echo "mise: no version is set in $PWD" >&2; exit 126; }}
exec {folder}/$version/codex "$@"
"""


def shim(lab: Lab, *versions: str) -> Path:
    """Return a version manager's shim: the folder in which it runs chooses the version."""
    folder = lab.root / "versions"
    for version in versions:
        fake = FakeCodex(folder / version, version=version)
        fake.stdout = events(thread_line(), *answer_lines(version))
        fake.build()
    return script(lab, SHIM.format(folder=folder))


def script(lab: Lab, text: str) -> Path:
    path = lab.root / "bin" / "codex"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def project(lab: Lab, name: str, version: str | None) -> str:
    folder = lab.root / name
    folder.mkdir()
    if version is not None:
        (folder / ".tool-versions").write_text(f"{version}\n")
    return str(folder)


async def test_a_version_manager_chooses_by_the_folder_of_the_run(mode: str, lab: Lab) -> None:
    codex = shim(lab, "0.60.1", "0.171.0")
    old, new = project(lab, "old", "0.60.1"), project(lab, "new", "0.171.0")
    async with connect(mode, codex, lab) as client:
        for folder, version in ((new, "0.171.0"), (old, "0.60.1"), (new, "0.171.0")):
            result = await call(client, "codex_run", prompt="x", cwd=folder)
            assert result["status"] == "completed", result
            assert (result["codex_version"], result["final_response"]) == (version, version)
        kept = await call(client, "codex_run", prompt="x", cwd=new, ephemeral=True)
        refused = await call(client, "codex_run", prompt="x", cwd=old, ephemeral=True)
        (lab.root / "new" / ".tool-versions").write_text("0.60.1\n")
        changed = await call(client, "codex_run", prompt="x", cwd=new)
    assert kept["status"] == "completed"
    assert refused["error"]["kind"] == "codex_unsupported"
    assert changed["codex_version"] == "0.60.1"


async def test_what_a_version_manager_says_is_in_the_error(mode: str, lab: Lab) -> None:
    folder = project(lab, "none", None)
    async with connect(mode, shim(lab), lab) as client:
        result = await call(client, "codex_run", prompt="x", cwd=folder)
    error = result["error"]
    assert error["kind"] == "codex_not_found"
    assert "exit code 126" in error["message"]
    assert f"mise: no version is set in {folder}" in error["message"]
    assert "--codex-bin" in error["hint"]


async def test_no_shim_runs_in_a_folder_that_the_operator_has_not_allowed(
    mode: str, lab: Lab
) -> None:
    outside, trace = project(lab, "outside", "0.171.0"), lab.root / "trace"
    codex = script(lab, f"#!/bin/sh\npwd >> {trace}\necho codex-cli 0.171.0\n")
    async with connect(mode, codex, lab, "--root", str(lab.project)) as client:
        result = await call(client, "codex_run", prompt="x", cwd=outside)
        assert result["error"]["kind"] == "not_allowed"
        assert not trace.exists()
        await call(client, "codex_run", prompt="x", cwd=str(lab.project))
    assert {*trace.read_text().splitlines()} == {str(lab.project)}


async def test_a_shim_is_asked_with_the_environment_of_the_run(mode: str, lab: Lab) -> None:
    codex = script(lab, '#!/bin/sh\nenv > "$HOME/env"\necho codex-cli 0.171.0\n')
    env = {"MISE_ENV": "here", "ANTHROPIC_API_KEY": "not for Codex"}
    async with connect(mode, codex, lab, env=env) as client:
        await call(client, "codex_run", prompt="x")
    lines = (lab.root / "env").read_text().splitlines()
    assert "MISE_ENV=here" in lines
    assert not any(line.startswith("ANTHROPIC_API_KEY") for line in lines)


VERSION = 'if [ "$1" = --version ]; then echo codex-cli 0.171.0; exit; fi\n'


@pytest.mark.parametrize(
    ("text", "kind", "retryable", "says"),
    [
        ("echo asdf: on stdout; echo on stderr >&2; exit 126", "not_started", False,
         ("exit code 126", "asdf: on stdout", "on stderr")),
        ("echo words and no failure", "not_started", False, ("exit code 0", "words and no")),
        ("echo 'Error: database is locked' >&2; exit 1", "not_started", True, ("is locked",)),
        ("echo 'Error: Too many open files (os error 24)' >&2; exit 1", "not_started", False,
         ("os error 24",)),
        ("echo 'Error: Model provider `x` not found' >&2; exit 1", "bad_config", False, ("`x`",)),
        ("echo last words >&2; kill -9 $$", "codex_crashed", True, ("signal 9", "last words")),
        ("sh -c 'kill -11 $$'; echo Segmentation fault >&2; exit 139", "codex_crashed", True,
         ("exit code 139 (signal 11)",)),
        ("echo \"thread 'main' panicked at x.rs:1:2:\" >&2; exit 101", "codex_crashed", True,
         ("exit code 101",)),
        ("exit 1", "codex_crashed", True, ("exit code 1 and no result.",)),
    ],
)  # fmt: skip
async def test_only_a_crash_is_told_as_one(
    mode: str, lab: Lab, text: str, kind: str, retryable: bool, says: tuple[str, ...]
) -> None:
    codex = script(lab, f"#!/bin/sh\n{VERSION}cat > /dev/null\n{text}\n")
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt="x")
    error = result["error"]
    assert (error["kind"], error["retryable"]) == (kind, retryable), error
    assert all(each in error["message"] for each in says), error["message"]
    assert result["thread_id"] is None
    assert "codex_resume" not in result["next"]


async def test_another_program_of_the_name_is_not_codex(mode: str, lab: Lab) -> None:
    async with connect(mode, script(lab, "#!/bin/sh\necho codex 3.2.1\n"), lab) as client:
        result = await call(client, "codex_run", prompt="x")
    assert result["error"]["kind"] == "codex_not_found"
    assert "codex 3.2.1" in result["error"]["message"]


async def test_usage_after_a_resume_is_that_of_the_version_that_ran(mode: str, lab: Lab) -> None:
    # Since 0.79 Codex counts the whole thread, before that the turn: the version decides.
    version = VERSIONS[-1]
    real = real_codex(version)
    text = SHIM.replace("{folder}/$version/codex", "{folder}").format(folder=real)
    text = text.replace("#!/bin/sh\n", '#!/bin/sh\n[ "$PWD" = / ] && exit 126\n')
    (lab.project / ".tool-versions").write_text(f"{version}\n")
    async with connect(mode, script(lab, text), lab) as client:
        first = await call(client, "codex_run", prompt="one", wait_s=60)
        second = await call(
            client, "codex_resume", prompt="two", thread_id=first["thread_id"], wait_s=60
        )
    assert first["codex_version"] == second["codex_version"] == version
    assert second["usage"]["total_tokens"] == first["usage"]["total_tokens"] > 0
