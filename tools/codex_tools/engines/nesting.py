"""How many runs of ours this process lives inside.

Codex may have this very server among its MCP servers, or start it from its
shell: agents would start agents without end. The environment alone does not
tell, since Codex gives an MCP server little of its own (0.60.1 to 0.169.0), and
a model can take a variable off. But each run has its guard (guard.py) between
our server and Codex, and what a run starts stays below that guard.

In the sandbox of Codex 0.120 and later, processes have a numbering of their own,
in which the guard cannot be seen. There the environments of those that can be
seen tell: the first of them is the sandbox's, and got its own from Codex itself.
In the sandbox of older versions, and outside of any, it is the other way round:
the guard is seen, environments may not be (0.60.1 hides its own as well).

What is not seen: ancestors of other users under a /proc mounted with hidepid;
a command free to do anything (danger-full-access) that kills the guard, or that
opens a numbering of its own and sheds the variable; on macOS, one that lets its
parent die and sheds the variable.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from codex_tools.engines.environment import DEPTH_VARIABLE

MOST = 9999
"""The largest number that the variable is believed."""

_VARIABLE = re.compile(rf"(?:^|\0){DEPTH_VARIABLE}=([^\0]*)".encode())
_SCRIPT = re.compile(
    rb"(?:.*/)?codex_tools/(?:engines|codex)/(?:__pycache__/)?guard(?:\.[^/]+)?\.pyc?", re.DOTALL
)
"""Where guard.py is; builds up to 0.1.0 had it in `codex/`, and their runs may hold this one."""

_ARGUMENTS_SIZE = 64 * 1024
"""Bytes of a command line that hold the arguments of any guard: four are paths."""

_PS_TIMEOUT_S = 10.0
# One string, in which nothing tells a blank from the end of an argument, but that
# options begin with a dash and all paths here with a slash.
_PS_GUARD = re.compile(
    r"(?:(?! [-/]).)+ -I -S /(?:(?! [-/]).)*?\b"
    r"codex_tools/(?:engines|codex)/(?:__pycache__/)?guard(?:\.[^/ ]+)?\.pyc?"
    r" [0-9]+ (?:/.*?)? ?[0-9]+ /.* \S"
)
_PS_VARIABLE = re.compile(rf" {DEPTH_VARIABLE}=(\S*)")


@dataclass(frozen=True, slots=True)
class Ancestor:
    """What a process above this one says of its depth."""

    is_guard: bool
    told: int = 0
    """The number that it was started with in the variable."""


def find_depth(
    environ: Mapping[str, str], look: Callable[[], Iterable[Ancestor]] | None = None
) -> int:
    """Return how many runs of ours this process lives inside.

    A number in the variable says how deep its holder is, so the guards between
    that holder and this process come on top of it. A wrong one can make the
    result too large, which refuses a run, but never smaller than without it.

    Args:
        environ: This process's own.
        look: Finds the ancestors, nearest first; by default as this system can.
    """
    depth, guards = _number(environ.get(DEPTH_VARIABLE, "").encode("utf-8", "replace")), 0
    for ancestor in (look or (from_proc if sys.platform == "linux" else from_ps))():
        depth = max(depth, guards + ancestor.told)  # A guard has the number of its own run.
        guards += ancestor.is_guard
    return max(depth, guards)


@dataclass(slots=True)
class _Process:
    pid: str
    parent: int
    """0 for none that can be seen."""
    started: int
    """In ticks; with its id, it tells a process from all others. -1 if it cannot be seen."""
    ancestor: Ancestor


def from_proc() -> list[Ancestor]:
    """Return the ancestors, nearest first, as Linux shows them; reads four small files of each.

    One may end meanwhile, and its id be given to a stranger. So what was read of
    it counts only if it still is the parent of the one below; else that one,
    which somebody has adopted, is asked anew. None that lives on is missed.

    One that Linux is about to forget (6.18, once its exit status was taken) is
    still shown, started as before but with parent 0: it counts as gone.
    """
    # Not by this process's id: /proc may number the processes of an outer
    # namespace, as it does where a sandbox could not mount its own.
    chain = [_look("self")]
    seen: set[str] = set()
    while (below := chain[-1]).parent > 0:
        above = _look(str(below.parent))
        parent, started = _parent(below.pid)
        if len(chain) > 1 and (started != below.started or parent == 0):
            seen.discard(chain.pop().pid)
        elif parent != below.parent:
            below.parent = parent
        elif above.pid in seen:
            break
        else:
            seen.add(above.pid)
            chain.append(above)
    return [process.ancestor for process in chain[1:]]


def _look(pid: str) -> _Process:
    parent, started = _parent(pid)
    told = map(_number, _VARIABLE.findall(_content(pid, "environ")))
    argv = _content(pid, "cmdline", _ARGUMENTS_SIZE).split(b"\0")
    return _Process(pid, parent, started, Ancestor(_is_guard(argv), max(told, default=0)))


def _parent(pid: str) -> tuple[int, int]:
    """Return the id of *pid*'s parent and when *pid* was started."""
    # The command, in brackets, may itself hold brackets and blanks.
    fields = _content(pid, "stat").rpartition(b")")[2].split()
    return (int(fields[1]), int(fields[19])) if len(fields) > 19 else (0, -1)


def _content(pid: str, file: str, size: int = -1) -> bytes:
    try:
        # A Path takes as long as all the rest.
        with open(f"/proc/{pid}/{file}", "rb", buffering=0) as content:  # noqa: PTH123
            return content.read(size) or b""
    except OSError:  # It is gone, another user's, hidden by a sandbox or by itself.
        return b""


def _is_guard(argv: list[bytes]) -> bool:
    """Return whether *argv* is a guard's, of this or another installation or version.

    INTERPRETER -I -S GUARD CONTROL_FD SCRATCH GRACE_MS CWD PROGRAM ARGUMENT...
    """
    return (
        len(argv) > 9  # The last is empty: each argument ends with a NUL.
        and argv[1:3] == [b"-I", b"-S"]
        and _SCRIPT.fullmatch(argv[3]) is not None
        and argv[4].isdigit()
        and argv[6].isdigit()
        and argv[7].startswith(b"/")
    )


def _number(text: bytes) -> int:
    """Return *text* as a depth; 0 for what is none, at most MOST."""
    if re.fullmatch(rb"[0-9]+", text) is None:
        return 0
    digits = text.lstrip(b"0")
    return MOST if len(digits) > 4 else int(digits or b"0")


def from_ps(ps: str = "/bin/ps") -> list[Ancestor]:
    """Return the ancestors, nearest first, as `ps` lists them where there is no /proc.

    Not the `ps` of PATH, which a model may have set. macOS lets no sandboxed
    process run it, nor see one outside of its sandbox. As Codex's own sandbox is
    one, to be refused counts as living inside a run.
    """
    command = [ps, "-axww", "-o", "pid=", "-o", "ppid=", "-o", "command="]
    if sys.platform == "darwin":
        command.append("-E")  # Environments as well, of the user's own processes.
    try:
        listing = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PS_TIMEOUT_S,
            check=False,
        )
    except PermissionError:
        return [Ancestor(is_guard=False, told=1)]
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_ps(listing.stdout.decode("utf-8", "replace"), os.getpid())


def parse_ps(listing: str, pid: int) -> list[Ancestor]:
    """Return the ancestors of *pid*, nearest first, from lines of id, parent's id, command."""
    processes: dict[int, tuple[int, str]] = {}
    for line in listing.split("\n"):
        match line.split(None, 2):
            case [child, parent, command] if child.isdigit() and parent.isdigit():
                processes[int(child)] = int(parent), command
            case _:
                pass
    ancestors: list[Ancestor] = []
    above, _ = processes.pop(pid, (0, ""))
    while above in processes:  # Each is taken once: the listing may hold a ring.
        above, command = processes.pop(above)
        told = (_number(text.encode()) for text in _PS_VARIABLE.findall(command))
        ancestors.append(Ancestor(_PS_GUARD.match(command) is not None, max(told, default=0)))
    return ancestors
