"""`mcp-server-codex watch`: show the runs, live ones first, until Ctrl-C.

On a terminal the list is drawn anew each second, on the alternate screen: the end of the command,
Ctrl-Z and SIGTERM leave the terminal as it was. Elsewhere each change is a line.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime

from rich.console import Group
from rich.live import Live
from rich.text import Text

from codex_tools.codex.clean_text import clean, clean_json
from codex_tools.codex.errors import CodexError
from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.command import Form, quiet_at_closed_pipe, read_command_line
from mcp_server_codex.cli.run_lines import PlainConsole, home, lines_of
from mcp_server_codex.cli.run_list import LIVE, RunList

WATCH = Form(
    name="watch",
    about="Runs of all servers that share the state folder, live ones first, until Ctrl-C (exit"
    " code 130). With --json, or if stdout is no terminal, each change is a line.",
    arguments=(),
)

LOOK_EVERY_S = 1.0
"""Seconds between two looks at the state folder."""

NEWEST = 20
"""Number of runs that are read in addition to the live ones."""

Wait = Callable[[float], int | None]
"""Wait some seconds, or until a signal arrives, and return its number; None for no signal."""


def run_watch(arguments: list[str]) -> int:
    """Run the command; return the exit code: 128 and the number of the signal that ended it."""
    line = read_command_line(WATCH, arguments)
    logging.disable()  # A warning about a record would be printed into the list each second.
    try:
        runs = RunList(line.settings)
        with _signals() as wait:
            console = PlainConsole()
            is_drawn = sys.stdout.isatty() and not console.is_dumb_terminal and not line.as_json
            ended_by = 0
            with quiet_at_closed_pipe():
                ended_by = (
                    _draw(runs, console, wait) if is_drawn else _tell(runs, wait, line.as_json)
                )
            return 128 + ended_by if ended_by else 0
    except CodexError as error:
        return line.complain(error)
    except KeyboardInterrupt:
        return 130


def _draw(runs: RunList, console: PlainConsole, wait: Wait) -> int:
    """Draw the list until a signal ends it; return its number."""
    live = Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop")
    with live:
        while True:
            live.update(_picture(runs.read(NEWEST), console), refresh=True)
            match wait(LOOK_EVERY_S):
                case None | signal.SIGWINCH:
                    continue
                case signal.SIGTSTP:
                    live.stop()
                    _suspend()
                    live.start()
                case number:
                    return number


def _suspend() -> None:
    """Stop this process as Ctrl-Z does by default; return when it is continued."""
    own = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, own)


def _picture(found: Json, console: PlainConsole) -> Group:
    """Return what fits on the terminal: live runs first, then the others, the newest first."""
    runs: list[Json] = sorted(found["runs"], key=lambda run: run["status"] not in LIVE)
    live = sum(run["status"] in LIVE for run in runs)
    head = f"{live} live of {found['total']} runs in {home(found['state_dir'])}"
    lines = [Text(f"{datetime.now():%H:%M:%S}  {head}  (Ctrl-C ends)", "dim")]
    for run in runs:
        lines += lines_of(run, console.width)
    lines = lines[: console.height]
    for line in lines:
        line.truncate(console.width, overflow="ellipsis")
    return Group(*lines)


def _tell(runs: RunList, wait: Wait, as_json: bool) -> int:
    """Print a line for each change until a signal ends it; return its number.

    First comes a line for each live run, and no line for those that have ended before.
    """
    told: dict[str, tuple[object, ...]] = {}
    is_first = True
    while True:
        for run in reversed(runs.read(NEWEST)["runs"]):
            state = (run["status"], run["doing"], run["files_changed"])
            if told.get(run["run_id"]) == state:
                continue
            told[run["run_id"]] = state
            if not (is_first and run["status"] not in LIVE):
                _put(run, as_json)
        sys.stdout.flush()
        is_first = False
        number = wait(LOOK_EVERY_S)
        if number == signal.SIGTSTP:
            _suspend()
        elif number not in (None, signal.SIGWINCH):
            return number


def _put(run: Json, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(clean_json(json.dumps(run, ensure_ascii=False)) + "\n")
        return
    first, said, place = (clean(line.plain) for line in lines_of(run))
    sys.stdout.write(f"{datetime.now():%H:%M:%S}  {first}  {said}  ({place})\n")


_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGWINCH)


@contextmanager
def _signals(numbers: Sequence[signal.Signals] = _CAUGHT) -> Generator[Wait]:
    """Catch signals, so that none interrupts the drawing; yield a function that waits for them.

    A signal that is ignored, as in a job under nohup, stays ignored. A second SIGINT raises
    KeyboardInterrupt, in case the terminal takes no more output.
    """
    arrived: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)

    def note(number: int, _: object) -> None:
        arrived.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def wait(seconds: float) -> int | None:
        if not arrived:
            select.select([reader], [], [], seconds)
        if select.select([reader], [], [], 0)[0]:
            os.read(reader, 1024)
        return arrived.pop(0) if arrived else None

    caught = [each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, note) for each in caught}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield wait
    finally:
        signal.set_wakeup_fd(wakeup)
        for each, handler in before.items():
            signal.signal(each, handler)
        os.close(reader)
        os.close(writer)
