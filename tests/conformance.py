"""Run the official conformance suite against the server; compare with the expected failures.

`make conformance` fetches the suite from npm once, serves the server over HTTP (see
support/http_bridge.py) and runs both eras against a fake Codex. It fails for a failed check that
tests/data/conformance.json does not explain, and for an explanation that is no longer needed.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import cast

from support.codex_versions import from_npm
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.http_bridge import serve_over_http
from support.lab import environment, open_lab, server_program

SUITE, NODE = "0.2.0-alpha.12", "24.9.0"
ERAS = ("2025-11-25", "2026-07-28", "tasks")
"""What is run: both protocol eras, and the scenarios of the extension for tasks."""

EXPECTED = Path(__file__).parent / "data" / "conformance.json"
"""For each era, the reason of each expected failure, by scenario and check with wildcards."""

BODY = """
if seen["stdin"] == "fail":
    print(json.dumps({"type": "thread.started", "thread_id": "T" * 36}))
    print(json.dumps({"type": "turn.started"}))
    print(json.dumps({"type": "turn.failed", "error": {"message": "the model has left"}}))
    sys.exit(1)
for step in range(4 if seen["stdin"] == "slow" else 0):
    item = {"id": f"item_{step}", "type": "command_execution", "command": f"step {step}",
            "aggregated_output": "", "exit_code": None, "status": "in_progress"}
    print(json.dumps({"type": "item.started", "item": item}), flush=True)
    time.sleep(0.6)
"""
"""What the fake Codex does for the prompts of the aliases, before it answers."""

Failures = dict[str, str]
"""Failed checks as "scenario check", and what the suite says of each."""


def conformance() -> tuple[str, str]:
    """Return Node, which must be 22 or later, and the suite's script."""
    node = from_npm(f"npm/node-{NODE}", f"node@{NODE}") / "node_modules" / ".bin" / "node"
    package = "@modelcontextprotocol/conformance"
    folder = from_npm(f"npm/conformance-{SUITE}", f"{package}@{SUITE}")
    return str(node), str(folder / "node_modules" / package / "dist" / "index.js")


def run(era: str, url: str, out: Path) -> tuple[int, Failures]:
    """Run the scenarios of *era*; return the number of passed checks, and the failed ones."""
    node, script = conformance()
    command = [node, script, "server", "--url", url, "--timeout", "20000"]
    if era == "tasks":
        listed = subprocess.run([node, script, "list", "--server"], capture_output=True, text=True)
        lines = [line.split() for line in listed.stdout.splitlines()]
        names = [words[1] for words in lines if len(words) > 1 and words[1].startswith("tasks-")]
        more = [["--scenario", name] for name in names]
    else:
        more = [["--suite", "all", "--spec-version", era]]
    for each in more:
        subprocess.run([*command, "-o", str(out), *each], capture_output=True, check=False)
    passed, failed = 0, Failures()
    for file in sorted(out.rglob("checks.json")):
        scenario = re.sub(r"-\d{4}-\d\d-\d\dT.*", "", file.parent.name.removeprefix("server-"))
        for check in cast("list[dict[str, str]]", json.loads(file.read_text())):
            passed += check["status"] == "SUCCESS"
            if check["status"] == "FAILURE":
                said = " ".join(str(check.get("errorMessage", "")).split())
                failed[f"{scenario} {check['id']}"] = said
    return passed, failed


def compare(failed: Failures, expected: dict[str, str]) -> list[str]:
    """Return what is wrong: failures without a reason, and reasons without a failure."""
    unknown = [
        f"{name}: {said}"
        for name, said in failed.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in expected)
    ]
    idle = [pattern for pattern in expected if not fnmatch.filter(failed, pattern)]
    return [*unknown, *(f"no longer fails: {pattern}" for pattern in idle)]


def main() -> int:
    """Run all; return the exit code."""
    expected = cast("dict[str, dict[str, str]]", json.loads(EXPECTED.read_text()))
    wrong = 0
    for era in ERAS:
        with open_lab() as lab, tempfile.TemporaryDirectory() as out:
            fake = FakeCodex(lab.root / "fake")
            fake.body = BODY
            text = "This is a simple text response for testing."
            fake.stdout = events(thread_line(), *answer_lines(text))
            options = ("--codex-bin", str(fake.build()), "--state-dir", str(lab.state))
            command = [server_program(), *options]
            with serve_over_http(command, environment(lab), lab.project, lab.log) as url:
                passed, failed = run(era, url, Path(out))
        problems = compare(failed, expected.get(era, {}))
        sys.stdout.write(f"{era}: {passed} passed, {len(failed)} failed as expected or below\n")
        sys.stdout.writelines(f"  {problem}\n" for problem in problems)
        wrong += len(problems)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
