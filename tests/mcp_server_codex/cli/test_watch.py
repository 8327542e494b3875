"""`mcp-server-codex watch` shows the runs live, and leaves the terminal as it was."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.lab import server_program
from support.stored_state import EVIL, command_event, keep, person_runs, run_id, server

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
"""How a program goes to the alternate screen of a terminal, and back."""

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
"""How a program hides the cursor, and shows it again."""

WITHIN_S = 60


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@dataclass
class Terminal:
    """A command on a terminal of its own, and what it has drawn."""

    process: subprocess.Popen[bytes]
    master: int
    before: list[Any]
    drawn: str = ""
    slave: int = field(default=-1)

    def read(self, until: Callable[[str], object]) -> str:
        """Read until what was drawn satisfies *until*, or the command has ended; return all."""
        limit = time.monotonic() + WITHIN_S
        while not until(self.drawn):
            ready = select.select([self.master], [], [], 0.1)[0]
            if ready:
                self.drawn += os.read(self.master, 65536).decode("utf-8", "replace")
            elif self.process.poll() is not None:
                break
            assert time.monotonic() < limit, self.drawn[-2000:]
        return self.drawn

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def check_as_it_was(self) -> None:
        """Check that the screen, the cursor and the modes are those from before the command."""
        drawn = self.drawn
        assert drawn.count(ENTER) == drawn.count(LEAVE) > 0
        assert drawn.rindex(LEAVE) > drawn.rindex(ENTER)
        assert drawn.count(HIDE) == drawn.count(SHOW) > 0
        assert drawn.rindex(SHOW) > drawn.rindex(HIDE)
        assert termios.tcgetattr(self.slave) == self.before


@contextmanager
def terminal(
    state: Path,
    *,
    columns: int = 100,
    lines: int = 30,
    term: str = "xterm-256color",
    prefix: tuple[str, ...] = (),
) -> Generator[Terminal]:
    """Run the command with a terminal of its own; *prefix* begins the command line."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environ = os.environ | {"TERM": term, "HOME": str(state.parent), "TZ": "UTC"}
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"):
        environ.pop(name, None)
    before = termios.tcgetattr(slave)

    def control() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [*prefix, server_program(), "watch", "--state-dir", str(state)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environ,
        preexec_fn=control,
    )
    try:
        yield Terminal(process, master, before, slave=slave)
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)


def screen(drawn: str) -> str:
    """Return the latest picture, without what controls the terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.rpartition("\x1b[H")[2])


def test_it_draws_live_runs_first_and_again_each_second(state: Path) -> None:
    with server(state) as store:
        keep(store, 1, "running", created_at="2026-11-01T10:00:00Z", events=(command_event("a"),))
        keep(store, 2, created_at="2026-11-02T10:00:00.000Z")
        with terminal(state) as shown:
            first = screen(shown.read(lambda drawn: "running a" in drawn and run_id(2) in drawn))
            assert first.index(run_id(1)) < first.index(run_id(2))
            assert "1 live of 2 runs in ~/state" in first
            log = store.log_path(run_id(1))
            log.write_bytes(log.read_bytes() + json.dumps(command_event("later")).encode() + b"\n")
            shown.read(lambda drawn: "running later" in drawn)
            keep(store, 1)
            shown.read(lambda drawn: "0 live of 2 runs" in drawn)
            shown.press(b"\x03")
            shown.read(lambda _: False)
            assert shown.process.wait(WITHIN_S) == 130
            shown.check_as_it_was()
    assert "Traceback" not in shown.drawn


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(
    state: Path, number: signal.Signals, code: int
) -> None:
    with terminal(state) as shown:
        shown.read(lambda drawn: "0 live of 0 runs" in drawn)
        shown.process.send_signal(number)
        shown.read(lambda _: False)
        assert shown.process.wait(WITHIN_S) == code
        shown.check_as_it_was()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the state is read from /proc")
def test_a_suspended_one_has_left_the_screen_and_returns_to_it(state: Path) -> None:
    # A shell runs it in a process group of its own; a group without a parent outside it in the
    # same session ignores SIGTSTP, so this test stands in for the shell.
    script = (
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[1:], process_group=0)\n"
        "signal.signal(signal.SIGTTOU, signal.SIG_IGN)\n"
        "os.tcsetpgrp(0, child.pid)\n"
        "print('pid', child.pid, flush=True)\n"
        "sys.exit(child.wait())\n"
    )
    with terminal(state, prefix=(sys.executable, "-c", script)) as shown:
        drawn = shown.read(lambda drawn: "0 live of 0 runs" in drawn)
        pid = int(re.findall(r"pid (\d+)", drawn)[0])

        def letter() -> str:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

        shown.press(b"\x1a")
        limit = time.monotonic() + WITHIN_S
        while letter() != "T":
            assert time.monotonic() < limit
            shown.read(lambda _: time.monotonic() > limit - WITHIN_S + 1)
            time.sleep(0.05)
        shown.read(lambda drawn: drawn.count(LEAVE) == 1)
        shown.check_as_it_was()
        os.kill(pid, signal.SIGCONT)
        shown.read(lambda drawn: "0 live of 0 runs" in drawn.rpartition(LEAVE)[2])
        assert shown.drawn.count(ENTER) == 2
        os.kill(pid, signal.SIGINT)
        shown.read(lambda _: False)
        assert shown.process.wait(WITHIN_S) == 130
        shown.check_as_it_was()


@pytest.mark.parametrize(("columns", "lines"), [(40, 10), (20, 4), (200, 60)])
def test_what_does_not_fit_is_cut(state: Path, columns: int, lines: int) -> None:
    with server(state) as store:
        for number in range(1, 30):
            keep(store, number, answer="word " * 60, tokens=5000)
        keep(store, 30, "running", created_at="2026-11-01T10:00:00.000Z")
        with terminal(state, columns=columns, lines=lines) as shown:
            picture = screen(shown.read(lambda drawn: run_id(30) in drawn and SHOW not in drawn))
            rows = [row.rstrip("\r") for row in picture.split("\n")]
            assert len(rows) <= lines
            assert max(map(len, rows)) <= columns
            assert run_id(30) in rows[1]
            shown.resize(60, 12)
            shown.process.send_signal(signal.SIGWINCH)
            shown.read(lambda drawn: any(len(row) > 45 for row in screen(drawn).split("\n")))


def test_no_text_of_a_run_controls_the_terminal(state: Path) -> None:
    with server(state) as store:
        events = (command_event(f"make {EVIL}\nforged"),)
        keep(store, 1, "running", cwd=f"/w{EVIL}", model=EVIL, events=events)
        with terminal(state) as shown:
            drawn = shown.read(lambda drawn: "running make" in drawn)
            shown.press(b"\x03")
            drawn = shown.read(lambda _: False)
    plain = re.sub(r"\x1b\[[0-9;]*m|\x1b\[\?(?:1049|25)[hl]|\x1b\[H", "", drawn)
    own = plain.replace("\r\n", "").replace("^C", "")
    assert [letter for letter in own if not letter.isprintable()] == []


def lines_of(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_without_a_terminal_each_change_is_a_line(state: Path, options: tuple[str, ...]) -> None:
    with server(state) as store:
        keep(store, 1, created_at="2026-11-01T10:00:00.000Z")
        keep(store, 2, "running", events=(command_event("a"),))
        argv = [server_program(), "watch", "--state-dir", str(state), *options]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            lines = lines_of(process, 1)
            log = store.log_path(run_id(2))
            log.write_bytes(log.read_bytes() + json.dumps(command_event("b")).encode() + b"\n")
            lines += lines_of(process, 1)
            keep(store, 2, answer="the end")
            lines += lines_of(process, 1)
            keep(store, 3, "queued")
            lines += lines_of(process, 1)
            process.send_signal(signal.SIGINT)
            assert process.wait(WITHIN_S) == 130
            assert process.stdout is not None
            assert process.stdout.read() == ""
    if options:
        found = [json.loads(line) for line in lines]
        assert [run["run_id"] for run in found] == [run_id(n) for n in (2, 2, 2, 3)]
        assert [run["doing"] for run in found] == [
            *("running a", "running b", None, "waiting in the queue")
        ]
        assert found[2]["answer"] == "the end"
    else:
        assert "\x1b" not in "".join(lines)
        for line, said in zip(lines, ("running a", "running b", "the end", "waiting"), strict=True):
            assert said in line
            assert re.match(r"\d\d:\d\d:\d\d  run_", line)


def test_a_terminal_that_cannot_be_drawn_on_gets_lines(state: Path) -> None:
    with server(state) as store:
        keep(store, 1, "running")
        with terminal(state, term="dumb") as shown:
            drawn = shown.read(lambda drawn: run_id(1) in drawn)
            assert "\x1b" not in drawn


def test_a_reader_that_closes_the_pipe_ends_it(state: Path) -> None:
    with server(state) as store:
        keep(store, 1, "running")
        words = f"{server_program()} watch --state-dir {state}"
        script = f"set -o pipefail; {words} | head -1"
        argv = ["bash", "-c", script]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"")
            while process.poll() is None:  # It notices at the next change.
                keep(store, 1, "running", tokens=1)
                keep(store, 1, "queued")
                time.sleep(1.1)
                keep(store, 1, "running")
                time.sleep(1.1)
            assert process.stderr is not None
            assert (process.returncode, process.stderr.read()) == (0, b"")


def test_an_ignored_signal_stays_ignored(state: Path) -> None:
    argv = ["nohup", server_program(), "watch", "--state-dir", str(state)]
    with server(state) as store:
        keep(store, 1, "running")
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            lines_of(process, 1)
            process.send_signal(signal.SIGHUP)
            keep(store, 1)
            assert "completed" in lines_of(process, 1)[0]
            process.terminate()
            assert process.wait(WITHIN_S) == 143


def test_watch_takes_no_words(state: Path) -> None:
    assert person_runs(state, "watch", "run_1").returncode == 2
