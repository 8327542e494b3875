"""Start the operator's command for each run that has ended, with one JSON line as its input."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Callable
from contextlib import suppress

logger = logging.getLogger(__name__)

LINE_LIMIT = 4096
"""Maximum bytes of a line: a pipe takes as many without a reader on each system."""


def notifier(command: str) -> Callable[[str, bytes], None]:
    """Return a function that starts *command* if an audit log's event is the end of a run.

    Its input is the line of the audit log: the run's id, thread, status and figures, but no prompt
    and no answer. It gets a session of its own and is not waited for, so it may outlive the server.
    No shell reads *command*, and the function is called in the thread that writes the state.
    """
    argv = shlex.split(command)
    started: list[subprocess.Popen[bytes]] = []

    def hear(event: str, line: bytes) -> None:
        if event != "ended" or len(line) > LINE_LIMIT:
            return
        started[:] = [each for each in started if each.poll() is None]
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=None,
                cwd=os.path.expanduser("~"),  # noqa: PTH111 - Path.home() fails without a home
                start_new_session=True,
            )
        except OSError as error:
            logger.warning("cannot start the command of --notify: %s", error)
            return
        started.append(child)
        assert child.stdin is not None
        with suppress(OSError):
            child.stdin.write(line)
        with suppress(OSError):
            child.stdin.close()

    return hear
