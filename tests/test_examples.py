"""The examples: each run as a person would, against the real server and a fake Codex."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Lab, environment

EXAMPLES = Path(__file__).parent.parent / "examples"
LINES = 52
"""An example is read in one go; longer ones belong into docs/."""

BY_PROMPT = 'plan["stdout"] = os.path.join(plan["stdout"], seen["stdin"])'
"""Play the file that is named like the prompt."""


def run(lab: Lab, fake: FakeCodex, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    scripts = Path(sys.executable).parent
    env = environment(lab) | {
        "PATH": f"{scripts}:{environment(lab)['PATH']}",
        "MCP_SERVER_CODEX_CODEX_BIN": str(fake.build()),
        "MCP_SERVER_CODEX_STATE_DIR": str(lab.state),
    }
    command = [sys.executable, str(EXAMPLES / name), *arguments, "--cwd", str(lab.project)]
    return subprocess.run(command, env=env, cwd=lab.root, capture_output=True, text=True)


@pytest.mark.parametrize("write", [False, True])
def test_delegate_prints_the_answer_and_the_files(lab: Lab, fake: FakeCodex, write: bool) -> None:
    path = str(lab.project / "prices.py")
    change = {"path": path, "kind": "add"}
    patch = {"id": "i", "type": "file_change", "changes": [change], "status": "completed"}
    fake.stdout = events(
        thread_line(), {"type": "item.completed", "item": patch}, *answer_lines("It passes.")
    )
    # Progress comes within a second, so Codex takes two.
    fake.body = f"open({path!r}, 'w').close(); time.sleep(2)"
    done = run(lab, fake, "delegate.py", "-- make it pass", *(["--write"] if write else []))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"It passes.\nadd    {path}\n"
    assert re.match(r"\d+s · ", done.stderr)
    sandbox = "workspace-write" if write else "read-only"
    assert sandbox in fake.seen()["argv"]
    assert fake.seen()["cwd"] == str(lab.project)


@pytest.mark.parametrize("name", ["delegate.py", "structured_output.py"])
def test_a_failure_says_its_kind_and_what_to_do(lab: Lab, fake: FakeCodex, name: str) -> None:
    failed = {"type": "turn.failed", "error": {"message": "You've hit your usage limit."}}
    fake.stdout, fake.exit_code = events(thread_line(), failed), 1
    done = run(lab, fake, name, "x")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "usage_limit: You've hit your usage limit.\nThe account's allowance" in done.stderr


def test_structured_output_prints_a_line_for_each_finding(lab: Lab, fake: FakeCodex) -> None:
    # As the strict form of the schema has it: a wrapped root, null for what is left out.
    findings = [
        {"path": "a.py", "line": 3, "problem": "no test"},
        {"path": "b.py", "line": None, "problem": "two names"},
    ]
    fake.body = (
        'wrap = next(iter(seen["schema"]["properties"]))\n'
        'data = open(plan["stdout"]).read().replace("WRAP", wrap)\n'
        'open(plan["stdout"], "w").write(data)'
    )
    fake.stdout = events(thread_line(), *answer_lines(json.dumps({"WRAP": findings})))
    done = run(lab, fake, "structured_output.py", "find")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a.py:3: no test\nb.py:?: two names\n"


def test_background_prints_all_results_in_the_order_of_the_prompts(
    lab: Lab, fake: FakeCodex, tmp_path: Path
) -> None:
    prompts = ("one", "two", "three")
    for number, prompt in enumerate(prompts):
        thread = thread_line(f"01a20000-0000-7000-8000-00000000000{number}")
        stream = events(thread, *answer_lines(f"answer {prompt}"))
        (tmp_path / prompt).write_bytes(stream)
    fake.stdout, fake.body = tmp_path, BY_PROMPT
    done = run(lab, fake, "background.py", *prompts)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{each}\n  completed: answer {each}\n" for each in prompts)


def test_background_reports_the_run_that_failed(lab: Lab, fake: FakeCodex, tmp_path: Path) -> None:
    failed = {"type": "turn.failed", "error": {"message": "You've hit your usage limit."}}
    thread = thread_line("01a20000-0000-7000-8000-000000000009")
    (tmp_path / "bad").write_bytes(events(thread, failed))
    (tmp_path / "good").write_bytes(events(thread_line(), *answer_lines("done")))
    fake.stdout, fake.body = tmp_path, BY_PROMPT
    done = run(lab, fake, "background.py", "bad", "good")
    assert done.returncode == 1
    assert done.stdout == "bad\n  failed: You've hit your usage limit.\ngood\n  completed: done\n"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.iterdir()))
def test_an_example_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert f"python examples/{name} " in text
    assert len(text.splitlines()) <= LINES
