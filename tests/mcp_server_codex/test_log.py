"""The log on stderr: entries that no message can forge."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json, logging, sys
from mcp_server_codex.log import log_to_stderr
log_to_stderr("info")
evil = json.loads(sys.argv[1])
logging.getLogger("x").warning("first %s", evil)
try:
    raise ValueError(evil)
except ValueError:
    logging.getLogger("y").exception("second")
"""
EVIL = "\x1b]0;owned\x07\x9b2J\u202e\u2028\ud800\n2026-11-28 10:00:00,000 ERROR forged: entry\r1"


def test_a_message_controls_no_terminal_and_forges_no_entry() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(EVIL)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.split("\n")
    assert all(line.isprintable() for line in lines)
    entries = [line for line in lines if line and not line.startswith("  ")]
    assert [entry.split(" ")[2:4] for entry in entries] == [["WARNING", "x:"], ["ERROR", "y:"]]
    assert any("Traceback" in line for line in lines)
