"""`mcp-server-codex worker`: run turns for a server on another machine, over stdin and stdout."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import anyio

from codex_tools.engines.choose import choose_engine
from codex_tools.engines.orphans import hide_memory
from codex_tools.place_policy import narrow_turn
from codex_tools.places.worker import Worker, serve
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.threads import local_threads
from codex_tools.runs.thread_lock import ThreadLock
from mcp_server_codex.log import log_to_stderr
from mcp_server_codex.settings import Settings, read_settings

_HELP = """\
usage: mcp-server-codex worker [option ...]

Runs turns for a server on another machine, which starts this command over ssh or another pipe and
speaks to it on stdin and stdout. The options are those of the server: `mcp-server-codex --help`.
"""


def run_worker(arguments: list[str]) -> NoReturn:
    """Serve one server until it closes the pipe; the options are those of a server."""
    if {"--help", "-h"} & {*arguments}:
        sys.stdout.write(_HELP)
        sys.exit(0)
    settings = read_settings(arguments, os.environ, _fail)
    target = os.dup(1)
    os.dup2(2, 1)  # Stdout carries frames only.
    log_to_stderr(settings.log_level)
    # A parent that ignores it, as some daemons do, would hide the exit codes of Codex and git.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    hide_memory()
    anyio.run(serve, _make(settings), 0, target)
    # While the interpreter shuts down, no other thread runs: nothing would keep the lease.
    os._exit(0)


def _make(settings: Settings) -> Worker:
    state_dir = settings.state_dir / "worker"
    threads = local_threads(read_prices(settings.prices), state_dir)

    def lock_thread(thread_id: str) -> tuple[int, Callable[[], None]]:
        lock = ThreadLock.take(threads.home, state_dir, thread_id)
        return lock.fd, lock.release

    return Worker(
        # Whatever --engine says: only this engine's guards end with the lease of a stopped worker.
        engine=choose_engine(settings.codex_bin, settings.policy.projects(), choice="exec"),
        threads=threads,
        state_dir=state_dir,
        rules=settings.policy.environment,
        check=partial(narrow_turn, settings.policy),
        lock_thread=lock_thread,
    )


def _fail(problem: str) -> NoReturn:
    sys.stderr.write(f"mcp-server-codex worker: {problem}\n")
    sys.exit(2)
