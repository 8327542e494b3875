"""Run one child so that no process of its tree can outlive the caller.

    python -I -S guard.py CONTROL_FD SCRATCH GRACE_MS[:LEASE_MS] CWD PROGRAM ARGUMENT...

nesting.py recognises guards by this command line, to count nested runs.

The guard is a separate script, with the standard library only, because it must survive the death
of its caller. The child gets the guard's standard streams unchanged. The guard kills the process
tree when the child has ended, or when CONTROL_FD reads end of file. The latter happens whether the
caller closed it, crashed or was killed: one path for all. Then the guard removes the folder
SCRATCH ("" for none) with the files that were in it before the child began, and exits as the child
did. It does so by descriptors that it opened then: a command of the child may have put more files
or a link there, for the guard to remove what the command itself cannot.

The user's `notify` program is the exception. Codex starts it at the turn's end and does not wait
for it (0.60.1, 0.163.0, 0.171.0). It stays in Codex's process group. The model's commands never do:
0.60.1 gives them a process group, 0.98 and later a session. If the child exited with 0, the guard
kills all others, writes the exit code to CONTROL_FD, and lets that group live for LAST_ACT_S at
most, or until the caller's process ends.

On Linux, the guard is the child's subreaper. A descendant that calls setsid, nohup or a double
fork becomes the guard's own child when its parent dies. When wait(2) reports that the guard has no
children left, all processes of the tree are therefore dead. Elsewhere, the guard follows parent
ids from `ps`, which misses a process that got another parent before the end. Without help from the
kernel, no better way is known.

With LEASE_MS, the guard also ends the tree when nothing has arrived on CONTROL_FD for so long. The
caller is then a worker that works for a server on another machine, and passes on that server's
pings. A worker that is stopped, or waits for a network that is cut, closes nothing. So the guard
kills it as well.

If the guard itself is killed on Linux, its descendants become children of the caller, which finds
them by the mark that the guard set (see orphans.py).
"""

from __future__ import annotations

import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

    Prctl = Callable[[int, int], int]
else:
    try:
        import _signal as signal  # Without the enumerations, which take 6 ms to import.
    except ImportError:
        import signal

LINUX = sys.platform.startswith("linux")
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
MARK = 1 << 62  # Soft RLIMIT_RSS of a tree is this plus the guard's id; Linux ignores that limit.
LAST_ACT_S = 5.0  # Seconds that `notify` may take; plain Codex sets it no limit.
PARENT_CHECK_S = 0.1  # Interval in seconds for checking that the caller is still alive.
LEASE_CHECK_S = 1.0  # A poll's own time stands still while the machine is suspended.
NO_CHILDREN = 127 << 8  # As the wait status of a child that could not be started.
FD_END = 65536 if LINUX else 4096  # No inherited descriptor of a busy server is above it.
GIVE_UP_S = 10.0  # Seconds to try to kill: a process in uninterruptible sleep may never die.


def main(arguments: list[str]) -> None:
    """Run the child, kill its process tree, and exit as the child did."""
    control = int(arguments[0])
    scratch, times, cwd, argv = arguments[1], arguments[2], arguments[3], arguments[4:]
    grace, _, lease = times.partition(":")
    grace_s, lease_s = int(grace) / 1000, int(lease or "0") / 1000
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wakeup, alarm = os.pipe()
    os.set_blocking(alarm, False)
    signal.signal(signal.SIGCHLD, ignore)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    prctl = linux_prctl() if LINUX else None
    if prctl is not None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_DUMPABLE, 0)  # The sandbox of Codex before 0.120 shows this process.
    guard, caller = os.getpid(), os.getppid()
    if LINUX:
        set_mark(guard)
    held = hold(scratch) if scratch else None
    child = os.fork()
    if child == 0:
        become(argv, cwd, guard, prctl)
    close_streams()
    status = watch(child, control, wakeup, caller, lease_s)
    if status == 0 and LINUX:
        if held is not None:
            remove(held)
        finish_last_act(child, control, caller, (wakeup, alarm))
    doomed: set[int] = set() if LINUX else tree(guard)
    if status is None:
        status = interrupt(child, wakeup, grace_s)
    status = kill_all(child, status, doomed)
    if held is not None:
        remove(held)
    leave(status)


def ignore(number: int, frame: object) -> None:
    """Do nothing with SIGCHLD; an installed handler lets the signal wake the poll."""


def become(argv: list[str], cwd: str, guard: int, prctl: Prctl | None) -> None:
    """Turn the forked process into the child: own session, default signals, then exec."""
    try:
        os.setsid()
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard:
                os._exit(127)
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGCHLD,
            signal.SIGPIPE,
            signal.SIGXFSZ,
        ):
            signal.signal(number, signal.SIG_DFL)
        os.closerange(3, FD_END)
        os.chdir(cwd)
        if os.getcwd() != os.path.normpath(cwd):
            raise OSError(20, "a link leads elsewhere")
        os.execv(argv[0], argv)
    except OSError as error:
        os.write(2, f"cannot run {argv[0]} in {cwd}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def close_streams() -> None:
    """Close the guard's standard streams, so that the caller sees the child's end of file."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def watch(child: int, control: int, wakeup: int, caller: int, lease_s: float) -> int | None:
    """Wait for the child; return its wait status, or None if *control* was closed first.

    The same if a lease of *lease_s* seconds, 0 for none, is over. Then *caller* is killed too.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN | select.POLLHUP)
    poll.register(wakeup, select.POLLIN)
    until = clock() + lease_s
    while True:
        left_s = until - clock()
        if lease_s and left_s <= 0:
            if os.getppid() == caller:
                kill(caller)
            return None
        for ready, _ in poll.poll(min(left_s, LEASE_CHECK_S) * 1000 if lease_s else None):
            if ready == wakeup:
                os.read(wakeup, 4096)
                status = reap(child)
                if status is not None:
                    return status
            elif not receive(control):
                return None
            else:
                until = clock() + lease_s


def clock() -> float:
    """Return the seconds of a clock that also counts while the machine is suspended."""
    if LINUX:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def receive(control: int) -> bool:
    """Read what the caller sends; return False at end of file.

    Descriptors that come with it (locks) stay open as long as this process, as those do that it
    was started with.
    """
    try:
        import _socket  # Here, because few guards need it, and at the start it takes time.

        end = _socket.socket(fileno=control)
        try:
            return bool(end.recvmsg(4096, _socket.CMSG_SPACE(4 * 64))[0])
        finally:
            end.detach()
    except ImportError:
        return bool(os.read(control, 4096))
    except OSError:  # The connection was reset: the caller is gone.
        return False


def finish_last_act(child: int, control: int, caller: int, wakeup: tuple[int, int]) -> None:
    """Kill what the ended child has left, except its own process group; wait for that group."""
    until = time.monotonic() + LAST_ACT_S
    pause_s = 0.0005
    last: set[int] = set()
    while reap(child) != NO_CHILDREN:
        left = tree(os.getpid())
        members = {pid for pid in left if group_of(pid) == child}
        last = members.union(*(tree(pid) for pid in members))
        if left <= last or time.monotonic() > until:
            break
        for pid in left - last:
            kill(pid)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)
    if not last:
        return
    try:
        os.write(control, b"0")
    except OSError:
        return  # The caller has left already.
    # The run has ended for the caller. The guard must no longer hold its locks.
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in wakeup:
            try:
                os.close(fd)
            except OSError:
                pass  # It belonged to the listing.
    poll = select.poll()
    poll.register(wakeup[0], select.POLLIN)
    while reap(child) != NO_CHILDREN and time.monotonic() < until and os.getppid() == caller:
        if poll.poll(PARENT_CHECK_S * 1000):
            os.read(wakeup[0], 4096)


def interrupt(child: int, wakeup: int, grace_s: float) -> int | None:
    """Send SIGINT so that the child can close its files; wait at most *grace_s* for its status."""
    signal_group(child, signal.SIGINT)
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    deadline = time.monotonic() + grace_s
    status = reap(child)
    while status is None and (left := deadline - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            os.read(wakeup, 4096)
        status = reap(child)
    return status


def kill_all(child: int, status: int | None, doomed: set[int]) -> int | None:
    """Kill all descendants until none is left; return the child's wait status."""
    deadline = time.monotonic() + GIVE_UP_S
    pause_s = 0.0005
    while True:
        try:
            while True:
                pid, ended = os.waitpid(-1, os.WNOHANG)
                if pid == child:
                    status = ended
                if pid == 0:
                    break
        except ChildProcessError:
            if not doomed:
                return status
        if time.monotonic() > deadline:
            return status
        for pid in tree(os.getpid()) | doomed:
            kill(pid)
        doomed = set()
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)


def tree(root: int) -> set[int]:
    """Return the ids of all descendants of *root*."""
    children: dict[int, list[int]] = {}
    for pid, parent in processes():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    ahead = [root]
    while ahead:
        for pid in children.get(ahead.pop(), ()):
            if pid not in found:
                found.add(pid)
                ahead.append(pid)
    return found


def processes() -> list[tuple[int, int]]:
    """Return (pid, parent pid) of every visible process."""
    if not LINUX:
        import subprocess

        command = ["ps", "-A", "-o", "pid=", "-o", "ppid="]
        listing = subprocess.run(command, capture_output=True, check=False)
        return [(int(a), int(b)) for a, b in (line.split() for line in listing.stdout.splitlines())]
    found: list[tuple[int, int]] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    # The command, in brackets, may itself hold brackets and blanks.
                    found.append((int(name), int(stat.read().rpartition(b")")[2].split()[1])))
            except (OSError, IndexError, ValueError):
                pass  # The process ended during the read.
    return found


def reap(child: int) -> int | None:
    """Collect ended children; return the status of *child* if it is among them.

    NO_CHILDREN if there are no children at all, None otherwise.
    """
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                return status
            if pid == 0:
                return None
    except ChildProcessError:
        return NO_CHILDREN


def kill(pid: int) -> None:
    """Send SIGKILL to *pid*."""
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass  # The process has ended already, or runs as another user.


def group_of(pid: int) -> int:
    """Return the process group of *pid*; 0 if it has ended."""
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def set_mark(guard: int) -> None:
    """Mark this process and all its descendants as the tree of *guard*.

    Unlike a variable or a session, a limit survives a cleared environment and setsid.
    """
    try:
        import resource

        limit, hard = MARK + guard, resource.getrlimit(resource.RLIMIT_RSS)[1]
        if hard == resource.RLIM_INFINITY or hard >= limit:
            resource.setrlimit(resource.RLIMIT_RSS, (limit, hard))
    except (ImportError, OSError, ValueError):
        pass


def signal_group(leader: int, number: int) -> None:
    """Signal the process group of *leader*."""
    try:
        os.killpg(leader, number)
    except OSError:
        pass


class Held:
    """A folder that is to be removed: its descriptor, its parent's, and the files known in it."""

    def __init__(self, path: str) -> None:
        """Open the folder and its parent; -1 in place of one that is gone."""
        self.name = os.path.basename(path)
        self.parent = self.folder = -1
        self.names: list[str] = []
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self.parent = os.open(os.path.dirname(path), flags)
            self.folder = os.open(self.name, flags | os.O_NOFOLLOW, dir_fd=self.parent)
            self.names = os.listdir(self.folder)
        except OSError:
            pass


def hold(path: str) -> Held:
    """Return the folder *path* for `remove`."""
    return Held(path)


def remove(held: Held) -> None:
    """Remove the files that *held* knows, and the folder if it is empty; follow no link."""
    for name in held.names if held.folder >= 0 else ():
        try:
            os.unlink(name, dir_fd=held.folder)
        except OSError:
            pass  # It was removed already.
    try:
        if held.parent >= 0:
            os.rmdir(held.name, dir_fd=held.parent)
    except OSError:
        pass  # It is not empty, or is another thing now.
    for fd in (held.folder, held.parent):
        if fd >= 0:
            os.close(fd)
    held.folder = held.parent = -1


def leave(status: int | None) -> None:
    """Exit as the child did: with its exit code, or by its signal."""
    if status is None:
        os._exit(1)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def linux_prctl() -> Prctl | None:
    """Return the C library's prctl, or None if it cannot be loaded."""
    try:
        import ctypes

        return ctypes.CDLL(None, use_errno=True).prctl
    except (ImportError, OSError, AttributeError):
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
