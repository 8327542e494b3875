"""Measure the CPU time and the memory that reading a rollout takes, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.rollout_lines import (
    TURN,
    Json,
    context,
    ended,
    new_asked,
    new_count,
    new_meta,
    output,
    record,
    started,
    written,
)

_SCRIPT = """
import json, resource, sys, time
from pathlib import Path
{code}
act = {action}
before = time.process_time()
act(Path(sys.argv[1]))
spent = time.process_time() - before
status = Path("/proc/self/status")
if status.exists():
    # ru_maxrss includes the process that this one was forked from.
    (peak,) = (int(line.split()[1]) for line in status.open() if line.startswith("VmHWM:"))
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps([spent, peak / 1024]))
"""


def spent_on(path: Path, code: str, action: str) -> tuple[float, float]:
    """Return the CPU seconds and the peak of memory in MB of *action*, called with *path*."""
    script = _SCRIPT.format(code=code, action=action)
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    cpu_s, peak_mb = json.loads(run.stdout)
    return cpu_s, peak_mb


def write_long_lines(path: Path, size: int) -> None:
    """Write a thread whose two prompts have *size* bytes together."""
    _write(path, *(started(), new_asked("begin TEXT"), new_asked("then TEXT")), size=size // 2)


def write_one_line(path: Path, size: int) -> None:
    """Write a thread with one prompt of *size* bytes."""
    _write(path, started(), new_asked("begin TEXT"), size=size)


def write_many_prompts(path: Path, size: int) -> None:
    """Write a thread of *size* bytes in prompts of 60 KB."""
    _write(path, *(started(), new_asked("many words " * 5500)) * (size // 60_500), size=0)


def write_outputs(path: Path, size: int) -> None:
    """Write a thread of *size* bytes in outputs of commands."""
    _write(path, started(), *(output("a line of output\n" * 500),) * (size // 8_600), size=0)


def _write(path: Path, *lines: Json, size: int) -> None:
    whole = (new_meta(), *lines, context(turn_id=TURN), record(101), new_count(101, 101), ended())
    with path.open("wb") as file:
        for piece in written(*whole).split(b"TEXT"):
            for _ in range(size // 100_000 if file.tell() else 0):
                file.write(b"x y z" * 20_000)
            file.write(piece)
