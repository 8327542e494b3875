"""Count the nested runs of this server that this process is inside.

Codex may have this very server among its MCP servers, or start it from its shell. Agents would
then start agents without end. The environment alone is not enough to detect this. Codex passes
little of its environment to an MCP server (0.60.1 to 0.169.0), and a model can unset a variable.
But each run has a guard (guard.py) between this server and Codex, and all processes of the run are
descendants of that guard.

In the sandbox of Codex 0.120 and later, processes have their own pid namespace, in which the guard
is not visible. There, the environments of the visible processes are read. The first process is the
sandbox's, and got its environment from Codex itself. In the sandbox of older versions, and outside
any sandbox, it is the other way round. The guard is visible, and environments may not be (0.60.1
hides its own as well).

These cases are not detected:

* ancestors of other users under a /proc mounted with hidepid
* a command with full access (danger-full-access) that kills the guard, or that opens its own pid
  namespace and unsets the variable
* on macOS, a command that lets its parent die and unsets the variable
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
"""The largest depth that is read from the variable; larger numbers count as this one."""

_VARIABLE = re.compile(rf"(?:^|\0){DEPTH_VARIABLE}=([^\0]*)".encode())
_SCRIPT = re.compile(
    rb"(?:.*/)?codex_tools/(?:engines|codex)/(?:__pycache__/)?guard(?:\.[^/]+)?\.pyc?", re.DOTALL
)
"""Path of guard.py. Builds up to 0.1.0 had it in `codex/`; their runs may contain this process."""

_ARGUMENTS_SIZE = 64 * 1024
"""Bytes read from a command line; enough for the arguments of any guard, four of them paths."""

_PS_TIMEOUT_S = 10.0
# `ps` prints a command line as one string, without marks between arguments. Only the dash of an
# option and the slash of a path show where an argument begins.
_PS_GUARD = re.compile(
    r"(?:(?! [-/]).)+ -I -S /(?:(?! [-/]).)*?\b"
    r"codex_tools/(?:engines|codex)/(?:__pycache__/)?guard(?:\.[^/ ]+)?\.pyc?"
    r" [0-9]+ (?:/.*?)? ?[0-9]+ /.* \S"
)
_PS_VARIABLE = re.compile(rf" {DEPTH_VARIABLE}=(\S*)")


@dataclass(frozen=True, slots=True)
class Ancestor:
    """An ancestor process, as evidence of nested runs."""

    is_guard: bool
    depth: int = 0
    """The depth in the variable that the process was started with; 0 for none."""


def find_depth(
    environ: Mapping[str, str], look: Callable[[], Iterable[Ancestor]] | None = None
) -> int:
    """Return the number of nested runs of this server that this process is inside.

    The variable holds the depth of its process. The guards between that process and this one are
    added to it. A wrong number can make the result too large, so that a run is refused. It never
    makes the result smaller than without the variable.

    Args:
        environ: The environment of this process.
        look: Returns the ancestors, nearest first; by default `from_proc` or `from_ps`.
    """
    depth, guards = _number(environ.get(DEPTH_VARIABLE, "").encode("utf-8", "replace")), 0
    for ancestor in (look or (from_proc if sys.platform == "linux" else from_ps))():
        depth = max(depth, guards + ancestor.depth)  # A guard has the depth of its own run.
        guards += ancestor.is_guard
    return max(depth, guards)


@dataclass(slots=True)
class _Process:
    pid: str
    parent: int
    """Id of the parent; 0 if none is visible."""
    started: int
    """Start time in ticks, which with the id identifies a process; -1 if not visible."""
    ancestor: Ancestor


def from_proc() -> list[Ancestor]:
    """Return the ancestors, nearest first, from Linux's /proc; reads four small files of each.

    An ancestor may end during the reads, and another process may get its id. What was read of an
    ancestor therefore counts only if it is still the parent of the process below. Otherwise that
    process has a new parent, which is read next. No ancestor that stays alive is missed.

    An exiting process whose exit status was already collected may still be shown (Linux 6.18), with
    its old start time but with parent 0. It counts as gone.
    """
    # "self" and not this process's id: /proc may show the ids of an outer namespace, as it does
    # where a sandbox could not mount its own /proc.
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
    depths = map(_number, _VARIABLE.findall(_content(pid, "environ")))
    argv = _content(pid, "cmdline", _ARGUMENTS_SIZE).split(b"\0")
    return _Process(pid, parent, started, Ancestor(_is_guard(argv), max(depths, default=0)))


def _parent(pid: str) -> tuple[int, int]:
    """Return the parent's id and the start time of *pid*; (0, -1) if they cannot be read."""
    # The command, in brackets, may itself hold brackets and blanks.
    fields = _content(pid, "stat").rpartition(b")")[2].split()
    return (int(fields[1]), int(fields[19])) if len(fields) > 19 else (0, -1)


def _content(pid: str, file: str, size: int = -1) -> bytes:
    try:
        # Creating a Path would take as long as all the rest.
        with open(f"/proc/{pid}/{file}", "rb", buffering=0) as content:  # noqa: PTH123
            return content.read(size) or b""
    except OSError:  # The process ended, is another user's, or is hidden by a sandbox or by itself.
        return b""


def _is_guard(argv: list[bytes]) -> bool:
    """Return True if *argv* is that of a guard, of any installation or version.

    INTERPRETER -I -S GUARD CONTROL_FD SCRATCH GRACE_MS CWD PROGRAM ARGUMENT...
    """
    return (
        len(argv) > 9  # The last item is empty: each argument ends with a NUL.
        and argv[1:3] == [b"-I", b"-S"]
        and _SCRIPT.fullmatch(argv[3]) is not None
        and argv[4].isdigit()
        and argv[6].isdigit()
        and argv[7].startswith(b"/")
    )


def _number(text: bytes) -> int:
    """Return *text* as a depth, at most MOST; 0 if it is not a number."""
    if re.fullmatch(rb"[0-9]+", text) is None:
        return 0
    digits = text.lstrip(b"0")
    return MOST if len(digits) > 4 else int(digits or b"0")


def from_ps(ps: str = "/bin/ps") -> list[Ancestor]:
    """Return the ancestors, nearest first, from the output of `ps`, for systems without /proc.

    The `ps` of PATH is not used, because a model may have set PATH. On macOS, a sandboxed process
    can neither run `ps` nor see a process outside its sandbox. Codex's own sandbox is such a
    sandbox, so a refused `ps` counts as one run around this process.
    """
    command = [ps, "-axww", "-o", "pid=", "-o", "ppid=", "-o", "command="]
    if sys.platform == "darwin":
        command.append("-E")  # Also prints the environments of the user's own processes.
    try:
        listing = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PS_TIMEOUT_S,
            check=False,
        )
    except PermissionError:
        return [Ancestor(is_guard=False, depth=1)]
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_ps(listing.stdout.decode("utf-8", "replace"), os.getpid())


def parse_ps(listing: str, pid: int) -> list[Ancestor]:
    """Return the ancestors of *pid*, nearest first, from lines of id, parent's id and command."""
    processes: dict[int, tuple[int, str]] = {}
    for line in listing.split("\n"):
        match line.split(None, 2):
            case [child, parent, command] if child.isdigit() and parent.isdigit():
                processes[int(child)] = int(parent), command
            case _:
                pass
    ancestors: list[Ancestor] = []
    above, _ = processes.pop(pid, (0, ""))
    while above in processes:  # Each process is used once: the list may hold a cycle.
        above, command = processes.pop(above)
        depths = (_number(text.encode()) for text in _PS_VARIABLE.findall(command))
        ancestors.append(Ancestor(_PS_GUARD.match(command) is not None, max(depths, default=0)))
    return ancestors
