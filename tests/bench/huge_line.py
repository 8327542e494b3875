"""Read one line of so many megabytes from a real child, and say what that took.

    python huge_line.py MEGABYTES

Prints a JSON object: `cpu_s`, the CPU time of this process from the first byte
to the parsed event; `line_bytes`; `growth_bytes`, the peak of its memory less
what it had before; and `kept_bytes`, what it has not given back when nothing of
the line is left. A process of its own for each line, so that no peak hides
another and no allocator has learned from the line before.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
from pathlib import Path

import anyio

from codex_tools.codex.events import ItemCompletedEvent, parse_event
from codex_tools.engines.process import open_child

WRITER = r"""
import sys
head = '{"type":"item.completed","item":{"id":"item_0","type":"command_execution",'
head += '"command":"make","aggregated_output":"'
tail = '","exit_code":0,"status":"completed"}}\n'
text = "src/main.c:12: warning: unused variable 'x' [-Wunused]\\n"
left = int(sys.argv[1]) - len(head) - len(tail)
sys.stdout.write(head)
block = text * 1000
while left >= len(block):
    sys.stdout.write(block)
    left -= len(block)
sys.stdout.write("." * left + tail)
"""

TOUCHED = 5
"""Times the line's size of memory that is used once before; more than reading it takes."""


def main() -> None:
    size = round(float(sys.argv[1]) * 1_000_000)
    touch(size * TOUCHED)
    sys.stdout.write(json.dumps(anyio.run(measure, size)))


def touch(size: int) -> None:
    """Use *size* bytes of memory once, in a process that ends.

    In a virtual machine the first use of a page makes the host provide it, which
    is charged to us and costs a multiple of all that is measured here.
    """
    pid = os.fork()
    if pid == 0:
        with mmap.mmap(-1, size) as memory:
            for page in range(0, size, mmap.PAGESIZE):
                memory[page] = 1
        os._exit(0)
    os.waitpid(pid, 0)


async def measure(size: int) -> dict[str, float]:
    await read_one(64 * 1024)  # Warm: the first use loads and allocates what stays.
    before = memory("VmRSS")
    return {
        "cpu_s": await read_one(size),
        "line_bytes": size,
        "growth_bytes": memory("VmHWM") - before,
        "kept_bytes": memory("VmRSS") - before,
    }


async def read_one(size: int) -> float:
    """Read and parse a line of *size* bytes; return the CPU seconds that took."""
    command = [sys.executable, "-I", "-S", "-c", WRITER, str(size)]
    length = 0
    async with open_child(command, stdin=b"", cwd=Path.cwd(), env=os.environ) as child:
        start = time.process_time()
        async for line in child.lines():
            event = parse_event(line)
            assert isinstance(event, ItemCompletedEvent), event
            length += len(line) + 1
        spent = time.process_time() - start
    assert length == size, f"{length} bytes arrived of {size}"
    return spent


def memory(field: str, pid: int | None = None) -> int:
    """Return a field of the memory status of *pid*, or of this process, in bytes."""
    for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


if __name__ == "__main__":
    main()
