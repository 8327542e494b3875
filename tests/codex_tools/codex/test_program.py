"""Finding Codex: behind npm's and pnpm's scripts, in its order, and what it can do."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from codex_tools.codex import program as programs
from codex_tools.codex.errors import CodexNotFound, CodexUnsupported
from codex_tools.codex.program import find_codex, native_binary
from support.codex_versions import VERSIONS, npm_codex, real_codex
from support.fake_codex import FakeCodex
from support.lab import marked, until

ARM = platform.machine().lower() in ("arm64", "aarch64")
DARWIN = sys.platform == "darwin"
TRIPLE = ("aarch64" if ARM else "x86_64") + ("-apple-darwin" if DARWIN else "-unknown-linux-musl")
PLATFORM = f"codex-{'darwin' if DARWIN else 'linux'}-{'arm64' if ARM else 'x64'}"

ELSEWHERE = Path("/")
"""A folder to work in that makes no program on PATH untrusted."""

PNPM = """\
#!/bin/sh
basedir=$(dirname "$(echo "$0" | sed -e 's,\\\\,/,g')")
if [ -x "$basedir/node" ]; then
  exec "$basedir/node"  "$basedir/global/5/node_modules/@openai/codex/bin/codex.js" "$@"
else
  exec node  "$basedir/global/5/node_modules/@openai/codex/bin/codex.js" "$@"
fi
"""


def program(path: Path, text: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def counting(folder: Path, answer: str = "codex-cli 0.169.0") -> tuple[Path, Path]:
    """Return a program that answers *answer* and the file where it counts its runs."""
    runs = folder / "runs.txt"
    text = f"#!/bin/sh\necho \"$*\" >> '{runs}'\necho '{answer}'\n"
    return program(folder / "codex", text), runs


@pytest.fixture(params=["old", "nested", "hoisted"])
def npm(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """npm's node script, and the native binary behind it, in each layout."""
    openai = tmp_path / "node_modules" / "@openai"
    script = program(openai / "codex" / "bin" / "codex.js", "#!/usr/bin/env node\n")
    place, folder = {
        "old": (openai / "codex", "codex"),
        "nested": (openai / "codex" / "node_modules" / "@openai" / PLATFORM, "bin"),
        "hoisted": (openai / PLATFORM, "bin"),
    }[request.param]
    return script, program(place / "vendor" / TRIPLE / folder / "codex")


def test_the_native_binary_is_found_behind_npm_s_script(npm: tuple[Path, Path]) -> None:
    script, native = npm
    assert native_binary(script) == native


def test_the_native_binary_is_found_behind_npm_s_link(
    npm: tuple[Path, Path], tmp_path: Path
) -> None:
    script, native = npm
    link = tmp_path / "node_modules" / ".bin" / "codex"
    link.parent.mkdir()
    link.symlink_to(Path("..") / script.relative_to(tmp_path / "node_modules"))
    assert native_binary(link) == native


def test_the_native_binary_is_found_behind_pnpm_s_shell_script(tmp_path: Path) -> None:
    openai = tmp_path / "pnpm" / "global" / "5" / "node_modules" / "@openai"
    program(openai / "codex" / "bin" / "codex.js", "#!/usr/bin/env node\n")
    native = program(openai / PLATFORM / "vendor" / TRIPLE / "bin" / "codex")
    assert native_binary(program(tmp_path / "pnpm" / "codex", PNPM)) == native


def test_a_script_without_its_binary_is_left_as_it_is(npm: tuple[Path, Path]) -> None:
    script, native = npm
    native.chmod(0o644)
    assert native_binary(script) == script
    native.unlink()
    native.mkdir()
    assert native_binary(script) == script


def test_any_other_program_is_left_as_it_is(tmp_path: Path) -> None:
    program(tmp_path / "x/@openai/codex/bin/codex.js", "#!/usr/bin/env node\n")
    program(tmp_path / "x/@openai/codex/vendor" / TRIPLE / "bin" / "codex")
    others = [
        program(tmp_path / "a", '#!/bin/sh\nexec /opt/codex "$@"\n'),
        program(tmp_path / "b", '\x7fELF "$basedir/x/@openai/codex/bin/codex.js"'),
        program(tmp_path / "c", PNPM),
        program(tmp_path / "d", ""),
        tmp_path / "not there",
        tmp_path,
    ]
    assert [native_binary(path) for path in others] == others


async def test_the_configured_codex_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured, _ = counting(tmp_path / "configured", "codex-cli 0.160.0")
    on_path, _ = counting(tmp_path / "path", "codex-cli 0.150.0-alpha.3")
    monkeypatch.setenv("PATH", str(on_path.parent), prepend=os.pathsep)
    first = await find_codex(str(configured), tmp_path)
    assert (first.path, first.version_text) == (configured, "0.160.0")
    second = await find_codex(None, ELSEWHERE)
    assert (second.path, second.version) == (on_path, (0, 150, 0))
    assert second.version_text == "0.150.0-alpha.3"
    assert (await find_codex("codex", ELSEWHERE)).path == on_path


async def test_the_python_package_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import version

    monkeypatch.setenv("PATH", str(tmp_path))
    found = await find_codex(None, tmp_path)
    assert found.version_text == version("openai-codex-cli-bin")
    assert "codex_cli_bin" in found.path.parts


def test_without_any_codex_the_error_says_how_to_get_one(tmp_path: Path) -> None:
    program(tmp_path / "codex_cli_bin.py", "raise ImportError\n")
    script = "import anyio, codex_tools.codex.program as p; anyio.run(p.find_codex, None, p.Path())"
    env = {"PATH": str(tmp_path / "empty"), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "CodexNotFound: No Codex CLI was found on PATH" in done.stderr


async def test_a_configured_path_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = counting(tmp_path / "bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (await find_codex("~/bin/codex", tmp_path)).path == path


@pytest.mark.parametrize("configured", ["bin/codex", "./bin/codex", "./codex"])
async def test_a_relative_path_is_that_of_this_process_and_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: str
) -> None:
    counting(tmp_path / "bin")
    path, _ = counting(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    found = await find_codex(configured, tmp_path)
    assert found.path.is_absolute()
    assert found.path == path.parent / configured


@pytest.mark.parametrize("where", ["cwd", "relative", "root", "link"])
async def test_a_codex_that_a_run_may_have_written_is_not_taken_from_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    planted = program(tmp_path / "project" / "bin" / "codex", f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    path, _ = counting(tmp_path / "installed")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "codex").symlink_to(planted)
    monkeypatch.chdir(tmp_path / "project")
    first = {"relative": "bin", "link": str(tmp_path / "linked")}.get(where, str(planted.parent))
    cwd = {"root": ELSEWHERE, "relative": ELSEWHERE}.get(where, tmp_path / "project")
    untrusted = [tmp_path / "project"] if where == "root" else []
    monkeypatch.setenv("PATH", f"{first}:{path.parent}:{os.environ['PATH']}")
    assert (await find_codex(None, cwd, None, untrusted)).path == path
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("PATH", f"{first}:/usr/bin")
    monkeypatch.setattr(programs, "bundled_codex", lambda: None)
    with pytest.raises(CodexNotFound, match="the only Codex on PATH") as error:
        await find_codex(None, cwd, None, untrusted)
    assert "--codex-bin" in error.value.hint


@pytest.mark.parametrize(
    "configured",
    ["{}/missing", "{}/folder", "{}/plain", "no-such-codex", "~no-such-user/codex"],
)
async def test_what_is_no_program_cannot_be_codex(tmp_path: Path, configured: str) -> None:
    (tmp_path / "folder").mkdir()
    program(tmp_path / "plain", "codex", mode=0o644)
    name = configured.format(tmp_path)
    with pytest.raises(CodexNotFound, match="is not a program") as caught:
        await find_codex(name, tmp_path)
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("#!/bin/sh\necho git version 2.43.0\n", "exit code 0; stdout: git version 2.43.0"),
        ("#!/bin/sh\necho codex 3.2.1\n", "exit code 0; stdout: codex 3.2.1"),
        ("#!/bin/sh\necho codex-cli\n", "exit code 0; stdout: codex-cli"),
        ("#!/bin/sh\necho codex-client 1.2.3\n", "stdout: codex-client 1.2.3"),
        ("#!/bin/sh\necho my codex-cli 1.2.3 helper\n", "stdout: my codex-cli 1.2.3 helper"),
        ("#!/bin/sh\nexit 1\n", "exit code 1; stdout: nothing; stderr: nothing"),
        ("#!/bin/sh\necho mise: no version is set >&2\nexit 126\n",
         "exit code 126; stdout: nothing; stderr: mise: no version is set"),
        ("#!/bin/sh\necho on stdout\necho on stderr >&2\nexit 3\n",
         "exit code 3; stdout: on stdout; stderr: on stderr"),
        ("#!/bin/sh\necho sk-proj-abcdefghijklmnop >&2\nexit 3\n", "stderr: [secret]"),
        ("#!/bin/sh\nkill -9 $$\n", "exit code -9"),
        ("#!/bin/sh\nprintf '\\377\\376'\n", "exit code 0; stdout: "),
        ("#!/no/such/interpreter\n", "cannot be run in "),
        ("no program at all\n", ": Exec format error"),
    ],
)  # fmt: skip
async def test_a_program_that_is_not_codex_is_refused_with_all_that_it_said(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = program(tmp_path / "codex", text)
    with pytest.raises(CodexNotFound) as caught:
        await find_codex(str(path), tmp_path)
    assert str(path) in caught.value.message
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("mise ERROR No version is set for shim: codex", "version manager"),
        ("No version is set for command codex", "version manager"),
        ("Volta error: Could not find executable codex", "version manager"),
        ("nodenv: codex: command not found", "version manager"),
        ("/usr/bin/env: \u2018node\u2019: No such file or directory", "Node.js"),
        ("codex: /lib/libc.so.6: version `GLIBC_2.39' not found (required by codex)", "fit"),
        ("Something else", "Install Codex"),
    ],
)
async def test_the_hint_fits_the_words_of_a_program_that_starts_codex(
    tmp_path: Path, said: str, hint: str
) -> None:
    path = program(tmp_path / "codex", f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\nexit 127\n")
    with pytest.raises(CodexNotFound) as caught:
        await find_codex(str(path), tmp_path)
    assert hint in caught.value.hint
    assert said in caught.value.message


async def test_lines_of_a_wrapper_around_the_version_do_no_harm(tmp_path: Path) -> None:
    text = "#!/bin/sh\necho loading\necho codex-cli 0.150.0\necho bye\n"
    assert (await find_codex(str(program(tmp_path / "codex", text)), tmp_path)).version_text == (
        "0.150.0"
    )


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_real_codex_answers_as_expected(tmp_path: Path, version: str) -> None:
    found = await find_codex(str(real_codex(version)), tmp_path)
    assert found.version_text == version
    through_npm = await find_codex(str(npm_codex(version)), tmp_path)
    assert through_npm.version_text == version


@pytest.mark.parametrize("name", ["codex", "codex-x86_64-linux", "mise", "volta-shim"])
async def test_only_codex_s_own_binary_is_asked_once_until_the_file_changes(
    tmp_path: Path, name: str
) -> None:
    # The shims of mise and volta are links to binaries of another name, which choose by folder.
    binary, stat = tmp_path / name, real_codex(VERSIONS[0]).stat()
    shutil.copy2(real_codex(VERSIONS[0]), binary)
    path = tmp_path / "bin" / "codex"
    path.parent.mkdir()
    path.symlink_to(binary)
    assert (await find_codex(str(path), tmp_path)).version_text == VERSIONS[0]
    # From here on it cannot answer; what is not asked again does not notice that.
    with binary.open("r+b") as file:
        file.truncate(4)
        file.truncate(stat.st_size)
    os.utime(binary, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if name.startswith("codex"):
        for folder in (tmp_path, Path("/")):
            assert (await find_codex(str(path), folder)).version_text == VERSIONS[0]
        os.utime(binary, ns=(0, stat.st_mtime_ns + 1))
    with pytest.raises(CodexNotFound):
        await find_codex(str(path), tmp_path)


async def test_a_program_that_starts_codex_is_asked_each_time_in_the_folder_of_the_run(
    tmp_path: Path,
) -> None:
    text = "#!/bin/sh\nread -r version < .tool-versions || exit 126\necho codex-cli $version\n"
    path = program(tmp_path / "codex", text)
    for name, version in (("old", "0.60.1"), ("new", "0.171.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".tool-versions").write_text(f"{version}\n")
        assert (await find_codex(str(path), tmp_path / name)).version_text == version
    (tmp_path / "old" / ".tool-versions").write_text("0.147.0\n")
    assert (await find_codex(str(path), tmp_path / "old")).version_text == "0.147.0"
    with pytest.raises(CodexNotFound, match="exit code 126"):
        await find_codex(str(path), tmp_path)


async def test_a_shim_that_hangs_leaves_no_process_when_the_call_is_cancelled(
    tmp_path: Path,
) -> None:
    # mise may wait for a download, with children of its own.
    text = "#!/bin/sh\nsleep 300 &\necho $! > pid.new\nmv pid.new pid\nwait\n"
    path = program(tmp_path / "codex", text)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(find_codex, str(path), tmp_path)
        await until((tmp_path / "pid").exists)
        tasks.cancel_scope.cancel()
    pid = int((tmp_path / "pid").read_text())
    await until(lambda: not _runs(pid))


async def test_a_shim_whose_start_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    path = program(tmp_path / "codex", "#!/bin/sh\nsleep 300 &\nsleep 300\n")
    tag = f"shim-{os.getpid()}-{tmp_path.name}"
    for ms in range(30):
        with anyio.move_on_after(ms / 1000):
            await find_codex(str(path), tmp_path, lambda: {**os.environ, "TEST_MARK": tag})
    await until(lambda: marked(tag) == [])


def _runs(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return not done.stdout.startswith("Z") and bool(done.stdout.strip())


async def test_a_shim_gets_the_environment_of_the_run(tmp_path: Path) -> None:
    path = program(tmp_path / "codex", '#!/bin/sh\necho "codex-cli $CHOSEN"\n')
    found = await find_codex(str(path), tmp_path, lambda: {"CHOSEN": "0.155.0"})
    assert found.version_text == "0.155.0"


async def test_a_failure_to_answer_is_not_remembered(tmp_path: Path) -> None:
    path, runs = counting(tmp_path, "not now")
    for _ in range(2):
        with pytest.raises(CodexNotFound):
            await find_codex(str(path), tmp_path)
    assert runs.read_text() == "--version\n" * 2


@pytest.mark.parametrize("version", ["0.60.0", "0.59.9", "0.0.2505"])
async def test_a_codex_that_is_too_old_is_named(tmp_path: Path, version: str) -> None:
    path = FakeCodex(tmp_path, version=version).build()
    with pytest.raises(CodexUnsupported) as caught:
        await find_codex(str(path), tmp_path)
    assert caught.value.version == version
    assert version in caught.value.message
    assert "0.60.1" in caught.value.message
    assert "Update Codex" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "ephemeral", "cumulative", "paginated"),
    [
        ("0.60.1", False, False, False),
        ("0.78.9", False, False, False),
        ("0.79.0", False, True, False),
        ("0.98.0", False, True, False),
        ("0.99.0", True, True, False),
        ("0.146.9", True, True, False),
        ("0.147.0-alpha.1", True, True, True),
        ("1.0.0", True, True, True),
    ],
)
async def test_what_a_codex_can_do_goes_by_its_version(
    tmp_path: Path, version: str, ephemeral: bool, cumulative: bool, paginated: bool
) -> None:
    found = await find_codex(str(FakeCodex(tmp_path, version=version).build()), tmp_path)
    assert ("--ephemeral" in found.flags) is ephemeral
    assert found.usage_is_cumulative is cumulative
    assert found.knows_paginated_threads is paginated


async def test_a_build_from_source_is_asked_for_its_help(tmp_path: Path) -> None:
    path = FakeCodex(tmp_path / "new", version="0.0.0", help="Options: --ephemeral").build()
    new = await find_codex(str(path), tmp_path)
    assert (new.version, new.version_text) == (None, "0.0.0")
    new.need("--ephemeral")
    assert new.usage_is_cumulative
    assert new.knows_paginated_threads
    old = await find_codex(str(FakeCodex(tmp_path / "old", version="0.0.0").build()), tmp_path)
    with pytest.raises(CodexUnsupported, match=r"--ephemeral, which needs Codex 0\.99\.0"):
        old.need("--ephemeral")


async def test_the_folder_with_ripgrep_is_told(tmp_path: Path) -> None:
    path, _ = counting(tmp_path / TRIPLE / "codex")
    assert (await find_codex(str(path), tmp_path)).search_path is None
    (tmp_path / TRIPLE / "path").mkdir()
    os.utime(path, ns=(0, 0))
    assert (await find_codex(str(path), tmp_path)).search_path == str(tmp_path / TRIPLE / "path")
