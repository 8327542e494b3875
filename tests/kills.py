"""Run the kill matrix on real Codex binaries; write the table in README.md.

`make kills` takes the two versions that each `make test` uses, or those in CODEX_VERSIONS.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

from support.kill_matrix import Ending

TOP = Path(__file__).parent.parent
PAGE = TOP / "README.md"
BEGIN, END = "<!-- measured by `make kills` -->\n", "<!-- what was measured ends here -->"


def run() -> list[Ending]:
    """Run the tests; return how each run ended."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = [sys.executable, "-m", "pytest", "tests/live/test_kill_matrix.py", "-q", "-n", "2"]
        subprocess.run([*tests, f"--junit-xml={report}"], cwd=TOP, check=False)
        noted = ElementTree.parse(report).getroot().iter("property")
        values = [each.get("value", "") for each in noted if each.get("name") == "ending"]
    return [Ending(**ast.literal_eval(value)) for value in values]


def draw(endings: Sequence[Ending]) -> str:
    """Return the table: a row for each way to end a run."""
    head = ("a run ends by", "runs", "processes left", "all gone after", "the thread goes on")
    rows: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    ordered = sorted(endings, key=lambda ending: ending.place)
    for name, group in groupby(ordered, key=lambda ending: ending.end):
        runs = [*group]
        left = [None if run.left is None else sum(run.left.values()) for run in runs]
        worst = max((run.gone_s for run in runs if run.gone_s is not None), default=None)
        rows.append(
            (
                name,
                str(len(runs)),
                "?" if None in left else str(sum(count or 0 for count in left)),
                "?" if worst is None else f"{worst:.1f} s or less",
                "yes" if all(run.goes_on for run in runs) else "**no**",
            )
        )
    versions = sorted({ending.version for ending in endings}, key=_number)
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    codex = " and ".join(versions)
    return (
        f"{table}\n{len(endings)} runs on Codex {codex}, in both protocol eras and two sandboxes,"
        f" on {sys.platform},\n{datetime.now(UTC):%Y-%m-%d}. Each run had started processes in the"
        " foreground and background, with nohup, with setsid and\nby a double fork.\n"
    )


def _number(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def main() -> int:
    """Run the matrix and write the page; return the exit code."""
    endings = run()
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{draw(endings)}{END}{after}", encoding="utf-8")
    return int(not endings or any(ending.fault for ending in endings))


if __name__ == "__main__":
    sys.exit(main())
