"""The commands print the results of the tools and import nothing that they do not need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from codex_tools.usage import USAGE as TOOL
from codex_tools.usage import UsageResult
from mcp_server_codex.cli.sessions import arguments_of
from mcp_server_codex.cli.usage import USAGE
from support.lab import server_program
from support.synthetic_home import make_home

SLOW = ("pydantic", "rich", "anyio", "asyncio", "mcp", "genai_prices", "importlib.metadata")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    make_home(home, sessions=12, days=20, seed=3, turns=2, output_kb=0.2)
    return home


def run(home: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    # The cache of prices must not be the one of the person who runs the tests.
    own = {"CODEX_HOME": str(home), "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environ = os.environ | own | {"TZ": "UTC"}
    return subprocess.run(command, env=environ, capture_output=True, text=True)


def run_usage(home: Path, state: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(home, server_program(), "usage", "--state-dir", state, *options)


def test_usage_has_the_arguments_of_the_tool_in_the_same_words() -> None:
    assert USAGE.arguments == arguments_of(TOOL)
    assert USAGE.about == TOOL.description


@pytest.mark.parametrize("group_by", ["day", "week", "month", "model", "cwd", "thread"])
def test_usage_prints_the_tool_s_structured_result(
    home: Path, tmp_path: Path, group_by: str
) -> None:
    done = run_usage(home, tmp_path, "--json", "--group-by", group_by)
    found = json.loads(done.stdout)
    assert found["totals"]["requests"] > 0
    assert found["groups"]
    result = UsageResult.model_validate(found)
    whole = json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False)
    assert done.stdout == whole + "\n"


def test_usage_is_a_table_for_a_person(home: Path, tmp_path: Path) -> None:
    done = run_usage(home, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "total" in done.stdout
    assert "Recorded usage, not a bill." in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--since", "soon"), "'soon' is not a date or time"),
        (("--timezone", "Mars/Crater"), "'Mars/Crater' is not an IANA time zone"),
        (("--group-by", "hour"), "invalid choice: 'hour'"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_what_makes_no_sense_is_refused(
    home: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    done = run_usage(home, tmp_path, "--json", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_usage_as_json_imports_nothing_slow(home: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from mcp_server_codex.cli.usage import run_usage;"
        " code = run_usage(['--json', '--state-dir', sys.argv[1]]);"
        " print(*sys.modules, sep='\\n', file=sys.stderr); sys.exit(code)"
    )
    assert run_usage(home, tmp_path / "first", "--json").returncode == 0  # Caches the prices.
    done = run(home, sys.executable, "-c", code, tmp_path / "second")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["totals"]["requests"] > 0
    assert set(done.stderr.split()).isdisjoint(SLOW), done.stderr
