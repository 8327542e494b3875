"""The house stands as it is drawn, and in any neighbourhood."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from mcp_server_codex.calls import TOOLS
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Lab, call, connect, environment
from support.layout import (
    EVERYWHERE,
    LAYOUT,
    arrows,
    circles,
    imports_of,
    lines_of,
    module_imports,
    modules,
    package_of,
)

TOP = Path(__file__).parent.parent
SOURCES = sorted([*(TOP / "server").rglob("*.py"), *(TOP / "tools").rglob("*.py")])


def test_the_top_level_holds_what_it_must() -> None:
    for name in (
        *("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "manifest.json"),
        *("server", "tools", "tests", ".ci/run", ".gitignore"),
    ):
        assert (TOP / name).exists(), name


def test_both_packages_are_typed_and_their_inits_hold_one_docstring() -> None:
    for package in ("server/mcp_server_codex", "tools/codex_tools"):
        assert (TOP / package / "py.typed").is_file()
    for init in (path for path in SOURCES if path.name == "__init__.py"):
        body = ast.parse(init.read_text()).body
        assert len(body) == 1, init
        assert isinstance(body[0], ast.Expr), init


def test_tools_never_import_the_server_nor_mcp() -> None:
    for path in (TOP / "tools").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] not in ("mcp", "mcp_types", "mcp_server_codex"), path


def test_no_file_is_an_attic() -> None:
    for path in SOURCES:
        assert path.stem not in ("utils", "types", "constants", "base", "helpers"), path
        assert len(path.read_text().splitlines()) <= 500, path


def test_no_file_of_a_package_is_named_like_a_standard_module_where_the_guard_runs() -> None:
    # The guard runs as a script there: it would import a select.py beside it as Python's own.
    names = {path.stem for path in (TOP / "tools" / "codex_tools" / "engines").glob("*.py")}
    assert names & {*sys.stdlib_module_names} == set()


def test_each_package_imports_only_what_the_layout_lets_it() -> None:
    found = arrows()
    unwanted = {
        (of, to): count
        for (of, to), count in found.items()
        if to != EVERYWHERE and to not in LAYOUT[of]
    }
    assert unwanted == {}
    # Nor does the table allow what no file needs.
    for package, allowed in LAYOUT.items():
        assert {to for to in allowed if (package, to) not in found} == set(), package


def test_no_imports_run_in_a_circle() -> None:
    assert circles(module_imports()) == []
    packages: dict[str, set[str]] = {}
    for of, to in arrows():
        if of.startswith("codex_tools"):
            packages.setdefault(of, set()).add(to)
    assert circles(packages) == []


def test_the_checker_of_circles_sees_one() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []


def test_no_room_of_tools_is_larger_than_the_others_can_bear() -> None:
    lines = {name: count for name, count in lines_of().items() if name.startswith("codex_tools")}
    assert max(lines.values()) < 0.3 * sum(lines.values())


def test_only_one_file_names_the_engines_and_only_two_packages_look_for_codex() -> None:
    engines = {"codex_tools.engines.exec", "codex_tools.engines.app_server"}
    for module, imported in module_imports().items():
        if module != "codex_tools.engines.choose":
            assert not engines & imported, module
    for module, path in modules():
        package = package_of(module)
        if package in ("codex_tools.engines", "codex_tools.rollouts", "codex_tools.codex"):
            continue
        names = {name.rpartition(".")[2] for name in imports_of(path)}
        assert not names & {"find_codex", "codex_home"}, module


def test_the_manifest_says_what_the_code_says() -> None:
    manifest = json.loads((TOP / "manifest.json").read_text())
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert manifest["version"] == project["version"] == version("mcp-server-codex")
    assert manifest["name"] == project["name"]
    assert [tool["name"] for tool in manifest["tools"]] == [tool.name for tool in TOOLS]
    assert (TOP / manifest["server"]["entry_point"]).is_file()


def test_the_guard_needs_nothing_but_the_standard_library() -> None:
    guard = TOP / "tools" / "codex_tools" / "engines" / "guard.py"
    for node in ast.walk(ast.parse(guard.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            for name in names:
                assert str(name).partition(".")[0] in {*sys.stdlib_module_names}, name


def test_serving_imports_neither_the_humans_part_nor_the_slow_libraries() -> None:
    code = "import sys, mcp_server_codex.calls, mcp_server_codex.stdio; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    late = {"rich", "zstandard", "hypothesis", "psutil", "mcp_server_codex.cli.demo"}
    assert late.isdisjoint(loaded)


ADDED_BY_OURS = frozenset(
    (
        "_ctypes",
        "argparse",
        "ctypes",
        "gc",
        "orjson",
        "platformdirs",
        "runpy",
        "secrets",
    )
)
"""What a start imports beside the SDK and this project."""

FOR_CALLS = (
    *("mcp_server_codex.calls", "mcp_server_codex.wire", "mcp_server_codex.resources"),
    *("codex_tools.tool", "codex_tools.runs", "codex_tools.engines.exec", "codex_tools.history"),
    *("codex_tools.codex.record", "codex_tools.codex.events", "codex_tools.schemas"),
)


def imported(lab: Lab, *words: str) -> set[str]:
    """Return what a server has imported when it has listed its tools."""
    client = {"name": "test", "version": "1"}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
    messages: tuple[dict[str, object], ...] = (
        {"id": 1, "method": "initialize", "params": hello},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/list", "params": {}},
    )
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(lab),
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for message in messages:
            server.stdin.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
        server.stdin.flush()
        while '"tools"' not in server.stdout.readline():
            assert server.poll() is None
        server.kill()
        _, log = server.communicate()
    times = (line.split("|") for line in log.splitlines() if line.startswith("import time:"))
    return {time[-1].strip() for time in times}


def test_a_start_imports_nothing_that_only_calls_need(lab: Lab) -> None:
    """Each session of each client pays for it; `make bench` measures how much."""
    least = imported(lab, str(TOP / "tests" / "bench" / "minimal_server.py"))
    ours = imported(lab, "-m", "mcp_server_codex", "--state-dir", str(lab.state)) - least
    assert "mcp_server_codex.listing" in ours
    assert {name for name in ours if name.startswith(FOR_CALLS)} == set()
    roots = {name.partition(".")[0] for name in ours}
    known = {*ADDED_BY_OURS, "codex_tools", "mcp_server_codex"}
    assert roots - known <= {"anyio", "concurrent"}


@pytest.fixture
def hostile(lab: Lab) -> Path:
    """A user's project with packages of its own, named as our folders are."""
    for name in ("tools", "server", "codex", "events", "policy"):
        package = lab.project / name
        package.mkdir()
        (package / "__init__.py").write_text(f"raise SystemExit('the wrong {name}')\n")
    (lab.project / "run.py").write_text("raise SystemExit('the wrong run')\n")
    return lab.project


async def test_the_server_starts_among_packages_named_tools_and_server(
    mode: str, lab: Lab, hostile: Path, fake: FakeCodex
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    env = {"PYTHONPATH": str(hostile)}
    async with connect(mode, fake.build(), lab, cwd=hostile, env=env) as client:
        result = await call(client, "codex_run", prompt="x")
    assert result["final_response"] == "hello"
    # What was the user's own stays so for the commands that Codex runs.
    assert fake.seen()["env"]["PYTHONPATH"] == str(hostile)


async def test_a_user_s_own_mcp_package_is_kept_out_by_the_documented_settings(
    mode: str, lab: Lab, hostile: Path, fake: FakeCodex
) -> None:
    (hostile / "mcp").mkdir()
    (hostile / "mcp" / "__init__.py").write_text("raise SystemExit('the wrong mcp')\n")
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    env = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
    async with connect(mode, fake.build(), lab, cwd=hostile, env=env) as client:
        result = await call(client, "codex_run", prompt="x")
    assert result["final_response"] == "hello"
