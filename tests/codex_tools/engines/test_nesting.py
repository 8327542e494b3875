"""How deep a process lives inside runs, found through real guards and real chains of processes."""

from __future__ import annotations

import json
import math
import os
import py_compile
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from codex_tools.engines.environment import DEPTH_VARIABLE
from codex_tools.engines.nesting import MOST, Ancestor, find_depth, from_proc, from_ps, parse_ps
from codex_tools.engines.process import open_child
from support.codex_versions import cannot_have

PYTHON = sys.executable
LINUX = sys.platform == "linux"
HERE = find_depth(os.environ)
"""Not 0 where an agent, itself inside a run, runs these tests."""

TELL = """
import json, os
from codex_tools.engines.nesting import find_depth, from_ps
print(json.dumps([find_depth(os.environ), find_depth(os.environ, from_ps)]), flush=True)
"""
NEST = """
import os, sys
from pathlib import Path
import anyio
from codex_tools.engines.process import open_child
levels, tell, interpreter = int(sys.argv[1]), sys.argv[2], sys.argv[3]
following = [interpreter, "-c", tell]
if levels > 1:
    following = [interpreter, "-c", os.environ["NEST"], str(levels - 1), tell, interpreter]
async def main():
    async with open_child(following, stdin=b"", cwd=Path.cwd(), env=os.environ) as child:
        async for line in child.lines():
            print(line.decode())
        assert await child.wait() == 0, child.stderr_end()
anyio.run(main)
"""


def plain_environ(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != DEPTH_VARIABLE}
    return kept | {"NEST": NEST} | more


def tell(argv: Sequence[str], **environ: str) -> tuple[int, int]:
    """Run *argv*; return how much deeper than this test its TELL was, by /proc and by ps."""
    done = subprocess.run(argv, env=plain_environ(**environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    by_proc, by_ps = json.loads(done.stdout)
    return by_proc - HERE, by_ps - HERE


async def inside_a_run(code: str, tmp_path: Path, **environ: str) -> list[str]:
    """Run Python *code* as a run's Codex; return the lines that it printed."""
    async with open_child(
        [PYTHON, "-c", code], stdin=b"", cwd=tmp_path, env=plain_environ(**environ)
    ) as child:
        lines = [line.decode() async for line in child.lines()]
        assert await child.wait() == 0, child.stderr_end()
    return lines


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_each_run_above_counts_once(levels: int) -> None:
    argv = [PYTHON, "-c", TELL]
    if levels:
        argv = [PYTHON, "-c", NEST, str(levels), TELL, PYTHON]
    assert tell(argv) == (levels, levels)


# Only Linux has subreapers; elsewhere an orphan becomes a child of init and is not nested.
@pytest.mark.skipif(not LINUX, reason="elsewhere an orphan leaves its run")
@pytest.mark.parametrize("shell", ["(setsid nohup {} &)", "setsid sh -c '({} &) &'"])
async def test_an_orphan_stays_inside_its_run(tmp_path: Path, shell: str) -> None:
    (tmp_path / "tell.py").write_text(f"import time\ntime.sleep(0.2)\n{TELL}")
    command = shell.format(f"{PYTHON} {tmp_path}/tell.py >{tmp_path}/told 2>&1")
    code = f"""
import pathlib, subprocess, time
subprocess.run(["sh", "-c", {command!r}])
while not pathlib.Path("told").exists() or not pathlib.Path("told").read_text():
    time.sleep(0.01)
"""
    await inside_a_run(code, tmp_path)
    assert [each - HERE for each in json.loads((tmp_path / "told").read_text())] == [1, 1]


async def test_a_program_of_any_name_may_stand_between(tmp_path: Path) -> None:
    odd = tmp_path / "sh) S 0 (x"
    odd.symlink_to("/bin/sh")
    command = f'{PYTHON} -c "$TELL"; exit $?'
    code = f"import subprocess\nsubprocess.run([{str(odd)!r}, '-c', {command!r}], check=True)"
    (line,) = await inside_a_run(code, tmp_path, TELL=TELL)
    assert json.loads(line) == [HERE + 1, HERE + 1]


# PR_SET_CHILD_SUBREAPER, which the test sets for its child, exists on Linux only.
@pytest.mark.skipif(not LINUX, reason="needs a subreaper")
async def test_parents_that_die_meanwhile_change_nothing(tmp_path: Path) -> None:
    code = """
import os, time
from codex_tools.engines.nesting import find_depth
guard, generations = os.getppid(), 40

def look_from_below(write, wait, go):
    for generation in range(generations):
        if os.fork():
            if generation == 0:
                return
            os.close(go)
            os.read(wait, 1)
            time.sleep(0.001 * (generation * 7 % generations))  # Here and there in the chain.
            os._exit(0)
    os.close(go)
    while os.getppid() != guard:
        os.write(write, b"%d " % find_depth({}))
    os._exit(0)

found = []
for _ in range(20):
    (read, write), (wait, go) = os.pipe(), os.pipe()
    look_from_below(write, wait, go)
    os.close(write), os.close(go), os.close(wait)
    with os.fdopen(read) as told:
        found += told.read().split()
print(len(found), *sorted(set(found)))
"""
    (line,) = await inside_a_run(code, tmp_path)
    looks, *found = line.split()
    assert int(looks) > 0
    assert found == [str(HERE + 1)]


def test_a_parent_that_linux_is_about_to_forget_does_not_end_the_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parent's own parent is 0 in that moment; recorded from Linux 6.18."""
    shown = {
        "self": ["S 30", "S 30", "S 20"],
        "30": ["S 20", "X 0", ""],
        "20": ["S 1"],
        "1": ["S 0"],
    }
    environs = {"20": f"A=b\0{DEPTH_VARIABLE}=1\0"}

    def content(pid: str, file: str, size: int = -1) -> bytes:
        if file == "stat":
            now = shown[pid].pop(0) if len(shown[pid]) > 1 else shown[pid][0]
            return f"9 (sh) {now} {'0 ' * 17}77 0".encode() if now else b""
        return environs.get(pid, "").encode() if file == "environ" else b""

    monkeypatch.setattr("codex_tools.engines.nesting._content", content)
    assert [ancestor.depth for ancestor in from_proc()] == [1, 0]


# The test reads /proc, which only Linux has.
@pytest.mark.skipif(not LINUX, reason="elsewhere the user's environments are read on macOS only")
def test_a_variable_that_was_taken_off_is_found_above() -> None:
    shed = f'env -u {DEPTH_VARIABLE} {PYTHON} -c "$TELL"; exit $?'
    lower = f'{DEPTH_VARIABLE}=0 {PYTHON} -c "$TELL"; exit $?'
    above = {DEPTH_VARIABLE: str(HERE + 3), "TELL": TELL}
    for command in (shed, lower):
        by_proc, by_ps = tell(["sh", "-c", command], **above)
        assert by_proc == 3
        assert by_ps == 0


# The test reads /proc, which only Linux has.
@pytest.mark.skipif(not LINUX, reason="elsewhere the user's environments are read on macOS only")
def test_guards_come_on_top_of_the_number_above_them() -> None:
    argv = [PYTHON, "-c", NEST, "2", TELL, PYTHON]
    shed = f'env -u {DEPTH_VARIABLE} "$@"; exit $?'
    given = {DEPTH_VARIABLE: str(HERE + 3)}
    assert tell(["sh", "-c", shed, "sh", *argv], **given)[0] == 5
    assert tell(argv, **given)[0] == 5  # Above the guards as well as below them.


@pytest.mark.skipif(not LINUX, reason="needs /proc")
async def test_a_guard_and_what_it_was_told_of_its_own_run_count_once(tmp_path: Path) -> None:
    (line,) = await inside_a_run(TELL, tmp_path, **{DEPTH_VARIABLE: str(HERE + 1)})
    assert json.loads(line) == [HERE + 1, HERE + 1]


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "-1", "-99999999999", "+7", "7.0", "1e3", "0x7", " 7", "7 ", "7\n", "\n7"),
        *("7_0", "7,8", "two", "None", "\u0667", "\udcff7", "7\udcff"),
    ],
)
def test_nonsense_in_the_variable_changes_nothing(text: str) -> None:
    assert find_depth({DEPTH_VARIABLE: text}) == HERE


@pytest.mark.parametrize("text", ["10000", "9" * 5000, "0" * 5000 + "1" * 6])
def test_a_huge_number_in_the_variable_is_believed_no_further_than_its_cap(text: str) -> None:
    assert find_depth({DEPTH_VARIABLE: text}) == MOST


def test_the_variable_counts_where_no_guard_can_be_seen() -> None:
    assert find_depth({DEPTH_VARIABLE: "2"}, look=list) == 2
    assert find_depth({DEPTH_VARIABLE: "00000002"}, look=list) == 2
    assert find_depth({}, look=list) == 0


def test_a_guard_counts_where_nothing_above_it_can_be_seen() -> None:
    assert find_depth({}, look=lambda: [Ancestor(False), Ancestor(True)]) == 1
    assert find_depth({}, look=lambda: [Ancestor(True), Ancestor(False), Ancestor(True)]) == 2


GUARDS = [
    ("usr/lib/python3.13/site-packages/codex_tools/engines/guard.py", ["9", "", "200", "/", "x"]),
    ("my venv/codex_tools/engines/guard.py", ["9", "/tmp/a b", "200", "/c d", "x", "exec", "-"]),
    ("codex_tools/engines/__pycache__/guard.cpython-399.pyc", ["9", "", "200", "/", "x"]),
    ("codex_tools/engines/__pycache__/guard.cpython-399.opt-1.pyc", ["9", "", "200", "/", "x"]),
    ("prefix/codex_tools/engines/guard.cpython-399.pyc", ["9", "", "200", "/", "x"]),
    ("usr/lib/python3.13/site-packages/codex_tools/codex/guard.py", ["9", "", "200", "/", "x"]),
    ("codex_tools/codex/__pycache__/guard.cpython-399.pyc", ["9", "", "200", "/", "x"]),
]
"""Guards of other installations, with and without PYTHONPYCACHEPREFIX; the last two are of
builds up to 0.1.0, which had them in another folder."""

STRANGERS: list[tuple[str, list[str]]] = [
    ("guard.py", ["9", "", "200", "/", "x"]),
    ("my_codex_tools/engines/guard.py", ["9", "", "200", "/", "x"]),
    ("codex_tools/guard.py", ["9", "", "200", "/", "x"]),
    ("codex_tools/runs/guard.py", ["9", "", "200", "/", "x"]),
    ("codex_tools/engines/guard.py/guard.txt", ["9", "", "200", "/", "x"]),
    ("codex_tools/engines/guard_rail.py", ["9", "", "200", "/", "x"]),
    ("codex_tools/engines/guard.py", []),
    ("codex_tools/engines/guard.py", ["9"]),
    ("codex_tools/engines/guard.py", ["9", "", "200"]),
    ("codex_tools/engines/guard.py", ["9", "", "200", "/"]),
    ("codex_tools/engines/guard.py", ["nine", "", "200", "/", "x"]),
    ("codex_tools/engines/guard.py", ["9", "", "soon", "/", "x"]),
    ("codex_tools/engines/guard.py", ["9", "", "200", "here", "x"]),
    ("other.py", ["/x/codex_tools/engines/guard.py", "9", "", "200", "/", "x"]),
]
STAND_IN = (
    f"import subprocess, sys\nsys.exit(subprocess.run([{PYTHON!r}, '-c', {TELL!r}]).returncode)"
)


def stand_in(path: Path) -> str:
    """Make a script, compiled if so named, below which TELL runs whatever its arguments are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pyc":
        source = path.with_suffix(".source")
        source.write_text(STAND_IN)
        py_compile.compile(str(source), str(path), doraise=True)
    else:
        path.write_text(STAND_IN)
    return str(path)


@pytest.mark.parametrize(("script", "arguments"), GUARDS)
def test_the_guard_of_another_installation_counts(
    tmp_path: Path, script: str, arguments: list[str]
) -> None:
    assert tell([PYTHON, "-I", "-S", stand_in(tmp_path / script), *arguments]) == (1, 1)


@pytest.mark.parametrize(("script", "arguments"), STRANGERS)
def test_a_process_that_looks_a_little_like_a_guard_does_not_count(
    tmp_path: Path, script: str, arguments: list[str]
) -> None:
    assert tell([PYTHON, "-I", "-S", stand_in(tmp_path / script), *arguments]) == (0, 0)


@pytest.mark.parametrize("options", [[], ["-I"], ["-S", "-I"], ["-I", "-S", "-B"], ["-IS"]])
def test_a_guard_s_file_run_in_another_way_does_not_count(
    tmp_path: Path, options: list[str]
) -> None:
    script = stand_in(tmp_path / "codex_tools" / "engines" / "guard.py")
    assert tell([PYTHON, *options, script, "9", "", "200", "/", "x"]) == (0, 0)


def test_a_shell_that_was_told_a_guard_s_command_line_does_not_count(tmp_path: Path) -> None:
    named = f"{PYTHON} -I -S /x/codex_tools/engines/guard.py 9  200 / x"
    command = f'{PYTHON} -c "$TELL"; exit $?; {named}'
    assert tell(["sh", "-c", command, named], TELL=TELL) == (0, 0)
    words = [*named.split(), "x", "x"]
    assert tell(["sh", "-c", command, *words], TELL=TELL) == (0, 0)


MAC = """\
    1     0 /sbin/launchd
  350     1 /Applications/Some Editor.app/Contents/MacOS/Editor --type=x HOME=/Users/ann
  401   350 /Users/ann/.venv/bin/python /Users/ann/.venv/bin/mcp-server-codex HOME=/Users/ann A=b c
  402   401 /Users/ann/My Tools/bin/python3.12 -I -S /Users/ann/My Tools/lib/codex_tools/engines/\
__pycache__/guard.cpython-312.pyc 9  200 /Users/ann/project /opt/codex exec - CODEX_RUN_DEPTH=1
  403   402 /opt/codex exec --json -s read-only - HOME=/Users/ann CODEX_RUN_DEPTH=1 LANG=C
  404   403 python mcp-server-codex HOME=/Users/ann
  405   404 python -I -S /v/codex_tools/codex/guard.py 9 /tmp/x y 200 /Users/ann /opt/codex exec
  406   405 codex exec CODEX_RUN_DEPTH=7x NOT_CODEX_RUN_DEPTH=9
  409   406 python mcp-server-codex
  407     1 codex exec - HOME=/Users/ann CODEX_RUN_DEPTH=2
  408   407 python mcp-server-codex HOME=/Users/ann
  501   502 ring
  502   501 ring
  503   501 a process below a ring
no line of a process
"""


@pytest.mark.parametrize(
    ("pid", "depth", "ancestors"),
    [
        (401, 0, 2),
        (403, 1, 4),
        (404, 1, 5),
        (406, 2, 7),
        (409, 2, 8),
        (408, 2, 2),
        (501, 0, 1),
        (503, 0, 2),
        (999, 0, 0),
    ],
)
def test_a_listing_with_environments_as_macos_makes_it_is_understood(
    pid: int, depth: int, ancestors: int
) -> None:
    """Written by its manual: there was no Mac to record one on."""
    found = parse_ps(MAC, pid)
    assert len(found) == ancestors
    assert find_depth({}, lambda: found) == depth


def test_a_ps_that_may_not_run_counts_as_a_sandbox_of_codex(tmp_path: Path) -> None:
    ps = tmp_path / "ps"
    ps.write_text("#!/bin/sh\n")
    assert find_depth({}, lambda: from_ps(str(ps))) == 1
    ps.chmod(0o755)
    assert find_depth({}, lambda: from_ps(str(ps))) == 0
    assert find_depth({}, lambda: from_ps(str(tmp_path / "gone"))) == 0


@pytest.mark.skipif(not LINUX, reason="needs namespaces")
@pytest.mark.parametrize("own_proc", [True, False])
def test_a_namespace_hides_the_guard_but_not_what_its_first_process_was_told(
    own_proc: bool,
) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if own_proc:
        unshare.append("--mount-proc")
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"]).returncode:
        cannot_have("a namespace for process ids")
    shed = f'env -u {DEPTH_VARIABLE} {PYTHON} -c "$TELL"; exit $?'
    told = {DEPTH_VARIABLE: str(HERE + 3), "TELL": TELL}
    run = [PYTHON, "-c", NEST, "1", "import os; os.execvp('sh', ['sh', '-c', os.environ['IN']])"]
    inside = f"{' '.join(unshare)} sh -c '{shed}'; exit $?"
    assert tell([*run, PYTHON], IN=inside, **told)[0] == 3
    del told[DEPTH_VARIABLE]
    hidden = tell([*run, PYTHON], IN=inside, **told)[0]
    assert hidden == (-HERE if own_proc else 1)


@pytest.mark.skipif(not LINUX, reason="elsewhere ps takes its time")
def test_to_look_takes_little_more_than_to_read_as_many_files() -> None:
    """Each start of a server looks, so no walk over all processes."""
    processes = 1 + len(from_proc())

    def read_alone() -> None:
        for file in ("stat", "stat", "environ", "cmdline") * processes:
            Path(f"/proc/self/{file}").read_bytes()

    took_s = {from_proc: math.inf, read_alone: math.inf}
    for _ in range(100):
        for look in took_s:
            begun_s = time.perf_counter()
            look()
            took_s[look] = min(took_s[look], time.perf_counter() - begun_s)
    assert took_s[from_proc] < 3 * took_s[read_alone]
