"""Run the tests that meet a real Codex with one version after the other; draw a table of it.

`make compat` takes the versions below and the newest on npm, or ARGS="0.98.0 0.120.0".
It writes docs/compatibility.md. Each version is fetched once, 300 to 400 MB.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

TOP = Path(__file__).parent.parent
PAGE = TOP / "docs" / "compatibility.md"

VERSIONS = ("0.60.1", "0.77.0", "0.98.0", "0.120.0", "0.147.0", "0.163.0")
"""Where Codex's command line, events or files changed, and the newest on PyPI."""

Counts = Counter[str]


def main(arguments: Sequence[str]) -> int:
    """Run all versions; return the exit code."""
    versions = [*arguments] or [*VERSIONS, newest()]
    found = {version: run(version) for version in dict.fromkeys(versions)}
    page = draw(found)
    if not arguments:
        PAGE.write_text(page, encoding="utf-8")
    sys.stdout.write(page)
    return int(any(counts["failed"] for files in found.values() for counts in files.values()))


def newest() -> str:
    """Return the newest version on npm."""
    asked = ["npm", "view", "@openai/codex", "version", "--json"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True)
    return str(json.loads(said.stdout))


def run(version: str) -> dict[str, Counts]:
    """Return how the tests of *version* ended, by the file they stand in."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = [sys.executable, "-m", "pytest", "tests/live", "-q", "-k", version]
        side_by_side = ["-n", "4", "--dist", "loadscope", "--no-loadscope-reorder"]
        subprocess.run(
            [*tests, *side_by_side, f"--junit-xml={report}"],
            cwd=TOP,
            env=os.environ | {"CODEX_VERSIONS": version, "EVERY_PAIR": "1", "CI": "1"},
            check=False,  # What failed is in the report.
        )
        cases = ElementTree.parse(report).getroot().iter("testcase")
        files: dict[str, Counts] = defaultdict(Counter)
        for case in cases:
            outcomes = {child.tag for child in case} & {"failure", "error", "skipped"}
            ended = "failed" if outcomes & {"failure", "error"} else "skipped"
            files[case.get("classname", "")][ended if outcomes else "passed"] += 1
    return files


def draw(found: dict[str, dict[str, Counts]]) -> str:
    """Return the page: a row for each file of tests, a column for each version."""
    names = sorted({name for files in found.values() for name in files})
    head = ["tests", *found]
    rows = [
        [_title(name), *(_cell(files.get(name, Counts())) for files in found.values())]
        for name in names
    ]
    sums = ["**all**", *(_cell(sum(files.values(), Counts())) for files in found.values())]
    table = "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows, sums))
    return (
        "# Compatibility\n\n"
        "What `make compat` printed: the tests that meet a real Codex, by version, each in both"
        " protocol\neras. A version that lacks a feature is tested for saying so.\n\n"
        f"{table}\nRun on {sys.platform}, {datetime.now(UTC):%Y-%m-%d}.\n"
    )


def _title(name: str) -> str:
    return re.sub(r"^.*\btest_", "", name).replace("_", " ")


def _cell(counts: Counts) -> str:
    done = counts["passed"] + counts["failed"]
    if not done:
        return "" if not counts["skipped"] else "not run"
    return str(done) if not counts["failed"] else f"{counts['passed']} of {done}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
