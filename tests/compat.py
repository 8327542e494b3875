"""Run the tests that meet a real Codex with one version after the other; draw a table of it.

`make compat` takes the versions below and the newest on npm and writes
docs/compatibility.md; ARGS="0.98.0 0.120.0" replaces the columns of those, and
ARGS="--failed" the cells of the page in which a test failed. "0.163.0/exec" is a column too:
that version by an engine which it does not run by itself. Each version is fetched once, 300 to
400 MB.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

TOP = Path(__file__).parent.parent
PAGE = TOP / "docs" / "compatibility.md"

VERSIONS = ("0.60.1", "0.77.0", "0.98.0", "0.120.0", "0.147.0", "0.163.0")
"""Where Codex's command line, events or files changed, and the newest on PyPI."""

OTHER_ENGINE = "exec"
"""The engine by which the last of VERSIONS and the newest version run the tests once more.

Without a choice, they run turns by app-server."""

Column = dict[str, str]
"""How the tests of one version ended, by what they are about."""

ALL = "**all**"
"""The row with the sums."""


def main(arguments: Sequence[str]) -> int:
    """Run the versions named, or all, or what has failed; return the exit code."""
    columns = read() if arguments else {}
    versions = [*arguments]
    if not versions:
        versions = [*VERSIONS, newest()]
        versions += [f"{version}/{OTHER_ENGINE}" for version in versions[-2:]]
    failed: dict[str, list[str]] = {}
    if arguments == ["--failed"]:
        failed = {version: _failed_in(column) for version, column in columns.items()}
        versions = [version for version in columns if failed[version]]
    for version in versions:
        if version in failed:
            found = columns[version] | run(version, failed[version])
            columns[version] = found | {ALL: _sum_of(found)}
        else:
            columns[version] = run(version)
        PAGE.write_text(draw(columns), encoding="utf-8")
    sys.stdout.write(PAGE.read_text(encoding="utf-8"))
    return int(any(" of " in cell for version in versions for cell in columns[version].values()))


def newest() -> str:
    """Return the newest version on npm."""
    asked = ["npm", "view", "@openai/codex", "version", "--json"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True)
    return str(json.loads(said.stdout))


def _failed_in(column: Column) -> list[str]:
    return [name for name, cell in column.items() if " of " in cell and name != ALL]


def _sum_of(column: Column) -> str:
    counts: Counter[str] = Counter()
    for name, cell in column.items():
        if name != ALL and cell != "-":
            passed, _, done = cell.partition(" of ")
            counts["passed"] += int(passed)
            counts["failed"] += int(done or passed) - int(passed)
    return _cell(counts)


def run(version: str, names: Sequence[str] = ()) -> Column:
    """Run the tests of a column's version and engine: those of the rows *names*, or all."""
    version, _, engine = version.partition("/")
    files = [f"tests/live/test_{name.replace(' ', '_')}.py" for name in names] or ["tests/live"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = [sys.executable, "-m", "pytest", *files, "-q", "-k", version]
        side_by_side = ["-n", "4", "--dist", "loadscope", "--no-loadscope-reorder"]
        subprocess.run(
            [*tests, *side_by_side, f"--junit-xml={report}"],
            cwd=TOP,
            env=os.environ
            | {"CODEX_VERSIONS": version, "EVERY_PAIR": "1", "CI": "1"}
            | ({"CODEX_ENGINE": engine} if engine else {}),
            check=False,  # What failed is in the report.
        )
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            tags = {child.tag for child in case}
            ended = "failed" if tags & {"failure", "error"} else "passed"
            file = re.sub(r"^.*\btest_", "", case.get("classname", "")).replace("_", " ")
            for name in (file, ALL):
                counts[name]["skipped" if "skipped" in tags else ended] += 1
    return {name: _cell(some) for name, some in counts.items()}


def read() -> dict[str, Column]:
    """Return the columns of the page as it is."""
    rows = re.findall(r"^\| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    (_, *versions), _, *others = (row.split(" | ") for row in rows)
    columns: dict[str, Column] = {version: {} for version in versions}
    for name, *cells in others:
        for version, cell in zip(versions, cells, strict=True):
            columns[version][name] = cell
    return columns


def draw(columns: Mapping[str, Column]) -> str:
    """Return the page: a row for each file of tests, a column for each version."""
    versions = sorted(columns, key=_by_number)
    names = sorted({name for column in columns.values() for name in column}, key=_sums_last)
    head = ["tests", *versions]
    rows = [[name, *(columns[version].get(name, "-") for version in versions)] for name in names]
    table = "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))
    return (
        "# Compatibility\n\n"
        "Results of `make compat`: the number of passed tests with a real Codex, for each version"
        " and in both\nprotocol eras. If a version lacks a feature, a test checks that the server"
        " reports this. Most of the\naccounting tests need forks by `codex exec`, which exist"
        " since some version after 0.147.0; they also\nrun on 0.60.1."
        " A turn runs by app-server from 0.163.0 on, and by exec before; in the columns with\n"
        "/exec, by exec too.\n\n"
        f"{table}\nRun on {sys.platform}, {datetime.now(UTC):%Y-%m-%d}.\n"
    )


def _by_number(column: str) -> tuple[list[int], str]:
    version, _, engine = column.partition("/")
    return [int(part) for part in version.split(".")], engine


def _sums_last(name: str) -> tuple[bool, str]:
    return name.startswith("**"), name


def _cell(counts: Counter[str]) -> str:
    done = counts["passed"] + counts["failed"]
    if not done:
        return "-"
    return str(done) if not counts["failed"] else f"{counts['passed']} of {done}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
