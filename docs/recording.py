"""Record `mcp-server-codex demo` as docs/demo.svg, which the README shows (`make recording`).

The demo runs for real: this server, a real Codex, a scripted model. Its output is kept with its
colours and drawn by rich. The SVG loads nothing: without a font of its own it takes the reader's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from codex_tools.codex.program import bundled_codex

TOP = Path(__file__).parent.parent
PICTURE = TOP / "docs" / "demo.svg"
WIDTH = 100
"""Columns: what fits a page of a repository without scrolling."""

SPINNER = re.compile(r"^.*[\u2800-\u28ff].*Codex is working.*\n", re.MULTILINE)
"""A line that a terminal overwrites, and that a recording would show once for each frame."""

CONTROL = re.compile(r"\x1b\[[0-9?]*[A-HJ-Khl]|\r")
"""Matches what moves the cursor, not what sets colours."""


def record() -> str:
    """Return what the demo prints on a terminal, with its colours."""
    program = Path(sys.executable).with_name("mcp-server-codex")
    bundled = bundled_codex()
    assert bundled is not None, "openai-codex-cli-bin is not installed"
    env = os.environ | {"COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "COLORTERM": "truecolor"}
    env |= {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
    # The demo shows where Codex is, which is a matter of this machine.
    with tempfile.TemporaryDirectory(prefix="bin-") as folder:
        codex = Path(folder) / "codex"
        codex.symlink_to(bundled)
        env["CODEX_BIN"] = str(codex)
        command = [program, "demo"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return SPINNER.sub("", CONTROL.sub("", done.stdout))


def draw(output: str) -> str:
    """Return *output* as an SVG."""
    console = Console(record=True, width=WIDTH, file=StringIO(), color_system="truecolor")
    console.print(Text.from_ansi(output), soft_wrap=True)
    svg = console.export_svg(title="mcp-server-codex demo", unique_id="demo")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    PICTURE.write_text(draw(record()), encoding="utf-8")
